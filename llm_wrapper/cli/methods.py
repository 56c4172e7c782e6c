"""`compare-methods`: each method on the same samples of one split, with the same LLM and the same labels.

runs/methods/<name>/   <method>/      a run like any other: recipe.yaml, its training or search, predictions
                                      cost.json: tokens and seconds of preparing, also of interrupted attempts
                                      report-<split>.json is written last: the row is then not made again
                       methods.json  methods.md  methods.png  methods.svg    of other rows: in <name>-<digest>/
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from llm_wrapper import results, runs, storage
from llm_wrapper.cli import method_rows, options
from llm_wrapper.cli.grids import require_same_recipe
from llm_wrapper.cli.method_rows import MethodRow
from llm_wrapper.cli.options import (
    Data,
    DataRoot,
    Limit,
    Llm,
    Overrides,
    Split,
    Vlm,
    choose_recipe,
    fill_defaults,
    name_of,
    root,
)
from llm_wrapper.datasets import leaks
from llm_wrapper.errors import RecipeError, RunError, listed, shell_word
from llm_wrapper.evaluation import methods, systems
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation.calibration import mass_notes
from llm_wrapper.evaluation.grid import Column, Filled, System, compare_cells, load_columns
from llm_wrapper.evaluation.methods import UNTRAINED, Method, MethodResult
from llm_wrapper.metrics import summarize, summarize_systems
from llm_wrapper.recipe import LLMSection, Recipe, prompt_of
from llm_wrapper.report.formatting import summary_markdown, summary_values
from llm_wrapper.report.grid import write_study
from llm_wrapper.report.grid_values import methods_values
from llm_wrapper.storage import folder_name
from llm_wrapper.terminal import say

__all__ = ["Job", "add_methods_verb", "compare"]

_log = logging.getLogger(__name__)

_FORMAT = "prompt.format=relations"
_EPOCHS = "train.epochs=10"
"""Some hundred expressions, once each, are fewer steps than the warm-up of the learning rate."""

_FIRST = 50
_OWN = {"train.limit": "--labelled", "search.slice": "--labelled", "search.confirm": "--labelled",
        "search.proposer": "--proposer", "data.eval_split": "--split", "train.method": "--method"}  # fmt: skip
"""Keys that a row sets itself -> the option for it."""


_HINTS = "hints"
"""The format that repeats what the rule would take."""


@dataclass(frozen=True)
class Job:
    """Rows to compare.

    Attributes:
        folder: Of all results; rows that are there are used again.
        recipes: One for each method: they have detectors, data, LLM and format in common.
        limit: The first samples only.
        compute: Most tokens through the LLM of a row, see `methods.limit_compute`.
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
        """The evaluated split, or its first samples."""
        split = self.base.data.eval_split
        return f"{split}-first-{self.limit}" if self.limit else split


def compare(job: Job) -> dict[str, MethodResult | str]:
    """Make every row that is not made yet, and write methods.json, methods.md, methods.png and methods.svg.

    A row that fails is shown with its reason; the next command makes it again.

    Returns:
        Method -> its result, or why it has none.

    Raises:
        RecipeError: If nothing fair can come of the recipes.
        CacheError: If detections are missing; the message names the command.
        DataError: If the split has nothing to compare with.
    """
    _require_fair(job)
    trained = {job.folder / name: recipe for name, recipe in job.recipes.items()}
    (column,), notes = load_columns([job.base], trained, split=job.base.data.eval_split, limit=job.limit)
    made: dict[str, MethodResult | str] = {}
    for name, recipe in job.recipes.items():
        method = methods.METHODS[name]
        try:
            row = MethodRow(method, _limited(job, recipe, method, made.get(UNTRAINED)), job.folder / name)
            made[name] = _load_or_make(job, row, column)
        except Exception as error:  # whatever it is, the other rows took hours and stay
            _log.exception("%s failed", name)
            made[name] = f"{type(error).__name__}: {error}"
    _write(job, made, column, notes)
    return made


def _require_fair(job: Job) -> None:
    """Refuse recipes that compare something else than methods, or that train on what is evaluated."""
    base = job.base
    split = base.data.eval_split
    problems = []
    if base.llm.backend == "rule":
        problems.append("LLM=rule is no LLM; the rule has a row anyway")
    if base.prompt.format == _HINTS:
        problems.append("prompt.format=hints tells the LLM what the rule would take; use relations or compact")
    for name, recipe in job.recipes.items():
        trained = [data.train_split for data in recipe.training_data()]
        wrong = dict.fromkeys(each for each in trained if each in (split, *leaks.HELD_OUT))
        problems += [f"{name}: split {each} is evaluated on; rows learn from training data alone" for each in wrong]
    if problems:
        raise RecipeError(listed("methods cannot be compared by this recipe", problems))


