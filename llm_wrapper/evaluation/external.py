r"""External predictions: the boxes of another system, scored in the same tables as ours.

    {"sample_id": "12", "box": [12, 30, 80, 96]}                                        xyxy pixels
    {"image": "a.jpg", "expression": "left zebra", "bbox_xywh": [12, 30, 68, 66]}       matched by image and expression
    {"id": "0000012", "pred_bbox": [12, 30, 80, 96], "format": "xyxy"}                  HC-RefLoCo and Ref-L4
    {"sample_id": "12", "response": "```json [{\"bbox_2d\": [12, 30, 80, 96]}]```"}         a model's text
    {"12": [12, 30, 68, 66]}                                                            sample id -> box, as Talk2Car

as JSON lines or one JSON list; `_Row` has all spellings. COCO results name an image and no expression, so each row
needs a sample id or the expression. Our own Parquet is read too.

    file -> rows -> answers about samples of the split -> pixels -> predictions
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from llm_wrapper import readers
from llm_wrapper.box_formats import BoxFormat, BoxValue, TargetPairs, WrittenBox, convert_boxes, parse_box
from llm_wrapper.datasets.base import Dataset, Id, require_file, validate_row
from llm_wrapper.errors import DataError, listed
from llm_wrapper.evaluation import predictions
from llm_wrapper.evaluation.comparison import complete_predictions
from llm_wrapper.evaluation.predictions import prediction_of
from llm_wrapper.matching import AmbiguousNameError, Matcher, NotInDataError, is_other_data
from llm_wrapper.records import Box, Prediction, Sample

UNUSABLE_BOX = "unusable_box"
"""Failure of a prediction whose box is reversed, without area, not finite or not four numbers; it counts as wrong."""

_NO_AREA = "reversed, without area or not finite"

_BOX_KEYS: Mapping[str, BoxFormat | None] = {
    "box": None,
    "bbox": None,
    "pred_bbox": None,
    "bbox_2d": None,
    "box_2d": None,
    "box_xyxy": "xyxy",
    "bbox_xyxy": "xyxy",
    "box_xywh": "xywh",
    "bbox_xywh": "xywh",
}
"""Key -> the format that it declares."""

_USUAL: Mapping[str, BoxFormat] = {"box": "xyxy", "bbox_2d": "xyxy", "box_2d": "yxyx_1000"}
"""Key -> its format where nothing else declares one: that of our own files, of Qwen's and of Gemini's answers."""

_TEXT_KEYS = ("response", "answer", "output", "prediction", "generated_text", "text")
"""Keys of a model's text, read only where there is no box."""


@dataclass(frozen=True, slots=True)
class ExternalPredictions:
    """One system's predictions for exactly the samples of a split, and notes on answers that were not usable."""

    predictions: list[Prediction]
    notes: list[str]


class _Row(BaseModel):
    """One line: the question, and the box that a system gave; other keys are not read."""

    model_config = ConfigDict(extra="ignore")

    sample_id: Id | None = Field(None, validation_alias=AliasChoices("sample_id", "sent_id"))
    ref_id: Id | None = None
    image: str | None = Field(None, validation_alias=AliasChoices("image", "file_name"))
    image_id: Id | None = Field(None, validation_alias=AliasChoices("image_id", "img_id"))
    expression: str | None = Field(
        None, validation_alias=AliasChoices("expression", "sent", "sents", "sentence", "caption", "refexp")
    )
    format: BoxFormat | None = None
    given: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _with_box(cls, value: Any) -> Any:
        """Gather the keys of a box; take the `id` of {id, pred_bbox, format} as a sample's."""
        if not isinstance(value, dict):
            return value
        given = {key: value[key] for key in _BOX_KEYS if key in value}
        texts = {key: value[key] for key in _TEXT_KEYS if isinstance(value.get(key), str)}
        about = {"sample_id": value["id"]} if "pred_bbox" in value and "id" in value else {}
        return {**about, **value, "given": given or dict(list(texts.items())[:1])}

    @model_validator(mode="after")
    def _has_one_box(self) -> _Row:
        if not self.given:
            keys = ", ".join([*_BOX_KEYS, *_TEXT_KEYS])
            raise ValueError(f"no box: give one of the keys {keys}; null where the system found nothing")
        if len(self.given) > 1:
            raise ValueError(f"several boxes ({', '.join(self.given)}): keep the one that was predicted")
        return self

    def box(self) -> BoxValue:
        """Return the box as written; raises ValueError if there is something else under its key."""
        ((key, value),) = self.given.items()
        found = parse_box(value)
        return replace(found, usual=found.usual or _USUAL.get(key))

    def declared(self, option: BoxFormat | None) -> BoxFormat | None:
        """Return the format that the key, the row or `option` declares; raises ValueError where they differ."""
        (key,) = self.given
        said = {each for each in (_BOX_KEYS.get(key), self.format, option) if each is not None}
        if len(said) > 1:
            raise ValueError(f"the box is said to be {' and '.join(sorted(said))}: correct the line or --box-format")
        return said.pop() if said else None


