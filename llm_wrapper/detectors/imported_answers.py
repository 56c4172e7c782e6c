"""From the entries of a file of boxes to answers: matched with a data set, named, checked, and in pixels.

entries -> by image or sample id -> labels from category ids -> formats checked -> Detections
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from llm_wrapper import box_formats
from llm_wrapper.box_formats import BoxFormat, TargetPairs
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detectors.base import Level, detections_from_raw
from llm_wrapper.detectors.category_names import CategoryNames
from llm_wrapper.detectors.imported_files import Entry, Notes, RawBox
from llm_wrapper.matching import AmbiguousNameError, Matcher, NotInDataError, is_other_data
from llm_wrapper.records import Detections, Sample

__all__ = ["Answers", "answers_of", "place_of"]

_SOURCE = "imported"
_MOST_NAMED = 5
_MOST_LETTERS = 80


@dataclass(frozen=True, slots=True)
class Answers:
    """The detections of a file, by image id or by sample id.

    Attributes:
        level: `expression` if the file names samples.
        detections: By id.
        remarks: What a user must know of them, one sentence each.
        deciding: How the file was read otherwise than its content and the settings say.
    """

    level: Level
    detections: Mapping[str, Detections]
    remarks: tuple[str, ...]
    deciding: Mapping[str, str]


@dataclass(slots=True)
class _Placed:
    """Boxes by image or sample id.

    Attributes:
        boxes: With the place of the entry that they are from.
        ignored: Names of images or samples that the data lacks.
        levels: Where an entry of each level stands first.
    """

    boxes: dict[str, list[tuple[str, RawBox]]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    levels: dict[Level, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)


def answers_of(
    entries: Sequence[Entry],
    dataset: Dataset,
    notes: Notes,
    *,
    stem: str,
    names: CategoryNames | None = None,
    box_format: BoxFormat | None = None,
) -> Answers:
    """Make answers of entries; all that keeps them from being used is appended to `notes.problems`.

    Args:
        entries: In the file's order.
        dataset: What they are about; its image sizes and targets vote on the format of the boxes.
        notes: Of the reader.
        stem: The file's name, which is that of the image where nothing else names it.
        names: Of category ids.
        box_format: The setting, for boxes whose key does not say it.
    """
    placed = _placed(entries, dataset, notes, stem)
    level: Level = "expression" if "expression" in placed.levels else "image"
    if len(placed.levels) > 1:
        where = list(placed.levels.values())[-1]
        notes.problems.append(f"{where}: some lines name a sample, others an image: choose one")
        return Answers(level, {}, (), {})
    remarks = _ignored(placed, entries, dataset, notes)
    remarks += [f"keys that are not read: {', '.join(sorted(notes.unread))}"] if notes.unread else []
    deciding, labelled = _labelled(placed.boxes, names, notes)
    remarks += [f"category ids are read as counted {text}" for text in deciding.values()]
    pixels = _in_pixels(labelled, dataset, level, notes, box_format)
    counts = Counter[str]()
    detections = {key: detections_from_raw(_counted(items, counts), _SOURCE) for key, items in pixels.items()}
    if counts["scores"]:
        deciding["scores"] = "NaN is none"
        remarks.append(f"{_boxes(counts['scores'])} a score that is no number, used without it")
    if counts["labels"]:
        remarks.append(f"{_boxes(counts['labels'])} no label; prompts call them 'object'")
    return Answers(level, detections, tuple(remarks), deciding)


def place_of(dataset: Dataset) -> str:
    """Name a split in a message; that of `predict` is one picture."""
    return "the picture" if dataset.name == dataset.split == "predict" else f"{dataset.name} {dataset.split}"


def _placed(entries: Sequence[Entry], dataset: Dataset, notes: Notes, stem: str) -> _Placed:
    spellings = [name for entry in entries for name in entry.names]
    place = place_of(dataset)
    matcher = Matcher(dataset.samples, place, spellings=spellings, file_names=dataset.file_names)
    only = [sample.image_id for sample in dataset.images()]
    placed = _Placed()
    for entry in entries:
        level: Level = "image" if entry.sample_id is None else "expression"
        placed.levels.setdefault(level, entry.where)
        names = entry.names or (only if len(only) == 1 else [stem])
        try:
            key = _image(matcher, names) if entry.sample_id is None else matcher.sample_of(entry.sample_id).sample_id
        except NotInDataError:
            placed.ignored.setdefault(entry.sample_id or names[0], entry.where)
            continue
        except AmbiguousNameError as error:
            notes.problems.append(f"{entry.where}: {error}")
            continue
        first = placed.whole.setdefault(key, entry.where)
        if first != entry.where and entry.is_whole:
            notes.problems.append(f"{entry.where}: {key} was answered in {first} already")
            continue
        placed.boxes.setdefault(key, []).extend((entry.where, box) for box in entry.boxes)
    return placed


def _image(matcher: Matcher, names: Sequence[str]) -> str:
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


def _ignored(placed: _Placed, entries: Sequence[Entry], dataset: Dataset, notes: Notes) -> list[str]:
    """Say how much of the file and of the data fit together; a file for other data is a problem."""
    place = place_of(dataset)
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


_Boxes = dict[str, list[tuple[str, RawBox]]]


def _labelled(boxes: _Boxes, names: CategoryNames | None, notes: Notes) -> tuple[dict[str, str], _Boxes]:
    """Put names in the place of category ids; return what was boxes out about the ids, too."""
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
    boxes: _Boxes, dataset: Dataset, level: Level, notes: Notes, setting: BoxFormat | None
) -> dict[str, list[RawBox]]:
    """Convert all boxes; a format that they contradict is a problem."""
    samples = {each.image_id if level == "image" else each.sample_id: each for each in reversed(dataset.samples)}
    flat = [(key, box) for key, items in boxes.items() for _, box in items]
    formats = [_declared(box, setting, notes.default) for _, box in flat]
    values = np.array([box.values for _, box in flat], dtype=np.float64).reshape(-1, 4)
    sizes = np.array([samples[key].image_wh for key, _ in flat], dtype=np.float64).reshape(-1, 2)
    targets = _targets(dataset.samples, level)
    pixels = np.empty_like(values)
    for declared in dict.fromkeys(formats):
        rows = np.flatnonzero([each == declared for each in formats])
        pairs = TargetPairs.of_images([flat[row][0] for row in rows], targets)
        is_keyed = all(flat[row][1].box_format is not None for row in rows)
        is_default = setting is None
        problem = box_formats.check(
            values[rows],
            sizes[rows],
            declared,
            how="detector.settings.box_format={}",
            targets=pairs,
            is_default=is_default,
        )
        hint = "; where that is another layout than the key says, name the key 'box'" if is_keyed else ""
        notes.problems.extend([f"{problem}{hint}"] if problem else [])
        pixels[rows] = box_formats.to_pixels(values[rows], sizes[rows], declared)
    result: dict[str, list[RawBox]] = {key: [] for key in boxes}
    for (key, box), row in zip(flat, pixels.tolist(), strict=True):
        result[key].append(replace(box, values=row))
    return result


def _declared(box: RawBox, setting: BoxFormat | None, default: BoxFormat) -> BoxFormat:
    """Return the format of a box: of its key, of the setting, or of such files.

    A key such as `bbox_xywh` says the layout; the setting may add the unit.
    """
    if box.box_format is None:
        return setting or default
    return setting if setting and setting.partition("_")[0] == box.box_format else box.box_format


def _targets(samples: Sequence[Sample], level: Level) -> list[tuple[str, Sequence[float]]]:
    return [
        (sample.image_id if level == "image" else sample.sample_id, target.xyxy)
        for sample in samples
        for target in (sample.target, *sample.further_targets)
        if target is not None
    ]


def _counted(items: Iterable[RawBox], counts: Counter[str]) -> list[tuple[Sequence[float], str, float | None]]:
    """Return boxes as rows for `detections_from_raw`, counting what they lack."""
    rows: list[tuple[Sequence[float], str, float | None]] = []
    for item in items:
        is_number = item.score is None or math.isfinite(item.score)
        counts["scores"] += not is_number
        counts["labels"] += not item.label
        rows.append((item.values, str(item.label), item.score if is_number else None))
    return rows


def _boxes(number: int) -> str:
    return f"{number} boxes have" if number > 1 else "1 box has"


def _few(names: Iterable[str]) -> str:
    all_names = list(names)
    shown = [name if len(name) <= _MOST_LETTERS else f"{name[:_MOST_LETTERS]}..." for name in all_names[:_MOST_NAMED]]
    return ", ".join(shown) + (", ..." if len(all_names) > _MOST_NAMED else "")
