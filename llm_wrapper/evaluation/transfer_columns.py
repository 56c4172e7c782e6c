"""The columns of a transfer matrix: detectors on data, without the images that one of the adapters was trained on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_wrapper import datasets, storage
from llm_wrapper.datasets import Dataset, leaks
from llm_wrapper.detections.samples import PreparedSplit, load_prepared_split
from llm_wrapper.errors import DataError
from llm_wrapper.evaluation.transfer import Column
from llm_wrapper.recipe import DataSection, Recipe

__all__ = ["Ground", "load"]

_log = logging.getLogger(__name__)


@dataclass
class Ground:
    """The columns with what they were made of, and what has to be said of them."""

    columns: list[Column] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def load(
    recipes: Sequence[Recipe], trained: Mapping[Path, Recipe], *, split: str | None = None, limit: int | None = None
) -> Ground:
    """Load a column for each recipe, without the images that one of the adapters was trained on.

    So that all rows of a column are about the same samples, they are left out for every row.

    Args:
        recipes: Their detectors and data, each pair once.
        trained: Run folder -> recipe of an adapter.
        split: If not the one that a data set is evaluated on.
        limit: The first samples only.

    Raises:
        CacheError: If detections are missing; the message names the command.
        DataError: If a column has nothing to compare with.
    """
    ground = Ground()
    read: dict[str, Dataset | None] = {}
    asked: dict[str, Dataset] = {}
    for recipe in recipes:
        data, of = recipe.data, split or recipe.data.eval_split
        found = load_prepared_split(recipe, data, of, limit=limit, dataset=asked.get(data.model_dump_json()))
        asked[data.model_dump_json()] = found.dataset
        name = f"{recipe.vlm} / {recipe.data.name}"
        seen: set[str] = set()
        for folder, each in trained.items():
            shared = _trained_on(each, recipe.data, found.dataset, read)
            if shared is None:
                ground.notes.append(f"{name}: the images that {folder} was trained on could not be compared")
            seen |= shared or set()
        samples = [prepared for prepared in found.samples if prepared.sample.image_id not in seen]
        left_out = len(found.samples) - len(samples)
        if left_out:
            ground.notes.append(f"{name}: {left_out} expressions left out, an adapter was trained on their images")
        if not any(prepared.sample.target for prepared in samples):
            raise DataError(f"{name}: no expression with a box is left to compare with ({left_out} left out)")
        ground.notes += [note for note in found.dataset.notes() if note not in ground.notes]
        if limit:
            ground.notes.append(f"{name}: the first {limit} expressions only")
        facts = _facts(recipe, found, limit=limit, left_out=left_out)
        if any(name == column.name for column in ground.columns):  # such as two files of boxes
            name = f"{name} ({storage.digest_value(facts)[:8]})"
        ground.columns.append(Column(name, samples))
        ground.facts.append(facts)
    return ground


def _facts(recipe: Recipe, found: PreparedSplit, *, limit: int | None, left_out: int) -> dict[str, Any]:
    return {
        "vlm": recipe.vlm,
        "data": recipe.data.model_dump(mode="json"),
        "split": found.dataset.split,
        "limit": limit,
        "candidates": [each.model_dump(mode="json") for each in recipe.detectors()],
        "ensemble_nms_iou": recipe.ensemble.nms_iou,
        "detections": found.identity,
        "left_out_as_trained_on": left_out,
    }


def _trained_on(
    trained: Recipe, data: DataSection, dataset: Dataset, read: dict[str, Dataset | None]
) -> set[str] | None:
    """Return the images of a column that a run was trained on; `None` where its data cannot be read any more."""
    sections = trained.training_data()
    # Training leaves out the images of every evaluation split of the data sets that it is made of.
    held_out = dataset.has_splits and dataset.split in (data.eval_split, *leaks.HELD_OUT)
    if held_out and any(_same_data(each, data) for each in sections):
        return set()
    shared: set[str] = set()
    for section in sections:
        key = section.model_dump_json()
        if key not in read:
            read[key] = _read(section)
        found = read[key]
        if found is None:
            return None
        shared |= leaks.find_shared_images((data, dataset), (section, found))
    return shared


def _same_data(a: DataSection, b: DataSection) -> bool:
    return (a.reader, a.settings, a.root.resolve()) == (b.reader, b.settings, b.root.resolve())


def _read(section: DataSection) -> Dataset | None:
    try:
        return datasets.load_dataset(section, section.train_split)
    except DataError as error:
        _log.warning("%s %s cannot be read: %s", section.name, section.train_split, error)
        return None
