"""Options that several verbs of the command line have, each worded once, and the recipe that they choose."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_wrapper.errors import RecipeError
from llm_wrapper.keys import allow_typed_keys
from llm_wrapper.recipe import Recipe, compose
from llm_wrapper.recipe_files import PaperRow, read_paper_row
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
    "add_paper",
    "assigned",
    "chosen",
    "extra_words",
    "root",
]

_WORDS = "LLM_WRAPPER_ARGS"
"""Environment variable with more words of the command line; `make` hands its ARGS over in it."""
_NOT_OF_A_ROW = {("transfer", "llm"), ("export", "llm")}
"""Options that are called as a choice of a row is, and mean something else."""

_row: ContextVar[tuple[str, ...]] = ContextVar("_row", default=())
"""Overrides of the row that stands before the verb."""

Vlm = Annotated[str, typer.Option(help="Detector: a file of recipes/vlm; a+b for both together.")]
Llm = Annotated[str, typer.Option(help="LLM: a file of recipes/llm.")]
Data = Annotated[str, typer.Option(help="Data set: a file of recipes/data.")]
DataRoot = Annotated[Path | None, typer.Option(help="Where the data set lies, if not where its recipe says.")]
Train = Annotated[str, typer.Option(help="Training: a file of recipes/train.")]
Split = Annotated[str | None, typer.Option(help="Split, if not the recipe's.")]
Limit = Annotated[int | None, typer.Option(min=1, help="First samples only; the report says so.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, the value in YAML.")]


def assigned(key: str, path: Path) -> str:
    """Return an override that sets a path, quoted: a `#` or `: ` in it would mean something in YAML."""
    return f"{key}={json.dumps(str(path), ensure_ascii=False)}"


def root(data_root: Path | None) -> list[str]:
    """Return the override that says where data lies, if it is said."""
    return [assigned("data.root", data_root)] if data_root else []


def chosen(names: Mapping[str, str | None], overrides: Sequence[str] | None, data_root: Path | None = None) -> Recipe:
    """Compose the recipe of the files that were named, by kind; a user's own override wins over `data_root`.

    Those of a row of `--paper` come first. They are the word of a file: only what was typed allows a key.

    Raises:
        RecipeError: If a file is missing, or the recipe is wrong; every problem is listed.
    """
    named = {kind: name for kind, name in names.items() if name is not None}
    allow_typed_keys(overrides or [])
    return compose(recipes_folder(), named, [*_row.get(), *root(data_root), *(overrides or [])])


def extra_words() -> list[str]:
    """Return the words of `LLM_WRAPPER_ARGS`, split as a shell splits them; nothing in them is run or replaced.

    Raises:
        RecipeError: If a quotation mark is not closed.
    """
    # What this process starts has its own command line.
    text = os.environ.pop(_WORDS, "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise RecipeError(f"ARGS={text!r} cannot be split into words: {error}") from error


def add_paper(app: typer.Typer) -> None:
    """Add the option that stands before the verb: a row of the paper's tables, whose choices are defaults of any verb."""
    app.callback()(_common)


def _common(
    context: typer.Context,
    paper: Annotated[
        str | None, typer.Option(help="A row of the paper's tables: a file of recipes/paper. What is typed wins.")
    ] = None,
) -> None:
    _row.set(())
    if paper is None:
        return
    row = read_paper_row(recipes_folder(), paper)
    _row.set(row.overrides)
    context.default_map = _defaults(context.command, row)


def _defaults(command: Any, row: PaperRow) -> dict[str, Any]:
    """Return what a row gives to the options of a verb, or, by name, of each verb of a group."""
    if hasattr(command, "commands"):
        return {name: _defaults(inner, row) for name, inner in command.commands.items()}
    return {
        option.name: [value] if option.multiple else value
        for option in command.params
        if (value := row.names.get(option.name)) and (command.name, option.name) not in _NOT_OF_A_ROW
    }
