"""The systems that are compared: detector alone, rule, LLM untrained and tuned, oracle. Each gives predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from llm_wrapper.candidates import detector_choice
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.evaluation.decide import decide, oracle_choice
from llm_wrapper.evaluation.orders import ask_in_orders
from llm_wrapper.prompts import rule
from llm_wrapper.prompts.builder import PromptBuilder
from llm_wrapper.prompts.choose import choose
from llm_wrapper.recipe import PromptSection
from llm_wrapper.records import Answer, Choice, DecidedBy, Prediction, Prompt

__all__ = ["Ask", "by_detector", "by_llm", "by_oracle", "by_rule"]

Ask = Callable[[Sequence[Prompt]], list[Answer]]
"""Answers prompts in order; how is not evaluation's business."""


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
        samples, "rule", "rule", lambda prepared: rule.choose(prepared.sample.expression, prepared.built.candidates)
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
    ask: Ask,
    *,
    orders: int = 1,
) -> list[Prediction]:
    """Predict with an LLM, which is asked only where there are at least two answers.

    Two candidates are two answers; so are one candidate and "none of these", where that is one.

    Args:
        samples: In any order; the LLM sees those of one image together, so that they share their prefix.
        name: Name of the system.
        builder: Builds the prompts; its section says whether and when none is an answer.
        ask: Answers prompts in order.
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
    answers = dict(zip(asked, ask_in_orders(questions, builder, ask, count=orders), strict=True))
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
