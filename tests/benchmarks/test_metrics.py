from __future__ import annotations

import json
from pathlib import Path

import metrics
import numpy as np
import pytest
from rich.console import Console


def test_both_ways_agree_on_generated_predictions() -> None:
    found = metrics.compare(2000, seed=3)
    assert found.is_equal
    assert (found.num_predictions, found.num_candidates) == (2000, len(metrics.generate(2000, seed=3).candidates))
    assert found.peak_bytes > 0
    # Metrics that are all 0 or all 1 would agree whatever the code does.
    assert all(0.02 < value < 0.98 for value in found.values.values())
    assert found.values["recall@1"] < found.values["recall@3"] < found.values["recall@20"]


def test_a_difference_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_iou", lambda a, b: 0.0)
    assert not metrics.compare(200).is_equal


def test_generated_predictions_choose_their_own_candidates() -> None:
    table = metrics.generate(500, seed=1)
    rows = np.repeat(np.arange(500), table.counts)
    same = (table.candidates == table.boxes[rows]).all(axis=1)
    assert (np.bincount(rows[same], minlength=500) > 0).tolist() == table.has_box.tolist()
    assert not table.has_box.all()


def test_a_measurement_of_another_size_does_not_replace_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    console = Console(width=200, record=True)
    for number in (40, 60, 40):
        metrics.bench_metrics(console, num_predictions=number)
    paths = sorted(Path("runs/bench").iterdir(), key=lambda path: len(path.name))
    assert [json.loads(path.read_text())["num_predictions"] for path in paths] == [40, 60]
    assert paths[0].name == "metrics.json"
    assert all(f"kept in {path}" in console.export_text(clear=False) for path in paths)
