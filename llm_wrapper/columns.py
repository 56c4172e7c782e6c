"""Predictions of one system as arrays, for millions of them: no record, no loop over samples.

Missing boxes are rows of NaN here, because an array has no `None`. They never reach a result: no box overlaps with
nothing, and no target means no overlap.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_wrapper import boxes
from llm_wrapper.records import Box, Prediction

__all__ = ["Columns", "best_overlaps", "candidate_overlaps", "codes", "first_right", "knows_candidates", "of_records",
           "overlaps", "rowwise_iou"]  # fmt: skip

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

_BLOCK = 1 << 19
"""Pairs of boxes compared at a time, so that a million predictions do not need gigabytes."""

_NO_BOX = (np.nan,) * 4


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


def knows_candidates(columns: Columns) -> bool:
    """Tell whether it is known what the system could choose from.

    Somebody else's boxes come without: then there is a box somewhere, and a candidate nowhere. A detector that finds
    nothing at all has neither.
    """
    return bool(columns.counts.any()) or not columns.has_box.any()


def of_records(predictions: Sequence[Prediction]) -> Columns:
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
    rows = np.repeat(np.arange(len(columns.counts)), columns.counts)
    result = np.full(len(rows), np.nan)
    places = np.flatnonzero(columns.has_target[rows])
    result[places] = _in_blocks(columns.candidates, places, columns.targets, rows[places])
    return result


def best_overlaps(columns: Columns, found: FloatArray) -> FloatArray:
    """IoU of each sample's best candidate with its target, shape (n,): 0 without candidates, NaN without a target.

    Args:
        columns: The predictions.
        found: Their `candidate_overlaps`.
    """
    result = np.where(columns.has_target, 0.0, np.nan)
    filled = columns.counts > 0
    if filled.any():
        result[filled] = np.maximum.reduceat(found, _starts(columns)[filled])
    return result


def first_right(columns: Columns, is_right: BoolArray) -> IntArray:
    """Place of each sample's first right candidate, shape (n,), from 0; -1 where none is right.

    Args:
        columns: The predictions.
        is_right: Of each candidate, shape (m,).
    """
    result = np.full(len(columns.counts), -1)
    hits = np.flatnonzero(is_right)
    rows = np.repeat(np.arange(len(columns.counts)), columns.counts)[hits]
    # Written from the last to the first, so that the first stays.
    result[rows[::-1]] = (hits - _starts(columns)[rows])[::-1]
    return result


def rowwise_iou(a: FloatArray, b: FloatArray) -> FloatArray:
    """Intersection over union of row i of `a` (n, 4) with row i of `b` (n, 4), xyxy pixels -> (n,)."""
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    intersection = np.clip(width, 0.0, None) * np.clip(height, 0.0, None)
    union = _area(a) + _area(b) - intersection
    result: FloatArray = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return result


def _area(corners: FloatArray) -> FloatArray:
    area: FloatArray = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    return area


def _starts(columns: Columns) -> IntArray:
    """Where each sample's candidates begin, shape (n,)."""
    starts: IntArray = np.cumsum(columns.counts) - columns.counts
    return starts


def _in_blocks(a: FloatArray, rows_a: IntArray, b: FloatArray, rows_b: IntArray) -> FloatArray:
    """IoU of `a[rows_a[i]]` with `b[rows_b[i]]`, shape (len(rows_a),)."""
    result = np.empty(len(rows_a))
    for start in range(0, len(rows_a), _BLOCK):
        part = slice(start, start + _BLOCK)
        result[part] = rowwise_iou(a[rows_a[part]], b[rows_b[part]])
    return result


def _rows(found: Iterable[Box | None]) -> FloatArray:
    """Stack boxes to shape (n, 4), NaN where there is none."""
    return np.array([_NO_BOX if box is None else box.xyxy for box in found], dtype=np.float64).reshape(-1, 4)
