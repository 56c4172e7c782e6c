"""A second detector for the toy scenes that sees no color: for transfer and ensembles, it errs where `toy` does not.

It takes whatever is darker or lighter than the background for an object and names its shape only. So it finds things
that are too small for `toy`, but joins all that touch, whatever their colors, makes boxes a little too large, and
misses what is about as bright as the background. Its scores are contrasts: they are on another scale than those of
`toy`, and say nothing about whether a name is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from llm_wrapper import images
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detectors.base import Level, Question, detections_from_raw
from llm_wrapper.detectors.toy import classify
from llm_wrapper.errors import RecipeError
from llm_wrapper.records import Detections, Sample

__all__ = ["ToyGrayDetector", "create"]

_MIN_AREA = 20
"""Regions of fewer pixels are missed."""
_MIN_CONTRAST = 26.0
"""Levels of gray (0..255) between background and object; the two tones of a background differ by nine."""
_BLUR = 3
"""Side in pixels of the square that is averaged over, which hides a background's pattern and blurs outlines."""


class ToyGrayDetector:
    """Finds shapes by contrast in a gray picture; labels such as `star`, score = contrast in 0..1."""

    name = "toy-gray"
    levels: tuple[Level, ...] = ("image",)
    reads_images = True

    def identity(self) -> dict[str, Any]:
        """Return all that decides the answers."""
        thresholds = {"min_area": _MIN_AREA, "min_contrast": _MIN_CONTRAST, "blur": _BLUR}
        return {"id": self.name, "revision": 1, "task": "contrast", **thresholds}

    def prepare(self, sample: Sample) -> Image.Image:
        """Read the image of a sample.

        Raises:
            ImageError: If it is missing, cannot be decoded, or is not of the size that the sample says.
        """
        return images.read_sample(sample)

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        """Find what stands out in the image of each question; items stand in the order of falling contrast."""
        return [_detect_one(prepared[question.sample.image_id]) for question in questions]


def create(settings: Mapping[str, Any], dataset: Dataset) -> ToyGrayDetector:
    """Build the detector; it needs nothing of the data set and takes no settings.

    Raises:
        RecipeError: If there is any setting.
    """
    if settings:
        given = ", ".join(f"{key}={value!r}" for key, value in sorted(settings.items()))
        raise RecipeError(f"The detector 'toy-gray' takes no settings, but the recipe gives {given}. Remove them.")
    return ToyGrayDetector()


def _detect_one(image: Image.Image) -> Detections:
    gray = ndimage.uniform_filter(np.asarray(image.convert("L"), dtype=np.float64), _BLUR)
    # Most of an image is background, so its median is one of the background's tones.
    contrast = np.abs(gray - np.median(gray))
    regions, _ = ndimage.label(contrast >= _MIN_CONTRAST, structure=np.ones((3, 3)))
    found: list[tuple[list[float], str, float]] = []
    for index, (rows, columns) in enumerate(ndimage.find_objects(regions), start=1):
        region = regions[rows, columns] == index
        if region.sum() < _MIN_AREA:
            continue
        shape, _ = classify(region)
        score = float(contrast[rows, columns][region].mean() / 255)
        found.append(([columns.start, rows.start, columns.stop, rows.stop], shape, score))
    found.sort(key=lambda row: (-row[2], row[0]))
    return detections_from_raw(found, "contrast")
