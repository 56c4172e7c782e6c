"""In-context examples: training expressions with their answers, as turns of the conversation before the question."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llm_wrapper.prompts.render import render
from llm_wrapper.prompts.same_picture import Pictures
from llm_wrapper.prompts.words import Question, Worder
from llm_wrapper.recipe import PromptSection
from llm_wrapper.records import Candidate, Message, Prompt, Sample

__all__ = ["Chooser", "Exemplar", "draw", "fixed", "with_examples"]


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A training expression that can be shown: its candidates in shown order, and the index of the right one."""

    sample: Sample
    candidates: tuple[Candidate, ...]
    index: int


Chooser = Callable[[Sequence[Question]], list[list[Exemplar]]]
"""Gives for each question its examples, in the order to be shown; never one of the question's own picture."""


def draw(pool: Sequence[Exemplar], count: int, *, seed: int) -> list[Exemplar]:
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


def fixed(pool: Sequence[Exemplar], count: int, *, seed: int) -> Chooser:
    """Return what gives every question the same examples, so that those of one image share all of them.

    One more is drawn, and stands in for the one that is of a question's own picture.
    """
    drawn = draw(pool, count + 1, seed=seed)
    pictures = Pictures([each.sample for each in drawn])

    def choose(questions: Sequence[Question]) -> list[list[Exemplar]]:
        own = [pictures.places_of(sample) for sample, _ in questions]
        return [[each for place, each in enumerate(drawn) if place not in places][:count] for places in own]

    return choose


def with_examples(word: Worder, section: PromptSection, choose: Chooser) -> Worder:
    """Return what puts examples before the questions that `word` words, each as a question and its index."""

    def all_worded(questions: Sequence[Question]) -> list[Prompt]:
        chosen = choose(questions)
        return [
            replace(prompt, messages=(*_turns(examples, section), *prompt.messages))
            for prompt, examples in zip(word(questions), chosen, strict=True)
        ]

    return all_worded


def _turns(examples: Sequence[Exemplar], section: PromptSection) -> list[Message]:
    turns: list[Message] = []
    for each in examples:
        shown = render(each.sample, each.candidates, section.format, instruction=section.instruction, none=section.none)
        turns += [*shown.messages, Message("assistant", str(each.index))]
    return turns
