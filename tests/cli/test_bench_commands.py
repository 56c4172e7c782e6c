"""What the verbs that measure speed keep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from llm_wrapper.cli import bench_commands


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_measurement_of_another_size_does_not_replace_the_first() -> None:
    console = Console(width=200, record=True)
    for number in (40, 60, 40):
        bench_commands.metrics(console, num_predictions=number)
    paths = sorted(Path("runs/bench").iterdir(), key=lambda path: len(path.name))
    assert [json.loads(path.read_text())["num_predictions"] for path in paths] == [40, 60]
    assert paths[0].name == "metrics.json"
    assert all(f"kept in {path}" in console.export_text(clear=False) for path in paths)
