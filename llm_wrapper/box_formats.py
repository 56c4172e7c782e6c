"""How programs write boxes, and whether boxes can be what they are declared to be.

A format is a layout and a unit: `xyxy` is two corners in pixels, `cxcywh_norm` a center and a size as shares of the
image. Four numbers can be right in several formats, and a wrong one costs half of a score without any other sign. So
a format is never guessed: the boxes vote on the declared one against all others, by what fits into the images and,
where there are targets, by the overlap with them.

    box_formats.check(values, image_wh, "xyxy", how="--box-format {}")     None, or a sentence that names what fits
    box_formats.to_pixels(values, image_wh, "yxyx_1000")                   xyxy pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from llm_wrapper.boxes import BoolArray, FloatArray, IntArray, rowwise_iou

__all__ = ["BOX_FORMATS", "BoxFormat", "TargetPairs", "check", "fits", "to_pixels"]


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

_UNITS = {"norm": 1.0, "percent": 100.0, "1000": 1000.0, "1024": 1024.0}

_SLACK = 0.05
"""How far a box may reach over the edge of its image, as a share of the side: models overshoot."""

_MOST_MISFITS = 0.1
"""A wrong format spoils a third of the boxes and more; a model's own slips stay far below this share."""

_FEWEST = 2
"""Distinct boxes that must speak against a format: one alone may be a slip."""

_SEVERAL = 5
"""Distinct boxes that must speak against a format where no other one fits."""

_GAP = 0.25
"""How much larger the mean IoU with the targets must be in another format."""

_GOOD_IOU, _GOOD_IOU_OF_FEW, _FEW_TARGETS = 0.5, 0.8, 8
"""The mean IoU with the targets that speaks for a format: two or three boxes overlap by chance, and so need more."""

_ODDS = np.log(500.0)
"""Log of the odds at which a coarser unit is ruled out: all boxes lie in the corner that a finer unit spans."""

_REACH = 2 / 3
"""Boxes in a finer unit come at least this far into their images, in both directions."""

_MOST_VOTERS = 50_000
_MOST_PAIRS = 500_000
"""A file may hold a million boxes of one image, and an image many targets."""
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class TargetPairs:
    """Which boxes may be about which targets: pair i is of box `rows[i]` and `targets[i]`, which is no. `numbers[i]`.

    Attributes:
        rows: Row of the box, shape (p,).
        targets: xyxy pixels, shape (p, 4).
        numbers: Pairs of one number share the best overlap, shape (p,).
    """

    rows: IntArray
    targets: FloatArray
    numbers: IntArray

    @classmethod
    def of_rows(cls, targets: Sequence[Sequence[Sequence[float]]]) -> TargetPairs:
        """Pair each box with the targets (xyxy pixels) of its row, of which there may be none."""
        rows = np.repeat(np.arange(len(targets)), [len(each) for each in targets])
        return cls(rows, _stacked([box for each in targets for box in each]), rows)

    @classmethod
    def of_images(
        cls, images: Sequence[str], targets: Sequence[tuple[str, Sequence[float]]], *, most: int = 2000
    ) -> TargetPairs:
        """Pair each target with all boxes of its image.

        Args:
            images: Image of each box.
            targets: (image, xyxy pixels) of each target.
            most: How many targets are taken, drawn at random.
        """
        by_image: dict[str, list[int]] = {}
        for row, image in enumerate(images):
            by_image.setdefault(image, []).append(row)
        shared = [(image, box) for image, box in targets if image in by_image]
        rows: list[int] = []
        owners: list[int] = []
        taken = [shared[place] for place in _draw(np.arange(len(shared)), most)]
        for number, (image, _) in enumerate(taken):
            of_image = by_image[image][: _MOST_PAIRS - len(rows)]
            rows += of_image
            owners += [number] * len(of_image)
        numbers = np.array(owners, dtype=np.intp)
        return cls(np.array(rows, dtype=np.intp), _stacked([box for _, box in taken])[numbers], numbers)


def to_pixels(values: FloatArray, image_wh: FloatArray, box_format: BoxFormat) -> FloatArray:
    """Convert boxes (n, 4) of any format to xyxy pixels (n, 4); `image_wh` are the images' (width, height), (n, 2)."""
    layout, _, unit = box_format.partition("_")
    # Values may be anything that a file holds: what is not finite is found later, row by row.
    with np.errstate(invalid="ignore", over="ignore"):
        if layout == "yxyx":
            values = values[:, [1, 0, 3, 2]]
        scaled = values * np.tile(image_wh, 2) / _UNITS[unit] if unit else values * 1.0
        start, rest = scaled[:, :2], scaled[:, 2:]
        if layout == "xywh":
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
    values: FloatArray,
    image_wh: FloatArray,
    declared: BoxFormat | None,
    *,
    how: str,
    targets: TargetPairs | None = None,
    is_default: bool = False,
) -> str | None:
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
    closer = votes.closer(declared)
    if closer:
        return (
            f"read as {declared}, the boxes overlap with the targets by a mean IoU of "
            f"{votes.overlaps[declared]:.2f}; {votes.advice(closer, how)}"
        )
    if votes.is_confirmed(declared):
        return None
    if votes.misfits[declared] > _MOST_MISFITS * votes.total:
        return votes.contradiction(declared, how)
    return votes.corner(declared, how) if is_default else None


