"""Recall of stored predictions: how soon the detector's own order comes to the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llm_wrapper import columns
from llm_wrapper.candidates import BuiltCandidates, detector_order
from llm_wrapper.metrics import RANKS, recall_at
from llm_wrapper.records import Prediction
from llm_wrapper.statistics import Estimate

__all__ = ["recall"]


def recall(
    predictions: Sequence[Prediction], *, ranks: Sequence[int] = RANKS, seed: int = 0
) -> dict[int, Estimate] | None:
    """Return rank k -> share of samples for which one of the detector's first k candidates has IoU > 0.5.

    Its first is its own choice, as in `headroom`. `None` where the detector's order was not stored with the
    candidates, since the shown order would be an invented answer, and where no candidate is known.
    """
    orders = []
    for prediction in predictions:
        if prediction.candidates and prediction.origins is None:
            return None
        orders.append(detector_order(BuiltCandidates(prediction.candidates, prediction.origins or (), {})))
    table = columns.of_records(predictions)
    if not columns.knows_candidates(table):
        return None
    starts = np.cumsum(table.counts) - table.counts
    places = [start + place for start, order in zip(starts, orders, strict=True) for place in order]
    ordered = replace(table, candidates=table.candidates[np.array(places, dtype=np.intp)])
    return recall_at(ordered, ranks=ranks, seed=seed)
