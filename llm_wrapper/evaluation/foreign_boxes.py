"""How other programs write boxes, and whether boxes can be what they are said to be.

A format is never guessed: four numbers can be right in several, and a wrong one costs half of the score without a
sound. What can be seen from the boxes and the image sizes alone, never from the targets, is told as an error.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

__all__ = ["BOX_FORMATS", "BoxFormat", "fits", "in_pixels", "problem"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

BoxFormat = Literal["xyxy", "xywh", "xyxy_norm", "xywh_norm", "xyxy_1000", "xywh_1000"]
"""Corners or corner and size; in pixels, as shares (0..1) or as thousandths of the image's width and height."""

BOX_FORMATS: tuple[BoxFormat, ...] = get_args(BoxFormat)

_SLACK = 0.05
"""How far a box may reach over the edge of its image, as a share of the side: models overshoot."""

_MOST_MISFITS = 0.1
"""A wrong format spoils a third of the boxes and more; a model's own slips stay far below this share."""


def in_pixels(values: FloatArray, image_wh: FloatArray, box_format: BoxFormat) -> FloatArray:
    """Convert boxes (n, 4) of any format to xyxy pixels (n, 4); `image_wh` are the images' (width, height), (n, 2)."""
    layout, _, unit = box_format.partition("_")
    sides = np.tile(image_wh, 2)
    # Values may be anything that a file holds: what is not finite is found later, row by row.
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = values * {"": np.ones_like(sides), "norm": sides, "1000": sides / 1000}[unit]
        if layout == "xywh":
            scaled = np.concatenate([scaled[:, :2], scaled[:, :2] + scaled[:, 2:]], axis=1)
    return scaled


def fits(values: FloatArray, image_wh: FloatArray, box_format: BoxFormat) -> BoolArray:
    """Tell of each box whether it can be of a format: it has an area, about inside its image; shapes as `in_pixels`."""
    pixels, sides = in_pixels(values, image_wh, box_format), np.tile(image_wh, 2)
    slack = _SLACK * sides + 1
    with np.errstate(invalid="ignore"):
        inside = np.asarray(((pixels >= -slack) & (pixels <= sides + slack)).all(axis=1))
        result: BoolArray = inside & np.asarray((pixels[:, 2:] > pixels[:, :2]).all(axis=1))
        if not box_format.endswith("norm"):
            # Nobody means a box in the corner pixel: such numbers are shares of the image.
            result = result & np.asarray((values > 1).any(axis=1))
    return result


def problem(values: FloatArray, image_wh: FloatArray, told: BoxFormat | None) -> str | None:
    """Return why these boxes cannot be taken as the format told, and which fits; `None` if they can.

    Args:
        values: Boxes as written, shape (n, 4).
        image_wh: (width, height) of their images, shape (n, 2).
        told: What they are said to be; `None` if nobody said it, which is always a problem.
    """
    if not len(values):
        return None
    misfits = {each: int((~fits(values, image_wh, each)).sum()) for each in BOX_FORMATS}
    good = [each for each in BOX_FORMATS if misfits[each] <= _MOST_MISFITS * len(values)]
    if told is None:
        return f"the format of {len(values)} boxes is not told; {_advice(good, len(values), misfits)}"
    better = [each for each in BOX_FORMATS if misfits[each] < misfits[told] / 2]
    few = misfits[told] <= _MOST_MISFITS * len(values)
    if few or not (better or misfits[told] > len(values) / 2):
        return None
    advice = _advice([each for each in better if each in good], len(values), misfits)
    return f"{misfits[told]} of {len(values)} boxes taken as {told} are reversed or outside their images; {advice}"


def _advice(fitting: list[BoxFormat], num_boxes: int, misfits: dict[BoxFormat, int]) -> str:
    if not fitting:
        return "they fit no format that is known here: were they made on images of another size?"
    told = ", ".join(f"{each} ({num_boxes - misfits[each]} of {num_boxes})" for each in fitting)
    if len(fitting) == 1:
        return f"only one fits, {told}: if that is meant, give --box-format {fitting[0]}"
    return f"several fit, so say which is meant with --box-format: {told}"
