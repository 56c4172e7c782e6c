"""The detector `coco` made worse on purpose, for transfer and ensembles where no second real detector can be run.

It is no model of any real detector: its mistakes are independent of what is in the image. Boxes are moved, some are
left out, and categories are merged into COCO's super-categories (`car` becomes `vehicle`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from llm_wrapper.candidates import order_rng
from llm_wrapper.datasets import rows
from llm_wrapper.datasets.base import AnnotatedObject, Dataset
from llm_wrapper.detectors.base import Level, Question, detections_from_raw
from llm_wrapper.detectors.coco import CocoDetector
from llm_wrapper.detectors.coco import create as create_coco
from llm_wrapper.errors import DataError, RecipeError, listed
from llm_wrapper.records import Detections, Sample

__all__ = ["CocoDegradedDetector", "create"]


class _Settings(BaseModel):
    """How much worse; see `recipes/vlm/coco-degraded.yaml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    jitter: float = Field(0.1, ge=0, le=0.5)
    drop: float = Field(0.15, ge=0, lt=1)
    seed: int = 0


class CocoDegradedDetector:
    """Gives annotated objects with moved boxes and coarse labels, without scores, the largest moved box first.

    What happens to the objects of an image hangs on the seed, the image id and the objects alone: neither on the
    expression nor on the other images, so that a subset of a split gets the same answers as the whole.
    """

    name: str = "coco-degraded"
    levels: tuple[Level, ...] = ("image",)
    reads_images = False

    def __init__(self, objects: Mapping[str, Sequence[AnnotatedObject]], perfect: CocoDetector, how: _Settings) -> None:
        self._objects = objects
        self._perfect = perfect
        self._how = how

    def identity(self) -> dict[str, Any]:
        """Return what decides the answers: the annotation files' digest and the settings."""
        return {**self._perfect.identity(), "detector": self.name, "revision": 1, **self._how.model_dump()}

    def prepare(self, sample: Sample) -> None:
        """Do nothing: no pixel is read."""

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        """Return what is left of the annotated objects of each question's image.

        Raises:
            DataError: As `coco`.
        """
        self._perfect.detect(questions, prepared)  # it names all images that are not annotated
        return [self._of_image(question.sample.image_id) for question in questions]

    def _of_image(self, image_id: str) -> Detections:
        rng = order_rng(self._how.seed, image_id)
        found: list[tuple[list[float], str, float | None]] = []
        # Like `coco`, by boxes alone: the annotation order tells which objects are referred to.
        for one in sorted(self._objects[image_id], key=lambda found: (-found.box.area, found.box.xyxy, found.label)):
            keep, moves = rng.random() >= self._how.drop, rng.normal(0.0, self._how.jitter, 4)
            if keep:
                width, height = one.box.x1 - one.box.x0, one.box.y1 - one.box.y0
                corners = np.array(one.box.xyxy) + moves * [width, height, width, height]
                found.append((corners.tolist(), str(one.group), None))
        found.sort(key=lambda row: -(row[0][2] - row[0][0]) * (row[0][3] - row[0][1]))
        return detections_from_raw(found, "annotation")


def create(settings: Mapping[str, Any], dataset: Dataset) -> CocoDegradedDetector:
    """Build the detector from a data set's annotated objects.

    Settings: `jitter` is the standard deviation by which each side of a box moves, as a share of the box's width or
    height; `drop` the share of objects that are left out; `seed` decides both, with the image id.

    Raises:
        RecipeError: If a setting is unknown or out of range; all are listed.
        DataError: If the data set has no annotated objects, or its categories no super-categories.
    """
    problems: list[str] = []
    how = rows.validated(_Settings, dict(settings), where="settings", problems=problems)
    if how is None:
        raise RecipeError(listed("the detector 'coco-degraded' cannot be built", problems))
    if dataset.objects is None:
        raise DataError(
            f"data set {dataset.name} has no annotated objects, so the detector 'coco-degraded' has nothing to give. "
            "Put a COCO instances.json beside the expressions, or choose another detector."
        )
    lacking = sorted({one.label for found in dataset.objects.values() for one in found if one.group is None})
    if lacking:
        headline = f"categories of {dataset.name} have no super-category; add them to instances.json"
        raise DataError(listed(headline, lacking))
    return CocoDegradedDetector(dataset.objects, create_coco({}, dataset), how)
