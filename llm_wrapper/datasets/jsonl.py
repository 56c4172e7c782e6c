"""A user's own expressions: one JSON object a line, beside a folder of images.

    {"image": "kitchen/01.jpg", "expression": "the mug left of the kettle", "box": [12, 30, 80, 96]}

Needed: `image` (or `file_name`) and `expression`. Optional: `box` (xyxy pixels) or `bbox_xywh`, null or absent where
nothing fits or nothing is known; `sample_id` (default: the line number), `ref_id` (default: the sample id), `image_id`
(default: the image's name as written), `split`, `width` and `height`, `kind`, and `source`, a note that is not read.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from llm_wrapper import boxes
from llm_wrapper.datasets import coco_instances, rows
from llm_wrapper.datasets.base import AnnotatedObject, Dataset, digest_files, require_file
from llm_wrapper.errors import DataError, listed
from llm_wrapper.records import Box, Sample

__all__ = ["load"]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    image: str | None = None
    file_name: str | None = None
    expression: str
    box: rows.FourNumbers | None = None
    bbox_xywh: rows.FourNumbers | None = None
    sample_id: rows.Id | None = None
    ref_id: rows.Id | None = None
    image_id: rows.Id | None = None
    split: str | None = None
    width: int | None = Field(None, gt=0, strict=True)
    height: int | None = Field(None, gt=0, strict=True)
    kind: str | None = None
    source: str | None = None

    @model_validator(mode="after")
    def _agrees(self) -> _Row:
        if not (self.image or self.file_name) or (self.image and self.file_name):
            raise ValueError("give the image's name once, as 'image' or 'file_name'")
        if self.box is not None and self.bbox_xywh is not None:
            raise ValueError("give 'box' (xyxy) or 'bbox_xywh', not both")
        if (self.width is None) != (self.height is None):
            raise ValueError("give 'width' and 'height' together, or neither")
        if not self.expression.strip():
            raise ValueError("'expression' is empty")
        return self

    @property
    def name(self) -> str:
        return self.image or self.file_name or ""

    @property
    def image_key(self) -> str:
        return self.name if self.image_id is None else self.image_id

    def target(self) -> Box | None:
        if self.bbox_xywh is not None:
            return boxes.from_xywh(self.bbox_xywh)
        return None if self.box is None else Box(*self.box)


_Numbered = list[tuple[int, _Row]]


def load(path: Path, split: str, *, images: str | Path | None = None) -> Dataset:
    """Read the expressions of one split from a JSONL file.

    Where the lines name a split, those of `split` are kept; where none does, the whole file is the split. A COCO
    `instances.json` beside the file fills `Dataset.objects` for the images that it names.

    Args:
        path: The JSONL file; it also names the data set.
        split: The split to keep.
        images: The folder that image names are relative to; the file's own folder by default.

    Raises:
        DataError: If the file or the split does not exist, or with every problem of every line: unknown keys, boxes
            that are no boxes or lie outside their image, images whose size can be found nowhere.
    """
    require_file(path, "Write one JSON object a line with the keys 'image' and 'expression', or correct the path.")
    problems: list[str] = []
    parsed = _of_split(_parsed(path, problems), split, path, problems)
    reader = _Reader(path.parent if images is None else Path(images), problems)
    samples = [sample for number, row in parsed if (sample := reader.sample(number, row)) is not None]
    if problems:
        raise DataError(listed(f"{path}, split {split}, cannot be used", problems))
    instances = path.parent / "instances.json"
    files = [path, instances] if instances.is_file() else [path]
    objects = _objects(instances, parsed) if instances.is_file() else None
    return Dataset(path.stem, split, samples, digest_files(files), objects)


def _parsed(path: Path, problems: list[str]) -> _Numbered:
    values, damaged = rows.read_json_lines(path)
    problems.extend(damaged)
    parsed = [
        (number, row)
        for number, value in values
        if (row := rows.validated(_Row, value, where=f"line {number}", problems=problems)) is not None
    ]
    if not parsed and not problems:
        raise DataError(f"{path} holds no expression. Write one JSON object a line.")
    return parsed


def _of_split(parsed: _Numbered, split: str, path: Path, problems: list[str]) -> _Numbered:
    existing = {row.split for _, row in parsed if row.split is not None}
    if not existing:
        return parsed
    problems.extend(
        f"line {number}: names no split, although other lines do" for number, row in parsed if row.split is None
    )
    if split not in existing and not problems:
        raise DataError(f"{path} has no split '{split}'. Its splits are: {', '.join(sorted(existing))}.")
    return [(number, row) for number, row in parsed if row.split == split]


class _Reader:
    """Turns lines into samples; each image file is opened once, and only where its size is not written."""

    def __init__(self, folder: Path, problems: list[str]) -> None:
        self._folder = folder
        self._problems = problems
        self._sizes: dict[str, tuple[int, int] | str] = {}
        self._names: dict[str, str] = {}

    def sample(self, number: int, row: _Row) -> Sample | None:
        """Return the line's sample, or `None` after noting its problems."""
        first = self._names.setdefault(row.image_key, row.name)
        if first != row.name:
            self._problems.append(f"line {number}: image_id {row.image_key} names {row.name}, but {first} before")
        image_wh = self._image_wh(row)
        if isinstance(image_wh, str):
            self._problems.append(f"line {number}: {image_wh}")
            return None
        try:
            target = row.target()
        except ValueError as error:
            self._problems.append(f"line {number}: {rows.reason(error)}")
            return None
        if target is not None and boxes.clip(target, image_wh) is None:
            self._problems.append(f"line {number}: box {target.xyxy} lies outside its image, which is {image_wh}")
        sample_id = str(number) if row.sample_id is None else row.sample_id
        return Sample(
            sample_id=sample_id,
            ref_id=sample_id if row.ref_id is None else row.ref_id,
            image_id=row.image_key,
            image_path=str(self._folder / row.name),
            image_wh=image_wh,
            expression=row.expression,
            target=target,
            kind=row.kind,
        )

    def _image_wh(self, row: _Row) -> tuple[int, int] | str:
        if row.width is not None and row.height is not None:
            return (row.width, row.height)
        if row.name not in self._sizes:
            self._sizes[row.name] = _header_wh(self._folder / row.name)
        return self._sizes[row.name]


def _header_wh(path: Path) -> tuple[int, int] | str:
    """Return (width, height) from an image's header, or why it cannot be read."""
    if not path.is_file():
        return f"image {path} does not exist: correct 'image' or the images folder, or give 'width' and 'height'"
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (int(width), int(height))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        return f"image {path} cannot be read: {error}"


def _objects(instances_path: Path, parsed: _Numbered) -> dict[str, tuple[AnnotatedObject, ...]]:
    """Match images by file name (with folders if that fits, else by the last part), objects by our image ids."""
    instances = coco_instances.load(instances_path)
    by_name = {image.file_name: image.id for image in instances.images.values()}
    found: dict[str, tuple[AnnotatedObject, ...]] = {}
    for _, row in parsed:
        coco_id = by_name.get(row.name, by_name.get(Path(row.name).name))
        if coco_id is not None:
            found[row.image_key] = instances.objects[coco_id]
    return found
