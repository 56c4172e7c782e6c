"""The systems that are compared: detector alone, rule, LLM untrained and tuned, oracle. Each gives predictions."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from llm_wrapper.candidates import detector_choice
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.errors import RecipeError
from llm_wrapper.evaluation.decide import decide, oracle_choice
from llm_wrapper.llms.base import LLM
from llm_wrapper.prompts import rule
from llm_wrapper.prompts.render import PromptBuilder, PromptInput, choose
from llm_wrapper.recipe import PromptSection
from llm_wrapper.records import Answer, Candidate, Choice, DecidedBy, Prediction

__all__ = ["ask_in_orders", "average_answers", "by_detector", "by_llm", "by_oracle", "by_rule", "orders_of"]


def _predict(
    samples: Sequence[PreparedSample], name: str, decided_by: DecidedBy, choice_of: Callable[[PreparedSample], Choice]
) -> list[Prediction]:
    return [
        decide(
            prepared.sample,
            prepared.built.candidates,
            choice_of(prepared),
            system=name,
            decided_by=decided_by,
            own_choice=detector_choice(prepared.built),
            origins=prepared.built.origins,
        )
        for prepared in samples
    ]


def by_detector(samples: Sequence[PreparedSample]) -> list[Prediction]:
    """Predict with the detector's own choice."""
    return _predict(samples, "detector", "detector", lambda prepared: Choice(detector_choice(prepared.built)))


def by_rule(samples: Sequence[PreparedSample]) -> list[Prediction]:
    """Predict with fixed rules over labels, positions and sizes."""
    return _predict(
        samples,
        "rule",
        "rule",
        lambda prepared: rule.choose_by_rule(prepared.sample.expression, prepared.built.candidates),
    )


def by_oracle(samples: Sequence[PreparedSample]) -> list[Prediction]:
    """Predict with the best candidate: what no selector can exceed."""
    return _predict(
        samples, "oracle", "oracle", lambda prepared: oracle_choice(prepared.built.candidates, prepared.sample.target)
    )


def by_llm(
    samples: Sequence[PreparedSample],
    name: str,
    builder: PromptBuilder,
    llm: LLM,
    *,
    orders: int = 1,
) -> list[Prediction]:
    """Predict with an LLM, which is asked only where there are at least two answers.

    Two candidates are two answers; so are one candidate and "none of these", where that is one.

    Args:
        samples: In any order; the LLM sees those of one image together, so that they share their prefix.
        name: Name of the system.
        builder: Builds the prompts; its section says whether and when none is an answer.
        llm: Answers the prompts.
        orders: Over how many orders of the candidates an answer is averaged, see `orders`.
    """
    first: dict[str, int] = {}
    prompt = builder.section
    for place, prepared in enumerate(samples):
        first.setdefault(prepared.sample.image_id, place)
    asked = sorted(
        (place for place, prepared in enumerate(samples) if len(prepared.built.candidates) > (0 if prompt.none else 1)),
        key=lambda place: (first[samples[place].sample.image_id], place),
    )
    questions = [(samples[place].sample, samples[place].built.candidates) for place in asked]
    answers = dict(zip(asked, ask_in_orders(questions, builder, llm, count=orders), strict=True))
    return [_decided(prepared, name, answers.get(place), prompt) for place, prepared in enumerate(samples)]


def _decided(prepared: PreparedSample, name: str, answer: Answer | None, prompt: PromptSection) -> Prediction:
    count, shares = len(prepared.built.candidates), answer.probabilities if answer else None
    decided = decide(
        prepared.sample,
        prepared.built.candidates,
        choose(answer, count, none=prompt.none, none_below=prompt.none_below) if answer else None,
        system=name,
        decided_by="llm",
        own_choice=detector_choice(prepared.built),
        probabilities=shares[:count] if shares else None,
        origins=prepared.built.origins,
    )
    if answer is None:
        return decided
    none_probability = shares[count] if shares and prompt.none else None
    return replace(
        decided,
        reasoning=answer.reasoning,
        num_tokens=answer.num_tokens,
        none_probability=none_probability,
        mass=answer.mass,
    )


# An LLM prefers some places of a list to others, so an answer may be averaged over orders. The orders depend on the
# candidates alone, not on the order in which a policy gives them, so that the average is the same whatever that is.


def orders_of(candidates: Sequence[Candidate], count: int) -> list[tuple[int, ...]]:
    """Return `count` orders of the candidates, each a permutation of their indices."""
    keys = [(each.box.xyxy, each.label, each.detector, each.source, repr(each.score)) for each in candidates]
    canonical = sorted(range(len(keys)), key=keys.__getitem__)
    rng = random.Random(repr(sorted(keys)))
    return [tuple(rng.sample(canonical, len(canonical))) for _ in range(count)]


def average_answers(answers: Sequence[Answer], orders: Sequence[Sequence[int]]) -> Answer:
    """Average probabilities over orders, and give them in the candidates' own; "none of these" stays the last.

    An answer without a usable probability does not enter the average; without any there is no answer.
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
    llm: LLM,
    *,
    count: int,
) -> list[Answer]:
    """Return one answer for each sample: with `count` 1 to the candidates in their order, else an average."""
    if count == 1:
        return llm.answer(builder.build(asked))
    orders = [orders_of(candidates, count) for _, candidates in asked]
    questions = [
        (sample, tuple(candidates[index] for index in order))
        for (sample, candidates), chosen in zip(asked, orders, strict=True)
        for order in chosen
    ]
    answers = llm.answer(builder.build(questions))
    return [
        average_answers(answers[place * count : (place + 1) * count], chosen) for place, chosen in enumerate(orders)
    ]
