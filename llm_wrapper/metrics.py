"""P@1, oracle P@1, mean IoU and the like, computed from the stored predictions alone, for millions of them.

    [Prediction] -> to_columns -> Columns (arrays: boxes, targets, candidates) -> summarize_columns, recall_at
    [Prediction] -> summarize -> Summary (the numbers that every table shows)

A missing box is a row of NaN in `Columns`, because an array has no `None`. It never reaches a result: no box overlaps
with nothing, and without a target there is no overlap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from llm_wrapper import boxes
from llm_wrapper.boxes import BoolArray, FloatArray, IntArray, rowwise_iou
from llm_wrapper.errors import DataError, listed
from llm_wrapper.records import Box, Prediction
from llm_wrapper.statistics import Estimate, Interval, estimate

IOU_THRESHOLD = 0.5
"""A box is right above this overlap with the target; papers differ in whether equality counts, so both are given."""

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""0.5, 0.55, .. 0.95, as COCO has them. A box counts above each, as HC-RefLoCo and Ref-L4 count."""

RANKS = (1, 3, 5, 10, 20)
"""Where recall is measured."""

_MOST_LISTED = 1000
"""Names in a message: a file of a million repeated rows needs no million lines."""

UNTAGGED = "untagged"
"""The kind of samples without one, where others have one."""

_BLOCK = 1 << 19
"""Pairs of boxes compared at a time, so that a million predictions do not need gigabytes."""


@dataclass(frozen=True)
class Columns:
    """One system's predictions for `n` samples with `m` candidates in all.

    Attributes:
        images: Number of the image of each sample, shape (n,).
        targets: Shape (n, 4), xyxy pixels; NaN where there is no target.
        boxes: Chosen boxes, shape (n, 4), xyxy pixels; NaN where there is none.
        candidates: Shape (m, 4), xyxy pixels, those of the first sample first.
        counts: Candidates of each sample, shape (n,); they add up to m.

    Raises:
        ValueError: If shapes do not fit, or a row is NaN in part.
    """

    images: IntArray
    targets: FloatArray
    boxes: FloatArray
    candidates: FloatArray
    counts: IntArray

    def __post_init__(self) -> None:
        n, m = len(self.images), int(self.counts.sum())
        wanted = {"images": (n,), "targets": (n, 4), "boxes": (n, 4), "candidates": (m, 4), "counts": (n,)}
        wrong = [f"{k} {getattr(self, k).shape}, not {v}" for k, v in wanted.items() if getattr(self, k).shape != v]
        if wrong or (self.counts < 0).any():
            raise ValueError(f"columns do not fit each other: {'; '.join(wrong) or 'a count is negative'}")
        for name in ("targets", "boxes"):
            missing = np.isnan(getattr(self, name))
            if (missing.any(axis=1) != missing.all(axis=1)).any():
                raise ValueError(f"{name} have a row with some coordinates missing")
        if not np.isfinite(self.candidates).all():
            raise ValueError("candidates have a coordinate that is not finite")

    @property
    def has_target(self) -> BoolArray:
        """Whether each sample has a target, shape (n,)."""
        return ~np.isnan(self.targets[:, 0])

    @property
    def has_box(self) -> BoolArray:
        """Whether a box was given for each sample, shape (n,)."""
        return ~np.isnan(self.boxes[:, 0])

    @property
    def starts(self) -> IntArray:
        """Where each sample's candidates begin, shape (n,)."""
        starts: IntArray = np.cumsum(self.counts) - self.counts
        return starts

    @property
    def owners(self) -> IntArray:
        """The sample of each candidate, shape (m,)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def knows_candidates(columns: Columns) -> bool:
    """Tell whether it is known what the system could choose from.

    Somebody else's boxes come without: then there is a box somewhere, and a candidate nowhere. A detector that finds
    nothing at all has neither.
    """
    return bool(columns.counts.any()) or not columns.has_box.any()


def to_columns(predictions: Sequence[Prediction]) -> Columns:
    """Turn the records of one system to arrays, in order."""
    return Columns(
        images=codes(prediction.image_id for prediction in predictions),
        targets=_rows(prediction.target for prediction in predictions),
        boxes=_rows(prediction.box for prediction in predictions),
        candidates=boxes.array([candidate.box for each in predictions for candidate in each.candidates]),
        counts=np.array([len(prediction.candidates) for prediction in predictions], dtype=np.intp),
    )


def codes(values: Iterable[Hashable]) -> IntArray:
    """Number distinct values in order of appearance, shape (n,)."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], dtype=np.intp)


