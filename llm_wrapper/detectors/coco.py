"""The annotated objects as a perfect detector with a closed vocabulary: neither pixels nor weights are read.

It separates how well an LLM chooses from how well a detector finds, and makes experiments possible without images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from llm_wrapper.datasets import rows
from llm_wrapper.datasets.base import AnnotatedObject, Dataset
from llm_wrapper.detectors.base import Level, Question
from llm_wrapper.errors import DataError, RecipeError, listed
from llm_wrapper.records import Detection, Detections, Sample

__all__ = ["CocoDetector", "create"]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CocoDetector:
    """Gives all annotated objects of an image, without scores, the largest first.

    The order is a function of the boxes alone. The annotation order is not: files list the referred objects of an
    image last, or first, often enough that an LLM could learn to choose by place.
    """

    name: str = "coco"
    levels: tuple[Level, ...] = ("image",)
    reads_images = False

    def __init__(self, objects: Mapping[str, Sequence[AnnotatedObject]], digest: str) -> None:
        self._objects = objects
        self._digest = digest

    def identity(self) -> dict[str, Any]:
        """Return what decides the answers: the annotation files' digest."""
        return {"detector": self.name, "annotations": self._digest}

    def prepare(self, sample: Sample) -> None:
        """Do nothing: no pixel is read."""

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        """Return the annotated objects of each question's image.

        Raises:
            DataError: With every image that has no entry in the annotations (an image without objects has one).
        """
        images = [question.sample.image_id for question in questions]
        unknown = {image_id: None for image_id in images if image_id not in self._objects}
        if unknown:
            problems = [f"image {image_id} is not in the COCO annotations" for image_id in unknown]
            remedy = "Add them to instances.json, or choose another detector"
            raise DataError(listed(f"the detector 'coco' knows nothing of some images. {remedy}", problems))
        return [self._of_image(image_id) for image_id in images]

    def _of_image(self, image_id: str) -> Detections:
        ordered = sorted(self._objects[image_id], key=lambda found: (-found.box.area, found.box.xyxy, found.label))
        return Detections(tuple(Detection(found.box, found.label, None, "annotation") for found in ordered))


def create(settings: Mapping[str, Any], dataset: Dataset) -> CocoDetector:
    """Build the detector from a data set's annotated objects; it takes no settings.

    Raises:
        RecipeError: If there are settings.
        DataError: If the data set has no annotated objects.
    """
    problems: list[str] = []
    if rows.validated(_Settings, dict(settings), where="settings", problems=problems) is None:
        raise RecipeError(listed("the detector 'coco' takes no settings: remove them", problems))
    if dataset.objects is None:
        raise DataError(
            f"data set {dataset.name} has no annotated objects, so the detector 'coco' has nothing to give. "
            "Put a COCO instances.json beside the expressions, or choose another detector."
        )
    return CocoDetector(dataset.objects, dataset.digest)
