"""Box geometry; formats of other programs are in `box_formats`.

`Box` is xyxy pixels. `box_xywh` is (left, top, width, height) in pixels as COCO and REFER store it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from llm_wrapper.records import Box

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.intp]


def from_xywh(box_xywh: Sequence[float]) -> Box:
    """Convert (left, top, width, height) in pixels to a `Box`; raises ValueError where it has no area."""
    left, top, width, height = (float(value) for value in box_xywh)
    return Box(left, top, left + width, top + height)


def to_xywh(box: Box) -> tuple[float, float, float, float]:
    """Convert a `Box` to (left, top, width, height) in pixels."""
    return (box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0)


def is_inside(box: Box, image_wh: tuple[int, int], *, tolerance: float = 1.0) -> bool:
    """Tell whether a box lies within an image of (width, height), up to `tolerance` pixels."""
    width, height = image_wh
    return min(box.x0, box.y0) >= -tolerance and box.x1 <= width + tolerance and box.y1 <= height + tolerance


def clip(box: Box, image_wh: tuple[int, int]) -> Box | None:
    """Cut a box to the image; `None` where nothing of it is inside."""
    width, height = image_wh
    x0, x1 = max(box.x0, 0.0), min(box.x1, float(width))
    y0, y1 = max(box.y0, 0.0), min(box.y1, float(height))
    return Box(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def array(boxes: Sequence[Box]) -> FloatArray:
    """Stack boxes to shape (n, 4), xyxy pixels; (0, 4) for none."""
    return np.array([box.xyxy for box in boxes], dtype=np.float64).reshape(-1, 4)


def pairwise_iou(a: FloatArray, b: FloatArray) -> FloatArray:
    """Intersection over union of each box of `a` (n, 4) with each of `b` (m, 4), xyxy pixels -> (n, m)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = np.prod(np.clip(high - low, 0.0, None), axis=2)
    area_a = np.prod(a[:, 2:] - a[:, :2], axis=1)
    area_b = np.prod(b[:, 2:] - b[:, :2], axis=1)
    union = area_a[:, None] + area_b[None, :] - intersection
    shares: FloatArray = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return shares


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0..1."""
    return float(pairwise_iou(array([a]), array([b]))[0, 0])


def rowwise_iou(a: FloatArray, b: FloatArray) -> FloatArray:
    """Intersection over union of row i of `a` (n, 4) with row i of `b` (n, 4), xyxy pixels -> (n,)."""
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    intersection = np.clip(width, 0.0, None) * np.clip(height, 0.0, None)
    area_a, area_b = ((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]) for corners in (a, b))
    union = area_a + area_b - intersection
    shares: FloatArray = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return shares
