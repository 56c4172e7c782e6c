"""Annotated objects as detectors with a closed vocabulary, and files of category names; no pixels are read.

`coco` is perfect. It separates how well an LLM chooses from how well a detector finds.

`coco-degraded` is made worse on purpose, for transfer and ensembles where no second real detector can be run. It is no
model of any real detector: its mistakes are independent of the content of the image. Boxes are moved, some are
dropped, and categories are merged into COCO's super-categories (`car` becomes `vehicle`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from llm_wrapper import readers
from llm_wrapper.candidates import order_rng
from llm_wrapper.datasets.base import AnnotatedObject, Dataset
from llm_wrapper.detectors import (
    Level,
    NoSettings,
    Question,
    RawRow,
    UnboundDetector,
    detections_from_raw,
    parse_settings,
)
from llm_wrapper.errors import DataError, listed
from llm_wrapper.records import Detection, Detections, Sample

_Objects = Mapping[str, Sequence[AnnotatedObject]]


class CocoDetector:
    """Gives all annotated objects of an image, without scores, the largest first.

    The order is a function of the boxes alone. The annotation order is not: files list the referred objects of an
    image last, or first, often enough that an LLM could learn to choose by place.
    """

    name: str = "coco"
    levels: tuple[Level, ...] = ("image",)
    reads_images = False

    def __init__(self, objects: _Objects, digest: str) -> None:
        self._objects = objects
        self._digest = digest

    def identity(self) -> dict[str, Any]:
        """Return the digest of the annotation files, which decides the answers."""
        return {"detector": self.name, "annotations": self._digest}

    def prepare(self, sample: Sample) -> None:
        """Do nothing: no pixel is read."""

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        """Return the annotated objects of each question's image; one without an entry is a DataError."""
        images = [question.sample.image_id for question in questions]
        unknown = {image_id: None for image_id in images if image_id not in self._objects}
        if unknown:
            problems = [f"image {image_id} is not in the COCO annotations" for image_id in unknown]
            remedy = "Add them to instances.json, or choose another detector"
            raise DataError(listed(f"the detector 'coco' knows nothing of some images. {remedy}", problems))
        return [self._detect_in(image_id) for image_id in images]

    def _detect_in(self, image_id: str) -> Detections:
        return Detections(tuple(Detection(each.box, each.label, None, "annotation") for each in self._sort(image_id)))

    def _sort(self, image_id: str) -> list[AnnotatedObject]:
        return sorted(self._objects[image_id], key=lambda each: (-each.box.area, each.box.xyxy, each.label))


class CocoDegradedSettings(BaseModel):
    """Settings of `coco-degraded`; `seed` decides all that is random, with the image id.

    `jitter` is the standard deviation by which each side of a box moves, as a share of the box's width or height;
    `drop` is the share of objects that are dropped.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    jitter: float = Field(0.1, ge=0, le=0.5)
    drop: float = Field(0.15, ge=0, lt=1)
    seed: int = 0


class CocoDegradedDetector(CocoDetector):
    """Gives annotated objects with moved boxes and coarse labels, without scores, the largest moved box first.

    The result depends on the seed, the image id and the objects of the image alone: neither on the expression nor on
    other images, so that a subset of a split gets the same answers as the whole.
    """

    name: str = "coco-degraded"

    def __init__(self, objects: _Objects, digest: str, settings: CocoDegradedSettings) -> None:
        super().__init__(objects, digest)
        self._settings = settings

    def identity(self) -> dict[str, Any]:
        """Return the digest of the annotation files and the settings."""
        return {**super().identity(), "revision": 1, **self._settings.model_dump()}

    def _detect_in(self, image_id: str) -> Detections:
        rng = order_rng(self._settings.seed, image_id)
        rows: list[RawRow] = []
        for each in self._sort(image_id):
            is_kept, moves = rng.random() >= self._settings.drop, rng.normal(0.0, self._settings.jitter, 4)
            if is_kept:
                width, height = each.box.x1 - each.box.x0, each.box.y1 - each.box.y0
                corners = np.array(each.box.xyxy) + moves * [width, height, width, height]
                rows.append((corners.tolist(), str(each.group), None))
        rows.sort(key=lambda row: -(row[0][2] - row[0][0]) * (row[0][3] - row[0][1]))
        return detections_from_raw(rows, "annotation")


def create_coco(settings: Mapping[str, Any]) -> UnboundDetector:
    """Build the detector of a data set's annotated objects, which has no settings."""
    parse_settings(NoSettings, settings, "coco")
    return UnboundDetector(lambda dataset: CocoDetector(_require_objects(dataset, "coco"), dataset.digest))


