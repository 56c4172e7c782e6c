"""The detector `import`: boxes that another program has written, of a closed model, a paid service or a publication.

`box_files` lists the forms that are read. A file may cover more images than the data set has: they are counted and
ignored. Boxes that are of another format than declared, by their images and targets, are refused with the setting that
declares the right one, `box_format`.

    file -> entries -> by image or sample id -> labels from category ids -> xyxy pixels, formats checked -> Detections
"""

from __future__ import annotations

import copy
import functools
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from llm_wrapper.box_formats import BoxFormat, TargetPairs, WrittenBox, convert_boxes
from llm_wrapper.datasets.base import Dataset, digest_files, require_file, validate_row
from llm_wrapper.detectors import Level, Question, UnboundDetector, detections_from_raw
from llm_wrapper.detectors.box_files import BoxFileNotes, Entry, RawBox, read_box_file
from llm_wrapper.detectors.coco import CategoryNames, read_category_names
from llm_wrapper.errors import DataError, RecipeError, listed
from llm_wrapper.matching import AmbiguousNameError, Matcher, NotInDataError, is_other_data
from llm_wrapper.records import Detections, Sample

__all__ = ["ImportedDetector", "create_imported"]

_log = logging.getLogger(__name__)

_NO_NAME = r"[^\w.+-]+"
"""Characters that the name of a cache's folder must not have."""
_SOURCE = "imported"
_MOST_NAMED = 5
_MOST_LETTERS = 80

_REMEDY = "Correct the settings 'path' and 'categories' of the detector 'imported', or write the file."

_Boxes = dict[str, list[tuple[str, RawBox]]]
"""By image or sample id: boxes with the place of the entry that they are from."""


class _ImportSettings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: Path
    categories: Path | None = None
    name: str | None = Field(None, pattern=r"^[\w.+-]*\w[\w.+-]*$")
    box_format: BoxFormat | None = None


@dataclass(frozen=True, slots=True)
class _Answers:
    """The detections of a file, by image id or by sample id.

    Attributes:
        level: `expression` if the file names samples.
        detections: By id.
        remarks: Facts that a user must know of them, one sentence each.
        deciding: Readings of the file that neither its content nor the settings decide alone.
    """

    level: Level
    detections: Mapping[str, Detections]
    remarks: tuple[str, ...]
    deciding: Mapping[str, str]


class ImportedDetector:
    """Answers from a file. An image or expression that the file does not name has no detections.

    Attributes:
        name: The setting `name`, or `import-` and the file's name without its ending: each file has another cache,
            and none of them that of a detector by the same name.
        levels: `expression` if the rows name samples, else `image`.
        num_unanswered: How many images (or expressions) of the data set the file does not name.
        remarks: Names that were ignored or absent, and values that were read otherwise than written; one sentence each.
    """

    reads_images = False

    def __init__(self, name: str, answers: _Answers, *, identity: Mapping[str, Any], dataset: Dataset) -> None:
        self.name = name
        self.levels: tuple[Level, ...] = (answers.level,)
        self.remarks = answers.remarks
        self._detections = answers.detections
        self._identity = {**identity, **answers.deciding}
        self._has_logged = False
        known = {self._key(Question(sample, answers.level)) for sample in dataset.samples}
        self.num_unanswered = len(known - self._detections.keys())

    def identity(self) -> dict[str, Any]:
        """Return all that decides the answers: the settings, and a digest of the files' content."""
        return dict(self._identity)

    def recorded(self) -> dict[str, Any]:
        """Return the remarks on the file; see `RecordingDetector`."""
        return {"remarks": "; ".join(self.remarks)} if self.remarks else {}

    def prepare(self, sample: Sample) -> None:
        """Do nothing: no pixel is read."""

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        """Return the file's detections for each question, in the file's order; none where it has no row."""
        if not self._has_logged:
            self._has_logged = True
            for remark in self.remarks:
                _log.warning("%s: %s", self.name, remark)
        return [self._detections.get(self._key(question), Detections(())) for question in questions]

    @staticmethod
    def _key(question: Question) -> str:
        image_id, sample_id = question.key
        return image_id if sample_id is None else sample_id


