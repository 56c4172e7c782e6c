"""The detector `import`: boxes that another program has written, of a closed model, a paid service or a publication.

`box_files` lists the forms that are read. A file may cover more images than the data set has: they are counted and
ignored. Boxes that are of another format than declared, by their images and targets, are refused with the setting that
declares the right one, `box_format`.

    file -> entries -> by image or sample id -> labels from category ids -> xyxy pixels, formats checked -> Detections
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from llm_wrapper.box_formats import BoxFormat, TargetPairs, WrittenBox, convert_boxes
from llm_wrapper.datasets.base import Dataset, digest_files, require_file, validate_row
from llm_wrapper.detectors import Level, Question, RawRow, UnboundDetector, detections_from_raw
from llm_wrapper.detectors.box_files import BoxFile, RawBox
from llm_wrapper.detectors.coco import CategoryNames, read_category_names
from llm_wrapper.errors import DataError, RecipeError, listed
from llm_wrapper.matching import AmbiguousNameError, Matcher, NotInDataError, is_other_data
from llm_wrapper.records import Detections, Sample

_log = logging.getLogger(__name__)

_NO_NAME = r"[^\w.+-]+"
"""Characters that the name of a cache's folder must not have."""
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
    """The detections of a file by image id, or by sample id where its level is `expression`.

    `remarks` are facts that a user must know of them, one sentence each; `deciding` are readings of the file that
    neither its content nor the settings decide alone.
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
        known = {_key(sample, answers.level) for sample in dataset.samples}
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
        return [self._detections.get(_key(each.sample, each.level), Detections(())) for each in questions]


def _key(sample: Sample, level: Level) -> str:
    return sample.image_id if level == "image" else sample.sample_id


def create_imported(settings: Mapping[str, Any]) -> UnboundDetector:
    """Build the detector of a file of boxes; the file is read for the images or samples of one data set.

    Args:
        settings: `path`; `categories`, for labels that are numbers; `name`, by default the file's; and `box_format`,
            that of `bbox` (COCO results, by default xywh) or of `box` (JSONL, by default xyxy).

    Raises:
        RecipeError: If a setting is not for this file. When it is bound, also DataError, with every row that cannot be
            used. A box that is reversed, not finite or without area is counted in the detections instead.
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

    @cache
    def read() -> tuple[BoxFile, CategoryNames | None, str]:
        """Read the files once, for all images and splits that the detector is bound to; later changes are not seen."""
        files = [require_file(path, _REMEDY) for path in (chosen.path, chosen.categories) if path is not None]
        names = None if chosen.categories is None else read_category_names(chosen.categories)
        file = BoxFile(chosen.path, has_names=names is not None, setting=chosen.box_format)
        return file, names, digest_files(files)

    def bind(dataset: Dataset) -> ImportedDetector:
        file, names, digest = read()
        name = chosen.name or f"import-{re.sub(_NO_NAME, '-', chosen.path.stem)}"
        facts = {"detector": "imported", "name": name, "box_format": chosen.box_format, "digest": digest}
        answers = _read_answers(chosen, dataset, file=file, names=names)
        return ImportedDetector(name, answers, identity=facts, dataset=dataset)

    return UnboundDetector(bind)


def _read_answers(
    settings: _ImportSettings, dataset: Dataset, *, file: BoxFile, names: CategoryNames | None
) -> _Answers:
    """Read the entries of a file for a data set, and raise a DataError with every problem."""
    file = copy(file)
    file.problems = [*file.problems]  # those of other data sets are none of this one
    is_picture = dataset.name == dataset.split == "predict"
    place = "the picture" if is_picture else f"{dataset.name} {dataset.split}"
    by_sample = [entry.sample_id is not None for entry in file.entries]
    level: Level = "expression" if any(by_sample) else "image"
    boxes, ignored = _match(file, dataset, place=place, stem=settings.path.stem)
    answers = _Answers(level, {}, (), {})
    if any(by_sample) and not all(by_sample):
        where = file.entries[by_sample.index(not by_sample[0])].where
        file.problems.append(f"{where}: some lines name a sample, others an image: choose one")
    else:
        known = list(dict.fromkeys(_key(sample, level) for sample in dataset.samples))
        what = "images" if level == "image" else "samples"
        remarks = _remark_on_names(boxes.keys(), ignored, known, file.problems, (what, place))
        if file.unread:
            remarks.append(f"keys that are not read: {', '.join(sorted(file.unread))}")
        deciding = _name_categories(boxes, names, file)
        remarks += [f"category ids are read as counted {text}" for text in deciding.values()]
        _to_pixels(boxes, dataset, level=level, file=file, setting=settings.box_format)
        detections, counts = {}, Counter[str]()
        for key, items in boxes.items():
            rows: list[RawRow] = []
            for _, box in items:
                is_number = box.score is None or math.isfinite(box.score)
                counts.update(scores=not is_number, labels=not box.label)
                rows.append((box.values, str(box.label), box.score if is_number else None))
            detections[key] = detections_from_raw(rows, "imported")
        if counts["scores"]:
            deciding["scores"] = "NaN is none"
            remarks.append(f"{_boxes_have(counts['scores'])} a score that is not finite, used without it")
        if counts["labels"]:
            remarks.append(f"{_boxes_have(counts['labels'])} no label; prompts call them 'object'")
        answers = _Answers(level, detections, tuple(remarks), deciding)
    if file.problems:
        raise DataError(listed(f"{settings.path} cannot be used with {place}", file.problems))
    return answers


