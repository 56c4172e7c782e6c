"""Growth is measured over nested sets with a toy LLM: every step is timed, and answers do not hang on their company."""

from __future__ import annotations

import json
from pathlib import Path

import growth_report
import growth_steps
import pytest
from growth import Extent, bench_growth
from growth_steps import same_answers
from measurements import Clock
from rich.console import Console

from llm_wrapper.errors import RecipeError
from llm_wrapper.recipe import DataSection, DetectorSection, LoraSection, Recipe, TrainSection
from llm_wrapper.records import Answer
from tests.llms import tiny

pytestmark = pytest.mark.slow

AROUND = {
    *("read the data set", "cache detections", "build candidates", "build the prompts", "decide, four systems"),
    *("save predictions", "load predictions", "metrics with intervals", "group the samples", "measure the prompts"),
    *("schedule", "make all batches"),
}


@pytest.fixture
def recipe(tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.chdir(tmp_path)
    train = TrainSection(lora=LoraSection(rank=2, alpha=4), groups_per_step=1, expressions_per_group=3)
    update = {"detector": DetectorSection(name="crowds"), "train": train}
    return tiny_recipe.model_copy(update={**update, "data": DataSection(name="crowds", reader="jsonl", root=Path())})


def test_every_step_is_timed_and_company_changes_no_answer(recipe: Recipe, tmp_path: Path) -> None:
    console = Console(width=200, record=True)
    extent = Extent(sizes=(20, 6, 12), most_asked=12, candidates=(3, 2), num_images=3)
    bench_growth(recipe, console, extent=extent)
    folder = tmp_path / "runs" / "bench"
    facts = json.loads((folder / "growth.json").read_text())
    seconds = facts["seconds_per_expression"]
    assert list(seconds) == ["6", "12", "20"]
    assert seconds["6"].keys() == seconds["12"].keys() == AROUND | {"ask the LLM"}
    assert seconds["20"].keys() == AROUND
    assert all(value > 0 for steps in seconds.values() for value in steps.values())
    assert facts["candidates"].keys() == {"2", "3"}
    assert facts["candidates"]["2"]["tokens"] < facts["candidates"]["3"]["tokens"]
    (same,) = facts["same_answers"]["float32"]
    assert (same["num_answers"], same["of"], same["same_choice"]) == (6, [6, 12], 1.0)
    assert same["largest_difference"] < 1e-5
    assert {path.name for path in folder.iterdir()} == {f"growth.{kind}" for kind in ("json", "md", "svg", "png")}
    assert facts["question"]["extent"]["sizes"] == [20, 6, 12]
    assert "same choice in 100.0%" in console.export_text()


def test_a_model_of_16_bit_is_compared_in_32_bit_too(recipe: Recipe, tmp_path: Path) -> None:
    coarse = recipe.model_copy(update={"llm": recipe.llm.model_copy(update={"dtype": "bfloat16"})})
    bench_growth(coarse, Console(quiet=True), extent=Extent(sizes=(4, 8), most_asked=8, candidates=()))
    same = json.loads((tmp_path / "runs" / "bench" / "growth.json").read_text())["same_answers"]
    assert same.keys() == {"bfloat16", "float32"}
    assert same["float32"][0]["same_choice"] == 1.0


@pytest.mark.parametrize(
    ("extent", "message"),
    [
        pytest.param(Extent(sizes=(3,)), r"sizes \[3\].*a size must be 4 or more", id="less-than-an-image"),
        pytest.param(Extent(candidates=(1,)), r"candidates \[1\].*candidates 2 or more", id="nothing-to-choose"),
        pytest.param(Extent(most_asked=99), "the LLM must be asked the smallest size", id="never-asked"),
        pytest.param(Extent(num_images=2), "2 images are too few.*--images 3", id="no-three-steps"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(recipe: Recipe, extent: Extent, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        bench_growth(recipe, Console(quiet=True), extent=extent)


def test_sets_are_nested(recipe: Recipe, tmp_path: Path) -> None:
    crowds = growth_steps.make_crowds(3, 4, 4)
    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    few = growth_steps.prepare_samples(crowds[:2], tmp_path / "few", recipe, limit=6, clock=Clock())
    many = growth_steps.prepare_samples(crowds, tmp_path / "many", recipe, limit=12, clock=Clock())
    assert [prepared.built for prepared in few] == [prepared.built for prepared in many[:6]]
    assert [prepared.sample.expression for prepared in few] == [prepared.sample.expression for prepared in many[:6]]
    assert all(len(prepared.built.candidates) == 4 for prepared in many)


def test_answers_that_hang_on_their_company_show() -> None:
    prompts = [tiny.prompt("left dog", 2), tiny.prompt("right dog", 2)]
    few = [Answer((0.9, 0.1)), Answer((0.4, 0.6))]
    many = [Answer((0.8, 0.2)), Answer((0.6, 0.4)), Answer((1.0, 0.0))]
    found = same_answers(prompts, few, many, most=100)
    assert (found.num_answers, found.of, found.same_choice) == (2, (2, 3), 0.5)
    assert found.largest_difference == pytest.approx(0.2)


# --- tables and picture ---

SECONDS = {100: {"read": 0.001, "ask the LLM": 0.1}, 1000: {"read": 0.002, "ask the LLM": 0.08}, 10000: {"read": 0.02}}
CPU = {100: {"read": 0.001, "ask the LLM": 0.1}, 1000: {"read": 0.001, "ask the LLM": 0.05}, 10000: {"read": 0.01}}
CANDIDATES = {
    20: {"tokens": 300.4, "shared": 0.1, "single": 0.2, "training": 0.5},
    2: {"tokens": 50.0, "shared": 0.01, "single": 0.02, "training": 0.05},
}


def test_growth_is_that_of_computing_time_between_the_last_two_sizes() -> None:
    assert growth_report.size_rows(SECONDS, CPU) == [
        ["read", "1", "2", "20", "10.00"],
        ["ask the LLM", "100", "80", "-", "0.50"],
    ]
    assert growth_report.size_rows({100: {"read": 0.001}}, {100: {"read": 0.001}}) == [["read", "1", "-"]]


def test_markdown_has_both_tables_and_the_notes() -> None:
    text = growth_report.markdown(SECONDS, CPU, CANDIDATES, ["two cores."])
    assert "| ms per expression | 100 | 1,000 | 10,000 | grows by |" in text
    assert "| ask the LLM | 100 | 80 | - | 0.50 |" in text
    assert text.index("| 2 | 50 | 10 | 20 | 50 |") < text.index("| 20 | 300 | 100 | 200 | 500 |")
    assert text.endswith("\n\ntwo cores.\n")


@pytest.mark.parametrize("candidates", [CANDIDATES, {}], ids=["both", "sizes-alone"])
@pytest.mark.parametrize(("kind", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_the_picture_is_the_same_each_time(candidates: growth_report.Steps, kind: str, start: bytes) -> None:
    drawn = growth_report.picture(SECONDS, candidates, kind=kind)
    assert drawn.startswith(start)
    assert drawn == growth_report.picture(SECONDS, candidates, kind=kind)
    assert kind == "png" or b"2026" not in drawn
