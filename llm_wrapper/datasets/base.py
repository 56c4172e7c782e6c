"""The data set that every reader returns, and the steps that readers share: files, rows, samples.

    file -> rows, validated one by one -> Collector: samples, and counts of unusable rows by reason -> Dataset

A user's own file is refused with every problem listed at once; a published file, which its reader cannot correct, loses
single rows and is refused only where most of them cannot be used.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import reprlib
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import numpy as np
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from llm_wrapper import box_formats, boxes, storage
from llm_wrapper.errors import DataError, RecipeError, listed, nearest
from llm_wrapper.records import MAX_EXPRESSION, Box, Sample

if TYPE_CHECKING:
    from llm_wrapper.datasets.coco_instances import Instances

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

_MESSAGES = {
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must not be empty",
    "list_type": "must be a list",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be an object of keys and values"),
    "float_type": "must be a number",
    **dict.fromkeys(("int_type", "int_from_float"), "must be a whole number"),
    "bool_type": "must be true or false",
}
"""Pydantic's messages for somebody who has never seen Python; others are cut to `must be ..`."""


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """One annotated object of an image: its box (xyxy pixels), category name and annotation id.

    `group` is the name of the category's super-category (`vehicle` of `car`), where the annotations have any.
    """

    box: Box
    label: str
    annotation_id: str
    group: str | None = None


@dataclass(frozen=True)
class Dataset:
    """One split of a data set: a sample for each expression that can be used.

    Attributes:
        digest: Identifies the annotation files by content.
        objects: All annotated objects by image id; `None` where the data set has none.
        file_names: The annotations' own names of the image files by image id, also where there are no files.
        has_splits: Whether the annotations divide the samples. Where they do not, every split is all of them, so that
            whatever was trained on this data set was trained on this split.
        skipped: Places of the rows of published annotations that cannot be used, by reason.
        crowd_targets: Ids of the samples that mean a crowd region (`iscrowd`), for which no box of an object is right.
    """

    name: str
    split: str
    samples: Sequence[Sample]
    digest: str
    objects: Mapping[str, Sequence[AnnotatedObject]] | None = field(default=None, repr=False)
    file_names: Mapping[str, str] = field(default_factory=dict, repr=False)
    has_splits: bool = True
    skipped: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    crowd_targets: frozenset[str] = frozenset()

    def images(self) -> list[Sample]:
        """Return the first sample of each image, in order of appearance."""
        first: dict[str, Sample] = {}
        for sample in self.samples:
            first.setdefault(sample.image_id, sample)
        return list(first.values())

    def notes(self) -> list[str]:
        """Return the facts that belong beside every result on this split, one sentence each; usually none."""
        where = f"{self.name} {self.split}"
        notes = [f"{where}: skipped {len(places):,}: {reason}" for reason, places in self.skipped.items()]
        if self.crowd_targets:
            notes.append(
                f"{where}: {len(self.crowd_targets):,} of {len(self.samples):,} expressions mean a crowd region "
                "(iscrowd): no box of one object is right"
            )
        return notes


