"""Rows of annotation files: validated one by one, with every problem of a file listed at once."""

from __future__ import annotations

import difflib
import reprlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from llm_wrapper import readers

__all__ = ["FourNumbers", "Id", "Number", "is_blank", "read_json", "read_json_lines", "reason", "validated"]

Id = Annotated[str, Field(coerce_numbers_to_str=True)]
"""An id that files write as a number or as text; always text in memory."""

Number = Annotated[float, Field(strict=True)]
"""A JSON number; NaN and infinity pass, because whether they are an error depends on the file."""

FourNumbers = Annotated[list[Number], Field(min_length=4, max_length=4)]
"""A box before it is known whether it has an area."""

_Model = TypeVar("_Model", bound=BaseModel)

_INVISIBLE_LETTERS = frozenset("\u115f\u1160\u3164\uffa0\u2800")
"""Fillers that Unicode counts as letters and symbols, although nothing is seen of them."""

_WORDS = {
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must not be empty",
    "list_type": "must be a list",
    "dict_type": "must be an object of keys and values",
    "model_type": "must be an object of keys and values",
    "model_attributes_type": "must be an object of keys and values",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
}
"""What pydantic's messages mean to somebody who has never seen Python; others are cut to `must be ..`."""


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, see `readers.read_json`; NaN and infinity pass."""
    return readers.read_json(path, nan=True)


def read_json_lines(path: Path) -> tuple[list[tuple[int, Any]], list[str]]:
    """Return the values of JSON lines and what is wrong with the others, see `readers`; NaN and infinity pass."""
    return readers.read_json_lines(path, nan=True)


def is_blank(text: str) -> bool:
    """Tell whether nothing of a text can be seen: spaces, control characters, zero-width ones and lone accents."""
    return all(unicodedata.category(char)[0] in "CMZ" or char in _INVISIBLE_LETTERS for char in text)


def validated(kind: type[_Model], value: Any, *, where: str, problems: list[str]) -> _Model | None:
    """Return `value` as a `kind`; else append what is wrong with it to `problems` and return `None`."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        known = [field.alias or name for name, field in kind.model_fields.items()]
        problems.extend(f"{where}: {_sentence(detail, known)}" for detail in error.errors())
        return None


def reason(error: ValueError) -> str:
    """Return why a record such as `Box` refused its values, in one line."""
    if isinstance(error, ValidationError):
        return "; ".join(_message(detail) for detail in error.errors())
    return str(error)


def _message(detail: ErrorDetails) -> str:
    return detail["msg"].removeprefix("Value error, ")


def _sentence(detail: ErrorDetails, known: Sequence[str]) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")
    kind, value = detail["type"], detail["input"]
    if kind == "missing":
        return f"key '{place}' is missing"
    if kind == "extra_forbidden":
        return f"unknown key '{place}'{_nearest(place, known)}"
    if kind == "value_error":
        return _message(detail)
    if kind in ("too_short", "too_long"):
        words = f"must have {_count(detail)}, has {len(value)}"
    else:
        words = _WORDS.get(kind) or detail["msg"].replace("Input should", "must", 1)
    return f"{place or 'the row'}: {words}, got {reprlib.repr(value)}"


def _count(detail: ErrorDetails) -> str:
    """Return how many items a list must have, of which there are too few or too many."""
    bound, number = next((key, value) for key, value in detail["ctx"].items() if key in ("min_length", "max_length"))
    return f"{'at least' if bound == 'min_length' else 'at most'} {number} item{'s' if number != 1 else ''}"


def _nearest(key: str, known: Sequence[str]) -> str:
    """Return the known key that is like a mistyped one, if any is, and all known ones."""
    if not known:
        return "; none is known here"
    like = difflib.get_close_matches(key, known, n=1)
    hint = f"the nearest known one is '{like[0]}' " if like else ""
    return f"; {hint}(known: {', '.join(known)})"
