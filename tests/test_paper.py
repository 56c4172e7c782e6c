"""The paper's rows: each is four names that compose, stands in docs/paper.md, and is what `make PAPER=` passes on."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_wrapper.recipe import compose

KINDS = ("vlm", "llm", "data", "train")
ROOT = Path(__file__).parents[1]
ROWS = sorted((ROOT / "recipes" / "paper").glob("*.yaml"))
DOCS = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    row: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return row


def make(*args: str) -> subprocess.CompletedProcess[str]:
    outer = ("MAKE", "MFLAGS", "PAPER", "VLM", "LLM", "DATA", "TRAIN", "RUN", "ARGS")
    env = {key: value for key, value in os.environ.items() if not key.startswith(outer)}
    return subprocess.run(["make", "-n", *args], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_a_row_is_its_four_names_and_composes(path: Path) -> None:
    row = read(path)
    assert set(row) - {"overrides"} == {*KINDS, "published"}
    assert path.stem == f"{row['vlm']}-{row['llm']}-{row['data']}"
    recipe = compose(ROOT / "recipes", {kind: row[kind] for kind in KINDS}, row.get("overrides", "").split())
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


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_make_passes_the_names_of_a_row_on(path: Path) -> None:
    row = read(path)
    done = make("train", f"PAPER={path.stem}", "ARGS=train.seed=1")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()[-1].split()
    expected = [f"--vlm {row['vlm']}", f"--llm {row['llm']}", f"--data {row['data']}", f"--train {row['train']}"]
    assert words[1:] == ["train", *" ".join(expected).split(), *row.get("overrides", "").split(), "train.seed=1"]


def test_what_is_typed_wins_over_a_row() -> None:
    words = make("plan", "PAPER=flo2-llama3-refcocog", "TRAIN=fast", "DATA=talk2car").stdout.splitlines()[-1].split()
    assert words[1:] == ["plan", "--vlm", "flo2", "--llm", "llama3", "--data", "talk2car", "--train", "fast"]


def test_an_unknown_row_is_refused_with_those_that_exist() -> None:
    done = make("train", "PAPER=flo3")
    assert done.returncode == 2
    assert "no row is called 'flo3'; there are: " in done.stderr
    assert all(path.stem in done.stderr for path in ROWS)


def test_fast_differs_from_paper_only_where_both_texts_say_so() -> None:
    names = {"vlm": "flo2", "llm": "llama3", "data": "refcocog"}
    paper, fast = (compose(ROOT / "recipes", {**names, "train": train}) for train in ("paper", "fast"))
    assert paper.model_copy(update={"train": fast.train}) == fast
    ours, theirs = paper.train.model_dump(), fast.train.model_dump()
    differing = {key for key in ours if ours[key] != theirs[key]}
    comment = (ROOT / "recipes" / "train" / "fast.yaml").read_text(encoding="utf-8").split("prompt:")[0]
    assert differing == set(re.findall(r"^#   (\w+)  ", comment, re.MULTILINE))
    assert differing == set(re.findall(r"^\| `train\.(\w+)` \|", DOCS, re.MULTILINE))
