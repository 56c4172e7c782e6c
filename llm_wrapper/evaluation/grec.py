"""Expressions that mean nothing, one object or several: N-acc, T-acc and Pr@(F1=1, IoU>=0.5).

As GREC (arXiv 2308.16182) defines them: an answer is a set of boxes, and it is right only if its boxes and the targets
can be matched one to one, best overlap first, each with IoU >= 0.5. No target and no box is right too. The published
evaluation program matches by generalised IoU, which is never larger, so its numbers are a little lower: both are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llm_wrapper import boxes, metrics
from llm_wrapper.boxes import BoolArray, FloatArray, IntArray, rowwise_iou
from llm_wrapper.metrics import IOU_THRESHOLD
from llm_wrapper.records import Box, Prediction
from llm_wrapper.statistics import Estimate, estimate

__all__ = [
    "Grec",
    "NoneCurve",
    "Threshold",
    "answer_boxes",
    "apply_threshold",
    "is_answered",
    "measure_grec",
    "none_curve",
    "right_sets",
    "rowwise_giou",
    "thresholds",
]


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


@dataclass(frozen=True, slots=True)
class NoneCurve:
    """N-acc and T-acc where a choice below a confidence becomes "none of these"; arrays of shape (k,).

    The first threshold is minus infinity: every box is kept. `None` instead of an array where there is no such sample.
    """

    thresholds: FloatArray
    n_acc: FloatArray | None
    t_acc: FloatArray | None


def measure_grec(predictions: Sequence[Prediction], *, least: float | None = None, seed: int = 0) -> Grec:
    """Score one system's predictions; a sample without a target is one where nothing is to be found.

    A missing or unusable answer is wrong everywhere: it gives no box, but does not say that there is none.

    Args:
        predictions: Each with all of its targets.
        least: See `answered`.
        seed: Of the bootstrap.
    """
    given = [answer_boxes(prediction, least=least) for prediction in predictions]
    targets = [() if p.target is None else (p.target, *p.further_targets) for p in predictions]
    images = metrics.codes(prediction.image_id for prediction in predictions)
    num_given, num_targets = _counts(given), _counts(targets)
    sets = (_stacked(given), num_given, _stacked(targets), num_targets)
    empty = num_targets == 0
    usable = np.array([is_answered(prediction) for prediction in predictions], dtype=np.bool_)
    return Grec(
        n_acc=estimate((usable & (num_given == 0))[empty], images[empty], seed=seed),
        t_acc=estimate(num_given[~empty] > 0, images[~empty], seed=seed),
        precision=estimate(usable & right_sets(*sets), images, seed=seed),
        precision_giou=estimate(usable & right_sets(*sets, generalized=True), images, seed=seed),
    )


def is_answered(prediction: Prediction) -> bool:
    """Tell whether a prediction is an answer: a box, or that there is none; not a missing or an unusable one."""
    return prediction.decided_by != "missing" and (prediction.box is not None or prediction.failure is None)


def answer_boxes(prediction: Prediction, *, least: float | None = None) -> tuple[Box, ...]:
    """Return the boxes that a prediction answers with.

    Args:
        prediction: Without `least` it answers with its box, where it has one.
        least: With a least probability, every candidate that has it is an answer, so several or none can be. Where
            there are no probabilities, nothing has it.
    """
    if least is None:
        return () if prediction.box is None else (prediction.box,)
    pairs = zip(prediction.candidates, prediction.probabilities or (), strict=False)
    return tuple(candidate.box for candidate, probability in pairs if probability >= least)


def right_sets(
    given: FloatArray, num_given: IntArray, targets: FloatArray, num_targets: IntArray, *, generalized: bool = False
) -> BoolArray:
    """Tell of each sample whether its boxes are its targets (F1 = 1), shape (n,).

    Args:
        given: All given boxes, sample by sample, shape (m, 4), xyxy pixels.
        num_given: How many belong to each sample, shape (n,).
        targets: All targets, sample by sample, shape (k, 4), xyxy pixels.
        num_targets: How many belong to each sample, shape (n,).
        generalized: Match by generalised IoU.
    """
    result: BoolArray = num_given == num_targets
    counts = np.where(result, num_given, 0)
    pairs = _Pairs(counts, num_given, num_targets)
    overlap = (rowwise_giou if generalized else rowwise_iou)(given[pairs.given], targets[pairs.targets])
    # Best overlap first: each round settles one pair of each sample that is still open.
    for step in range(int(counts.max(initial=0))):
        open_rows = np.flatnonzero(result & (counts > step))
        if not len(open_rows):
            break
        best = pairs.best(overlap, open_rows)
        result[open_rows[overlap[best] < IOU_THRESHOLD]] = False
        overlap[pairs.touching(best)] = -np.inf
    return result


def none_curve(confidence: FloatArray, has_box: BoolArray, has_target: BoolArray) -> NoneCurve:
    """Compute N-acc and T-acc for every confidence below which a choice becomes "none of these".

    Args:
        confidence: Probability of the choice, shape (n,), NaN where there is none: then any threshold rejects it.
        has_box: Whether a box was given at all, shape (n,).
        has_target: Whether there is something to find, shape (n,).
    """
    rank = np.where(np.isnan(confidence), -np.inf, confidence)
    thresholds = np.unique(np.append(rank, -np.inf))

    def share_above(of: BoolArray) -> FloatArray | None:
        """Share of some samples whose box is kept, at each threshold."""
        if not of.any():
            return None
        ranks = np.sort(rank[of & has_box])
        shares: FloatArray = (len(ranks) - np.searchsorted(ranks, thresholds, side="left")) / of.sum()
        return shares

    without, with_target = share_above(~has_target), share_above(has_target)
    return NoneCurve(thresholds, None if without is None else 1 - without, with_target)


def rowwise_giou(a: FloatArray, b: FloatArray) -> FloatArray:
    """Generalised IoU of row i of `a` (n, 4) with row i of `b` (n, 4), xyxy pixels -> (n,), in -1..1."""
    iou = rowwise_iou(a, b)
    area_a, area_b = (np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (a, b))
    union = (area_a + area_b) / (1 + iou)
    hull = np.prod(np.maximum(a[:, 2:], b[:, 2:]) - np.minimum(a[:, :2], b[:, :2]), axis=1)
    result: FloatArray = iou - (hull - union) / hull
    return result


class _Pairs:
    """All pairs (given box, target) of each sample, sample by sample."""

    def __init__(self, counts: IntArray, num_given: IntArray, num_targets: IntArray) -> None:
        squares = counts * counts
        self._starts, self._squares = squares.cumsum() - squares, squares
        rows = np.repeat(np.arange(len(counts)), squares)
        place = np.arange(len(rows)) - self._starts[rows]
        self.given = (num_given.cumsum() - num_given)[rows] + place // np.maximum(counts[rows], 1)
        self.targets = (num_targets.cumsum() - num_targets)[rows] + place % np.maximum(counts[rows], 1)

    def best(self, overlap: FloatArray, rows: IntArray) -> IntArray:
        """Return the first pair with the highest overlap of each of some samples, all of them with pairs."""
        filled = np.flatnonzero(self._squares)
        highest = np.full(len(self._squares), -np.inf)
        highest[filled] = np.maximum.reduceat(overlap, self._starts[filled])
        sample = np.repeat(np.arange(len(self._squares)), self._squares)
        hits = np.flatnonzero(overlap == highest[sample])
        first = np.full(len(self._squares), -1)
        first[sample[hits[::-1]]] = hits[::-1]
        return first[rows]

    def touching(self, chosen: IntArray) -> BoolArray:
        """Tell of each pair whether it shares its box or its target with a chosen one."""
        return np.isin(self.given, self.given[chosen]) | np.isin(self.targets, self.targets[chosen])


def _counts(groups: Sequence[Sequence[Box]]) -> IntArray:
    return np.array([len(group) for group in groups], dtype=np.intp)


def _stacked(groups: Sequence[Sequence[Box]]) -> FloatArray:
    return boxes.array([box for group in groups for box in group])


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

    Args:
        predictions: One system's, made without a threshold.
        count: How many at most; fewer where confidences are equal.
        seed: Of the bootstrap.
    """
    known = [each.probability for each in predictions if each.box and each.probability is not None]
    bounds = np.quantile(known, np.arange(1, count) / count).round(3).tolist() if known else []
    return [
        _measure_threshold(apply_threshold(predictions, below), below, seed=seed) for below in sorted({0.0, *bounds})
    ]


def _measure_threshold(predictions: Sequence[Prediction], below: float, *, seed: int) -> Threshold:
    table = metrics.to_columns(predictions)
    given = table.has_box
    wrong = ~(metrics.overlaps(table)[given] > IOU_THRESHOLD)  # no overlap without a target: NaN is not above
    return Threshold(
        below=below,
        answered=estimate(given, table.images, seed=seed),
        risk=estimate(wrong, table.images[given], seed=seed),
        grec=measure_grec(predictions, seed=seed),
    )
