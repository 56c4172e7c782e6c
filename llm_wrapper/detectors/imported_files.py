"""The two formats of files with detections, read row by row; see `imported` for what they look like."""

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

__all__ = ["Answers", "BoxFormat", "KnownIds", "coco_results", "json_lines"]

BoxFormat = Literal["xyxy", "xywh"]
_Raw = tuple[list[float], str, float | None]
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


class _Scored(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @field_validator("score", check_fields=False)
    @classmethod
    def _is_probability(cls, score: float | None) -> float | None:
        if score is not None and math.isfinite(score) and not 0.0 <= score <= 1.0:
            raise ValueError(f"score {score} is not in 0..1")
        return score


class _Result(_Scored):
    model_config = ConfigDict(extra="ignore")  # segmentations and areas of other tools

    image_id: rows.Id
    category_id: rows.Id
    bbox: rows.FourNumbers
    score: rows.Number


class _Item(_Scored):
    box: rows.FourNumbers | None = None
    bbox_xywh: rows.FourNumbers | None = None
    label: str = Field(min_length=1)
    score: rows.Number | None

    @model_validator(mode="after")
    def _has_one_box(self) -> _Item:
        if (self.box is None) == (self.bbox_xywh is None):
            raise ValueError("give exactly one of 'box' and 'bbox_xywh'")
        return self

    def raw(self, box_format: BoxFormat) -> _Raw:
        if self.bbox_xywh is not None:
            return _xyxy(self.bbox_xywh, "xywh"), self.label, self.score
        return _xyxy(self.box or [], box_format), self.label, self.score


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")

    image_id: rows.Id | None = None
    file_name: str | None = None
    sample_id: rows.Id | None = None
    detections: list[Any]

    @model_validator(mode="after")
    def _has_one_id(self) -> _Line:
        if [self.image_id, self.file_name, self.sample_id].count(None) != 2:
            raise ValueError("give exactly one of 'image_id', 'file_name' and 'sample_id'")
        return self


def coco_results(path: Path, categories: Path, *, box_format: BoxFormat, ids: KnownIds, problems: list[str]) -> Answers:
    """Read COCO results; what is wrong with its rows is appended to `problems`, counted from row 0."""
    content = rows.read_json(path)
    if not isinstance(content, list):
        raise DataError(f"{path} holds a {type(content).__name__}, not the list of results that COCO tools write.")
    names = _category_names(categories)
    raw: dict[str, list[_Raw]] = {}
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
    return Answers("image", {key: detections_from_raw(found, _SOURCE) for key, found in raw.items()})


def json_lines(path: Path, *, box_format: BoxFormat, ids: KnownIds, problems: list[str]) -> Answers:
    """Read our own JSONL; what is wrong with its lines is appended to `problems`, counted from line 1."""
    values, damaged = rows.read_json_lines(path)
    problems.extend(damaged)
    found: dict[str, Detections] = {}
    first: dict[str, int] = {}
    levels: dict[Level, int] = {}
    for number, value in values:
        line = rows.validated(_Line, value, where=f"line {number}", problems=problems)
        if line is None:
            continue
        levels.setdefault("image" if line.sample_id is None else "expression", number)
        raw = list(_items(line, number, box_format, problems))
        key = _key(line, number, ids, problems)
        if key is not None and first.setdefault(key, number) != number:
            problems.append(f"line {number}: {key} was answered in line {first[key]} already")
        elif key is not None:
            found[key] = detections_from_raw(raw, _SOURCE)
    if len(levels) > 1:
        problems.append(f"line {max(levels.values())}: some lines name a sample, others an image: choose one")
    return Answers("expression" if "expression" in levels else "image", found)


def _items(line: _Line, number: int, box_format: BoxFormat, problems: list[str]) -> Iterable[_Raw]:
    for place, value in enumerate(line.detections):
        item = rows.validated(_Item, value, where=f"line {number}: detections[{place}]", problems=problems)
        if item is not None:
            yield item.raw(box_format)


def _key(line: _Line, number: int, ids: KnownIds, problems: list[str]) -> str | None:
    """Return the image id or sample id that a line is about, or `None` after noting that it is unknown."""
    if line.file_name is not None:
        images = ids.files.get(line.file_name, frozenset())
        if len(images) == 1:
            return next(iter(images))
        what = "names no image of the data set" if not images else f"is shared by images {', '.join(sorted(images))}"
        problems.append(f"line {number}: file_name {line.file_name} {what}: use image_id")
    elif line.sample_id is not None:
        if line.sample_id in ids.samples:
            return line.sample_id
        problems.append(f"line {number}: sample id {line.sample_id} is not in the data set")
    elif line.image_id in ids.images:
        return line.image_id
    else:
        problems.append(f"line {number}: image id {line.image_id} is not in the data set")
    return None


def _xyxy(values: list[float], box_format: BoxFormat) -> list[float]:
    if box_format == "xyxy":
        return values
    left, top, width, height = values
    return [left, top, left + width, top + height]


def _category_names(path: Path) -> dict[str, str]:
    """Read the names of categories by id, from {"categories": [{id, name}]} or from {id: name}."""
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
