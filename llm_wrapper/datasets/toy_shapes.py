"""The vocabulary of the toy scenes: color names with their hues, shape names with their outlines."""

from __future__ import annotations

import math

import numpy as np

from llm_wrapper.boxes import BoolArray, FloatArray

__all__ = ["HUES", "MAX_TILT", "OUTLINES", "covers", "outline_area"]


HUES = {"red": 0.0, "orange": 30.0, "yellow": 56.0, "green": 125.0, "blue": 218.0, "purple": 285.0}
"""Hue of each color name in degrees."""

MAX_TILT = 12.0
"""The most that a shape is turned from upright, in degrees."""


def _regular(num_corners: int, start: float) -> FloatArray:
    """Corners (n, 2) of a regular polygon of circumradius 1; `start` is the first corner's angle in degrees."""
    angles = np.radians(start + 360.0 * np.arange(num_corners) / num_corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> FloatArray:
    corners = _regular(10, -90.0)
    corners[1::2] *= 0.42
    return corners


_ARM = 0.32
_CROSS = [(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)]
_CROSS += [(-x, -y) for x, y in _CROSS]

OUTLINES: dict[str, FloatArray] = {
    "circle": _regular(60, 0.0),
    "square": _regular(4, 45.0),
    "triangle": _regular(3, -90.0),
    "star": _star(),
    "cross": np.array(_CROSS, dtype=np.float64),
    "diamond": np.array([(0, -1), (0.62, 0), (0, 1), (-0.62, 0)], dtype=np.float64),
}
"""Corners (n, 2) of each upright shape about (0, 0); y points down, as in images."""


def outline_area(shape: str) -> float:
    """Return the area of the shape's outline (for radius 1)."""
    x, y = OUTLINES[shape].T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def covers(shape: str, x: FloatArray, y: FloatArray, *, tilt: float) -> BoolArray:
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
