"""The verb that draws P@1 against training samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llm_wrapper import runs
from llm_wrapper.errors import RecipeError
from llm_wrapper.verbs import curve_commands
from llm_wrapper.verbs.options import Data, DataRoot, Limit, Llm, Overrides, Split, Train, Vlm, chosen

__all__ = ["add_to"]

_console = Console()


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command()(curve)


def curve(  # noqa: PLR0913 (each is an option of the verb)
    overrides: Overrides = None,
    *,
    run: Annotated[
        Path | None, typer.Option(help="A finished run: its checkpoints are points, and its recipe is used.")
    ] = None,
    samples: Annotated[
        list[int] | None, typer.Option(min=1, help="Train on so many samples; repeat it for several sizes.")
    ] = None,
    vlm: Vlm = "toy",
    llm: Llm = "smollm2",
    data: Data = "toy",
    data_root: DataRoot = None,
    train: Train = "default",
    split: Split = None,
    limit: Limit = None,
    name: Annotated[str | None, typer.Option(help="Of the folder in runs/curve, if not by what is compared.")] = None,
) -> None:
    """Draw P@1 against training samples: from a run's checkpoints, from trainings on nested subsets, or from both."""
    if run is not None and (overrides or data_root):
        raise RecipeError(f"the recipe of {run} is used as it is; leave out --data-root and {overrides or 'overrides'}")
    names = {"vlm": vlm, "llm": llm, "data": data, "train": train}
    recipe = runs.recipe_of(run) if run else chosen(names, overrides, data_root)
    folder = runs.ROOT / "curve" / (name or (run.name if run else f"{vlm}-{llm}-{data}"))
    curve_commands.curve(curve_commands.Job(folder, recipe, run, samples or [], split, limit), _console)
