"""COCO instances files: the images, annotations and categories that several data sets share."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field

from llm_wrapper import boxes
from llm_wrapper.datasets import rows
from llm_wrapper.datasets.base import AnnotatedObject
from llm_wrapper.errors import DataError, listed

__all__ = ["CocoAnnotation", "CocoCategory", "CocoImage", "Instances", "load"]

_log = logging.getLogger(__name__)
_Size = Annotated[int, Field(gt=0)]


class CocoImage(BaseModel):
    """One entry of `images`; sizes in pixels."""

    id: rows.Id
    file_name: str
    width: _Size
    height: _Size


class CocoAnnotation(BaseModel):
    """One entry of `annotations`; `bbox` is (left, top, width, height) in pixels and may have no area."""

    id: rows.Id
    image_id: rows.Id
    category_id: rows.Id
    bbox: rows.FourNumbers
    iscrowd: bool = False


class CocoCategory(BaseModel):
    """One entry of `categories`."""

    id: rows.Id
    name: str
    supercategory: str | None = None


class _File(BaseModel):
    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


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


def load(path: Path) -> Instances:
    """Read a COCO instances file.

    Raises:
        DataError: With every missing key, duplicate id and reference to an unknown image or category.
    """
    problems: list[str] = []
    content = rows.validated(_File, rows.read_json(path), where=path.name, problems=problems)
    if content is None:
        raise DataError(listed(f"{path} is no COCO instances file", problems))
    images = _by_id(content.images, "image", problems)
    categories = _by_id(content.categories, "category", problems)
    annotations = _by_id(content.annotations, "annotation", problems)
    problems.extend(_unknown(content.annotations, images, categories))
    if problems:
        raise DataError(listed(f"{path} contradicts itself", problems))
    return _instances(path, images, annotations, categories)


_Entry = TypeVar("_Entry", CocoImage, CocoAnnotation, CocoCategory)


def _by_id(entries: Iterable[_Entry], what: str, problems: list[str]) -> dict[str, _Entry]:
    found: dict[str, _Entry] = {}
    for entry in entries:
        if entry.id in found:
            problems.append(f"{what} id {entry.id} occurs twice")
        found[entry.id] = entry
    return found


def _unknown(
    annotations: Iterable[CocoAnnotation], images: Mapping[str, CocoImage], categories: Mapping[str, CocoCategory]
) -> Iterable[str]:
    for annotation in annotations:
        if annotation.image_id not in images:
            yield f"annotation {annotation.id} is of image {annotation.image_id}, which is not among the images"
        if annotation.category_id not in categories:
            yield f"annotation {annotation.id} has category {annotation.category_id}, which is not among the categories"


def _instances(
    path: Path,
    images: dict[str, CocoImage],
    annotations: dict[str, CocoAnnotation],
    categories: Mapping[str, CocoCategory],
) -> Instances:
    objects: dict[str, list[AnnotatedObject]] = {image_id: [] for image_id in images}
    num_crowd = num_degenerate = 0
    for annotation in annotations.values():
        if annotation.iscrowd:
            num_crowd += 1
            continue
        try:
            box = boxes.from_xywh(annotation.bbox)
        except ValueError:
            num_degenerate += 1
            continue
        category = categories[annotation.category_id]
        found = AnnotatedObject(box, category.name, annotation.id, category.supercategory)
        objects[annotation.image_id].append(found)
    if num_crowd or num_degenerate:
        _log.info("%s: left out %d crowd regions and %d boxes without area", path, num_crowd, num_degenerate)
    frozen = {image_id: tuple(found) for image_id, found in objects.items()}
    return Instances(images, annotations, frozen, num_crowd, num_degenerate)
