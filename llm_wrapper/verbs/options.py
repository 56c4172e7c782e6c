"""Options that several verbs of the command line have, each worded once, and the recipe that they choose."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from llm_wrapper.recipe import Recipe, compose
from llm_wrapper.recipe_files import folder as recipes_folder

__all__ = ["Data", "DataRoot", "Limit", "Llm", "Overrides", "Split", "Train", "Vlm", "assigned", "chosen", "root"]

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

    Raises:
        RecipeError: If a file is missing, or the recipe is wrong; every problem is listed.
    """
    named = {kind: name for kind, name in names.items() if name is not None}
    return compose(recipes_folder(), named, [*root(data_root), *(overrides or [])])
