"""COCO instances files: the images, annotations and categories that several data sets share."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from llm_wrapper import boxes, readers
from llm_wrapper.datasets.base import AnnotatedObject, FourNumbers, Id, Side, Skipped, validate_row
from llm_wrapper.errors import DataError, listed

_log = logging.getLogger(__name__)


class CocoImage(BaseModel):
    """One entry of `images`; sizes in pixels."""

    id: Id
    file_name: str
    width: Side
    height: Side


class CocoAnnotation(BaseModel):
    """One entry of `annotations`; `bbox` is (left, top, width, height) in pixels and may have no area."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: FourNumbers
    iscrowd: bool = False


class CocoCategory(BaseModel):
    """One entry of `categories`."""

    id: Id
    name: str
    supercategory: str | None = None


class _File(BaseModel):
    images: list[Any]
    annotations: list[Any]
    categories: list[Any]


@dataclass(frozen=True, slots=True)
class Instances:
    """A COCO instances file, by id.

    `objects` has every image of the file, in annotation order, without crowd regions (`num_crowd`) and boxes without
    an area (`num_degenerate`); `annotations` has them all.
    """

    images: Mapping[str, CocoImage]
    annotations: Mapping[str, CocoAnnotation]
    objects: Mapping[str, tuple[AnnotatedObject, ...]]
    num_crowd: int
    num_degenerate: int
    skipped: Skipped

    def is_crowd(self, annotation_id: str) -> bool:
        """Tell whether an annotation is a crowd region, which is a group of objects and not one of them."""
        annotation = self.annotations.get(annotation_id)
        return annotation is not None and annotation.iscrowd


def load_instances(path: Path) -> Instances:
    """Read a COCO instances file; entries that cannot be used are counted.

    Raises:
        DataError: If it is something else, repeats an id, or if most of its entries cannot be used.
    """
    problems: list[str] = []
    content = validate_row(_File, readers.read_json(path, nan=True), where=path.name, problems=problems)
    if content is None:
        raise DataError(listed(f"{path} is no COCO instances file", problems))
    skipped = Skipped()
    images = _by_id(CocoImage, content.images, "images", path, skipped)
    categories = _by_id(CocoCategory, content.categories, "categories", path, skipped)
    annotations = _by_id(CocoAnnotation, content.annotations, "annotations", path, skipped)
    objects: dict[str, list[AnnotatedObject]] = {image_id: [] for image_id in images}
    num_crowd = num_degenerate = 0
    for annotation in list(annotations.values()):
        unknown = None
        if annotation.image_id not in images:
            unknown = f"it has image {annotation.image_id}, which is not among the images"
        elif annotation.category_id not in categories:
            unknown = f"it has category {annotation.category_id}, which is not among the categories"
        if unknown:
            place = f"{path.name} annotation {annotation.id}"
            skipped.add("annotation of an unknown image or category", place, unknown)
            del annotations[annotation.id]
        elif annotation.iscrowd:
            num_crowd += 1
        else:
            try:
                box = boxes.from_xywh(annotation.bbox)
            except ValueError:
                num_degenerate += 1
                continue
            category = categories[annotation.category_id]
            found = AnnotatedObject(box, category.name, annotation.id, category.supercategory)
            objects[annotation.image_id].append(found)
    skipped.require_most(str(path), len(images) + len(categories) + len(annotations))
    if num_crowd or num_degenerate:
        _log.info("%s: skipped %d crowd regions and %d boxes without area", path, num_crowd, num_degenerate)
    frozen = {image_id: tuple(found) for image_id, found in objects.items()}
    return Instances(images, annotations, frozen, num_crowd, num_degenerate, skipped)


_Entry = TypeVar("_Entry", CocoImage, CocoAnnotation, CocoCategory)


def _by_id(kind: type[_Entry], values: list[Any], what: str, path: Path, skipped: Skipped) -> dict[str, _Entry]:
    """Return the entries of one list by id; those that cannot be read are counted, two of one id are refused."""
    found: Iterable[_Entry | None]
    try:
        # All at once is five times as fast: the published files have up to 200,000 annotations.
        found = TypeAdapter(list[kind]).validate_python(values)  # type: ignore[valid-type]
    except ValidationError:
        places = (f"{path.name} {what}[{number}]" for number in range(len(values)))
        found = [skipped.validate_row(kind, value, where) for value, where in zip(values, places, strict=True)]
    entries: dict[str, _Entry] = {}
    repeated: list[str] = []
    for entry in found:
        if entry is not None:
            if entry.id in entries:
                repeated.append(f"{what}: id {entry.id} occurs twice")
            entries[entry.id] = entry
    if repeated:
        raise DataError(listed(f"{path} contradicts itself", repeated))
    if values and not entries:
        raise DataError(listed(f"{path} has no {what} that can be read", skipped.problems))
    return entries
