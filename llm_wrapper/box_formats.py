"""Boxes as other programs and models write them, and whether they can be of the format that they are declared to be.

A format is a layout and a unit: `xyxy` is two corners in pixels, `cxcywh_norm` a center and a size as shares of the
image. Four numbers can be right in several formats, and a wrong one costs half of a score without any other sign. So
a format is never guessed: the boxes vote on it, by what fits into the images and by the overlap with the targets.

    JSON value or text -> parse_box -> WrittenBox -> convert_boxes (check, to_pixels) -> xyxy pixels, problems

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
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from llm_wrapper.boxes import BoolArray, FloatArray, IntArray, rowwise_iou

BoxFormat = Literal[
    "xyxy", "xywh", "yxyx", "cxcywh",
    "xyxy_norm", "xywh_norm", "yxyx_norm", "cxcywh_norm",
    "xyxy_percent", "xywh_percent", "yxyx_percent", "cxcywh_percent",
    "xyxy_1000", "xywh_1000", "yxyx_1000", "cxcywh_1000",
    "xyxy_1024", "xywh_1024", "yxyx_1024", "cxcywh_1024",
]  # fmt: skip
"""Corners, corner and size, corners with y first, or center and size; in pixels, or with the image's width and height
as 1, 100, 1000 or 1024."""

BOX_FORMATS: tuple[BoxFormat, ...] = get_args(BoxFormat)
NO_BOX = "no box in the text"
NOT_FOUR = "not four numbers"

_UNITS = {"norm": 1.0, "percent": 100.0, "1000": 1000.0, "1024": 1024.0}
_KEYS: Mapping[str, BoxFormat] = {"bbox_2d": "xyxy", "box_2d": "yxyx_1000", "bbox": "xyxy", "box": "xyxy"}
_NAMES: Mapping[tuple[str, ...], BoxFormat] = {
    ("x1", "y1", "x2", "y2"): "xyxy",
    ("xmin", "ymin", "xmax", "ymax"): "xyxy",
    ("x_min", "y_min", "x_max", "y_max"): "xyxy",
    ("x", "y", "w", "h"): "xywh",
    ("x", "y", "width", "height"): "xywh",
}
_N = r"\s*(-?\d+(?:\.\d+)?)\s*"
_IN_TEXT = re.compile(
    rf"(?P<y_first>[\"']box_2d[\"']\s*:\s*\[?)?[\[(]{_N},{_N},{_N},{_N}[\])]"
    rf"|\({_N},{_N}\)(?:\s*,)?\s*\({_N},{_N}\)"
    r"|<loc(\d{1,4})>\s*<loc(\d{1,4})>\s*<loc(\d{1,4})>\s*<loc(\d{1,4})>"
)

_SLACK = 0.05  # how far a box may reach over the edge of its image, as a share of the side: models overshoot
_MOST_MISFITS = 0.1  # a wrong format spoils a third of the boxes and more; a model's own slips stay far below this
_FEWEST = 2  # distinct boxes that must speak against a format: one alone may be a slip
_SEVERAL = 5  # the same where no other format fits
_GAP = 0.25  # how much larger the mean IoU with the targets must be in another format
_FEW_TARGETS, _GOOD_IOU_OF_FEW, _GOOD_IOU = 8, 0.8, 0.5  # two or three boxes overlap by chance, and so need more
_LOG_ODDS = np.log(500.0)  # at which a coarser unit is ruled out: all boxes lie in the corner that a finer one spans
_REACH = 2 / 3  # boxes in a finer unit come at least this far into their images, in both directions
_MOST_VOTERS, _MOST_PAIRS = 50_000, 500_000  # a file may hold a million boxes of one image, an image many targets
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class BoxValue:
    """One box as it is written, of the `count` boxes in the value the first, and the usual format of such a form.

    `numbers` is `None` where the value says that there is no box, or is unusable for a `reason`.
    """

    numbers: list[float] | None
    reason: str | None = None
    count: int = 1
    usual: BoxFormat | None = None


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


@dataclass(frozen=True, slots=True)
class TargetPairs:
    """Which boxes may be about which targets: pair i is of box `rows[i]` (p,) and `targets[i]` (p, 4), xyxy pixels.

    `targets[i]` is the target no. `numbers[i]` (p,); the pairs of one number share the best overlap.
    """

    rows: IntArray
    targets: FloatArray
    numbers: IntArray

    @classmethod
    def of_rows(cls, targets: Sequence[Sequence[Sequence[float]]]) -> TargetPairs:
        """Pair each box with the targets (xyxy pixels) of its row, of which there may be none."""
        rows = np.repeat(np.arange(len(targets)), [len(each) for each in targets])
        flat = np.array([box for each in targets for box in each], dtype=np.float64)
        return cls(rows, flat.reshape(-1, 4), rows)

    @classmethod
    def of_images(
        cls, images: Sequence[str], targets: Sequence[tuple[str, Sequence[float]]], *, most: int = 2000
    ) -> TargetPairs:
        """Pair each target, given as (image, xyxy pixels), with all boxes of its image; of many, `most` are drawn."""
        by_image: dict[str, list[int]] = {}
        for row, image in enumerate(images):
            by_image.setdefault(image, []).append(row)
        shared = [target for target in targets if target[0] in by_image]
        drawn = [shared[index] for index in _draw(np.arange(len(shared)), most)]
        rows: list[int] = []
        numbers: list[int] = []
        for number, (image, _) in enumerate(drawn):
            of_image = by_image[image][: _MOST_PAIRS - len(rows)]
            rows += of_image
            numbers += [number] * len(of_image)
        corners = np.array([box for _, box in drawn], dtype=np.float64).reshape(-1, 4)
        return cls(np.array(rows, dtype=np.intp), corners[numbers], np.array(numbers, dtype=np.intp))


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
        return _parse_object(value)
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no box: give four numbers, or null where the system found nothing")
    if all(_is_number(each) for each in value):
        return BoxValue([float(each) for each in value]) if len(value) == 4 else BoxValue(None, NOT_FOUR)
    if not all(isinstance(each, list | Mapping) for each in value):
        text = str(value)
        raise ValueError(f"{text if len(text) <= 60 else f'{text[:60]}...'} is no box: its items are not all numbers")
    if len(value) == 2 and all(isinstance(each, list) and len(each) == 2 for each in value):
        corners = [number for point in value for number in point]
        if all(_is_number(number) for number in corners):  # two points are one box
            return BoxValue([float(number) for number in corners])
    return replace(parse_box(value[0]), count=len(value))


def _parse_object(value: Mapping[str, Any]) -> BoxValue:
    for key, usual in _KEYS.items():
        if key in value:
            box = parse_box(value[key])
            return replace(box, usual=box.usual or usual)
    for names, usual in _NAMES.items():
        if all(_is_number(value.get(name)) for name in names):
            return BoxValue([float(value[name]) for name in names], usual=usual)
    raise ValueError(
        f"a box with the keys {', '.join(list(value)[:5]) or 'none'}: give four numbers, or xmin, ymin, xmax, ymax, "
        "or x, y, width, height"
    )


def box_in_text(text: str) -> BoxValue:
    """Return the first box of a model's text; `NO_BOX` is the reason where there is none."""
    matches = list(_IN_TEXT.finditer(text))
    if not matches:
        return BoxValue(None, NO_BOX)
    first, groups = matches[0], matches[0].groups()[1:]  # four of brackets, four of pairs, four of <loc>
    start = next(start for start in (0, 4, 8) if groups[start] is not None)
    usual: BoxFormat = "yxyx_1024" if start == 8 else "yxyx_1000" if first["y_first"] else "xyxy"
    return BoxValue([float(number) for number in groups[start : start + 4]], count=len(matches), usual=usual)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def convert_boxes(
    boxes: Sequence[WrittenBox], pair: Callable[[Sequence[int]], TargetPairs], *, how: str
) -> tuple[FloatArray, list[FormatProblem]]:
    """Convert boxes to xyxy pixels, shape (n, 4), format by format; boxes of no format become NaN.

    `pair` gives the targets that the boxes of some indices may be about; `how` is as for `check`.
    """
    values = np.array([each.numbers for each in boxes], dtype=np.float64).reshape(-1, 4)
    image_wh = np.array([each.image_wh for each in boxes], dtype=np.float64).reshape(-1, 2)
    pixels = np.full_like(values, np.nan)
    groups: dict[tuple[BoxFormat | None, bool], list[int]] = {}
    for index, each in enumerate(boxes):
        box_format = each.declared or each.usual
        groups.setdefault((box_format, each.declared is None and box_format is not None), []).append(index)
    problems = []
    for (box_format, is_default), rows in groups.items():
        given, sizes = values[rows], image_wh[rows]
        problem = check(given, sizes, box_format, how=how, targets=pair(rows), is_default=is_default)
        unfit = rows
        if box_format is not None:
            pixels[rows] = to_pixels(given, sizes, box_format)
            unfit = [rows[index] for index in np.flatnonzero(~fits(given, sizes, box_format))]
        if problem is not None:
            problems.append(FormatProblem(problem, unfit or rows))
    return pixels, problems


