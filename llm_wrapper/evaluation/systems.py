"""The systems that are compared: detector alone, rule, LLM untrained and tuned, oracle. Each gives predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from llm_wrapper.candidates import detector_choice
from llm_wrapper.detections.scenes import Scene
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

_PLAIN = PromptSection()


def _predict(
    scenes: Sequence[Scene], name: str, decided_by: DecidedBy, choice_of: Callable[[Scene], Choice]
) -> list[Prediction]:
    return [
        decide(
            scene.sample,
            scene.built.candidates,
            choice_of(scene),
            system=name,
            decided_by=decided_by,
            own_choice=detector_choice(scene.built),
            origins=scene.built.origins,
        )
        for scene in scenes
    ]


def by_detector(scenes: Sequence[Scene]) -> list[Prediction]:
    """Predict with the detector's own choice."""
    return _predict(scenes, "detector", "detector", lambda scene: Choice(detector_choice(scene.built)))


def by_rule(scenes: Sequence[Scene]) -> list[Prediction]:
    """Predict with fixed rules over labels, positions and sizes."""
    return _predict(scenes, "rule", "rule", lambda scene: rule.choose(scene.sample.expression, scene.built.candidates))


def by_oracle(scenes: Sequence[Scene]) -> list[Prediction]:
    """Predict with the best candidate: what no selector can exceed."""
    return _predict(
        scenes, "oracle", "oracle", lambda scene: oracle_choice(scene.built.candidates, scene.sample.target)
    )


def by_llm(
    scenes: Sequence[Scene], name: str, builder: PromptBuilder, ask: Ask, *, orders: int = 1
) -> list[Prediction]:
    """Predict with an LLM, which is asked only where there are at least two answers.

    Two candidates are two answers; so are one candidate and "none of these", where that is one.

    Args:
        scenes: In any order; the LLM sees those of one image together, so that they share their prefix.
        name: Name of the system.
        builder: Builds the prompts; its section says whether and when none is an answer.
        ask: Answers prompts in order.
        orders: Over how many orders of the candidates an answer is averaged, see `orders`.
    """
    first: dict[str, int] = {}
    prompt = builder.section
    for place, scene in enumerate(scenes):
        first.setdefault(scene.sample.image_id, place)
    asked = sorted(
        (place for place, scene in enumerate(scenes) if len(scene.built.candidates) > (0 if prompt.none else 1)),
        key=lambda place: (first[scenes[place].sample.image_id], place),
    )
    questions = [(scenes[place].sample, scenes[place].built.candidates) for place in asked]
    answers = dict(zip(asked, ask_in_orders(questions, builder, ask, count=orders), strict=True))
    return [_decided(scene, name, answers.get(place), prompt) for place, scene in enumerate(scenes)]


def _decided(scene: Scene, name: str, answer: Answer | None, prompt: PromptSection) -> Prediction:
    count, shares = len(scene.built.candidates), answer.probabilities if answer else None
    decided = decide(
        scene.sample,
        scene.built.candidates,
        choose(answer, count, none=prompt.none, none_below=prompt.none_below) if answer else None,
        system=name,
        decided_by="llm",
        own_choice=detector_choice(scene.built),
        probabilities=shares[:count] if shares else None,
        origins=scene.built.origins,
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
