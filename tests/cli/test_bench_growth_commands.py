"""Growth is measured over nested sets with a toy LLM: every step is timed, and answers do not hang on their company."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from llm_wrapper.cli.bench_growth_commands import Extent, growth
from llm_wrapper.clock import Clock
from llm_wrapper.errors import RecipeError
from llm_wrapper.evaluation import bench_growth as evaluating
from llm_wrapper.recipe import DataSection, DetectorSection, LoraSection, PromptSection, Recipe, TrainSection
from llm_wrapper.records import Answer
from llm_wrapper.training.bench_growth import same_answers
from tests.llms import tiny

pytestmark = pytest.mark.slow

AROUND = {
    "read the data set",
    "cache detections",
    "build candidates",
    "build the prompts",
    "decide, four systems",
    "save predictions",
    "load predictions",
    "metrics with intervals",
    "group the samples",
    "measure the prompts",
    "schedule",
    "make all batches",
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.chdir(tmp_path)
    llm = tiny.llm()
    llm.model.save_pretrained(tmp_path / "llm")
    llm.tokenizer.save_pretrained(tmp_path / "llm")
    return Recipe(
        detector=DetectorSection(name="crowds"),
        data=DataSection(name="crowds", reader="jsonl", root=Path()),
        prompt=PromptSection(format="compact"),
        llm=llm.section.model_copy(update={"model": str(tmp_path / "llm"), "dtype": "float32"}),
        train=TrainSection(lora=LoraSection(rank=2, alpha=4), groups_per_step=1, expressions_per_group=3),
    )


def test_every_step_is_timed_and_company_changes_no_answer(recipe: Recipe, tmp_path: Path) -> None:
    console = Console(width=200, record=True)
    extent = Extent(sizes=(20, 6, 12), most_asked=12, candidates=(3, 2), num_images=3)
    growth(recipe, console, extent=extent)
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
    growth(coarse, Console(quiet=True), extent=Extent(sizes=(4, 8), most_asked=8, candidates=()))
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
        growth(recipe, Console(quiet=True), extent=extent)


def test_sets_are_nested(recipe: Recipe, tmp_path: Path) -> None:
    crowds = evaluating.crowds(3, 4, 4)
    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    few = evaluating.made(crowds[:2], tmp_path / "few", recipe, limit=6, clock=Clock())
    many = evaluating.made(crowds, tmp_path / "many", recipe, limit=12, clock=Clock())
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
