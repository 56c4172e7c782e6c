"""Somebody else's boxes as predictions, so that white-box models stand in the same tables as ours.

    {"sample_id": "12", "box": [12, 30, 80, 96]}                                        xyxy pixels
    {"image": "a.jpg", "expression": "left zebra", "bbox_xywh": [12, 30, 68, 66]}       matched by image and exact words
    {"id": "0000012", "pred_bbox": [12, 30, 80, 96], "format": "xyxy"}                  HC-RefLoCo and Ref-L4
    {"12": [12, 30, 68, 66]}                                                            sample id -> box, as Talk2Car

as JSON lines or one JSON list; see `foreign_rows` for all spellings. COCO results name an image and no expression, so
they need a sample id or the expression in each row. Our own Parquet is read too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llm_wrapper.datasets.base import Dataset
from llm_wrapper.errors import DataError, listed
from llm_wrapper.evaluation import foreign_boxes, predictions
from llm_wrapper.evaluation.foreign_boxes import BoxFormat
from llm_wrapper.evaluation.foreign_match import Matcher
from llm_wrapper.evaluation.foreign_rows import Row, read_rows
from llm_wrapper.evaluation.paired import completed
from llm_wrapper.records import Box, Prediction, Sample

__all__ = ["UNUSABLE_BOX", "Foreign", "read"]

UNUSABLE_BOX = "unusable_box"
"""Failure of a prediction whose box is reversed, without area or not finite; it counts as wrong."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """One system's predictions for exactly the samples asked, and what a reader of its numbers should know."""

    predictions: list[Prediction]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class _Answer:
    where: str
    samples: tuple[Sample, ...]
    values: list[float] | None
    told: BoxFormat | None


def read(path: Path, dataset: Dataset, *, name: str | None = None, box_format: BoxFormat | None = None) -> Foreign:
    """Read one system's boxes for the samples of a data set; a sample without an answer counts as wrong.

    Args:
        path: See the head of this module.
        dataset: What was asked.
        name: Of the system; the file's stem by default. In our own Parquet it chooses one of several systems.
        box_format: Of all boxes that do not say it themselves.

    Raises:
        DataError: If the file cannot be read; or with every problem of every line: rows that are none, samples that
            were not asked for, samples answered twice, words that do not say which sample is meant, and boxes of
            another format than told, or of none that is told.
    """
    made = _own(path, name) if path.suffix == ".parquet" else None
    if made is not None and box_format is not None:
        raise DataError(f"{path} holds predictions, whose boxes are xyxy pixels; leave out --box-format {box_format}")
    notes: list[str] = []
    if made is None:
        problems: list[str] = []
        answers = _answers(path, dataset, box_format, problems)
        kept = _without_repeats(answers, problems)
        boxes = _pixels(kept, problems)
        if problems:
            raise DataError(listed(f"{path} cannot be scored on {dataset.name} {dataset.split}", problems))
        made = [_prediction(name or path.stem, sample, boxes[answer.where]) for sample, answer in _each(kept)]
        notes += _shared(kept)
    whole = completed(made, dataset.samples)
    return Foreign(whole, [*notes, *_lost(whole)])


def _own(path: Path, name: str | None) -> list[Prediction]:
    """Return one system's predictions of our own file."""
    rows = predictions.load(path)
    systems = list(dict.fromkeys(row.system for row in rows))
    if not systems:
        raise DataError(f"{path} holds no prediction.")
    if len(systems) == 1:
        return [replace(row, system=name or row.system) for row in rows]
    if name not in systems:
        raise DataError(f"{path} holds several systems: choose one with --name ({', '.join(systems)})")
    return [row for row in rows if row.system == name]


def _answers(path: Path, dataset: Dataset, box_format: BoxFormat | None, problems: list[str]) -> list[_Answer]:
    matcher = Matcher(dataset)
    found: list[_Answer] = []
    for where, row in read_rows(path, problems):
        answer = _answer(where, row, matcher, box_format, problems)
        if answer is not None:
            found.append(answer)
    return found


def _answer(
    where: str, row: Row, matcher: Matcher, box_format: BoxFormat | None, problems: list[str]
) -> _Answer | None:
    try:
        return _Answer(where, matcher.find(row), row.values(), row.told(box_format))
    except ValueError as error:
        problems.append(f"{where}: {error}")
        return None