def overlaps(columns: Columns) -> FloatArray:
    """IoU of each chosen box with its target, shape (n,): 0 without a box, NaN without a target."""
    result = np.where(columns.has_target, 0.0, np.nan)
    rows = np.flatnonzero(columns.has_target & columns.has_box)
    result[rows] = _in_blocks(columns.boxes, rows, columns.targets, rows)
    return result


def candidate_overlaps(columns: Columns) -> FloatArray:
    """IoU of each candidate with its sample's target, shape (m,); NaN without a target."""
    rows = columns.owners
    result = np.full(len(rows), np.nan)
    places = np.flatnonzero(columns.has_target[rows])
    result[places] = _in_blocks(columns.candidates, places, columns.targets, rows[places])
    return result


def best_overlaps(columns: Columns, found: FloatArray) -> FloatArray:
    """IoU of each sample's best candidate with its target, shape (n,): 0 without candidates, NaN without a target.

    `found` are the `candidate_overlaps`.
    """
    result = np.where(columns.has_target, 0.0, np.nan)
    filled = columns.counts > 0
    if filled.any():
        result[filled] = np.maximum.reduceat(found, columns.starts[filled])
    return result


def first_right(columns: Columns, is_right: BoolArray) -> IntArray:
    """Place of each sample's first right candidate, shape (n,), from 0; -1 where none is; `is_right` is (m,)."""
    result = np.full(len(columns.counts), -1)
    hits = np.flatnonzero(is_right)
    rows = columns.owners[hits]
    # Written from the last to the first, so that the first stays.
    result[rows[::-1]] = (hits - columns.starts[rows])[::-1]
    return result


def _in_blocks(a: FloatArray, rows_a: IntArray, b: FloatArray, rows_b: IntArray) -> FloatArray:
    """IoU of `a[rows_a[i]]` with `b[rows_b[i]]`, shape (len(rows_a),)."""
    result = np.empty(len(rows_a))
    for start in range(0, len(rows_a), _BLOCK):
        part = slice(start, start + _BLOCK)
        result[part] = rowwise_iou(a[rows_a[part]], b[rows_b[part]])
    return result


def _rows(found: Iterable[Box | None]) -> FloatArray:
    """Stack boxes to shape (n, 4), NaN where there is none."""
    return np.array([(np.nan,) * 4 if box is None else box.xyxy for box in found], dtype=np.float64).reshape(-1, 4)


class KindSummary(NamedTuple):
    """P@1 of the scored samples of one kind."""

    n: int
    p_at_1: float
    ci: Interval | None


@dataclass(frozen=True, slots=True)
class Summary:
    """One system's results over one set of samples; what cannot be computed is `None`.

    `n` and `num_images` count what is scored: the predictions whose sample has a target. `num_without_target` counts
    the rest (see `calibration.measure_grec`); `decided_by` and `failures` count over both. `p_at_1` is the share with
    IoU > 0.5, `p_at_1_ge` with IoU >= 0.5; no box counts as IoU 0. `oracle_p_at_1` is what the best candidate of each
    record would reach (> 0.5), `None` where no candidate is known, as of somebody else's boxes.
    `by_kind` is empty where no sample has a kind.
    """

    system: str
    n: int
    num_images: int
    num_without_target: int
    p_at_1: float | None
    ci: Interval | None
    p_at_1_ge: float | None
    ci_ge: Interval | None
    mean_iou: float | None
    oracle_p_at_1: float | None
    decided_by: dict[str, int]
    failures: dict[str, int]
    by_kind: dict[str, KindSummary]


def summarize_columns(table: Columns, *, system: str = "", seed: int = 0) -> Summary:
    """Compute one system's metrics from arrays, which know neither who decided nor the kinds."""
    kept = table.has_target
    overlap, images = overlaps(table)[kept], table.images[kept]
    at_1 = estimate(overlap > IOU_THRESHOLD, images, seed=seed)
    at_1_ge = estimate(overlap >= IOU_THRESHOLD, images, seed=seed)
    best = best_overlaps(table, candidate_overlaps(table))[kept]
    return Summary(
        system=system,
        n=len(overlap),
        num_images=len(np.unique(images)),
        num_without_target=len(kept) - len(overlap),
        p_at_1=at_1.value,
        ci=at_1.ci,
        p_at_1_ge=at_1_ge.value,
        ci_ge=at_1_ge.ci,
        mean_iou=float(overlap.mean()) if len(overlap) else None,
        oracle_p_at_1=float((best > IOU_THRESHOLD).mean()) if len(best) and knows_candidates(table) else None,
        decided_by={},
        failures={},
        by_kind={},
    )


