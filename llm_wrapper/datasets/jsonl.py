"""Expressions of a user, one JSON object a line (or a JSON list of them), beside a folder of images; the toy data too.

    {"image": "kitchen/01.jpg", "expression": "the mug left of the kettle", "box": [12, 30, 80, 96], "split": "train"}

Needed: `image` (or `file_name`) and `expression`; a line without an expression is skipped and counted. Optional: `box`
(xyxy pixels) or `bbox_xywh`, null or absent where nothing fits or nothing is known; `sample_id` (default: the line
number), `ref_id` (default: the sample id), `image_id` (default: the image's name as written), `split`, `width` and
`height`, `kind`, and `source`, a note that is not read.

Boxes in other units or layouts are declared (`data.settings.box_format=xyxy_norm`). Without the key `split` the whole
file is every split, unless `data.settings.val_share=0.2` divides its images.
"""

from __future__ import annotations

import hashlib
import os
import reprlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from llm_wrapper import box_formats, boxes, images, readers
from llm_wrapper.box_formats import BOX_FORMATS, BoxFormat
from llm_wrapper.datasets import coco_instances
from llm_wrapper.datasets.base import (
    NO_EXPRESSION,
    AnnotatedObject,
    Dataset,
    FourNumbers,
    Id,
    Side,
    digest_files,
    image_file,
    is_blank,
    refusal_reason,
    require_file,
    validate_row,
)
from llm_wrapper.errors import DataError, RecipeError, listed, nearest
from llm_wrapper.matching import AmbiguousNameError, Matcher, NotInDataError
from llm_wrapper.records import MAX_EXPRESSION, Box, Sample

EXAMPLE = '{"image": "a.jpg", "expression": "the mug left of the kettle", "box": [12, 30, 80, 96]}'
"""One right line, as messages show it."""

