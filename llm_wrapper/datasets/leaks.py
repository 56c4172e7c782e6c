"""Images that are trained on and evaluated on: known by what names a photograph, not by ids that may coincide.

RefCOCO, RefCOCO+ and RefCOCOg are made of the same images of COCO, so that training on one and testing on another leaks
even where each is clean. Two images are the same if

- both have the same COCO number: as image id in the data sets that are made of COCO's images, or in the file's name;
- they are the same file; or
- they are of one data set and have the same image id there.

An image id alone says nothing across other data sets: the `1.jpg` of two folders are two images.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from llm_wrapper import datasets
from llm_wrapper.datasets import refer
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.errors import DataError
from llm_wrapper.recipe import DataSection
from llm_wrapper.records import Sample

_log = logging.getLogger(__name__)

HELD_OUT = ("val", "test", "testA", "testB")
"""The splits that are evaluated on, beside the one that a recipe names, as far as a data set has them."""

_COCO_READERS = frozenset({"refer", "grefcoco", "hub_refs", "hub_objects", "hc_refloco", "ref_l4"})
"""Readers that give COCO's number as image id, and other images (of HC-RefLoCo, Ref-L4) ids that are no numbers."""

_COCO_FILE = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(0{6}\d{6})\.jpg")
"""`COCO_train2014_000000380440.jpg`, `000000380440.jpg`. COCO's numbers have six digits; twelve may be a date."""

_NUM_EXAMPLES = 5

_Key = tuple[str, ...]
"""A name of an image; the first part is the kind of name."""

_Image = tuple[str, str | None]
"""Image id, and path of the file if there is one."""

_REASONS = {"coco": "the same COCO number", "file": "the same file", "own": "the same image id in this data set"}


def find_evaluated_images(trained: Sequence[tuple[DataSection, Dataset]]) -> list[frozenset[str]]:
    """Return for each training split the ids of its images that are also in an evaluation split of any of them.

    The comparison is logged. A file without splits cannot lose any images, and `describe_own_training_data` says so of
    its results. A split that is trained on is no evaluation split of its data set.
    """
    for section, dataset in trained:
        if not dataset.has_splits:
            _log.warning(
                "%s: %s names no split, so what is evaluated on it is trained on as well. Give each line a 'split', or "
                "divide its images: data.settings.val_share=0.2",
                *(section.name, section.folder),
            )
    held_out: dict[_Key, str] = {}
    for section, split, images in _evaluation_splits(trained):
        for image in images:
            for key in _keys(section, image):
                held_out.setdefault(key, f"{section.name} {split}")
    left_out = [_find_shared(section, dataset, held_out) for section, dataset in trained]
    if held_out and not any(left_out):
        places = ", ".join(dict.fromkeys(held_out.values()))
        _log.info("no image that is trained on is in an evaluation split (%s)", places)
    return left_out


def find_shared_images(evaluated: tuple[DataSection, Dataset], trained: tuple[DataSection, Dataset]) -> frozenset[str]:
    """Return the ids of the images of one split that are also in another, be it of another data set."""
    known = {key for sample in trained[1].images() for key in _keys(trained[0], _image(sample))}
    section, dataset = evaluated
    return frozenset(
        sample.image_id for sample in dataset.images() if not known.isdisjoint(_keys(section, _image(sample)))
    )


def describe_own_training_data(evaluated: tuple[DataSection, Dataset], trained: Sequence[DataSection]) -> str | None:
    """Return the warning beside every result on a split whose images were trained on; `None` if none was."""
    section, dataset = evaluated
    split = dataset.split
    same = [each for each in trained if _own(each) == _own(section)]
    if dataset.has_splits and any(split in (each.eval_split, *HELD_OUT) and split != each.train_split for each in same):
        # Training leaves out the images of these splits, whatever else it is on.
        return None
    shared: set[str] = set()
    for each in trained:
        is_this = each in same and (split == each.train_split or not dataset.has_splits)
        try:
            found = dataset if is_this else datasets.load_dataset(each, each.train_split)
        except DataError as error:
            return (
                f"perhaps evaluated on its own training data, as {each.name} {each.train_split} is unreadable: {error}"
            )
        shared |= find_shared_images(evaluated, (each, found))
    if not shared:
        return None
    num_shared, total = len(shared), len(dataset.images())
    where = f"{section.name} {split}"
    return f"evaluated on its own training data: {num_shared:,} of {total:,} images of {where} were trained on"


