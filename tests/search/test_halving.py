"""Prompts without hope stop early, and others see everything."""

from __future__ import annotations

import random

import pytest

from llm_wrapper.search.halving import is_hopeless, rungs, verdict

IMAGES = [f"image-{place // 2}" for place in range(100)]


@pytest.mark.parametrize(
    ("first", "total", "found"),
    [
        (50, 300, [50, 100, 200, 300]),
        (50, 50, [50]),
        (50, 51, [50, 51]),
        (50, 149, [50, 149]),
        (50, 150, [50, 100, 150]),
        (1, 8, [1, 2, 4, 8]),
        (1, 1, [1]),
        (75, 200, [75, 200]),
    ],
)
def test_counts_double_up_to_the_whole_slice(first: int, total: int, found: list[int]) -> None:
    assert rungs(first, total) == found


def draw(share: float, n: int, seed: int) -> list[bool]:
    rng = random.Random(seed)
    return [rng.random() < share for _ in range(n)]


def test_the_hopeless_stop_and_those_near_the_best_go_on() -> None:
    best = draw(0.8, 100, 1)
    near = [not bit if place % 20 == 0 else bit for place, bit in enumerate(best)]
    assert is_hopeless([False] * 40, best, IMAGES)
    assert not is_hopeless(near[:40], best, IMAGES)
    assert not is_hopeless(best[:40], best, IMAGES)
    assert not is_hopeless([True] * 40, best, IMAGES)


def test_one_image_proves_nothing() -> None:
    assert not is_hopeless([False, False], [True, True], ["a", "a"])


def test_what_is_hopeless_depends_on_pairs_not_on_shares() -> None:
    """Two right less is nothing where prompts disagree often, and much where they hardly ever do."""
    best = [place % 2 == 0 for place in range(100)]
    scattered = [not bit for bit in best]
    scattered[:2] = [False, False]
    assert sum(scattered) < sum(best) + 1
    assert not is_hopeless(scattered, best, IMAGES)
    subset = [bit and place >= 12 for place, bit in enumerate(best)]
    assert sum(best) - sum(subset) == 6
    assert is_hopeless(subset, best, IMAGES)


@pytest.mark.parametrize(
    ("right", "best", "found"),
    [
        pytest.param([False] * 40, [True] * 100, "stopped", id="hopeless"),
        pytest.param([True] * 40, [False] * 100, "open", id="hope"),
        pytest.param([False] * 100, [True] * 100, "complete", id="all-seen"),
        pytest.param([False] * 40, None, "open", id="no-best-yet"),
    ],
)
def test_verdicts(right: list[bool], best: list[bool] | None, found: str) -> None:
    assert verdict(right, best, IMAGES) == found
