"""Run folders: their names, what makes one complete, and how a later command finds the right one.

runs/<vlm>-<llm>-<data>-<utc>-<git>/   recipe.yaml    resolved, written before anything starts
                                       train_log.jsonl  checkpoints/  adapter/
                                       manifest.json  written last: its presence means that training is complete
                                       predictions-<split>.parquet  report-<split>.json
"""

from __future__ import annotations

import glob
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llm_wrapper import artifacts, readers
from llm_wrapper.errors import RunError
from llm_wrapper.recipe import Recipe, load_resolved

__all__ = ["ROOT", "facts_of", "finish", "is_complete", "latest", "new_name", "open_run", "recipe_of", "write_recipe"]

ROOT = Path("runs")
_MANIFEST = "manifest.json"
_RECIPE = "recipe.yaml"
_STAMP = f"{'[0-9]' * 8}T{'[0-9]' * 6}Z"


def new_name(prefix: str) -> str:
    """Return `<prefix>-<utc>-<git>`, a name of its own for a new run."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    revision = artifacts.git_revision()
    return "-".join([prefix, stamp, revision[:7] if revision else "nogit"])


def is_complete(folder: Path) -> bool:
    """Tell whether the training of a run has ended."""
    return (folder / _MANIFEST).is_file()


def recipe_of(folder: Path) -> Recipe:
    """Return the resolved recipe of a run.

    Raises:
        RunError: If the folder is no run.
    """
    if not (folder / _RECIPE).is_file():
        raise RunError(f"{folder} is no run folder: it has no {_RECIPE}. Runs are listed by: ls {ROOT}")
    return load_resolved(folder / _RECIPE)


def facts_of(folder: Path) -> dict[str, Any]:
    """Return the manifest of a complete run."""
    found: dict[str, Any] = artifacts.read_json(folder / _MANIFEST)
    return found


def open_run(folder: Path, recipe: Recipe) -> Path:
    """Make a run folder, or open an interrupted one of the same recipe to go on with it.

    Raises:
        RunError: If the run is complete, or of another recipe; nothing in it is touched.
    """
    if is_complete(folder):
        raise RunError(f"{folder} exists and is complete. Name another with --run, or remove it: rm -r {folder}")
    if (folder / _RECIPE).is_file():
        if recipe_of(folder) != recipe.in_folder(folder):
            raise RunError(
                f"{folder} was begun with another recipe (see {folder / _RECIPE}). Go on with that one, or name "
                "another folder with --run"
            )
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists and is no run folder. Name another with --run")
    write_recipe(folder, recipe)
    return folder


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write a recipe into a folder, with the template of its own that it may have: that may change elsewhere.

    Raises:
        RunError: If another template lies there.
    """
    there = recipe.in_folder(folder)
    source, target = Path(recipe.prompt.format), Path(there.prompt.format)
    if source != target:
        text = readers.read_text(source)
        if target.exists() and readers.read_text(target) != text:
            raise RunError(f"{target} is another template than {source}: name another folder with --run")
        artifacts.write_atomic(target, text)
    artifacts.write_atomic(folder / _RECIPE, there.to_yaml())


def finish(folder: Path, facts: dict[str, Any]) -> None:
    """Write the manifest: the facts of the run, the code's revision and the packages' versions."""
    common = {"git": artifacts.git_revision(), "versions": artifacts.versions()}
    artifacts.write_json(folder / _MANIFEST, {**facts, **common})


def latest(prefix: str) -> Path | None:
    """Return the newest complete run that `new_name` named with a prefix, by its time stamp."""
    return max((path for path in ROOT.glob(f"{glob.escape(prefix)}-{_STAMP}-*") if is_complete(path)), default=None)