_RIGHT = f"A right line: {EXAMPLE}, with box null where nothing fits; bbox_xywh instead of box for width and height."
_LAYOUTS: dict[Literal["box", "bbox_xywh"], BoxFormat] = {"box": "xyxy", "bbox_xywh": "xywh"}
_TOY_SPLITS = ("train", "val", "test")
_Size = tuple[int, int]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    image: str | None = None
    file_name: str | None = None
    expression: str | None = None
    box: FourNumbers | None = None
    bbox_xywh: FourNumbers | None = None
    sample_id: Id | None = None
    ref_id: Id | None = None
    image_id: Id | None = None
    split: str | None = None
    width: Side | None = Field(None, strict=True)
    height: Side | None = Field(None, strict=True)
    kind: str | None = None
    source: str | None = None

    @field_validator("box", "bbox_xywh", mode="before")
    @classmethod
    def _is_one_box(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != 4 or any(type(each) not in (int, float) for each in value):
            several = isinstance(value, list) and any(isinstance(each, list) for each in value)
            one = ", of one object a line," if several else ""
            raise ValueError(
                f"{info.field_name} must be four numbers{one} or null where nothing fits, got {reprlib.repr(value)}"
            )
        if not any(value):
            raise ValueError(f"{info.field_name} is {value}: write null where nothing fits")
        return value

    @model_validator(mode="after")
    def _agrees(self) -> _Row:
        if not (self.image or self.file_name) or (self.image and self.file_name):
            raise ValueError("give the image's name once, as 'image' or 'file_name'")
        if self.box is not None and self.bbox_xywh is not None:
            raise ValueError("give 'box' (xyxy) or 'bbox_xywh', not both")
        if (self.width is None) != (self.height is None):
            raise ValueError("give 'width' and 'height' together, or neither")
        if self.expression is not None and is_blank(self.expression):
            raise ValueError(f"'expression' is empty: nothing of {self.expression[:20]!r} can be seen")
        if self.expression is not None and len(self.expression) > MAX_EXPRESSION:
            raise ValueError(f"'expression' has {len(self.expression)} characters; {MAX_EXPRESSION} is the most")
        return self

    @property
    def name(self) -> str:
        return self.image or self.file_name or ""

    @property
    def image_key(self) -> str:
        return self.name if self.image_id is None else self.image_id


_Placed = list[tuple[str, int, _Row]]
"""Where each row is, as messages say it; its number, which is its id by default; and the row."""


def load_jsonl(
    path: Path,
    split: str,
    *,
    images: str | Path | None = None,
    box_format: BoxFormat | None = None,
    val_share: float | None = None,
    split_seed: int = 0,
) -> Dataset:
    """Read the expressions of one split from a file of JSON lines, or of a JSON list.

    Where the lines name a split, those of `split` are kept; where none does, the whole file is the split. A COCO
    `instances.json` beside the file fills `Dataset.objects` for the images that it names.

    Args:
        path: The file; it also names the data set.
        split: The split to keep.
        images: The folder that image names are relative to, and that holds all of them; the file's own by default.
        box_format: What the boxes are, one of `BOX_FORMATS`; pixels by default, xyxy in `box` and xywh in `bbox_xywh`.
        val_share: Share of the images, 0..1, that are the split `val`; the others are `train`. No image is in both.
        split_seed: Another one draws other images.

    Raises:
        DataError: If the file or the split does not exist, if the boxes cannot be of their format, or with every
            problem of every line.
    """
    _require_settings(box_format, val_share, split_seed)
    require_file(path, f"Write one JSON object a line, or correct the path. {_RIGHT}")
    problems: list[str] = []
    parsed = _parse_rows(path, problems)
    if not parsed and not problems:
        raise DataError(f"{path} holds no expression. Write one JSON object a line. {_RIGHT}")
    example = f"\n{_RIGHT}" if problems else ""
    has_splits = val_share is not None or any(row.split is not None for _, _, row in parsed)
    if val_share is None:
        parsed = _select_split(parsed, split, path, problems)
    else:
        parsed = _divide_images(parsed, split, path, val_share=val_share, seed=split_seed)
    silent = [where for where, _, row in parsed if row.expression is None]
    if silent and len(silent) == len(parsed) and not problems:
        raise DataError(f"{path}, split {split}: none of its {len(silent)} lines has an 'expression'. {_RIGHT}")
    parsed = [each for each in parsed if each[2].expression is not None]
    reader = _Reader(path.parent if images is None else Path(images), problems)
    samples = reader.samples(parsed, box_format, f"{path}, split {split}")
    if problems:
        raise DataError(listed(f"{path}, split {split}, cannot be used", problems) + example)
    instances = path.parent / "instances.json"
    objects, skipped = _read_objects(instances, samples) if instances.is_file() else (None, {})
    if silent:
        skipped = {NO_EXPRESSION: silent, **skipped}
    digest = digest_files([path, instances] if instances.is_file() else [path])
    if val_share is not None:
        digest = hashlib.sha256(f"{digest} {float(val_share)!r} {split_seed}".encode()).hexdigest()
    return Dataset(path.stem, split, samples, digest, objects, has_splits=has_splits, skipped=skipped)


def load_toy(root: Path, split: str) -> Dataset:
    """Read one split of the toy data, from the folder that holds `<split>.jsonl` and `images/`."""
    if split not in _TOY_SPLITS:
        raise DataError(f"The toy data has no split {split!r}. It has {', '.join(_TOY_SPLITS)}.")
    path = root / f"{split}.jsonl"
    remedy = "The whole toy data is the folder data/toy of the repository: copy it from there, or correct data.root."
    try:
        dataset = load_jsonl(require_file(path, remedy), split)
    except DataError as error:
        raise DataError(f"{error}\n{remedy}") from error
    return replace(dataset, name="toy", has_splits=True)


def _require_settings(box_format: Any, val_share: Any, split_seed: Any) -> None:
    """Check what a recipe gives: its settings are of any type."""
    if box_format is not None and box_format not in BOX_FORMATS:
        hint = nearest(str(box_format), BOX_FORMATS)
        raise RecipeError(f"data.settings.box_format={box_format!r}{hint} ({', '.join(BOX_FORMATS)})")
    is_share = isinstance(val_share, int | float) and 0 < val_share < 1
    if val_share is not None and not is_share:
        raise RecipeError(f"data.settings.val_share={val_share!r}: give a share of the images between 0 and 1, as 0.2.")
    if not isinstance(split_seed, int):
        raise RecipeError(f"data.settings.split_seed={split_seed!r}: give a whole number.")


def _parse_rows(path: Path, problems: list[str]) -> _Placed:
    """Return the rows of JSON lines, or of the items of a JSON list, numbered from 1."""
    content = readers.read_bytes(path)
    start = content[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    found = readers.parse_json(content, str(path), nan=True) if start == b"[" else None
    if isinstance(found, list):
        what, values = "item", list(enumerate(found, start=1))
    else:
        what = "line"
        values, damaged = readers.read_json_lines(path, nan=True)
        if start == b"{" and len(damaged) > 1 and not any(isinstance(value, dict) for _, value in values):
            raise DataError(f"{path} is no JSON lines: write each object on one line, or a list of objects. {_RIGHT}")
        problems.extend(damaged)
    parsed = []
    for number, value in values:
        row = validate_row(_Row, value, where=f"{what} {number}", problems=problems)
        if row is not None:
            parsed.append((f"{what} {number}", number, row))
    return parsed


def _select_split(parsed: _Placed, split: str, path: Path, problems: list[str]) -> _Placed:
    existing = {row.split for _, _, row in parsed if row.split is not None}
    if not existing:
        return parsed
    problems.extend(
        f"{where}: names no split, although other lines do"
        for where, _, row in parsed
        if row.split is None and row.expression is not None
    )
    if split not in existing and not problems:
        raise DataError(f"{path} has no split '{split}'. Its splits are: {', '.join(sorted(existing))}.")
    return [each for each in parsed if each[2].split in (split, None)]


def _divide_images(parsed: _Placed, split: str, path: Path, *, val_share: float, seed: int) -> _Placed:
    """Return the rows of `train` or `val`, of which each has its own images."""
    named = next((f"{where} names split '{row.split}'" for where, _, row in parsed if row.split is not None), None)
    if named:
        raise DataError(f"{path}: {named}, so data.settings.val_share={val_share} has nothing to divide: leave it out.")
    if split not in ("train", "val"):
        raise DataError(f"{path} has no split '{split}': data.settings.val_share={val_share} makes train and val.")
    names = {os.path.normpath(row.name) for _, _, row in parsed if row.expression is not None}
    if parsed and len(names) < 2:
        raise DataError(f"{path} is about one image, which data.settings.val_share={val_share} cannot divide.")
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    held_out = set(order[: min(max(1, round(val_share * len(order))), len(order) - 1)])
    return [each for each in parsed if (os.path.normpath(each[2].name) in held_out) == (split == "val")]


class _Reader:
    """Turns rows into samples; each image file is opened once, and only where its size is not written."""

    def __init__(self, folder: Path, problems: list[str]) -> None:
        self._folder = folder
        self._problems = problems
        self._sizes: dict[str, _Size | str] = {}
        self._names: dict[str, str] = {}

    def samples(self, parsed: _Placed, box_format: BoxFormat | None, source: str) -> list[Sample]:
        """Return the samples of all rows that are usable; what is wrong with the others becomes problems."""
        usable = [(*each, size) for each in parsed if (size := self._size(*each)) is not None]
        targets: dict[int, Box | None] = {}
        for key, usual in _LAYOUTS.items():
            given = [each for each in usable if getattr(each[2], key) is not None]
            if not given:
                continue
            declared = box_format or usual
            if key == "bbox_xywh" and not declared.startswith("xywh"):
                raise DataError(
                    f"{source}: {given[0][0]} has bbox_xywh, but data.settings.box_format={declared}: use 'box'."
                )
            values = np.array([getattr(row, key) for _, _, row, _ in given], dtype=np.float64)
            sizes = np.array([size for *_, size in given], dtype=np.float64)
            how = "data.settings.box_format={}"
            wrong = box_formats.check(values, sizes, declared, how=how, is_default=box_format is None)
            if wrong:
                raise DataError(f"{source}: {key}: {wrong}")
            pixels = box_formats.to_pixels(values, sizes, declared).tolist()
            for (where, number, _, size), numbers in zip(given, pixels, strict=True):
                targets[number] = self._box(where, numbers, size)
        samples = []
        for _, number, row, size in usable:
            sample_id = str(number) if row.sample_id is None else row.sample_id
            ref_id = sample_id if row.ref_id is None else row.ref_id
            path = str(self._folder / row.name)
            target = targets.get(number)
            samples.append(
                Sample(sample_id, ref_id, row.image_key, path, size, row.expression or "", target, kind=row.kind)
            )
        return samples

    def _size(self, where: str, _number: int, row: _Row) -> _Size | None:
        """Return the (width, height) of a row's image, or `None` after noting why there is none."""
        first = self._names.setdefault(row.image_key, row.name)
        if first != row.name:
            self._problems.append(f"{where}: image_id {row.image_key} names {row.name}, but {first} before")
        if row.name not in self._sizes:
            self._sizes[row.name] = self._find_size(row)
        size = self._sizes[row.name]
        if isinstance(size, str):
            self._problems.append(f"{where}: {size}")
            return None
        if row.width is not None and (row.width, row.height) != size:
            self._problems.append(
                f"{where}: {row.name} is {row.width} x {row.height}, but {size[0]} x {size[1]} in a line before"
            )
        return size

    def _find_size(self, row: _Row) -> _Size | str:
        """Return the (width, height) of an image, or why there is none."""
        try:
            path = image_file(self._folder, row.name)
            if row.width is not None and row.height is not None:
                return (row.width, row.height)
            if os.path.isfile(path):
                return images.read_size(path)
        except DataError as error:
            return str(error)
        beside = self._folder / "images"
        if os.path.isfile(beside / row.name):
            return f"image {path} lies in {beside}: add data.settings.images={beside}"
        return f"image {path} does not exist: correct its name or the images folder, or give 'width' and 'height'"

    def _box(self, where: str, pixels: Sequence[float], image_wh: _Size) -> Box | None:
        try:
            target = Box(*pixels)
        except ValueError as error:
            self._problems.append(f"{where}: {refusal_reason(error)}; write null where nothing fits")
            return None
        if boxes.clip(target, image_wh) is None:
            self._problems.append(f"{where}: box {target.xyxy} lies outside its image, which is {image_wh}")
        return target


def _read_objects(
    path: Path, samples: Sequence[Sample]
) -> tuple[dict[str, tuple[AnnotatedObject, ...]], dict[str, Sequence[str]]]:
    """Return the objects of our images by their ids, and the entries that cannot be used, by reason."""
    instances = coco_instances.load_instances(path)
    names = {image_id: image.file_name for image_id, image in instances.images.items()}
    matcher = Matcher(samples, str(path), spellings=names.values())
    found: dict[str, tuple[AnnotatedObject, ...]] = {}
    ambiguous: list[str] = []
    for coco_id, name in names.items():
        try:
            image_id = matcher.image_of(name)
        except NotInDataError:  # the file may cover other splits
            continue
        except AmbiguousNameError:
            image_id = None
        if image_id is None or image_id in found:
            ambiguous.append(f"{path.name} {name}")
        else:
            found[image_id] = instances.objects[coco_id]
    return found, {**instances.skipped.places, **({"image of an ambiguous name": ambiguous} if ambiguous else {})}
