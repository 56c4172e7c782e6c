"""Sections of a report about confidence and the course of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from llm_wrapper import readers
from llm_wrapper.errors import DataError, listed
from llm_wrapper.evaluation.calibration import (
    NUM_BINS,
    calibrate,
    confidences,
    mass_notes,
    risk_coverage,
    threshold_for_risk,
)
from llm_wrapper.metrics import IOU_THRESHOLD, ious
from llm_wrapper.report.evaluations import StoredEvaluation
from llm_wrapper.report.formatting import Figure, PageSection, Table, number
from llm_wrapper.report.plots import Chart, Series
from llm_wrapper.storage import inside

__all__ = ["confidence", "learning"]

_Pair = tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]

_RISKS = (0.05, 0.1, 0.2)
_FEWEST = 20
"""Expressions in a bin of the calibration; the share of fewer that is right is mostly chance."""

_MOST_POINTS = 200
"""More points of a curve coincide on the page."""

_MOST_LINES = 12
_LARGEST = 1e15


def confidence(evaluation: StoredEvaluation) -> PageSection:
    """Calibration and risk against coverage of every system that gives probabilities."""
    pairs = {name: pair for name, pair in _pairs(evaluation).items() if not np.isnan(pair[0]).all()}
    lines = []
    reliability = [Series("as it should be", [0, 100], [0, 100], place=None)] * bool(pairs)
    risks = []
    for name, pair in pairs.items():
        num_bins = max(1, min(NUM_BINS, len(pair[0]) // _FEWEST))
        found, curve = calibrate(*pair, num_bins=num_bins), risk_coverage(*pair)
        answered = [_coverage(pair, risk) for risk in _RISKS]
        ece = f"{number(found.ece)} ({len(found.bins)} bins)"
        lines.append((name, ece, number(curve.aurc), *answered, str(found.n), str(found.num_unknown)))
        bins = (100 * np.array([[each.confidence, each.accuracy] for each in found.bins])).T
        reliability.append(Series(name, bins[0].tolist(), bins[1].tolist(), place=evaluation.place(name)))
        kept = np.unique(np.linspace(0, len(curve.risk) - 1, _MOST_POINTS).astype(int))
        covered, wrong = ((100 * values[kept]).tolist() for values in (curve.coverage, curve.risk))
        risks.append(Series(name, covered, wrong, place=evaluation.place(name)))
    at_risks = [f"answered at risk <= {100 * risk:g} %" for risk in _RISKS]
    head = ("system", "ECE", "AURC", *at_risks, "n", "no probability")
    text = [
        "Over the expressions with a target. A choice without a probability says nothing of calibration, and counts as "
        "the least confident where it comes to answering. Thresholds are chosen on the samples they are shown for, so "
        "what is answered at a risk is a little too good. ECE is over bins of equal mass, of at least "
        f"{_FEWEST} expressions each.",
    ]
    figures = [
        Figure(
            "Calibration: confidence against what is right",
            Chart(reliability, x="confidence in percent", y="right in percent", top=105),
        ),
        Figure(
            "Risk against coverage",
            Chart(risks, x="answered in percent, most confident first", y="wrong of these in percent", top=100),
        ),
    ]
    notes = mass_notes([row for rows in evaluation.judged.values() for row in rows])
    return PageSection("Confidence", text, [Table("Confidence", head, lines)], figures, notes)


def _pairs(evaluation: StoredEvaluation) -> dict[str, _Pair]:
    """Return system -> confidence and right, over the samples with a target."""
    result = {}
    for name, rows in evaluation.judged.items():
        scored = [row for row in rows if row.target is not None]
        result[name] = (confidences(scored), ious(scored) > IOU_THRESHOLD)
    return result


def _coverage(pair: _Pair, risk: float) -> str:
    threshold = threshold_for_risk(*pair, risk)
    if threshold is None:
        return "nothing"
    answered = np.where(np.isnan(pair[0]), -np.inf, pair[0]) >= threshold
    return f"{100 * answered.mean():.1f} %"


def learning(folder: Path) -> PageSection:
    """Loss and accuracy of the tokens against steps, from the run's own log.

    Raises:
        DataError: If the log is damaged.
    """
    logged = [row for row in _log(folder) if row.get("loss") is not None]
    log = [row for row in logged if _is_number(row["loss"])]
    steps = [row["step"] for row in log]
    # The column's name changed once.
    rights = [row.get("token_accuracy", row.get("mean_token_accuracy")) for row in log]
    known = [(step, 100 * right) for step, right in zip(steps, rights, strict=True) if _is_number(right)]
    loss = Chart([Series("loss", steps, [row["loss"] for row in log])], x="step", y="loss")
    right = Chart(
        [Series("right tokens", [step for step, _ in known], [share for _, share in known])],
        x="step",
        y="right tokens in percent",
        top=105,
    )
    places = np.unique(np.linspace(0, len(log) - 1, _MOST_LINES).astype(int)).tolist() if log else []
    lines = [
        (f"{steps[i]}", number(log[i]["loss"]), number(rights[i] if _is_number(rights[i]) else None)) for i in places
    ]
    figures = [Figure("Loss in training", loss), Figure("Right tokens of the answers in training", right)]
    text = ["Measured while training, on the batch that is learned from."] if log else []
    text += [f"{len(logged) - len(log)} of {len(logged)} losses are no finite number and are not drawn."] * (
        len(log) < len(logged)
    )
    return PageSection("Learning curve", text, [Table("Training", ("step", "loss", "right tokens"), lines)], figures)


def _log(folder: Path) -> list[dict[str, Any]]:
    path = folder / "train_log.jsonl"
    if not path.exists():
        return []
    lines, problems = readers.read_json_lines(inside(folder, path), nan=True)
    problems += [
        f"line {number}: no object with a step"
        for number, row in lines
        if not isinstance(row, dict) or not _is_number(row.get("step"))
    ]
    if problems:
        raise DataError(listed(f"{path} is damaged or cut off; remove it, and the report goes without", problems))
    return [row for _, row in lines]


def _is_number(value: Any) -> TypeGuard[float]:
    """Tell whether a value can be drawn; an axis to 1e300 has no ticks, and no loss or step is that large."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