def create_imported(settings: Mapping[str, Any]) -> UnboundDetector:
    """Build the detector of a file of boxes; the file is read for the images or samples of one data set.

    Args:
        settings: `path`; `categories`, for labels that are numbers; `name`, by default the file's; and `box_format`,
            that of `bbox` (COCO results, by default xywh) or of `box` (JSONL, by default xyxy).

    Raises:
        RecipeError: If a setting is unknown, missing, of the wrong type or not for this file. When it is bound, also
            DataError: if a file is missing or for other data, or with every row that cannot be used. A box that is
            reversed, not finite or without area is counted in the detections instead.
    """
    problems: list[str] = []
    chosen = validate_row(_ImportSettings, dict(settings), where="settings", problems=problems)
    if chosen is not None and chosen.path.suffix not in (".json", ".jsonl", ".csv"):
        problems.append(
            f"path: {chosen.path} ends neither in .json (COCO results, JSONSink) nor in .jsonl nor in .csv (CSVSink): "
            "rename or convert it"
        )
    if chosen is None or problems:
        raise RecipeError(listed("the detector 'imported' cannot be built", problems))

    @functools.cache
    def read() -> tuple[Sequence[Entry], BoxFileNotes, CategoryNames | None, str]:
        """Read the files once, for however many images or splits the detector is bound to."""
        files = [require_file(path, _REMEDY) for path in (chosen.path, chosen.categories) if path is not None]
        notes = BoxFileNotes()
        names = None if chosen.categories is None else read_category_names(chosen.categories)
        entries = read_box_file(chosen.path, notes, has_names=names is not None, setting=chosen.box_format)
        return entries, notes, names, digest_files(files)

    def bind(dataset: Dataset) -> ImportedDetector:
        entries, notes, names, digest = read()
        notes = copy.deepcopy(notes)
        placed = _match(entries, dataset, notes, stem=chosen.path.stem)
        answers = _Answers("image", {}, (), {})
        if len(placed.levels) > 1:
            where = list(placed.levels.values())[-1]
            notes.problems.append(f"{where}: some lines name a sample, others an image: choose one")
        else:
            answers = _answers(placed, dataset, notes, names=names, setting=chosen.box_format)
        if notes.problems:
            raise DataError(listed(f"{chosen.path} cannot be used with {_place_of(dataset)}", notes.problems))
        name = chosen.name or f"import-{re.sub(_NO_NAME, '-', chosen.path.stem)}"
        facts = {"detector": "imported", "name": name, "box_format": chosen.box_format, "digest": digest}
        return ImportedDetector(name, answers, identity=facts, dataset=dataset)

    return UnboundDetector(bind)


@dataclass(slots=True)
class _Placed:
    """The boxes of a file by image or sample id.

    Attributes:
        boxes: By id.
        ignored: Name of an image or sample that the data lacks -> place of its first entry.
        levels: Place of the first entry of each level.
    """

    boxes: _Boxes = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    levels: dict[Level, str] = field(default_factory=dict)


def _match(entries: Sequence[Entry], dataset: Dataset, notes: BoxFileNotes, *, stem: str) -> _Placed:
    """Find the image or sample of each entry; `stem` names the image where nothing else does."""
    spellings = [name for entry in entries for name in entry.names]
    matcher = Matcher(dataset.samples, _place_of(dataset), spellings=spellings, file_names=dataset.file_names)
    only = [sample.image_id for sample in dataset.images()]
    placed = _Placed()
    first_entries: dict[str, str] = {}
    for entry in entries:
        level: Level = "image" if entry.sample_id is None else "expression"
        placed.levels.setdefault(level, entry.where)
        names = entry.names or (only if len(only) == 1 else [stem])
        try:
            key = _image_of(matcher, names) if entry.sample_id is None else matcher.sample_of(entry.sample_id).sample_id
        except NotInDataError:
            placed.ignored.setdefault(entry.sample_id or names[0], entry.where)
            continue
        except AmbiguousNameError as error:
            notes.problems.append(f"{entry.where}: {error}")
            continue
        first = first_entries.setdefault(key, entry.where)
        if first != entry.where and entry.is_whole:
            notes.problems.append(f"{entry.where}: {key} was answered in {first} already")
            continue
        placed.boxes.setdefault(key, []).extend((entry.where, box) for box in entry.boxes)
    return placed