@dataclass(frozen=True, slots=True)
class _Answer:
    """One row's answer; `declared` is the format that the file or the user gives for it."""

    where: str
    samples: tuple[Sample, ...]
    box: BoxValue
    declared: BoxFormat | None

    def __str__(self) -> str:
        ids = ", ".join(sample.sample_id for sample in self.samples)
        if len(self.samples) == 1:
            return f"sample {ids!r}"
        return f"{self.samples[0].expression!r} of image {self.samples[0].image_id!r} (samples {ids})"


def read_external_predictions(
    path: Path, dataset: Dataset, *, name: str | None = None, box_format: BoxFormat | None = None
) -> ExternalPredictions:
    """Read one system's boxes for the samples of a data set; a sample without an answer counts as wrong.

    Args:
        path: See the head of this module.
        dataset: The split. Rows about samples of others are counted and ignored.
        name: Of the system; the file's stem by default. In our own Parquet it chooses one of several systems.
        box_format: Of all boxes that do not declare it themselves.

    Raises:
        DataError: If the file cannot be read or is for other data; or with every problem of every line: rows that are
            none, samples answered twice, expressions that do not say which sample is meant, and boxes of another
            format than declared, or of none that is.
    """
    notes: list[str] = []
    if path.suffix == ".parquet":
        if box_format is not None:
            raise DataError(f"{path} holds predictions, whose boxes are xyxy pixels; omit --box-format {box_format}")
        found = _read_own(path, name)
    else:
        problems: list[str] = []
        answers = _match(_read_rows(path, problems), dataset, box_format, problems, notes)
        distinct = _without_repeats(answers, problems)
        boxes = _pixel_boxes(distinct, problems)
        if problems:
            raise DataError(listed(f"{path} cannot be scored on {dataset.name} {dataset.split}", problems))
        system = name or path.stem
        # Without candidates: from which boxes the system chose is unknown.
        found = [
            prediction_of(
                sample,
                system,
                "no_candidate" if box is None else "detector",
                box=box if isinstance(box, Box) else None,
                failure=UNUSABLE_BOX if isinstance(box, str) else None,
            )
            for each in distinct
            for sample, box in ((sample, boxes[each.where]) for sample in each.samples)
        ]
        notes += _notes_on_answers(distinct, boxes)
    whole = complete_predictions(found, dataset.samples)
    targets = [prediction for prediction in whole if prediction.target is not None]
    missing = [prediction.sample_id for prediction in whole if prediction.decided_by == "missing"]
    empty = [prediction.sample_id for prediction in targets if prediction.decided_by == "no_candidate"]
    if missing:
        notes.append(f"{len(missing)} of {len(whole)} samples have no prediction and count as wrong: {_first(missing)}")
    if empty:
        notes.append(f"{len(empty)} of {len(targets)} samples have no box and count as wrong: {_first(empty)}")
    return ExternalPredictions(whole, notes)


def _read_own(path: Path, name: str | None) -> list[Prediction]:
    """Return one system's predictions of our own file."""
    found = predictions.load_predictions(path)
    systems = list(dict.fromkeys(row.system for row in found))
    if not systems:
        raise DataError(f"{path} holds no prediction.")
    if len(systems) == 1:
        return [replace(row, system=name or row.system) for row in found]
    if name not in systems:
        raise DataError(f"{path} holds several systems: choose one with --name ({', '.join(systems)})")
    return [row for row in found if row.system == name]


def _read_rows(path: Path, problems: list[str]) -> list[tuple[str, _Row]]:
    """Return (place in the file, row) of each row; problems of the others are appended to `problems`."""
    require_file(path, "Give a file of predictions: JSON lines, a JSON list, or our own Parquet.")
    values = list(_read_values(path, problems))
    if not values and not problems:
        raise DataError(f"{path} holds no prediction.")
    found = [(where, validate_row(_Row, value, where=where, problems=problems)) for where, value in values]
    return [(where, row) for where, row in found if row is not None]


