"""Single cases to look at: what was right, rescued, broken and still wrong, with the boxes of each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from llm_wrapper.boxes import rowwise_iou
from llm_wrapper.errors import DataError, PromptError
from llm_wrapper.evaluation.comparison import paired
from llm_wrapper.evaluation.slices import masks
from llm_wrapper.metrics import IOU_THRESHOLD, ious
from llm_wrapper.prompts.builder import PromptBuilder
from llm_wrapper.prompts.render import PROMPT_FORMATS
from llm_wrapper.recipe import PromptSection
from llm_wrapper.records import Box, Prediction, Sample
from llm_wrapper.report.parts import Part
from llm_wrapper.report.pictures import label_text
from llm_wrapper.report.thumbnails import Thumbnail

__all__ = ["OUTCOMES", "Case", "Drawn", "Gallery", "Line", "choose", "picture_ids"]

OUTCOMES = {
    (False, False): "still wrong",
    (True, False): "broken",
    (False, True): "rescued",
    (True, True): "right",
}
"""(base is right, main is right) -> name; failures come first, since they are what a reader looks for."""

_EACH = 12
"""Cases of each outcome."""


@dataclass(frozen=True, slots=True)
class Line:
    """One answer in the order shown, a candidate or none; `marks` says who chose it and how well it fits."""

    index: int
    label: str
    probability: float | None
    marks: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """One box, of a class that the page gives a color, with its text."""

    box: Box
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Case:
    """One sample; `slices` maps family to the slices that it is in."""

    outcome: str
    slices: dict[str, list[str]]
    asked: Prediction
    drawn: Sequence[Drawn]
    lines: Sequence[Line]
    prompt: str | None
    wh: tuple[float, float]
    picture: str | None


@dataclass(frozen=True, slots=True)
class Gallery:
    """Some cases of each outcome, and how many there are in all."""

    base: str
    main: str
    totals: dict[str, int]
    cases: Sequence[Case]

    @property
    def families(self) -> dict[str, list[str]]:
        """Family -> the slices that occur among the cases."""
        found: dict[str, dict[str, None]] = {}
        for case in self.cases:
            for family, names in case.slices.items():
                found.setdefault(family, {}).update(dict.fromkeys(names))
        return {family: sorted(names) for family, names in found.items()}


_Pair = tuple[Prediction, Prediction]


def picture_ids(part: Part) -> dict[str, str]:
    """Return image id -> id of a sample of it, of the images that the gallery shows."""
    return {main.image_id: main.sample_id for _, pairs in _chosen(part).values() for _, main in pairs}


def choose(part: Part, thumbnails: dict[str, Thumbnail]) -> Gallery | None:
    """Return the cases of an evaluation; `None` where there are no two systems to compare on the same samples."""
    chosen = _chosen(part)
    if part.main is None or not chosen:
        return None
    return Gallery(
        base=part.base,
        main=part.main,
        totals={outcome: total for outcome, (total, _) in chosen.items()},
        cases=[
            _case(part, pair, outcome, thumbnails.get(pair[1].image_id))
            for outcome, (_, pairs) in chosen.items()
            for pair in pairs
        ],
    )


def _chosen(part: Part) -> dict[str, tuple[int, list[_Pair]]]:
    """Return outcome -> how many samples have it, and those that are shown."""
    if part.main is None:
        return {}
    try:
        pairs = [pair for pair in paired(part.systems[part.base], part.systems[part.main]) if pair[0].target]
    except DataError:  # said in the section of differences
        return {}
    right = [(ious([pair[side] for pair in pairs]) > IOU_THRESHOLD).tolist() for side in (0, 1)]
    result = {}
    for both, outcome in OUTCOMES.items():
        found = [pair for pair, *seen in zip(pairs, *right, strict=True) if tuple(seen) == both]
        result[outcome] = (len(found), _some(found))
    return result


def _some(pairs: Sequence[_Pair]) -> list[_Pair]:
    """Take a few, of different images as far as there are; by a hash, so that nobody picks the nice ones."""
    ordered = sorted(pairs, key=lambda pair: hashlib.sha256(pair[0].sample_id.encode()).digest())
    first: dict[str, _Pair] = {}
    for pair in ordered:
        first.setdefault(pair[0].image_id, pair)
    return list(first.values())[:_EACH]


def _case(part: Part, pair: _Pair, outcome: str, thumbnail: Thumbnail | None) -> Case:
    base, main = pair
    in_slices = {family: [name for name, mask in slices.items() if mask[0]] for family, slices in masks([main]).items()}
    wh = main.image_wh or (thumbnail.wh if thumbnail else None)
    return Case(
        outcome=outcome,
        slices=in_slices,
        asked=main,
        drawn=_drawn(base, main, named=thumbnail is None),
        lines=_lines(base, main),
        prompt=_prompt(part, main, wh),
        wh=wh or _extent(base, main),
        picture=thumbnail.uri if thumbnail else None,
    )


def _drawn(base: Prediction, main: Prediction, *, named: bool) -> list[Drawn]:
    """Return what is drawn, the widest line first, so that boxes that coincide can all be seen.

    Candidates are `named` where no picture shows what they are.
    """
    names = [f"{index} {label_text(each.label)}" if named else str(index) for index, each in enumerate(main.candidates)]
    boxes = [Drawn(each.box, "candidate", name) for each, name in zip(main.candidates, names, strict=True)]
    boxes += [Drawn(target, "target", "target") for target in (main.target, *main.further_targets) if target]
    boxes += [Drawn(main.box, "main", main.system)] if main.box else []
    return [*boxes, Drawn(base.box, "base", base.system)] if base.box else boxes


def _lines(base: Prediction, main: Prediction) -> list[Line]:
    target = None if main.target is None else np.array([main.target.xyxy])
    probabilities = main.probabilities or [None] * len(main.candidates)
    lines = []
    for index, (candidate, probability) in enumerate(zip(main.candidates, probabilities, strict=False)):
        overlap = 0.0 if target is None else float(rowwise_iou(np.array([candidate.box.xyxy]), target)[0])
        marks = [each.system for each in (base, main) if each.box == candidate.box]
        marks += [f"IoU {overlap:.2f}"] if overlap > IOU_THRESHOLD else []
        lines.append(Line(index, candidate.label, probability, ", ".join(marks)))
    if main.none_probability is not None or main.says_none:
        lines.append(Line(len(lines), "none of these", main.none_probability, main.system * main.says_none))
    return lines


def _prompt(part: Part, asked: Prediction, wh: tuple[int, int] | None) -> str | None:
    """Word the prompt again, where an LLM was asked in a shipped format about an image of known size.

    Examples that were shown before the question are training expressions, which the run's folder does not hold.
    """
    section = part.recipe.get("prompt") or {}
    if wh is None or section.get("format") not in PROMPT_FORMATS or asked.decided_by not in ("llm", "fallback"):
        return None
    sample = Sample(asked.sample_id, "", asked.image_id, None, wh, asked.expression, None)
    try:
        words = PromptSection.model_validate({**section, "examples": 0, "retrieve": False})
        (prompt,) = PromptBuilder(words).build([(sample, asked.candidates)])
    except (PromptError, ValidationError):
        return None
    return prompt.messages[-1].content


def _extent(*predictions: Prediction) -> tuple[float, float]:
    """Return a canvas that holds all boxes, where the image's size is not known."""
    boxes = [candidate.box for each in predictions for candidate in each.candidates]
    boxes += [box for each in predictions for box in (each.box, each.target, *each.further_targets) if box]
    return max((box.x1 for box in boxes), default=1.0), max((box.y1 for box in boxes), default=1.0)
