"""Data sets: annotations -> samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llm_wrapper.datasets import jsonl, refer, toy
from llm_wrapper.datasets.base import AnnotatedObject, Dataset
from llm_wrapper.errors import RecipeError
from llm_wrapper.recipe import DataSection, nearest

__all__ = ["READERS", "AnnotatedObject", "Dataset", "load"]

READERS: dict[str, Callable[..., Dataset]] = {"refer": refer.load, "jsonl": jsonl.load, "toy": toy.load}
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
    try:
        return READERS[section.reader](Path(section.root), split, **section.settings)
    except TypeError as error:
        raise RecipeError(f"data.settings of {section.name!r} do not fit reader {section.reader!r}: {error}") from error