def _image_of(matcher: Matcher, names: Sequence[str]) -> str:
    """Return the image that any of the spellings names; two that name different ones contradict each other."""
    spelling_of = {}
    for name in names:
        try:
            spelling_of[matcher.image_of(name)] = name
        except NotInDataError:
            continue
    if len(spelling_of) > 1:
        raise AmbiguousNameError(f"{' and '.join(map(repr, spelling_of.values()))} are different images")
    if not spelling_of:
        raise NotInDataError(f"image {names[0]!r} is not in {matcher.place}")
    return next(iter(spelling_of))


def _answers(
    placed: _Placed,
    dataset: Dataset,
    notes: BoxFileNotes,
    *,
    names: CategoryNames | None,
    setting: BoxFormat | None,
) -> _Answers:
    """Make detections of boxes; every reason not to use them is appended to `notes.problems`."""
    level: Level = "expression" if "expression" in placed.levels else "image"
    remarks = _remarks_on_names(placed, dataset, notes)
    remarks += [f"keys that are not read: {', '.join(sorted(notes.unread))}"] if notes.unread else []
    deciding, labelled = _name_categories(placed.boxes, names, notes)
    remarks += [f"category ids are read as counted {text}" for text in deciding.values()]
    pixels = _in_pixels(labelled, dataset, level, notes, setting)
    counts = Counter[str]()
    detections = {key: detections_from_raw(_raw_rows(items, counts), _SOURCE) for key, items in pixels.items()}
    if counts["scores"]:
        deciding["scores"] = "NaN is none"
        remarks.append(f"{_boxes_have(counts['scores'])} a score that is not finite, used without it")
    if counts["labels"]:
        remarks.append(f"{_boxes_have(counts['labels'])} no label; prompts call them 'object'")
    return _Answers(level, detections, tuple(remarks), deciding)


def _place_of(dataset: Dataset) -> str:
    """Name a split in a message; that of `predict` is one picture."""
    return "the picture" if dataset.name == dataset.split == "predict" else f"{dataset.name} {dataset.split}"


def _remarks_on_names(placed: _Placed, dataset: Dataset, notes: BoxFileNotes) -> list[str]:
    """Count the names that only one of file and data has; a file for other data is a problem."""
    place = _place_of(dataset)
    what = "samples" if "expression" in placed.levels else "images"
    known = [s.sample_id for s in dataset.samples] if what == "samples" else [s.image_id for s in dataset.images()]
    num_named = len(placed.boxes) + len(placed.ignored)
    shown = _few(f"{name!r} ({where})" for name, where in placed.ignored.items())
    remarks = []
    if is_other_data(num_named, len(placed.boxes), len(known)):
        verb = "is" if place == "the picture" else "has"
        remedy = "" if place == "the picture" else "; if it covers other splits alone, name one of them by --split"
        notes.problems.append(
            f"{len(placed.boxes)} of the {num_named} {what} that the file names are of {place}, so it was made for "
            f"other data: it names {shown}, and {place} {verb} {_few(map(repr, known))}{remedy}"
        )
    elif placed.ignored:
        remarks.append(f"{len(placed.ignored)} of its {num_named} {what} are not of {place} and are ignored: {shown}")
    lacking = [name for name in known if name not in placed.boxes]
    if lacking:
        remarks.append(
            f"{len(lacking)} of {len(known)} {what} of {place} are not named, so they have no detections: "
            f"{_few(map(repr, lacking))}"
        )
    return remarks


