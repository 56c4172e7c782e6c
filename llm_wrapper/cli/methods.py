"""`compare-methods`: each method on the same samples of one split, with the same LLM and the same labels.

runs/methods/<name>/   <method>/      a run like any other: recipe.yaml, its training or search, predictions
                                      cost.json: tokens and seconds of preparing, also of interrupted attempts
                                      report-<split>.json is written last: the row is then not made again
                       methods.json  methods.md  methods.png  methods.svg    of other rows: in <name>-<digest>/
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from llm_wrapper import readers, runs, storage
from llm_wrapper.cli import options
from llm_wrapper.cli.grids import require_same_recipe, save_study
from llm_wrapper.cli.search import run_search
from llm_wrapper.cli.train import run_training
from llm_wrapper.datasets import leaks
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.errors import RecipeError, RunError, listed, shell_word
from llm_wrapper.evaluation import methods, systems
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation.grid import Column, Filled, System, compare_cells, load_columns
from llm_wrapper.evaluation.methods import UNTRAINED, Cost, Method, MethodResult
from llm_wrapper.evaluation.predictions import mass_notes
from llm_wrapper.metrics import summarize, summarize_systems
from llm_wrapper.prompts.render import PromptBuilder
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Prediction
from llm_wrapper.report.formatting import summary_markdown, summary_values
from llm_wrapper.report.grid_values import methods_values
from llm_wrapper.search.history import History, SearchStart
from llm_wrapper.storage import folder_name
from llm_wrapper.terminal import say
from llm_wrapper.training.examples import load_prompt_builder, load_training_pool

_log = logging.getLogger(__name__)


def compare_methods_verb(  # noqa: PLR0913 (each is an option of the verb)
    overrides: options.Overrides = None,
    *,
    method: Annotated[
        list[str] | None, typer.Option(help=f"A row; repeat it for several. There are: {', '.join(methods.METHODS)}.")
    ] = None,
    labelled: Annotated[int, typer.Option(min=6, help="Labelled training expressions that a row may look at.")] = 200,
    compute: Annotated[
        int | None,
        typer.Option(min=1, help="Budget of each row in tokens through the LLM, for preparing and answering."),
    ] = None,
    vlm: options.Vlm = None,
    llm: options.Llm = None,
    data: options.Data = None,
    data_root: options.DataRoot = None,
    train: Annotated[str | None, typer.Option(help="How LoRA is trained: a file of recipes/train.")] = None,
    proposer: Annotated[
        str | None, typer.Option(help="LLM that proposes prompts, if not the one that is asked: a file of recipes/llm.")
    ] = None,
    split: options.Split = None,
    limit: options.Limit = None,
    name: options.Name = None,
) -> None:
    """Compare prompting, prompt search and training of one LLM at equal budgets; write a table and a plot."""
    where = [*options.root(data_root), *([f"data.eval_split={json.dumps(split)}"] if split else [])]
    choices = options.fill_defaults({"vlm": vlm, "llm": llm, "data": data, "train": train})
    rows, more = methods.select_methods(method or []), overrides or []
    methods.require_used(rows, more)
    options.choose_recipe({**choices, "search": "glov"}, [*where, *more])  # reports a wrong key before a row drops it
    fixed = [*where, "prompt.format=relations"]
    recipes = {
        each.name: _recipe(each, choices, labelled, (fixed, [key for key in more if methods.is_override_of(each, key)]))
        for each in rows
    }
    if proposer:
        section = options.choose_recipe({**choices, "llm": proposer}, where).llm
        for each, recipe in recipes.items():
            if recipe.search is not None:
                search = recipe.search.model_copy(update={"proposer": section})
                recipes[each] = recipe.model_copy(update={"search": search})
    folder = runs.RUNS / "methods" / folder_name(name or f"{options.name_of(choices)}-{labelled}", "--name")
    made = compare(Job(folder, recipes, limit, compute))
    if any(isinstance(each, str) for each in made.values()):
        raise typer.Exit(1)


def _recipe(
    row: Method, choices: Mapping[str, str], labelled: int, overrides: tuple[Sequence[str], Sequence[str]]
) -> Recipe:
    """Compose the recipe of a row; of the overrides the first are ours, and the others are the user's and win."""
    names = {**choices, "train": "default"}
    budget = [f"train.limit={labelled}"]
    if row.kind == "train":
        names["train"] = choices["train"] if row.name == "lora" else row.file
        # Some hundred expressions, once each, are fewer steps than the warm-up of the learning rate.
        budget.append("train.epochs=10")
    elif row.kind == "search":
        names["search"] = row.file
        search, confirm = methods.split_labels(labelled)
        budget += [f"search.slice={search}", f"search.confirm={confirm}", f"search.first={min(50, search)}"]
    elif row.kind == "prompt":
        names["prompt"] = row.file
    return options.choose_recipe(names, [*overrides[0], *budget, *overrides[1]])


