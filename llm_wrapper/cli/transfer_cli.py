"""The verbs that compare many detectors, data sets and adapters at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from llm_wrapper import runs, storage
from llm_wrapper.cli import options, transfer_commands
from llm_wrapper.cli.options import Data, Limit, Overrides, Split, chosen, require_run, root
from llm_wrapper.errors import RecipeError
from llm_wrapper.recipe import Recipe
from llm_wrapper.storage import folder_name

__all__ = ["add_to"]

Adapters = Annotated[list[Path] | None, typer.Option("--run", help="Folder of a finished run; repeat it for several.")]
DataRoot = Annotated[Path | None, typer.Option(help="Where the data sets lie, if not where their recipes say.")]
Llm = Annotated[str | None, typer.Option(help="A further LLM, asked untrained: a file of recipes/llm.")]
Train = Annotated[str | None, typer.Option(help="How that LLM is prompted: a file of recipes/train.")]
Name = Annotated[str | None, typer.Option(help="Of the folder of results, if not by what is compared.")]

_ENSEMBLE = "toy+toy-gray"


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command(rich_help_panel="Studies")(transfer)
    app.command(rich_help_panel="Studies")(ensemble)


def transfer(  # noqa: PLR0913 (each is an option of the verb)
    overrides: Overrides = None,
    *,
    run: Adapters = None,
    vlm: Annotated[
        list[str] | None, typer.Option(help="Detector, or a+b; repeat it for several. By default those of the runs.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Data set; repeat it for several. By default those of the runs.")
    ] = None,
    data_root: DataRoot = None,
    llm: Llm = None,
    train: Train = None,
    split: Split = None,
    limit: Limit = None,
    name: Name = None,
) -> None:
    """Evaluate adapters on detectors and data sets that they were not trained on, in one matrix with a heat map."""
    more = [*root(data_root), *(overrides or [])]
    recipes = _columns(vlm or [], data or [], run or [], more)
    label = "_".join(dict.fromkeys(each.vlm for each in recipes))
    sets = "_".join(dict.fromkeys(each.data.name for each in recipes))
    folder = runs.RUNS / "transfer" / folder_name(name or f"{label}-{sets}", "--name")
    untrained = _untrained(recipes[0], llm, train, overrides)
    job = transfer_commands.Job(folder, recipes, run or [], untrained, split, limit)
    transfer_commands.transfer(job, options.CONSOLE)


def ensemble(  # noqa: PLR0913 (each is an option of the verb)
    overrides: Overrides = None,
    *,
    vlm: Annotated[
        str | None,
        typer.Option(help=f"Detectors, joined by +: files of recipes/vlm. By default the run's, else {_ENSEMBLE}."),
    ] = None,
    run: Adapters = None,
    data: Data = None,
    data_root: DataRoot = None,
    llm: Llm = None,
    train: Train = None,
    split: Split = None,
    limit: Limit = None,
    name: Name = None,
) -> None:
    """Compare an ensemble of detectors with its parts, and several adapters with their mean and vote."""
    more = [*root(data_root), *(overrides or [])]
    vlms = [vlm] if vlm else [] if run else [_ENSEMBLE]
    recipes = _columns(vlms, [data] if data else [], run or [], more)
    several = [each for each in recipes if len(each.detectors()) > 1]
    recipes = several or recipes
    if len(recipes) > 1:
        names = ", ".join(f"{each.vlm} / {each.data.name}" for each in recipes)
        raise RecipeError(f"the runs are of several detectors and data sets ({names}): name one by --vlm and --data")
    folder = runs.RUNS / "ensemble" / folder_name(name or f"{recipes[0].vlm}-{recipes[0].data.name}", "--name")
    untrained = _untrained(recipes[0], llm, train, overrides)
    job = transfer_commands.Job(folder, recipes, run or [], untrained, split, limit)
    transfer_commands.ensemble(job, options.CONSOLE)


def _columns(
    vlms: Sequence[str], sets: Sequence[str], folders: Sequence[Path], overrides: Sequence[str]
) -> list[Recipe]:
    """Return a recipe for each detector and data set: those that are named, else those of the runs.

    Overrides win, and each pair is there once.
    """
    for folder in folders:
        require_run(folder)
    found: dict[str, Recipe] = {}
    nothing: list[None] = [None]
    for one in sets or nothing:
        for run in folders or nothing:
            for each in vlms or nothing:
                recipe = chosen({"vlm": each, "llm": None, "data": one, "train": None}, overrides, run=run)
                found.setdefault(_column_key(recipe), recipe)
    return list(found.values())


def _column_key(recipe: Recipe) -> str:
    values = recipe.model_dump(mode="json", include={"detector", "candidates", "ensemble", "data"})
    return storage.digest_value({**values, "seed": recipe.train.seed})


def _untrained(recipe: Recipe, llm: str | None, train: str | None, overrides: Sequence[str] | None) -> Recipe | None:
    """Return the recipe of an LLM that is asked as it is, about the first column."""
    if llm is None:
        return None
    own = chosen({"vlm": None, "llm": llm, "data": None, "train": train}, overrides)
    return recipe.model_copy(update={"llm": own.llm, "prompt": own.prompt, "train": own.train})
