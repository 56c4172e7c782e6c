"""Files of boxes that other programs wrote -> entries: the name of an image or a sample, and its boxes as written.

- `.jsonl`: one image or one expression a line, named by image_id, file_name or sample_id, with
  `detections`: a list of {box (xyxy) or bbox_xywh, label, score (a number in 0..1, or null)}; `box` may be an object
  {xmin, ymin, xmax, ymax} as the pipelines of transformers write it. Or one box a line, with the image's name.
- `.json`, COCO results: a list of {image_id, category_id, bbox (xywh), score}, such as ultralytics' predictions.json.
- `.json` of the field: MAttNet's list, ReCLIP's {image id: [[x, y, w, h], ..]}, REFER's {"dets": ..}, a response of
  Roboflow ({"predictions": ..}).
- `.json` and `.csv` of supervision's `JSONSink` and `CSVSink`, see `supervision_files`.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator, model_validator

from llm_wrapper import readers
from llm_wrapper.box_formats import BoxFormat
from llm_wrapper.box_values import parse_box
from llm_wrapper.datasets import rows
from llm_wrapper.errors import DataError

__all__ = [
    "BoxFileNotes",
    "Entry",
    "NamedRow",
    "RawBox",
    "RawDetection",
    "ScoredRow",
    "read_json_boxes",
    "read_line_boxes",
]

_LINE_KEYS = ("image_id", "file_name", "image", "sample_id", "detections")
_LABEL_KEYS = ("label", "category_name", "class_name", "name", "class")
_ITEM_KEYS = ("box", "bbox_xywh", "score", "confidence", *_LABEL_KEYS)

_ROUNDING = 1e-4
"""How far above 1 or below 0 a score may lie: sums of float16 do."""


@dataclass(frozen=True, slots=True)
class RawBox:
    """One box of a file.

    Attributes:
        values: Four numbers.
        box_format: The format of its key; `None` where only the setting or the kind of file has one.
        label: A text, empty where there is none, or the id of a category.
        score: In 0..1, NaN where the file says that.
    """

    values: list[float]
    box_format: BoxFormat | None
    label: str | int
    score: float | None


@dataclass(frozen=True, slots=True)
class Entry:
    """Boxes of one image or sample; `names` are spellings of one image, the likeliest first, or none is known.

    `is_whole` is true where these are all of its boxes, so that a second entry contradicts the first.
    """

    where: str
    names: tuple[str, ...]
    sample_id: str | None
    boxes: list[RawBox]
    is_whole: bool = False


@dataclass(slots=True)
class BoxFileNotes:
    """The problems of a file, and facts about its kind.

    Attributes:
        problems: One sentence each, with the place.
        unread: How many rows have each key that is not read.
        default: The format of boxes that neither a key nor the setting declares.
        is_from_one: Whether category ids of such a file count from 1.
    """

    problems: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    default: BoxFormat = "xyxy"
    is_from_one: bool = False


class NamedRow(BaseModel):
    """A row about one image or one expression; an image may be named by id and by file name."""

    image_id: rows.Id | None = None
    file_name: str | None = Field(None, validation_alias=AliasChoices("file_name", "image"))
    sample_id: rows.Id | None = None

    @model_validator(mode="after")
    def _has_one_id(self) -> NamedRow:
        if (self.sample_id is None) == (not self.names):
            raise ValueError("give exactly one of 'image_id', 'file_name' and 'sample_id'")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The spellings of the image."""
        return tuple(name for name in (self.image_id, self.file_name) if name is not None)


