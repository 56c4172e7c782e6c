"""`transfer`, `ensemble` and `curve`: many systems on many detectors and data sets at once.

runs/transfer/<name>/   predictions/<column>/<row>-<digest>.parquet    never asked twice; see `evaluation.grid`
runs/ensemble/<name>/   matrix.json  matrix.md  matrix.png             of other rows or columns: in <name>-<digest>/
runs/curve/<name>/      samples-<n>/                                   a run on the first n samples; never trained twice
                        predictions/..  curve.json  curve.md  curve.png
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_wrapper import runs, storage
from llm_wrapper.cli import options
from llm_wrapper.cli.train import run_training
from llm_wrapper.errors import PromptError, RecipeError, RunError, listed, shell_word
from llm_wrapper.evaluation import systems
from llm_wrapper.evaluation.grid import (
    DETECTOR,
    Column,
    Contribution,
    Filled,
    System,
    combined_systems,
    compare_cells,
    contributions,
    fill,
    free_system,
    llm_system,
    load_columns,
    transfer_systems,
)
from llm_wrapper.evaluation.methods import UNTRAINED
from llm_wrapper.evaluation.predictions import mass_notes
from llm_wrapper.prompts.render import PromptBuilder
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Prediction
from llm_wrapper.report.grid import write_study
from llm_wrapper.report.grid_values import CurvePoint, curve_values, matrix_values
from llm_wrapper.storage import folder_name
from llm_wrapper.terminal import say
from llm_wrapper.training.examples import load_prompt_builder

Adapters = Annotated[list[Path] | None, typer.Option("--run", help="Folder of a finished run; repeat it for several.")]
MoreLlm = Annotated[str | None, typer.Option("--llm", help="A further LLM, untrained: a file of recipes/llm.")]
MoreTrain = Annotated[str | None, typer.Option("--train", help="How that LLM is prompted: a file of recipes/train.")]

_ENSEMBLE = "toy+toy-gray"
_OWN_TRAININGS = "one training for each size"


def transfer_verb(  # noqa: PLR0913 (each is an option of the verb)
    overrides: options.Overrides = None,
    *,
    run: Adapters = None,
    vlm: Annotated[
        list[str] | None, typer.Option(help="Detector, or a+b; repeat it for several. By default those of the runs.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Data set; repeat it for several. By default those of the runs.")
    ] = None,
    data_root: options.DataRoot = None,
    llm: MoreLlm = None,
    train: MoreTrain = None,
    split: options.Split = None,
    limit: options.Limit = None,
    name: options.Name = None,
) -> None:
    """Evaluate adapters on other detectors and data sets; write matrix.md and a heat map to runs/transfer."""
    recipes = _column_recipes(vlm or [], data or [], run or [], [*options.root(data_root), *(overrides or [])])
    label = "_".join(dict.fromkeys(each.vlm for each in recipes))
    sets = "_".join(dict.fromkeys(each.data.name for each in recipes))
    folder = runs.RUNS / "transfer" / folder_name(name or f"{label}-{sets}", "--name")
    trained = _recipes_of(run or [])
    columns, notes = load_columns(recipes, trained, split=split, limit=limit)
    untrained = _untrained_recipe(recipes[0], llm, train, overrides)
    rows = transfer_systems(trained, untrained, builder_of=_load_builder)
    filled = fill(rows, columns, folder / "predictions")
    _save_matrix("transfer", folder, _Matrix(columns, rows, filled, trained, notes))


def ensemble_verb(  # noqa: PLR0913 (each is an option of the verb)
    overrides: options.Overrides = None,
    *,
    vlm: Annotated[
        str | None,
        typer.Option(help=f"Detectors, joined by +: files of recipes/vlm. By default the run's, else {_ENSEMBLE}."),
    ] = None,
    run: Adapters = None,
    data: options.Data = None,
    data_root: options.DataRoot = None,
    llm: MoreLlm = None,
    train: MoreTrain = None,
    split: options.Split = None,
    limit: options.Limit = None,
    name: options.Name = None,
) -> None:
    """Compare an ensemble of detectors with its parts, and several adapters with their mean and vote."""
    vlms = [vlm] if vlm else [] if run else [_ENSEMBLE]
    recipes = _column_recipes(vlms, [data] if data else [], run or [], [*options.root(data_root), *(overrides or [])])
    recipes = [each for each in recipes if len(each.detectors()) > 1] or recipes
    if len(recipes) > 1:
        names = ", ".join(f"{each.vlm} / {each.data.name}" for each in recipes)
        raise RecipeError(f"the runs are of several detectors and data sets ({names}): name one by --vlm and --data")
    (recipe,) = recipes
    members = recipe.detectors()
    if len(members) < 2:
        raise RecipeError(
            f"{recipe.vlm} is one detector; name several: make ensemble VLM={shell_word(recipe.vlm + '+another')}"
        )
    folder = runs.RUNS / "ensemble" / folder_name(name or f"{recipe.vlm}-{recipe.data.name}", "--name")
    without = [recipe.with_detectors([*members[:place], *members[place + 1 :]]) for place in range(len(members))]
    alone = [recipe.with_detectors([member]) for member in members]
    parts = {each.vlm: each for each in [recipe, *alone, *without]}
    trained = _recipes_of(run or [])
    columns, notes = load_columns(list(parts.values()), trained, split=split, limit=limit)
    rows = transfer_systems(trained, _untrained_recipe(recipe, llm, train, overrides), builder_of=_load_builder)
    filled = fill(rows, columns, folder / "predictions")
    more = combined_systems([row for row in rows if row.baseline], filled)
    filled |= fill(more, columns, folder / "predictions")
    found = _Matrix(columns, [*rows[:-1], *more, rows[-1]], filled, trained, notes)
    of_column = {vlm: found.predictions(column) for vlm, column in zip(parts, columns, strict=True)}
    less = {alone[place].vlm: of_column[each.vlm] for place, each in enumerate(without)}
    _save_matrix("ensemble", folder, found, contributions(of_column[recipe.vlm], less))


def curve_verb(  # noqa: PLR0913 (each is an option of the verb)
    overrides: options.Overrides = None,
    *,
    run: Annotated[
        Path | None, typer.Option(help="A finished run: its checkpoints are points, and its recipe is used.")
    ] = None,
    samples: Annotated[
        list[int] | None, typer.Option(min=1, help="Number of training samples; repeat it for several sizes.")
    ] = None,
    vlm: options.Vlm = None,
    llm: options.Llm = None,
    data: options.Data = None,
    data_root: options.DataRoot = None,
    train: options.Train = None,
    split: options.Split = None,
    limit: options.Limit = None,
    name: options.Name = None,
) -> None:
    """Draw P@1 against training samples: from a run's checkpoints, from trainings on nested subsets, or from both."""
    names = {"vlm": vlm, "llm": llm, "data": data, "train": train}
    given = [f"--{kind} {value}" for kind, value in names.items() if value is not None]
    if run is not None and (more := [*given, *(["--data-root"] if data_root else []), *(overrides or [])]):
        raise RecipeError(f"the recipe of {run} is used as it is; leave out {', '.join(more)}")
    recipe = options.choose_recipe(names, overrides, data_root, run=run)
    folder = (
        runs.RUNS / "curve" / folder_name(name or (run.resolve().name if run else options.name_of(names)), "--name")
    )
    if run is None and not samples:
        raise RecipeError('name a run, or sizes: make curve RUN=runs/.. or make curve SAMPLES="100 300 1000"')
    points = []
    if run is not None:
        series = f"one training, so far ({run.name})"
        points = [
            CurvePoint(f"step-{each.num_steps}", series, each.num_samples, each.num_steps, each.folder)
            for each in runs.intermediate_adapters(run)
        ]
    points += _points_of_sizes(folder, recipe, samples or [])
    columns, notes = load_columns([recipe], {folder: recipe}, split=split, limit=limit)
    rows = _curve_systems(points, recipe)
    filled = fill(rows, columns, folder / "predictions")
    problems = [f"{system} on {column}: {cell}" for (system, column), cell in filled.items() if isinstance(cell, str)]
    if problems:
        raise PromptError(problems[0])
    predictions = [row for cell in filled.values() if not isinstance(cell, str) for row in cell[1]]
    values = {
        **curve_values(columns[0].name, compare_cells(filled, rows, columns), points),
        "data": columns[0].facts,
        "recipe": recipe.model_dump(mode="json"),
        "run": str(run) if run else None,
        "notes": [*notes, *mass_notes(predictions), *_curve_notes(run, recipe, points)],
        "question": {
            "column": runs.column_question(columns[0].facts),
            "systems": {row.name: dict(row.identity) for row in rows},
        },
    }
    save_study("curve", "curve", folder, values)


