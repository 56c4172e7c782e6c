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
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator, model_validator

from llm_wrapper import readers
from llm_wrapper.box_formats import BoxFormat, parse_box
from llm_wrapper.datasets.base import FourNumbers, Id, Number, validate_row
from llm_wrapper.errors import DataError, RecipeError, listed

_LINE_KEYS = ("image_id", "file_name", "image", "sample_id", "detections")
_LABEL_KEYS = ("label", "category_name", "class_name", "name", "class")
_ITEM_KEYS = ("box", "bbox_xywh", "score", "confidence", *_LABEL_KEYS)

_SINK_NUMBERS = ("x_min", "y_min", "x_max", "y_max", "confidence")
_SINK_COLUMNS = (*_SINK_NUMBERS[:4], "class_id", "confidence")

_ROUNDING = 1e-4
"""How far above 1 or below 0 a score may lie: sums of float16 do."""


@dataclass(frozen=True, slots=True)
class RawBox:
    """One box of a file: four numbers, and a score in 0..1, or NaN where the file says that.

    Its format is that of its key, `None` where only the setting or the kind of file has one. Its label is a text, empty
    where there is none, or the id of a category.
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
        if not isinstance(value, dict):
            return value
        return {name: None if cell == "" else cell for name, cell in value.items()}


_Row = TypeVar("_Row", bound=BaseModel)


class BoxFile:
    """Reads a file of any kind; its ending (.json, .jsonl, .csv) and its content tell the kind.

    Attributes:
        entries: In the order of the file.
        problems: One sentence each, with the place.
        unread: How many rows have each key that is not read.
        default: The format of boxes that neither a key nor the setting declares.
        is_from_one: Whether category ids of such a file count from 1.
    """

    def __init__(self, path: Path, *, has_names: bool, setting: BoxFormat | None = None) -> None:
        """Read the file; problems of its rows are gathered, a file of no known kind is a DataError.

        `has_names` says whether ids of classes have names; `setting` is the declared format, known of a sink.
        """
        self.problems: list[str] = []
        self.unread = Counter[str]()
        self.default: BoxFormat = "xyxy"
        self.is_from_one = False
        self._path, self._has_names, self._setting = path, has_names, setting
        self.entries = list(self._read())

    def _read(self) -> Iterator[Entry]:
        if self._path.suffix == ".jsonl":
            values, damaged = readers.read_json_lines(self._path, nan=True)
            self.problems.extend(damaged)
            for number, value in values:
                yield from self._of_value(value, f"line {number}")
        elif self._path.suffix == ".csv":
            yield from self._of_sink(self._csv_rows())
        else:
            yield from self._of_json(readers.read_json(self._path, nan=True))

    def _of_json(self, content: Any) -> Iterator[Entry]:
        rows = [(f"row {index}", value) for index, value in enumerate(content)] if isinstance(content, list) else []
        # An empty list is of a sink, where nothing was ever detected.
        if content == [] or any(_has_key(value, "x_min") for _, value in rows):
            yield from self._of_sink(rows)
        elif isinstance(content, list):
            read = self._of_result if any(_has_key(value, "bbox") for _, value in rows) else self._of_value
            for where, value in rows:
                yield from read(value, where)
        elif isinstance(content, dict) and isinstance(content.get("dets"), list):
            for index, value in enumerate(content["dets"]):
                yield from self._of_value(value, f"dets[{index}]")
        elif isinstance(content, dict) and isinstance(content.get("predictions"), list):
            yield from self._of_roboflow(content["predictions"])
        elif isinstance(content, dict) and content and all(map(_is_boxes, content.values())):
            for name, values in content.items():
                yield self._of_image(name, values)
        else:
            keys = f"an object with the keys {', '.join(list(content)[:5])}" if isinstance(content, dict) else "no list"
            raise DataError(
                f"{self._path} holds {keys}, none of the forms of detections that are read: COCO results (a list), "
                '{"dets": [..]}, {"predictions": [..]} or {image id: [[x, y, width, height], ..]}.'
            )

    def _row(self, kind: type[_Row], value: Any, where: str) -> _Row | None:
        return validate_row(kind, value, where=where, problems=self.problems)

    def _of_value(self, value: Any, where: str) -> Iterator[Entry]:
        """Yield the entry of one line or row, by the keys that it has."""
        keys = value.keys() if isinstance(value, dict) else set()
        if "detections" not in keys and "bbox" in keys:
            yield from self._of_result(value, where)
        elif "detections" not in keys and keys & {"box", "bbox_xywh"}:
            yield from self._of_flat(value, where)
        elif not self._has_typos(value, _LINE_KEYS, where):
            line = self._row(_Line, value, where)
            if line is not None:
                self.unread.update(list(line.model_extra or ()))
                boxes = self._items(line.detections, f"{where}: detections")
                yield Entry(where, line.names, line.sample_id, boxes, is_whole=True)

    def _items(self, values: Sequence[Any], where: str) -> list[RawBox]:
        boxes = (self._item(value, f"{where}[{index}]") for index, value in enumerate(values))
        return [box for box in boxes if box is not None]

    def _item(self, value: Any, where: str) -> RawBox | None:
        """Return one detection; its problems are noted."""
        box_format: BoxFormat | None = None
        if self._has_typos(value, _ITEM_KEYS, where):
            return None
        if isinstance(value, dict) and isinstance(value.get("box"), dict):
            try:
                box = parse_box(value["box"])
            except ValueError as error:
                self.problems.append(f"{where}: {error}")
                return None
            value, box_format = {**value, "box": box.numbers}, box.usual
        item = self._row(_Item, value, where)
        if item is None:
            return None
        self.unread.update(list(item.model_extra or ()))
        label = item.label if isinstance(item.label, int) else (item.label or "").strip()
        if item.bbox_xywh is not None:
            return RawBox(item.bbox_xywh, "xywh", label, item.score)
        return RawBox(item.box or [], box_format, label, item.score)

    def _of_result(self, value: Any, where: str) -> Iterator[Entry]:
        """Yield a COCO result, whose `bbox` is xywh and whose category ids count from 1."""
        self.default, self.is_from_one = "xywh", True
        row = self._row(_Result, value, where)
        if row is None:
            return
        names = tuple(name for name in (row.image_id, row.file_name) if name is not None)
        category = row.category_id
        if isinstance(category, str) and category.isdecimal():
            category = int(category)
        if not names:
            self.problems.append(f"{where}: names no image: give 'image_id' or 'file_name'")
        elif isinstance(category, str):
            self.problems.append(f"{where}: category_id {category!r} is not a number")
        else:
            yield Entry(where, names, None, [RawBox(row.bbox, None, category, row.score)])

    def _of_flat(self, value: Mapping[str, Any], where: str) -> Iterator[Entry]:
        """Yield one box with its image, as MAttNet (`box` is xywh there) and others write them."""
        about = {name: value[name] for name in ("image_id", "file_name", "image", "sample_id") if name in value}
        item = {key: each for key, each in value.items() if key not in about}
        if value.keys() & {"det_id", "h5_id"} and isinstance(item.get("box"), list):
            item["bbox_xywh"] = item.pop("box")
        named = self._row(_Named, about, where)
        box = self._item(item, where)
        if named is not None and box is not None:
            yield Entry(where, named.names, named.sample_id, [box])

    def _of_roboflow(self, values: Sequence[Any]) -> Iterator[Entry]:
        """Yield the entries of a Roboflow response, about one picture that it rarely names; x, y are a center."""
        if not values:
            yield Entry("predictions", (), None, [])
        for index, value in enumerate(values):
            where = f"predictions[{index}]"
            row = self._row(_RoboflowPrediction, value, where)
            if row is not None:
                box = RawBox([row.x, row.y, row.width, row.height], "cxcywh", row.label.strip(), row.score)
                yield Entry(where, (row.image_path,) if row.image_path else (), None, [box])

    def _of_image(self, name: str, values: Sequence[Any]) -> Entry:
        """Return the entry of one image of ReCLIP's {image id: [[x, y, w, h], ..]}."""
        where = f"key {name!r}"
        if values and isinstance(values[0], dict):
            return Entry(where, (name,), None, self._items(values, where), is_whole=True)
        self.default = "xywh"
        boxes = []
        for index, value in enumerate(values):
            if len(value) == 4 and all(isinstance(each, int | float) and not isinstance(each, bool) for each in value):
                boxes.append(RawBox([float(each) for each in value], None, "", None))
            else:
                self.problems.append(f"{where}[{index}]: a box has four numbers, this has {len(value)}")
        return Entry(where, (name,), None, boxes, is_whole=True)

    def _of_sink(self, rows: Iterable[tuple[str, Any]]) -> Iterator[Entry]:
        """Yield the rows of supervision's `JSONSink` or `CSVSink`."""
        if self._setting not in (None, "xyxy"):
            problem = f"box_format: {self._path} is of supervision, whose boxes are xyxy: omit the setting"
            raise RecipeError(listed("the detector 'imported' cannot be built", [problem]))
        for where, value in rows:
            row = self._row(_SinkRow, value, where)
            if row is None:
                continue
            number = int(row.class_id) if row.class_id and row.class_id.isdecimal() else ""
            label = row.class_name or number
            if label == "" or (isinstance(label, int) and not self._has_names):
                self.problems.append(f"{where}: no class_name, and 'categories' names no class_id {row.class_id}")
                label = ""
            box = RawBox([row.x_min, row.y_min, row.x_max, row.y_max], "xyxy", label, row.score)
            yield Entry(where, row.names, row.sample_id, [box])

    def _csv_rows(self) -> Iterator[tuple[str, Any]]:
        """Yield the rows of a `CSVSink`'s file; rows that are cut short or too long are problems."""
        stream = io.StringIO(readers.read_text(self._path, most=readers.GIB), newline="")
        reader = csv.reader(stream, strict=True)
        try:
            header = next(reader, [])
            if missing := [name for name in _SINK_COLUMNS if name not in header]:
                has = ", ".join(header) or "none"
                raise DataError(
                    f"{self._path} is not of supervision's CSVSink: no column {', '.join(missing)} (has {has})"
                )
            for cells in reader:
                where = f"line {reader.line_num}"
                if len(cells) == len(header):
                    yield where, dict(zip(header, map(_cell, header, cells), strict=True))
                elif cells:
                    self.problems.append(f"{where}: {len(cells)} cells, but the header has {len(header)}")
        except csv.Error as error:
            raise DataError(f"{self._path} cannot be read as CSV: {error}. Write it again.") from error

    def _has_typos(self, value: Any, known: Collection[str], where: str) -> bool:
        """Note keys that are nearly one that is read and is absent; any other key is only counted as not read."""
        if not isinstance(value, dict):
            return False
        absent = [name for name in known if name not in value]
        close = {name: difflib.get_close_matches(name, absent, n=1, cutoff=0.8) for name in value if name not in known}
        typos = [f"{where}: unknown key {name!r}; did you mean {near[0]!r}?" for name, near in close.items() if near]
        self.problems.extend(typos)
        return bool(typos)


def _has_key(value: Any, key: str) -> bool:
    return isinstance(value, dict) and key in value


def _is_boxes(values: Any) -> bool:
    """Tell whether these are the boxes of one image: lists, or objects with a box."""
    return isinstance(values, list) and (
        all(isinstance(each, list) for each in values)
        or all(_has_key(each, "box") or _has_key(each, "bbox_xywh") for each in values)
    )


def _cell(name: str, text: str) -> float | str:
    """Return the number of a column of numbers; any other text is left to the validation of its row."""
    try:
        return float(text) if name in _SINK_NUMBERS else text
    except ValueError:
        return text