def _limited(job: Job, recipe: Recipe, method: Method, untrained: MethodResult | str | None) -> Recipe:
    """Return the recipe within the budget of compute, by the tokens of the untrained LLM."""
    if job.compute is None or not isinstance(untrained, MethodResult) or not untrained.num_asked:
        return recipe
    if untrained.per_answer is None or untrained.answered.tokens is None:  # on a server
        return recipe
    num, step = untrained.num_asked, method_rows.step_tokens(recipe) if method.kind == "train" else None
    found = methods.QuestionTokens(num, untrained.per_answer, untrained.answered.tokens / num, step)
    return methods.limit_compute(recipe, method, job.compute, found)


def _load_or_make(job: Job, row: MethodRow, column: Column) -> MethodResult:
    """Return the result of a row; a row that is in its folder is not made again.

    Raises:
        RunError: If the folder holds a row of another recipe, or one about other samples.
    """
    if (row.folder / "recipe.yaml").is_file():
        require_same_recipe(row.folder, row.recipe)
    predictions, report = row.folder / f"predictions-{job.part}.parquet", row.folder / f"report-{job.part}.json"
    if report.is_file():
        facts = storage.read_json(report)
        now = json.loads(storage.canonical(column.facts))
        if problems := storage.describe_differences(facts["column"], now, places=("there", "now")):
            remedy = f"name another with --name, or rm -r {shell_word(row.folder)}"
            raise RunError(listed(f"{row.folder} is about other samples; {remedy}", problems))
        say(options.CONSOLE, f"{row.folder} is there already")
        found = [each for each in files.load_predictions(predictions) if each.system == row.method.name]
        return MethodResult.from_facts(row.folder, found, facts["method"])
    say(options.CONSOLE, f"{row.method.name}: {row.folder}")
    done, builder = method_rows.make_row(row, column.samples, options.CONSOLE)
    samples = column.samples
    rows = [*systems.by_detector(samples), *systems.by_rule(samples), *done.rows, *systems.by_oracle(samples)]
    files.save_predictions(predictions, rows)
    summaries = summarize_systems(rows)
    storage.write_atomic(row.folder / f"report-{job.part}.md", summary_markdown(summaries))
    storage.write_json(
        report,
        {
            "rows": summary_values(summaries),
            "recipe": row.recipe.model_dump(mode="json"),
            "split": row.recipe.data.eval_split,
            "limit": job.limit,
            "column": column.facts,
            "prompt": builder.facts,
            "method": done.facts(),
            "git": storage.git_revision(),
            "versions": storage.versions(),
        },
    )
    return done


def _write(job: Job, made: Mapping[str, MethodResult | str], column: Column, notes: Sequence[str]) -> None:
    """Write the comparison in four forms, and print it."""
    filled: Filled = {}
    for name, done in made.items():
        filled[name, column.name] = done if isinstance(done, str) else (done.folder, done.rows)
    rows = [System(name, {}, lambda: lambda _: [], baseline=UNTRAINED) for name in made]
    others = [summarize(by(column.samples)) for by in (systems.by_detector, systems.by_rule, systems.by_oracle)]
    answered = [row for done in made.values() if not isinstance(done, str) for row in done.rows]
    question = {
        "column": results.column_question(column.facts),
        "compute": job.compute,
        "rows": {
            name: results.evaluation_question({"recipe": recipe.model_dump(mode="json")})
            | {"train": recipe.train.model_dump(mode="json"), "search": recipe.search and recipe.search.model_dump()}
            for name, recipe in job.recipes.items()
        },
    }
    values = {
        **methods_values(f"{column.name} {job.part}", others, compare_cells(filled, rows, [column]), made),
        "data": column.facts,
        "labelled": job.base.train.limit,
        "compute": job.compute,
        "recipe": job.base.model_dump(mode="json"),
        "notes": [*notes, *mass_notes(answered)],
        "question": question,
        "git": storage.git_revision(),
        "versions": storage.versions(),
    }
    folder = results.free_folder(job.folder, ("methods.json", "methods.md"), question)
    write_study("methods", folder, values, options.CONSOLE)


