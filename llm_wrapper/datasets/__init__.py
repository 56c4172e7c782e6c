"""Data sets: annotations -> samples."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module

from llm_wrapper.datasets.base import AnnotatedObject, Dataset
from llm_wrapper.errors import RecipeError, nearest
from llm_wrapper.recipe import DataSection

__all__ = ["READERS", "AnnotatedObject", "Dataset", "find_reader", "load_dataset"]

READERS = {
    "refer": "llm_wrapper.datasets.refer:load_refer",
    "grefcoco": "llm_wrapper.datasets.refer:load_grefcoco",
    "hub_refs": "llm_wrapper.datasets.hub:load_hub_refs",
    "hub_objects": "llm_wrapper.datasets.hub:load_hub_objects",
    "hc_refloco": "llm_wrapper.datasets.long_expressions:load_hc_refloco",
    "ref_l4": "llm_wrapper.datasets.long_expressions:load_ref_l4",
    "talk2car": "llm_wrapper.datasets.long_expressions:load_talk2car",
    "jsonl": "llm_wrapper.datasets.jsonl:load_jsonl",
    "toy": "llm_wrapper.datasets.jsonl:load_toy",
}
"""Reader name -> "module:function"; imported on first use. A function takes (root, split, **settings)."""


def load_dataset(section: DataSection, split: str) -> Dataset:
    """Read one split of the data set that a recipe names.

    Raises:
        RecipeError: If the reader is unknown, or does not take one of the settings.
        DataError: If the annotations are missing or wrong.
    """
    read = find_reader(section.reader)
    # The settings are the keyword-only arguments of the reader.
    arguments = inspect.signature(read).parameters.values()
    known = {argument.name: argument for argument in arguments if argument.kind is inspect.Parameter.KEYWORD_ONLY}
    problems = [f"it has no {key!r}{nearest(key, [*known])}" for key in section.settings if key not in known]
    problems += [
        f"{name!r} is missing"
        for name, argument in known.items()
        if argument.default is inspect.Parameter.empty and name not in section.settings
    ]
    refused = f"data.settings of {section.name!r} do not fit reader {section.reader!r}"
    if problems:
        raise RecipeError(f"{refused}: {'; '.join(problems)} (its settings: {', '.join(known) or 'none'})")
    try:
        return read(section.folder, split, **section.settings)
    except TypeError as error:
        raise RecipeError(f"{refused}: {error}") from error


def find_reader(name: str) -> Callable[..., Dataset]:
    """Import the reader of a name; raise a RecipeError if there is none."""
    if name not in READERS:
        raise RecipeError(f"no data reader is named {name!r}{nearest(name, [*READERS])} ({', '.join(READERS)})")
    module, _, function = READERS[name].partition(":")
    reader: Callable[..., Dataset] = getattr(import_module(module), function)
    return reader
