"""The verbs as a user meets them: old names, tables at 80 columns, and a run's own recipe under every verb."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from llm_wrapper import runs
from llm_wrapper.cli.detections import headroom_table
from llm_wrapper.cli.evaluate import threshold_table
from llm_wrapper.cli.search import confirmed_table
from llm_wrapper.errors import RecipeError, RunError
from llm_wrapper.evaluation.headroom import Headroom, Offer, Spread
from llm_wrapper.recipe import Recipe, compose
from llm_wrapper.report import grid
from llm_wrapper.report.formatting import Table, summary_table
from llm_wrapper.search.search import ConfirmedPrompt
from llm_wrapper.statistics import Estimate, Interval
from tests.commands import fail, invoke
from tests.evaluation.made import TARGET, WRONG, made
from tests.report.test_formatting import FULL
from tests.report.test_grid import compared_methods, drawn_curve, matrix


@pytest.mark.parametrize(
    ("words", "successor"),
    [
        (["plan"], "llm-wrapper train --plan"),
        (["data", "check"], "llm-wrapper check-data"),
        (["prompts", "search"], "llm-wrapper search-prompts"),
        (["bench", "score"], "make bench-score"),
        (["none-below", "a"], "llm-wrapper report PREDICTIONS --none-below"),
        (["detections", "verify"], "llm-wrapper detections info --verify"),
        (["detections", "export"], "llm-wrapper export CACHE FILE"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_verb_of_earlier_versions_names_its_successor(words: list[str], successor: str) -> None:
    done = invoke(*words)
    assert done.exit_code == 2
    assert successor in " ".join(done.output.replace("│", " ").split())


def test_help_names_the_verbs_in_the_order_of_use() -> None:
    text = invoke("--help").output
    places = [text.index(f"│ {verb} ") for verb in ("train", "eval", "predict", "demo", "cache-detections", "transfer")]
    assert places == sorted(places)


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys; import llm_wrapper.cli.main; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


WIDE = Estimate(0.6154, Interval(0.5801, 0.6512), 21_763)
GAIN = Estimate(-0.1015, Interval(-0.2001, -0.1512), 21_763)


def confirmed() -> RenderableType:
    return confirmed_table([ConfirmedPrompt("majority of the best 3 prompts", None, WIDE, GAIN, 0.012)])


def offered() -> RenderableType:
    spread = Spread(12.34, 11.0, 100)
    offer = Offer(WIDE, WIDE, GAIN, dict.fromkeys((1, 5, 10), WIDE), WIDE, WIDE, spread, WIDE)
    return headroom_table(Headroom(offer, offer, 21_763, 9_999, 1, 1, GAIN), 20)


def thresholds() -> RenderableType:
    """Every second expression has no target."""
    rows = [
        made(str(i), TARGET if i % 3 else WRONG, others=[WRONG], probability=i / 99, target=None if i % 2 else TARGET)
        for i in range(99)
    ]
    return threshold_table(rows)


TABLES: dict[str, Callable[[], RenderableType | dict[str, Any]]] = {
    "eval": lambda: summary_table([FULL]),
    "search-prompts": confirmed,
    "detections headroom": offered,
    "report --none-below": thresholds,
    "transfer": lambda: matrix("mine"),
    "curve": drawn_curve,
    "methods": compared_methods,
}


@pytest.mark.parametrize("verb", TABLES)
def test_no_interval_breaks_at_80_columns(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "save_plots", lambda *_, **__: None)
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        table = TABLES[verb]()
        if isinstance(table, dict):
            grid.write_study(verb, tmp_path, table, console)
        else:
            console.print(table)
    lines = [line for line in capture.get().splitlines() if not line.startswith(("- ", "kept in"))]
    intervals = [line for line in lines if " to " in line]
    assert intervals
    assert all(len(line) <= 80 and "\u2026" not in line for line in lines)
    assert all(line.count("(") == line.count(")") for line in intervals)


def test_a_wide_table_loses_no_column_at_80_columns() -> None:
    interval = "40.0 (30.0 to 50.0)"
    table = Table("wide", ["", *(f"detector {number}" for number in range(6))], [["tuned", *[interval] * 6]])
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(table.terminal(80))
    text = "".join(capture.get().split())
    assert text.count("40.0") == 6, capture.get()
    assert max(map(len, capture.get().splitlines())) <= 80


@pytest.mark.parametrize("words", [["eval"], ["transfer"], ["cache-detections"], ["score", "mine.jsonl"]], ids=str)
def test_an_empty_split_is_not_the_default(words: list[str], own_folder: Path) -> None:
    assert "--split=''" in fail(RecipeError, *words, "--split", "")


# --run


RUN = Path("runs/flo2-llama3")


@pytest.fixture
def its_recipe(own_folder: Path) -> Recipe:
    """The recipe of a finished run that names no default; its detector is an ensemble, as `ensemble` needs."""
    recipe = compose({"vlm": "flo2+gd", "llm": "llama3", "data": "refcocog", "train": "fast"})
    runs.finish(runs.open_run(RUN, recipe), {})
    return recipe


class CalledError(Exception):
    """Raised in place of the work, with the recipe that it was given."""


def recipe_given(monkeypatch: pytest.MonkeyPatch, worker: str, words: list[str]) -> Recipe:
    """The recipe with which a verb calls its worker: as such, in a job, or as the first of several columns."""

    def stop(job: Any, *_: object, **__: object) -> None:
        first = job[0] if isinstance(job, list) else job
        raise CalledError(first if isinstance(first, Recipe) else first.recipe)

    monkeypatch.setattr(f"llm_wrapper.cli.{worker}", stop)
    monkeypatch.setattr(runs, "intermediate_adapters", lambda _: [])
    done = invoke(*words)
    assert isinstance(done.exception, CalledError), (done.output, done.exception)
    (recipe,) = done.exception.args
    return recipe  # type: ignore[no-any-return]


VERBS = {
    "train": "train.run_training",
    "train --plan": "train.plan_training",
    "eval": "evaluate.evaluate",
    "predict a.png left": "predict.Evaluation",
    "search-prompts": "search.run_search",
    "transfer": "grids.load_columns",
    "ensemble": "grids.load_columns",
    "curve": "grids.load_columns",
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_takes_the_recipe_of_the_run(its_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    assert recipe_given(monkeypatch, VERBS[verb], [*verb.split(), "--run", str(RUN)]) == its_recipe


def test_an_unfinished_training_is_resumed_by_its_own_recipe(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = compose({"vlm": "toy-gray", "llm": "smollm2", "data": "toy", "train": "fast"})
    runs.open_run(RUN, recipe)
    assert recipe_given(monkeypatch, VERBS["train"], ["train", "--run", str(RUN)]) == recipe
    new = recipe_given(monkeypatch, VERBS["train"], ["train", "--run", "runs/new", "--train", "fast"])
    assert (new.detector.name, new.train) == ("toy", recipe.train)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "curve"])  # which refuses what is typed beside it
def test_what_is_typed_beside_a_run_wins(its_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    words = [*verb.split(), "--run", str(RUN), "--data", "refcoco", "candidates.cap=7"]
    found = recipe_given(monkeypatch, VERBS[verb], words)
    assert (found.data.name, found.candidates.cap) == ("refcoco", 7)
    assert (found.detector, found.ensemble.also.keys(), found.llm, found.prompt) == (
        its_recipe.detector,
        its_recipe.ensemble.also.keys(),
        its_recipe.llm,
        its_recipe.prompt,
    )


@pytest.mark.parametrize("verb", ["eval", "transfer", "ensemble", "curve", "predict a.png left", "report", "export"])
@pytest.mark.usefixtures("its_recipe")
def test_a_mistyped_run_is_answered_with_those_that_exist(verb: str) -> None:
    words = {"report": ["report"], "export": ["export"]}.get(verb, [*verb.split(), "--run"])
    said = fail(RunError, *words, "runs/flo2-lama3", *(["merged"] if verb == "export" else []))
    assert said.endswith("; did you mean 'runs/flo2-llama3'? (there are: runs/flo2-llama3)")
