"""Compare predictions with what was asked, two systems on the same samples, and a system with what was right.

A sample that was asked and has no prediction counts as wrong; a prediction for a sample that was not asked is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_wrapper import metrics
from llm_wrapper.boxes import rowwise_iou
from llm_wrapper.errors import DataError, listed
from llm_wrapper.evaluation.predictions import prediction_of
from llm_wrapper.metrics import IOU_THRESHOLD, ious, only_system
from llm_wrapper.records import Prediction, Sample
from llm_wrapper.statistics import Estimate, McNemar, difference, estimate, mcnemar

MISSING_PREDICTION = "missing_prediction"
"""Failure of a sample that was asked for and is not in the predictions."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences system a minus system b on the same samples with a target, each on the same drawn images.

    `p_at_1` counts IoU > 0.5, as McNemar's exact test does, and `p_at_1_ge` counts IoU >= 0.5.
    """

    a: str
    b: str
    p_at_1: Estimate
    p_at_1_ge: Estimate
    mean_iou: Estimate
    mcnemar: McNemar


def complete_predictions(predictions: Sequence[Prediction], samples: Sequence[Sample]) -> list[Prediction]:
    """Return one system's predictions for exactly these samples, in their order.

    A sample without a prediction gets one without a box, decided by `missing`, so that it counts as wrong.

    Raises:
        DataError: If there is no prediction, more than one system, a sample twice, or a prediction for another sample
            or another target than asked; all such are listed.
    """
    system = only_system(predictions)
    asked = {sample.sample_id: sample for sample in samples}
    problems = []
    for prediction in predictions:
        sample = asked.get(prediction.sample_id)
        if sample is None:
            problems.append(f"sample {prediction.sample_id!r} was not asked for")
        elif (prediction.target, prediction.further_targets) != (sample.target, sample.further_targets):
            problems.append(
                f"sample {prediction.sample_id!r} has target {sample.target}, the prediction {prediction.target}"
            )
    if problems:
        headline = f"predictions of {system!r} are not for the samples asked; name the data set and split they were for"
        raise DataError(listed(headline, problems))
    made = {prediction.sample_id: prediction for prediction in predictions}
    return [
        made.get(sample.sample_id) or prediction_of(sample, system, "missing", failure=MISSING_PREDICTION)
        for sample in samples
    ]


def pair_predictions(a: Sequence[Prediction], b: Sequence[Prediction]) -> list[tuple[Prediction, Prediction]]:
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
    problems += [
        f"sample {x.sample_id!r} has target {x.target} and {y.target}"
        for x, y in common
        if (x.target, x.further_targets, x.image_id) != (y.target, y.further_targets, y.image_id)
    ]
    if problems:
        headline = f"{names[0]!r} and {names[1]!r} must be compared on the same samples; score both on one split"
        raise DataError(listed(headline, problems))
    return common


def compare_systems(a: Sequence[Prediction], b: Sequence[Prediction], *, seed: int = 0) -> Comparison:
    """Compare two systems on the same samples; those without a target are skipped.

    Raises:
        DataError: As `pair_predictions`.
    """
    pairs = [pair for pair in pair_predictions(a, b) if pair[0].target is not None]
    images = metrics.codes(prediction.image_id for prediction, _ in pairs)
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
        DataError: As `pair_predictions`, or if a sample was not shown the same candidates both times.
    """
    pairs = pair_predictions(a, b)
    other = [
        f"sample {x.sample_id!r} was shown {len(x.candidates)} and {len(y.candidates)} candidates that differ"
        for x, y in pairs
        if sorted(map(repr, x.candidates)) != sorted(map(repr, y.candidates))
    ]
    if other:
        raise DataError(listed("flips are counted between two orders of the same candidates", other))
    return estimate([x.box != y.box for x, y in pairs], metrics.codes(x.image_id for x, _ in pairs), seed=seed)


# Mistakes: what the detector missed, what the selector confused, and which answers were unusable.

NEAR_IOU = 0.7
"""From this IoU on, the chosen and the best candidate nearly coincide: detectors' own suppression takes such boxes for
one object (0.7 is Faster R-CNN's), so the right object was chosen and cut differently."""

OUTCOMES = ("right", "missing", "missed", "none", "unusable", "fallback", "near", "wrong")
"""Each scored prediction is exactly one of these, the first that holds:

right: IoU > 0.5. missing: there is no prediction. missed: the detector offers no candidate with IoU > 0.5. none: the
answer was "none of these". unusable: the answer was no choice, and the detector has none either. fallback: the answer
was no choice, and the detector's own was wrong. near: the chosen candidate nearly coincides with the best one. wrong:
another one was picked among found.
"""


