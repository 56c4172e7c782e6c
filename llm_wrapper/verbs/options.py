"""Options that several verbs of the command line have, each worded once, and the recipe that they choose.

An option that is not given is `None`: only then can the recipe of a run, or the default, take its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from llm_wrapper import artifacts, runs
from llm_wrapper.errors import RunError, nearest
from llm_wrapper.names import folder_name
from llm_wrapper.recipe import Recipe, compose
from llm_wrapper.recipe_files import folder as recipes_folder

__all__ = [
    "Data",
    "DataRoot",
    "Limit",
    "Llm",
    "Overrides",
    "Split",
    "Train",
    "Vlm",
    "assigned",
    "chosen",
    "name_of",
    "named",
    "overridden",
    "require_run",
    "root",
]

DEFAULTS = {"vlm": "toy", "llm": "smollm2", "data": "toy", "train": "default"}
"""What is taken where neither the command line nor a run names a file of a kind."""


def _name(value: str | None) -> str | None:
    """Refuse a split that could leave the folder of its results."""
    return None if value is None else folder_name(value, "--split")


_DEFAULT = "If neither this nor a run says it:"

Vlm = Annotated[
    str | None, typer.Option(help=f"Detector: a file of recipes/vlm; a+b for both. {_DEFAULT} {DEFAULTS['vlm']}.")
]
Llm = Annotated[str | None, typer.Option(help=f"LLM: a file of recipes/llm. {_DEFAULT} {DEFAULTS['llm']}.")]
Data = Annotated[str | None, typer.Option(help=f"Data set: a file of recipes/data. {_DEFAULT} {DEFAULTS['data']}.")]
DataRoot = Annotated[Path | None, typer.Option(help="Where the data set lies, if not where its recipe says.")]
Train = Annotated[str | None, typer.Option(help=f"Training: a file of recipes/train. {_DEFAULT} {DEFAULTS['train']}.")]
Split = Annotated[str | None, typer.Option(help="Split, if not the recipe's.", callback=_name)]
Limit = Annotated[int | None, typer.Option(min=1, help="First samples only; the report says so.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, the value in YAML.")]


def assigned(key: str, path: Path) -> str:
    """Return an override that sets a path, quoted: a `#` or `: ` in it would mean something in YAML."""
    return f"{key}={json.dumps(str(path), ensure_ascii=False)}"


def root(data_root: Path | None) -> list[str]:
    """Return the override that says where data lies, if it is said."""
    return [assigned("data.root", data_root)] if data_root else []


def named(names: Mapping[str, str | None]) -> dict[str, str]:
    """Return the files that are named by kind, and for kinds that are not the defaults, where there is one."""
    found = {kind: DEFAULTS.get(kind) if name is None else name for kind, name in names.items()}
    return {kind: name for kind, name in found.items() if name is not None}


def name_of(names: Mapping[str, str | None]) -> str:
    """Return the names of detector, LLM and data, those that there are, as one name for a folder of results."""
    found = named(names)
    return "-".join(found[kind] for kind in ("vlm", "llm", "data") if kind in found)


def chosen(
    names: Mapping[str, str | None],
    overrides: Sequence[str] | None,
    data_root: Path | None = None,
    *,
    run: Path | None = None,
) -> Recipe:
    """Compose the recipe that a command means: what the command line says, else what the run says, else the default.

    Args:
        names: Kind -> name of the file that the command line names, or None where it names none.
        overrides: `section.key=value`; they win over everything.
        data_root: Where the data lies.
        run: Gives all that is not named.

    Raises:
        RecipeError: If a file is missing, or the recipe is wrong; every problem is listed.
        RunError: If the run is no run folder.
    """
    changes = [*root(data_root), *(overrides or [])]
    if run is None:
        return compose(recipes_folder(), named(names), changes)
    require_run(run)
    given = {kind: name for kind, name in names.items() if name is not None}
    return compose(recipes_folder(), given, changes, base=runs.recipe_of(run))


def require_run(folder: Path) -> None:
    """Refuse a folder that is no run, and say which runs there are.

    Raises:
        RunError: If it is none.
    """
    if (folder / "recipe.yaml").is_file():
        return
    there = [str(path.parent) for path in sorted(runs.ROOT.glob("*/recipe.yaml"))]
    listed = f"there are: {', '.join(there)}" if there else "there is none yet; make one with: llm-wrapper train"
    raise RunError(f"{folder} is no run folder{nearest(str(folder), there)} ({listed})")


_ANSWERS = {"detector", "candidates", "ensemble", "data", "prompt", "llm"}


def overridden(run: Path, recipe: Recipe) -> list[str]:
    """Say what the command line changes of a run's recipe that decides answers, one sentence each."""
    parts = [each.model_dump(mode="json", include=_ANSWERS) for each in (runs.recipe_of(run), recipe)]
    found = artifacts.differences(parts[0], parts[1], places=(f"in {run}", "here"))
    return [f"not as the run was trained: {each}" for each in found]