@dataclass(frozen=True)
class _Matrix:
    """Rows, columns and the predictions in their cells."""

    columns: Sequence[Column]
    rows: Sequence[System]
    filled: Filled
    trained: Mapping[Path, Recipe]
    notes: Sequence[str]

    def predictions(self, column: Column) -> dict[str, Sequence[Prediction]]:
        """Return system -> predictions in a column, of the systems that have any."""
        cells = {row.name: self.filled[row.name, column.name] for row in self.rows}
        return {name: cell[1] for name, cell in cells.items() if not isinstance(cell, str)}


def _save_matrix(kind: str, folder: Path, found: _Matrix, contributions: Sequence[Contribution] = ()) -> None:
    notes = list(found.notes)
    # In what the runs differ besides their training data: their numbers then differ for that reason too.
    names = [row.name for row in found.rows if row.baseline]
    parts = [each.model_dump(mode="json", include={"llm", "prompt", "train"}) for each in found.trained.values()]
    for name, part in zip(names[1:], parts[1:], strict=True):
        for difference in storage.describe_differences(parts[0], part, places=("there", "here")):
            notes.append(f"{name} is of another recipe than {names[0]}: {difference}")
    for column in found.columns:
        predictions = [row for rows in found.predictions(column).values() for row in rows]
        notes += [f"{column.name}: {note}" for note in mass_notes(predictions)]
    values = {
        **matrix_values(compare_cells(found.filled, found.rows, found.columns), contributions),
        "columns": {column.name: column.facts for column in found.columns},
        "runs": {str(run): recipe.model_dump(mode="json") for run, recipe in found.trained.items()},
        "notes": notes,
        "question": {
            "columns": {column.name: runs.column_question(column.facts) for column in found.columns},
            "systems": {row.name: dict(row.identity) for row in found.rows},
        },
    }
    save_study(kind, "matrix", folder, values)


