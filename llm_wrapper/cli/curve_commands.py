"""What `curve` does: P@1 against training samples, from one run's checkpoints and from trainings on nested subsets.

runs/curve/<name>/   samples-<n>/   a run of its own on the first n samples of one order; never trained twice
                     predictions/<column>/<system>-<digest>.parquet   never asked twice; see `evaluation.transfer`
                     curve.json  curve.md  curve.png    of other points: in <name>-<digest>/
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from llm_wrapper import results, runs, storage
from llm_wrapper.cli.train import run_training
from llm_wrapper.errors import RecipeError, RunError, listed, shell_word
from llm_wrapper.evaluation import transfer_columns
from llm_wrapper.evaluation.calibration import mass_notes
from llm_wrapper.evaluation.curve import Curve, Point, measure, systems_of
from llm_wrapper.evaluation.transfer import fill
from llm_wrapper.recipe import Recipe
from llm_wrapper.report import curve as drawn
from llm_wrapper.terminal import say

__all__ = ["Job", "curve"]

_OWN = "a training of its own each"
_NOT_DRAWN = "image_in_an_evaluation_split"
"""What is left out for this reason does not count towards `train.limit`."""
_FEW = 3


@dataclass(frozen=True)
class Job:
    """What to draw.

    Attributes:
        folder: Where everything goes; what is there is used again.
        recipe: That of the run, where there is one; trainings on subsets differ from it in `train.limit` alone.
        run: A finished run, whose checkpoints are points.
        sizes: Numbers of samples, each of which is trained on; smaller subsets are parts of the larger ones.
        split: If not the one that the recipe evaluates on.
        limit: Evaluate on the first samples only.
    """

    folder: Path
    recipe: Recipe
    run: Path | None = None
    sizes: Sequence[int] = ()
    split: str | None = None
    limit: int | None = None


def curve(job: Job, console: Console) -> Curve:
    """Train what is not trained yet, ask what is not asked yet, and keep curve.json, curve.md and curve.png.

    Raises:
        RecipeError: If there is neither a run nor a size.
        RunError: If the run is not finished, or a subset was trained by another recipe.
        CacheError: If detections are missing; the message names the command.
    """
    if job.run is None and not job.sizes:
        raise RecipeError('name a run, or sizes: make curve RUN=runs/.. or make curve SAMPLES="100 300 1000"')
    points = _of_run(job.run) if job.run else []
    points += list(_of_sizes(job, console))
    ground = transfer_columns.load([job.recipe], {job.folder: job.recipe}, split=job.split, limit=job.limit)
    (column,) = ground.columns
    rows = systems_of(points, job.recipe)
    filled = fill(rows, ground.columns, job.folder / "predictions")
    found = measure(filled, points, column)
    question = {
        "column": results.column_question(ground.facts[0]),
        "systems": {row.name: dict(row.identity) for row in rows},
    }
    masses = mass_notes([row for cell in filled.values() if not isinstance(cell, str) for row in cell[1]])
    _keep(job, found, [*ground.notes, *masses], {"data": ground.facts[0], "question": question}, console)
    return found


def _of_run(run: Path) -> list[Point]:
    series = f"one training, so far ({run.name})"
    return [
        Point(f"step-{each.num_steps}", series, each.num_samples, each.num_steps, each.folder)
        for each in runs.intermediate_adapters(run)
    ]


def _of_sizes(job: Job, console: Console) -> Iterator[Point]:
    """Yield a point for each size, smallest first; a size that already takes all there is is the last one."""
    for size in sorted(set(job.sizes)):
        folder = job.folder / f"samples-{size}"
        recipe = job.recipe.model_copy(update={"train": job.recipe.train.model_copy(update={"limit": size})})
        if runs.is_complete(folder):
            _require_same(folder, recipe)
            say(console, f"{folder} is trained already")
        else:
            run_training(recipe, folder, console)
        facts = runs.facts_of(folder)
        steps = facts["training"]["steps"]
        yield Point(folder.name, _OWN, facts["samples"], steps, folder / "adapter")
        counted = {reason: count for reason, count in facts["left_out"].items() if reason != _NOT_DRAWN}
        if facts["samples"] + sum(counted.values()) < size:
            say(console, f"there are fewer than {size} samples: larger sizes are left out")
            return


def _require_same(folder: Path, recipe: Recipe) -> None:
    parts = [each.model_dump(mode="json") for each in (runs.recipe_of(folder), recipe.in_folder(folder))]
    found = storage.describe_differences(parts[0], parts[1], places=("there", "now"))
    if found:
        raise RunError(
            listed(
                f"{folder} was trained by another recipe; name another curve with --name, or "
                f"rm -r {shell_word(folder)}",
                found,
            )
        )


def _notes(job: Job, found: Curve) -> list[str]:
    """Say what a reader could take a difference for that is not the number of samples."""
    train, points = job.recipe.train, [each.point for each in found.points]
    notes = [
        f"{point.name}: {point.num_steps} steps in all, while the learning rate rises for train.warmup_steps="
        f"{train.warmup_steps} of them"
        for point in points
        if point.series == _OWN and point.num_steps <= 2 * train.warmup_steps
    ]
    if job.run and sum(point.series != _OWN for point in points) < _FEW:
        notes.append(
            f"{job.run} keeps few adapters of the way: it was trained with train.save_steps={train.save_steps} "
            f"train.keep_adapters={train.keep_adapters}"
        )
    return notes


def _keep(job: Job, found: Curve, notes: Sequence[str], known: dict[str, Any], console: Console) -> None:
    """Write the curve in three forms, and print it; one of other points beside it."""
    folder = results.free_folder(job.folder, ("curve.json", "curve.md", "curve.png"), known["question"])
    notes = [*notes, *_notes(job, found)]
    text = drawn.markdown(found, notes)
    facts = {
        **drawn.plain(found),
        **known,
        "recipe": job.recipe.model_dump(mode="json"),
        "run": str(job.run) if job.run else None,
        "notes": notes,
        "git": storage.git_revision(),
        "versions": storage.versions(),
    }
    storage.write_json(folder / "curve.json", facts)
    storage.write_atomic(folder / "curve.md", text)
    drawn.plot(found, folder / "curve.png")
    console.print(Markdown(text))
    say(console, f"kept in {folder}")
