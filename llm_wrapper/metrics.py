"""P@1, oracle P@1, mean IoU and the like, computed from the stored predictions alone.

`summarize` takes records and gives what every table shows; `measure` and `recall_at` take arrays and give everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_wrapper import columns
from llm_wrapper.columns import Columns, rowwise_iou
from llm_wrapper.errors import DataError, listed
from llm_wrapper.records import Prediction
from llm_wrapper.statistics import Estimate, Interval, bootstrap_interval, estimate

__all__ = [
    "IOU_THRESHOLD",
    "IOU_THRESHOLDS",
    "RANKS",
    "UNTAGGED",
    "KindSummary",
    "Scores",
    "Summary",
    "ious",
    "measure",
    "only_system",
    "oracle_ious",
    "recall_at",
    "require_distinct",
    "rowwise_iou",
    "summarize",
]

FloatArray = npt.NDArray[np.float64]

IOU_THRESHOLD = 0.5
"""A box is right above this overlap with the target; papers differ in whether equality counts, so both are given."""

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""0.5, 0.55, .. 0.95, as COCO has them. A box counts above each, as HC-RefLoCo and Ref-L4 count."""

RANKS = (1, 3, 5, 10, 20)
"""Where recall is measured."""

_MOST_LISTED = 1000
"""Names in a message: a file of a million repeated rows needs no million lines."""

UNTAGGED = "untagged"
"""Stands for samples without a kind where others have one."""


class KindSummary(NamedTuple):
    """P@1 of the scored samples of one kind."""

    n: int
    p_at_1: float
    ci: Interval | None


@dataclass(frozen=True, slots=True)
class Scores:
    """One system's results over the samples with a target, each with its 95 % interval over images.

    Attributes:
        num_images: Images of the scored samples.
        num_without_target: Samples that are not scored, because nothing is to be found; see `evaluation.grec`.
        p_at_1: Share with IoU > 0.5.
        p_at_1_ge: Share with IoU >= 0.5.
        mean_iou: No box counts as 0.
        accuracy: Mean of `accuracy_at` over the thresholds.
        accuracy_at: Threshold -> share with a greater IoU.
        oracle_p_at_1: Share with a candidate of IoU > 0.5; without a value where no candidate is known.
    """

    num_images: int
    num_without_target: int
    p_at_1: Estimate
    p_at_1_ge: Estimate
    mean_iou: Estimate
    accuracy: Estimate
    accuracy_at: dict[float, Estimate]
    oracle_p_at_1: Estimate


@dataclass(frozen=True, slots=True)
class Summary:
    """One system's results over one set of samples; what cannot be computed is `None`.

    `n` and `num_images` count what is scored: the predictions whose sample has a target. `num_without_target` counts
    the rest; `decided_by` and `failures` count over both. `p_at_1` is the share with IoU > 0.5, `p_at_1_ge` with
    IoU >= 0.5; no box counts as IoU 0. `oracle_p_at_1` is what the best candidate of each record would reach (> 0.5),
    `None` where no candidate is known, as of somebody else's boxes.
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


def measure(table: Columns, *, seed: int = 0) -> Scores:
    """Compute everything that one box per sample can be scored by, from arrays."""
    kept = table.has_target
    images = table.images[kept]
    overlap = columns.overlaps(table)[kept]
    best = columns.best_overlaps(table, columns.candidate_overlaps(table))[kept]
    known = columns.knows_candidates(table)
    # How many thresholds each overlap exceeds; one that equals a threshold does not exceed it.
    exceeded = np.searchsorted(IOU_THRESHOLDS, overlap, side="left")
    return Scores(
        num_images=len(np.unique(images)),
        num_without_target=int((~kept).sum()),
        p_at_1=estimate(overlap > IOU_THRESHOLD, images, seed=seed),
        p_at_1_ge=estimate(overlap >= IOU_THRESHOLD, images, seed=seed),
        mean_iou=estimate(overlap, images, seed=seed),
        accuracy=estimate(exceeded / len(IOU_THRESHOLDS), images, seed=seed),
        accuracy_at={t: estimate(overlap > t, images, seed=seed) for t in IOU_THRESHOLDS},
        oracle_p_at_1=estimate(best > IOU_THRESHOLD, images, seed=seed) if known else Estimate(None, None, 0),
    )


def recall_at(table: Columns, *, ranks: Sequence[int] = RANKS, seed: int = 0) -> dict[int, Estimate]:
    """Return rank k -> share of samples for which one of the first k candidates has IoU > 0.5.

    Args:
        table: Its candidates must stand in the detector's own order; see `evaluation.slices.recall` for records.
        ranks: From 1.
        seed: Of the bootstrap.
    """
    place = columns.first_right(table, columns.candidate_overlaps(table) > IOU_THRESHOLD)[table.has_target]
    images = table.images[table.has_target]
    return {rank: estimate((place >= 0) & (place < rank), images, seed=seed) for rank in ranks}


def summarize(predictions: Sequence[Prediction], *, seed: int = 0) -> Summary:
    """Compute one system's metrics with 95 % bootstrap intervals over images.

    Raises:
        DataError: If there is no prediction, more than one system, or a sample twice.
    """
    system = only_system(predictions)
    table = columns.of_records(predictions)
    kept = table.has_target
    overlap, images = columns.overlaps(table)[kept], table.images[kept]
    right, right_ge = overlap > IOU_THRESHOLD, overlap >= IOU_THRESHOLD
    best = columns.best_overlaps(table, columns.candidate_overlaps(table))[kept]
    return Summary(
        system=system,
        n=len(overlap),
        num_images=len(np.unique(images)),
        num_without_target=len(predictions) - len(overlap),
        p_at_1=_mean(right),
        ci=bootstrap_interval(right, images, seed=seed),
        p_at_1_ge=_mean(right_ge),
        ci_ge=bootstrap_interval(right_ge, images, seed=seed),
        mean_iou=_mean(overlap),
        oracle_p_at_1=_mean(best > IOU_THRESHOLD) if columns.knows_candidates(table) else None,
        decided_by=_counts(prediction.decided_by for prediction in predictions),
        failures=_counts(p.failure for p in predictions if p.failure is not None),
        by_kind=_by_kind([p.kind for p in predictions if p.target is not None], right, images, seed=seed),
    )


def ious(predictions: Sequence[Prediction]) -> FloatArray:
    """IoU of each predicted box with its target, shape (n,): 0 without a box, NaN without a target."""
    return columns.overlaps(columns.of_records(predictions))


def oracle_ious(predictions: Sequence[Prediction]) -> FloatArray:
    """IoU of each record's best candidate with its target, shape (n,): 0 without candidates, NaN without a target."""
    table = columns.of_records(predictions)
    return columns.best_overlaps(table, columns.candidate_overlaps(table))


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
    """Raise a DataError that lists the (system, sample id) that stand more than once in `where`."""
    counts = Counter((prediction.system, prediction.sample_id) for prediction in predictions)
    repeated = [
        f"system {system!r} has {n} predictions for sample {sample_id!r}"
        for (system, sample_id), n in counts.items()
        if n > 1
    ]
    if repeated:
        headline = f"{where}: one prediction per system and sample is required; drop or rename the repeated ones"
        raise DataError(listed(headline, repeated, most=_MOST_LISTED))


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
