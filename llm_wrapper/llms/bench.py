"""Speed of index scoring against what a user would do otherwise, with equal answers checked in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from llm_wrapper.llms.generate import generate
from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.score import score
from llm_wrapper.prompts.choose import choose
from llm_wrapper.records import Answer, Prompt

__all__ = ["Timing", "compare"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one way of asking, and how many of its choices equal those of shared-prefix scoring."""

    name: str
    seconds: float
    agreement: float
    largest_difference: float | None


def _timed(ask: Callable[[], list[Answer]]) -> tuple[float, list[Answer]]:
    start = time.perf_counter()
    answers = ask()
    return time.perf_counter() - start, answers


def _ordered(pairs: Sequence[tuple[int, Answer]]) -> list[Answer]:
    return [answer for _, answer in sorted(pairs, key=lambda pair: pair[0])]


def _alone(llm: LoadedLLM, prompts: Sequence[Prompt]) -> list[Answer]:
    """Score each prompt in a call of its own, so that nothing is shared between expressions."""
    return [next(score(llm, [prompt]))[1] for prompt in prompts]


def _one_by_one(llm: LoadedLLM, prompts: Sequence[Prompt]) -> list[Answer]:
    """Generate greedily, batch size 1: the way of the paper's code."""
    return [next(generate(llm, [prompt]))[1] for prompt in prompts]


def compare(llm: LoadedLLM, prompts: Sequence[Prompt]) -> list[Timing]:
    """Time shared-prefix scoring, scoring one by one, and greedy generation one by one, on the same prompts.

    Args:
        llm: Scores in its own type; each way is warmed up with the first prompts.
        prompts: Those of one image as neighbours.
    """
    ways: dict[str, Callable[[Sequence[Prompt]], list[Answer]]] = {
        "shared-prefix scoring": lambda rows: _ordered(list(score(llm, rows))),
        "scoring, one expression at a time": lambda rows: _alone(llm, rows),
        "greedy generation, batch 1": lambda rows: _one_by_one(llm, rows),
    }
    timings: list[Timing] = []
    reference: list[Answer] = []
    for name, way in ways.items():
        way(prompts[:2])
        seconds, answers = _timed(lambda way=way: way(prompts))  # type: ignore[misc]
        reference = reference or answers
        timings.append(Timing(name, seconds, _agreement(prompts, reference, answers), _difference(reference, answers)))
    return timings


def _agreement(prompts: Sequence[Prompt], a: Sequence[Answer], b: Sequence[Answer]) -> float:
    same = [
        choose(one, len(prompt.candidates)).index == choose(other, len(prompt.candidates)).index
        for prompt, one, other in zip(prompts, a, b, strict=True)
    ]
    return sum(same) / len(same)


def _difference(a: Sequence[Answer], b: Sequence[Answer]) -> float | None:
    """Return the largest difference of any probability; None where an answer has none."""
    pairs = [(one.probabilities, other.probabilities) for one, other in zip(a, b, strict=True)]
    if any(one is None or other is None for one, other in pairs):
        return None
    return max(float((torch.tensor(one) - torch.tensor(other)).abs().max()) for one, other in pairs if one and other)
