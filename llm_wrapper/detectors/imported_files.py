"""COCO results and our own JSONL, read row by row; see `imported` for what they look like."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from llm_wrapper.datasets import rows
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detectors.base import Level, detections_from_raw
from llm_wrapper.errors import DataError, listed
from llm_wrapper.records import Detections

__all__ = [
    "Answers",
    "BoxFormat",
    "Item",
    "KnownIds",
    "Named",
    "Raw",
    "Scored",
    "answers_of",
    "category_names",
    "coco_results",
    "json_lines",
]

BoxFormat = Literal["xyxy", "xywh"]
Raw = tuple[list[float], str, float | None]
"""A box (xyxy pixels), its label and score."""

_SOURCE = "imported"


@dataclass(frozen=True, slots=True)
class Answers:
    """The detections of a file, by image id or by sample id."""

    level: Level
    found: Mapping[str, Detections]


@dataclass(frozen=True, slots=True)
class KnownIds:
    """What a row can be about: image ids, sample ids, and image ids by file name (several where a name is shared)."""

    images: frozenset[str]
    samples: frozenset[str]
    files: Mapping[str, frozenset[str]]

    @staticmethod
    def of(dataset: Dataset) -> KnownIds:
        """Gather the ids of a data set; its annotated objects may name images of other splits, too."""
        files: dict[str, set[str]] = {}
        images = dataset.images()
        for sample in images:
            if sample.image_path is not None:
                for name in (sample.image_path, Path(sample.image_path).name):
                    files.setdefault(name, set()).add(sample.image_id)
        return KnownIds(
            frozenset(sample.image_id for sample in images) | frozenset(dataset.objects or ()),
            frozenset(sample.sample_id for sample in dataset.samples),
            {name: frozenset(found) for name, found in files.items()},
        )

    def find(self, row: Named, where: str, problems: list[str]) -> str | None:
        """Return the image id or sample id that a row is about, or `None` after noting that it is unknown."""
        if row.file_name is not None:
            images = self.files.get(row.file_name, frozenset())
            if len(images) == 1:
                return next(iter(images))
            what = (
                "names no image of the data set" if not images else f"is shared by images {', '.join(sorted(images))}"
            )
            problems.append(f"{where}: file_name {row.file_name} {what}: use image_id")
        elif row.sample_id is not None:
            if row.sample_id in self.samples:
                return row.sample_id
            problems.append(f"{where}: sample id {row.sample_id} is not in the data set")
        elif row.image_id in self.images:
            return row.image_id
        else:
            problems.append(f"{where}: image id {row.image_id} is not in the data set")
        return None


class Named(BaseModel):
    """A row that says in one way which image or expression it is about."""

    image_id: rows.Id | None = None
    file_name: str | None = None
    sample_id: rows.Id | None = None

    @model_validator(mode="after")
    def _has_one_id(self) -> Named:
        if [self.image_id, self.file_name, self.sample_id].count(None) != 2:
            raise ValueError("give exactly one of 'image_id', 'file_name' and 'sample_id'")
        return self

    @property
    def level(self) -> Level:
        """What the row's answer depends on."""
        return "image" if self.sample_id is None else "expression"


class Scored(BaseModel):
    """A row with a score, which must be in 0..1 if it is a number at all."""

    model_config = ConfigDict(extra="forbid")

    @field_validator("score", check_fields=False)
    @classmethod
    def _is_probability(cls, score: float | None) -> float | None:
        if score is not None and math.isfinite(score) and not 0.0 <= score <= 1.0:
            raise ValueError(f"score {score} is not in 0..1")
        return score


class _Result(Scored):
    model_config = ConfigDict(extra="ignore")  # segmentations and areas of other tools

    image_id: rows.Id
    category_id: rows.Id
    bbox: rows.FourNumbers
    score: rows.Number