def _evaluation_splits(
    trained: Sequence[tuple[DataSection, Dataset]],
) -> Iterator[tuple[DataSection, str, Iterable[_Image]]]:
    """Yield the images of each evaluation split of the data sets once; none where a split cannot be read."""
    done = {(_own(section), dataset.split) for section, dataset in trained}
    for section, _ in trained:
        refs = _refer_images(section) if section.reader == "refer" else None
        for split in dict.fromkeys((section.eval_split, *HELD_OUT)) if refs is None else refs:
            if (_own(section), split) in done:
                continue
            done.add((_own(section), split))
            if refs is not None:
                yield section, split, refs[split]
                continue
            try:
                found = datasets.load_dataset(section, split)
            except DataError as error:
                # Most data sets have some of the splits only; but who names one in a recipe counts on it.
                level = logging.WARNING if split == section.eval_split else logging.DEBUG
                _log.log(level, "%s %s is not compared with the training images: %s", section.name, split, error)
                continue
            if all(found.samples != dataset.samples for _, dataset in trained):
                yield section, split, map(_image, found.images())


def _refer_images(section: DataSection) -> dict[str, dict[_Image, None]]:
    """Return the images of each evaluation split of a REFER set; its objects, most of the work, are not read."""
    settings = section.settings
    found: defaultdict[str, dict[_Image, None]] = defaultdict(dict)
    for _, ref in refer.read_refs(section.folder, name=settings["name"], split_by=settings["split_by"]):
        if ref["split"] in (section.eval_split, "val") or "test" in ref["split"]:
            found[ref["split"]][str(ref["image_id"]), None] = None
    return found


def _image(sample: Sample) -> _Image:
    return sample.image_id, sample.image_path


def _find_shared(section: DataSection, dataset: Dataset, held_out: Mapping[_Key, str]) -> frozenset[str]:
    """Return the ids of the images that are held out somewhere, and log where and why."""
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for sample in dataset.images():
        key = next((key for key in _keys(section, _image(sample)) if key in held_out), None)
        if key is not None:
            found[held_out[key], _REASONS[key[0]]].append(sample.image_id)
    for (place, reason), ids in found.items():
        examples = ", ".join(ids[:_NUM_EXAMPLES]) + (", ..." if len(ids) > _NUM_EXAMPLES else "")
        _log.warning(
            "%s %s: %d images are not trained on, because they are in %s too (%s): %s",
            *(section.name, dataset.split, len(ids), place, reason, examples),
        )
    return frozenset(image_id for ids in found.values() for image_id in ids)


def _keys(section: DataSection, image: _Image) -> Iterable[_Key]:
    """Yield all that names an image, the most telling first."""
    image_id, path = image
    # RefCLEF has the layout of REFER, but its own images.
    is_coco = section.reader in _COCO_READERS and section.settings.get("name") != "refclef"
    match = _COCO_FILE.fullmatch(Path(path or "").name)
    if is_coco and image_id.isdecimal():
        yield "coco", str(int(image_id))
    elif match:
        yield "coco", str(int(match[1]))
    if path is not None:
        yield "file", str(Path(path).resolve())
    yield "own", _own(section), image_id


def _own(section: DataSection) -> str:
    """Return the identity of a data set, whichever split of it is meant."""
    return json.dumps([section.reader, str(section.folder.resolve()), section.settings], sort_keys=True, default=str)
