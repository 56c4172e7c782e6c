"""Several adapters asked about the same candidates, as one system; and what each detector adds to an ensemble."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llm_wrapper.candidates import BuiltCandidates, detector_choice
from llm_wrapper.errors import DataError, listed
from llm_wrapper.evaluation.comparison import Comparison, compare_systems
from llm_wrapper.records import Prediction

__all__ = ["Contribution", "average", "contributions", "vote"]


@dataclass(frozen=True, slots=True)
class Contribution:
    """Gain of a system's P@1 from a detector: with all detectors, minus with all but this one."""

    system: str
    detector: str
    gain: Comparison


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
    return _combined(parts, name, _by_mean)


def vote(parts: Sequence[Sequence[Prediction]], name: str) -> list[Prediction]:
    """Decide by the box that most adapters chose; equal boxes are one choice, whatever their labels.

    Ties, which are the rule with two adapters, go to the box with the higher mean probability where all who chose have
    probabilities, else to the one whose adapter is named first. Unusable answers do not vote; without any vote, the
    detectors' own choice is taken. Arguments and errors are those of `average`.
    """
    return _combined(parts, name, _by_votes)


def contributions(
    whole: Mapping[str, Sequence[Prediction]], without: Mapping[str, Mapping[str, Sequence[Prediction]]]
) -> list[Contribution]:
    """Compare an ensemble with itself less one detector.

    Args:
        whole: System -> its predictions with all detectors.
        without: Removed detector -> system -> predictions; a system that is not in it is skipped.
    """
    return [
        Contribution(system, detector, compare_systems(rows, others[system]))
        for system, rows in whole.items()
        for detector, others in without.items()
        if system in others
    ]


def _combined(
    parts: Sequence[Sequence[Prediction]], name: str, choose: Callable[[Sequence[Prediction]], int | None]
) -> list[Prediction]:
    _require_same_questions(parts)
    return [_decide_together(same, name, choose) for same in zip(*parts, strict=True)]


def _require_same_questions(parts: Sequence[Sequence[Prediction]]) -> None:
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


def _decide_together(
    same: Sequence[Prediction], name: str, choose: Callable[[Sequence[Prediction]], int | None]
) -> Prediction:
    """Combine the predictions for one sample; a prediction that needed no answer stays as it is."""
    first = same[0]
    if len(first.candidates) < 2 and not _usable(same):
        return replace(first, system=name)
    mean = _mean(same)
    index = choose(same)
    if index is None:
        own = detector_choice(BuiltCandidates(first.candidates, _origins(first), {}))
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


def _origins(prediction: Prediction) -> tuple[int, ...]:
    return prediction.origins if prediction.origins is not None else tuple(range(len(prediction.candidates)))


def _usable(same: Sequence[Prediction]) -> list[Prediction]:
    return [each for each in same if each.decided_by == "llm"]


def _mean(same: Sequence[Prediction]) -> tuple[float, ...] | None:
    """Return the mean probability of each candidate, and behind them that of "none of these"."""
    given = [
        (*each.probabilities, each.none_probability or 0.0) for each in _usable(same) if each.probabilities is not None
    ]
    return tuple(float(share) for share in np.mean(given, axis=0)) if given else None


def _by_mean(same: Sequence[Prediction]) -> int | None:
    mean = _mean(same)
    return None if mean is None else int(np.argmax(mean))


def _by_votes(same: Sequence[Prediction]) -> int | None:
    voters = _usable(same)
    boxes = [each.box for each in voters]
    if not boxes:
        return None
    most = max(map(boxes.count, boxes))
    tied = [box for box in dict.fromkeys(boxes) if boxes.count(box) == most]
    mean = _mean(same)
    candidates = same[0].candidates
    answers = [*(candidate.box for candidate in candidates), None]
    places = [[index for index, answer in enumerate(answers) if answer == box] for box in tied]
    if mean is None or any(each.probabilities is None for each in voters):
        return places[0][0]
    shares = [max(indices, key=mean.__getitem__) for indices in places]
    return max(shares, key=mean.__getitem__)