def save_study(kind: str, stem: str, folder: Path, values: Mapping[str, Any]) -> None:
    """Write a grid as <stem>.json, .md and .png where results of another question are not touched, and print it."""
    names = (f"{stem}.json", f"{stem}.md", f"{stem}.png")
    place = runs.free_folder(folder, names, values["question"])
    known = {"git": storage.git_revision(), "versions": storage.versions()}
    write_study(kind, place, {**values, **known}, options.CONSOLE)


def _column_recipes(
    vlms: Sequence[str], sets: Sequence[str], folders: Sequence[Path], overrides: Sequence[str]
) -> list[Recipe]:
    """Return a recipe for each detector and data set: those that are named, else those of the runs; each pair once."""
    for folder in folders:
        options.require_run(folder)
    found: dict[str, Recipe] = {}
    choices: list[Sequence[Any]] = [sets or [None], folders or [None], vlms or [None]]
    for data, run, vlm in itertools.product(*choices):
        recipe = options.choose_recipe({"vlm": vlm, "data": data}, overrides, run=run)
        values = recipe.model_dump(mode="json", include={"detector", "candidates", "ensemble", "data"})
        found.setdefault(storage.digest_value({**values, "seed": recipe.train.seed}), recipe)
    return list(found.values())


def _untrained_recipe(
    recipe: Recipe, llm: str | None, train: str | None, overrides: Sequence[str] | None
) -> Recipe | None:
    """Return the recipe of a further LLM, untrained, on the first column."""
    if llm is None:
        return None
    own = options.choose_recipe({"llm": llm, "train": train}, overrides)
    return recipe.model_copy(update={"llm": own.llm, "prompt": own.prompt, "train": own.train})


