"""Time the metrics over a million predictions against a plain loop, with equal values (make bench-metrics)."""

from __future__ import annotations

import math
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, TypeVar

import numpy as np
import typer
from measurements import run_script, save_measurement
from rich.console import Console
from rich.table import Table

from llm_wrapper.metrics import (
    IOU_THRESHOLD,
    IOU_THRESHOLDS,
    RANKS,
    Columns,
    mean_accuracy,
    recall_at,
    summarize_columns,
)
from llm_wrapper.terminal import open_console

_Result = TypeVar("_Result")
_Corners = list[float]


@dataclass(frozen=True, slots=True)
class MetricTiming:
    """Both ways over the same predictions.

    Attributes:
        num_predictions: Samples; both ways see all of them.
        num_candidates: Candidates of all samples.
        seconds: Ours, with a bootstrap interval for each metric.
        loop_seconds: The loop's, which computes no interval.
        peak_bytes: What ours holds at most beside its input.
        is_equal: Whether the metrics are the same, up to the order of summation.
        values: Metric -> value.
    """

    num_predictions: int
    num_candidates: int
    seconds: float
    loop_seconds: float
    peak_bytes: int
    is_equal: bool
    values: dict[str, float]


def compare(num_predictions: int = 1_000_000, *, seed: int = 0) -> MetricTiming:
    """Time the metrics and the loop over all of the same predictions, and measure the memory in a further run."""
    table = generate(num_predictions, seed=seed)
    ours, seconds = _timed(lambda: vectorized(table))
    lists = [each.tolist() for each in (table.targets, table.boxes, table.candidates, table.counts)]
    theirs, loop_seconds = _timed(lambda: loop(*lists))
    tracemalloc.start()
    vectorized(table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return MetricTiming(
        num_predictions=num_predictions,
        num_candidates=len(table.candidates),
        seconds=seconds,
        loop_seconds=loop_seconds,
        peak_bytes=peak,
        is_equal=ours.keys() == theirs.keys() and all(math.isclose(ours[k], theirs[k], abs_tol=1e-9) for k in ours),
        values=ours,
    )


def generate(num_predictions: int, *, seed: int = 0) -> Columns:
    """Make predictions as a selector leaves them: 1 to 16 candidates, five expressions of an image, a few no box."""
    rng = np.random.default_rng(seed)
    n = num_predictions
    counts = rng.integers(1, 17, size=n)
    corners = rng.uniform(0, 500, size=(n, 2))
    targets = np.hstack([corners, corners + rng.uniform(20, 200, size=(n, 2))])
    owner = np.repeat(np.arange(n), counts)
    # Most candidates lie elsewhere; a quarter are around the target, some of them closely.
    shift = rng.normal(0, np.where(rng.random((len(owner), 1)) < 0.25, 15, 200), size=(len(owner), 2))
    candidates = targets[owner] + np.tile(shift, 2)
    chosen = candidates[counts.cumsum() - counts + rng.integers(0, counts)]
    chosen[rng.random(n) < 0.01] = np.nan
    return Columns(images=np.arange(n) // 5, targets=targets, boxes=chosen, candidates=candidates, counts=counts)


def vectorized(table: Columns) -> dict[str, float]:
    """Return every metric's value; the intervals are computed too."""
    summary = summarize_columns(table)
    found = {
        "p_at_1": summary.p_at_1,
        "p_at_1_ge": summary.p_at_1_ge,
        "mean_iou": summary.mean_iou,
        "accuracy": mean_accuracy(table).value,
        "oracle_p_at_1": summary.oracle_p_at_1,
        **{f"recall@{rank}": each.value for rank, each in recall_at(table).items()},
    }
    return {name: value for name, value in found.items() if value is not None}


def loop(
    targets: list[_Corners], boxes: list[_Corners], candidates: list[_Corners], counts: list[int]
) -> dict[str, float]:
    """Return the same values by a plain loop over samples; every sample must have a target."""
    totals = dict.fromkeys(["p_at_1", "p_at_1_ge", "mean_iou", "accuracy", "oracle_p_at_1"], 0.0)
    totals.update({f"recall@{rank}": 0.0 for rank in RANKS})
    start = 0
    for target, box, count in zip(targets, boxes, counts, strict=True):
        overlap = 0.0 if math.isnan(box[0]) else _iou(box, target)
        totals["p_at_1"] += overlap > IOU_THRESHOLD
        totals["p_at_1_ge"] += overlap >= IOU_THRESHOLD
        totals["mean_iou"] += overlap
        totals["accuracy"] += sum(overlap > threshold for threshold in IOU_THRESHOLDS) / len(IOU_THRESHOLDS)
        right = [_iou(candidate, target) > IOU_THRESHOLD for candidate in candidates[start : start + count]]
        totals["oracle_p_at_1"] += any(right)
        for rank in RANKS:
            totals[f"recall@{rank}"] += any(right[:rank])
        start += count
    return {name: total / len(targets) for name, total in totals.items()}


def _iou(a: _Corners, b: _Corners) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def _timed(work: Callable[[], _Result]) -> tuple[_Result, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def bench_metrics(console: Console, *, num_predictions: int) -> None:
    """Measure both ways, print them, write runs/bench/metrics.json."""
    found = compare(num_predictions)
    table = Table("predictions", "candidates", "seconds, with intervals", "plain loop, without", "peak MB", "equal")
    table.add_row(
        f"{found.num_predictions:,}",
        f"{found.num_candidates:,}",
        f"{found.seconds:.2f}",
        f"{found.loop_seconds:.2f}",
        f"{found.peak_bytes / 1e6:.0f}",
        "yes" if found.is_equal else "NO",
    )
    console.print(table)
    facts = {"ratio": found.loop_seconds / found.seconds, **asdict(found)}
    save_measurement("metrics", {"predictions": num_predictions}, facts, console)


def main(predictions: Annotated[int, typer.Option(min=20, help="Predictions, generated.")] = 1_000_000) -> None:
    """Time all metrics with their intervals against a plain loop over samples; values must be equal."""
    bench_metrics(open_console(), num_predictions=predictions)


if __name__ == "__main__":
    run_script(main)