def outcomes(predictions: Sequence[Prediction]) -> npt.NDArray[np.str_]:
    """Return the outcome of each prediction, shape (n,); every one must have a target."""
    table = metrics.to_columns(predictions)
    found = metrics.candidate_overlaps(table)
    best = metrics.best_overlaps(table, found)
    decided_by = np.array([p.decided_by for p in predictions], dtype=np.str_)
    place = metrics.first_right(table, found == best[table.owners])  # of the first of the best
    chosen_near = np.zeros(len(best), dtype=np.bool_)
    asked = np.flatnonzero((place >= 0) & table.has_box)
    first_best = table.candidates[(table.starts + place)[asked]].reshape(-1, 4)
    chosen_near[asked] = rowwise_iou(table.boxes[asked], first_best) >= NEAR_IOU
    conditions = [
        metrics.overlaps(table) > IOU_THRESHOLD,
        decided_by == "missing",
        # Somebody else's boxes come without candidates, and tell nothing about a detector.
        ~(best > IOU_THRESHOLD) & ~(table.has_box & (table.counts == 0)),
        np.array([p.says_none for p in predictions], dtype=np.bool_),
        np.array([p.failure is not None and p.box is None for p in predictions], dtype=np.bool_),
        decided_by == "fallback",
        chosen_near,
    ]
    chosen: npt.NDArray[np.str_] = np.select(conditions, OUTCOMES[:-1], default=OUTCOMES[-1]).astype(np.str_)
    return chosen


def outcome_shares(predictions: Sequence[Prediction], *, seed: int = 0) -> dict[str, Estimate]:
    """Return outcome -> share of the predictions with a target, all outcomes in order; the shares add up to 1."""
    scored = [prediction for prediction in predictions if prediction.target is not None]
    found, images = outcomes(scored), metrics.codes(prediction.image_id for prediction in scored)
    return {name: estimate(found == name, images, seed=seed) for name in OUTCOMES}


def p_at_1_by_position(predictions: Sequence[Prediction], *, seed: int = 0) -> dict[int, Estimate]:
    """Return the index at which the best candidate was shown -> P@1 there.

    Over the samples where there was something to choose and to find: at least two candidates, one of them right. A
    system that reads its prompt is equally good at every index; one that likes the first line is not.
    """
    offered = [p for p in predictions if p.target is not None and len(p.candidates) > 1]
    table = metrics.to_columns(offered)
    found = metrics.candidate_overlaps(table)
    best = metrics.best_overlaps(table, found)
    rows = table.owners
    # The first of equals, as everywhere. A sample without a right candidate is skipped.
    place = metrics.first_right(table, (found == best[rows]) & (found > IOU_THRESHOLD))
    right = metrics.overlaps(table) > IOU_THRESHOLD
    return {
        int(index): estimate(right[place == index], table.images[place == index], seed=seed)
        for index in np.unique(place[place >= 0])
    }


class NearTies(NamedTuple):
    """Samples where the two best candidates nearly coincide: how often, and P@1 there and elsewhere.

    All over the samples with a right candidate and another one beside it.
    """

    share: Estimate
    p_at_1: Estimate
    p_at_1_elsewhere: Estimate


def near_ties(predictions: Sequence[Prediction], *, seed: int = 0) -> NearTies:
    """Compare samples where the two candidates nearest the target nearly coincide (IoU >= 0.7) with the others.

    A selector can hardly tell such two apart: what is lost there, suppression in the detector wins back.
    """
    offered = [p for p in predictions if p.target is not None and len(p.candidates) > 1]
    table = metrics.to_columns(offered)
    found = metrics.candidate_overlaps(table)
    kept = metrics.best_overlaps(table, found) > IOU_THRESHOLD
    rows = table.owners
    # Stable, so that of equals the first shown comes first, as everywhere.
    ranked = np.lexsort((-found, rows))
    best, second = (table.candidates[ranked[table.starts + place]].reshape(-1, 4) for place in (0, 1))
    twin = (rowwise_iou(best, second) >= NEAR_IOU)[kept]
    right, images = (metrics.overlaps(table) > IOU_THRESHOLD)[kept], table.images[kept]
    shares = (estimate(right[mask], images[mask], seed=seed) for mask in (twin, ~twin))
    return NearTies(estimate(twin, images, seed=seed), *shares)