def to_pixels(values: FloatArray, image_wh: FloatArray, box_format: BoxFormat) -> FloatArray:
    """Convert boxes (n, 4) of any format to xyxy pixels (n, 4); `image_wh` are the images' (width, height), (n, 2)."""
    layout, _, unit = box_format.partition("_")
    with np.errstate(invalid="ignore", over="ignore"):
        if layout == "yxyx":
            values = values[:, [1, 0, 3, 2]]
        scaled = values * np.tile(image_wh, 2) / _UNITS[unit] if unit else values * 1.0
        start, rest = scaled[:, :2], scaled[:, 2:]
        if layout == "xywh":  # what is not finite is found later, row by row
            scaled = np.concatenate([start, start + rest], axis=1)
        elif layout == "cxcywh":
            scaled = np.concatenate([start - rest / 2, start + rest / 2], axis=1)
    return scaled


def fits(values: FloatArray, image_wh: FloatArray, box_format: BoxFormat) -> BoolArray:
    """Tell of each box whether it can be of a format: it has an area, about inside its image; shapes as `to_pixels`."""
    pixels, sides = to_pixels(values, image_wh, box_format), np.tile(image_wh, 2)
    slack = _SLACK * sides + 1
    with np.errstate(invalid="ignore"):
        inside = np.asarray(((pixels >= -slack) & (pixels <= sides + slack)).all(axis=1))
        result: BoolArray = inside & np.asarray((pixels[:, 2:] > pixels[:, :2]).all(axis=1))
        if not box_format.endswith("norm"):
            # Fractions of one pixel are shares of the image; (0, 0, 1, 1) may be one pixel.
            result = result & ~((np.abs(values) <= 1).all(axis=1) & (values % 1 != 0).any(axis=1))
    return result