class _Votes:
    """The evidence of boxes for and against each format.

    Attributes:
        total: Boxes that vote.
        misfits: How many of them cannot be of each format.
        overlaps: Mean over the targets of the best IoU in each format; empty without targets.
    """

    def __init__(self, values: FloatArray, image_wh: FloatArray, targets: TargetPairs | None) -> None:
        # No number, or none above zero, is how programs write "no box".
        voters = np.flatnonzero(np.isfinite(values).all(axis=1) & (values > 0).any(axis=1))
        voters = _draw(voters, _MOST_VOTERS)
        self._values, self._image_wh = values[voters], image_wh[voters]
        self.total = len(self._values)
        self._fits = {each: fits(self._values, self._image_wh, each) for each in BOX_FORMATS}
        self.misfits = {each: int((~fitting).sum()) for each, fitting in self._fits.items()}
        self.overlaps: dict[BoxFormat, float] = {}
        self._num_targets = 0
        if targets is not None and len(targets.rows):
            self._num_targets = len(np.unique(targets.targets, axis=0))
            self.overlaps = {each: _overlap(to_pixels(values, image_wh, each), targets) for each in BOX_FORMATS}

    @cached_property
    def _distinct(self) -> tuple[FloatArray, FloatArray]:
        """The different boxes, shape (d, 4), and the sizes of the images of their first ones, (d, 2)."""
        values, places = np.unique(self._values, axis=0, return_index=True)
        return values, self._image_wh[places]

    @cached_property
    def fitting(self) -> list[BoxFormat]:
        """Formats that nearly all boxes can be of, less those that a finer unit rules out."""
        fitting = [each for each in BOX_FORMATS if self.misfits[each] <= _MOST_MISFITS * self.total]
        return [each for each in fitting if not self.finer(each)]

    def closer(self, declared: BoxFormat) -> list[BoxFormat]:
        """Return the formats in which the boxes overlap with the targets far better."""
        if self._num_targets < _FEWEST:
            return []
        least = max(self._good_overlap, self.overlaps[declared] + _GAP)
        closer = [each for each in BOX_FORMATS if self.overlaps[each] >= least]
        best = max((self.overlaps[each] for each in closer), default=0.0)
        return [each for each in closer if self.overlaps[each] > best - _GAP / 2]

    def is_confirmed(self, declared: BoxFormat) -> bool:
        """Tell whether the boxes overlap with the targets, so that sizes of images no longer matter."""
        return self._num_targets >= _FEWEST and self.overlaps[declared] >= self._good_overlap

    def contradiction(self, declared: BoxFormat, how: str) -> str | None:
        """Return the evidence of the images against a format, if there is enough."""
        misfits = self.misfits[declared]
        better = [each for each in BOX_FORMATS if misfits > 2 * self.misfits[each] and self._is_enough(declared, each)]
        distinct = len(np.unique(self._values[~self._fits[declared]], axis=0))
        if not better and not (misfits > self.total / 2 and distinct >= _SEVERAL):
            return None
        return (
            f"{misfits} of {self.total} boxes read as {declared} are reversed or outside their images; "
            f"{self.advice([each for each in better if each in self.fitting], how)}"
        )

    def corner(self, declared: BoxFormat, how: str) -> str | None:
        """Return the evidence against a format where all boxes lie in one corner, if it is evidence."""
        finer = self.finer(declared)
        if not finer:
            return None
        return (
            f"all {self.total} boxes read as {declared} lie in one corner of their images; "
            f"{self.advice(finer, how)}; if {declared} is meant, give {how.format(declared)}"
        )

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
            odds = float(np.log(spans / _spans(image_wh, each)).sum())
            reach = (to_pixels(values, image_wh, each)[:, 2:] / image_wh).max(axis=0)
            # One whole-image box may be a pixel: see `fits`.
            is_clear = not each.endswith("norm") or bool((values % 1 != 0).any())
            if odds >= _ODDS and (reach >= _REACH).all() and is_clear:
                finer.append(each)
        return finer

    def advice(self, formats: Sequence[BoxFormat], how: str) -> str:
        """Name the formats that fit, the likeliest first, and what declares them."""
        if not formats:
            return "they fit no format that is known here: were they made on images of another size?"
        if self.overlaps:
            formats = sorted(formats, key=lambda each: -self.overlaps[each])
        named = [self._describe(each) for each in formats[:_MOST_NAMED]]
        more = f" and {len(formats) - len(named)} more" if len(formats) > len(named) else ""
        if len(formats) == 1:
            return f"{named[0]} fits: if that is meant, give {how.format(formats[0])}"
        hint = "best overlap first" if self.overlaps else "and the images cannot tell them apart"
        return f"{', '.join(named)}{more} fit, {hint}: give the one that is meant, as {how.format(formats[0])}"

    @property
    def _good_overlap(self) -> float:
        return _GOOD_IOU_OF_FEW if self._num_targets < _FEW_TARGETS else _GOOD_IOU

    def _is_enough(self, declared: BoxFormat, other: BoxFormat) -> bool:
        """Tell whether several boxes can only be of another format, or one that is less than a pixel."""
        against = self._values[self._fits[other] & ~self._fits[declared]]
        is_share = other.endswith("norm") and not declared.endswith("norm")
        return len(np.unique(against, axis=0)) >= (1 if is_share else _FEWEST)

    def _describe(self, each: BoxFormat) -> str:
        overlap = f", mean IoU with the targets {self.overlaps[each]:.2f}" if self.overlaps else ""
        return f"{each} ({self.total - self.misfits[each]} of {self.total}{overlap})"


def _spans(image_wh: FloatArray, box_format: BoxFormat) -> FloatArray:
    """Return the area that a format's numbers can take up in each image, in its own unit, shape (n,)."""
    unit = box_format.partition("_")[2]
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
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def _stacked(boxes: Sequence[Sequence[float]]) -> FloatArray:
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)
