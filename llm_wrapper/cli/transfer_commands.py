"""What `transfer` and `ensemble` do: rows and columns from run folders and recipes, and what is left of it on disk.

runs/transfer/<name>/   predictions/<column>/<row>-<digest>.parquet    never asked twice; see `evaluation.transfer`
runs/ensemble/<name>/   matrix.json  matrix.md  matrix.png             of other rows or columns: in <name>-<digest>/
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from llm_wrapper import results, runs, storage
from llm_wrapper.errors import RecipeError, RunError, shell_word
from llm_wrapper.evaluation import ensemble as combining
from llm_wrapper.evaluation import transfer_columns, transfer_rows
from llm_wrapper.evaluation.calibration import mass_notes
from llm_wrapper.evaluation.transfer import Filled, Matrix, System, fill, measure
from llm_wrapper.evaluation.transfer_columns import Ground
from llm_wrapper.prompts.builder import PromptBuilder
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Prediction
from llm_wrapper.report import matrix as tables
from llm_wrapper.terminal import say
from llm_wrapper.training.pool import load_prompt_builder

__all__ = ["Job", "ensemble", "transfer"]


@dataclass(frozen=True)
class Job:
    """What to compare.

    Attributes:
        folder: Where the results go; what is there is used again.
        recipes: One for each column: detectors, candidates and data. Of a run only its LLM and prompt are used.
        adapters: Folders of finished runs.
        untrained: A recipe whose LLM is asked as it is, beside those of the runs before training.
        split: If not the one that the data set's recipe evaluates on.
        limit: The first samples only.
    """

    folder: Path
    recipes: Sequence[Recipe]
    adapters: Sequence[Path] = ()
    untrained: Recipe | None = None
    split: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class _Compared:
    """Rows, columns and what is in their cells."""

    trained: dict[Path, Recipe]
    ground: Ground
    rows: Sequence[System]
    filled: Filled

    def of_column(self, place: int) -> dict[str, list[Prediction]]:
        """Return system -> predictions, of those that have any in a column."""
        name = self.ground.columns[place].name
        found = {row.name: self.filled[row.name, name] for row in self.rows}
        return {system: cell[1] for system, cell in found.items() if not isinstance(cell, str)}


def transfer(job: Job, console: Console) -> Matrix:
    """Ask every system about every column, and keep matrix.json, matrix.md and matrix.png.

    Raises:
        RunError: If a folder is no finished run.
        CacheError: If detections are missing; the message names the command.
    """
    return _keep(job, _compare(job), console, [])


def ensemble(job: Job, console: Console) -> Matrix:
    """As `transfer`, for an ensemble beside itself less each detector, and each detector alone.

    Two adapters and more are also combined, by their mean probability and by vote. `job.recipes` is the ensemble alone.

    Raises:
        RecipeError: If it is one detector only; else as `transfer`.
    """
    (recipe,) = job.recipes
    members = recipe.detectors()
    if len(members) < 2:
        raise RecipeError(
            f"{recipe.vlm} is one detector; name several: make ensemble VLM={shell_word(recipe.vlm + '+another')}"
        )
    without = [recipe.with_detectors([*members[:place], *members[place + 1 :]]) for place in range(len(members))]
    alone = [recipe.with_detectors([member]) for member in members]
    parts = {each.vlm: each for each in [recipe, *alone, *without]}
    compared = _compare(replace(job, recipes=list(parts.values())), combine=True)
    of_column = {vlm: compared.of_column(place) for place, vlm in enumerate(parts)}
    less = {alone[place].vlm: of_column[each.vlm] for place, each in enumerate(without)}
    return _keep(job, compared, console, combining.contributions(of_column[recipe.vlm], less))


def _compare(job: Job, *, combine: bool = False) -> _Compared:
    trained = _recipes_of(job.adapters)
    ground = transfer_columns.load(job.recipes, trained, split=job.split, limit=job.limit)
    rows = transfer_rows.rows(trained, job.untrained, builder_of=_builder_of())
    folder = job.folder / "predictions"
    filled = fill(rows, ground.columns, folder)
    if combine:
        more = transfer_rows.combinations([row for row in rows if row.baseline], filled)
        filled |= fill(more, ground.columns, folder)
        rows = [*rows[:-1], *more, rows[-1]]
    return _Compared(trained, ground, rows, filled)


def _builder_of() -> Callable[[Recipe], PromptBuilder]:
    """Return a loader of prompt builders; a pool of examples is read once, however many rows show examples of it."""
    known: dict[str, PromptBuilder] = {}

    def builder_of(recipe: Recipe) -> PromptBuilder:
        if not recipe.prompt.examples:
            return PromptBuilder(recipe.prompt)
        key = storage.digest_value(recipe.model_dump(mode="json", exclude={"llm"}))
        if key not in known:
            known[key] = load_prompt_builder(recipe)
        return known[key]

    return builder_of


def _recipes_of(folders: Sequence[Path]) -> dict[Path, Recipe]:
    unfinished = [str(folder) for folder in folders if not runs.is_complete(folder)]
    if unfinished:
        raise RunError(
            f"no finished training in {', '.join(unfinished)}; resume it with: "
            f"{runs.resume_command(Path(unfinished[0]))}"
        )
    return {folder: runs.recipe_of(folder) for folder in folders}


def _notes(compared: _Compared) -> list[str]:
    """Say in what the runs differ besides what they were trained on: their numbers then differ for that reason too."""
    names = [row.name for row in compared.rows if row.baseline]
    parts = [each.model_dump(mode="json", include={"llm", "prompt", "train"}) for each in compared.trained.values()]
    return [
        f"{name} is of another recipe than {names[0]}: {difference}"
        for name, part in zip(names[1:], parts[1:], strict=True)
        for difference in storage.describe_differences(parts[0], part, places=("there", "here"))
    ]


def _mass_notes(compared: _Compared) -> list[str]:
    """Say of each LLM in each column how probable any valid answer was to it."""
    return [
        f"{column.name}: {note}"
        for place, column in enumerate(compared.ground.columns)
        for note in mass_notes([row for rows in compared.of_column(place).values() for row in rows])
    ]


def _keep(job: Job, compared: _Compared, console: Console, added: Sequence[combining.Contribution]) -> Matrix:
    """Compute the matrix, write it in three forms, and print it."""
    ground = compared.ground
    matrix = measure(compared.filled, compared.rows, ground.columns, detector=transfer_rows.DETECTOR)
    notes = [*ground.notes, *_notes(compared), *_mass_notes(compared)]
    text = tables.markdown(matrix, notes)
    if added:
        text += "\n" + tables.contributions_markdown(added)
    question = {
        "columns": {
            name: results.column_question(each) for name, each in zip(matrix.columns, ground.facts, strict=True)
        },
        "systems": {row.name: dict(row.identity) for row in compared.rows},
    }
    folder = results.free_folder(job.folder, ("matrix.json", "matrix.md", "matrix.png"), question)
    facts = {
        "cells": tables.plain(matrix),
        "contributions": tables.plain_contributions(added),
        "columns": dict(zip(matrix.columns, ground.facts, strict=True)),
        "runs": {str(folder): recipe.model_dump(mode="json") for folder, recipe in compared.trained.items()},
        "notes": notes,
        "question": question,
        "git": storage.git_revision(),
        "versions": storage.versions(),
    }
    storage.write_json(folder / "matrix.json", facts)
    storage.write_atomic(folder / "matrix.md", text)
    tables.heat_map(matrix, folder / "matrix.png")
    console.print(Markdown(text))
    say(console, f"kept in {folder}")
    return matrix
