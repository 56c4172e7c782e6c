"""Predictions against what was asked, and two systems against each other on the same samples.

What was asked and not answered counts as wrong; what was answered and not asked is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_wrapper.columns import codes
from llm_wrapper.errors import DataError, listed
from llm_wrapper.metrics import IOU_THRESHOLD, ious, only_system
from llm_wrapper.records import Prediction, Sample
from llm_wrapper.statistics import Estimate, McNemar, difference, estimate, mcnemar

__all__ = ["MISSING_PREDICTION", "Comparison", "compare_systems", "completed", "flips", "paired"]

MISSING_PREDICTION = "missing_prediction"
"""Failure of a sample that was asked for and is not in the predictions."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """System a minus system b on the same samples with a target, each on the same drawn images.

    Attributes:
        a: Name of the first system.
        b: Name of the second system.
        p_at_1: Difference of P@1 (> 0.5).
        p_at_1_ge: Difference of P@1 (>= 0.5).
        mean_iou: Difference of mean IoU.
        mcnemar: Exact test on P@1 (> 0.5); its `n` is that of the differences.
    """

    a: str
    b: str
    p_at_1: Estimate
    p_at_1_ge: Estimate
    mean_iou: Estimate
    mcnemar: McNemar


def completed(predictions: Sequence[Prediction], samples: Sequence[Sample]) -> list[Prediction]:
    """Return one system's predictions for exactly these samples, in their order.

    A sample without a prediction gets one without a box, decided by `missing`, so that it counts as wrong.

    Raises:
        DataError: If there is no prediction, more than one system, a sample twice, or a prediction for another sample
            or another target than asked; all such are listed.
    """
    system = only_system(predictions)
    asked = {sample.sample_id: sample for sample in samples}
    problems = [problem for prediction in predictions for problem in _problems(prediction, asked)]
    if problems:
        headline = f"predictions of {system!r} are not for the samples asked; name the data set and split they were for"
        raise DataError(listed(headline, problems))
    made = {prediction.sample_id: prediction for prediction in predictions}
    return [made.get(sample.sample_id) or _missing(system, sample) for sample in samples]


def paired(a: Sequence[Prediction], b: Sequence[Prediction]) -> list[tuple[Prediction, Prediction]]:
    """Return the predictions of two systems for each sample, in the order of the first.

    Raises:
        DataError: If one of them is not one system's, or they are not for the same samples and targets.
    """
    names = (only_system(a), only_system(b))
    first, second = ({prediction.sample_id: prediction for prediction in each} for each in (a, b))
    problems = [
        f"sample {sample_id!r} has a prediction of {names[sample_id not in first]!r} only"
        for sample_id in dict.fromkeys([*first, *second])
        if (sample_id in first) != (sample_id in second)
    ]
    common = [(prediction, second[sample_id]) for sample_id, prediction in first.items() if sample_id in second]
    problems += [f"sample {x.sample_id!r} has target {x.target} and {y.target}" for x, y in common if not _same(x, y)]
    if problems:
        headline = f"{names[0]!r} and {names[1]!r} must be compared on the same samples; score both on one split"
        raise DataError(listed(headline, problems))
    return common


def compare_systems(a: Sequence[Prediction], b: Sequence[Prediction], *, seed: int = 0) -> Comparison:
    """Compare two systems on the same samples; those without a target tell nothing and are left out.

    Raises:
        DataError: As `paired`.
    """
    pairs = [pair for pair in paired(a, b) if pair[0].target is not None]
    images = codes(prediction.image_id for prediction, _ in pairs)
    first, second = ious([pair[0] for pair in pairs]), ious([pair[1] for pair in pairs])
    right = (first > IOU_THRESHOLD, second > IOU_THRESHOLD)
    return Comparison(
        a=a[0].system,
        b=b[0].system,
        p_at_1=difference(right[0], right[1], images, seed=seed),
        p_at_1_ge=difference(first >= IOU_THRESHOLD, second >= IOU_THRESHOLD, images, seed=seed),
        mean_iou=difference(first, second, images, seed=seed),
        mcnemar=mcnemar(*right),
    )


def flips(a: Sequence[Prediction], b: Sequence[Prediction], *, seed: int = 0) -> Estimate:
    """Return the share of samples whose chosen box differs between two orders of the same candidates.

    Samples count whether or not they have a target; those with fewer than two candidates cannot flip, and count too.

    Raises:
        DataError: As `paired`, or if a sample was not shown the same candidates both times.
    """
    pairs = paired(a, b)
    other = [
        f"sample {x.sample_id!r} was shown {len(x.candidates)} and {len(y.candidates)} candidates that differ"
        for x, y in pairs
        if sorted(map(repr, x.candidates)) != sorted(map(repr, y.candidates))
    ]
    if other:
        raise DataError(listed("flips are counted between two orders of the same candidates", other))
    return estimate([x.box != y.box for x, y in pairs], codes(x.image_id for x, _ in pairs), seed=seed)


def _problems(prediction: Prediction, asked: Mapping[str, Sample]) -> list[str]:
    sample = asked.get(prediction.sample_id)
    if sample is None:
        return [f"sample {prediction.sample_id!r} was not asked for"]
    if (prediction.target, prediction.further_targets) != (sample.target, sample.further_targets):
        return [f"sample {prediction.sample_id!r} has target {sample.target}, the prediction {prediction.target}"]
    return []


def _same(a: Prediction, b: Prediction) -> bool:
    return (a.target, a.further_targets, a.image_id) == (b.target, b.further_targets, b.image_id)


def _missing(system: str, sample: Sample) -> Prediction:
    return Prediction(
        system=system,
        sample_id=sample.sample_id,
        image_id=sample.image_id,
        expression=sample.expression,
        kind=sample.kind,
        target=sample.target,
        box=None,
        decided_by="missing",
        probability=None,
        probabilities=None,
        failure=MISSING_PREDICTION,
        candidates=(),
        further_targets=sample.further_targets,
        image_wh=sample.image_wh,
    )
