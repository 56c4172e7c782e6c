"""The systems that are compared: detector alone, rule, LLM untrained and tuned, oracle, several adapters together."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from llm_wrapper.candidates import BuiltCandidates, detector_choice
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.errors import DataError, RecipeError, listed
from llm_wrapper.evaluation.predictions import decide, oracle_choice
from llm_wrapper.llms.base import LLM
from llm_wrapper.prompts import rule
from llm_wrapper.prompts.render import PromptBuilder, PromptInput, choose
from llm_wrapper.records import Answer, Candidate, Choice, DecidedBy, Prediction


def _predict(
    samples: Sequence[PreparedSample], name: DecidedBy, choose: Callable[[PreparedSample], Choice]
) -> list[Prediction]:
    return [
        decide(
            prepared.sample,
            prepared.built.candidates,
            choose(prepared),
            system=name,
            decided_by=name,
            own_choice=detector_choice(prepared.built),
            origins=prepared.built.origins,
        )
        for prepared in samples
    ]


def by_detector(samples: Sequence[PreparedSample]) -> list[Prediction]:
    """Predict with the detector's own choice."""
    return _predict(samples, "detector", lambda each: Choice(detector_choice(each.built)))


def by_rule(samples: Sequence[PreparedSample]) -> list[Prediction]:
    """Predict with fixed rules over labels, positions and sizes."""
    return _predict(samples, "rule", lambda each: rule.choose_by_rule(each.sample.expression, each.built.candidates))


def by_oracle(samples: Sequence[PreparedSample]) -> list[Prediction]:
    """Predict with the best candidate: what no selector can exceed."""
    return _predict(samples, "oracle", lambda each: oracle_choice(each.built.candidates, each.sample.target))


def by_llm(
    samples: Sequence[PreparedSample], name: str, builder: PromptBuilder, llm: LLM, *, orders: int = 1
) -> list[Prediction]:
    """Predict with an LLM, which is asked only where there are at least two answers.

    Two candidates are two answers; so are one candidate and "none of these", where that is one.

    Args:
        samples: In any order; the LLM sees those of one image together, so that they share their prefix.
        name: Name of the system.
        builder: Builds the prompts; its section says whether and when none is an answer.
        llm: Answers the prompts.
        orders: Over how many orders of the candidates an answer is averaged, see `orders_of`.
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
    predictions = []
    for place, prepared in enumerate(samples):
        answer, count = answers.get(place), len(prepared.built.candidates)
        shares = answer.probabilities if answer else None
        decided = decide(
            prepared.sample,
            prepared.built.candidates,
            choose(answer, count, none=prompt.none, none_below=prompt.none_below) if answer else None,
            system=name,
            decided_by="llm",
            own_choice=detector_choice(prepared.built),
            probabilities=shares[:count] if shares else None,
            none_probability=shares[count] if shares and prompt.none else None,
            origins=prepared.built.origins,
            reasoning=answer.reasoning if answer else None,
            num_tokens=answer.num_tokens if answer else None,
            mass=answer.mass if answer else None,
        )
        predictions.append(decided)
    return predictions


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


# Several adapters that were asked about the same candidates, as one system.

_Combine = Callable[[Sequence[Prediction], tuple[float, ...] | None], int | None]
"""The adapters' usable answers and their mean probabilities, the last of "none of these" -> the index chosen."""


def average(parts: Sequence[Sequence[Prediction]], name: str) -> list[Prediction]:
    """Decide by the mean of the adapters' probabilities.

    The mean is over the adapters that gave probabilities; where none gave any, the
    detectors' own choice is taken. Of equal means the candidate that is shown first wins; means of floating-point
    probabilities are hardly ever equal. "None of these" is an answer like any other, of probability 0 to an adapter
    that was not asked with it; `prompt.none_below` is of one adapter's choice, and does not hold for a mean.

    Args:
        parts: For each adapter its predictions; all for the same samples, in one order, with the same candidates.
        name: Of the system that results.

    Raises:
        DataError: If the adapters were not asked the same.
    """
    return _combine(parts, name, lambda answers, mean: None if mean is None else int(np.argmax(mean)))


def vote(parts: Sequence[Sequence[Prediction]], name: str) -> list[Prediction]:
    """Decide by the box that most adapters chose; equal boxes are one choice, whatever their labels.

    Ties, which are the rule with two adapters, go to the box with the higher mean probability where all who chose have
    probabilities, else to the one whose adapter is named first. Unusable answers do not vote; without any vote, the
    detectors' own choice is taken. Arguments and errors are those of `average`.
    """
    return _combine(parts, name, _most_votes)


def _most_votes(answers: Sequence[Prediction], mean: tuple[float, ...] | None) -> int | None:
    chosen = [each.box for each in answers]
    if not chosen:
        return None
    most = max(map(chosen.count, chosen))
    offered = [*(candidate.box for candidate in answers[0].candidates), None]
    tied = [
        [index for index, box in enumerate(offered) if box == winner]
        for winner in dict.fromkeys(chosen)
        if chosen.count(winner) == most
    ]
    if mean is None or any(each.probabilities is None for each in answers):
        return tied[0][0]
    return max((max(indices, key=mean.__getitem__) for indices in tied), key=mean.__getitem__)


def _combine(parts: Sequence[Sequence[Prediction]], name: str, choose: _Combine) -> list[Prediction]:
    if len(parts) < 2 or len({len(part) for part in parts}) > 1:
        sizes = ", ".join(str(len(part)) for part in parts)
        raise DataError(f"adapters are combined on the same samples, two adapters at least; found sizes {sizes or 0}")
    problems = [
        f"sample {first.sample_id!r} of {first.system!r}, {other.sample_id!r} of {other.system!r}"
        for first, *others in zip(*parts, strict=True)
        for other in others
        if (first.sample_id, first.candidates, first.target) != (other.sample_id, other.candidates, other.target)
    ]
    if problems:
        raise DataError(listed("adapters are combined on the same candidates in the same order", problems))
    return [_decide_together(same, name, choose) for same in zip(*parts, strict=True)]


def _decide_together(same: Sequence[Prediction], name: str, choose: _Combine) -> Prediction:
    first, answers = same[0], [each for each in same if each.decided_by == "llm"]
    if len(first.candidates) < 2 and not answers:  # it needed no answer
        return replace(first, system=name)
    given = [(*each.probabilities, each.none_probability or 0.0) for each in answers if each.probabilities is not None]
    mean = tuple(float(share) for share in np.mean(given, axis=0)) if given else None
    index = choose(answers, mean)
    if index is None:
        origins = tuple(range(len(first.candidates))) if first.origins is None else first.origins
        own = detector_choice(BuiltCandidates(first.candidates, origins, {}))
        box = None if own is None else first.candidates[own].box
        return replace(first, system=name, box=box, decided_by="fallback", probability=None, probabilities=None,
                       none_probability=None, mass=None)  # fmt: skip
    says_none, could_say_none = index == len(first.candidates), any(each.none_probability is not None for each in same)
    return replace(
        first,
        system=name,
        box=None if says_none else first.candidates[index].box,
        decided_by="llm",
        probability=None if mean is None or (says_none and not could_say_none) else mean[index],
        probabilities=None if mean is None else mean[:-1],
        none_probability=mean[-1] if mean and could_say_none else None,
        failure=None,
        mass=None,
    )
