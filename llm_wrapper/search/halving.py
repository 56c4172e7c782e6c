"""Successive halving: a prompt is measured on few expressions first, and on twice as many as long as there is hope.

A pure function of what was right: no state, no randomness but the bootstrap's fixed seed.
"""

from __future__ import annotations

from collections.abc import Sequence

from llm_wrapper.search.history import Verdict
from llm_wrapper.statistics import difference

__all__ = ["is_hopeless", "rungs", "verdict"]


def rungs(first: int, total: int) -> list[int]:
    """Return after how many expressions a prompt is judged: `first`, twice as many, .., `total`.

    What would be left for the last rung alone is at least as much as the first rung: a rest of few is asked with the
    one before.
    """
    found = [first]
    while 2 * found[-1] + first <= total:
        found.append(2 * found[-1])
    return [*found, total] if found[-1] < total else found


def is_hopeless(right: Sequence[bool], best: Sequence[bool], images: Sequence[str]) -> bool:
    """Tell whether a prompt is worse than the best one, so far that its paired 95 % interval lies below zero.

    Args:
        right: What it had right, for the first expressions.
        best: The same of the best prompt, for these expressions at least.
        images: The image of each expression; whole images are resampled.
    """
    n = len(right)
    interval = difference([*right], [*best[:n]], list(images[:n])).ci
    return interval is not None and interval.high < 0


def verdict(right: Sequence[bool], best: Sequence[bool] | None, images: Sequence[str]) -> Verdict:
    """Judge a prompt; without a best one (the seed prompt itself) nothing is hopeless.

    Args:
        right: As for `is_hopeless`.
        best: As for `is_hopeless`, or `None`.
        images: The image of each expression of the whole slice.
    """
    if len(right) == len(images):
        return "complete"
    return "stopped" if best is not None and is_hopeless(right, best, images) else "open"