def _name_categories(boxes: _Boxes, names: CategoryNames | None, notes: BoxFileNotes) -> tuple[dict[str, str], _Boxes]:
    """Replace category ids by their names; return the boxes, and how ids are counted where that is not as written."""
    ids = {box.label for items in boxes.values() for _, box in items if isinstance(box.label, int)}
    if ids and names is None:
        shown = ", ".join(map(str, sorted(ids)[:_MOST_NAMED]))
        notes.problems.append(
            f"labels are numbers ({shown}): name them by detector.settings.categories=FILE, such as instances.json, "
            "data.yaml or a list of names"
        )
        return {}, boxes
    if not ids or names is None:
        return {}, boxes
    offset = names.offset(ids, is_from_one=notes.is_from_one)
    unknown: dict[int, str] = {}
    result: _Boxes = {key: [] for key in boxes}
    for key, items in boxes.items():
        for where, box in items:
            label = box.label
            if isinstance(label, int):
                if label + offset not in names.by_id:
                    unknown.setdefault(label, where)
                label = names.by_id.get(label + offset, "")
            result[key].append((where, replace(box, label=label)))
    notes.problems.extend(
        f"{where}: category {label} has no name in {names.source}" for label, where in unknown.items()
    )
    deciding = {-1: "from 1, their names from 0", 1: "from 0, their names from 1"}
    return ({"category_ids": deciding[offset]} if offset else {}), result


def _in_pixels(
    boxes: _Boxes, dataset: Dataset, level: Level, notes: BoxFileNotes, setting: BoxFormat | None
) -> dict[str, list[RawBox]]:
    """Convert all boxes to xyxy pixels; a format that they contradict is a problem."""
    samples = {each.image_id if level == "image" else each.sample_id: each for each in reversed(dataset.samples)}
    targets = [
        (sample.image_id if level == "image" else sample.sample_id, target.xyxy)
        for sample in dataset.samples
        for target in (sample.target, *sample.further_targets)
        if target is not None
    ]
    flat = [(key, box) for key, items in boxes.items() for _, box in items]
    formats = [_declared(box, setting, notes.default) for _, box in flat]
    written = [
        WrittenBox(box.values, each if setting else None, each, samples[key].image_wh)
        for (key, box), each in zip(flat, formats, strict=True)
    ]

    def pair(indices: Sequence[int]) -> TargetPairs:
        return TargetPairs.of_images([flat[index][0] for index in indices], targets)

    pixels, problems = convert_boxes(written, pair, how="detector.settings.box_format={}")
    for problem in problems:
        is_keyed = all(flat[index][1].box_format is not None for index in problem.indices)
        hint = "; where that is another layout than the key says, name the key 'box'" if is_keyed else ""
        notes.problems.append(f"{problem.text}{hint}")
    result: dict[str, list[RawBox]] = {key: [] for key in boxes}
    for (key, box), xyxy in zip(flat, pixels.tolist(), strict=True):
        result[key].append(replace(box, values=xyxy))
    return result


def _declared(box: RawBox, setting: BoxFormat | None, default: BoxFormat) -> BoxFormat:
    """Return the format of a box: that of its key, of the setting, or of such files.

    A key such as `bbox_xywh` gives the layout; the setting may add the unit.
    """
    if box.box_format is None:
        return setting or default
    return setting if setting and setting.partition("_")[0] == box.box_format else box.box_format


def _raw_rows(items: Iterable[RawBox], counts: Counter[str]) -> list[tuple[Sequence[float], str, float | None]]:
    """Return boxes as rows for `detections_from_raw`, and count those without a usable score or a label."""
    rows: list[tuple[Sequence[float], str, float | None]] = []
    for item in items:
        is_number = item.score is None or math.isfinite(item.score)
        counts["scores"] += not is_number
        counts["labels"] += not item.label
        rows.append((item.values, str(item.label), item.score if is_number else None))
    return rows


def _boxes_have(number: int) -> str:
    return f"{number} boxes have" if number > 1 else "1 box has"


def _few(names: Iterable[str]) -> str:
    all_names = list(names)
    shown = [name if len(name) <= _MOST_LETTERS else f"{name[:_MOST_LETTERS]}..." for name in all_names[:_MOST_NAMED]]
    return ", ".join(shown) + (", ..." if len(all_names) > _MOST_NAMED else "")
