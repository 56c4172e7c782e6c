"""`curve` from runs and sizes to files, with a tiny random model that is really trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llm_wrapper import runs
from llm_wrapper.cli.train import run_training
from llm_wrapper.errors import LLMWrapperError, ModelError, RecipeError, RunError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.llms import load
from llm_wrapper.metrics import summarize_systems
from tests.commands import fail, invoke, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_folder")]

NUM_STEPS = 5
"""Of a training on 20 expressions, by fours."""


@pytest.fixture
def options(toy: Path, tiny_model: Path) -> list[str]:
    """Cached boxes, and the options that choose data and LLM."""
    run("cache-detections", "--data-root", toy)
    chosen = {
        "llm.model": f"'{tiny_model}'",
        "llm.dtype": "float32",
        "prompt.format": "compact",
        "train.groups_per_step": 4,
        "train.expressions_per_group": 1,
        "train.learning_rate": 0.01,
        "train.warmup_steps": 0,
        "train.save_steps": 1,
    }
    return ["--data-root", str(toy), *(f"{key}={value}" for key, value in chosen.items())]


def curve_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((runs.RUNS / "curve" / name / "curve.json").read_text(encoding="utf-8"))
    return found


def table_of(name: str) -> list[list[str]]:
    lines = (runs.RUNS / "curve" / name / "curve.md").read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]


def test_a_curve_is_drawn_from_one_run_and_from_sizes_and_nothing_is_done_twice(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("train", *options, "--run", "runs/mine", "train.limit=20")
    args = ("curve", "--run", "runs/mine", "--samples", 12, "--samples", 4, "--samples", 12)
    printed = run(*args)
    points = curve_of("mine")["points"]
    manifest = runs.facts_of(Path("runs/mine"))
    assert (manifest["training"]["steps"], manifest["training"]["samples_seen"]) == (NUM_STEPS, manifest["samples"])
    steps = [1, 2, 4, NUM_STEPS]
    names = [*(f"step-{step}" for step in steps), "samples-4", "samples-12"]
    assert [point["name"] for point in points] == names
    assert [point["samples"] for point in points if point["name"].startswith("step-")][:2] == [4, 8]
    assert points[len(names) - 3]["samples"] == manifest["samples"]
    assert 0 < points[-2]["samples"] <= 4 < points[-1]["samples"] <= 12
    assert [each["name"] for each in curve_of("mine")["others"]] == ["detector", "rule", "oracle", "untrained"]

    # What the table says is what the predictions say.
    n = curve_of("mine")["others"][0]["n"]
    for point in points:
        rows = files.load_predictions(Path(point["predictions"]))
        assert {row.system for row in rows} == {point["name"]}
        (summary,) = summarize_systems(rows)
        assert (summary.p_at_1, summary.n) == (point["result"]["p_at_1"], n)
    assert [point["over_previous"] is None for point in points].count(True) == 2
    assert [row[0] for row in table_of("mine")] == ["detector", "rule", "oracle", "untrained", *names]
    assert "samples-12" in printed
    picture = runs.RUNS / "curve" / "mine" / "curve.png"
    assert picture.stat().st_size > 10_000

    before = {path: path.stat().st_mtime_ns for path in runs.RUNS.rglob("*.safetensors")}
    asked = {path: path.stat().st_mtime_ns for path in runs.RUNS.rglob("*.parquet")}
    drawn, table = picture.read_bytes(), table_of("mine")
    monkeypatch.setattr(load, "load_model", None)  # whoever trains or asks now must fail
    monkeypatch.setattr("llm_wrapper.cli.grids.run_training", None)
    assert "samples-12 is trained already" in run(*args)
    assert {path: path.stat().st_mtime_ns for path in runs.RUNS.rglob("*.safetensors")} == before
    assert {path: path.stat().st_mtime_ns for path in runs.RUNS.rglob("*.parquet")} == asked
    assert (picture.read_bytes(), table_of("mine")) == (drawn, table)


def test_subsets_are_nested_and_end_where_the_data_does(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int | None] = []
    original = run_training

    def train(recipe: Any, folder: Path, console: Console) -> Path:
        limits.append(recipe.train.limit)
        return original(recipe, folder, console)

    monkeypatch.setattr("llm_wrapper.cli.grids.run_training", train)
    sizes = ("--samples", 2000, "--samples", 3, "--samples", 1000)
    printed = run("curve", *sizes, "--limit", 5, *options, "train.max_steps=1", "train.warmup_steps=9")
    assert limits == [3, 1000]
    assert "there are fewer than 1000 samples: larger sizes are skipped" in printed
    found = curve_of("toy-smollm2-toy")
    assert [point["name"] for point in found["points"]] == ["samples-3", "samples-1000"]
    notes = found["notes"]
    assert "toy / toy: the first 5 expressions only" in notes
    assert "samples-3: 1 steps in all, while the learning rate rises for train.warmup_steps=9 of them" in notes
    assert not any("keeps few intermediate adapters" in note for note in notes)

    told = fail(RunError, "curve", *sizes, *options, "train.max_steps=1", "train.learning_rate=0.5")
    assert "samples-3 is of another recipe; name another with --name, or rm -r runs/curve" in told
    assert "train.learning_rate: 0.01 there, 0.5 now" in told


# what is wrong


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        pytest.param(RecipeError, [], 'make curve RUN=runs/.. or make curve SAMPLES="100 300 1000"', id="nothing"),
        pytest.param(RecipeError, ["--run", "runs/x", "train.epochs=2"], "the recipe of runs/x is used", id="recipe"),
        pytest.param(RunError, ["--run", "runs/x"], "runs/x is no run folder", id="no-run"),
        pytest.param(ModelError, ["--llm", "rule", "--samples", "5"], "nothing to train", id="rule"),
    ],
)
def test_a_curve_that_cannot_be_drawn_is_refused(kind: type[LLMWrapperError], words: list[str], said: str) -> None:
    assert said in fail(kind, "curve", *words)


def test_sizes_are_positive() -> None:
    result = invoke("curve", "--samples", 0)
    assert result.exit_code == 2
    assert "greater than or equal to 1" in result.output
