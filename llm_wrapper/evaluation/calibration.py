"""Whether a system knows when it is right, and when nothing is to be found: calibration, risk against coverage, GREC.

Functions of calibration and risk take `confidence`, the probability of the choice, shape (n,) in 0..1, NaN where there
is none, and `right`, shape (n,). A choice without one (a single candidate, a fallback, no box) says nothing about
calibration; where it comes to answering or not, it counts as the least confident of all, so every sample counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from llm_wrapper import metrics
from llm_wrapper.boxes import BoolArray, FloatArray, rowwise_iou
from llm_wrapper.metrics import IOU_THRESHOLD
from llm_wrapper.records import Prediction
from llm_wrapper.statistics import Estimate, estimate

NUM_BINS = 15


class Bin(NamedTuple):
    """One bar of a reliability plot: `n` choices, their mean confidence and the share that is right."""

    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well probabilities fit what happens.

    Attributes:
        ece: Expected calibration error: mean of |accuracy - confidence| over the bins, weighted by their size.
        bins: Those that hold something, by rising confidence.
        n: Choices with a probability.
        num_unknown: Choices without.
    """

    ece: float | None
    bins: tuple[Bin, ...]
    n: int
    num_unknown: int


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Risk and coverage of answering only the most confident samples.

    Point i answers all samples with a confidence of at least `thresholds[i]`; the last one answers all, its threshold
    is minus infinity. All arrays have shape (k,), coverage rises.

    Attributes:
        thresholds: Falling confidences.
        coverage: Share of samples answered.
        risk: Share of the answered that is wrong.
        aurc: Area under risk against coverage: the mean risk of the first 1, 2, .. n samples by confidence, where
            equally confident ones come in the mean of all orders; `None` without samples.
    """

    thresholds: FloatArray
    coverage: FloatArray
    risk: FloatArray
    aurc: float | None


def confidences(predictions: Sequence[Prediction]) -> FloatArray:
    """Return the probability of each choice, shape (n,), NaN where there is none."""
    values = [np.nan if each.probability is None else each.probability for each in predictions]
    return np.array(values, dtype=np.float64)


def calibrate(confidence: FloatArray, right: BoolArray, *, num_bins: int = NUM_BINS) -> Calibration:
    """Compare confidence with what happened, in bins of equal mass.

    Probabilities of a choice among few crowd near 1, where bins of equal width would hold nearly everything in the last
    one. The bounds are quantiles, as in scikit-learn's `calibration_curve`: equal confidences share a bin.

    Raises:
        ValueError: If shapes differ, or a confidence is outside 0..1.
    """
    _require_fit(confidence, right)
    known = ~np.isnan(confidence)
    values, hits = confidence[known], right[known].astype(np.float64)
    num_unknown = int((~known).sum())
    if not len(values):
        return Calibration(None, (), 0, num_unknown)
    inner = np.quantile(values, np.linspace(0, 1, num_bins + 1)[1:-1])
    places = np.searchsorted(inner, values)
    counts = np.bincount(places, minlength=num_bins)
    totals = [np.bincount(places, weights=each, minlength=num_bins)[counts > 0] for each in (values, hits)]
    filled = counts[counts > 0]
    mean, accuracy = totals[0] / filled, totals[1] / filled
    bins = tuple(Bin(int(n), float(c), float(a)) for n, c, a in zip(filled, mean, accuracy, strict=True))
    return Calibration(float((filled * np.abs(accuracy - mean)).sum() / len(values)), bins, len(values), num_unknown)


def risk_coverage(confidence: FloatArray, right: BoolArray) -> RiskCoverage:
    """Compute risk against coverage at every threshold that changes what is answered.

    Raises:
        ValueError: As `calibrate`.
    """
    _require_fit(confidence, right)
    n = len(right)
    if not n:
        return RiskCoverage(np.empty(0), np.empty(0), np.empty(0), None)
    rank = np.where(np.isnan(confidence), -np.inf, confidence)
    thresholds, place = np.unique(-rank, return_inverse=True)
    answered = np.bincount(place)
    wrong = np.bincount(place, weights=~right)
    covered = answered.cumsum()
    # Equals come in the mean of all orders, so each adds the share of its equals that is wrong.
    spread = np.repeat(wrong / answered, answered).cumsum() / np.arange(1, n + 1)
    bounds = -thresholds
    bounds[-1] = -np.inf
    return RiskCoverage(bounds, covered / n, wrong.cumsum() / covered, float(spread.mean()))


def threshold_for_risk(confidence: FloatArray, right: BoolArray, risk: float) -> float | None:
    """Return the confidence from which to answer so that most is answered at no more than a risk.

    Choose it on one set of samples and use it on another: on its own set it is too good.

    `risk` is the share of the answered that may be wrong, in 0..1.

    Returns:
        `None` where even the most confident are wrong more often; minus infinity where all may be answered.

    Raises:
        ValueError: As `calibrate`, or if the risk is outside 0..1.
    """
    if not 0 <= risk <= 1:
        raise ValueError(f"risk must be in 0..1, not {risk}")
    curve = risk_coverage(confidence, right)
    allowed = np.flatnonzero(curve.risk <= risk)
    return float(curve.thresholds[allowed[-1]]) if len(allowed) else None


def _require_fit(confidence: FloatArray, right: BoolArray) -> None:
    if confidence.shape != right.shape or right.ndim != 1 or right.dtype != np.bool_:
        raise ValueError(
            f"a confidence and a boolean per sample are needed: {confidence.shape} and {right.dtype} {right.shape}"
        )
    outside = confidence[(confidence < 0) | (confidence > 1)]
    if len(outside):
        raise ValueError(f"{len(outside)} confidences are outside 0..1, the first is {outside[0]}")


# GREC (arXiv 2308.16182): expressions that mean nothing, one object or several. An answer is right only if its boxes
# and the targets can be matched one to one, each with IoU >= 0.5; no target and no box is right too. Our systems answer
# with one box at most, so several targets are never right. The published evaluation program matches by generalised IoU,
# which is never larger, so its numbers are a little lower: both are given.


@dataclass(frozen=True, slots=True)
class Grec:
    """One system's results on expressions with any number of targets.

    Attributes:
        n_acc: Share of the expressions without a target that got no box.
        t_acc: Share of the expressions with a target that got a box, right or not.
        precision: Pr@(F1=1, IoU>=0.5) over all expressions.
        precision_giou: The same, matched by generalised IoU.
    """

    n_acc: Estimate
    t_acc: Estimate
    precision: Estimate
    precision_giou: Estimate


def measure_grec(predictions: Sequence[Prediction], *, seed: int = 0) -> Grec:
    """Score one system's predictions; a sample without a target is one where nothing is to be found.

    A missing or unusable answer is wrong everywhere: it gives no box, but does not say that there is none.
    """
    table = metrics.to_columns(predictions)
    images, has_box, has_target = table.images, table.has_box, table.has_target
    usable = np.array([is_answered(prediction) for prediction in predictions], dtype=np.bool_)
    single = np.array([not prediction.further_targets for prediction in predictions], dtype=np.bool_)

    def precision(overlap: Callable[[FloatArray, FloatArray], FloatArray]) -> Estimate:
        right = ~has_box & ~has_target
        pairs = np.flatnonzero(has_box & has_target & single)
        right[pairs] = overlap(table.boxes[pairs], table.targets[pairs]) >= IOU_THRESHOLD
        return estimate(usable & right, images, seed=seed)

    return Grec(
        n_acc=estimate((usable & ~has_box)[~has_target], images[~has_target], seed=seed),
        t_acc=estimate(has_box[has_target], images[has_target], seed=seed),
        precision=precision(rowwise_iou),
        precision_giou=precision(rowwise_giou),
    )


def is_answered(prediction: Prediction) -> bool:
    """Tell whether a prediction is an answer: a box, or that there is none; not a missing or an unusable one."""
    return prediction.decided_by != "missing" and (prediction.box is not None or prediction.failure is None)


def rowwise_giou(a: FloatArray, b: FloatArray) -> FloatArray:
    """Generalised IoU of row i of `a` (n, 4) with row i of `b` (n, 4), xyxy pixels -> (n,), in -1..1."""
    iou = rowwise_iou(a, b)
    area_a, area_b = (np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (a, b))
    union = (area_a + area_b) / (1 + iou)
    hull = np.prod(np.maximum(a[:, 2:], b[:, 2:]) - np.minimum(a[:, :2], b[:, :2]), axis=1)
    result: FloatArray = iou - (hull - union) / hull
    return result


# A threshold for "none of these" is chosen on samples that are neither trained on, where an LLM is too sure, nor
# reported, where it would be too good.


@dataclass(frozen=True, slots=True)
class Threshold:
    """Results with a threshold for "none of these".

    Attributes:
        below: A less probable choice is answered by none; 0 leaves all as they are.
        answered: Share of all samples that get a box.
        risk: Share of these boxes that are wrong: IoU <= 0.5, or nothing was to be found.
        grec: N-acc, T-acc and precision.
    """

    below: float
    answered: Estimate
    risk: Estimate
    grec: Grec


def apply_threshold(predictions: Sequence[Prediction], below: float) -> list[Prediction]:
    """Return the predictions as `prompt.none_below` would make them; a choice without a probability stays."""
    return [
        replace(each, box=None, probability=each.none_probability)
        if each.decided_by == "llm" and each.box and each.probability is not None and each.probability < below
        else each
        for each in predictions
    ]


def thresholds(predictions: Sequence[Prediction], *, count: int = 10, seed: int = 0) -> list[Threshold]:
    """Measure thresholds that each turn an equal share of the choices with a probability to none; 0 is the first.

    The predictions are one system's, made without a threshold. Equal confidences make fewer than `count`.
    """
    known = [each.probability for each in predictions if each.box and each.probability is not None]
    bounds = np.quantile(known, np.arange(1, count) / count).round(3).tolist() if known else []
    found = []
    for below in sorted({0.0, *bounds}):
        rows = apply_threshold(predictions, below)
        table = metrics.to_columns(rows)
        given, images = table.has_box, table.images
        wrong = ~(metrics.overlaps(table)[given] > IOU_THRESHOLD)  # no overlap without a target: NaN is not above
        answered, risk = estimate(given, images, seed=seed), estimate(wrong, images[given], seed=seed)
        found.append(Threshold(below, answered, risk, measure_grec(rows, seed=seed)))
    return found
