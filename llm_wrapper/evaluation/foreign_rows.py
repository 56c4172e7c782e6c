"""Rows of other programs' predictions: in which file, under which keys, and in which format of a box."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from llm_wrapper import readers
from llm_wrapper.box_formats import BoxFormat
from llm_wrapper.datasets import rows
from llm_wrapper.datasets.base import require_file
from llm_wrapper.errors import DataError
from llm_wrapper.evaluation.foreign_answers import BoxAnswer, box_of

__all__ = ["Row", "read_rows"]

_BOX_KEYS: Mapping[str, BoxFormat | None] = {
    "box": None,
    "bbox": None,
    "pred_bbox": None,
    "bbox_2d": None,
    "box_2d": None,
    "box_xyxy": "xyxy",
    "bbox_xyxy": "xyxy",
    "box_xywh": "xywh",
    "bbox_xywh": "xywh",
}
"""Key -> the format that it names itself."""

_USUAL: Mapping[str, BoxFormat] = {"box": "xyxy", "bbox_2d": "xyxy", "box_2d": "yxyx_1000"}
"""Key -> the format that it has where nothing else is said: of our own files, of Qwen's and of Gemini's answers."""

_TEXT_KEYS = ("response", "answer", "output", "prediction", "generated_text", "text")
"""Keys of a model's text, read only where there is no box."""


class Row(BaseModel):
    """One line: what was asked, and the box that a system gave; keys that are not known here are not read."""

    model_config = ConfigDict(extra="ignore")

    sample_id: rows.Id | None = Field(None, validation_alias=AliasChoices("sample_id", "sent_id"))
    ref_id: rows.Id | None = None
    image: str | None = Field(None, validation_alias=AliasChoices("image", "file_name"))
    image_id: rows.Id | None = Field(None, validation_alias=AliasChoices("image_id", "img_id"))
    expression: str | None = Field(
        None, validation_alias=AliasChoices("expression", "sent", "sents", "sentence", "caption", "refexp")
    )
    format: BoxFormat | None = None
    given: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _with_box(cls, value: Any) -> Any:
        """Gather the keys of a box; take the `id` of {id, pred_bbox, format} as a sample's."""
        if not isinstance(value, dict):
            return value
        given = {key: value[key] for key in _BOX_KEYS if key in value}
        texts = {key: value[key] for key in _TEXT_KEYS if isinstance(value.get(key), str)}
        about = {"sample_id": value["id"]} if "pred_bbox" in value and "id" in value else {}
        return {**about, **value, "given": given or dict(list(texts.items())[:1])}

    @model_validator(mode="after")
    def _has_one_box(self) -> Row:
        if not self.given:
            keys = ", ".join([*_BOX_KEYS, *_TEXT_KEYS])
            raise ValueError(f"no box: give one of the keys {keys}; null where the system found nothing")
        if len(self.given) > 1:
            raise ValueError(f"several boxes ({', '.join(self.given)}): keep the one that was predicted")
        return self

    def answer(self) -> BoxAnswer:
        """Return the box as written.

        Raises:
            ValueError: If there is something else under its key.
        """
        ((key, value),) = self.given.items()
        found = box_of(value)
        return BoxAnswer(found.values, found.reason, found.count, found.usual or _USUAL.get(key))

    def declared(self, option: BoxFormat | None) -> BoxFormat | None:
        """Return the format of the box, as the key, the row or `option` says; `None` where none does.

        Raises:
            ValueError: If they say different things.
        """
        (key,) = self.given
        said = {each for each in (_BOX_KEYS.get(key), self.format, option) if each is not None}
        if len(said) > 1:
            raise ValueError(f"the box is said to be {' and '.join(sorted(said))}: correct the line or --box-format")
        return said.pop() if said else None


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
    found = [(where, rows.validate_row(Row, value, where=where, problems=problems)) for where, value in placed]
    return [(where, row) for where, row in found if row is not None]


def _placed(path: Path, problems: list[str]) -> _Placed:
    text = readers.read_text(path, most=readers.GIB)
    start = text.lstrip()[:1]
    if start == "[":
        return [(f"row {number}", value) for number, value in enumerate(readers.parse_json(text, str(path), nan=True))]
    if start != "{":
        raise DataError(f"{path} is neither JSON (it must begin with [ or {{) nor a Parquet file of predictions.")
    try:
        content = readers.parse_json(text, str(path), nan=True)
    except DataError:
        lines, damaged = readers.read_json_lines(path, nan=True)
        if not lines:
            raise
        problems.extend(damaged)
        return [(f"line {number}", value) for number, value in lines]
    if all(value is None or isinstance(value, list) for value in content.values()):
        return [(f"key {key!r}", {"sample_id": key, "bbox": value}) for key, value in content.items()]
    return [("line 1", content)]