class Item(Scored):
    """One detection of our own JSONL."""

    box: rows.FourNumbers | None = None
    bbox_xywh: rows.FourNumbers | None = None
    label: str = Field(min_length=1)
    score: rows.Number | None

    @model_validator(mode="after")
    def _has_one_box(self) -> Item:
        if (self.box is None) == (self.bbox_xywh is None):
            raise ValueError("give exactly one of 'box' and 'bbox_xywh'")
        return self

    def raw(self, box_format: BoxFormat) -> Raw:
        """Return what it says, with `box` read as `box_format`."""
        if self.bbox_xywh is not None:
            return _xyxy(self.bbox_xywh, "xywh"), self.label, self.score
        return _xyxy(self.box or [], box_format), self.label, self.score


class _Line(Named):
    model_config = ConfigDict(extra="forbid")

    detections: list[Any]


def coco_results(
    content: list[Any], categories: Path, *, box_format: BoxFormat, ids: KnownIds, problems: list[str]
) -> Answers:
    """Read COCO results; what is wrong with its rows is appended to `problems`, counted from row 0."""
    names = category_names(categories)
    raw: dict[str, list[Raw]] = {}
    for number, value in enumerate(content):
        row = rows.validated(_Result, value, where=f"row {number}", problems=problems)
        if row is None:
            continue
        if row.image_id not in ids.images:
            problems.append(f"row {number}: image id {row.image_id} is not in the data set")
        if row.category_id not in names:
            problems.append(f"row {number}: category {row.category_id} has no name in {categories.name}")
        label = names.get(row.category_id, "")
        raw.setdefault(row.image_id, []).append((_xyxy(row.bbox, box_format), label, row.score))
    return answers_of(raw, {"image": ""}, problems)


def json_lines(path: Path, *, box_format: BoxFormat, ids: KnownIds, problems: list[str]) -> Answers:
    """Read our own JSONL; what is wrong with its lines is appended to `problems`, counted from line 1."""
    values, damaged = rows.read_json_lines(path)
    problems.extend(damaged)
    raw: dict[str, list[Raw]] = {}
    first: dict[str, str] = {}
    levels: dict[Level, str] = {}
    for number, value in values:
        where = f"line {number}"
        line = rows.validated(_Line, value, where=where, problems=problems)
        if line is None:
            continue
        levels.setdefault(line.level, where)
        items = list(_items(line, where, box_format, problems))
        key = ids.find(line, where, problems)
        if key is not None and first.setdefault(key, where) != where:
            problems.append(f"{where}: {key} was answered in {first[key]} already")
        elif key is not None:
            raw[key] = items
    return answers_of(raw, levels, problems)


def _items(line: _Line, where: str, box_format: BoxFormat, problems: list[str]) -> Iterable[Raw]:
    for place, value in enumerate(line.detections):
        item = rows.validated(Item, value, where=f"{where}: detections[{place}]", problems=problems)
        if item is not None:
            yield item.raw(box_format)


def answers_of(raw: Mapping[str, Iterable[Raw]], levels: Mapping[Level, str], problems: list[str]) -> Answers:
    """Make the answers of what was read by image id or sample id.

    Args:
        raw: The boxes of each image or sample.
        levels: Where a row of each level stood first, in the file's order; two levels are a problem.
        problems: What is wrong is appended.
    """
    if len(levels) > 1:
        where = list(levels.values())[-1]
        problems.append(f"{where}: some lines name a sample, others an image: choose one")
    level: Level = "expression" if "expression" in levels else "image"
    return Answers(level, {key: detections_from_raw(found, _SOURCE) for key, found in raw.items()})


def _xyxy(values: list[float], box_format: BoxFormat) -> list[float]:
    if box_format == "xyxy":
        return values
    left, top, width, height = values
    return [left, top, left + width, top + height]


def category_names(path: Path) -> dict[str, str]:
    """Read the names of categories by id, from {"categories": [{id, name}]} or from {id: name}.

    Raises:
        DataError: If the file holds neither.
    """
    content = rows.read_json(path)
    is_coco = isinstance(content, dict) and isinstance(content.get("categories"), list)
    try:
        if is_coco:
            entries = TypeAdapter(list[_Category]).validate_python(content["categories"])
            return {entry.id: entry.name for entry in entries}
        return TypeAdapter(dict[rows.Id, str]).validate_python(content)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
        raise DataError(listed(f"{path} names no categories: write {{id: name}}", found)) from error


class _Category(BaseModel):
    id: rows.Id
    name: str
