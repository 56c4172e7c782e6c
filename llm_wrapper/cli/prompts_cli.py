"""The verbs that search for a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_wrapper import runs
from llm_wrapper.cli import search_commands
from llm_wrapper.cli.options import Data, DataRoot, Llm, Overrides, Vlm, chosen, name_of
from llm_wrapper.terminal import open_console

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Let an LLM search for a better prompt, without any training.")

_console = open_console()
_SEARCH = "glov"


@app.command()
def search(  # noqa: PLR0913 (each is an option of the verb)
    overrides: Overrides = None,
    *,
    search: Annotated[
        str | None, typer.Option(help=f"How to search: a file of recipes/search; {_SEARCH} unless --run says it.")
    ] = None,
    vlm: Vlm = None,
    llm: Llm = None,
    data: Data = None,
    data_root: DataRoot = None,
    train: Annotated[str | None, typer.Option(help="Format of the prompt: a file of recipes/train.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Where to begin: a file of recipes/prompt, or the path of one.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Folder, if not one in runs/prompts."),
    ] = None,
) -> None:
    """Search for a prompt on one slice of the training data, confirm it on another; the same command resumes."""
    begun = run if run and (run / "recipe.yaml").is_file() else None
    names = {"vlm": vlm, "llm": llm, "data": data, "train": train, "prompt": prompt}
    names["search"] = search or (None if begun else _SEARCH)
    recipe = chosen(names, overrides, data_root, run=begun)
    folder = run or runs.RUNS / "prompts" / f"{name_of(names)}-{names['search']}"
    search_commands.run_search(recipe, folder, _console)


@app.command()
def history(
    run: Annotated[Path, typer.Argument(help="Folder of a search, finished or not.")],
    *,
    most: Annotated[int | None, typer.Option(min=1, help="Show so many of the best prompts.")] = None,
) -> None:
    """Show all prompts of a search by rank, what was refused and why, and draw best so far."""
    search_commands.history(run, _console, most=most)
