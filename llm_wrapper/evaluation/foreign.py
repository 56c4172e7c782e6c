r"""Another system's boxes as predictions, so that white-box models stand in the same tables as ours.

    {"sample_id": "12", "box": [12, 30, 80, 96]}                                        xyxy pixels
    {"image": "a.jpg", "expression": "left zebra", "bbox_xywh": [12, 30, 68, 66]}       matched by image and expression
    {"id": "0000012", "pred_bbox": [12, 30, 80, 96], "format": "xyxy"}                  HC-RefLoCo and Ref-L4
    {"sample_id": "12", "response": "```json [{\"bbox_2d\": [12, 30, 80, 96]}]```"}         a model's text
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

from llm_wrapper import box_formats
from llm_wrapper.box_formats import BoxFormat, TargetPairs
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.errors import DataError, listed
from llm_wrapper.evaluation import predictions
from llm_wrapper.evaluation.comparison import completed
from llm_wrapper.evaluation.decide import prediction_of
from llm_wrapper.evaluation.foreign_answers import BoxAnswer
from llm_wrapper.evaluation.foreign_rows import Row, read_rows
from llm_wrapper.matching import AmbiguousNameError, Matcher, NotInDataError, is_other_data
from llm_wrapper.records import Box, Prediction, Sample

__all__ = ["UNUSABLE_BOX", "Foreign", "read"]

UNUSABLE_BOX = "unusable_box"
"""Failure of a prediction whose box is reversed, without area, not finite or not four numbers; it counts as wrong."""

_NO_AREA = "reversed, without area or not finite"
_HOW = "--box-format {}"


@dataclass(frozen=True, slots=True)
class Foreign:
    """One system's predictions for exactly the samples of a split, and what a reader of its numbers should know."""

    predictions: list[Prediction]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class _Answer:
    """One row's answer; `declared` is what the file or the user says of its format."""

    where: str
    samples: tuple[Sample, ...]
    given: BoxAnswer
    declared: BoxFormat | None

    @property
    def box_format(self) -> BoxFormat | None:
        """The format of its numbers, `None` where nothing tells it."""
        return self.declared or self.given.usual


def read(path: Path, dataset: Dataset, *, name: str | None = None, box_format: BoxFormat | None = None) -> Foreign:
    """Read one system's boxes for the samples of a data set; a sample without an answer counts as wrong.

    Args:
        path: See the head of this module.
        dataset: The split. Rows about samples of others are counted and ignored.
        name: Of the system; the file's stem by default. In our own Parquet it chooses one of several systems.
        box_format: Of all boxes that do not say it themselves.

    Raises:
        DataError: If the file cannot be read or is for other data; or with every problem of every line: rows that are
            none, samples answered twice, expressions that do not say which sample is meant, and boxes of another
            format than declared, or of none that is.
    """
    made = _own(path, name) if path.suffix == ".parquet" else None
    if made is not None and box_format is not None:
        raise DataError(f"{path} holds predictions, whose boxes are xyxy pixels; leave out --box-format {box_format}")
    notes: list[str] = []
    if made is None:
        problems: list[str] = []
        answers = _answers(read_rows(path, problems), dataset, box_format, problems, notes)
        first = _without_repeats(answers, problems)
        boxes = _pixels(first, problems)
        if problems:
            raise DataError(listed(f"{path} cannot be scored on {dataset.name} {dataset.split}", problems))
        made = [_prediction(name or path.stem, sample, boxes[answer.where]) for sample, answer in _each(first)]
        notes += _remarks(first, boxes)
    whole = completed(made, dataset.samples)
    return Foreign(whole, [*notes, *_lost(whole)])


def _own(path: Path, name: str | None) -> list[Prediction]:
    """Return one system's predictions of our own file."""
    rows = predictions.load_predictions(path)
    systems = list(dict.fromkeys(row.system for row in rows))
    if not systems:
        raise DataError(f"{path} holds no prediction.")
    if len(systems) == 1:
        return [replace(row, system=name or row.system) for row in rows]
    if name not in systems:
        raise DataError(f"{path} holds several systems: choose one with --name ({', '.join(systems)})")
    return [row for row in rows if row.system == name]


def _answers(
    rows: Sequence[tuple[str, Row]],
    dataset: Dataset,
    box_format: BoxFormat | None,
    problems: list[str],
    notes: list[str],
) -> list[_Answer]:
    """Return the answers about samples of the data set; the others are counted in `notes`."""
    place = f"{dataset.name} {dataset.split}"
    spellings = [name for _, row in rows for name in (row.image, row.image_id) if name is not None]
    matcher = Matcher(dataset.samples, place, spellings=spellings, file_names=dataset.file_names)
    found: list[_Answer] = []
    ignored: list[str] = []
    for where, row in rows:
        try:
            samples = _samples(matcher, row)
            found.append(_Answer(where, samples, row.answer(), row.declared(box_format)))
        except NotInDataError as error:
            ignored.append(f"{where}: {error}")
        except (AmbiguousNameError, ValueError) as error:
            problems.append(f"{where}: {error}")
    if ignored and is_other_data(len(found) + len(ignored), len(found), len(dataset.samples)):
        problems.append(f"{len(ignored)} of {len(rows)} predictions are not for {place}: {_first(ignored)}")
    elif ignored:
        notes.append(f"{len(ignored)} of {len(rows)} predictions are not for {place}, ignored: {_first(ignored)}")
    return found


def _samples(matcher: Matcher, row: Row) -> tuple[Sample, ...]:
    """Return the samples that a row answers: several only where image and expression are the same."""
    if row.sample_id is not None:
        return (matcher.sample_of(row.sample_id, row.expression),)
    if row.ref_id is not None:
        return matcher.samples_of_ref(row.ref_id, row.expression)
    name = row.image_id if row.image is None else row.image
    if name is None:
        raise ValueError("names no sample: give 'sample_id', or 'image' and 'expression'")
    return matcher.samples_of_image(name, row.expression)