class ScoredRow(BaseModel):
    """A row with a score, which must be in 0..1 if it is a finite number; other keys are not read."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    @field_validator("score", check_fields=False)
    @classmethod
    def _is_probability(cls, score: float | None) -> float | None:
        if score is None or not math.isfinite(score):
            return score
        if not -_ROUNDING <= score <= 1.0 + _ROUNDING:
            raise ValueError(f"score {score} is not in 0..1")
        return min(max(score, 0.0), 1.0)


class RawDetection(ScoredRow):
    """One detection: a box by one of its keys, with a label and a score where there are any."""

    model_config = ConfigDict(extra="allow")

    box: rows.FourNumbers | None = None
    bbox_xywh: rows.FourNumbers | None = None
    label: Annotated[int, Field(strict=True)] | str | None = Field(None, validation_alias=AliasChoices(*_LABEL_KEYS))
    score: rows.Number | None = Field(None, validation_alias=AliasChoices("score", "confidence"))

    @model_validator(mode="after")
    def _has_one_box(self) -> RawDetection:
        if (self.box is None) == (self.bbox_xywh is None):
            raise ValueError("give exactly one of 'box' and 'bbox_xywh'")
        return self


class _Line(NamedRow):
    model_config = ConfigDict(extra="allow")

    detections: list[Any]


class _Result(ScoredRow):
    """A COCO result. ultralytics names its image twice, by id (the stem) and by file name."""

    image_id: rows.Id | None = None
    file_name: str | None = None
    category_id: int | str
    bbox: rows.FourNumbers
    score: rows.Number | None


class _ReferDetection(ScoredRow):
    image_id: rows.Id
    box: dict[str, rows.Number]
    label: str = Field("", validation_alias=AliasChoices("label", "category_name"))
    score: rows.Number | None = None


class _RoboflowPrediction(ScoredRow):
    x: rows.Number
    y: rows.Number
    width: rows.Number
    height: rows.Number
    label: str = Field("", alias="class")
    score: rows.Number | None = Field(None, alias="confidence")
    image_path: str | None = None


def read_line_boxes(path: Path, notes: BoxFileNotes) -> list[Entry]:
    """Read JSON lines: one image or sample a line, or one box a line; places count from line 1."""
    values, damaged = readers.read_json_lines(path, nan=True)
    notes.problems.extend(damaged)
    return [entry for number, value in values for entry in _of_value(value, f"line {number}", notes)]


def read_json_boxes(content: Any, path: Path, notes: BoxFileNotes) -> list[Entry]:
    """Read one JSON value that is no sink of supervision; rows of a list count from row 0.

    Raises:
        DataError: If it is of no kind that is known.
    """
    if isinstance(content, list):
        read = _of_result if any(isinstance(value, dict) and "bbox" in value for value in content) else _of_value
        return [entry for index, value in enumerate(content) for entry in read(value, f"row {index}", notes)]
    if isinstance(content, dict) and isinstance(content.get("dets"), list):
        return list(_of_refer(content["dets"], notes))
    if isinstance(content, dict) and isinstance(content.get("predictions"), list):
        return list(_of_roboflow(content["predictions"], notes))
    if isinstance(content, dict) and content and all(isinstance(value, list) for value in content.values()):
        entries = [_of_image(name, value, notes) for name, value in content.items()]
        if all(entry is not None for entry in entries):
            return [entry for entry in entries if entry is not None]
    kind = f"an object with the keys {', '.join(list(content)[:5])}" if isinstance(content, dict) else "no list"
    raise DataError(
        f"{path} holds {kind}, none of the forms of detections that are read: COCO results (a list), "
        '{"dets": [..]}, {"predictions": [..]} or {image id: [[x, y, width, height], ..]}.'
    )


def _of_value(value: Any, where: str, notes: BoxFileNotes) -> Iterator[Entry]:
    """Yield the entry of one line or row, by the keys that it has."""
    keys = value.keys() if isinstance(value, dict) else set()
    if "detections" not in keys and "bbox" in keys:
        yield from _of_result(value, where, notes)
    elif "detections" not in keys and keys & {"box", "bbox_xywh"}:
        yield from _of_flat(value, where, notes)
    elif not _has_typos(value, _LINE_KEYS, where, notes):
        line = rows.validate_row(_Line, value, where=where, problems=notes.problems)
        if line is not None:
            notes.unread.update(list(line.model_extra or ()))
            items = _items(line.detections, f"{where}: detections", notes)
            yield Entry(where, line.names, line.sample_id, items, is_whole=True)


def _items(values: Sequence[Any], where: str, notes: BoxFileNotes) -> list[RawBox]:
    items = (_item(value, f"{where}[{index}]", notes) for index, value in enumerate(values))
    return [box for box in items if box is not None]


def _item(value: Any, where: str, notes: BoxFileNotes) -> RawBox | None:
    """Return one detection; its problems are noted."""
    box_format: BoxFormat | None = None
    if _has_typos(value, _ITEM_KEYS, where, notes):
        return None
    if isinstance(value, dict) and isinstance(value.get("box"), dict):
        try:
            box = parse_box(value["box"])
        except ValueError as error:
            notes.problems.append(f"{where}: {error}")
            return None
        value, box_format = {**value, "box": box.numbers}, box.usual
    item = rows.validate_row(RawDetection, value, where=where, problems=notes.problems)
    if item is None:
        return None
    notes.unread.update(list(item.model_extra or ()))
    label = item.label if isinstance(item.label, int) else (item.label or "").strip()
    if item.bbox_xywh is not None:
        return RawBox(item.bbox_xywh, "xywh", label, item.score)
    return RawBox(item.box or [], box_format, label, item.score)


def _of_result(value: Mapping[str, Any], where: str, notes: BoxFileNotes) -> Iterator[Entry]:
    """Yield a COCO result, whose `bbox` is xywh and whose category ids count from 1."""
    notes.default, notes.is_from_one = "xywh", True
    row = rows.validate_row(_Result, value, where=where, problems=notes.problems)
    if row is None:
        return
    names = tuple(name for name in (row.image_id, row.file_name) if name is not None)
    category = row.category_id
    if isinstance(category, str) and category.isdecimal():
        category = int(category)
    if not names:
        notes.problems.append(f"{where}: names no image: give 'image_id' or 'file_name'")
    elif isinstance(category, str):
        notes.problems.append(f"{where}: category_id {category!r} is not a number")
    else:
        yield Entry(where, names, None, [RawBox(row.bbox, None, category, row.score)])


def _of_flat(value: Mapping[str, Any], where: str, notes: BoxFileNotes) -> Iterator[Entry]:
    """Yield one box with its image, as MAttNet (`box` is xywh there) and others write them."""
    about = {name: value[name] for name in ("image_id", "file_name", "image", "sample_id") if name in value}
    item = {key: each for key, each in value.items() if key not in about}
    if value.keys() & {"det_id", "h5_id"} and isinstance(item.get("box"), list):
        item["bbox_xywh"] = item.pop("box")
    named = rows.validate_row(NamedRow, about, where=where, problems=notes.problems)
    box = _item(item, where, notes)
    if named is not None and box is not None:
        yield Entry(where, named.names, named.sample_id, [box])


def _of_refer(values: Sequence[Any], notes: BoxFileNotes) -> Iterator[Entry]:
    """Yield the entries of REFER's {"dets": [{box: {x, y, w, h}, image_id, object_id, score}]}."""
    for index, value in enumerate(values):
        where = f"dets[{index}]"
        row = rows.validate_row(_ReferDetection, value, where=where, problems=notes.problems)
        box = None if row is None else _item({"box": row.box, "label": row.label, "score": row.score}, where, notes)
        if row is not None and box is not None:
            yield Entry(where, (row.image_id,), None, [box])


