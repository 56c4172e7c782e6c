"""Asks about the same candidates in several orders and averages the answers: an LLM likes some places more than others.

The orders hang on the candidates alone, not on the order in which a policy gives them, so that an averaged answer is
the same whatever that order is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from llm_wrapper.errors import RecipeError
from llm_wrapper.prompts.builder import PromptBuilder
from llm_wrapper.prompts.render import PromptInput
from llm_wrapper.records import Answer, Candidate, Prompt

__all__ = ["ask_in_orders", "averaged", "orders_of"]


def orders_of(candidates: Sequence[Candidate], count: int) -> list[tuple[int, ...]]:
    """Return `count` orders of the candidates, each a permutation of their indices."""
    keys = [(each.box.xyxy, each.label, each.detector, each.source, repr(each.score)) for each in candidates]
    canonical = sorted(range(len(keys)), key=keys.__getitem__)
    rng = random.Random(repr(sorted(keys)))
    return [tuple(rng.sample(canonical, len(canonical))) for _ in range(count)]


def averaged(answers: Sequence[Answer], orders: Sequence[Sequence[int]]) -> Answer:
    """Average probabilities over orders, and give them in the candidates' own; "none of these" stays the last.

    An order whose answer has no usable probability is left out of the average; without any there is no answer.
    Reasons are not kept: those of different orders name different numbers for one object. Their tokens are counted.

    Args:
        answers: One for each order.
        orders: `orders[j][place]` is the candidate that stood at `place` when answer j was given.

    Raises:
        RecipeError: If an answer has no probabilities.
    """
    if any(answer.probabilities is None and answer.text is not None for answer in answers):
        raise RecipeError("llm.orders averages probabilities, which llm.decode=generate does not give: use score")
    usable = [(each, order) for each, order in zip(answers, orders, strict=True) if each.probabilities is not None]
    if not usable:
        return Answer()
    sums = [0.0] * len(usable[0][0].probabilities or ())
    for answer, order in usable:
        behind = range(len(order), len(sums))
        for index, probability in zip([*order, *behind], answer.probabilities or (), strict=True):
            sums[index] += probability / len(usable)
    masses = [answer.mass for answer, _ in usable if answer.mass is not None]
    mass = sum(masses) / len(masses) if len(masses) == len(usable) else None
    counts = [answer.num_tokens for answer in answers if answer.num_tokens is not None]
    return Answer(tuple(sums), mass, num_tokens=sum(counts) if len(counts) == len(answers) else None)


def ask_in_orders(
    asked: Sequence[PromptInput],
    builder: PromptBuilder,
    ask: Callable[[Sequence[Prompt]], list[Answer]],
    *,
    count: int,
) -> list[Answer]:
    """Return one answer for each sample: with `count` 1 that to the candidates as they stand, else an average."""
    if count == 1:
        return ask(builder.build(asked))
    orders = [orders_of(candidates, count) for _, candidates in asked]
    questions = [
        (sample, tuple(candidates[index] for index in order))
        for (sample, candidates), chosen in zip(asked, orders, strict=True)
        for order in chosen
    ]
    answers = ask(builder.build(questions))
    return [averaged(answers[place * count : (place + 1) * count], chosen) for place, chosen in enumerate(orders)]