def mean_accuracy(table: Columns, *, seed: int = 0) -> Estimate:
    """Return the mean share of samples whose IoU exceeds each of `IOU_THRESHOLDS`."""
    kept = table.has_target
    # How many thresholds each overlap exceeds; one that equals a threshold does not exceed it.
    exceeded = np.searchsorted(IOU_THRESHOLDS, overlaps(table)[kept], side="left")
    return estimate(exceeded / len(IOU_THRESHOLDS), table.images[kept], seed=seed)


def recall_at(table: Columns, *, ranks: Sequence[int] = RANKS, seed: int = 0) -> dict[int, Estimate]:
    """Return rank k (from 1) -> share of samples for which one of the first k candidates has IoU > 0.5.

    The candidates are in the detector's own order; see `evaluation.slices.recall` for records.
    """
    place = first_right(table, candidate_overlaps(table) > IOU_THRESHOLD)[table.has_target]
    images = table.images[table.has_target]
    return {rank: estimate((place >= 0) & (place < rank), images, seed=seed) for rank in ranks}


def summarize(predictions: Sequence[Prediction], *, seed: int = 0) -> Summary:
    """Compute one system's metrics with 95 % bootstrap intervals over images.

    Raises:
        DataError: If there is no prediction, more than one system, or a sample twice.
    """
    table = to_columns(predictions)
    summary = summarize_columns(table, system=only_system(predictions), seed=seed)
    right = overlaps(table) > IOU_THRESHOLD
    kinds = np.array([UNTAGGED if each.kind is None else each.kind for each in predictions])
    by_kind = {}
    if any(each.kind is not None for each in predictions if each.target is not None):
        for kind in np.unique(kinds[table.has_target]):
            of_kind = table.has_target & (kinds == kind)
            share = estimate(right[of_kind], table.images[of_kind], seed=seed)
            by_kind[str(kind)] = KindSummary(share.n, share.value or 0.0, share.ci)
    return replace(
        summary,
        decided_by=dict(Counter(each.decided_by for each in predictions).most_common()),
        failures=dict(Counter(each.failure for each in predictions if each.failure is not None).most_common()),
        by_kind=by_kind,
    )


def summarize_systems(predictions: Sequence[Prediction]) -> list[Summary]:
    """Summarize each system of a list of predictions, in order of appearance."""
    names = dict.fromkeys(row.system for row in predictions)
    return [summarize([row for row in predictions if row.system == name]) for name in names]


def ious(predictions: Sequence[Prediction]) -> FloatArray:
    """IoU of each predicted box with its target, shape (n,): 0 without a box, NaN without a target."""
    return overlaps(to_columns(predictions))


def oracle_ious(predictions: Sequence[Prediction]) -> FloatArray:
    """IoU of each record's best candidate with its target, shape (n,): 0 without candidates, NaN without a target."""
    table = to_columns(predictions)
    return best_overlaps(table, candidate_overlaps(table))


def only_system(predictions: Sequence[Prediction]) -> str:
    """Return the name of the one system that made these predictions.

    Raises:
        DataError: If there is no prediction, more than one system, or a sample twice.
    """
    systems = sorted({prediction.system for prediction in predictions})
    if len(systems) != 1:
        found = ", ".join(map(repr, systems[:_MOST_LISTED])) or "no predictions"
        raise DataError(f"a summary is of one system's predictions, found {found}; summarize each system on its own")
    require_distinct(predictions, "summary")
    return systems[0]


def require_distinct(predictions: Iterable[Prediction], where: str) -> None:
    """Raise a DataError that lists the (system, sample id) that occur more than once in `where`."""
    counts = Counter((prediction.system, prediction.sample_id) for prediction in predictions)
    repeated = [
        f"system {system!r} has {n} predictions for sample {sample_id!r}"
        for (system, sample_id), n in counts.items()
        if n > 1
    ]
    if repeated:
        headline = f"{where}: one prediction per system and sample is required; drop or rename the repeated ones"
        raise DataError(listed(headline, repeated, most=_MOST_LISTED))
