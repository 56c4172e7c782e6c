"""RefCOCO, RefCOCO+, RefCOCOg, RefCLEF and gRefCOCO, as the trees of the REFER toolbox.

    <root>/<name>/refs(<split_by>).p          refs: one referred object each, with several sentences (Python 2 pickle)
    <root>/grefcoco/grefs(<split_by>).json    the same with lists as `ann_id`, `[-1]` where nothing in the image fits
    <root>/<name>/instances.json              the COCO objects of the same images
    <root>/images/                            the images, if there are any

gRefCOCO has RefCOCO's images and expressions that mean one object,
several, or none. Read: grefer.py and mdetr/scripts/fine-tuning/grefexp_coco_format.py of henghuiding/gRefCOCO. Not
verified: the published files themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
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

USUAL_SPLIT_BY: Mapping[str, str] = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd", "refclef": "unc"}
"""The division of each set that papers report; for RefCOCOg the one without images shared between splits."""

_COCO_IMAGES = Path("images/mscoco/images/train2014")
_IMAGE_FOLDERS = {"refclef": Path("images/saiapr_tc-12")}
_REMEDY = "Fetch the REFER annotations and unpack them so that this file exists, or correct the root, name or split_by."
_GREFCOCO_REMEDY = (
    "Fetch gRefCOCO and unpack it so that this file exists, or correct data.root or data.settings.split_by."
)

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
        return [] if set(self.ann_id) == {"-1"} else list(dict.fromkeys(self.ann_id))


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
    """
    require_text_kind(text)
    refs_path = _refs_path(root, name, split_by)
    instances_path = require_file(root / name / "instances.json", _REMEDY)
    folder = root / _IMAGE_FOLDERS.get(name, _COCO_IMAGES)
    tree = _Tree(name, refs_path, instances_path, folder if folder.is_dir() else None, text)
    return tree.read(restricted_pickle.read_pickle(refs_path), split, _SingleRef)


def load_grefcoco(root: Path, split: str, *, split_by: str = "unc", text: TextKind = "sent") -> Dataset:
    """Read one split of gRefCOCO: one sample per sentence, and all annotated objects of its images.

    The first object that an expression means is its `target`, the others its `further_targets`; an expression that
    nothing fits has no target. `kind` says which: `single_target`, `multi_target`, `no_target`.

    Arguments and errors are those of `load_refer`; only the division `unc` is published.
    """
    require_text_kind(text)
    folder_name(split_by, "data.settings.split_by")
    refs_path = require_file(root / "grefcoco" / f"grefs({split_by}).json", _GREFCOCO_REMEDY)
    instances_path = require_file(root / "grefcoco" / "instances.json", _GREFCOCO_REMEDY)
    folder = root / _COCO_IMAGES
    tree = _Tree("grefcoco", refs_path, instances_path, folder if folder.is_dir() else None, text)
    return tree.read(readers.read_json(refs_path, nan=True), split, _MultiRef)


def read_refs(root: Path, *, name: str, split_by: str) -> NumberedRefs:
    """Return the refs of a REFER set, in all splits, with their places in the file; damaged ones are skipped."""
    path = _refs_path(root, name, split_by)
    return _check_refs(restricted_pickle.read_pickle(path), path, Skipped())


def _refs_path(root: Path, name: str, split_by: str) -> Path:
    folder_name(name, "data.settings.name")
    folder_name(split_by, "data.settings.split_by")
    existing = sorted(path.name for path in (root / name).glob("refs(*).p"))
    hint = f"That folder has {', '.join(existing)}. " if existing else ""
    return require_file(root / name / f"refs({split_by}).p", hint + _REMEDY)


def _check_refs(content: Any, path: Path, skipped: Skipped) -> NumberedRefs:
    """Return the refs with their places in the file; each is sure to have a split and an image id."""
    if not isinstance(content, list):
        raise DataError(f"{path} holds a {type(content).__name__}, not a list of refs. Fetch it again.")
    refs: NumberedRefs = []
    for number, ref in enumerate(content):
        if not isinstance(ref, dict):
            problem = f"it is a {type(ref).__name__}, not a dict"
        elif not isinstance(ref.get("split"), str):
            problem = f"'split' must be a text, got {ref.get('split')!r}"
        elif not isinstance(ref.get("image_id"), int | str):
            problem = f"'image_id' must be a number or a text, got {ref.get('image_id')!r}"
        else:
            refs.append((number, ref))
            continue
        skipped.add("row that cannot be read", f"ref {number}", problem)
    if skipped.problems and not refs:
        raise DataError(listed(f"{path} holds refs that cannot be read", skipped.problems))
    return refs


