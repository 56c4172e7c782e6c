"""The verb that draws P@1 against training samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llm_wrapper import curve_commands, runs
from llm_wrapper.commands import recipes_folder
from llm_wrapper.errors import RecipeError
from llm_wrapper.recipe import Recipe, compose

__all__ = ["add_to"]

_console = Console()


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command()(curve)


def curve(  # noqa: PLR0913 (each is an option of the verb)
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, the value in YAML.")] = None,
    *,
    run: Annotated[
        Path | None, typer.Option(help="A finished run: its checkpoints are points, and its recipe is used.")
    ] = None,
    samples: Annotated[
        list[int] | None, typer.Option(min=1, help="Train on so many samples; repeat it for several sizes.")
    ] = None,
    vlm: Annotated[str, typer.Option(help="Detector: a file of recipes/vlm; a+b for both together.")] = "toy",
    llm: Annotated[str, typer.Option(help="LLM: a file of recipes/llm.")] = "smollm2",
    data: Annotated[str, typer.Option(help="Data set: a file of recipes/data.")] = "toy",
    data_root: Annotated[
        Path | None, typer.Option(help="Where the data set lies, if not where its recipe says.")
    ] = None,
    train: Annotated[str, typer.Option(help="Training: a file of recipes/train.")] = "default",
    split: Annotated[str | None, typer.Option(help="Split, if not the recipe's.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Evaluate on the first samples only; the table says so.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the folder in runs/curve, if not by what is compared.")] = None,
) -> None:
    """Draw P@1 against training samples: from a run's checkpoints, from trainings on nested subsets, or from both."""
    if run is not None and (overrides or data_root):
        raise RecipeError(f"the recipe of {run} is used as it is; leave out --data-root and {overrides or 'overrides'}")
    recipe = runs.recipe_of(run) if run else _recipe((vlm, llm, data, train), data_root, overrides or [])
    folder = runs.ROOT / "curve" / (name or (run.name if run else f"{vlm}-{llm}-{data}"))
    curve_commands.curve(curve_commands.Job(folder, recipe, run, samples or [], split, limit), _console)


def _recipe(names: tuple[str, str, str, str], data_root: Path | None, overrides: list[str]) -> Recipe:
    # In quotes of JSON, as a path may hold what YAML would read.
    root = [f"data.root={json.dumps(str(data_root), ensure_ascii=False)}"] if data_root else []
    return compose(
        recipes_folder(), dict(zip(("vlm", "llm", "data", "train"), names, strict=True)), [*root, *overrides]
    )
