"""The box that a JSON value or a model's text means, and the conversion of such boxes to pixels.

Programs write four numbers in a list, in nested lists or in an object; models wrap them in fences, keys, tags and
prose. The first box counts. Its format is that of the form, unless the file or the user declares another one:

    [{"bbox_2d": [64, 96, 256, 384]}]   xyxy pixels        <loc0205><loc0064>..      yxyx_1024
    (64,96),(256,384)                   xyxy pixels        {"box_2d": [200, ..]}     yxyx_1000
    {"xmin": 64, "ymin": 96, ..}        xyxy pixels        {"x": 64, .., "w": 192}   xywh pixels
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_wrapper import box_formats
from llm_wrapper.box_formats import BoxFormat, TargetPairs

__all__ = ["NOT_FOUR", "NO_BOX", "BoxValue", "FormatProblem", "WrittenBox", "box_in_text", "convert_boxes", "parse_box"]

NO_BOX = "no box in the text"
NOT_FOUR = "not four numbers"

_KEYS: Mapping[str, BoxFormat] = {"bbox_2d": "xyxy", "box_2d": "yxyx_1000", "bbox": "xyxy", "box": "xyxy"}
_CORNERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"))
_SIZES = (("x", "y", "w", "h"), ("x", "y", "width", "height"))

_N = r"\s*(-?\d+(?:\.\d+)?)\s*"
_IN_TEXT = re.compile(
    rf"(?P<y_first>[\"']box_2d[\"']\s*:\s*\[?)?[\[(]{_N},{_N},{_N},{_N}[\])]"
    rf"|\({_N},{_N}\)(?:\s*,)?\s*\({_N},{_N}\)"
    r"|<loc(\d{1,4})>\s*<loc(\d{1,4})>\s*<loc(\d{1,4})>\s*<loc(\d{1,4})>"
)


@dataclass(frozen=True, slots=True)
class BoxValue:
    """One box as it is written.

    Attributes:
        numbers: Four numbers; `None` where the value says that there is no box, or is unusable.
        reason: Why it is unusable.
        count: Boxes in the value; the first one is taken.
        usual: The usual format of such a form, where it has one.
    """

    numbers: list[float] | None
    reason: str | None = None
    count: int = 1
    usual: BoxFormat | None = None


def parse_box(value: Any) -> BoxValue:
    """Return the box that a JSON value means.

    Raises:
        ValueError: If it is no form of a box at all.
    """
    if value is None or value == []:
        return BoxValue(None)
    if isinstance(value, str):
        return box_in_text(value)
    if isinstance(value, Mapping):
        return _of_object(value)
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no box: give four numbers, or null where the system found nothing")
    if all(_is_number(each) for each in value):
        return BoxValue([float(each) for each in value]) if len(value) == 4 else BoxValue(None, NOT_FOUR)
    if all(isinstance(each, list | Mapping) for each in value):
        return _of_several(value)
    text = str(value)
    raise ValueError(f"{text if len(text) <= 60 else f'{text[:60]}...'} is no box: its items are not all numbers")


def box_in_text(text: str) -> BoxValue:
    """Return the first box of a model's text; `NO_BOX` is the reason where there is none."""
    matches = list(_IN_TEXT.finditer(text))
    if not matches:
        return BoxValue(None, NO_BOX)
    first = matches[0]
    groups = first.groups()[1:]  # four of brackets, four of pairs, four of <loc>
    start = next(start for start in (0, 4, 8) if groups[start] is not None)
    usual: BoxFormat = "yxyx_1024" if start == 8 else "yxyx_1000" if first["y_first"] else "xyxy"
    return BoxValue([float(number) for number in groups[start : start + 4]], count=len(matches), usual=usual)


def _of_object(value: Mapping[str, Any]) -> BoxValue:
    for key, usual in _KEYS.items():
        if key in value:
            found = parse_box(value[key])
            return replace(found, usual=found.usual or usual)
    for names, layout in (*((keys, "xyxy") for keys in _CORNERS), *((keys, "xywh") for keys in _SIZES)):
        if all(_is_number(value.get(name)) for name in names):
            return BoxValue([float(value[name]) for name in names], usual="xyxy" if layout == "xyxy" else "xywh")
    raise ValueError(
        f"a box with the keys {', '.join(list(value)[:5]) or 'none'}: give four numbers, or xmin, ymin, xmax, ymax, "
        "or x, y, width, height"
    )


def _of_several(values: Sequence[Any]) -> BoxValue:
    """Return the first of several boxes; two points are one box."""
    if len(values) == 2 and all(isinstance(each, list) and len(each) == 2 for each in values):
        corners = [number for point in values for number in point]
        if all(map(_is_number, corners)):
            return BoxValue([float(number) for number in corners])
    return replace(parse_box(values[0]), count=len(values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class WrittenBox:
    """Four numbers of a file, their declared and their usual format, and the (width, height) of their image."""

    numbers: Sequence[float]
    declared: BoxFormat | None
    usual: BoxFormat | None
    image_wh: tuple[int, int]


@dataclass(frozen=True, slots=True)
class FormatProblem:
    """Boxes that contradict their format: one sentence, and the indices of those that do not fit it, or of all."""

    text: str
    indices: list[int]


def convert_boxes(
    boxes: Sequence[WrittenBox], pair: Callable[[Sequence[int]], TargetPairs], *, how: str
) -> tuple[npt.NDArray[np.float64], list[FormatProblem]]:
    """Convert boxes to xyxy pixels, shape (n, 4), format by format; boxes of no format become NaN.

    Args:
        boxes: In any order.
        pair: Gives the targets that the boxes of some indices may be about.
        how: The setting that declares a format, with `{}` for its name.
    """
    values = np.array([each.numbers for each in boxes], dtype=np.float64).reshape(-1, 4)
    image_wh = np.array([each.image_wh for each in boxes], dtype=np.float64).reshape(-1, 2)
    pixels = np.full_like(values, np.nan)
    groups: dict[tuple[BoxFormat | None, bool], list[int]] = {}
    for index, each in enumerate(boxes):
        groups.setdefault((each.declared or each.usual, each.declared is None), []).append(index)
    problems = []
    for (box_format, is_default), rows in groups.items():
        problem = box_formats.check(
            values[rows],
            image_wh[rows],
            box_format,
            how=how,
            targets=pair(rows),
            is_default=is_default and box_format is not None,
        )
        if box_format is not None:
            pixels[rows] = box_formats.to_pixels(values[rows], image_wh[rows], box_format)
        if problem is not None:
            fits = [False] * len(rows)
            if box_format is not None:
                fits = box_formats.fits(values[rows], image_wh[rows], box_format).tolist()
            unfit = [row for row, is_fit in zip(rows, fits, strict=True) if not is_fit]
            problems.append(FormatProblem(problem, unfit or rows))
    return pixels, problems