def check(
    values: FloatArray, image_wh: FloatArray, declared: BoxFormat | None, *,
    how: str, targets: TargetPairs | None = None, is_default: bool = False,
) -> str | None:  # fmt: skip
    """Return why boxes cannot be of the declared format, and which fits; `None` if they can.

    Little evidence is none: where a few boxes could be slips, or chance, the declaration counts.

    Args:
        values: Boxes as written, shape (n, 4).
        image_wh: (width, height) of their images, shape (n, 2).
        declared: What they are said to be; `None` if nothing says it, which is always a problem.
        how: What declares a format, with `{}` for its name, as `--box-format {}`.
        targets: Boxes in pixels that some of these should overlap with.
        is_default: Whether the format was not chosen for these boxes. Then boxes that all lie in the corner that a
            finer unit spans (percent, in pixels) are a problem, too.
    """
    votes = _Votes(np.asarray(values, dtype=np.float64), np.asarray(image_wh, dtype=np.float64), targets)
    if not votes.total:
        return None
    if declared is None:
        return f"the format of {len(values)} boxes is not declared; {votes.advice(votes.fitting, how)}"
    has_targets = votes.num_targets >= _FEWEST
    if has_targets and (closer := votes.closer(declared)):
        return (
            f"read as {declared}, the boxes overlap with the targets by a mean IoU of {votes.overlaps[declared]:.2f}; "
            f"{votes.advice(closer, how)}"
        )
    is_confirmed = has_targets and votes.overlaps[declared] >= votes.good_overlap
    if votes.misfits[declared] > _MOST_MISFITS * votes.total and not is_confirmed:
        return votes.contradiction(declared, how)
    if is_default and not is_confirmed and (finer := votes.finer(declared)):
        return (
            f"all {votes.total} boxes read as {declared} lie in one corner of their images; "
            f"{votes.advice(finer, how)}; if {declared} is meant, give {how.format(declared)}"
        )
    return None


