"""Single cases to look at: what was right, rescued, broken and still wrong, with the boxes of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from llm_wrapper.boxes import rowwise_iou
from llm_wrapper.errors import DataError, PromptError
from llm_wrapper.evaluation.comparison import OUTCOMES, outcomes, pair_predictions
from llm_wrapper.evaluation.slices import masks, weakest_slices
from llm_wrapper.metrics import IOU_THRESHOLD, ious
from llm_wrapper.prompts.render import PROMPT_FORMATS, PromptBuilder
from llm_wrapper.recipe import PromptSection
from llm_wrapper.records import Box, Prediction, Sample
from llm_wrapper.report.evaluations import StoredEvaluation
from llm_wrapper.report.pictures import label_text
from llm_wrapper.report.thumbnails import Thumbnail

__all__ = ["Case", "Drawn", "Gallery", "Line", "choose_cases", "picture_ids"]

_OUTCOMES = {
    (False, False): "still wrong",
    (True, False): "broken",
    (False, True): "rescued",
    (True, True): "right",
}
"""(base is right, main is right) -> name; failures come first, since they are what a reader looks for."""

_MOST = {"still wrong": 48, "broken": 24, "rescued": 12, "right": 12}
"""Cases of each outcome: a reader looks for the wrong ones."""

_OF_WEAK = 6
"""Wrong cases of each outcome that are taken from each slice that the page calls weak."""


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
        """Family -> the slices that occur among the cases; a filter offers these."""
        found: dict[str, dict[str, None]] = {}
        for case in self.cases:
            for family, names in case.slices.items():
                found.setdefault(family, {}).update(dict.fromkeys(names))
        return {family: sorted(names) for family, names in found.items()}


_Pair = tuple[Prediction, Prediction]


def picture_ids(evaluation: StoredEvaluation) -> dict[str, str]:
    """Return image id -> id of a sample of it, of the images that the gallery shows."""
    return {main.image_id: main.sample_id for _, pairs in _choose(evaluation).values() for _, main in pairs}


def choose_cases(evaluation: StoredEvaluation, thumbnails: dict[str, Thumbnail]) -> Gallery | None:
    """Return the cases of an evaluation; `None` where there are no two systems to compare on the same samples."""
    chosen = _choose(evaluation)
    if evaluation.main is None or not chosen:
        return None
    return Gallery(
        base=evaluation.base,
        main=evaluation.main,
        totals={outcome: total for outcome, (total, _) in chosen.items()},
        cases=[
            _case(evaluation, pair, outcome, thumbnails.get(pair[1].image_id))
            for outcome, (_, pairs) in chosen.items()
            for pair in pairs
        ],
    )


def _choose(evaluation: StoredEvaluation) -> dict[str, tuple[int, list[_Pair]]]:
    """Return outcome -> how many samples have it, and those that are shown."""
    if evaluation.main is None:
        return {}
    base, main = evaluation.systems[evaluation.base], evaluation.systems[evaluation.main]
    try:
        pairs = [pair for pair in pair_predictions(base, main) if pair[0].target]
    except DataError:  # a note of the section of differences
        return {}
    right = [(ious([pair[side] for pair in pairs]) > IOU_THRESHOLD).tolist() for side in (0, 1)]
    weak = [(family, name) for family, name, _ in weakest_slices(main)]
    result = {}
    for both, outcome in _OUTCOMES.items():
        found = [pair for pair, *seen in zip(pairs, *right, strict=True) if tuple(seen) == both]
        result[outcome] = (len(found), _sample_cases(found, _MOST[outcome], weak if not both[1] else []))
    return result


def _sample_cases(pairs: Sequence[_Pair], most: int, weak: Sequence[tuple[str, str]]) -> list[_Pair]:
    """Take some cases of different images by a hash, not by hand: of each weak slice, of each slice, then of all."""
    ordered = sorted(pairs, key=lambda pair: hashlib.sha256(pair[0].sample_id.encode()).digest())
    slices = {(family, name): np.flatnonzero(mask) for family, found in _families([main for _, main in ordered]).items()
              for name, mask in found.items()}  # fmt: skip
    taken: dict[str, int] = {}

    def take(places: Iterable[int], count: int) -> None:
        for place in places:
            image_id = ordered[place][0].image_id
            if len(taken) >= most or count <= 0:
                return
            if taken.setdefault(image_id, place) == place:
                count -= 1

    for each in weak:
        take(slices[each].tolist(), _OF_WEAK)
    for places in slices.values():
        take(places.tolist(), 1)
    take(range(len(ordered)), most)
    return [ordered[place] for place in sorted(taken.values())]


def _families(predictions: Sequence[Prediction]) -> dict[str, dict[str, npt.NDArray[np.bool_]]]:
    """Return family -> slice -> mask: why the system is wrong, and the slices of the report."""
    found = outcomes(predictions)
    return {"error": {name: found == name for name in OUTCOMES if name != "right"}, **masks(predictions)}


def _case(evaluation: StoredEvaluation, pair: _Pair, outcome: str, thumbnail: Thumbnail | None) -> Case:
    base, main = pair
    in_slices = {
        family: [name for name, mask in slices.items() if mask[0]] for family, slices in _families([main]).items()
    }
    wh = main.image_wh or (thumbnail.wh if thumbnail else None)
    return Case(
        outcome=outcome,
        slices=in_slices,
        asked=main,
        drawn=_drawn(base, main, named=thumbnail is None),
        lines=_lines(base, main),
        prompt=_prompt(evaluation, main, wh),
        wh=wh or _extent(base, main),
        picture=thumbnail.uri if thumbnail else None,
    )


def _drawn(base: Prediction, main: Prediction, *, named: bool) -> list[Drawn]:
    """Return the boxes to draw, the widest line first, so that boxes that coincide can all be seen.

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


def _prompt(evaluation: StoredEvaluation, asked: Prediction, wh: tuple[int, int] | None) -> str | None:
    """Word the prompt again, where an LLM was asked in a shipped format about an image of known size.

    Examples that were shown before the question are training expressions, which the run's folder does not hold.
    """
    section = evaluation.recipe.get("prompt") or {}
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
