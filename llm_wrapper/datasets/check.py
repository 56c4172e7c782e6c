"""The data check: counts of every split, and whatever could spoil a result, each with what to do about it."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm_wrapper import boxes, images
from llm_wrapper.datasets.base import NO_EXPRESSION, Dataset, is_blank
from llm_wrapper.errors import ImageError
from llm_wrapper.records import Box, Sample

__all__ = ["CheckReport", "Finding", "SplitCounts", "check_datasets", "format_check"]

_NUM_EXAMPLES = 3
_IDS = "Give each expression its own id: predictions are matched by it."
_MISSING = "Fetch these files or correct the images folder; detectors that read pixels will stop at them."
_NO_FILES = "Fetch the images where the data set's description says, or use a detector that reads no pixels."
_OUTSIDE = "Check that the box format and the image size belong together; boxes are used as they are."
_CONFLICT = "Name the object more exactly or accept it: at most one of these targets can be found."
_REPEATED = "Remove the repeats if each expression should count once."
_EMPTY = "Remove these lines or write their expressions."
_SKIPPED = "Nothing to do in a published file: its publishers skip such rows too; counts of papers may differ."
_NO_EXPRESSION = "Write their expressions, or accept it: they are no samples, and only images of samples are detected."
_CROWD = "No box of one object is right for these; report results with and without them, or accept it."
_NO_SPLIT = (
    "Give each line a 'split', or divide the images by data.settings.val_share=0.2: a result on images that were "
    "trained on says nothing about others."
)
_UNREADABLE = "Replace these files, or leave their lines out; detectors that read pixels will stop at them."
_OTHER_SIZE = "Use the images that were annotated: boxes of another size would be wrong, and detectors stop at them."
_SIDEWAYS = (
    "Nothing to do if the boxes were drawn on the pictures as stored; else give the width and height of the upright "
    "pictures, as every viewer shows them."
)
_SHARED = "Remove these images from the training split: results on the evaluation split would be too good."


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """How much one split holds."""

    dataset: str
    split: str
    num_expressions: int
    num_refs: int
    num_images: int
    num_without_box: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of problem in one place.

    An `error` makes results wrong or a run stop; a `warning` is common in published data. `count` is in the unit that
    `what` names; `examples` shows the first few.
    """

    level: Literal["error", "warning"]
    where: str
    what: str
    count: int
    examples: tuple[str, ...]
    remedy: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Counts per split, and all findings."""

    splits: tuple[SplitCounts, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found that makes results wrong or a run stop."""
        return all(finding.level != "error" for finding in self.findings)


def check_datasets(datasets: Sequence[Dataset]) -> CheckReport:
    """Look through splits for missing images, boxes outside, duplicates, empty expressions and leaks.

    A leak is an image that a split called `train` shares with any other split given, of any data set: the same file, or
    the same image id with the same size.
    """
    findings = [finding for dataset in datasets for finding in _check_split(dataset)]
    trained = [dataset for dataset in datasets if dataset.split == "train"]
    evaluated = [dataset for dataset in datasets if dataset.split != "train"]
    findings += [finding for left in trained for right in evaluated for finding in _find_shared(left, right)]
    return CheckReport(tuple(map(_count, datasets)), tuple(findings))


