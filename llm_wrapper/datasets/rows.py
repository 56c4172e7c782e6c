"""Rows of annotation files: read, validated one by one, with every problem of a file told at once."""

from __future__ import annotations

import difflib
import json
import reprlib
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from llm_wrapper.errors import DataError

__all__ = ["FourNumbers", "Id", "Number", "read_json", "read_json_lines", "reason", "validated"]

Id = Annotated[str, Field(coerce_numbers_to_str=True)]
"""An id that files write as a number or as text; always text in memory."""

Number = Annotated[float, Field(strict=True)]
"""A JSON number; NaN and infinity pass, because whether they are an error depends on the file."""

FourNumbers = Annotated[list[Number], Field(min_length=4, max_length=4)]
"""A box before it is known whether it has an area."""

_Model = TypeVar("_Model", bound=BaseModel)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; raises DataError where it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not valid JSON: {error}. The file may be cut short: fetch or write it again."
        ) from error


def read_json_lines(path: Path) -> tuple[list[tuple[int, Any]], list[str]]:
    """Return (line number, value) of each line that is not blank, and the problems of lines that are not JSON."""
    values: list[tuple[int, Any]] = []
    problems: list[str] = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                values.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                problems.append(f"line {number}: not valid JSON: {error}")
    return values, problems


def validated(kind: type[_Model], value: Any, *, where: str, problems: list[str]) -> _Model | None:
    """Return `value` as a `kind`; else append what is wrong with it to `problems` and return `None`."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problems.extend(f"{where}: {_told(detail, list(kind.model_fields))}" for detail in error.errors())
        return None


def reason(error: ValueError) -> str:
    """Return why a record such as `Box` refused its values, in one line."""
    if isinstance(error, ValidationError):
        return "; ".join(_message(detail) for detail in error.errors())
    return str(error)


def _message(detail: ErrorDetails) -> str:
    return detail["msg"].removeprefix("Value error, ")


def _told(detail: ErrorDetails, known: list[str]) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
    if detail["type"] == "missing":
        return f"key '{place}' is missing"
    if detail["type"] == "extra_forbidden":
        return f"unknown key '{place}'{_nearest(place, known)}"
    if detail["type"] == "value_error":
        return _message(detail)
    return f"{place or 'the row'}: {detail['msg']}, got {reprlib.repr(detail['input'])}"


def _nearest(key: str, known: list[str]) -> str:
    if not known:
        return "; none is known here"
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
    return f"; the nearest known one is '{nearest}' (known: {', '.join(known)})"
