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

_NUM_EXAMPLES = 3
_COLUMNS = ("data set", "split", "expressions", "refs", "images", "without box")


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
    splits = [
        SplitCounts(
            *(dataset.name, dataset.split, len(dataset.samples)),
            num_refs=len({sample.ref_id for sample in dataset.samples}),
            num_images=len({sample.image_id for sample in dataset.samples}),
            num_without_box=sum(sample.target is None for sample in dataset.samples),
        )
        for dataset in datasets
    ]
    findings = [finding for dataset in datasets for finding in _check_split(dataset)]
    for trained in datasets:
        for evaluated in datasets:
            if trained.split == "train" != evaluated.split:
                findings += _find_shared(trained, evaluated)
    return CheckReport(tuple(splits), tuple(findings))


def format_check(report: CheckReport) -> str:
    """Write a report as lines: a table of counts, then each finding with its remedy."""
    table: list[tuple[str, ...]] = [_COLUMNS]
    for counts in report.splits:
        numbers = (counts.num_expressions, counts.num_refs, counts.num_images, counts.num_without_box)
        table.append((counts.dataset, counts.split, *(f"{number:,}" for number in numbers)))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    for each in report.findings:
        examples = ", ".join(each.examples) + (", ..." if each.count > len(each.examples) else "")
        lines += [f"{each.level}: {each.where}: {each.count:,} {each.what}: {examples}", f"  {each.remedy}"]
    return "\n".join(lines if report.findings else [*lines, "nothing found that needs a hand"])


def _report(
    level: Literal["error", "warning"], where: str, what: str, examples: Sequence[str], remedy: str
) -> list[Finding]:
    """Return the finding, or nothing where there is no example of it."""
    return [Finding(level, where, what, len(examples), tuple(examples[:_NUM_EXAMPLES]), remedy)] if examples else []


def _check_split(dataset: Dataset) -> Iterable[Finding]:
    where, samples = f"{dataset.name} {dataset.split}", dataset.samples
    if not dataset.has_splits:
        what, every = "expressions without a split: train and val are one", [sample.sample_id for sample in samples]
        remedy = "Give each line a 'split', or divide the images by data.settings.val_share=0.2: a result on images "
        remedy += "that were trained on says nothing about others."
        yield from _report("warning", dataset.name, what, every, remedy)
    for reason, places in dataset.skipped.items():
        remedy = "Nothing to do in a published file: its publishers skip such rows too; counts of papers may differ."
        if reason == NO_EXPRESSION:
            remedy = "Write their expressions, or accept it: they are no samples, and only images of samples are "
            remedy += "detected."
        yield from _report("warning", where, f"skipped ({reason})", places, remedy)
    crowds = [f"sample {sample.sample_id}" for sample in samples if sample.sample_id in dataset.crowd_targets]
    remedy = "No box of one object is right for these; report results with and without them, or accept it."
    yield from _report("warning", where, "targets that are crowd regions", crowds, remedy)
    yield from _check_images(where, dataset)
    outside = [
        f"sample {sample.sample_id} {sample.target.xyxy} in {sample.image_wh}"
        for sample in samples
        if sample.target is not None and not boxes.is_inside(sample.target, sample.image_wh)
    ]
    remedy = "Check that the box format and the image size belong together; boxes are used as they are."
    yield from _report("warning", where, "boxes more than a pixel outside their image", outside, remedy)
    ids = Counter(sample.sample_id for sample in samples)
    remedy = "Give each expression its own id: predictions are matched by it."
    yield from _report("error", where, "sample ids used twice", [key for key, num in ids.items() if num > 1], remedy)
    yield from _check_repeats(where, samples)
    empty = [f"sample {sample.sample_id}" for sample in samples if is_blank(sample.expression)]
    yield from _report("error", where, "empty expressions", empty, "Remove these lines or write their expressions.")


def _check_images(where: str, dataset: Dataset) -> Iterable[Finding]:
    """Compare the files of images with what their annotations say."""
    paths = dict.fromkeys(sample.image_path for sample in dataset.samples if sample.image_path is not None)
    missing = [path for path in paths if not os.path.isfile(path)]
    remedy = "Fetch these files or correct the images folder; detectors that read pixels will stop at them."
    yield from _report("error", where, "image files missing", missing, remedy)
    unreadable: list[str] = []
    other_size: list[str] = []
    sideways: list[str] = []
    without = [sample.image_id for sample in dataset.images() if sample.image_path is None]
    for sample in dataset.images():
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
    remedy = "Replace these files, or leave their lines out; detectors that read pixels will stop at them."
    yield from _report("error", where, "image files that cannot be read", unreadable, remedy)
    remedy = "Use the images that were annotated: boxes of another size would be wrong, and detectors stop at them."
    yield from _report("error", where, "image files of another size than annotated", other_size, remedy)
    remedy = "Nothing to do if the boxes were drawn on the pictures as stored; else give the width and height of the "
    remedy += "upright pictures, as every viewer shows them."
    yield from _report("warning", where, "photographs annotated as stored, not upright", sideways, remedy)
    remedy = "Fetch the images where the data set's description says, or use a detector that reads no pixels."
    yield from _report("warning", where, "images without an image file", without, remedy)


def _check_repeats(where: str, samples: Sequence[Sample]) -> Iterable[Finding]:
    """Find (image, expression) pairs with several targets, and those that only repeat one target."""
    targets: defaultdict[tuple[str, str], list[Box | None]] = defaultdict(list)
    for sample in samples:
        targets[sample.image_id, sample.expression.strip().lower()].append(sample.target)
    names = {key: f"image {key[0]} '{key[1]}'" for key, boxes_of in targets.items() if len(boxes_of) > 1}
    conflicting = [name for key, name in names.items() if len(set(targets[key])) > 1]
    repeated = [name for key, name in names.items() if len(set(targets[key])) == 1]
    remedy = "Name the object more exactly or accept it: at most one of these targets can be found."
    yield from _report("warning", where, "expressions of an image with several targets", conflicting, remedy)
    remedy = "Remove the repeats if each expression should count once."
    yield from _report("warning", where, "expressions of an image repeated for one target", repeated, remedy)


def _find_shared(trained: Dataset, evaluated: Dataset) -> list[Finding]:
    keys = {key for sample in trained.images() for key in _image_keys(sample)}
    shared = [f"image {each.image_id}" for each in evaluated.images() if keys.intersection(_image_keys(each))]
    where = f"{trained.name} {trained.split} and {evaluated.name} {evaluated.split}"
    remedy = "Remove these images from the training split: results on the evaluation split would be too good."
    return _report("error", where, "images shared", shared, remedy)


def _image_keys(sample: Sample) -> list[object]:
    file = [] if sample.image_path is None else [str(Path(sample.image_path).resolve())]
    return [(sample.image_id, sample.image_wh), *file]