def _load_builder(recipe: Recipe) -> PromptBuilder:
    return load_prompt_builder(recipe) if recipe.prompt.examples else PromptBuilder(recipe.prompt)


def _recipes_of(folders: Sequence[Path]) -> dict[Path, Recipe]:
    """Return run folder -> recipe; refuse runs that are not finished."""
    unfinished = [str(folder) for folder in folders if not runs.is_complete(folder)]
    if unfinished:
        command = runs.resume_command(Path(unfinished[0]))
        raise RunError(f"no finished training in {', '.join(unfinished)}; resume it with: {command}")
    return {folder: runs.recipe_of(folder) for folder in folders}


def _curve_systems(points: Sequence[CurvePoint], recipe: Recipe) -> list[System]:
    """Return the rows of a curve: detector, rule, oracle, the untrained LLM, and the adapter of each point."""
    builder = PromptBuilder(recipe.prompt)
    rows = [
        free_system(DETECTOR, systems.by_detector),
        free_system("rule", systems.by_rule),
        free_system("oracle", systems.by_oracle),
        llm_system(UNTRAINED, recipe, builder=builder),
    ]
    last: dict[str, str] = {}
    for point in points:
        more = {"baseline": UNTRAINED, "previous": last.get(point.series)}
        rows.append(llm_system(point.name, recipe, point.adapter, builder=builder, **more))
        last[point.series] = point.name
    return rows


def _points_of_sizes(folder: Path, recipe: Recipe, sizes: Sequence[int]) -> Iterator[CurvePoint]:
    """Yield a point for each size, smallest first; the first size beyond the data is the last one."""
    for size in sorted(set(sizes)):
        place = folder / f"samples-{size}"
        own = recipe.model_copy(update={"train": recipe.train.model_copy(update={"limit": size})})
        if runs.is_complete(place):
            require_same_recipe(place, own)
            say(options.CONSOLE, f"{place} is trained already")
        else:
            run_training(own, place, options.CONSOLE)
        facts = runs.facts_of(place)
        yield CurvePoint(place.name, _OWN_TRAININGS, facts["samples"], facts["training"]["steps"], place / "adapter")
        # Images that are evaluated on do not count towards `train.limit`.
        counted = {**facts["left_out"], "image_in_an_evaluation_split": 0}
        if facts["samples"] + sum(counted.values()) < size:
            say(options.CONSOLE, f"there are fewer than {size} samples: larger sizes are skipped")
            return


def require_same_recipe(folder: Path, recipe: Recipe) -> None:
    """Refuse a run folder of another recipe, with every difference and the command that removes the folder."""
    parts = [each.model_dump(mode="json") for each in (runs.recipe_of(folder), recipe.in_folder(folder))]
    found = storage.describe_differences(parts[0], parts[1], places=("there", "now"))
    if found:
        remedy = f"name another with --name, or rm -r {shell_word(folder)}"
        raise RunError(listed(f"{folder} is of another recipe; {remedy}", found))


def _curve_notes(run: Path | None, recipe: Recipe, points: Sequence[CurvePoint]) -> list[str]:
    """Say what a reader could take a difference for that is not the number of samples."""
    train = recipe.train
    notes = [
        f"{point.name}: {point.steps} steps in all, while the learning rate rises for train.warmup_steps="
        f"{train.warmup_steps} of them"
        for point in points
        if point.series == _OWN_TRAININGS and point.steps <= 2 * train.warmup_steps
    ]
    if run and sum(point.series != _OWN_TRAININGS for point in points) < 3:
        notes.append(
            f"{run} keeps few intermediate adapters: it was trained with train.save_steps={train.save_steps} "
            f"train.keep_adapters={train.keep_adapters}"
        )
    return notes
