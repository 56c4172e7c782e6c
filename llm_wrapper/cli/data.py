"""`check-data`: count the splits of a data set and list what is wrong with it."""

from __future__ import annotations

import typer
from rich.console import Console

from llm_wrapper import datasets
from llm_wrapper.cli import options
from llm_wrapper.cli.options import (
    Data,
    DataRoot,
    Overrides,
    choose_recipe,
)
from llm_wrapper.datasets import Dataset
from llm_wrapper.datasets import check as checks
from llm_wrapper.errors import DataError
from llm_wrapper.recipe import Recipe
from llm_wrapper.terminal import say

__all__ = ["check_data", "check_data_verb"]


_SPLITS = ("train", "val", "test", "testA", "testB")


def check_data_verb(overrides: Overrides = None, *, data: Data = None, data_root: DataRoot = None) -> None:
    """Check a data set: print counts, missing images, boxes outside, duplicates and leaks, with remedies."""
    recipe = choose_recipe(options.names_by_kind("toy", "rule", data), overrides, data_root)
    if not check_data(recipe, options.CONSOLE):
        raise typer.Exit(1)


def check_data(recipe: Recipe, console: Console) -> bool:
    """Print what is in each split and what is wrong with it; tell whether all is well."""
    found: list[Dataset] = []
    unread: dict[str, DataError] = {}
    for split in _SPLITS:
        try:
            dataset = datasets.load_dataset(recipe.data, split)
        except DataError as error:
            unread[split] = error
            continue
        # A file without splits is the same file under every name, and no leak from one split to another.
        if dataset.samples and all(dataset.samples != other.samples for other in found):
            found.append(dataset)
    if not found:
        nothing = DataError(f"{recipe.data.root} has no sample in any of {', '.join(_SPLITS)}")
        raise next(iter(unread.values()), nothing)
    report = checks.check_datasets(found)
    say(console, checks.format_check(report))
    for split, problem in unread.items():
        if split in (recipe.data.train_split, recipe.data.eval_split):
            say(console, f"error: split {split} cannot be read: {problem}")
    return report.ok and not unread.keys() & {recipe.data.train_split, recipe.data.eval_split}
