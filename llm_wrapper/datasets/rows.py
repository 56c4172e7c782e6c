"""Rows of annotation files: validated one by one, counted by the reason why they cannot be used, gathered to a split.

A user's own file is refused with every problem listed at once; a published file, which its reader cannot correct, loses
single rows and is refused only where most of them cannot be used.
"""

from __future__ import annotations

import difflib
import logging
import reprlib
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import numpy as np
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from llm_wrapper import box_formats, boxes
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.errors import DataError, RecipeError, listed, nearest
from llm_wrapper.records import MAX_EXPRESSION, Box, Sample

if TYPE_CHECKING:
    from llm_wrapper.datasets.coco_instances import Instances

__all__ = [
    "NO_EXPRESSION",
    "Collector",
    "Convention",
    "FourNumbers",
    "Id",
    "Number",
    "Sentence",
    "Side",
    "Skipped",
    "TextKind",
    "is_blank",
    "refusal_reason",
    "require_text_kind",
    "validate_row",
]

_log = logging.getLogger(__name__)

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

Convention = Literal["xyxy", "xywh"]
"""How the four numbers of a box are read; pixels in both."""

Side = Annotated[int, Field(gt=0, le=1_000_000)]
"""Width or height of an image in pixels."""

_Model = TypeVar("_Model", bound=BaseModel)

_NUM_EXAMPLES = 3

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
"""Pydantic's messages for somebody who has never seen Python; others are cut to `must be ..`."""


class Skipped:
    """Rows of a published file that cannot be used: counted by reason, and refused only if they are most of it.

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

    def validate_row(self, kind: type[_Model], value: Any, where: str) -> _Model | None:
        """Return `value` as a `kind`, or `None` after counting it."""
        problems: list[str] = []
        found = validate_row(kind, value, where=where, problems=problems)
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


class Collector:
    """Gathers the samples of a split, and counts the rows that cannot be used.

    Attributes:
        skipped: The unusable rows; readers add their own.
        file_names: Names of image files by image id; readers without an instances file add theirs.
    """

    def __init__(self, source: str, convention: Convention) -> None:
        self.skipped = Skipped()
        self.file_names: dict[str, str] = {}
        self._source = source
        self._convention: Convention = convention
        self._boxes: list[Sequence[float]] = []
        self._sizes: list[tuple[int, int]] = []
        self._samples: list[Sample] = []
        self._places: dict[str, str] = {}
        self._crowds: set[str] = set()

    def box(self, where: str, numbers: Sequence[float], image_wh: tuple[int, int]) -> Box | None:
        """Return the box that four numbers of a row mean, or `None` after counting the row."""
        self._boxes.append(numbers)
        self._sizes.append(image_wh)
        try:
            return Box(*numbers) if self._convention == "xyxy" else boxes.from_xywh(numbers)
        except ValueError as error:
            self.skipped.add("target that is no box", where, refusal_reason(error))
            return None

    def add(self, where: str, sample: Sample, *, is_crowd: bool = False) -> None:
        """Take a sample, unless its expression is empty or too long, or its id was used before.

        Args:
            where: The place of its row.
            sample: What the row says.
            is_crowd: Whether one of its targets is a crowd region.
        """
        sample_id = sample.sample_id
        if is_blank(sample.expression):
            self.skipped.add("expression that is empty", where, f"the expression of sample {sample_id} is empty")
            return
        if len(sample.expression) > MAX_EXPRESSION:
            detail = f"the expression of sample {sample_id} has {len(sample.expression)} characters"
            self.skipped.add(f"expression of over {MAX_EXPRESSION} characters", where, detail)
            return
        if sample_id in self._places:
            first = self._places[sample_id]
            self.skipped.add("id used before", where, f"the id {sample_id} was used for a sample of {first} already")
            return
        self._places[sample_id] = where
        self._samples.append(sample)
        if is_crowd:
            self._crowds.add(sample_id)

    def dataset(self, name: str, split: str, digest: str, instances: Instances | None = None) -> Dataset:
        """Return the split, with the objects of its instances file if it has one, and log what it lacks.

        Raises:
            DataError: If the boxes cannot be what the reader takes them for, or most rows cannot be used.
        """
        if self._boxes:
            values, sizes = np.array(self._boxes, dtype=np.float64), np.array(self._sizes, dtype=np.float64)
            wrong = box_formats.check(values, sizes, self._convention, how="a data.reader whose boxes are {}")
            if wrong:
                remedy = "Nothing was read: check that data.reader belongs to these files."
                raise DataError(f"{self._source}: {wrong.removesuffix('?')}. {remedy}")
        others = Skipped() if instances is None else instances.skipped
        self.skipped.require_most(self._source, len(self._samples), others.problems)
        skipped = {**others.places, **self.skipped.places}
        for reason, places in skipped.items():
            more = ", ..." if len(places) > _NUM_EXAMPLES else ""
            examples = ", ".join(places[:_NUM_EXAMPLES])
            _log.warning("%s: skipped %d: %s (%s%s)", self._source, len(places), reason, examples, more)
        return Dataset(
            *(name, split, self._samples, digest, None if instances is None else instances.objects),
            file_names=self.file_names if instances is None else self._names_of(instances),
            skipped={reason: tuple(places) for reason, places in skipped.items()},
            crowd_targets=frozenset(self._crowds),
        )

    def _names_of(self, instances: Instances) -> dict[str, str]:
        ids = dict.fromkeys(sample.image_id for sample in self._samples)
        return {image_id: instances.images[image_id].file_name for image_id in ids if image_id in instances.images}


class Sentence(BaseModel):
    """One expression of a REFER ref, in the two forms that the files have."""

    sent_id: Id
    sent: Any = None
    raw: Any = None

    def text(self, kind: TextKind) -> str | None:
        """Return the text of one form, unchanged, or `None` where nothing of it can be seen."""
        found = getattr(self, kind)
        return found if isinstance(found, str) and not is_blank(found) else None

    def missing_text(self, kind: TextKind) -> str:
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


def validate_row(kind: type[_Model], value: Any, *, where: str, problems: list[str]) -> _Model | None:
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


def refusal_reason(error: ValueError) -> str:
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
