"""Rows of annotation files: validated one by one, with every problem of a file listed at once."""

from __future__ import annotations

import difflib
import reprlib
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from llm_wrapper.errors import DataError, RecipeError, listed, nearest

__all__ = [
    "NO_EXPRESSION",
    "FourNumbers",
    "Id",
    "Number",
    "Sentence",
    "Side",
    "Skipped",
    "TextKind",
    "is_blank",
    "reason",
    "require_text_kind",
    "validated",
]

NO_EXPRESSION = "line without an expression"
"""The reason why a line of own data is no sample."""

Id = Annotated[str, Field(coerce_numbers_to_str=True)]
"""An id that files write as a number or as text; always text in memory."""

Number = Annotated[float, Field(strict=True)]
"""A JSON number; NaN and infinity pass, because whether they are an error depends on the file."""

FourNumbers = Annotated[list[Number], Field(min_length=4, max_length=4)]
"""A box before it is known whether it has an area."""

TextKind = Literal["raw", "sent"]
"""Which text of a REFER sentence is the expression: as typed, or cleaned."""

Side = Annotated[int, Field(gt=0, le=1_000_000)]
"""Width or height of an image in pixels."""

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


class Skipped:
    """Rows of a published file that cannot be used: counted by reason, and refused only if they are most of it.

    Nobody can correct a published file, and its publishers skip such rows too.

    Attributes:
        places: Where the rows are, by reason.
        problems: One sentence each, with the place.
    """

    def __init__(self) -> None:
        self.places: defaultdict[str, list[str]] = defaultdict(list)
        self.problems: list[str] = []

    def add(self, reason: str, where: str, detail: str) -> None:
        """Count one row, and note what is wrong with it."""
        self.places[reason].append(where)
        self.problems.append(f"{where}: {detail}")

    def validated(self, kind: type[_Model], value: Any, where: str) -> _Model | None:
        """Return `value` as a `kind`, or `None` after counting it."""
        problems: list[str] = []
        found = validated(kind, value, where=where, problems=problems)
        if found is None:
            self.places["row that cannot be read"].append(where)
            self.problems.extend(problems)
        return found

    def require_most(self, source: str, num_used: int, causes: Sequence[str] = ()) -> None:
        """Refuse a file of which not more rows can be used than not; `causes` are problems of another file.

        Raises:
            DataError: With every problem.
        """
        num_skipped = sum(map(len, self.places.values()))
        if num_skipped and num_skipped >= num_used:
            headline = f"{source} cannot be used: {num_skipped} of {num_skipped + num_used} rows are unusable"
            raise DataError(listed(headline, [*causes, *self.problems]))


class Sentence(BaseModel):
    """One expression of a REFER ref, in the two forms that the files have."""

    sent_id: Id
    sent: Any = None
    raw: Any = None

    def text(self, kind: TextKind) -> str | None:
        """Return the text of one form, unchanged, or `None` where nothing of it can be seen."""
        found = getattr(self, kind)
        return found if isinstance(found, str) and not is_blank(found) else None

    def what_is_missing(self, kind: TextKind) -> str:
        """Return why there is no text, and how to take the other form where that has one."""
        other: TextKind = "sent" if kind == "raw" else "raw"
        hint = f"; it has {other!r}: data.settings.text={other}" if self.text(other) else ""
        return f"sentence {self.sent_id}: {kind!r} must be a text, got {getattr(self, kind)!r}{hint}"


def require_text_kind(text: str) -> None:
    """Check the setting that says which text of a sentence is the expression.

    Raises:
        RecipeError: If it is neither of the two.
    """
    if text not in get_args(TextKind):
        hint = nearest(text, get_args(TextKind))
        raise RecipeError(f"data.settings.text={text!r}{hint}: it must be 'sent' (cleaned) or 'raw' (as typed).")


def is_blank(text: str) -> bool:
    """Tell whether nothing of a text can be seen: spaces, control characters, zero-width ones and lone accents."""
    return all(unicodedata.category(char)[0] in "CMZ" or char in _INVISIBLE_LETTERS for char in text)


def validated(kind: type[_Model], value: Any, *, where: str, problems: list[str]) -> _Model | None:
    """Return `value` as a `kind`; else append what is wrong with it to `problems` and return `None`."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        known = [field.alias or name for name, field in kind.model_fields.items()]
        details = error.errors()
        unknown = [_place(detail) for detail in details if detail["type"] == "extra_forbidden"]
        if unknown:
            problems.append(f"{where}: {_unknown(unknown, known)}")
        problems.extend(f"{where}: {_sentence(each)}" for each in details if each["type"] != "extra_forbidden")
        return None


def reason(error: ValueError) -> str:
    """Return why a record such as `Box` refused its values, in one line."""
    if isinstance(error, ValidationError):
        return "; ".join(_message(detail) for detail in error.errors())
    return str(error)


def _message(detail: ErrorDetails) -> str:
    return detail["msg"].removeprefix("Value error, ")


def _place(detail: ErrorDetails) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")


def _sentence(detail: ErrorDetails) -> str:
    place, kind, value = _place(detail), detail["type"], detail["input"]
    if kind == "missing":
        return f"key '{place}' is missing"
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


def _unknown(keys: Sequence[str], known: Sequence[str]) -> str:
    """Return one sentence about unknown keys, with the known ones that are like them."""
    words = f"unknown key{'s' if len(keys) > 1 else ''} {', '.join(map(repr, keys))}"
    if not known:
        return f"{words}; none is known here"
    like = {key: close[0] for key in keys if (close := difflib.get_close_matches(key, known, n=1, cutoff=0.7))}
    hints = [f"the nearest known one {f'to {key!r} ' * (len(keys) > 1)}is {near!r}" for key, near in like.items()]
    return f"{words}{'; ' * bool(hints)}{', '.join(hints)} (known: {', '.join(known)})"
