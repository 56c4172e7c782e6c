"""What `compare-methods` does: each method on the same samples of one split, with the same LLM and the same labels.

runs/methods/<name>/   <method>/      a run like any other: recipe.yaml, what was trained or searched for, predictions
                                      cost.json: what preparing took, of interrupted attempts too
                                      report-<split>.json is written last: the row is then not done again
                       methods.json  methods.md  methods.png  methods.svg    of other rows: in <name>-<digest>/
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from llm_wrapper import results, runs, storage
from llm_wrapper.cli.methods_row_commands import Line, made_of, step_tokens
from llm_wrapper.datasets import leaks
from llm_wrapper.errors import RecipeError, RunError, listed, shell_word
from llm_wrapper.evaluation import methods, systems, transfer_columns
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation.calibration import mass_notes
from llm_wrapper.evaluation.methods import Done, Method, Methods
from llm_wrapper.metrics import summarize_systems
from llm_wrapper.prompts.builder import PromptBuilder
from llm_wrapper.recipe import Recipe
from llm_wrapper.report import methods as shown
from llm_wrapper.report import tables
from llm_wrapper.terminal import say

__all__ = ["Job", "compare"]

_log = logging.getLogger(__name__)
_HINTS = "hints"
"""The format that tells the LLM which candidates the rule would take."""


@dataclass(frozen=True)
class Job:
    """What to compare.

    Attributes:
        folder: Where everything goes; what is there is used again.
        recipes: One for each method: they have detectors, data, LLM and format in common.
        limit: The first samples only.
        compute: Tokens through the LLM that a row shall take at most, see `methods.capped`.
    """

    folder: Path
    recipes: Mapping[str, Recipe]
    limit: int | None = None
    compute: int | None = None

    @property
    def base(self) -> Recipe:
        """The recipe of the LLM as it is."""
        return self.recipes[methods.UNTRAINED]

    @property
    def part(self) -> str:
        """What is evaluated: the split, or its first samples."""
        split = self.base.data.eval_split
        return f"{split}-first-{self.limit}" if self.limit else split


def compare(job: Job, console: Console) -> Methods:
    """Make every row that is not made yet, and keep methods.json, methods.md, methods.png and methods.svg.

    A row that fails is shown with its reason, and tried again by the next command.

    Raises:
        RecipeError: If nothing fair can come of the recipes.
        CacheError: If detections are missing; the message names the command.
        DataError: If the split has nothing to compare with.
    """
    _require_fair(job)
    trained = {job.folder / name: recipe for name, recipe in job.recipes.items()}
    ground = transfer_columns.load([job.base], trained, split=job.base.data.eval_split, limit=job.limit)
    made: dict[str, Done | str] = {}
    for name, recipe in job.recipes.items():
        method = methods.METHODS[name]
        try:
            row = Line(method, _within(job, recipe, method, made.get(methods.UNTRAINED)), job.folder / name)
            made[name] = _done(job, row, ground, console)
        except Exception as error:  # whatever it is, the other rows took hours and stay
            _log.exception("%s failed", name)
            made[name] = f"{type(error).__name__}: {error}"
    (column,) = ground.columns
    others = [by(column.samples) for by in (systems.by_detector, systems.by_rule, systems.by_oracle)]
    found = methods.measure(f"{column.name} {job.part}", others, made)
    _keep(job, found, ground, console)
    return found


def _require_fair(job: Job) -> None:
    """Refuse what would compare something else than methods, or look at what is evaluated."""
    base = job.base
    split = base.data.eval_split
    problems = []
    if base.llm.backend == "rule":
        problems.append("LLM=rule is no LLM; the rule has a row of its own")
    if base.prompt.format == _HINTS:
        problems.append("prompt.format=hints tells the LLM what the rule would take; use relations or compact")
    for name, recipe in job.recipes.items():
        trained = [data.train_split for data in recipe.training_data()]
        wrong = dict.fromkeys(each for each in trained if each in (split, *leaks.HELD_OUT))
        problems += [f"{name}: split {each} is evaluated on; rows learn from training data alone" for each in wrong]
    if problems:
        raise RecipeError(listed("methods cannot be compared by this recipe", problems))


def _within(job: Job, recipe: Recipe, method: Method, untrained: Done | str | None) -> Recipe:
    """Return the recipe as the budget of compute lets it be, which is in what the untrained LLM took."""
    if job.compute is None or not isinstance(untrained, Done) or not untrained.num_asked:
        return recipe
    if untrained.per_answer is None or untrained.answered.tokens is None:  # on a server
        return recipe
    num, step = untrained.num_asked, step_tokens(recipe) if method.kind == "train" else None
    found = methods.Measured(num, untrained.per_answer, untrained.answered.tokens / num, step)
    return methods.capped(recipe, method, job.compute, found)


def _done(job: Job, row: Line, ground: transfer_columns.Ground, console: Console) -> Done:
    """Return what a row gave; what is kept of it is not done again.

    Raises:
        RunError: If the folder holds a row of another recipe, or one about other samples.
    """
    kept = row.folder / "recipe.yaml"
    if kept.is_file():
        parts = [
            each.model_dump(mode="json") for each in (runs.recipe_of(row.folder), row.recipe.in_folder(row.folder))
        ]
        _require_same(row.folder, *parts)
    predictions, report = row.folder / f"predictions-{job.part}.parquet", row.folder / f"report-{job.part}.json"
    if report.is_file():
        facts = storage.read_json(report)
        _require_same(row.folder, facts["column"], json.loads(storage.canonical(ground.facts[0])))
        say(console, f"{row.folder} is there already")
        found = [each for each in files.load_predictions(predictions) if each.system == row.method.name]
        return Done.of_facts(row.folder, found, facts["method"])
    say(console, f"{row.method.name}: {row.folder}")
    done, builder = made_of(row, ground.columns[0].samples, console)
    _write(job, done, builder, (row, ground))
    return done


def _require_same(folder: Path, there: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    found = storage.describe_differences(there, now, places=("there", "now"))
    if found:
        raise RunError(
            listed(f"{folder} is of another recipe; name another with --name, or rm -r {shell_word(folder)}", found)
        )


def _write(job: Job, done: Done, builder: PromptBuilder, of: tuple[Line, transfer_columns.Ground]) -> None:
    """Write what `eval` would leave, so that the row has a report of its own: detector, rule, the row, oracle."""
    row, ground = of
    samples = ground.columns[0].samples
    rows = [*systems.by_detector(samples), *systems.by_rule(samples), *done.rows, *systems.by_oracle(samples)]
    files.save_predictions(row.folder / f"predictions-{job.part}.parquet", rows)
    summaries = summarize_systems(rows)
    storage.write_atomic(row.folder / f"report-{job.part}.md", tables.markdown(summaries))
    facts = {
        "rows": tables.rows(summaries),
        "recipe": row.recipe.model_dump(mode="json"),
        "split": row.recipe.data.eval_split,
        "limit": job.limit,
        "column": ground.facts[0],
        "prompt": builder.facts,
        "method": done.facts(),
        "git": storage.git_revision(),
        "versions": storage.versions(),
    }
    storage.write_json(row.folder / f"report-{job.part}.json", facts)


def _keep(job: Job, found: Methods, ground: transfer_columns.Ground, console: Console) -> None:
    """Write the comparison in four forms, and print it."""
    answered = [row for each in found.rows if each.done for row in each.done.rows]
    notes = [*ground.notes, *mass_notes(answered)]
    text = shown.markdown(found, notes)
    question = {
        "column": results.column_question(ground.facts[0]),
        "compute": job.compute,
        "rows": {
            name: results.evaluation_question({"recipe": recipe.model_dump(mode="json")})
            | {"train": recipe.train.model_dump(mode="json"), "search": recipe.search and recipe.search.model_dump()}
            for name, recipe in job.recipes.items()
        },
    }
    folder = results.free_folder(job.folder, ("methods.json", "methods.md"), question)
    facts = {
        **shown.plain(found),
        "data": ground.facts[0],
        "labelled": job.base.train.limit,
        "compute": job.compute,
        "recipe": job.base.model_dump(mode="json"),
        "notes": notes,
        "question": question,
        "git": storage.git_revision(),
        "versions": storage.versions(),
    }
    storage.write_json(folder / "methods.json", facts)
    storage.write_atomic(folder / "methods.md", text)
    shown.plot(found, folder)
    console.print(Markdown(text))
    say(console, f"kept in {folder}")