def _without_repeats(answers: Sequence[_Answer], problems: list[str]) -> list[_Answer]:
    """Return the first answer for each question; as many equal ones as there are samples of the same words are one."""
    first: dict[str, _Answer] = {}
    counts: Counter[str] = Counter()
    kept: list[_Answer] = []
    for answer in answers:
        ids = [sample.sample_id for sample in answer.samples]
        earlier = next((first[each] for each in ids if each in first), None)
        if earlier is None:
            first |= dict.fromkeys(ids, answer)
            kept.append(answer)
            continue
        counts[earlier.where] += 1
        if earlier.samples != answer.samples or counts[earlier.where] >= len(ids):
            problems.append(f"{answer.where}: {_named(answer)} was answered in {earlier.where} already")
        elif (earlier.values, earlier.told) != (answer.values, answer.told):
            problems.append(
                f"{answer.where}: {_named(answer)} has another box in {earlier.where}: which is meant? use 'sample_id'"
            )
    return kept


def _named(answer: _Answer) -> str:
    ids = ", ".join(sample.sample_id for sample in answer.samples)
    if len(answer.samples) == 1:
        return f"sample {ids!r}"
    return f"{answer.samples[0].expression!r} of image {answer.samples[0].image_id!r} (samples {ids})"


def _pixels(answers: Sequence[_Answer], problems: list[str]) -> dict[str, Box | str | None]:
    """Return the box of each answer by its place, `UNUSABLE_BOX` where it is none; a format that is wrong is told."""
    found: dict[str, Box | str | None] = {answer.where: None for answer in answers}
    formats = dict.fromkeys(answer.told for answer in answers if answer.values is not None)
    for told in formats:
        written = [answer for answer in answers if answer.told == told and answer.values is not None]
        values = np.array([answer.values for answer in written], dtype=np.float64)
        image_wh = np.array([answer.samples[0].image_wh for answer in written], dtype=np.float64)
        problem = foreign_boxes.problem(values, image_wh, told)
        if problem is not None or told is None:
            wrong = np.ones(len(written)) if told is None else ~foreign_boxes.fits(values, image_wh, told)
            places = [answer.where for answer, is_wrong in zip(written, wrong, strict=True) if is_wrong]
            problems.append(f"{problem} ({_first(places)})")
            continue
        pixels = foreign_boxes.in_pixels(values, image_wh, told).tolist()
        found |= {answer.where: _box(each) for answer, each in zip(written, pixels, strict=True)}
    return found


def _box(xyxy: Sequence[float]) -> Box | str:
    try:
        return Box(*xyxy)
    except ValueError:
        return UNUSABLE_BOX


def _each(answers: Sequence[_Answer]) -> list[tuple[Sample, _Answer]]:
    return [(sample, answer) for answer in answers for sample in answer.samples]


def _prediction(system: str, sample: Sample, box: Box | str | None) -> Prediction:
    """Return a prediction without candidates: nothing is known of what the system chose from."""
    return Prediction(
        system=system,
        sample_id=sample.sample_id,
        image_id=sample.image_id,
        expression=sample.expression,
        kind=sample.kind,
        target=sample.target,
        box=box if isinstance(box, Box) else None,
        decided_by="no_candidate" if box is None else "detector",
        probability=None,
        probabilities=None,
        failure=box if isinstance(box, str) else None,
        candidates=(),
        further_targets=sample.further_targets,
        image_wh=sample.image_wh,
    )


def _shared(answers: Sequence[_Answer]) -> list[str]:
    several = [answer for answer in answers if len(answer.samples) > 1]
    if not several:
        return []
    places = _first([f"{answer.where}: {_named(answer)}" for answer in several])
    return [f"{len(several)} times one box answers several samples, because image and words are the same: {places}"]


def _lost(predictions: Sequence[Prediction]) -> list[str]:
    """Say how many of the samples have no box that can be right, and why."""
    missing = [prediction.sample_id for prediction in predictions if prediction.decided_by == "missing"]
    unusable = [prediction.sample_id for prediction in predictions if prediction.failure == UNUSABLE_BOX]
    told = {"have no prediction": missing, "have a box that is reversed, without area or not finite": unusable}
    return [
        f"{len(ids)} of {len(predictions)} samples {what} and count as wrong: {_first(ids)}"
        for what, ids in told.items()
        if ids
    ]


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
