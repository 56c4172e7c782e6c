"""Florence-2's tasks, what it may be asked, and its answers (words and location tokens) read as detections.

An answer is text such as `</s><s>red shirt<loc_52><loc_332><loc_932><loc_774></s>`: a label, then its boxes, four
bins of a thousandth of the image each, or polygons between `<poly>` and `</poly>`. The processor of transformers reads
the same format (`post_process_generation`), and a test holds both readings together. Answers are read here because the
processor cuts coordinates to whole pixels, drops every letter that is not ASCII, loses a box whose label has a line
break or that has no label, takes a polygon that was cut short for a whole one, raises on a polygon of one point, and
counts none of that.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from llm_wrapper.detectors.base import Level, detections_from_raw
from llm_wrapper.records import Detections

__all__ = ["NUM_BINS", "TASKS", "Task", "detections", "harmless"]

NUM_BINS = 1000
"""Location tokens per axis; a token stands for the middle of its bin."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task's token, by which the processor knows it, and whether it needs an expression."""

    token: str
    level: Level


TASKS = {
    "rec": Task("<OPEN_VOCABULARY_DETECTION>", "expression"),
    "grounding": Task("<CAPTION_TO_PHRASE_GROUNDING>", "expression"),
    "dense_caption": Task("<DENSE_REGION_CAPTION>", "image"),
    "od": Task("<OD>", "image"),
}
"""Short name (the source of its detections) -> task."""

_BRACKETS = str.maketrans("<>", "()")
_ENDS = re.compile(r"<(?:/?s|pad)>")
_ITEM = re.compile(r"(?:^|(?<=>))([^<>]*)((?:<loc_\d{1,6}>|</?poly>|<sep>)+)")
_POLYGON = re.compile(r"<poly>(.*?)</poly>")
_LOCATION = re.compile(r"<loc_(\d+)>")


def harmless(expression: str) -> str:
    """Return an expression as one line that can form no special token; empty where nothing is left of it.

    Every special token of the tokenizer and every task token of the processor is written with `<` and `>`, so without
    these none can be formed. Control and format characters (categories C and Z) become spaces: among them are lone
    surrogates, which no tokenizer takes.
    """
    spaced = (" " if unicodedata.category(char)[0] in "CZ" else char for char in expression.translate(_BRACKETS))
    return " ".join("".join(spaced).split())


def detections(
    answer: str, task: str, image_wh: tuple[int, int], *, banned_phrases: Collection[str] = ()
) -> Detections:
    """Read the detections of one answer, in its order; labels as they are, scores `None`, the task as their source.

    A box of fewer than four bins (the answer was cut short), an open polygon and one of fewer than two points are
    counted as dropped, as are boxes without area; all others are given, also those outside the image.

    Args:
        answer: The decoded answer, with its special tokens.
        task: A key of `TASKS`.
        image_wh: Width and height of the image in pixels.
        banned_phrases: Phrases that the task `grounding` must not ground, by the checkpoint's own processor, such as
            "it" and "the image". Their boxes are left out and not counted.
    """
    rows = []
    for label, places in _ITEM.findall(_ENDS.sub("", answer)):
        phrase = label.strip()
        if task == "grounding" and phrase in banned_phrases:
            continue
        rows += [(_pixels(bins, image_wh), phrase, None) for bins in _boxes(places)]
    return detections_from_raw(rows, task)


def _boxes(places: str) -> Iterator[Sequence[int]]:
    """Yield the four bins of each box; fewer for what is no box, which is counted by that later."""
    for number, part in enumerate(_POLYGON.split(places)):
        if number % 2:
            yield _bounds(part)
            continue
        before, opened, _ = part.partition("<poly>")
        bins = _bins(before)
        yield from (bins[start : start + 4] for start in range(0, len(bins), 4))
        if opened:
            yield ()


def _bounds(polygon: str) -> Sequence[int]:
    """Return the box around a polygon, which may consist of several parts; nothing if it has one point or none."""
    parts = [_bins(part) for part in polygon.split("<sep>")]
    points = [point for bins in parts for point in zip(bins[::2], bins[1::2], strict=False)]
    if len(points) < 2:
        return ()
    xs, ys = zip(*points, strict=True)
    return (min(xs), min(ys), max(xs), max(ys))


def _bins(places: str) -> list[int]:
    return [int(number) for number in _LOCATION.findall(places)]


def _pixels(bins: Sequence[int], image_wh: tuple[int, int]) -> list[float]:
    return [(number + 0.5) * image_wh[axis % 2] / NUM_BINS for axis, number in enumerate(bins)]
