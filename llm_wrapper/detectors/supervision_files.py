"""`Detections` of the package supervision: its sinks' files are read, and its objects are written as our JSONL.

supervision keeps the detections of many images in one way, by its sinks, which write one row per box. `custom_data`
must name the image or the sample of the row, by exactly one of image_id, file_name and sample_id:

    with sv.JSONSink("boxes.json") as sink:  # or sv.CSVSink("boxes.csv")
        for image_id, image in images:
            sink.append(detector(image), custom_data={"image_id": image_id})

The label is `class_name`, which supervision's connectors put into `Detections.data`; where a row has none, the name of
its `class_id`, counted as the detector counts. Boxes are xyxy pixels. Masks, tracker ids and all other columns are not
read. Read: detection/tools/{json,csv}_sink.py of supervision 0.31.

A sink leaves no row for an image without detections, and a `CSVSink` drops columns that its first image lacks.
`write_supervision` does neither. A pickle of `Detections` is not read: loading one can run any code.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from llm_wrapper import readers, storage
from llm_wrapper.datasets import rows
from llm_wrapper.detectors.box_files import BoxFileNotes, Entry, NamedRow, RawBox, RawDetection, ScoredRow
from llm_wrapper.errors import DataError, RecipeError, listed

__all__ = ["SupervisionDetections", "is_json_sink", "read_csv_sink", "read_json_sink", "write_supervision"]

_SINK_NUMBERS = ("x_min", "y_min", "x_max", "y_max", "confidence")
_SINK_COLUMNS = (*_SINK_NUMBERS[:4], "class_id", "confidence")


class _SinkRow(NamedRow, ScoredRow):
    x_min: rows.Number
    y_min: rows.Number
    x_max: rows.Number
    y_max: rows.Number
    class_id: rows.Id | None
    score: rows.Number | None = Field(alias="confidence")
    class_name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _blank_is_none(cls, value: Any) -> Any:
        """Both sinks write an empty text where a column does not apply."""
        return (
            {name: cell if cell != "" else None for name, cell in value.items()} if isinstance(value, dict) else value
        )


def is_json_sink(content: Any) -> bool:
    """Tell a `JSONSink`'s list from COCO results; an empty list is one, where nothing was ever detected."""
    return isinstance(content, list) and (
        not content or any(isinstance(row, dict) and "x_min" in row for row in content)
    )


def read_json_sink(content: list[Any], notes: BoxFileNotes, *, has_names: bool) -> list[Entry]:
    """Read the rows of a `JSONSink`'s list, counted from row 0; `has_names` tells whether class ids have names."""
    return _entries(((f"row {index}", row) for index, row in enumerate(content)), notes, has_names=has_names)


def read_csv_sink(path: Path, notes: BoxFileNotes, *, has_names: bool) -> list[Entry]:
    """Read the rows of a `CSVSink`'s file, counted by lines.

    Raises:
        DataError: If the file is no CSV text, or its header is of another program.
    """
    return _entries(_csv_rows(path, notes.problems), notes, has_names=has_names)


def _entries(found: Iterable[tuple[str, Any]], notes: BoxFileNotes, *, has_names: bool) -> list[Entry]:
    entries = []
    for where, value in found:
        row = rows.validate_row(_SinkRow, value, where=where, problems=notes.problems)
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


class SupervisionDetections(Protocol):
    """The part of a `supervision.Detections` that is read: arrays (n, 4), (n,), (n,) and columns like `class_name`."""

    @property
    def xyxy(self) -> Any: ...  # noqa: D102
    @property
    def confidence(self) -> Any: ...  # noqa: D102
    @property
    def class_id(self) -> Any: ...  # noqa: D102
    @property
    def data(self) -> Any: ...  # noqa: D102


def write_supervision(
    path: Path,
    found: Mapping[Any, SupervisionDetections],
    *,
    key: Literal["image_id", "file_name", "sample_id"] = "image_id",
    names: Mapping[int, str] | None = None,
) -> None:
    """Write supervision's `Detections` as JSONL that the detector `import` reads; a file of that name is replaced.

        write_supervision(Path("boxes.jsonl"), {"a.jpg": detections}, key="file_name")

    Args:
        path: Ends in `.jsonl`.
        found: `Detections` by image id, file name or sample id; those without a box count as answers, too.
        key: The meaning of the keys of `found`.
        names: Label by class id, where `data["class_name"]` gives none.

    Raises:
        RecipeError: If the path does not end in `.jsonl`.
        DataError: With every detection that `import` would refuse: without a label, or with a score outside 0..1.
    """
    if path.suffix != ".jsonl":
        raise RecipeError(f"{path} does not end in .jsonl: name it so, by that ending it is known when it is read.")
    problems: list[str] = []
    lines = []
    for name, each in found.items():
        where = f"{key} {name}"
        items = list(_supervision_items(each, names or {}, where, problems))
        for index, item in enumerate(items):
            rows.validate_row(RawDetection, item, where=f"{where}: detections[{index}]", problems=problems)
            if not item["label"]:
                problems.append(f"{where}: detections[{index}]: no label: give 'names' for the class ids")
        lines.append({key: str(name), "detections": items})
    if problems:
        raise DataError(listed(f"{path} is not written, `import` could not read it back", problems))
    storage.write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))


def _supervision_items(
    found: SupervisionDetections, names: Mapping[int, str], where: str, problems: list[str]
) -> Iterator[dict[str, Any]]:
    columns = [found.confidence, found.class_id, found.data.get("class_name")]
    filled = [[None] * len(found.xyxy) if column is None else list(column) for column in columns]
    if {len(column) for column in filled} != {len(found.xyxy)}:
        lengths = ", ".join(str(len(column)) for column in filled)
        problems.append(f"{where}: {len(found.xyxy)} boxes, but {lengths} scores, class ids and class names")
        return
    for box, score, number, label in zip(found.xyxy, *filled, strict=True):
        name = label or ("" if number is None else names.get(int(number), ""))
        values = [float(value) for value in box]
        yield {"box": values, "label": str(name), "score": None if score is None else float(score)}
