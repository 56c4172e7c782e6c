"""Rows of other programs' predictions: in which file, under which keys, and in which format of a box."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from llm_wrapper.datasets import rows
from llm_wrapper.datasets.base import require_file
from llm_wrapper.errors import DataError
from llm_wrapper.evaluation.foreign_boxes import BoxFormat

__all__ = ["Row", "read_rows"]

_BOX_KEYS: Mapping[str, BoxFormat | None] = {
    "box": None,
    "bbox": None,
    "pred_bbox": None,
    "box_xyxy": "xyxy",
    "bbox_xyxy": "xyxy",
    "box_xywh": "xywh",
    "bbox_xywh": "xywh",
}
"""Key -> the format that it names itself."""


class Row(BaseModel):
    """One line: what was asked, and the box that somebody's system gave; keys that are not known here are not read."""

    model_config = ConfigDict(extra="ignore")

    sample_id: rows.Id | None = Field(None, validation_alias=AliasChoices("sample_id", "sent_id"))
    ref_id: rows.Id | None = None
    image: str | None = Field(None, validation_alias=AliasChoices("image", "file_name"))
    image_id: rows.Id | None = None
    expression: str | None = Field(
        None, validation_alias=AliasChoices("expression", "sent", "sentence", "caption", "refexp")
    )
    format: BoxFormat | None = None
    box: rows.FourNumbers | None = None
    bbox: rows.FourNumbers | None = None
    pred_bbox: rows.FourNumbers | None = None
    box_xyxy: rows.FourNumbers | None = None
    bbox_xyxy: rows.FourNumbers | None = None
    box_xywh: rows.FourNumbers | None = None
    bbox_xywh: rows.FourNumbers | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_benchmark(cls, value: Any) -> Any:
        """Take the `id` of {id, pred_bbox, format} as a sample's; anywhere else it may count anything."""
        if isinstance(value, dict) and "pred_bbox" in value and "id" in value:
            return {"sample_id": value["id"], **value}
        return value

    @model_validator(mode="after")
    def _has_one_box(self) -> Row:
        given = self._given()
        if not given:
            keys = ", ".join(_BOX_KEYS)
            raise ValueError(f"no box: give one of the keys {keys}; null where the system found nothing")
        if len(given) > 1:
            raise ValueError(f"several boxes ({', '.join(given)}): keep the one that was predicted")
        return self

    def values(self) -> list[float] | None:
        """Return the four numbers as written; `None` where the system gave no box."""
        values: list[float] | None = getattr(self, self._given()[0])
        return values

    def told(self, option: BoxFormat | None) -> BoxFormat | None:
        """Return the format of the box, as the key, the row or `option` tell it; `None` where nobody does.

        `box` is xyxy pixels, as in all our own files, where nothing else is said.

        Raises:
            ValueError: If they tell different things.
        """
        (key,) = self._given()
        told = {each for each in (_BOX_KEYS[key], self.format, option) if each is not None}
        if len(told) > 1:
            raise ValueError(f"the box is told to be {' and '.join(sorted(told))}: correct the line or --box-format")
        return told.pop() if told else ("xyxy" if key == "box" else None)

    def _given(self) -> list[str]:
        return [key for key in _BOX_KEYS if key in self.model_fields_set]


_Placed = list[tuple[str, Any]]


def read_rows(path: Path, problems: list[str]) -> list[tuple[str, Row]]:
    """Read a JSON list, JSON lines, or one JSON object {sample id: box}, whatever the file is called.

    Returns:
        (place in the file, row) of each row that is one; what is wrong with the others is appended to `problems`.

    Raises:
        DataError: If there is no such file, if it is not JSON, or holds nothing.
    """
    require_file(path, "Give a file of predictions: JSON lines, a JSON list, or our own Parquet.")
    placed = _placed(path, problems)
    if not placed and not problems:
        raise DataError(f"{path} holds no prediction.")
    found = [(where, rows.validated(Row, value, where=where, problems=problems)) for where, value in placed]
    return [(where, row) for where, row in found if row is not None]


def _placed(path: Path, problems: list[str]) -> _Placed:
    start = path.read_bytes().lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"["):
        return [(f"row {number}", value) for number, value in enumerate(_whole(path, problems))]
    if not start.startswith(b"{"):
        raise DataError(f"{path} is neither JSON (it must begin with [ or {{) nor a Parquet file of predictions.")
    repeated: list[str] = []
    try:
        content = _whole(path, repeated)
    except DataError:
        lines, damaged = rows.read_json_lines(path)
        problems.extend(damaged)
        return [(f"line {number}", value) for number, value in lines]
    problems.extend(repeated)
    if all(value is None or isinstance(value, list) for value in content.values()):
        return [(f"key {key!r}", {"sample_id": key, "bbox": value}) for key, value in content.items()]
    return [("line 1", content)]


def _whole(path: Path, problems: list[str]) -> Any:
    """Return the content of a JSON file; a key that an object repeats is a problem: only its last value is kept."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                problems.append(f"key {key!r} stands twice in one object")
            seen[key] = value
        return seen

    try:
        return json.loads(path.read_bytes(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}. The file may be cut short: write it again.") from error
