"""RefCOCO, RefCOCO+, RefCOCOg and RefCLEF, as the trees of the REFER toolbox.

`<root>/<name>/refs(<split_by>).p` is a Python 2 pickle of refs (one referred object each, with several sentences) and
`<root>/<name>/instances.json` the COCO objects of the same images. The pickle is read without executing anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from llm_wrapper import boxes
from llm_wrapper.datasets import coco_instances, restricted_pickle, rows
from llm_wrapper.datasets.base import Dataset, digest_files, require_file
from llm_wrapper.datasets.coco_instances import CocoImage, Instances
from llm_wrapper.errors import DataError, listed
from llm_wrapper.records import Box, Sample

__all__ = ["USUAL_SPLIT_BY", "load"]

USUAL_SPLIT_BY: Mapping[str, str] = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd", "refclef": "unc"}
"""The division of each set that papers report; for RefCOCOg the one without images shared between splits."""

_COCO_IMAGES = Path("images/mscoco/images/train2014")
_IMAGE_FOLDERS = {"refclef": Path("images/saiapr_tc-12")}
_REMEDY = "Fetch the REFER annotations and unpack them so that this file exists, or correct the root, name or split_by."

_Numbered = list[tuple[int, Mapping[str, Any]]]


class _Sentence(BaseModel):
    sent_id: rows.Id
    sent: Any = None
    raw: Any = None


class _Ref(BaseModel):
    ref_id: rows.Id
    ann_id: rows.Id
    image_id: rows.Id
    sentences: list[_Sentence] = Field(min_length=1)


def load(root: Path, split: str, *, name: str, split_by: str, text: Literal["raw", "sent"] = "sent") -> Dataset:
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
            named); or with all missing keys, unknown ids, empty sentences and target boxes without area.
    """
    refs_path = _refs_path(root, name, split_by)
    instances_path = require_file(root / name / "instances.json", _REMEDY)
    chosen = _of_split(_read_refs(refs_path), split, refs_path)
    instances = coco_instances.load(instances_path)
    folder = root / _IMAGE_FOLDERS.get(name, _COCO_IMAGES)
    reader = _Reader(instances, folder if folder.is_dir() else None, text)
    samples = [sample for number, raw in chosen for sample in reader.samples(f"ref {number}", raw)]
    if reader.problems:
        raise DataError(listed(f"{refs_path}, split {split}, cannot be used", reader.problems))
    return Dataset(name, split, samples, digest_files([refs_path, instances_path]), instances.objects)


def _refs_path(root: Path, name: str, split_by: str) -> Path:
    existing = sorted(path.name for path in (root / name).glob("refs(*).p"))
    found = f"That folder has {', '.join(existing)}. " if existing else ""
    return require_file(root / name / f"refs({split_by}).p", found + _REMEDY)


def _read_refs(path: Path) -> _Numbered:
    """Return the refs with their places in the file; each is sure to have a split and an image id."""
    content = restricted_pickle.load(path)
    if not isinstance(content, list):
        raise DataError(f"{path} holds a {type(content).__name__}, not the list of refs that REFER writes.")
    problems = [problem for number, ref in enumerate(content) for problem in _ref_problems(number, ref)]
    if problems:
        raise DataError(listed(f"{path} holds refs that cannot be read", problems))
    return list(enumerate(content))


def _ref_problems(number: int, ref: Any) -> Iterable[str]:
    if not isinstance(ref, dict):
        yield f"ref {number} is a {type(ref).__name__}, not a dict"
        return
    if not isinstance(ref.get("split"), str):
        yield f"ref {number}: 'split' must be a text, got {ref.get('split')!r}"
    if not isinstance(ref.get("image_id"), (int, str)):
        yield f"ref {number}: 'image_id' must be a number or a text, got {ref.get('image_id')!r}"


def _of_split(refs: _Numbered, split: str, path: Path) -> _Numbered:
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
    """Turns refs into samples and gathers what is wrong with them."""

    def __init__(self, instances: Instances, folder: Path | None, text: str) -> None:
        self.problems: list[str] = []
        self._instances = instances
        self._folder = folder
        self._text = text

    def samples(self, where: str, raw: Mapping[str, Any]) -> Iterable[Sample]:
        """Yield the samples of one ref that are usable; the rest becomes problems."""
        ref = rows.validated(_Ref, raw, where=where, problems=self.problems)
        if ref is None:
            return
        where = f"{where} (ref_id {ref.ref_id})"
        image = self._instances.images.get(ref.image_id)
        if image is None:
            self.problems.append(f"{where}: image {ref.image_id} is not in instances.json")
        target = self._target(where, ref)
        for sentence in ref.sentences:
            expression = self._expression(where, sentence)
            if image is not None and target is not None and expression is not None:
                yield self._sample(ref, image, target=target, sample_id=sentence.sent_id, expression=expression)

    def _sample(self, ref: _Ref, image: CocoImage, *, target: Box, sample_id: str, expression: str) -> Sample:
        return Sample(
            sample_id=sample_id,
            ref_id=ref.ref_id,
            image_id=ref.image_id,
            image_path=str(self._folder / image.file_name) if self._folder else None,
            image_wh=(image.width, image.height),
            expression=expression,
            target=target,
        )

    def _target(self, where: str, ref: _Ref) -> Box | None:
        annotation = self._instances.annotations.get(ref.ann_id)
        if annotation is None:
            self.problems.append(f"{where}: annotation {ref.ann_id} is not in instances.json")
            return None
        if annotation.image_id != ref.image_id:
            self.problems.append(
                f"{where}: annotation {ref.ann_id} is of image {annotation.image_id}, the ref of image {ref.image_id}"
            )
        try:
            return boxes.from_xywh(annotation.bbox)
        except ValueError as error:
            self.problems.append(f"{where}: target of annotation {ref.ann_id}: {rows.reason(error)}")
            return None

    def _expression(self, where: str, sentence: _Sentence) -> str | None:
        value = getattr(sentence, self._text)
        if isinstance(value, str) and value.strip():
            return value
        self.problems.append(f"{where}: sentence {sentence.sent_id}: '{self._text}' must be a text, got {value!r}")
        return None
