"""What every data set becomes: samples of one split, and where their annotations came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llm_wrapper.errors import DataError
from llm_wrapper.records import Box, Sample

__all__ = ["AnnotatedObject", "Dataset", "digest_files", "require_file"]


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """One annotated object of an image: its box (xyxy pixels), category name and annotation id.

    `group` is the name of the category's super-category (`vehicle` of `car`), where the annotations have any.
    """

    box: Box
    label: str
    annotation_id: str
    group: str | None = None


@dataclass(frozen=True)
class Dataset:
    """One split of a data set.

    `digest` identifies the annotation files by content. `objects` maps an image id to all of its annotated objects,
    where the data set has any (COCO instances); `None` where it has none.
    """

    name: str
    split: str
    samples: Sequence[Sample]
    digest: str
    objects: Mapping[str, Sequence[AnnotatedObject]] | None = field(default=None, repr=False)

    def images(self) -> list[Sample]:
        """Return the first sample of each image, in order of appearance."""
        first: dict[str, Sample] = {}
        for sample in self.samples:
            first.setdefault(sample.image_id, sample)
        return list(first.values())


def digest_files(paths: Sequence[Path]) -> str:
    """SHA-256 over the names and contents of files, as hex."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode() + b"\0")
        with path.open("rb") as stream:
            total.update(
                hashlib.file_digest(stream, "sha256").digest()
                if hasattr(hashlib, "file_digest")
                else hashlib.sha256(stream.read()).digest()
            )
    return total.hexdigest()


def require_file(path: Path, remedy: str) -> Path:
    """Return `path` if it is a file; else raise a DataError that names it and the remedy."""
    if not path.is_file():
        raise DataError(f"{path} does not exist. {remedy}")
    return path