def _read_values(path: Path, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Read a JSON list, JSON lines, or one JSON object {sample id: box}, whatever the file is called."""
    text = readers.read_text(path, most=readers.GIB)
    start = text.lstrip()[:1]
    if start == "[":
        yield from ((f"row {index}", row) for index, row in enumerate(readers.parse_json(text, str(path), nan=True)))
        return
    if start != "{":
        raise DataError(f"{path} is neither JSON (it must begin with [ or {{) nor a Parquet file of predictions.")
    try:
        content = readers.parse_json(text, str(path), nan=True)
    except DataError:
        lines, damaged = readers.read_json_lines(path, nan=True)
        if not lines:
            raise
        problems.extend(damaged)
        yield from ((f"line {number}", value) for number, value in lines)
        return
    if all(value is None or isinstance(value, list) for value in content.values()):
        yield from ((f"key {key!r}", {"sample_id": key, "bbox": value}) for key, value in content.items())
    else:
        yield "line 1", content


def _match(
    found: Sequence[tuple[str, _Row]],
    dataset: Dataset,
    box_format: BoxFormat | None,
    problems: list[str],
    notes: list[str],
) -> list[_Answer]:
    """Return the answers about samples of the data set; the others are counted in `notes`."""
    place = f"{dataset.name} {dataset.split}"
    spellings = [name for _, row in found for name in (row.image, row.image_id) if name is not None]
    matcher = Matcher(dataset.samples, place, spellings=spellings, file_names=dataset.file_names)
    answers: list[_Answer] = []
    ignored: list[str] = []
    for where, row in found:
        try:
            answers.append(_Answer(where, _samples_of(matcher, row), row.box(), row.declared(box_format)))
        except NotInDataError as error:
            ignored.append(f"{where}: {error}")
        except (AmbiguousNameError, ValueError) as error:
            problems.append(f"{where}: {error}")
    if ignored and is_other_data(len(answers) + len(ignored), len(answers), len(dataset.samples)):
        problems.append(f"{len(ignored)} of {len(found)} predictions are not for {place}: {_first(ignored)}")
    elif ignored:
        notes.append(f"{len(ignored)} of {len(found)} predictions are not for {place}, ignored: {_first(ignored)}")
    return answers


def _samples_of(matcher: Matcher, row: _Row) -> tuple[Sample, ...]:
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
    """Return the first answer to each question; equal answers to an expression that several samples share are one."""
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
            problems.append(f"{answer.where}: {answer} was answered in {earlier.where} already")
        elif (earlier.box, earlier.declared) != (answer.box, answer.declared):
            problems.append(
                f"{answer.where}: {answer} has another box in {earlier.where}: which is meant? use 'sample_id'"
            )
    return distinct


def _pixel_boxes(answers: Sequence[_Answer], problems: list[str]) -> dict[str, Box | str | None]:
    """Return the box of each answer by its place, why it is unusable, or `None`; a wrong format is a problem."""
    found: dict[str, Box | str | None] = {answer.where: answer.box.reason for answer in answers}
    written = [(answer, answer.box.numbers) for answer in answers if answer.box.numbers is not None]
    boxes = [
        WrittenBox(numbers, answer.declared, answer.box.usual, answer.samples[0].image_wh)
        for answer, numbers in written
    ]

    def pair(indices: Sequence[int]) -> TargetPairs:
        samples = [written[index][0].samples[0] for index in indices]
        return TargetPairs.of_rows(
            [[each.xyxy for each in (s.target, *s.further_targets) if each is not None] for s in samples]
        )

    pixels, unfit = convert_boxes(boxes, pair, how="--box-format {}")
    for problem in unfit:
        problems.append(f"{problem.text} ({_first([written[index][0].where for index in problem.indices])})")
    for (answer, _), xyxy in zip(written, pixels.tolist(), strict=True):
        try:
            found[answer.where] = Box(*xyxy)
        except ValueError:
            found[answer.where] = _NO_AREA
    return found


def _notes_on_answers(answers: Sequence[_Answer], boxes: Mapping[str, Box | str | None]) -> list[str]:
    """Count the answers that were shared by samples, chosen among several boxes, or unusable."""
    notes = []
    shared = [f"{answer.where}: {answer}" for answer in answers if len(answer.samples) > 1]
    if shared:
        notes.append(
            f"{len(shared)} times one box answers several samples, because image and expression are the same: "
            f"{_first(shared)}"
        )
    several = [answer.where for answer in answers if answer.box.count > 1]
    if several:
        notes.append(f"{len(several)} answers hold several boxes, and the first one is taken: {_first(several)}")
    reasons: dict[str, list[str]] = {}
    for answer in answers:
        reason = boxes[answer.where]
        if isinstance(reason, str):
            reasons.setdefault(reason, []).extend(sample.sample_id for sample in answer.samples)
    for reason, ids in reasons.items():
        notes.append(f"{len(ids)} samples have an answer without a usable box ({reason}), wrong: {_first(ids)}")
    return notes


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