def _without_repeats(answers: Sequence[_Answer], problems: list[str]) -> list[_Answer]:
    """Return the first answer for each question; as many equal ones as there are samples of the same words are one."""
    first: dict[str, _Answer] = {}
    counts: Counter[str] = Counter()
    distinct: list[_Answer] = []
    for answer in answers:
        ids = [sample.sample_id for sample in answer.samples]
        earlier = next((first[each] for each in ids if each in first), None)
        if earlier is None:
            first |= dict.fromkeys(ids, answer)
            distinct.append(answer)
            continue
        counts[earlier.where] += 1
        if earlier.samples != answer.samples or counts[earlier.where] >= len(ids):
            problems.append(f"{answer.where}: {_named(answer)} was answered in {earlier.where} already")
        elif (earlier.given, earlier.declared) != (answer.given, answer.declared):
            problems.append(
                f"{answer.where}: {_named(answer)} has another box in {earlier.where}: which is meant? use 'sample_id'"
            )
    return distinct


def _named(answer: _Answer) -> str:
    ids = ", ".join(sample.sample_id for sample in answer.samples)
    if len(answer.samples) == 1:
        return f"sample {ids!r}"
    return f"{answer.samples[0].expression!r} of image {answer.samples[0].image_id!r} (samples {ids})"


def _pixels(answers: Sequence[_Answer], problems: list[str]) -> dict[str, Box | str | None]:
    """Return the box of each answer by its place, why it is none, or `None`; a wrong format is a problem."""
    found: dict[str, Box | str | None] = {answer.where: answer.given.reason for answer in answers}
    written = [answer for answer in answers if answer.given.values is not None]
    for box_format, is_default in dict.fromkeys((each.box_format, each.declared is None) for each in written):
        group = [each for each in written if (each.box_format, each.declared is None) == (box_format, is_default)]
        values = np.array([answer.given.values for answer in group], dtype=np.float64)
        image_wh = np.array([answer.samples[0].image_wh for answer in group], dtype=np.float64)
        targets = TargetPairs.of_rows([_targets(answer.samples) for answer in group])
        problem = box_formats.check(
            values, image_wh, box_format, how=_HOW, targets=targets, is_default=is_default and box_format is not None
        )
        if problem is not None:
            fits = np.zeros(len(group)) if box_format is None else box_formats.fits(values, image_wh, box_format)
            places = [answer.where for answer, is_fit in zip(group, fits, strict=True) if not is_fit]
            problems.append(f"{problem} ({_first(places or [answer.where for answer in group])})")
            continue
        if box_format is None:  # zeros and the like are no box in any format
            found |= {answer.where: _NO_AREA for answer in group}
            continue
        pixels = box_formats.to_pixels(values, image_wh, box_format).tolist()
        found |= {answer.where: _box(each) for answer, each in zip(group, pixels, strict=True)}
    return found


def _targets(samples: Sequence[Sample]) -> list[tuple[float, ...]]:
    first = samples[0]
    return [] if first.target is None else [each.xyxy for each in (first.target, *first.further_targets)]


def _box(xyxy: Sequence[float]) -> Box | str:
    try:
        return Box(*xyxy)
    except ValueError:
        return _NO_AREA


def _each(answers: Sequence[_Answer]) -> list[tuple[Sample, _Answer]]:
    return [(sample, answer) for answer in answers for sample in answer.samples]


def _prediction(system: str, sample: Sample, box: Box | str | None) -> Prediction:
    """Return a prediction without candidates: nothing is known of what the system chose from."""
    return prediction_of(
        sample,
        system,
        "no_candidate" if box is None else "detector",
        box=box if isinstance(box, Box) else None,
        failure=UNUSABLE_BOX if isinstance(box, str) else None,
    )


def _remarks(answers: Sequence[_Answer], boxes: dict[str, Box | str | None]) -> list[str]:
    """Say which answers were not taken as they are: shared, chosen among several, or unusable."""
    notes = []
    shared = [f"{answer.where}: {_named(answer)}" for answer in answers if len(answer.samples) > 1]
    if shared:
        notes.append(
            f"{len(shared)} times one box answers several samples, because image and expression are the same: "
            f"{_first(shared)}"
        )
    several = [answer.where for answer in answers if answer.given.count > 1]
    if several:
        notes.append(f"{len(several)} answers hold several boxes, and the first one is taken: {_first(several)}")
    reasons: dict[str, list[str]] = {}
    for sample, answer in _each(answers):
        box = boxes[answer.where]
        if isinstance(box, str):
            reasons.setdefault(box, []).append(sample.sample_id)
    for reason, ids in reasons.items():
        notes.append(f"{len(ids)} samples have an answer without a usable box ({reason}), wrong: {_first(ids)}")
    return notes


def _lost(predictions: Sequence[Prediction]) -> list[str]:
    """Say how many of the samples were not answered, or with nothing."""
    targets = [prediction for prediction in predictions if prediction.target is not None]
    missing = [prediction.sample_id for prediction in predictions if prediction.decided_by == "missing"]
    empty = [prediction.sample_id for prediction in targets if prediction.decided_by == "no_candidate"]
    notes = []
    if missing:
        notes.append(
            f"{len(missing)} of {len(predictions)} samples have no prediction and count as wrong: {_first(missing)}"
        )
    if empty:
        notes.append(f"{len(empty)} of {len(targets)} samples have no box and count as wrong: {_first(empty)}")
    return notes


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