def _of_roboflow(values: Sequence[Any], notes: BoxFileNotes) -> Iterator[Entry]:
    """Yield the entries of a Roboflow response, which is about one picture and rarely names it; x, y are a center."""
    if not values:
        yield Entry("predictions", (), None, [])
    for index, value in enumerate(values):
        where = f"predictions[{index}]"
        row = rows.validate_row(_RoboflowPrediction, value, where=where, problems=notes.problems)
        if row is not None:
            box = RawBox([row.x, row.y, row.width, row.height], "cxcywh", row.label.strip(), row.score)
            yield Entry(where, (row.image_path,) if row.image_path else (), None, [box])


def _of_image(name: str, values: Sequence[Any], notes: BoxFileNotes) -> Entry | None:
    """Return the entry of one image of ReCLIP's {image id: [[x, y, w, h], ..]}; `None` where it is something else."""
    where = f"key {name!r}"
    if values and all(isinstance(value, dict) and value.keys() & {"box", "bbox_xywh"} for value in values):
        return Entry(where, (name,), None, _items(values, where, notes), is_whole=True)
    boxes = []
    for index, value in enumerate(values):
        if not isinstance(value, list):
            return None
        if len(value) == 4 and all(isinstance(each, int | float) and not isinstance(each, bool) for each in value):
            boxes.append(RawBox([float(each) for each in value], None, "", None))
        else:
            notes.problems.append(f"{where}[{index}]: a box has four numbers, this has {len(value)}")
    notes.default = "xywh"
    return Entry(where, (name,), None, boxes, is_whole=True)


def _has_typos(value: Any, known: Collection[str], where: str, notes: BoxFileNotes) -> bool:
    """Note keys that are nearly one that is read and is absent; any other key is only counted as not read."""
    if not isinstance(value, dict):
        return False
    absent = [name for name in known if name not in value]
    close = {name: difflib.get_close_matches(name, absent, n=1, cutoff=0.8) for name in value if name not in known}
    typos = [
        f"{where}: unknown key {name!r}; did you mean {nearest[0]!r}?" for name, nearest in close.items() if nearest
    ]
    notes.problems.extend(typos)
    return bool(typos)