def create_coco_degraded(settings: Mapping[str, Any]) -> UnboundDetector:
    """Build the detector of `CocoDegradedSettings`; binding needs categories with super-categories."""
    parsed = parse_settings(CocoDegradedSettings, settings, "coco-degraded")

    def bind(dataset: Dataset) -> CocoDegradedDetector:
        objects = _require_objects(dataset, "coco-degraded")
        lacking = sorted({each.label for image in objects.values() for each in image if each.group is None})
        if lacking:
            headline = f"categories of {dataset.name} have no super-category; add them to instances.json"
            raise DataError(listed(headline, lacking))
        return CocoDegradedDetector(objects, dataset.digest, parsed)

    return UnboundDetector(bind)


def _require_objects(dataset: Dataset, detector: str) -> _Objects:
    if dataset.objects is None:
        raise DataError(
            f"data set {dataset.name} has no annotated objects, so the detector {detector!r} has nothing to give. "
            "Put a COCO instances.json beside the expressions, or choose another detector."
        )
    return dataset.objects


@dataclass(frozen=True, slots=True)
class CategoryNames:
    """Names by id, of the file `source`.

    `is_from_zero` is true of lists and of mappings with an id 0, as ultralytics writes them.
    """

    source: str
    by_id: Mapping[int, str]
    is_from_zero: bool

    def offset(self, ids: Collection[int], *, is_from_one: bool) -> int:
        """Return the number to add to a file's ids, so that they are the ids of these names.

        ultralytics counts classes from 0 in `names` and from 1 in `predictions.json`; others write class indices where
        COCO's ids count from 1.

        Args:
            ids: All that a file uses.
            is_from_one: Whether files of its kind count from 1.
        """
        if not ids:
            return 0
        fits = {offset: all(number + offset in self.by_id for number in ids) for offset in (-1, 0, 1)}
        if self.is_from_zero and is_from_one and 0 not in ids and fits[-1]:
            return -1
        if fits[0]:
            return 0
        return 1 if not self.is_from_zero and 0 in ids and fits[1] else 0


class _Category(BaseModel):
    id: int
    name: str


def read_category_names(path: Path) -> CategoryNames:
    """Read names of categories.

    Args:
        path: JSON or YAML: `{"categories": [{id, name}]}`, `{"names": ..}`, `{id: name}`, or a list of names or of
            `{id, name}`.

    Raises:
        DataError: If the file holds none of these.
    """
    if path.suffix in (".yaml", ".yml"):
        content = readers.parse_yaml(readers.read_text(path), str(path))
    else:
        content = readers.read_json(path)
    for key in ("categories", "names"):
        if isinstance(content, dict) and isinstance(content.get(key), list | dict):
            content = content[key] or {}  # a file without a category is no error of it
            break
    is_coco = isinstance(content, list) and bool(content) and isinstance(content[0], dict)
    try:
        if is_coco:
            names = {entry.id: entry.name for entry in TypeAdapter(list[_Category]).validate_python(content)}
        elif isinstance(content, list) and content:
            names = dict(enumerate(TypeAdapter(list[str]).validate_python(content)))
        else:
            names = TypeAdapter(dict[int, str]).validate_python(content)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
        remedy = "write {id: name}, a list of names, or COCO's categories"
        raise DataError(listed(f"{path} names no categories: {remedy}", problems)) from error
    return CategoryNames(
        path.name, {number: name.strip() for number, name in names.items()}, not is_coco and 0 in names
    )
