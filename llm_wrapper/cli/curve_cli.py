"""The verb that draws P@1 against training samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_wrapper import runs
from llm_wrapper.cli import curve_commands, options
from llm_wrapper.cli.options import Data, DataRoot, Limit, Llm, Overrides, Split, Train, Vlm, chosen, name_of
from llm_wrapper.errors import RecipeError
from llm_wrapper.storage import folder_name

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command(rich_help_panel="Studies")(curve)


def curve(  # noqa: PLR0913 (each is an option of the verb)
    overrides: Overrides = None,
    *,
    run: Annotated[
        Path | None, typer.Option(help="A finished run: its checkpoints are points, and its recipe is used.")
    ] = None,
    samples: Annotated[
        list[int] | None, typer.Option(min=1, help="Train on so many samples; repeat it for several sizes.")
    ] = None,
    vlm: Vlm = None,
    llm: Llm = None,
    data: Data = None,
    data_root: DataRoot = None,
    train: Train = None,
    split: Split = None,
    limit: Limit = None,
    name: Annotated[str | None, typer.Option(help="Of the folder in runs/curve, if not by what is compared.")] = None,
) -> None:
    """Draw P@1 against training samples: from a run's checkpoints, from trainings on nested subsets, or from both."""
    names = {"vlm": vlm, "llm": llm, "data": data, "train": train}
    given = [f"--{kind} {value}" for kind, value in names.items() if value is not None]
    if run is not None and (more := [*given, *(["--data-root"] if data_root else []), *(overrides or [])]):
        raise RecipeError(f"the recipe of {run} is used as it is; leave out {', '.join(more)}")
    recipe = chosen(names, overrides, data_root, run=run)
    label = folder_name(name or (run.resolve().name if run else name_of(names)), "--name")
    job = curve_commands.Job(runs.RUNS / "curve" / label, recipe, run, samples or [], split, limit)
    curve_commands.curve(job, options.CONSOLE)
