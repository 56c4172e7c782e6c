"""In-context examples: training expressions with their answers, as turns of the conversation before the question."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llm_wrapper.prompts.render import PromptInput
from llm_wrapper.prompts.same_picture import Pictures
from llm_wrapper.records import Candidate, Sample

__all__ = ["ExampleSelector", "Exemplar", "FixedExamples", "draw_examples"]


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A training expression that can be shown: its candidates in shown order, and the index of the right one."""

    sample: Sample
    candidates: tuple[Candidate, ...]
    index: int


class ExampleSelector(Protocol):
    """Chooses the examples that are shown before each question."""

    def select(self, questions: Sequence[PromptInput]) -> list[list[Exemplar]]:
        """Return the examples of each question in the order to be shown; never one of the question's own image."""
        ...


def draw_examples(pool: Sequence[Exemplar], count: int, *, seed: int) -> list[Exemplar]:
    """Draw so many examples of different images, whose answers are spread over the indices.

    Each in turn is of an index that was drawn least often so far: an LLM likes to say again what it has seen said.
    There are fewer where the pool has fewer images.

    Args:
        pool: What may be drawn; the order of its samples does not matter.
        count: How many.
        seed: Decides, together with the samples' ids.
    """
    rng = random.Random(seed)
    left = sorted(pool, key=lambda each: each.sample.sample_id)
    rng.shuffle(left)
    drawn: list[Exemplar] = []
    used: Counter[int] = Counter()
    while left and len(drawn) < count:
        best = min(left, key=lambda each: used[each.index])
        drawn.append(best)
        used[best.index] += 1
        left = [each for each in left if each.sample.image_id != best.sample.image_id]
    return drawn


class FixedExamples:
    """Show every question the same examples, so that the questions of one image share all of them."""

    def __init__(self, pool: Sequence[Exemplar], count: int, *, seed: int) -> None:
        self._count = count
        self._drawn = draw_examples(pool, count + 1, seed=seed)  # one more: it replaces one of a question's own image
        self._pictures = Pictures([each.sample for each in self._drawn])

    def select(self, questions: Sequence[PromptInput]) -> list[list[Exemplar]]:
        """Return the first `count` examples that do not show the question's image."""
        own = [self._pictures.places_of(sample) for sample, _ in questions]
        return [[each for i, each in enumerate(self._drawn) if i not in indices][: self._count] for indices in own]
