"""The box that an answer means: four numbers in any nesting, an object, or the text of a model.

Models that write boxes wrap them in fences, keys, tags and prose. The first box counts. Its numbers are taken as the
family that writes such a form means them, unless the file or the user says otherwise:

    [{"bbox_2d": [64, 96, 256, 384]}]   xyxy pixels        <loc0205><loc0064>..      yxyx_1024
    (64,96),(256,384)                   xyxy pixels        {"box_2d": [200, ..]}     yxyx_1000
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_wrapper.box_formats import BoxFormat

__all__ = ["NOT_FOUR", "NO_BOX", "BoxAnswer", "box_in_text", "box_of"]

NO_BOX = "no box in the text"
NOT_FOUR = "not four numbers"

_KEYS: Mapping[str, BoxFormat] = {"bbox_2d": "xyxy", "box_2d": "yxyx_1000", "bbox": "xyxy", "box": "xyxy"}
_CORNERS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"))

_N = r"\s*(-?\d+(?:\.\d+)?)\s*"
_IN_TEXT = re.compile(
    rf"(?P<y_first>[\"']box_2d[\"']\s*:\s*\[?)?[\[(]{_N},{_N},{_N},{_N}[\])]"
    rf"|\({_N},{_N}\)(?:\s*,)?\s*\({_N},{_N}\)"
    r"|<loc(\d{1,4})>\s*<loc(\d{1,4})>\s*<loc(\d{1,4})>\s*<loc(\d{1,4})>"
)
_NUM_OF_FORM = 4


@dataclass(frozen=True, slots=True)
class BoxAnswer:
    """What an answer holds.

    Attributes:
        values: Four numbers as written; `None` where it says that there is no box, or where it is unusable.
        reason: Why it is unusable.
        count: How many boxes it holds; the first one is taken.
        usual: What its form usually means, where it has one.
    """

    values: list[float] | None
    reason: str | None = None
    count: int = 1
    usual: BoxFormat | None = None


def box_of(value: Any) -> BoxAnswer:
    """Return the box that a JSON value means.

    Raises:
        ValueError: If it is no form of a box at all.
    """
    if value is None or value == []:
        return BoxAnswer(None)
    if isinstance(value, str):
        return box_in_text(value)
    if isinstance(value, Mapping):
        return _of_object(value)
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no box: give four numbers, or null where the system found nothing")
    if all(_is_number(each) for each in value):
        return BoxAnswer([float(each) for each in value]) if len(value) == _NUM_OF_FORM else BoxAnswer(None, NOT_FOUR)
    if all(isinstance(each, list | Mapping) for each in value):
        return _of_several(value)
    raise ValueError(f"{_shown(value)} is no box: its items are not all numbers")


def box_in_text(text: str) -> BoxAnswer:
    """Return the first box that a model's text holds; `NO_BOX` where there is none."""
    matches = list(_IN_TEXT.finditer(text))
    if not matches:
        return BoxAnswer(None, NO_BOX)
    first = matches[0]
    groups = first.groups()[1:]
    place = next(place for place in range(0, len(groups), _NUM_OF_FORM) if groups[place] is not None)
    values = [float(number) for number in groups[place : place + _NUM_OF_FORM]]
    usual: BoxFormat = "yxyx_1024" if place == 2 * _NUM_OF_FORM else "yxyx_1000" if first["y_first"] else "xyxy"
    return BoxAnswer(values, count=len(matches), usual=usual)


def _of_object(value: Mapping[str, Any]) -> BoxAnswer:
    for key, usual in _KEYS.items():
        if key in value:
            answer = box_of(value[key])
            return BoxAnswer(answer.values, answer.reason, answer.count, answer.usual or usual)
    for keys in _CORNERS:
        if all(_is_number(value.get(key)) for key in keys):
            return BoxAnswer([float(value[key]) for key in keys], usual="xyxy")
    raise ValueError(f"an object with the keys {', '.join(list(value)[:5]) or 'none'} is no box: give four numbers")


def _of_several(values: Sequence[Any]) -> BoxAnswer:
    """Return the first of several boxes; two points are one box."""
    is_points = len(values) == _NUM_OF_FORM // 2 and all(
        isinstance(each, list) and len(each) == _NUM_OF_FORM // 2 and all(map(_is_number, each)) for each in values
    )
    if is_points:
        return BoxAnswer([float(number) for point in values for number in point])
    first = box_of(values[0])
    return BoxAnswer(first.values, first.reason, len(values), first.usual)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