def _match(file: BoxFile, dataset: Dataset, *, place: str, stem: str) -> tuple[_Boxes, dict[str, str]]:
    """Find the image or sample of each entry; `stem` names the image where nothing else does.

    Returns:
        The boxes by id, and the names that the data lacks with the place of their first entries.
    """
    spellings = [name for entry in file.entries for name in entry.names]
    matcher = Matcher(dataset.samples, place, spellings=spellings, file_names=dataset.file_names)
    only = [sample.image_id for sample in dataset.images()]
    boxes: _Boxes = {}
    ignored: dict[str, str] = {}
    first_entries: dict[str, str] = {}
    for entry in file.entries:
        names = entry.names or (only if len(only) == 1 else [stem])
        try:
            key = _image_of(matcher, names) if entry.sample_id is None else matcher.sample_of(entry.sample_id).sample_id
        except NotInDataError:
            ignored.setdefault(entry.sample_id or names[0], entry.where)
            continue
        except AmbiguousNameError as error:
            file.problems.append(f"{entry.where}: {error}")
            continue
        first = first_entries.setdefault(key, entry.where)
        if first != entry.where and entry.is_whole:
            file.problems.append(f"{entry.where}: {key} was answered in {first} already")
            continue
        boxes.setdefault(key, []).extend((entry.where, box) for box in entry.boxes)
    return boxes, ignored


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


def _remark_on_names(
    used: Collection[str], ignored: Mapping[str, str], known: Sequence[str], problems: list[str], words: tuple[str, str]
) -> list[str]:
    """Count the names that only one of file and data has; a file for other data is a problem.

    `used` are ids of the data, `ignored` other names of the file with their places. `words` are `images` or `samples`,
    and the name of the data.
    """
    what, place = words
    num_named = len(used) + len(ignored)
    shown = _few(f"{name!r} ({where})" for name, where in ignored.items())
    remarks = []
    if is_other_data(num_named, len(used), len(known)):
        verb = "is" if place == "the picture" else "has"
        remedy = "" if place == "the picture" else "; if it covers other splits alone, name one of them by --split"
        problems.append(
            f"{len(used)} of the {num_named} {what} that the file names are of {place}, so it was made for other data: "
            f"it names {shown}, and {place} {verb} {_few(map(repr, known))}{remedy}"
        )
    elif ignored:
        remarks.append(f"{len(ignored)} of its {num_named} {what} are not of {place} and are ignored: {shown}")
    lacking = [name for name in known if name not in used]
    if lacking:
        counts = f"{len(lacking)} of {len(known)} {what} of {place}"
        remarks.append(f"{counts} are not named, so they have no detections: {_few(map(repr, lacking))}")
    return remarks


def _name_categories(boxes: _Boxes, names: CategoryNames | None, file: BoxFile) -> dict[str, str]:
    """Replace category ids by their names; return how ids are counted where that is not as written."""
    ids = {box.label for items in boxes.values() for _, box in items if isinstance(box.label, int)}
    if not ids:
        return {}
    if names is None:
        shown = ", ".join(map(str, sorted(ids)[:_MOST_NAMED]))
        file.problems.append(
            f"labels are numbers ({shown}): name them by detector.settings.categories=FILE, such as instances.json, "
            "data.yaml or a list of names"
        )
        return {}
    offset = names.offset(ids, is_from_one=file.is_from_one)
    unknown: dict[int, str] = {}
    for items in boxes.values():
        for index, (where, box) in enumerate(items):
            if isinstance(box.label, int):
                if box.label + offset not in names.by_id:
                    unknown.setdefault(box.label, where)
                items[index] = (where, replace(box, label=names.by_id.get(box.label + offset, "")))
    file.problems.extend(f"{where}: category {label} has no name in {names.source}" for label, where in unknown.items())
    counted = {-1: "from 1, their names from 0", 1: "from 0, their names from 1"}
    return {"category_ids": counted[offset]} if offset else {}


def _to_pixels(boxes: _Boxes, dataset: Dataset, *, level: Level, file: BoxFile, setting: BoxFormat | None) -> None:
    """Convert all boxes to xyxy pixels; a format that they contradict is a problem."""
    samples = {_key(sample, level): sample for sample in reversed(dataset.samples)}
    targets = [
        (_key(sample, level), target.xyxy)
        for sample in dataset.samples
        for target in (sample.target, *sample.further_targets)
        if target is not None
    ]
    flat = [(key, index) for key, items in boxes.items() for index in range(len(items))]
    written = []
    for key, index in flat:
        box = boxes[key][index][1]
        # A key such as `bbox_xywh` gives the layout; the setting may add the unit.
        is_refined = setting is not None and setting.partition("_")[0] == box.box_format
        usual = setting if setting and (is_refined or box.box_format is None) else box.box_format or file.default
        written.append(WrittenBox(box.values, usual if setting else None, usual, samples[key].image_wh))

    def pair(indices: Sequence[int]) -> TargetPairs:
        return TargetPairs.of_images([flat[index][0] for index in indices], targets)

    pixels, problems = convert_boxes(written, pair, how="detector.settings.box_format={}")
    for problem in problems:
        is_keyed = all(boxes[flat[at][0]][flat[at][1]][1].box_format is not None for at in problem.indices)
        hint = "; where that is another layout than the key says, name the key 'box'" if is_keyed else ""
        file.problems.append(f"{problem.text}{hint}")
    for (key, index), xyxy in zip(flat, pixels.tolist(), strict=True):
        where, box = boxes[key][index]
        boxes[key][index] = (where, replace(box, values=xyxy))


def _boxes_have(number: int) -> str:
    return f"{number} boxes have" if number > 1 else "1 box has"


def _few(names: Iterable[str]) -> str:
    all_names = list(names)
    shown = [name if len(name) <= _MOST_LETTERS else f"{name[:_MOST_LETTERS]}..." for name in all_names[:_MOST_NAMED]]
    return ", ".join(shown) + (", ..." if len(all_names) > _MOST_NAMED else "")
