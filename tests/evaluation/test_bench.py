from __future__ import annotations

import numpy as np
import pytest

from llm_wrapper.evaluation import bench


def test_both_ways_agree_on_generated_predictions() -> None:
    found = bench.compare(2000, seed=3)
    assert found.is_equal
    assert (found.num_predictions, found.num_candidates) == (2000, len(bench.generate(2000, seed=3).candidates))
    assert found.peak_bytes > 0
    # Metrics that are all 0 or all 1 would agree whatever the code does.
    assert all(0.02 < value < 0.98 for value in found.values.values())
    assert found.values["recall@1"] < found.values["recall@3"] < found.values["recall@20"]


def test_a_difference_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_iou", lambda a, b: 0.0)
    assert not bench.compare(200).is_equal


def test_generated_predictions_choose_their_own_candidates() -> None:
    table = bench.generate(500, seed=1)
    rows = np.repeat(np.arange(500), table.counts)
    same = (table.candidates == table.boxes[rows]).all(axis=1)
    assert (np.bincount(rows[same], minlength=500) > 0).tolist() == table.has_box.tolist()
    assert not table.has_box.all()