def _is_in(actual: str, wanted: str) -> bool:
    if wanted == "test":
        return "test" in actual
    if re.fullmatch("test[A-Z]", wanted):
        return actual.startswith("test") and wanted[4] in actual[4:]
    return actual == wanted


@dataclass(frozen=True)
class _Tree:
    """The files of one set, and which text of its sentences is read."""

    name: str
    refs_path: Path
    instances_path: Path
    images: Path | None
    text: TextKind

    def read(self, content: Any, split: str, kind: type[_SingleRef | _MultiRef]) -> Dataset:
        """Turn the refs of one split into samples."""
        collector = Collector(f"split {split} of {self.refs_path}", "xywh")
        refs = _check_refs(content, self.refs_path, collector.skipped)
        chosen = [(number, ref) for number, ref in refs if _is_in(ref["split"], split)]
        if not chosen:
            existing = ", ".join(sorted({ref["split"] for _, ref in refs})) or "none"
            raise DataError(
                f"{self.refs_path} has no split '{split}'. Its splits are: {existing}. Ask for one of them."
            )
        instances = coco_instances.load_instances(self.instances_path)
        for number, raw in chosen:
            ref = collector.skipped.validate_row(kind, raw, f"ref {number}")
            if ref is not None:
                self._take(f"ref {number} (ref_id {ref.ref_id})", ref, collector, instances)
        return collector.dataset(self.name, split, digest_files([self.refs_path, self.instances_path]), instances)

    def _take(self, where: str, ref: _SingleRef | _MultiRef, collector: Collector, instances: Instances) -> None:
        """Add the samples of one ref, or count it."""
        skipped = collector.skipped
        if not ref.sentences:
            skipped.add("ref without sentences", where, "it has no sentences")
            return
        image = instances.images.get(ref.image_id)
        if image is None:
            skipped.add("image that instances.json lacks", where, f"image {ref.image_id} is not in instances.json")
            return
        boxes = []
        for annotation_id in ref.ann_ids:
            box = _target(where, ref, annotation_id, instances, collector)
            if box is None:
                return
            boxes.append(box)
        kind = ("no_target", "single_target", "multi_target")[min(len(boxes), 2)]
        for sentence in ref.sentences:
            expression = sentence.text(self.text)
            if expression is None:
                skipped.add("sentence without text", where, sentence.missing_text(self.text))
                continue
            sample = Sample(
                sample_id=sentence.sent_id,
                ref_id=ref.ref_id,
                image_id=ref.image_id,
                image_path=str(image_file(self.images, image.file_name)) if self.images else None,
                image_wh=(image.width, image.height),
                expression=expression,
                target=boxes[0] if boxes else None,
                kind=kind if isinstance(ref, _MultiRef) else None,
                further_targets=tuple(boxes[1:]),
            )
            collector.add(where, sample, is_crowd=any(map(instances.is_crowd, ref.ann_ids)))


def _target(
    where: str, ref: _SingleRef | _MultiRef, annotation_id: str, instances: Instances, collector: Collector
) -> Box | None:
    """Return the box of an annotation, or `None` after counting the ref."""
    annotation, image = instances.annotations.get(annotation_id), instances.images[ref.image_id]
    if annotation is None:
        detail = f"annotation {annotation_id} is not in instances.json"
        collector.skipped.add("annotation that instances.json lacks", where, detail)
    elif annotation.image_id != ref.image_id:
        detail = f"annotation {annotation_id} is of image {annotation.image_id}, the ref of image {ref.image_id}"
        collector.skipped.add("annotation of another image", where, detail)
    else:
        place = f"{where}: annotation {annotation_id}"
        return collector.box(place, annotation.bbox, (image.width, image.height))
    return None
