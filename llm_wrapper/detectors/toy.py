"""Two detectors for the toy scenes that see nothing but pixels.

`toy` cuts the image into connected regions of one color and names each after the shape template that it overlaps most.
It errs as real detectors do: touching neighbors of one color become one box, tiny things are missed, and a shape that
is cut or covered may get another name.

`toy-gray` sees no color, for transfer and ensembles: it errs where `toy` does not. It finds things that are too small
for `toy`, but joins all that touch, makes boxes a little too large, and misses what is about as bright as the
background. Its scores are contrasts, on another scale than those of `toy`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from llm_wrapper.detectors import ImageDetector, NoSettings, Question, detections_from_raw, parse_settings
from llm_wrapper.records import Detections

_Bools = npt.NDArray[np.bool_]
_Floats = npt.NDArray[np.float64]

HUES = {"red": 0.0, "orange": 30.0, "yellow": 56.0, "green": 125.0, "blue": 218.0, "purple": 285.0}
"""Hue of each color name in degrees."""

MAX_TILT = 12.0
"""The most that a shape is turned from upright, in degrees."""

_Row = tuple[list[float], str, float]
"""Box, label and score."""

_MIN_SATURATION = 110
"""Of `toy`: below this (0..255) a pixel is background."""
_MIN_CONTRAST = 26.0
"""Of `toy-gray`: gray levels (0..255) between background and object; the two tones of a background differ by nine."""
_BLUR = 3
"""Of `toy-gray`: side in pixels of the square that is averaged over, which hides a background's pattern."""
_FRAME = np.stack(np.meshgrid(np.linspace(-1.2, 1.2, 40), np.linspace(-1.2, 1.2, 40)))
"""Points (2, 40, 40), x then y, about a region's centroid, in units of the square root of its area."""


