"""The verb that compares training with everything that goes without, on one split with one LLM."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from llm_wrapper import runs
from llm_wrapper.cli import methods_commands, options
from llm_wrapper.cli.options import Data, DataRoot, Limit, Llm, Overrides, Split, Vlm, chosen, name_of, named, root
from llm_wrapper.errors import RecipeError, listed
from llm_wrapper.evaluation import methods
from llm_wrapper.evaluation.methods import Method
from llm_wrapper.recipe import LLMSection, Recipe, prompt_of
from llm_wrapper.storage import folder_name

__all__ = ["add_to"]

_FORMAT = "prompt.format=relations"
_EPOCHS = "train.epochs=10"
"""Some hundred expressions, once each, are fewer steps than the learning rate needs to rise."""

_FIRST = 50
_OWN = {"train.limit": "--labelled", "search.slice": "--labelled", "search.confirm": "--labelled",
        "search.proposer": "--proposer", "data.eval_split": "--split", "train.method": "--method"}  # fmt: skip
"""Keys that a row sets by itself, and the option that says so."""


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("compare-methods", rich_help_panel="Studies")(compare_methods)


def compare_methods(  # noqa: PLR0913 (each is an option of the verb)
    overrides: Overrides = None,
    *,
    method: Annotated[
        list[str] | None, typer.Option(help=f"A row; repeat it for several. There are: {', '.join(methods.METHODS)}.")
    ] = None,
    labelled: Annotated[int, typer.Option(min=6, help="Labelled training expressions that a row may look at.")] = 200,
    compute: Annotated[
        int | None, typer.Option(min=1, help="Tokens through the LLM that a row shall take, for all it does.")
    ] = None,
    vlm: Vlm = None,
    llm: Llm = None,
    data: Data = None,
    data_root: DataRoot = None,
    train: Annotated[str | None, typer.Option(help="How LoRA is trained: a file of recipes/train.")] = None,
    proposer: Annotated[
        str | None, typer.Option(help="LLM that proposes prompts, if not the one that is asked: a file of recipes/llm.")
    ] = None,
    split: Split = None,
    limit: Limit = None,
    name: Annotated[str | None, typer.Option(help="Of the folder in runs/methods, if not by what is compared.")] = None,
) -> None:
    """Compare prompting, prompt search and training of one LLM at the same budget, in one table with a plot."""
    where = [*root(data_root), *([f"data.eval_split={json.dumps(split)}"] if split else [])]
    choices = named({"vlm": vlm, "llm": llm, "data": data, "train": train})
    rows, more = methods.chosen(method or []), overrides or []
    _require_of_use(rows, more)
    chosen({**choices, "search": "glov"}, [*where, *more])  # a wrong key is told before a row drops it
    recipes = {
        each.name: _recipe(each, choices, labelled, ([*where, _FORMAT], [key for key in more if _is_of(each, key)]))
        for each in rows
    }
    if proposer:
        section = chosen({**choices, "llm": proposer}, where).llm
        recipes = {each: _proposed(recipe, section) for each, recipe in recipes.items()}
    folder = runs.RUNS / "methods" / folder_name(name or f"{name_of(choices)}-{labelled}", "--name")
    found = methods_commands.compare(methods_commands.Job(folder, recipes, limit, compute), options.CONSOLE)
    if any(row.problem for row in found.rows):
        raise typer.Exit(1)


def _require_of_use(rows: Sequence[Method], overrides: Sequence[str]) -> None:
    """Refuse what a row sets by itself, and what no row looks at."""
    keys = {override: override.partition("=")[0] for override in overrides}
    problems = [f"{override}: say it by {_OWN[key]}" for override, key in keys.items() if key in _OWN]
    problems += [
        f"{override}: it is for none of {', '.join(row.name for row in rows)}"
        for override, key in keys.items()
        if key not in _OWN and not any(_is_of(row, override) for row in rows)
    ]
    if problems:
        raise RecipeError(listed("these overrides cannot be used", problems))


def _is_of(row: Method, override: str) -> bool:
    """Tell whether an override is for a row: what a search, a training or a prompt sets goes to such rows alone."""
    section, _, key = override.partition("=")[0].partition(".")
    if section == "search":
        return row.kind == "search"
    if section == "train":
        return row.kind == "train" or key in ("seed", "min_candidates")  # these decide what examples there are
    if section != "prompt" or key == "format":
        return True
    known = prompt_of(row.file) if row.kind == "prompt" else {}
    return key in known or (key == "embedder" and "retrieve" in known)


def _recipe(
    row: Method, choices: Mapping[str, str], labelled: int, overrides: tuple[Sequence[str], Sequence[str]]
) -> Recipe:
    """Compose the recipe of a row; of the overrides the first are ours, and the others are the user's and win."""
    names = {**choices, "train": "default"}
    budget = [f"train.limit={labelled}"]
    if row.kind == "train":
        names["train"] = choices["train"] if row.name == "lora" else row.file
        budget.append(_EPOCHS)
    elif row.kind == "search":
        names["search"] = row.file
        search, confirm = methods.shares(labelled)
        budget += [f"search.slice={search}", f"search.confirm={confirm}", f"search.first={min(_FIRST, search)}"]
    elif row.kind == "prompt":
        names["prompt"] = row.file
    return chosen(names, [*overrides[0], *budget, *overrides[1]])


def _proposed(recipe: Recipe, proposer: LLMSection) -> Recipe:
    if recipe.search is None:
        return recipe
    return recipe.model_copy(update={"search": recipe.search.model_copy(update={"proposer": proposer})})
