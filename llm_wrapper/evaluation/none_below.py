"""Answering "none of these" by a threshold: what each threshold gives, from predictions made without one.

A threshold is chosen on samples that are neither trained on, where an LLM is too sure, nor reported, where it would be
too good. A choice without a probability (a single candidate that nobody was asked about, a fallback) stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llm_wrapper import columns
from llm_wrapper.evaluation import grec
from llm_wrapper.evaluation.grec import Grec
from llm_wrapper.metrics import IOU_THRESHOLD
from llm_wrapper.records import Prediction
from llm_wrapper.statistics import Estimate, estimate

__all__ = ["Threshold", "applied", "thresholds"]


@dataclass(frozen=True, slots=True)
class Threshold:
    """What a threshold gives.

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


def applied(predictions: Sequence[Prediction], below: float) -> list[Prediction]:
    """Return the predictions as they would be with `prompt.none_below`."""
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
    return [_measured(applied(predictions, below), below, seed=seed) for below in sorted({0.0, *bounds})]


def _measured(predictions: Sequence[Prediction], below: float, *, seed: int) -> Threshold:
    table = columns.of_records(predictions)
    given = table.has_box
    wrong = ~(columns.overlaps(table)[given] > IOU_THRESHOLD)  # no overlap without a target: NaN is not above
    return Threshold(
        below=below,
        answered=estimate(given, table.images, seed=seed),
        risk=estimate(wrong, table.images[given], seed=seed),
        grec=grec.measure(predictions, seed=seed),
    )