def digest_files(paths: Sequence[Path]) -> str:
    """SHA-256 over the names and contents of files, as hex."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode() + b"\0" + bytes.fromhex(storage.digest(path)))
    return total.hexdigest()


def require_file(path: Path, remedy: str) -> Path:
    """Return `path` if it is a file; else raise a DataError that names it and the remedy."""
    if not path.is_file():
        raise DataError(f"{path} does not exist. {remedy}")
    return path


def image_file(folder: Path, name: str) -> Path:
    """Return the path of an image, named relative to its folder or as an absolute path under it.

    Links are followed: the user made them, and image folders are often links to another disk.

    Raises:
        DataError: If the name leads out of the folder or cannot be one.
    """
    if "\0" in name:
        raise DataError(f"image {name[:200]!r} is no name of a file")
    path = folder / name
    home, place = os.path.abspath(folder), Path(os.path.abspath(path))
    if place.is_relative_to(home) or place.is_relative_to(folder.resolve()):
        return path
    remedy = (
        f"give data.settings.images={place.parent}"
        if os.path.isabs(name)
        else "name images relative to one folder that holds all, and give it as data.settings.images=.."
    )
    raise DataError(
        f"image {name[:200]!r} lies outside {folder}, and only images under that folder are read: "
        f"if it is meant, {remedy}"
    )


def image_folder(root: Path, images: str | Path | None) -> Path | None:
    """Return the folder of the image files, which must exist if it is named, else `<root>/images` if there is one."""
    if images is None:
        return root / "images" if (root / "images").is_dir() else None
    if not Path(images).is_dir():
        raise DataError(
            f"the images folder {images} does not exist. Correct data.settings.images, or leave it out: "
            "detectors that read no pixels need no images."
        )
    return Path(images)


class Skipped:
    """Rows of a published file that cannot be used: their places by reason, and what is wrong with each."""

    def __init__(self) -> None:
        self.places: defaultdict[str, list[str]] = defaultdict(list)
        self.problems: list[str] = []

    def add(self, reason: str, where: str, detail: str) -> None:
        """Count one row, and note what is wrong with it."""
        self.places[reason].append(where)
        self.problems.append(f"{where}: {detail}")

    def validate_row(self, kind: type[_Model], value: Any, where: str) -> _Model | None:
        """Return `value` as a `kind`, or `None` after counting it."""
        row = validate_row(kind, value, where=where, problems=self.problems)
        if row is None:
            self.places["row that cannot be read"].append(where)
        return row

    def require_most(self, source: str, num_used: int, causes: Sequence[str] = ()) -> None:
        """Refuse a file of which not more rows can be used than not; `causes` are problems of another file."""
        num_skipped = sum(map(len, self.places.values()))
        if num_skipped and num_skipped >= num_used:
            headline = f"{source} cannot be used: {num_skipped} of {num_skipped + num_used} rows are unusable"
            raise DataError(listed(headline, [*causes, *self.problems]))


class Collector:
    """Gathers the samples of a split, and counts the rows that cannot be used.

    Readers add their own reasons to `skipped`, and the names of image files (by image id) to `file_names` where they
    have no instances file.
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
        """Take a sample, unless its expression is empty or too long, or its id was used before."""
        sample_id, length = sample.sample_id, len(sample.expression)
        if is_blank(sample.expression):
            self.skipped.add("expression that is empty", where, f"the expression of sample {sample_id} is empty")
        elif length > MAX_EXPRESSION:
            detail = f"the expression of sample {sample_id} has {length} characters"
            self.skipped.add(f"expression of over {MAX_EXPRESSION} characters", where, detail)
        elif sample_id in self._places:
            detail = f"the id {sample_id} was used for a sample of {self._places[sample_id]} already"
            self.skipped.add("id used before", where, detail)
        else:
            self._places[sample_id] = where
            self._samples.append(sample)
            self._crowds |= {sample_id} if is_crowd else set()

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
        others = instances.skipped if instances else Skipped()
        self.skipped.require_most(self._source, len(self._samples), others.problems)
        skipped = {**others.places, **self.skipped.places}
        for reason, places in skipped.items():
            more = ", ..." if len(places) > _NUM_EXAMPLES else ""
            examples = ", ".join(places[:_NUM_EXAMPLES])
            _log.warning("%s: skipped %d: %s (%s%s)", self._source, len(places), reason, examples, more)
        file_names = self.file_names
        if instances:
            ids = dict.fromkeys(sample.image_id for sample in self._samples)
            file_names = {each: instances.images[each].file_name for each in ids if each in instances.images}
        return Dataset(
            *(name, split, self._samples, digest, instances.objects if instances else None),
            file_names=file_names,
            skipped={reason: tuple(places) for reason, places in skipped.items()},
            crowd_targets=frozenset(self._crowds),
        )


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
    """Check the setting that says which text of a sentence is the expression."""
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
        details = error.errors()
        unknown = [_place(detail) for detail in details if detail["type"] == "extra_forbidden"]
        if unknown:
            problems.append(f"{where}: {_unknown_keys(unknown, kind)}")
        problems.extend(f"{where}: {_sentence(each)}" for each in details if each["type"] != "extra_forbidden")
        return None


def refusal_reason(error: ValueError) -> str:
    """Return why a record such as `Box` refused its values, in one line."""
    if isinstance(error, ValidationError):
        return "; ".join(detail["msg"].removeprefix("Value error, ") for detail in error.errors())
    return str(error)


def _place(detail: ErrorDetails) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(".")


def _sentence(detail: ErrorDetails) -> str:
    place, kind, value = _place(detail), detail["type"], detail["input"]
    if kind == "missing":
        return f"key '{place}' is missing"
    if kind == "value_error":
        return detail["msg"].removeprefix("Value error, ")
    if kind in ("too_short", "too_long"):
        bound, number = ("at least", "min_length") if kind == "too_short" else ("at most", "max_length")
        most = detail["ctx"][number]
        text = f"must have {bound} {most} item{'s' if most != 1 else ''}, has {len(value)}"
    else:
        text = _MESSAGES.get(kind) or detail["msg"].replace("Input should", "must", 1)
    return f"{place or 'the row'}: {text}, got {reprlib.repr(value)}"


def _unknown_keys(keys: Sequence[str], kind: type[BaseModel]) -> str:
    """Return one sentence about unknown keys, with the known ones that are like them."""
    known = [field.alias or name for name, field in kind.model_fields.items()]
    text = f"unknown key{'s' if len(keys) > 1 else ''} {', '.join(map(repr, keys))}"
    if not known:
        return f"{text}; none is known here"
    like = {key: close[0] for key in keys if (close := difflib.get_close_matches(key, known, n=1, cutoff=0.7))}
    hints = [f"the nearest known one {f'to {key!r} ' * (len(keys) > 1)}is {near!r}" for key, near in like.items()]
    return f"{text}{'; ' * bool(hints)}{', '.join(hints)} (known: {', '.join(known)})"
