"""Data sets: annotations -> samples."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from llm_wrapper.datasets import grefcoco, hub, jsonl, long_expressions, refer, talk2car, toy
from llm_wrapper.datasets.base import AnnotatedObject, Dataset
from llm_wrapper.errors import RecipeError, nearest
from llm_wrapper.recipe import DataSection

__all__ = ["READERS", "AnnotatedObject", "Dataset", "load"]

READERS: dict[str, Callable[..., Dataset]] = {
    "refer": refer.load,
    "hub_refs": hub.load_refs,
    "hub_objects": hub.load_objects,
    "grefcoco": grefcoco.load,
    "hc_refloco": long_expressions.load_hc_refloco,
    "ref_l4": long_expressions.load_ref_l4,
    "talk2car": talk2car.load,
    "jsonl": jsonl.load,
    "toy": toy.load,
}
"""Reader name -> function (root, split, **settings) -> Dataset."""


def load(section: DataSection, split: str) -> Dataset:
    """Read one split of the data set that a recipe names.

    Raises:
        RecipeError: If the reader is unknown, or does not take one of the settings.
        DataError: If the annotations are missing or wrong.
    """
    if section.reader not in READERS:
        names = ", ".join(READERS)
        raise RecipeError(f"no data reader is named {section.reader!r}{nearest(section.reader, [*READERS])} ({names})")
    _require_settings(section)
    try:
        return READERS[section.reader](section.folder, split, **section.settings)
    except TypeError as error:
        raise RecipeError(f"data.settings of {section.name!r} do not fit reader {section.reader!r}: {error}") from error


def _require_settings(section: DataSection) -> None:
    """Check the names of a section's settings, which are the named arguments of its reader."""
    arguments = inspect.signature(READERS[section.reader]).parameters.values()
    known = {argument.name: argument for argument in arguments if argument.kind is inspect.Parameter.KEYWORD_ONLY}
    problems = [f"it has no {key!r}{nearest(key, [*known])}" for key in section.settings if key not in known]
    problems += [
        f"{name!r} is missing"
        for name, argument in known.items()
        if argument.default is inspect.Parameter.empty and name not in section.settings
    ]
    if problems:
        raise RecipeError(
            f"data.settings of {section.name!r} do not fit reader {section.reader!r}: {'; '.join(problems)} "
            f"(its settings: {', '.join(known) or 'none'})"
        )
