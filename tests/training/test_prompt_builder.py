"""Examples come from what could be trained on: never of an evaluated image, never more than the budget."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from rich.console import Console

from llm_wrapper.cli.detections import cache
from llm_wrapper.detections.samples import load_prepared_split
from llm_wrapper.errors import CacheError, DataError, ModelError, PromptError, RecipeError
from llm_wrapper.prompts.render import PromptBuilder
from llm_wrapper.recipe import DataSection, DetectorSection, LLMSection, PromptSection, Recipe, TrainSection
from llm_wrapper.records import Prompt
from llm_wrapper.training.examples import load_exemplars, load_prompt_builder, require_trainable

pytestmark = pytest.mark.slow

BOXES = [(10, 40, 31, 61), (100, 20, 141, 61), (60, 90, 90, 110)]


def write(root: Path, **splits: dict[str, int]) -> None:
    """A file of splits with one expression per image, about the box of that number; 9 is a box of nothing."""
    rows = []
    for number, (name, split, target) in enumerate(
        (n, s, t) for s, images in splits.items() for n, t in images.items()
    ):
        picture = Image.new("RGB", (160, 120), (128, 128, 128))
        for place, box in enumerate(BOXES):
            colour = (230, 20 + place, 20 + number)
            ImageDraw.Draw(picture).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=colour)
        if not (root / f"{name}.png").exists():
            picture.save(root / f"{name}.png")
        shown = [1, 1, 5, 5] if target == 9 else list(BOXES[target])
        rows.append({"image": f"{name}.png", "expression": f"square of {name}", "box": shown, "split": split})
    (root / "squares.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


VAL = {"seen": 0, "new": 1}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", val=VAL, train={"seen": 0, "a": 0, "b": 1, "c": 2, "d": 0, "hidden": 9})
    return tmp_path / "data"


def recipe(root: Path, *, limit: int | None = None, cached: bool = True, **prompt: Any) -> Recipe:
    made = Recipe(
        detector=DetectorSection(name="toy", label="toy"),
        data=DataSection(name="squares", reader="jsonl", root=root / "squares.jsonl"),
        llm=LLMSection(backend="rule"),
        prompt=PromptSection.model_validate(prompt),
        train=TrainSection(limit=limit),
    )
    if cached:
        cache(made, ["train", "val"], Console(quiet=True))
    return made


def asked(made: Recipe, split: str = "val") -> list[Prompt]:
    samples = load_prepared_split(made, made.data, split).samples
    return load_prompt_builder(made).build([(prepared.sample, prepared.built.candidates) for prepared in samples])


def shown_in(prompt: Prompt) -> set[str]:
    """The images that a prompt has examples of."""
    lines = [message.content.splitlines()[-1] for message in prompt.messages[:-1] if message.role == "user"]
    return {line.split()[-1] for line in lines}


def test_without_examples_nothing_is_read(root: Path) -> None:
    made = recipe(root, cached=False, instruction="{objects}{expression}")
    assert load_prompt_builder(made) == PromptBuilder(made.prompt)


@pytest.mark.parametrize("retrieve", [False, True], ids=["fixed", "retrieved"])
def test_examples_are_of_training_images_that_are_not_evaluated(root: Path, retrieve: bool) -> None:
    made = recipe(root, examples=8, retrieve=retrieve)
    prompts = asked(made)
    assert [shown_in(prompt) for prompt in prompts] == [{"a", "b", "c", "d"}] * 2
    assert asked(made) == prompts
    facts = load_prompt_builder(made).facts
    assert facts["pool"] == 4
    assert [(each["name"], each["split"]) for each in facts["sets"]] == [("squares", "train")]
    assert ("examples" in facts) != retrieve


@pytest.mark.parametrize("retrieve", [False, True], ids=["fixed", "retrieved"])
def test_who_asks_about_a_training_image_never_sees_it(root: Path, retrieve: bool) -> None:
    made = recipe(root, examples=3, retrieve=retrieve)
    for prompt in asked(made, "train"):
        own = prompt.messages[-1].content.split()[-1]
        assert len(shown_in(prompt)) == 3
        assert own not in shown_in(prompt)


def test_the_budget_of_labelled_expressions_holds_for_examples_too(root: Path) -> None:
    wide, narrow = recipe(root), recipe(root, limit=2)
    sets = [load_prepared_split(wide, wide.data, "train")]
    all_of_them, two = load_exemplars(wide, sets), load_exemplars(narrow, sets)
    assert len(two) <= 2 < len(all_of_them) == 4
    assert {each.sample.sample_id for each in two} < {each.sample.sample_id for each in all_of_them}
    for each in all_of_them:
        box = each.candidates[each.index].box
        assert each.sample.target is not None
        assert box.center == pytest.approx(each.sample.target.center, abs=2)


def test_an_empty_pool_names_the_reasons_and_the_command(root: Path) -> None:
    write(root, val=VAL, train={"seen": 0, "hidden": 9})
    told = r"none of the 2 expressions of squares train .*target_not_among_candidates.*make data-check DATA=squares"
    with pytest.raises(DataError, match=told):
        load_prompt_builder(recipe(root, examples=2))
    shutil.rmtree("data/detections")  # an earlier split's answers are refused, as they should be
    write(root, val=VAL, train={"seen": 0})
    with pytest.raises(DataError, match="all are of evaluated images"):
        load_prompt_builder(recipe(root, examples=2, retrieve=True))


def test_what_is_not_cached_names_its_command(root: Path) -> None:
    with pytest.raises(CacheError, match=r"cache-detections --vlm toy --data squares --split train"):
        load_prompt_builder(recipe(root, cached=False, examples=2))


def test_what_cannot_be_used_is_refused_before_any_llm_is_loaded(root: Path) -> None:
    with pytest.raises(PromptError, match="2 problems"):
        load_prompt_builder(recipe(root, instruction="Which?"))
    with pytest.raises(ModelError, match="pip install"):
        load_prompt_builder(recipe(root, examples=1, retrieve=True, embedder="package:nothing"))


def test_an_llm_is_trained_with_format_and_instruction_alone() -> None:
    for prompt, problem in (
        ({"examples": 4}, "4 fixed examples"),
        ({"examples": 4, "retrieve": True}, "4 retrieved examples"),
        ({"reasoning_tokens": 8}, "up to 8 tokens of reasoning"),
    ):
        with pytest.raises(RecipeError, match=problem):
            require_trainable(PromptSection.model_validate(prompt))
    require_trainable(PromptSection(format="coords", instruction="{objects}{expression}"))
    with pytest.raises(PromptError, match=r"prompt\.instruction cannot be used"):
        require_trainable(PromptSection(instruction="{objects}"))