@dataclass(frozen=True)
class Job:
    """Rows to compare: a recipe for each method, which have detectors, data, LLM and format in common.

    `compute` limits the tokens through the LLM of a row, see `methods.limit_compute`.
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
    """Make every row that is not made yet, and write methods.json, .md, .png and .svg; return method -> its result.

    A row that fails is shown with its reason; the next command makes it again.
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
    _save(job, made, column, notes)
    return made


def _require_fair(job: Job) -> None:
    """Refuse recipes that compare something else than methods, or that train on what is evaluated."""
    base = job.base
    split = base.data.eval_split
    problems = []
    if base.llm.backend == "rule":
        problems.append("LLM=rule is no LLM; the rule has a row anyway")
    if base.prompt.format == "hints":
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
    num, step = untrained.num_asked, step_tokens(recipe) if method.kind == "train" else None
    found = methods.QuestionTokens(num, untrained.per_answer, untrained.answered.tokens / num, step)
    return methods.limit_compute(recipe, method, job.compute, found)


def _load_or_make(job: Job, row: MethodRow, column: Column) -> MethodResult:
    """Return the result of a row; a row that is in its folder is not made again."""
    if (row.folder / "recipe.yaml").is_file():
        require_same_recipe(row.folder, row.recipe)
    predictions, report = row.folder / f"predictions-{job.part}.parquet", row.folder / f"report-{job.part}.json"
    if report.is_file():
        facts = readers.read_json(report)
        now = json.loads(storage.canonical(column.facts))
        if problems := storage.describe_differences(facts["column"], now, places=("there", "now")):
            remedy = f"name another with --name, or rm -r {shell_word(row.folder)}"
            raise RunError(listed(f"{row.folder} is about other samples; {remedy}", problems))
        say(options.CONSOLE, f"{row.folder} is there already")
        found = [each for each in files.load_predictions(predictions) if each.system == row.method.name]
        return MethodResult.from_facts(row.folder, found, facts["method"])
    say(options.CONSOLE, f"{row.method.name}: {row.folder}")
    done, builder = make_row(row, column.samples)
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


