"""gRefCOCO: RefCOCO's images with expressions that mean one object, several, or none.

`<root>/grefcoco/grefs(unc).json` is a list of refs as in REFER, but with lists as `ann_id`, `[-1]` where nothing in the
image fits; `<root>/grefcoco/instances.json` and the images are those of a REFER tree. Read: grefer.py and
mdetr/scripts/fine-tuning/grefexp_coco_format.py of henghuiding/gRefCOCO. Not verified: the published files themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from llm_wrapper import readers
from llm_wrapper.datasets import coco_instances, rows
from llm_wrapper.datasets.base import Dataset, digest_files, image_file, require_file
from llm_wrapper.datasets.coco_instances import CocoImage, Instances
from llm_wrapper.datasets.collector import Collector
from llm_wrapper.errors import DataError
from llm_wrapper.names import folder_name
from llm_wrapper.records import Box, Sample

__all__ = ["load"]

_FOLDER = "grefcoco"
_IMAGES = Path("images/mscoco/images/train2014")
_NO_TARGET = ["-1"]
_REMEDY = "Fetch gRefCOCO and unpack it so that this file exists, or correct data.root or data.settings.split_by."


class _Ref(BaseModel):
    ref_id: rows.Id
    image_id: rows.Id
    # Their own reader takes a single id too.
    ann_id: Annotated[
        list[rows.Id], BeforeValidator(lambda value: value if isinstance(value, list) else [value]), Field(min_length=1)
    ]
    sentences: list[rows.Sentence]


def load(root: Path, split: str, *, split_by: str = "unc", text: rows.TextKind = "sent") -> Dataset:
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
    rows.require_text_kind(text)
    folder_name(split_by, "data.settings.split_by")
    refs_path = require_file(root / _FOLDER / f"grefs({split_by}).json", _REMEDY)
    instances_path = require_file(root / _FOLDER / "instances.json", _REMEDY)
    chosen = _of_split(refs_path, split)
    instances = coco_instances.load(instances_path)
    folder = root / _IMAGES
    reader = _Reader(f"split {split} of {refs_path}", instances, folder if folder.is_dir() else None, text)
    for number, raw in chosen:
        reader.take(f"ref {number}", raw)
    return reader.collector.dataset(_FOLDER, split, digest_files([refs_path, instances_path]), instances)


def _of_split(path: Path, split: str) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the refs of a split with their places in the file."""
    content = readers.read_json(path, nan=True)
    if not isinstance(content, list) or not all(isinstance(ref, dict) for ref in content):
        raise DataError(f"{path} holds something else than the list of refs that gRefCOCO is. Fetch it again.")
    names = [str(ref.get("split")) for ref in content]
    chosen = [
        (number, ref)
        for number, (name, ref) in enumerate(zip(names, content, strict=True))
        if name == split or (split == "test" and "test" in name)
    ]
    if not chosen:
        existing = ", ".join(sorted(set(names))) or "none"
        raise DataError(f"{path} has no split '{split}'. Its splits are: {existing}. Ask for one of them.")
    return chosen


class _Reader:
    """Turns refs into samples."""

    def __init__(self, source: str, instances: Instances, folder: Path | None, text: rows.TextKind) -> None:
        self.collector = Collector(source, "xywh")
        self._instances = instances
        self._folder = folder
        self._text = text

    def take(self, where: str, raw: Mapping[str, Any]) -> None:
        """Add the samples of one ref, or count it."""
        skipped = self.collector.skipped
        ref = skipped.validated(_Ref, raw, where)
        if ref is None:
            return
        where = f"{where} (ref_id {ref.ref_id})"
        image = self._instances.images.get(ref.image_id)
        if not ref.sentences:
            skipped.add("ref without sentences", where, "it has no sentences")
            return
        if image is None:
            skipped.add("image that instances.json lacks", where, f"image {ref.image_id} is not in instances.json")
            return
        targets = self._targets(where, ref, (image.width, image.height))
        if targets is None:
            return
        is_crowd = any(self._instances.is_crowd(annotation_id) for annotation_id in ref.ann_id)
        for sentence in ref.sentences:
            expression = sentence.text(self._text)
            if expression is None:
                skipped.add("sentence without text", where, sentence.what_is_missing(self._text))
                continue
            sample = self._sample(ref, image, targets, sample_id=sentence.sent_id, expression=expression)
            self.collector.add(where, sample, is_crowd=is_crowd)

    def _targets(self, where: str, ref: _Ref, image_wh: tuple[int, int]) -> tuple[Box, ...] | None:
        """Return the boxes of the objects that are meant, each once; `None` where one of them cannot be found."""
        ids = list(dict.fromkeys(ref.ann_id))
        if ids == _NO_TARGET:
            return ()
        found: list[Box] = []
        for annotation_id in ids:
            target = self._target(where, annotation_id, ref.image_id, image_wh)
            if target is None:
                return None
            found.append(target)
        return tuple(found)

    def _target(self, where: str, annotation_id: str, image_id: str, image_wh: tuple[int, int]) -> Box | None:
        annotation, skipped = self._instances.annotations.get(annotation_id), self.collector.skipped
        if annotation is None:
            detail = f"annotation {annotation_id} is not in instances.json"
            skipped.add("annotation that instances.json lacks", where, detail)
            return None
        if annotation.image_id != image_id:
            detail = f"annotation {annotation_id} is of image {annotation.image_id}, the ref of image {image_id}"
            skipped.add("annotation of another image", where, detail)
            return None
        return self.collector.box(f"{where}: annotation {annotation_id}", annotation.bbox, image_wh)

    def _sample(
        self, ref: _Ref, image: CocoImage, targets: tuple[Box, ...], *, sample_id: str, expression: str
    ) -> Sample:
        return Sample(
            sample_id=sample_id,
            ref_id=ref.ref_id,
            image_id=ref.image_id,
            image_path=str(image_file(self._folder, image.file_name)) if self._folder else None,
            image_wh=(image.width, image.height),
            expression=expression,
            target=targets[0] if targets else None,
            kind=("no_target", "single_target", "multi_target")[min(len(targets), 2)],
            further_targets=targets[1:],
        )
