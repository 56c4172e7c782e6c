"""Files of boxes that other programs wrote -> entries: the name of an image or a sample, and its boxes as written.

- `.jsonl`: one image or one expression a line, named by image_id, file_name or sample_id, with
  `detections`: a list of {box (xyxy) or bbox_xywh, label, score (a number in 0..1, or null)}; `box` may be an object
  {xmin, ymin, xmax, ymax} as the pipelines of transformers write it. Or one box a line, with the image's name.
- `.json`, COCO results: a list of {image_id, category_id, bbox (xywh), score}, such as ultralytics' predictions.json.
- `.json` of the field: MAttNet's list, ReCLIP's {image id: [[x, y, w, h], ..]}, REFER's {"dets": ..}, a response of
  Roboflow ({"predictions": ..}).
- `.json` and `.csv` of supervision's `JSONSink` and `CSVSink`: one row a box, in xyxy pixels. `custom_data` must name
  the image or the sample by image_id, file_name or sample_id; the label is `class_name`, or the name of `class_id`.
  Masks, tracker ids and other columns are not read.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator, model_validator

from llm_wrapper import readers
from llm_wrapper.box_formats import BoxFormat, parse_box
from llm_wrapper.datasets.base import FourNumbers, Id, Number, validate_row
from llm_wrapper.errors import DataError, RecipeError, listed

__all__ = ["BoxFileNotes", "Entry", "RawBox", "read_box_file"]

_LINE_KEYS = ("image_id", "file_name", "image", "sample_id", "detections")
_LABEL_KEYS = ("label", "category_name", "class_name", "name", "class")
_ITEM_KEYS = ("box", "bbox_xywh", "score", "confidence", *_LABEL_KEYS)

_SINK_NUMBERS = ("x_min", "y_min", "x_max", "y_max", "confidence")
_SINK_COLUMNS = (*_SINK_NUMBERS[:4], "class_id", "confidence")

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


class _Named(BaseModel):
    """A row about one image or one expression; an image may be named by id and by file name."""

    image_id: Id | None = None
    file_name: str | None = Field(None, validation_alias=AliasChoices("file_name", "image"))
    sample_id: Id | None = None

    @model_validator(mode="after")
    def _has_one_id(self) -> _Named:
        if (self.sample_id is None) == (not self.names):
            raise ValueError("give exactly one of 'image_id', 'file_name' and 'sample_id'")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.image_id, self.file_name) if name is not None)


class _Scored(BaseModel):
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


class _Item(_Scored):
    """One detection: a box by one of its keys, with a label and a score where there are any."""

    model_config = ConfigDict(extra="allow")

    box: FourNumbers | None = None
    bbox_xywh: FourNumbers | None = None
    label: Annotated[int, Field(strict=True)] | str | None = Field(None, validation_alias=AliasChoices(*_LABEL_KEYS))
    score: Number | None = Field(None, validation_alias=AliasChoices("score", "confidence"))

    @model_validator(mode="after")
    def _has_one_box(self) -> _Item:
        if (self.box is None) == (self.bbox_xywh is None):
            raise ValueError("give exactly one of 'box' and 'bbox_xywh'")
        return self


class _Line(_Named):
    model_config = ConfigDict(extra="allow")

    detections: list[Any]


class _Result(_Scored):
    """A COCO result. ultralytics names its image twice, by id (the stem) and by file name."""

    image_id: Id | None = None
    file_name: str | None = None
    category_id: int | str
    bbox: FourNumbers
    score: Number | None


class _RoboflowPrediction(_Scored):
    x: Number
    y: Number
    width: Number
    height: Number
    label: str = Field("", alias="class")
    score: Number | None = Field(None, alias="confidence")
    image_path: str | None = None


class _SinkRow(_Named, _Scored):
    x_min: Number
    y_min: Number
    x_max: Number
    y_max: Number
    class_id: Id | None
    score: Number | None = Field(alias="confidence")
    class_name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _blank_is_none(cls, value: Any) -> Any:
        """Both sinks write an empty text where a column does not apply."""
        return (
            {name: cell if cell != "" else None for name, cell in value.items()} if isinstance(value, dict) else value
        )


def read_box_file(path: Path, notes: BoxFileNotes, *, has_names: bool, setting: BoxFormat | None = None) -> list[Entry]:
    """Read a file of any kind; problems of its rows go to `notes.problems`.

    Args:
        path: Its ending (.json, .jsonl, .csv) and its content tell its kind.
        notes: Of this file.
        has_names: Whether ids of classes have names.
        setting: The declared format; that of a sink is known.

    Raises:
        DataError: If it is of no kind that is known.
        RecipeError: If the setting is not for a file of this kind.
    """
    if path.suffix == ".jsonl":
        values, damaged = readers.read_json_lines(path, nan=True)
        notes.problems.extend(damaged)
        return [entry for number, value in values for entry in _of_value(value, f"line {number}", notes)]
    content = None if path.suffix == ".csv" else readers.read_json(path, nan=True)
    # An empty list is of a sink, where nothing was ever detected.
    is_sink = content == [] or (isinstance(content, list) and any(_has_key(row, "x_min") for row in content))
    if path.suffix != ".csv" and not is_sink:
        return _of_json(content, path, notes)
    if setting not in (None, "xyxy"):
        problem = f"box_format: {path} is of supervision, whose boxes are xyxy: omit the setting"
        raise RecipeError(listed("the detector 'imported' cannot be built", [problem]))
    found = _numbered(content) if isinstance(content, list) else _csv_rows(path, notes.problems)
    return _of_sink(found, notes, has_names=has_names)


def _has_key(value: Any, key: str) -> bool:
    return isinstance(value, dict) and key in value


def _numbered(values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"row {index}", value) for index, value in enumerate(values))


def _of_json(content: Any, path: Path, notes: BoxFileNotes) -> list[Entry]:
    """Read one JSON value that is no sink of supervision."""
    if isinstance(content, list):
        read = _of_result if any(_has_key(value, "bbox") for value in content) else _of_value
        return [entry for where, value in _numbered(content) for entry in read(value, where, notes)]
    if isinstance(content, dict) and isinstance(content.get("dets"), list):
        found = enumerate(content["dets"])
        return [entry for index, value in found for entry in _of_value(value, f"dets[{index}]", notes)]
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
        line = validate_row(_Line, value, where=where, problems=notes.problems)
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
    item = validate_row(_Item, value, where=where, problems=notes.problems)
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
    row = validate_row(_Result, value, where=where, problems=notes.problems)
    if row is None:
        return
    names = tuple(name for name in (row.image_id, row.file_name) if name is not None)
    given = row.category_id
    category = int(given) if isinstance(given, str) and given.isdecimal() else given
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
    named = validate_row(_Named, about, where=where, problems=notes.problems)
    box = _item(item, where, notes)
    if named is not None and box is not None:
        yield Entry(where, named.names, named.sample_id, [box])


def _of_roboflow(values: Sequence[Any], notes: BoxFileNotes) -> Iterator[Entry]:
    """Yield the entries of a Roboflow response, which is about one picture and rarely names it; x, y are a center."""
    if not values:
        yield Entry("predictions", (), None, [])
    for index, value in enumerate(values):
        where = f"predictions[{index}]"
        row = validate_row(_RoboflowPrediction, value, where=where, problems=notes.problems)
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


def _of_sink(found: Iterable[tuple[str, Any]], notes: BoxFileNotes, *, has_names: bool) -> list[Entry]:
    entries = []
    for where, value in found:
        row = validate_row(_SinkRow, value, where=where, problems=notes.problems)
        if row is None:
            continue
        number = int(row.class_id) if row.class_id and row.class_id.isdecimal() else ""
        label = row.class_name or number
        if label == "" or (isinstance(label, int) and not has_names):
            notes.problems.append(f"{where}: no class_name, and 'categories' names no class_id {row.class_id}")
            label = ""
        box = RawBox([row.x_min, row.y_min, row.x_max, row.y_max], "xyxy", label, row.score)
        entries.append(Entry(where, row.names, row.sample_id, [box]))
    return entries


def _csv_rows(path: Path, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a `CSVSink`'s file; rows that are cut short or too long are problems."""
    stream = io.StringIO(readers.read_text(path, most=readers.GIB), newline="")
    reader = csv.reader(stream, strict=True)
    try:
        header = next(reader, [])
        missing = [name for name in _SINK_COLUMNS if name not in header]
        if missing:
            found = ", ".join(header) or "none"
            raise DataError(f"{path} is not of supervision's CSVSink: no column {', '.join(missing)} (has {found})")
        for cells in reader:
            where = f"line {reader.line_num}"
            if len(cells) == len(header):
                yield where, dict(zip(header, map(_cell, header, cells), strict=True))
            elif cells:
                problems.append(f"{where}: {len(cells)} cells, but the header has {len(header)}")
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as CSV: {error}. Write it again.") from error


def _cell(name: str, text: str) -> float | str:
    """Return the number of a column of numbers; any other text is left to the validation of its row."""
    try:
        return float(text) if name in _SINK_NUMBERS else text
    except ValueError:
        return text


def _has_typos(value: Any, known: Collection[str], where: str, notes: BoxFileNotes) -> bool:
    """Note keys that are nearly one that is read and is absent; any other key is only counted as not read."""
    if not isinstance(value, dict):
        return False
    absent = [name for name in known if name not in value]
    close = {name: difflib.get_close_matches(name, absent, n=1, cutoff=0.8) for name in value if name not in known}
    typos = [f"{where}: unknown key {name!r}; did you mean {near[0]!r}?" for name, near in close.items() if near]
    notes.problems.extend(typos)
    return bool(typos)