def format_check(report: CheckReport) -> str:
    """Write a report as lines: a table of counts, then each finding with its remedy."""
    head = ("data set", "split", "expressions", "refs", "images", "without box")
    table = [head, *(_cells(counts) for counts in report.splits)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    lines += [line for finding in report.findings for line in _lines(finding)]
    if not report.findings:
        lines.append("nothing found that needs a hand")
    return "\n".join(lines)


def _cells(counts: SplitCounts) -> tuple[str, ...]:
    numbers = (counts.num_expressions, counts.num_refs, counts.num_images, counts.num_without_box)
    return (counts.dataset, counts.split, *(f"{number:,}" for number in numbers))


def _lines(finding: Finding) -> list[str]:
    more = ", ..." if finding.count > len(finding.examples) else ""
    first = f"{finding.level}: {finding.where}: {finding.count:,} {finding.what}: {', '.join(finding.examples)}{more}"
    return [first, f"  {finding.remedy}"]


def _count(dataset: Dataset) -> SplitCounts:
    return SplitCounts(
        dataset=dataset.name,
        split=dataset.split,
        num_expressions=len(dataset.samples),
        num_refs=len({sample.ref_id for sample in dataset.samples}),
        num_images=len({sample.image_id for sample in dataset.samples}),
        num_without_box=sum(sample.target is None for sample in dataset.samples),
    )


def _check_split(dataset: Dataset) -> Iterable[Finding]:
    where = f"{dataset.name} {dataset.split}"
    samples, firsts = dataset.samples, dataset.images()
    if not dataset.has_splits:
        what, every = "expressions without a split: train and val are one", [sample.sample_id for sample in samples]
        yield from _finding("warning", dataset.name, what, every, _NO_SPLIT)
    for reason, places in dataset.skipped.items():
        remedy = _NO_EXPRESSION if reason == NO_EXPRESSION else _SKIPPED
        yield from _finding("warning", where, f"skipped ({reason})", places, remedy)
    crowds = [f"sample {sample.sample_id}" for sample in samples if sample.sample_id in dataset.crowd_targets]
    yield from _finding("warning", where, "targets that are crowd regions", crowds, _CROWD)
    ids = Counter(sample.sample_id for sample in samples)
    conflicting, repeated = _duplicates(samples)
    paths = {sample.image_path: None for sample in samples if sample.image_path is not None}
    yield from _finding("error", where, "image files missing", _missing(paths), _MISSING)
    yield from _check_files(where, firsts)
    without = [sample.image_id for sample in firsts if sample.image_path is None]
    yield from _finding("warning", where, "images without an image file", without, _NO_FILES)
    yield from _finding("warning", where, "boxes more than a pixel outside their image", _outside(samples), _OUTSIDE)
    yield from _finding("error", where, "sample ids used twice", [key for key, num in ids.items() if num > 1], _IDS)
    yield from _finding("warning", where, "expressions of an image with several targets", conflicting, _CONFLICT)
    yield from _finding("warning", where, "expressions of an image repeated for one target", repeated, _REPEATED)
    empty = [f"sample {sample.sample_id}" for sample in samples if is_blank(sample.expression)]
    yield from _finding("error", where, "empty expressions", empty, _EMPTY)


def _finding(
    level: Literal["error", "warning"], where: str, what: str, examples: Sequence[str], remedy: str
) -> Iterable[Finding]:
    if examples:
        yield Finding(level, where, what, len(examples), tuple(examples[:_NUM_EXAMPLES]), remedy)


def _missing(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if not os.path.isfile(path)]


def _check_files(where: str, samples: Sequence[Sample]) -> Iterable[Finding]:
    """Compare the files of images with what their annotations say."""
    unreadable: list[str] = []
    other_size: list[str] = []
    sideways: list[str] = []
    for sample in samples:
        path = sample.image_path
        if path is None or not os.path.isfile(path):
            continue
        try:
            upright_wh, stored_wh = images.read_sizes(path)
        except ImageError as error:
            unreadable.append(str(error))
            continue
        if upright_wh != sample.image_wh:
            text = f"{path} is {upright_wh[0]} x {upright_wh[1]}, not {sample.image_wh[0]} x {sample.image_wh[1]}"
            (sideways if stored_wh == sample.image_wh else other_size).append(text)
    yield from _finding("error", where, "image files that cannot be read", unreadable, _UNREADABLE)
    yield from _finding("error", where, "image files of another size than annotated", other_size, _OTHER_SIZE)
    yield from _finding("warning", where, "photographs annotated as stored, not upright", sideways, _SIDEWAYS)


def _outside(samples: Sequence[Sample]) -> list[str]:
    return [
        f"sample {sample.sample_id} {sample.target.xyxy} in {sample.image_wh}"
        for sample in samples
        if sample.target is not None and not boxes.is_inside(sample.target, sample.image_wh)
    ]


def _duplicates(samples: Sequence[Sample]) -> tuple[list[str], list[str]]:
    """Return the (image, expression) pairs with several targets, and those that only repeat one target."""
    targets: defaultdict[tuple[str, str], list[Box | None]] = defaultdict(list)
    for sample in samples:
        targets[sample.image_id, sample.expression.strip().lower()].append(sample.target)
    conflicting: list[str] = []
    repeated: list[str] = []
    for (image_id, expression), found in targets.items():
        if len(found) > 1:
            (conflicting if len(set(found)) > 1 else repeated).append(f"image {image_id} '{expression}'")
    return conflicting, repeated


def _find_shared(trained: Dataset, evaluated: Dataset) -> Iterable[Finding]:
    keys = {key for sample in trained.images() for key in _image_keys(sample)}
    shared = [sample.image_id for sample in evaluated.images() if keys.intersection(_image_keys(sample))]
    where = f"{trained.name} {trained.split} and {evaluated.name} {evaluated.split}"
    yield from _finding("error", where, "images shared", [f"image {image_id}" for image_id in shared], _SHARED)


def _image_keys(sample: Sample) -> list[object]:
    file = [] if sample.image_path is None else [str(Path(sample.image_path).resolve())]
    return [(sample.image_id, sample.image_wh), *file]