def _save(job: Job, made: Mapping[str, MethodResult | str], column: Column, notes: Sequence[str]) -> None:
    filled: Filled = {}
    for name, done in made.items():
        filled[name, column.name] = done if isinstance(done, str) else (done.folder, done.rows)
    rows = [System(name, {}, lambda: lambda _: [], baseline=UNTRAINED) for name in made]
    others = [summarize(by(column.samples)) for by in (systems.by_detector, systems.by_rule, systems.by_oracle)]
    answered = [row for done in made.values() if not isinstance(done, str) for row in done.rows]
    question = {
        "column": runs.column_question(column.facts),
        "compute": job.compute,
        "rows": {
            name: runs.evaluation_question({"recipe": recipe.model_dump(mode="json")})
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
    }
    save_study("methods", "methods", job.folder, values)


@dataclass(frozen=True)
class MethodRow:
    """A row to be made, by its recipe, in its folder."""

    method: Method
    recipe: Recipe
    folder: Path


def make_row(row: MethodRow, samples: Sequence[PreparedSample]) -> tuple[MethodResult, PromptBuilder]:
    """Train or search, where the method does and it is not done yet, and ask about all samples.

    Whatever stops it, its cost until then is written down.
    """
    recipe, folder, kind, notes = row.recipe, row.folder, row.method.kind, list[str]()
    if kind in ("train", "search"):
        if not runs.is_complete(folder):
            with _count_cost(folder):
                (run_training if kind == "train" else run_search)(recipe, folder, options.CONSOLE)
        notes = _training_notes(row) if kind == "train" else _search_notes(row)
    else:
        runs.write_recipe(folder, recipe)
    if kind == "search":
        prompt = recipe.prompt.model_copy(update={"instruction": runs.facts_of(folder)["best"]})
        recipe = recipe.model_copy(update={"prompt": prompt})
    builder = load_prompt_builder(recipe)
    rows, answered, spoken = _answers(row, recipe, builder, samples)
    num_asked = sum(len(prepared.built.candidates) > 1 for prepared in samples)
    learns = kind in ("train", "search") or recipe.prompt.examples
    done = MethodResult(
        folder=folder,
        rows=rows,
        labelled=recipe.train.limit or 0 if learns else 0,
        prepared=_read_cost(folder),
        answered=answered,
        num_asked=num_asked,
        per_answer=None if spoken is None or not num_asked else spoken / num_asked,
        notes=notes,
    )
    return done, builder


def step_tokens(recipe: Recipe) -> float | None:
    """Return the tokens that a step of a training takes, each counted `methods.TRAINING` times, before it is begun."""
    from llm_wrapper.training.memory_estimate import estimate_training

    whole = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": None})})
    epoch = estimate_training(whole, load_training_pool(whole).groups).epoch
    return None if epoch is None else methods.TRAINING * epoch.num_tokens * whole.train.epochs / epoch.num_steps


@contextmanager
def _count_cost(folder: Path) -> Iterator[None]:
    """Add the cost of a block to that in a folder, also where the block fails."""
    from llm_wrapper.llms.meter import metered

    started = time.perf_counter()
    with metered(training=methods.TRAINING) as meter:
        try:
            yield
        finally:
            before = _read_cost(folder)
            seconds = round(before.seconds + time.perf_counter() - started, 1)
            if folder.is_dir():  # else nothing was begun
                facts = {"tokens": (before.tokens or 0) + meter.tokens, "seconds": seconds}
                storage.write_json(folder / "cost.json", facts)


def _read_cost(folder: Path) -> Cost:
    path = folder / "cost.json"
    return Cost(**readers.read_json(path)) if path.is_file() else Cost(0, 0.0)


def _answers(
    row: MethodRow, recipe: Recipe, builder: PromptBuilder, samples: Sequence[PreparedSample]
) -> tuple[list[Prediction], Cost, int | None]:
    """Ask the LLM about every sample; return the predictions, their cost, and the tokens read and written alone."""
    from llm_wrapper.llms import meter
    from llm_wrapper.llms.base import LLM, add_reasoning, load_llm
    from llm_wrapper.llms.load import load_model
    from llm_wrapper.llms.local import LocalLLM

    name, num_tokens, spoken = row.method.name, recipe.prompt.reasoning_tokens, meter.Spoken()
    is_served = recipe.llm.backend == "openai"  # its tokens are not known
    if is_served:
        llm: LLM = load_llm(recipe.llm, title=name, reasoning_tokens=num_tokens)
    else:
        loaded = load_model(recipe.llm, row.folder / "adapter" if row.method.kind == "train" else None)
        llm = add_reasoning(meter.CountingLLM(LocalLLM(loaded, title=name), spoken), num_tokens)
    started = time.perf_counter()
    with nullcontext(meter.Meter()) if is_served else meter.metered(training=methods.TRAINING) as through:
        rows = systems.by_llm(samples, name, builder, llm, orders=recipe.llm.orders)
    seconds = round(time.perf_counter() - started, 3)
    if is_served:
        return rows, Cost(None, seconds), None
    return rows, Cost(through.tokens, seconds), spoken.read + spoken.written


def _training_notes(row: MethodRow) -> list[str]:
    """Say how long a training was, and of what."""
    facts, rising = runs.facts_of(row.folder), row.recipe.train.warmup_steps
    steps = facts["training"]["steps"]
    # Images that are evaluated on do not count towards the budget.
    skipped = {
        key: count for key, count in facts["left_out"].items() if key != "image_in_an_evaluation_split" and count
    }
    left = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in skipped.items())
    notes = [f"{facts['samples']} expressions trained on, in {steps} steps{f'; skipped: {left}' if left else ''}"]
    if steps <= 2 * rising:
        notes.append(f"the learning rate rises for train.warmup_steps={rising} of {steps} steps")
    return notes


def _search_notes(row: MethodRow) -> list[str]:
    """Say what a search found, and why nothing was steered where the recipe asks for it."""
    history = History(row.folder / "history.jsonl")
    confirmed = {each["name"]: each for each in readers.read_json(row.folder / "confirmed.json")["rows"]}
    best = confirmed["best 1"]
    num_usable = len({each.prompt for each in history.evaluated if each.iteration})
    refused = f"{len(history.refused)} refused"
    if not num_usable:
        notes = [f"no proposal was usable ({refused}): this is the seed prompt"]
    elif best["iteration"] == 0:
        notes = [f"none of {num_usable} usable proposals beat the seed prompt ({refused}): this is the seed prompt"]
    else:
        gain = best["gain_over_seed"]
        over = f"{100 * gain['value']:+.1f} points over the seed prompt on the second slice (n = {gain['n']})"
        notes = [f"found in round {best['iteration']}, among {num_usable} usable proposals, {refused}; {over}"]
    section = row.recipe.search
    has_steered = any(not isinstance(each, SearchStart) and each.alpha is not None for each in history.rows)
    if section is not None and section.alphas and not has_steered:
        is_served = (section.proposer or row.recipe.llm).backend == "openai"
        why = "the proposer is on a server" if is_served else "it begins when a prompt has beaten the seed prompt"
        notes.append(f"nothing was guided: {why}")
    return notes
