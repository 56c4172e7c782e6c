"""Why a system is wrong: what the detector missed, what the selector mistook, and what never became an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_wrapper import columns
from llm_wrapper.columns import Columns
from llm_wrapper.metrics import IOU_THRESHOLD
from llm_wrapper.records import Prediction
from llm_wrapper.statistics import Estimate, estimate

__all__ = ["NEAR_IOU", "OUTCOMES", "Twins", "by_position", "outcomes", "split", "twins"]

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
    table = columns.of_records(predictions)
    found = columns.candidate_overlaps(table)
    best = columns.best_overlaps(table, found)
    unusable = np.array([p.failure is not None and p.box is None for p in predictions], dtype=np.bool_)
    decided_by = np.array([p.decided_by for p in predictions], dtype=np.str_)
    conditions = [
        columns.overlaps(table) > IOU_THRESHOLD,
        decided_by == "missing",
        # Somebody else's boxes come without candidates, and tell nothing about a detector.
        ~(best > IOU_THRESHOLD) & ~(table.has_box & (table.counts == 0)),
        np.array([p.says_none for p in predictions], dtype=np.bool_),
        unusable,
        decided_by == "fallback",
        _nearly_best(table, found, best),
    ]
    chosen: npt.NDArray[np.str_] = np.select(conditions, OUTCOMES[:-1], default=OUTCOMES[-1]).astype(np.str_)
    return chosen


def split(predictions: Sequence[Prediction], *, seed: int = 0) -> dict[str, Estimate]:
    """Return outcome -> share of the predictions with a target, all outcomes in order; the shares add up to 1."""
    scored = [prediction for prediction in predictions if prediction.target is not None]
    found, images = outcomes(scored), columns.codes(prediction.image_id for prediction in scored)
    return {name: estimate(found == name, images, seed=seed) for name in OUTCOMES}


def by_position(predictions: Sequence[Prediction], *, seed: int = 0) -> dict[int, Estimate]:
    """Return the index at which the best candidate was shown -> P@1 there.

    Over the samples where there was something to choose and to find: at least two candidates, one of them right. A
    system that reads its prompt is equally good at every index; one that likes the first line is not.
    """
    offered = [p for p in predictions if p.target is not None and len(p.candidates) > 1]
    table = columns.of_records(offered)
    found = columns.candidate_overlaps(table)
    best = columns.best_overlaps(table, found)
    rows = np.repeat(np.arange(len(offered)), table.counts)
    # The first of equals, as everywhere. Where nothing is right the sample is left out.
    place = columns.first_right(table, (found == best[rows]) & (found > IOU_THRESHOLD))
    right = columns.overlaps(table) > IOU_THRESHOLD
    return {
        int(index): estimate(right[place == index], table.images[place == index], seed=seed)
        for index in np.unique(place[place >= 0])
    }


class Twins(NamedTuple):
    """Samples where the two best candidates nearly coincide: how often, and P@1 there and elsewhere.

    All over the samples with a right candidate and another one beside it.
    """

    share: Estimate
    p_at_1: Estimate
    p_at_1_elsewhere: Estimate


def twins(predictions: Sequence[Prediction], *, seed: int = 0) -> Twins:
    """Compare samples where the two candidates nearest the target nearly coincide (IoU >= 0.7) with the others.

    A selector can hardly tell such two apart: what is lost there, suppression in the detector wins back.
    """
    offered = [p for p in predictions if p.target is not None and len(p.candidates) > 1]
    table = columns.of_records(offered)
    found = columns.candidate_overlaps(table)
    kept = columns.best_overlaps(table, found) > IOU_THRESHOLD
    rows = np.repeat(np.arange(len(offered)), table.counts)
    # Stable, so that of equals the first shown comes first, as everywhere.
    ranked = np.lexsort((-found, rows))
    starts = np.cumsum(table.counts) - table.counts
    best, second = (table.candidates[ranked[starts + place]].reshape(-1, 4) for place in (0, 1))
    twin = (columns.rowwise_iou(best, second) >= NEAR_IOU)[kept]
    right, images = (columns.overlaps(table) > IOU_THRESHOLD)[kept], table.images[kept]
    shares = (estimate(right[mask], images[mask], seed=seed) for mask in (twin, ~twin))
    return Twins(estimate(twin, images, seed=seed), *shares)


def _nearly_best(
    table: Columns, found: npt.NDArray[np.float64], best: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Tell of each chosen box whether it nearly coincides with the sample's first best candidate, shape (n,)."""
    rows = np.repeat(np.arange(len(best)), table.counts)
    place = columns.first_right(table, found == best[rows])
    result = np.zeros(len(best), dtype=np.bool_)
    asked = np.flatnonzero((place >= 0) & table.has_box)
    starts = np.cumsum(table.counts) - table.counts
    other = table.candidates[(starts + place)[asked]].reshape(-1, 4)
    result[asked] = columns.rowwise_iou(table.boxes[asked], other) >= NEAR_IOU
    return result