def add_methods_verb(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("compare-methods", rich_help_panel="Studies")(compare_methods)


def compare_methods(  # noqa: PLR0913 (each is an option of the verb)
    overrides: Overrides = None,
    *,
    method: Annotated[
        list[str] | None, typer.Option(help=f"A row; repeat it for several. There are: {', '.join(methods.METHODS)}.")
    ] = None,
    labelled: Annotated[int, typer.Option(min=6, help="Labelled training expressions that a row may look at.")] = 200,
    compute: Annotated[
        int | None,
        typer.Option(min=1, help="Budget of each row in tokens through the LLM, for preparing and answering."),
    ] = None,
    vlm: Vlm = None,
    llm: Llm = None,
    data: Data = None,
    data_root: DataRoot = None,
    train: Annotated[str | None, typer.Option(help="How LoRA is trained: a file of recipes/train.")] = None,
    proposer: Annotated[
        str | None, typer.Option(help="LLM that proposes prompts, if not the one that is asked: a file of recipes/llm.")
    ] = None,
    split: Split = None,
    limit: Limit = None,
    name: Annotated[str | None, typer.Option(help="Name of the folder in runs/methods.")] = None,
) -> None:
    """Compare prompting, prompt search and training of one LLM at equal budgets; write a table and a plot."""
    where = [*root(data_root), *([f"data.eval_split={json.dumps(split)}"] if split else [])]
    choices = fill_defaults({"vlm": vlm, "llm": llm, "data": data, "train": train})
    rows, more = methods.select_methods(method or []), overrides or []
    _require_used(rows, more)
    choose_recipe({**choices, "search": "glov"}, [*where, *more])  # reports a wrong key before a row drops it
    recipes = {
        each.name: _recipe(each, choices, labelled, ([*where, _FORMAT], [key for key in more if _is_of(each, key)]))
        for each in rows
    }
    if proposer:
        section = choose_recipe({**choices, "llm": proposer}, where).llm
        recipes = {each: _with_proposer(recipe, section) for each, recipe in recipes.items()}
    folder = runs.RUNS / "methods" / folder_name(name or f"{name_of(choices)}-{labelled}", "--name")
    made = compare(Job(folder, recipes, limit, compute))
    if any(isinstance(each, str) for each in made.values()):
        raise typer.Exit(1)


def _require_used(rows: Sequence[Method], overrides: Sequence[str]) -> None:
    """Refuse overrides that a row sets itself, and those that no row reads."""
    keys = {override: override.partition("=")[0] for override in overrides}
    problems = [f"{override}: use {_OWN[key]}" for override, key in keys.items() if key in _OWN]
    problems += [
        f"{override}: it is for none of {', '.join(row.name for row in rows)}"
        for override, key in keys.items()
        if key not in _OWN and not any(_is_of(row, override) for row in rows)
    ]
    if problems:
        raise RecipeError(listed("these overrides cannot be used", problems))


def _is_of(row: Method, override: str) -> bool:
    """Tell whether an override is for a row: keys of a search, a training or a prompt go to such rows alone."""
    section, _, key = override.partition("=")[0].partition(".")
    if section == "search":
        return row.kind == "search"
    if section == "train":
        return row.kind == "train" or key in ("seed", "min_candidates")  # these decide what examples there are
    if section != "prompt" or key == "format":
        return True
    known = prompt_of(row.file) if row.kind == "prompt" else {}
    return key in known or (key == "embedder" and "retrieve" in known)


def _recipe(
    row: Method, choices: Mapping[str, str], labelled: int, overrides: tuple[Sequence[str], Sequence[str]]
) -> Recipe:
    """Compose the recipe of a row; of the overrides the first are ours, and the others are the user's and win."""
    names = {**choices, "train": "default"}
    budget = [f"train.limit={labelled}"]
    if row.kind == "train":
        names["train"] = choices["train"] if row.name == "lora" else row.file
        budget.append(_EPOCHS)
    elif row.kind == "search":
        names["search"] = row.file
        search, confirm = methods.split_labels(labelled)
        budget += [f"search.slice={search}", f"search.confirm={confirm}", f"search.first={min(_FIRST, search)}"]
    elif row.kind == "prompt":
        names["prompt"] = row.file
    return choose_recipe(names, [*overrides[0], *budget, *overrides[1]])


def _with_proposer(recipe: Recipe, proposer: LLMSection) -> Recipe:
    if recipe.search is None:
        return recipe
    return recipe.model_copy(update={"search": recipe.search.model_copy(update={"proposer": proposer})})
