"""The data set that every reader returns: samples of one split, and the origin of their annotations."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llm_wrapper.errors import DataError
from llm_wrapper.records import Box, Sample

__all__ = ["AnnotatedObject", "Dataset", "digest_files", "image_file", "image_folder", "require_file"]


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

    Attributes:
        name: The data set's.
        split: The split's.
        samples: One for each expression that can be used.
        digest: Identifies the annotation files by content.
        objects: All annotated objects by image id, where the data set has any (COCO instances); `None` where it has
            none.
        file_names: The annotations' own names of the image files by image id, also where there are no files.
        has_splits: Whether the annotations divide the samples. Where they do not, every split is all of them, so that
            whatever was trained on this data set was trained on this split.
        skipped: Places of the rows of published annotations that cannot be used, by reason.
        crowd_targets: Ids of the samples that mean a crowd region (`iscrowd`), for which no box of an object is right.
    """

    name: str
    split: str
    samples: Sequence[Sample]
    digest: str
    objects: Mapping[str, Sequence[AnnotatedObject]] | None = field(default=None, repr=False)
    file_names: Mapping[str, str] = field(default_factory=dict, repr=False)
    has_splits: bool = True
    skipped: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    crowd_targets: frozenset[str] = frozenset()

    def images(self) -> list[Sample]:
        """Return the first sample of each image, in order of appearance."""
        first: dict[str, Sample] = {}
        for sample in self.samples:
            first.setdefault(sample.image_id, sample)
        return list(first.values())

    def notes(self) -> list[str]:
        """Return the facts that belong beside every result on this split, one sentence each; usually none."""
        where = f"{self.name} {self.split}"
        notes = [f"{where}: skipped {len(places):,}: {reason}" for reason, places in self.skipped.items()]
        if self.crowd_targets:
            notes.append(
                f"{where}: {len(self.crowd_targets):,} of {len(self.samples):,} expressions mean a crowd region "
                "(iscrowd): no box of one object is right"
            )
        return notes


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


def image_file(folder: Path, name: str) -> Path:
    """Return the path of an image that an annotation file names, which must be under its folder.

    Links are followed: the user made them, and image folders are often links to another disk.

    Args:
        folder: The images folder.
        name: Relative to it, or absolute and under it.

    Raises:
        DataError: If the name leads out of the folder, by `..` or as an absolute path, or is none.
    """
    if "\0" in name:
        raise DataError(f"image {name[:200]!r} is no name of a file")
    path = folder / name
    home, place = os.path.abspath(folder), Path(os.path.abspath(path))
    if place.is_relative_to(home) or place.is_relative_to(folder.resolve()):
        return path
    remedy = (
        f"give data.settings.images={place.parent}"
        if os.path.isabs(name)
        else "name images relative to one folder that holds all, and give it as data.settings.images=.."
    )
    raise DataError(
        f"image {name[:200]!r} lies outside {folder}, and only images under that folder are read: "
        f"if it is meant, {remedy}"
    )


def image_folder(root: Path, images: str | Path | None) -> Path | None:
    """Return the folder of the image files: the one named, else `<root>/images` if there is one.

    Raises:
        DataError: If the folder that is named does not exist.
    """
    if images is None:
        return root / "images" if (root / "images").is_dir() else None
    if not Path(images).is_dir():
        raise DataError(
            f"the images folder {images} does not exist. Correct data.settings.images, or leave it out: "
            "detectors that read no pixels need no images."
        )
    return Path(images)
