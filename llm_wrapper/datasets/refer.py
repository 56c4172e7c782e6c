"""RefCOCO, RefCOCO+, RefCOCOg, RefCLEF and gRefCOCO, as the trees of the REFER toolbox.

    <root>/<name>/refs(<split_by>).p          refs: one referred object each, with several sentences (Python 2 pickle)
    <root>/grefcoco/grefs(<split_by>).json    the same with lists as `ann_id`, `[-1]` where nothing in the image fits
    <root>/<name>/instances.json              the COCO objects of the same images
    <root>/images/                            the images, if there are any

The pickle is read without executing anything. gRefCOCO has RefCOCO's images and expressions that mean one object,
several, or none. Read: grefer.py and mdetr/scripts/fine-tuning/grefexp_coco_format.py of henghuiding/gRefCOCO. Not
verified: the published files themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from llm_wrapper import readers
from llm_wrapper.datasets import coco_instances, restricted_pickle
from llm_wrapper.datasets.base import (
    Collector,
    Dataset,
    Id,
    Sentence,
    Skipped,
    TextKind,
    digest_files,
    image_file,
    require_file,
    require_text_kind,
)
from llm_wrapper.datasets.coco_instances import Instances
from llm_wrapper.errors import DataError, listed
from llm_wrapper.records import Box, Sample
from llm_wrapper.storage import folder_name

__all__ = ["USUAL_SPLIT_BY", "NumberedRefs", "load_grefcoco", "load_refer", "read_refs"]

USUAL_SPLIT_BY: Mapping[str, str] = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd", "refclef": "unc"}
"""The division of each set that papers report; for RefCOCOg the one without images shared between splits."""

_COCO_IMAGES = Path("images/mscoco/images/train2014")
_IMAGE_FOLDERS = {"refclef": Path("images/saiapr_tc-12")}
_REMEDY = "Fetch the REFER annotations and unpack them so that this file exists, or correct the root, name or split_by."
_GREFCOCO = "grefcoco"
_GREFCOCO_REMEDY = (
    "Fetch gRefCOCO and unpack it so that this file exists, or correct data.root or data.settings.split_by."
)
_NO_TARGET = ["-1"]

NumberedRefs = list[tuple[int, Mapping[str, Any]]]
"""Refs with their places in the file."""


class _Ref(BaseModel):
    ref_id: Id
    image_id: Id
    sentences: list[Sentence]


class _SingleRef(_Ref):
    ann_id: Id

    @property
    def ann_ids(self) -> list[str]:
        return [self.ann_id]


class _MultiRef(_Ref):
    # The authors' own reader accepts a single id too.
    ann_id: Annotated[
        list[Id], BeforeValidator(lambda value: value if isinstance(value, list) else [value]), Field(min_length=1)
    ]

    @property
    def ann_ids(self) -> list[str]:
        ids = list(dict.fromkeys(self.ann_id))
        return [] if ids == _NO_TARGET else ids


def load_refer(root: Path, split: str, *, name: str, split_by: str, text: TextKind = "sent") -> Dataset:
    """Read one split of a REFER tree: one sample per sentence, and all annotated objects of all of its images.

    Args:
        root: The folder that holds `<name>/` and, where there are image files, `images/`.
        split: `train`, `val`, `test`, `testA` or `testB`. As in the toolbox `testA` takes combined names such as
            `testAB` too, and `test` takes every split whose name contains it.
        name: `refcoco`, `refcoco+`, `refcocog` or `refclef`.
        split_by: Whose division into splits: `unc`, `umd`, `google` or `berkeley`.
        text: `sent` is the cleaned sentence, `raw` the sentence as typed; neither is changed here.

    Raises:
        DataError: If a file is missing, damaged or refers to code; if the split does not exist (those that do are
            named); or if most refs cannot be used.
        RecipeError: If `text` is neither of the two, or `name` or `split_by` is a path.
    """
    require_text_kind(text)
    refs_path = _refs_path(root, name, split_by)
    instances_path = require_file(root / name / "instances.json", _REMEDY)
    collector = Collector(f"split {split} of {refs_path}", "xywh")
    refs = _select_split(
        _check_refs(restricted_pickle.read_pickle(refs_path), refs_path, collector.skipped), split, refs_path
    )
    instances = coco_instances.load_instances(instances_path)
    reader = _Reader(collector, instances, root / _IMAGE_FOLDERS.get(name, _COCO_IMAGES), text)
    for number, raw in refs:
        reader.take(f"ref {number}", raw, _SingleRef)
    return collector.dataset(name, split, digest_files([refs_path, instances_path]), instances)


def load_grefcoco(root: Path, split: str, *, split_by: str = "unc", text: TextKind = "sent") -> Dataset:
    """Read one split of gRefCOCO: one sample per sentence, and all annotated objects of its images.

    The first object that an expression means is its `target`, the others its `further_targets`; an expression that
    nothing fits has no target. `kind` says which: `single_target`, `multi_target`, `no_target`.

    Args:
        root: The folder that holds `grefcoco/` and, where there are image files, `images/`.
        split: `train`, `val`, `testA` or `testB`; `test` takes every split whose name contains it.
        split_by: Whose division into splits; only `unc` is published.
        text: `sent` is the cleaned sentence, `raw` the sentence as typed, where the file has it.

    Raises:
        DataError: If a file is missing or damaged, if the split does not exist, or if most refs cannot be used.
        RecipeError: If `text` is neither of the two, or `split_by` is a path.
    """
    require_text_kind(text)
    folder_name(split_by, "data.settings.split_by")
    refs_path = require_file(root / _GREFCOCO / f"grefs({split_by}).json", _GREFCOCO_REMEDY)
    instances_path = require_file(root / _GREFCOCO / "instances.json", _GREFCOCO_REMEDY)
    collector = Collector(f"split {split} of {refs_path}", "xywh")
    refs = _select_split(
        _check_refs(readers.read_json(refs_path, nan=True), refs_path, collector.skipped), split, refs_path
    )
    instances = coco_instances.load_instances(instances_path)
    reader = _Reader(collector, instances, root / _COCO_IMAGES, text)
    for number, raw in refs:
        reader.take(f"ref {number}", raw, _MultiRef)
    return collector.dataset(_GREFCOCO, split, digest_files([refs_path, instances_path]), instances)


def read_refs(root: Path, *, name: str, split_by: str) -> NumberedRefs:
    """Return the refs of a REFER set, in all splits, with their places in the file; damaged ones are skipped.

    Raises:
        DataError: If there is no such file, or it is damaged.
    """
    path = _refs_path(root, name, split_by)
    return _check_refs(restricted_pickle.read_pickle(path), path, Skipped())


def _refs_path(root: Path, name: str, split_by: str) -> Path:
    for value, what in ((name, "data.settings.name"), (split_by, "data.settings.split_by")):
        folder_name(value, what)
    existing = sorted(path.name for path in (root / name).glob("refs(*).p"))
    hint = f"That folder has {', '.join(existing)}. " if existing else ""
    return require_file(root / name / f"refs({split_by}).p", hint + _REMEDY)


def _check_refs(content: Any, path: Path, skipped: Skipped) -> NumberedRefs:
    """Return the refs with their places in the file; each is sure to have a split and an image id."""
    if not isinstance(content, list):
        raise DataError(f"{path} holds a {type(content).__name__}, not a list of refs. Fetch it again.")
    refs: NumberedRefs = []
    for number, ref in enumerate(content):
        problem = _ref_problem(ref)
        if problem:
            skipped.add("row that cannot be read", f"ref {number}", problem)
        else:
            refs.append((number, ref))
    if skipped.problems and not refs:
        raise DataError(listed(f"{path} holds refs that cannot be read", skipped.problems))
    return refs


def _ref_problem(ref: Any) -> str | None:
    if not isinstance(ref, dict):
        return f"it is a {type(ref).__name__}, not a dict"
    if not isinstance(ref.get("split"), str):
        return f"'split' must be a text, got {ref.get('split')!r}"
    if not isinstance(ref.get("image_id"), int | str):
        return f"'image_id' must be a number or a text, got {ref.get('image_id')!r}"
    return None


def _select_split(refs: NumberedRefs, split: str, path: Path) -> NumberedRefs:
    chosen = [(number, ref) for number, ref in refs if _is_in(ref["split"], split)]
    if not chosen:
        existing = ", ".join(sorted({ref["split"] for _, ref in refs})) or "none"
        raise DataError(f"{path} has no split '{split}'. Its splits are: {existing}. Ask for one of them.")
    return chosen


def _is_in(actual: str, wanted: str) -> bool:
    if wanted == "test":
        return "test" in actual
    if re.fullmatch("test[A-Z]", wanted):
        return actual.startswith("test") and wanted[4] in actual[4:]
    return actual == wanted


class _Reader:
    """Turns refs into samples."""

    def __init__(self, collector: Collector, instances: Instances, folder: Path, text: TextKind) -> None:
        self._collector = collector
        self._instances = instances
        self._folder = folder if folder.is_dir() else None
        self._text: TextKind = text

    def take(self, where: str, raw: Mapping[str, Any], kind: type[_SingleRef | _MultiRef]) -> None:
        """Add the samples of one ref, or count it."""
        skipped = self._collector.skipped
        ref = skipped.validate_row(kind, raw, where)
        if ref is None:
            return
        where = f"{where} (ref_id {ref.ref_id})"
        if not ref.sentences:
            skipped.add("ref without sentences", where, "it has no sentences")
            return
        image = self._instances.images.get(ref.image_id)
        if image is None:
            skipped.add("image that instances.json lacks", where, f"image {ref.image_id} is not in instances.json")
            return
        image_wh = (image.width, image.height)
        boxes: list[Box] = []
        for annotation_id in ref.ann_ids:
            box = self._target(where, annotation_id, ref.image_id, image_wh)
            if box is None:
                return
            boxes.append(box)
        for sentence in ref.sentences:
            expression = sentence.text(self._text)
            if expression is None:
                skipped.add("sentence without text", where, sentence.missing_text(self._text))
                continue
            sample = Sample(
                sample_id=sentence.sent_id,
                ref_id=ref.ref_id,
                image_id=ref.image_id,
                image_path=str(image_file(self._folder, image.file_name)) if self._folder else None,
                image_wh=image_wh,
                expression=expression,
                target=boxes[0] if boxes else None,
                kind=("no_target", "single_target", "multi_target")[min(len(boxes), 2)] if kind is _MultiRef else None,
                further_targets=tuple(boxes[1:]),
            )
            is_crowd = any(map(self._instances.is_crowd, ref.ann_ids))
            self._collector.add(where, sample, is_crowd=is_crowd)

    def _target(self, where: str, annotation_id: str, image_id: str, image_wh: tuple[int, int]) -> Box | None:
        annotation, skipped = self._instances.annotations.get(annotation_id), self._collector.skipped
        if annotation is None:
            detail = f"annotation {annotation_id} is not in instances.json"
            skipped.add("annotation that instances.json lacks", where, detail)
            return None
        if annotation.image_id != image_id:
            detail = f"annotation {annotation_id} is of image {annotation.image_id}, the ref of image {image_id}"
            skipped.add("annotation of another image", where, detail)
            return None
        return self._collector.box(f"{where}: annotation {annotation_id}", annotation.bbox, image_wh)