class _Votes:
    """The evidence of boxes for and against each format: of `total` boxes, the `misfits` that cannot be of it.

    `overlaps` is the mean over the targets of the best IoU in each format; empty without targets.
    """

    def __init__(self, values: FloatArray, image_wh: FloatArray, targets: TargetPairs | None) -> None:
        # No number, or none above zero, is how programs write "no box".
        voters = _draw(np.flatnonzero(np.isfinite(values).all(axis=1) & (values > 0).any(axis=1)), _MOST_VOTERS)
        self._values, self._image_wh = values[voters], image_wh[voters]
        self.total = len(self._values)
        self._fits = {each: fits(self._values, self._image_wh, each) for each in BOX_FORMATS}
        self.misfits = {each: int((~fitting).sum()) for each, fitting in self._fits.items()}
        self.overlaps: dict[BoxFormat, float] = {}
        self.num_targets = 0
        if targets is not None and len(targets.rows):
            self.num_targets = len(np.unique(targets.targets, axis=0))
            self.overlaps = {each: _overlap(to_pixels(values, image_wh, each), targets) for each in BOX_FORMATS}
        self.good_overlap = _GOOD_IOU_OF_FEW if self.num_targets < _FEW_TARGETS else _GOOD_IOU

    @cached_property
    def fitting(self) -> list[BoxFormat]:
        """Formats that nearly all boxes can be of, less those that a finer unit rules out."""
        fitting = [each for each in BOX_FORMATS if self.misfits[each] <= _MOST_MISFITS * self.total]
        return [each for each in fitting if not self.finer(each)]

    def closer(self, declared: BoxFormat) -> list[BoxFormat]:
        """Return the formats in which the boxes overlap with the targets far better."""
        least = max(self.good_overlap, self.overlaps[declared] + _GAP)
        best = max(self.overlaps.values())
        return [each for each in BOX_FORMATS if self.overlaps[each] >= least and self.overlaps[each] > best - _GAP / 2]

    def contradiction(self, declared: BoxFormat, how: str) -> str | None:
        """Return the evidence of the images against a format, if there is enough."""
        misfits, unfit = self.misfits[declared], ~self._fits[declared]
        better = []
        for each in BOX_FORMATS:
            against = len(np.unique(self._values[self._fits[each] & unfit], axis=0))
            # One box that is less than a pixel is enough to be a share of the image.
            fewest = 1 if each.endswith("norm") and not declared.endswith("norm") else _FEWEST
            if misfits > 2 * self.misfits[each] and against >= fewest:
                better.append(each)
        distinct = len(np.unique(self._values[unfit], axis=0))
        if not better and not (misfits > self.total / 2 and distinct >= _SEVERAL):
            return None
        return (
            f"{misfits} of {self.total} boxes read as {declared} are reversed or outside their images; "
            f"{self.advice([each for each in better if each in self.fitting], how)}"
        )

    @cached_property
    def _distinct(self) -> tuple[FloatArray, FloatArray]:
        """The different boxes, shape (d, 4), and the sizes of the images of their first ones, (d, 2)."""
        values, indices = np.unique(self._values, axis=0, return_index=True)
        return values, self._image_wh[indices]

    def finer(self, declared: BoxFormat) -> list[BoxFormat]:
        """Return the formats of the same layout whose finer unit explains why all boxes lie in one corner."""
        layout, (values, image_wh) = declared.partition("_")[0], self._distinct
        if len(values) < _FEWEST:
            return []
        spans = _spans(image_wh, declared)
        finer: list[BoxFormat] = []
        for each in BOX_FORMATS:
            if each.partition("_")[0] != layout or self.misfits[each]:
                continue
            log_odds = float(np.log(spans / _spans(image_wh, each)).sum())
            reach = (to_pixels(values, image_wh, each)[:, 2:] / image_wh).max(axis=0)
            # One whole-image box may be a pixel: see `fits`.
            is_clear = not each.endswith("norm") or bool((values % 1 != 0).any())
            if log_odds >= _LOG_ODDS and (reach >= _REACH).all() and is_clear:
                finer.append(each)
        return finer

    def advice(self, formats: Sequence[BoxFormat], how: str) -> str:
        """Name the formats that fit, the likeliest first, and what declares them."""
        if not formats:
            return "they fit no format that is known here: were they made on images of another size?"
        if self.overlaps:
            formats = sorted(formats, key=lambda each: -self.overlaps[each])
        named = []
        for each in formats[:_MOST_NAMED]:
            overlap = f", mean IoU with the targets {self.overlaps[each]:.2f}" if self.overlaps else ""
            named.append(f"{each} ({self.total - self.misfits[each]} of {self.total}{overlap})")
        if len(formats) == 1:
            return f"{named[0]} fits: if that is meant, give {how.format(formats[0])}"
        more = f" and {len(formats) - len(named)} more" if len(formats) > len(named) else ""
        hint = "best overlap first" if self.overlaps else "and the images cannot tell them apart"
        return f"{', '.join(named)}{more} fit, {hint}: give the one that is meant, as {how.format(formats[0])}"


def _spans(image_wh: FloatArray, box_format: BoxFormat) -> FloatArray:
    """Return the area that a format's numbers can take up in each image, in its own unit, shape (n,)."""
    _, _, unit = box_format.partition("_")
    return np.full(len(image_wh), _UNITS[unit] ** 2) if unit else np.prod(image_wh, axis=1)


def _overlap(pixels: FloatArray, pairs: TargetPairs) -> float:
    """Return the mean over the targets of the best IoU."""
    best = np.zeros(int(pairs.numbers.max()) + 1)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        overlaps = np.nan_to_num(rowwise_iou(pixels[pairs.rows], pairs.targets), nan=0.0)
    np.maximum.at(best, pairs.numbers, overlaps)
    return float(best[np.unique(pairs.numbers)].mean())


def _draw(rows: IntArray, most: int) -> IntArray:
    """Draw at most that many rows, always the same ones; evenly spaced ones could all be of one kind."""
    return rows if len(rows) <= most else np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
