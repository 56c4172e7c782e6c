"""A detector for the toy scenes that sees nothing but pixels.

It cuts the image into connected regions of one color name and names each region after the shape template that it
overlaps most. It errs as real detectors do: touching neighbors of one color become one box, tiny things are missed,
and a shape that is cut or covered may get another name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from llm_wrapper import images
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.datasets.toy_shapes import HUES, MAX_TILT, OUTLINES, covers
from llm_wrapper.detectors.base import Level, Question, detections_from_raw
from llm_wrapper.errors import RecipeError
from llm_wrapper.records import Detections, Sample

__all__ = ["ToyDetector", "classify", "create"]

BoolArray = npt.NDArray[np.bool_]

_MIN_AREA = 48
"""Regions of fewer pixels are missed."""
_MIN_SATURATION = 110
"""Below this (0..255) a pixel is background."""
_FRAME = np.stack(np.meshgrid(np.linspace(-1.2, 1.2, 40), np.linspace(-1.2, 1.2, 40)))
"""Points (2, 40, 40), x then y, about a region's centroid, in units of the square root of its area."""


class ToyDetector:
    """Finds colored shapes by segmentation; labels such as `red star`, score = overlap with the template."""

    name = "toy"
    levels: tuple[Level, ...] = ("image",)
    reads_images = True

    def identity(self) -> dict[str, Any]:
        """Return all that decides the answers."""
        return {"id": self.name, "revision": 1, "task": "segmentation", "min_area": _MIN_AREA}

    def prepare(self, sample: Sample) -> Image.Image:
        """Read the image of a sample.

        Raises:
            ImageError: If it is missing, cannot be decoded, or is not of the size that the sample says.
        """
        return images.read_sample(sample)

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        """Segment the image of each question; items stand in the order of falling score."""
        return [self._detect_one(prepared[question.sample.image_id]) for question in questions]

    def _detect_one(self, image: Image.Image) -> Detections:
        names = _color_names(image)
        found: list[tuple[list[float], str, float]] = []
        for number, color in enumerate(HUES, start=1):
            regions, _ = ndimage.label(names == number, structure=np.ones((3, 3)))
            for index, (rows, columns) in enumerate(ndimage.find_objects(regions), start=1):
                region = regions[rows, columns] == index
                if region.sum() < _MIN_AREA:
                    continue
                shape, score = classify(region)
                box = [columns.start, rows.start, columns.stop, rows.stop]
                found.append((box, f"{color} {shape}", score))
        found.sort(key=lambda row: (-row[2], row[0]))
        return detections_from_raw(found, "segmentation")


def create(settings: Mapping[str, Any], dataset: Dataset) -> ToyDetector:
    """Build the detector; it needs nothing of the data set and takes no settings.

    Raises:
        RecipeError: If there is any setting.
    """
    if settings:
        given = ", ".join(f"{key}={value!r}" for key, value in sorted(settings.items()))
        raise RecipeError(f"The detector 'toy' takes no settings, but the recipe gives {given}. Remove them.")
    return ToyDetector()


def _color_names(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Name the color of each pixel, (height, width): 0 for background, else 1 + the index in `HUES`."""
    hue, saturation, value = np.moveaxis(np.asarray(image.convert("HSV"), dtype=np.float64), 2, 0)
    away = np.abs(hue[..., None] * (360 / 256) - np.array(list(HUES.values())))
    nearest = np.minimum(away, 360 - away).argmin(axis=2) + 1
    return np.where((saturation >= _MIN_SATURATION) & (value >= 60), nearest, 0).astype(np.uint8)


def classify(region: BoolArray) -> tuple[str, float]:
    """Return the shape whose template overlaps a region (height, width) most, and that overlap (IoU, 0..1)."""
    shapes, templates = _templates()
    normal = _normalized(region)
    overlaps = (templates & normal).sum(axis=(1, 2)) / (templates | normal).sum(axis=(1, 2))
    best = int(overlaps.argmax())
    return shapes[best], float(overlaps[best])


def _normalized(region: BoolArray) -> BoolArray:
    """Sample a region on `_FRAME`, so that place and size no longer matter; shape (40, 40)."""
    ys, xs = np.nonzero(region)
    unit = np.sqrt(len(xs))
    columns = np.floor(_FRAME[0] * unit + xs.mean() + 0.5).astype(np.int64)
    rows = np.floor(_FRAME[1] * unit + ys.mean() + 0.5).astype(np.int64)
    height, width = region.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    normal: BoolArray = inside & region[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return normal


@cache
def _templates() -> tuple[list[str], BoolArray]:
    """Return shape names and their normalized masks (n, 40, 40), each shape at several tilts."""
    ys, xs = np.mgrid[-64:65, -64:65] / 64
    tilts = np.linspace(-MAX_TILT, MAX_TILT, 5)
    named = [(shape, covers(shape, xs, ys, tilt=float(tilt))) for shape in OUTLINES for tilt in tilts]
    return [shape for shape, _ in named], np.stack([_normalized(mask) for _, mask in named])
