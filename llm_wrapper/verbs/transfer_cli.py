"""The verbs that compare many detectors, data sets and adapters at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llm_wrapper import runs
from llm_wrapper.recipe import Recipe
from llm_wrapper.verbs import transfer_commands
from llm_wrapper.verbs.options import Data, Limit, Overrides, Split, chosen, root

__all__ = ["add_to"]

_console = Console()

Adapters = Annotated[list[Path] | None, typer.Option("--run", help="Folder of a finished run; repeat it for several.")]
DataRoot = Annotated[Path | None, typer.Option(help="Where the data sets lie, if not where their recipes say.")]
Llm = Annotated[str | None, typer.Option(help="A further LLM, asked untrained: a file of recipes/llm.")]
Train = Annotated[str, typer.Option(help="How that LLM is prompted: a file of recipes/train.")]


def add_to(app: typer.Typer) -> None:
    """Register the verbs."""
    app.command()(transfer)
    app.command()(ensemble)


def transfer(  # noqa: PLR0913 (each is an option of the verb)
    overrides: Overrides = None,
    *,
    run: Adapters = None,
    vlm: Annotated[list[str] | None, typer.Option(help="Detector, or a+b; repeat it for several.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Data set; repeat it for several.")] = None,
    data_root: DataRoot = None,
    llm: Llm = None,
    train: Train = "default",
    split: Split = None,
    limit: Limit = None,
    name: Annotated[
        str | None, typer.Option(help="Of the folder in runs/transfer, if not by what is compared.")
    ] = None,
) -> None:
    """Evaluate adapters on detectors and data sets that they were not trained on, in one matrix with a heat map."""
    vlms, sets = list(dict.fromkeys(vlm or ["toy"])), list(dict.fromkeys(data or ["toy"]))
    more = [*root(data_root), *(overrides or [])]
    recipes = [_recipe(each, "rule", one, train, more) for one in sets for each in vlms]
    folder = runs.ROOT / "transfer" / (name or f"{'_'.join(vlms)}-{'_'.join(sets)}")
    untrained = _recipe(vlms[0], llm, sets[0], train, more) if llm else None
    transfer_commands.transfer(transfer_commands.Job(folder, recipes, run or [], untrained, split, limit), _console)


def ensemble(  # noqa: PLR0913 (each is an option of the verb)
    overrides: Overrides = None,
    *,
    vlm: Annotated[str, typer.Option(help="Detectors, joined by +: files of recipes/vlm.")] = "toy+toy-gray",
    run: Adapters = None,
    data: Data = "toy",
    data_root: DataRoot = None,
    llm: Llm = None,
    train: Train = "default",
    split: Split = None,
    limit: Limit = None,
    name: Annotated[
        str | None, typer.Option(help="Of the folder in runs/ensemble, if not by what is compared.")
    ] = None,
) -> None:
    """Compare an ensemble of detectors with its parts, and several adapters with their mean and vote."""
    more = [*root(data_root), *(overrides or [])]
    folder = runs.ROOT / "ensemble" / (name or f"{vlm}-{data}")
    untrained = _recipe(vlm, llm, data, train, more) if llm else None
    recipes = [_recipe(vlm, "rule", data, train, more)]
    transfer_commands.ensemble(transfer_commands.Job(folder, recipes, run or [], untrained, split, limit), _console)


def _recipe(vlm: str, llm: str, data: str, train: str, overrides: Sequence[str]) -> Recipe:
    return chosen({"vlm": vlm, "llm": llm, "data": data, "train": train}, overrides)
