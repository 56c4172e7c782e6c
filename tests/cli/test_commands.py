"""What is trained on, up to where an LLM is needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from llm_wrapper.cli import detections
from llm_wrapper.detections.samples import load_prepared_split
from llm_wrapper.recipe import compose
from llm_wrapper.training import examples

RECIPES = Path(__file__).parents[2] / "recipes"
SIZE = {"width": 100, "height": 50}


def test_images_of_any_evaluation_split_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [("train", 1), ("train", 2), ("more", 3), ("more", 4), ("more", 2), ("val", 3), ("testB", 1), ("other", 2)]
    lines = [
        {"image": f"{image}.png", "image_id": image, "expression": f"{split} {image}", "split": split, **SIZE}
        for split, image in rows
    ]
    Path("mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("boxes.jsonl").write_text("")
    names = {"vlm": "import", "llm": "smollm2", "data": "mine", "train": "default"}
    also = "train.also=[{name: more, train_split: more}]"
    recipe = compose(names, ["data.root=mine.jsonl", "detector.settings.path=boxes.jsonl", also])
    detections.cache(recipe, [recipe.data.train_split], Console(quiet=True))
    sets = [load_prepared_split(recipe, data, data.train_split) for data in recipe.training_data()]
    found = examples.exclude_evaluated(recipe, sets)
    assert [prepared.sample.expression for prepared in found] == ["train 2", "more 4", "more 2"]
