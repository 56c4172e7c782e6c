"""The paper's rows: each is five names that compose, is in docs/paper.md, and is what `--recipe` gives to a verb."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from llm_wrapper.cli.main import app
from llm_wrapper.cli.options import recipe_first
from llm_wrapper.errors import RecipeError
from llm_wrapper.recipe import Recipe, compose

KINDS = ("vlm", "llm", "data", "train", "prompt")
ROOT = Path(__file__).parents[1]
ROWS = sorted((ROOT / "recipes" / "paper").glob("*.yaml"))
DOCS = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    row: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return row


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_a_row_is_its_five_names_and_composes(path: Path) -> None:
    row = read(path)
    assert set(row) - {"overrides"} == {*KINDS, "published"}
    assert row["prompt"] == ("coords" if row["vlm"] == "flo2" else "coords-scores")  # Florence-2 gives no scores
    assert path.stem == f"{row['vlm']}-{row['llm']}-{row['data']}"
    recipe = compose({kind: row[kind] for kind in KINDS}, row.get("overrides", "").split())
    assert (recipe.train.lora.rank, recipe.train.lora.alpha, recipe.train.lora.dropout) == (128, 256, 0.1)
    assert (recipe.train.learning_rate, recipe.train.epochs, recipe.train.groups_per_step) == (1e-5, 1, 4)
    assert recipe.llm.quantization == "nf4"
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_a_row_stands_in_the_docs_with_its_numbers(path: Path) -> None:
    row = read(path)
    cells = re.search(rf"^\| `{re.escape(path.stem)}` \| (\S+) \| (\S+) \| (\S+) \| (.*)\|$", DOCS, re.MULTILINE)
    assert cells, f"{path.stem} is not in docs/paper.md"
    numbers = [None if cell == "-" else float(cell) for cell in cells.groups()[:2]]
    assert numbers == [row["published"]["detector"], row["published"]["tuned"]]
    assert cells[4].strip().strip("`") == row.get("overrides", "")


def test_the_docs_name_no_row_that_does_not_exist() -> None:
    named = re.findall(r"^\| `([\w+-]+)` \|", DOCS.split("## TRAIN=fast")[0], re.MULTILINE)
    assert sorted(named) == sorted(path.stem for path in ROWS)


def recipe_of(monkeypatch: pytest.MonkeyPatch, *words: str) -> Recipe:
    """The recipe that a verb is called with."""
    found: list[Recipe] = []
    monkeypatch.setattr("llm_wrapper.cli.train.run_training", lambda recipe, *_, **__: found.append(recipe))
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, list(words))
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return found[0]


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_a_row_gives_its_names_and_overrides_to_a_verb(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = read(path)
    expected = compose({kind: row[kind] for kind in KINDS}, row.get("overrides", "").split())
    assert recipe_of(monkeypatch, "--recipe", path.stem, "train") == expected


def test_recipe_may_follow_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    before = recipe_of(monkeypatch, "--recipe", "gd-llama3-refcocog", "train", "train.seed=1")
    assert recipe_of(monkeypatch, "train", "train.seed=1", "--recipe", "gd-llama3-refcocog") == before
    assert recipe_of(monkeypatch, "train", "--recipe=gd-llama3-refcocog", "train.seed=1") == before
    assert recipe_first(["predict", "--", "--recipe", "x"]) == ["predict", "--", "--recipe", "x"]


def test_what_is_typed_wins_over_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--data", "talk2car", "--train", "fast", "train.seed=1", "prompt.format=compact")
    found = recipe_of(monkeypatch, "--recipe", "gd-llama3-refcocog", "train", *words)
    names = {"vlm": "gd", "llm": "llama3", "data": "talk2car", "train": "fast", "prompt": "coords-scores"}
    assert found == compose(names, ["train.seed=1", "prompt.format=compact"])


def test_an_unknown_row_is_refused_with_those_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="no paper recipe is named 'flo3'") as caught:
        recipe_of(monkeypatch, "--recipe", "flo3", "train")
    assert all(path.stem in str(caught.value) for path in ROWS)


def test_fast_differs_from_paper_only_where_both_texts_say_so() -> None:
    names = {"vlm": "flo2", "llm": "llama3", "data": "refcocog"}
    paper, fast = (compose({**names, "train": train}) for train in ("paper", "fast"))
    assert paper.model_copy(update={"train": fast.train}) == fast
    ours, theirs = paper.train.model_dump(), fast.train.model_dump()
    differing = {key for key in ours if ours[key] != theirs[key]}
    comment = (ROOT / "recipes" / "train" / "fast.yaml").read_text(encoding="utf-8").split("\nprompt:")[0]
    assert differing == set(re.findall(r"^#   (\w+)  ", comment, re.MULTILINE))
    assert differing == set(re.findall(r"^\| `train\.(\w+)` \|", DOCS, re.MULTILINE))