def _regular(num_corners: int, start: float) -> _Floats:
    """Corners (n, 2) of a regular polygon of circumradius 1; `start` is the first corner's angle in degrees."""
    angles = np.radians(start + 360.0 * np.arange(num_corners) / num_corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


_ARM = 0.32
_CROSS = [(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)]
_CROSS += [(-x, -y) for x, y in _CROSS]

OUTLINES: dict[str, _Floats] = {
    "circle": _regular(60, 0.0),
    "square": _regular(4, 45.0),
    "triangle": _regular(3, -90.0),
    "star": _regular(10, -90.0) * np.tile([[1.0], [0.42]], (5, 1)),
    "cross": np.array(_CROSS, dtype=np.float64),
    "diamond": np.array([(0, -1), (0.62, 0), (0, 1), (-0.62, 0)], dtype=np.float64),
}
"""Shape -> corners (n, 2) of its upright outline of radius 1 about (0, 0); y points down, as in images."""


class _PixelDetector(ImageDetector):
    """Finds connected regions of pixels and names their shapes; the highest score comes first.

    Attributes:
        min_area: Regions of fewer pixels are missed.
        task: The source of the detections.
    """

    name: str
    min_area: ClassVar[int]
    task: ClassVar[str]

    def __init__(self, **settings: float) -> None:
        identity = {"revision": 1, "task": self.task, "min_area": self.min_area, **settings}
        super().__init__(self.name, self._rows, identity)

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        """Segment the image of each question; the detections are in the order of falling score."""
        answers = []
        for question in questions:
            rows = list(self._rows(prepared[question.sample.image_id]))
            rows.sort(key=lambda row: (-row[2], row[0]))
            answers.append(detections_from_raw(rows, self.task))
        return answers

    @abstractmethod
    def _rows(self, image: Image.Image) -> Iterator[_Row]:
        """Yield what is found in an image."""

    def _regions(self, mask: _Bools) -> Iterator[tuple[list[float], tuple[slice, slice], _Bools]]:
        """Yield the box, the place and the pixels of each connected region that is large enough."""
        regions, _ = ndimage.label(mask, structure=np.ones((3, 3)))
        for number, (rows, columns) in enumerate(ndimage.find_objects(regions), start=1):
            region = regions[rows, columns] == number
            if region.sum() >= self.min_area:
                yield [columns.start, rows.start, columns.stop, rows.stop], (rows, columns), region


class ToyDetector(_PixelDetector):
    """Finds colored shapes by segmentation; labels such as `red star`, score = overlap with the template."""

    name = "toy"
    min_area = 48
    task = "segmentation"

    def _rows(self, image: Image.Image) -> Iterator[_Row]:
        names = _color_names(image)
        for number, color in enumerate(HUES, start=1):
            for box, _, region in self._regions(names == number):
                shape, score = classify_shape(region)
                yield box, f"{color} {shape}", score


class ToyGrayDetector(_PixelDetector):
    """Finds shapes by contrast in a gray picture; labels such as `star`, score = contrast in 0..1."""

    name = "toy-gray"
    min_area = 20
    task = "contrast"

    def __init__(self) -> None:
        super().__init__(min_contrast=_MIN_CONTRAST, blur=_BLUR)

    def _rows(self, image: Image.Image) -> Iterator[_Row]:
        gray = ndimage.uniform_filter(np.asarray(image.convert("L"), dtype=np.float64), _BLUR)
        # Most of an image is background, so its median is one of the background's tones.
        contrast = np.abs(gray - np.median(gray))
        for box, place, region in self._regions(contrast >= _MIN_CONTRAST):
            yield box, classify_shape(region)[0], float(contrast[place][region].mean() / 255)


def create_toy(settings: Mapping[str, Any]) -> ToyDetector:
    """Build the detector `toy`, which has no settings."""
    parse_settings(NoSettings, settings, "toy")
    return ToyDetector()


def create_toy_gray(settings: Mapping[str, Any]) -> ToyGrayDetector:
    """Build the detector `toy-gray`, which has no settings."""
    parse_settings(NoSettings, settings, "toy-gray")
    return ToyGrayDetector()


def _color_names(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Name the color of each pixel, (height, width): 0 for background, else 1 + the index in `HUES`."""
    hue, saturation, value = np.moveaxis(np.asarray(image.convert("HSV"), dtype=np.float64), 2, 0)
    away = np.abs(hue[..., None] * (360 / 256) - np.array(list(HUES.values())))
    nearest = np.minimum(away, 360 - away).argmin(axis=2) + 1
    return np.where((saturation >= _MIN_SATURATION) & (value >= 60), nearest, 0).astype(np.uint8)


def classify_shape(region: _Bools) -> tuple[str, float]:
    """Return the shape whose template overlaps a region (height, width) most, and that overlap (IoU, 0..1)."""
    shapes, templates = _templates()
    normal = _normalize(region)
    overlaps = (templates & normal).sum(axis=(1, 2)) / (templates | normal).sum(axis=(1, 2))
    best = int(overlaps.argmax())
    return shapes[best], float(overlaps[best])


def _normalize(region: _Bools) -> _Bools:
    """Sample a region on `_FRAME`, so that place and size no longer matter; shape (40, 40)."""
    ys, xs = np.nonzero(region)
    unit = np.sqrt(len(xs))
    columns = np.floor(_FRAME[0] * unit + xs.mean() + 0.5).astype(np.int64)
    rows = np.floor(_FRAME[1] * unit + ys.mean() + 0.5).astype(np.int64)
    height, width = region.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    normal: _Bools = inside & region[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return normal


@cache
def _templates() -> tuple[list[str], _Bools]:
    """Return shape names and their normalized masks (n, 40, 40), each shape at several tilts."""
    ys, xs = np.mgrid[-64:65, -64:65] / 64
    tilts = np.linspace(-MAX_TILT, MAX_TILT, 5)
    named = [(shape, is_inside_shape(shape, xs, ys, tilt=float(tilt))) for shape in OUTLINES for tilt in tilts]
    return [shape for shape, _ in named], np.stack([_normalize(mask) for _, mask in named])


def is_inside_shape(shape: str, x: _Floats, y: _Floats, *, tilt: float) -> _Bools:
    """Tell which points lie inside a shape of radius 1 about (0, 0) that is turned by `tilt` degrees.

    Args:
        shape: A key of `OUTLINES`.
        x: Horizontal coordinates, any shape.
        y: Vertical coordinates (down), same shape as `x`.
        tilt: Clockwise turn in degrees.
    """
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    u, v = cos * x + sin * y, cos * y - sin * x
    corners = OUTLINES[shape]
    inside = np.zeros(u.shape, dtype=np.bool_)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        inside ^= ((y0 > v) != (y1 > v)) & (u < (x1 - x0) * (v - y0) / (y1 - y0) + x0)
    return inside
