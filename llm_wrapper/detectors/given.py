"""Boxes that a caller brings, in place of a detector: lists, NumPy arrays or `supervision.Detections` -> `Detections`.

Every box is checked before it is used: four finite numbers, neither reversed nor without area, and in the unit that is
declared. A box in the wrong unit costs every answer and shows nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from pydantic import ValidationError

from llm_wrapper.box_formats import BOX_FORMATS, BoxFormat, check, to_pixels
from llm_wrapper.boxes import FloatArray
from llm_wrapper.errors import DataError, RecipeError, listed, nearest
from llm_wrapper.records import Box, Detection, Detections

GIVEN = "given"
"""The detector's name in the registry and in candidates, where a caller brings the boxes."""


def create_given(settings: Mapping[str, Any]) -> NoReturn:
    """Refuse to detect: the recipe has no detector, only boxes that a caller brings."""
    raise RecipeError(
        "this recipe names no detector, so there is nothing to find boxes with: name one (vlm='flo2', --vlm flo2), or "
        "bring the boxes: wrapper.choose(boxes, labels, expression, image_size=(width, height))"
    )


def parse_image_size(image_size: Sequence[int]) -> tuple[int, int]:
    """Return a caller's (width, height) in pixels; a DataError for anything but two positive whole numbers."""
    try:
        width, height = (float(side) for side in image_size)
    except (TypeError, ValueError):
        width = height = math.nan
    if not (width.is_integer() and height.is_integer() and width >= 1 and height >= 1):
        raise DataError(f"image_size={image_size!r} is not (width, height) in pixels, such as (640, 480)")
    return int(width), int(height)


def read_given_boxes(
    boxes: Any,
    labels: Sequence[str] | None,
    *,
    image_wh: tuple[int, int],
    scores: Sequence[float] | None = None,
    box_format: BoxFormat = "xyxy",
) -> Detections:
    """Check boxes that a caller brings.

    Args:
        boxes: Shape (n, 4), or `supervision.Detections`, whose `data["class_name"]` gives labels that are not given
            and whose `confidence` gives scores.
        labels: One per box.
        image_wh: (width, height) of the image in pixels.
        scores: One per box, in 0..1 where the detector calibrates them; None where there are none.
        box_format: How the four numbers are meant, see `box_formats`.

    Raises:
        DataError: If a box is no box or cannot be of this format, or labels or scores do not fit.
    """
    if box_format not in BOX_FORMATS:
        raise DataError(f"box_format={box_format!r} is unknown{nearest(str(box_format), BOX_FORMATS)}")
    if hasattr(boxes, "confidence"):  # supervision.Detections
        labels = boxes.data.get("class_name") if labels is None else labels
        scores = boxes.confidence if scores is None else scores
        boxes = boxes.xyxy
    values = _as_array(boxes)
    if labels is None:
        raise DataError("the boxes have no labels: pass one per box, such as labels=['zebra', 'zebra', 'grass']")
    columns: dict[str, Any] = {"labels": labels, "scores": [None] * len(values) if scores is None else scores}
    for name, column in columns.items():
        if isinstance(column, str) or not hasattr(column, "__len__"):
            raise DataError(f"{name}={column!r} is not a list: pass one per box")
        if len(column) != len(values):
            raise DataError(f"there are {len(column)} {name} for {len(values)} boxes: pass one per box")
        columns[name] = list(column)  # by position: a pandas Series is indexed by its labels
    image_whs = np.tile(image_wh, (len(values), 1))
    _require_format(values, image_whs, box_format)
    items, problems = [], []
    for row, xyxy in enumerate(to_pixels(values, image_whs, box_format).tolist()):
        label, score = columns["labels"][row], columns["scores"][row]
        if not isinstance(label, str) or not label:
            problems.append(f"labels[{row}] is {label!r}: it must be a text")
        try:
            items.append(Detection(Box(*xyxy), str(label), None if score is None else float(score), GIVEN))
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            problems.append(f"boxes[{row}] = {values[row].tolist()}: {reason}")
        except (TypeError, ValueError):
            problems.append(f"scores[{row}] is {score!r}: it must be a number or None")
    if problems:
        raise DataError(listed("the given boxes cannot be used", problems))
    return Detections(tuple(items))


def _as_array(boxes: Any) -> FloatArray:
    """Return boxes with shape (n, 4)."""
    try:
        values = np.asarray([each.xyxy if isinstance(each, Box) else each for each in boxes], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"the boxes are not rows of four numbers (x0, y0, x1, y1): {error}") from error
    if values.size == 0:
        return np.empty((0, 4))
    if values.ndim != 2 or values.shape[1] != 4:
        raise DataError(f"the boxes have shape {values.shape}, not (n, 4): one row (x0, y0, x1, y1) per box")
    return values


def _require_format(values: FloatArray, image_whs: FloatArray, box_format: BoxFormat) -> None:
    """Refuse boxes that cannot be of the declared format; the message names the format that fits."""
    how = "box_format='{}'"
    finite = values[np.isfinite(values).all(axis=1)]
    if len(finite) and "_" not in box_format and finite.min() >= 0 and finite.max() <= 1 < image_whs.min():
        width, height = image_whs[0]
        raise DataError(
            f"all {len(finite)} boxes lie within one pixel of an image of {width} x {height}: they are shares of the "
            f"image; give {how.format(f'{box_format}_norm')}"
        )
    problem = check(values, image_whs, box_format, how=how)
    if problem is not None:
        raise DataError(f"the given boxes cannot be used: {problem}")
