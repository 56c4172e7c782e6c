"""P@1, oracle P@1 and mean IoU, computed from the stored predictions alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_wrapper import boxes
from llm_wrapper.errors import DataError, listed
from llm_wrapper.records import Prediction
from llm_wrapper.statistics import Interval, bootstrap_interval

__all__ = [
    "IOU_THRESHOLD",
    "UNTAGGED",
    "KindSummary",
    "Summary",
    "ious",
    "oracle_ious",
    "require_distinct",
    "rowwise_iou",
    "summarize",
]

FloatArray = npt.NDArray[np.float64]

IOU_THRESHOLD = 0.5
"""A box is right above this overlap with the target; papers differ in whether equality counts, so both are given."""

UNTAGGED = "untagged"
"""Stands for samples without a kind where others have one."""


class KindSummary(NamedTuple):
    """P@1 of the scored samples of one kind."""

    n: int
    p_at_1: float
    ci: Interval | None


@dataclass(frozen=True, slots=True)
class Summary:
    """One system's results over one set of samples; what cannot be computed is `None`.

    `n` and `num_images` count what is scored: the predictions whose sample has a target. `num_without_target` counts
    the rest; `decided_by` and `failures` count over both. `p_at_1` is the share with IoU > 0.5, `p_at_1_ge` with
    IoU >= 0.5; no box counts as IoU 0. `oracle_p_at_1` is what the best candidate of each record would reach (> 0.5).
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


def summarize(predictions: Sequence[Prediction], *, seed: int = 0) -> Summary:
    """Compute one system's metrics with 95 % bootstrap intervals over images.

    Raises:
        DataError: If there is no prediction, more than one system, or a sample twice.
    """
    system = _only_system(predictions)
    scored = [prediction for prediction in predictions if prediction.target is not None]
    overlap, images = ious(scored), _codes(prediction.image_id for prediction in scored)
    right, right_ge = overlap > IOU_THRESHOLD, overlap >= IOU_THRESHOLD
    return Summary(
        system=system,
        n=len(scored),
        num_images=len(np.unique(images)),
        num_without_target=len(predictions) - len(scored),
        p_at_1=_mean(right),
        ci=bootstrap_interval(right, images, seed=seed),
        p_at_1_ge=_mean(right_ge),
        ci_ge=bootstrap_interval(right_ge, images, seed=seed),
        mean_iou=_mean(overlap),
        oracle_p_at_1=_mean(oracle_ious(scored) > IOU_THRESHOLD),
        decided_by=_counts(prediction.decided_by for prediction in predictions),
        failures=_counts(p.failure for p in predictions if p.failure is not None),
        by_kind=_by_kind([prediction.kind for prediction in scored], right, images, seed=seed),
    )


def ious(predictions: Sequence[Prediction]) -> FloatArray:
    """IoU of each predicted box with its target, shape (n,): 0 without a box, NaN without a target."""
    pairs = [(p.box, p.target) for p in predictions]
    result = np.array([np.nan if target is None else 0.0 for _, target in pairs], dtype=np.float64)
    complete = [(i, box, target) for i, (box, target) in enumerate(pairs) if box is not None and target is not None]
    rows = [row for row, _, _ in complete]
    result[rows] = rowwise_iou(boxes.array([box for _, box, _ in complete]), boxes.array([t for _, _, t in complete]))
    return result


def oracle_ious(predictions: Sequence[Prediction]) -> FloatArray:
    """IoU of each record's best candidate with its target, shape (n,): 0 without candidates, NaN without a target."""
    result = np.array([np.nan if p.target is None else 0.0 for p in predictions], dtype=np.float64)
    scored = [(row, p.target, p.candidates) for row, p in enumerate(predictions) if p.target is not None]
    counts = np.array([len(candidates) for _, _, candidates in scored], dtype=np.intp)
    targets = np.repeat(boxes.array([target for _, target, _ in scored]), counts, axis=0)
    rows = np.repeat(np.array([row for row, _, _ in scored], dtype=np.intp), counts)
    flat = boxes.array([candidate.box for _, _, candidates in scored for candidate in candidates])
    np.maximum.at(result, rows, rowwise_iou(flat, targets))
    return result


def rowwise_iou(a: FloatArray, b: FloatArray) -> FloatArray:
    """Intersection over union of row i of `a` (n, 4) with row i of `b` (n, 4), xyxy pixels -> (n,)."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    intersection = np.prod(np.clip(sides, 0.0, None), axis=1)
    union = np.prod(a[:, 2:] - a[:, :2], axis=1) + np.prod(b[:, 2:] - b[:, :2], axis=1) - intersection
    result: FloatArray = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return result


def require_distinct(predictions: Iterable[Prediction], where: str) -> None:
    """Raise a DataError that lists every (system, sample id) that stands more than once in `where`."""
    counts = Counter((prediction.system, prediction.sample_id) for prediction in predictions)
    repeated = [
        f"system {system!r} has {n} predictions for sample {sample_id!r}"
        for (system, sample_id), n in counts.items()
        if n > 1
    ]
    if repeated:
        headline = f"{where}: one prediction per system and sample is required; drop or rename the repeated ones"
        raise DataError(listed(headline, repeated, most=len(repeated)))


def _only_system(predictions: Sequence[Prediction]) -> str:
    systems = sorted({prediction.system for prediction in predictions})
    if len(systems) != 1:
        found = ", ".join(map(repr, systems)) or "no predictions"
        raise DataError(f"a summary is of one system's predictions, found {found}; summarize each system on its own")
    require_distinct(predictions, "summary")
    return systems[0]


def _codes(values: Iterable[Hashable]) -> npt.NDArray[np.intp]:
    """Number distinct values in order of appearance."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], dtype=np.intp)


def _mean(values: npt.NDArray[np.bool_] | FloatArray) -> float | None:
    return float(values.mean()) if len(values) else None


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _by_kind(
    kinds: Sequence[str | None], right: npt.NDArray[np.bool_], images: npt.NDArray[np.intp], *, seed: int
) -> dict[str, KindSummary]:
    if all(kind is None for kind in kinds):
        return {}
    names = np.array([UNTAGGED if kind is None else kind for kind in kinds])
    result = {}
    for name in np.unique(names):
        mask = names == name
        ci = bootstrap_interval(right[mask], images[mask], seed=seed)
        result[str(name)] = KindSummary(int(mask.sum()), float(right[mask].mean()), ci)
    return result
