"""The verbs as a user meets them: old names, tables at 80 columns, and a run's own recipe under every verb."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType
from typer.testing import CliRunner

from llm_wrapper import runs
from llm_wrapper.cli import main
from llm_wrapper.cli.search import confirmed_table
from llm_wrapper.errors import RunError
from llm_wrapper.recipe import Recipe, compose
from llm_wrapper.report.formatting import summary_table
from llm_wrapper.search.search import ConfirmedPrompt
from llm_wrapper.statistics import Estimate, Interval
from tests.report.test_formatting import FULL


@pytest.mark.parametrize(
    ("words", "successor"),
    [
        (["plan"], "llm-wrapper train --plan"),
        (["data", "check"], "llm-wrapper check-data"),
        (["prompts", "search"], "llm-wrapper search-prompts"),
        (["bench", "score"], "make bench-score"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_verb_of_earlier_versions_names_its_successor(words: list[str], successor: str) -> None:
    done = CliRunner().invoke(main.app, words)
    assert done.exit_code == 2
    assert successor in " ".join(done.output.replace("│", " ").split())


def test_help_names_the_verbs_in_the_order_of_use() -> None:
    text = CliRunner().invoke(main.app, ["--help"]).output
    places = [text.index(f"│ {verb} ") for verb in ("train", "eval", "predict", "demo", "cache-detections", "transfer")]
    assert places == sorted(places)


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys; import llm_wrapper.cli.main; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


WIDE = Estimate(0.615, Interval(0.5801, 0.6512), 1763)


def confirmed() -> RenderableType:
    gain = Estimate(0.1015, Interval(-0.0801, 0.1512), 1763)
    return confirmed_table([ConfirmedPrompt("majority of the best 3 prompts", None, WIDE, gain, 0.012)])


@pytest.mark.parametrize(
    "table", [pytest.param(lambda: summary_table([FULL]), id="eval"), pytest.param(confirmed, id="search-prompts")]
)
def test_no_interval_breaks_at_80_columns(table: Any) -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table())
    lines = capture.get().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert any(" to " in line for line in lines)
    for line in lines:
        assert line.count("(") == line.count(")"), line


# --run


RUN = Path("runs/flo2-llama3")


@pytest.fixture
def its_recipe(own_folder: Path) -> Recipe:
    """The recipe of a run that names no default."""
    recipe = compose({"vlm": "flo2", "llm": "llama3", "data": "refcocog", "train": "fast"})
    runs.open_run(RUN, recipe)
    return recipe


VERBS = [
    pytest.param(["train"], "llm_wrapper.cli.train.run_training", id="train"),
    pytest.param(["train", "--plan"], "llm_wrapper.cli.train.plan_training", id="train --plan"),
    pytest.param(["eval"], "llm_wrapper.cli.evaluate.evaluate", id="eval"),
    pytest.param(["search-prompts"], "llm_wrapper.cli.search.run_search", id="search-prompts"),
]


def recipe_given(monkeypatch: pytest.MonkeyPatch, worker: str, words: list[str]) -> Recipe:
    """The recipe with which a verb calls its worker."""
    given: list[Any] = []
    monkeypatch.setattr(worker, lambda job, *_, **__: given.append(job) or True)
    done = CliRunner().invoke(main.app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (job,) = given
    return job if isinstance(job, Recipe) else job.recipe


@pytest.mark.parametrize(("verb", "worker"), VERBS)
def test_a_verb_takes_the_recipe_of_the_run(
    its_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, verb: list[str], worker: str
) -> None:
    assert recipe_given(monkeypatch, worker, [*verb, "--run", str(RUN)]) == its_recipe


@pytest.mark.parametrize(("verb", "worker"), VERBS)
def test_what_is_typed_beside_a_run_wins(
    its_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, verb: list[str], worker: str
) -> None:
    found = recipe_given(monkeypatch, worker, [*verb, "--run", str(RUN), "--data", "refcoco", "candidates.cap=7"])
    assert (found.data.name, found.candidates.cap) == ("refcoco", 7)
    assert (found.detector, found.llm) == (its_recipe.detector, its_recipe.llm)


@pytest.mark.parametrize("words", [["report"], ["eval", "--run"], ["export"]], ids=" ".join)
@pytest.mark.usefixtures("its_recipe")
def test_a_mistyped_run_is_answered_with_those_that_exist(words: list[str]) -> None:
    more = ["merged"] if words == ["export"] else []
    done = CliRunner().invoke(main.app, [*words, "runs/flo2-lama3", *more])
    assert isinstance(done.exception, RunError)
    assert "did you mean 'runs/flo2-llama3'" in str(done.exception) or "runs/flo2-llama3" in str(done.exception)
