"""Speed of index scoring against what a user would do otherwise, with equal choices checked in the same run."""

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

__all__ = ["Timing", "agreement", "compare", "largest_difference", "scored"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one way of asking the same prompts, and its answers."""

    name: str
    seconds: float
    answers: list[Answer]


def scored(llm: LoadedLLM, prompts: Sequence[Prompt], *, share: bool = True) -> list[Answer]:
    """Return the answer to each prompt, in order."""
    return [answer for _, answer in sorted(score(llm, prompts, share=share), key=lambda pair: pair[0])]


def _one_by_one(llm: LoadedLLM, prompts: Sequence[Prompt]) -> list[Answer]:
    """Generate greedily, batch size 1: the way of the paper's code."""
    return [next(generate(llm, [prompt]))[1] for prompt in prompts]


def compare(llm: LoadedLLM, prompts: Sequence[Prompt]) -> list[Timing]:
    """Time shared-prefix scoring, batched scoring that shares nothing, and greedy generation one by one.

    Each way is warmed up with the first prompts.

    Args:
        llm: Tuned, so that it ends its answers: an untrained one generates until it is cut off.
        prompts: Those of one image as neighbours.
    """
    ways: dict[str, Callable[[Sequence[Prompt]], list[Answer]]] = {
        "shared-prefix scoring": lambda rows: scored(llm, rows),
        "batched scoring, nothing shared": lambda rows: scored(llm, rows, share=False),
        "greedy generation, batch 1": lambda rows: _one_by_one(llm, rows),
    }
    timings = []
    for name, way in ways.items():
        way(prompts[:2])
        start = time.perf_counter()
        answers = way(prompts)
        timings.append(Timing(name, time.perf_counter() - start, answers))
    return timings


def agreement(prompts: Sequence[Prompt], a: Sequence[Answer], b: Sequence[Answer]) -> float:
    """Return the share of prompts for which both answers choose the same index."""
    same = [
        choose(one, len(prompt.candidates)).index == choose(other, len(prompt.candidates)).index
        for prompt, one, other in zip(prompts, a, b, strict=True)
    ]
    return sum(same) / len(same)


def largest_difference(a: Sequence[Answer], b: Sequence[Answer]) -> float | None:
    """Return the largest difference of any probability; None where an answer has none."""
    pairs = [(one.probabilities, other.probabilities) for one, other in zip(a, b, strict=True)]
    if any(one is None or other is None for one, other in pairs):
        return None
    return max(float((torch.tensor(one) - torch.tensor(other)).abs().max()) for one, other in pairs if one and other)
