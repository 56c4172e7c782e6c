"""Which samples a row of somebody else's predictions is about: by id, or by image and exact words."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePath

from llm_wrapper.datasets.base import Dataset
from llm_wrapper.errors import nearest
from llm_wrapper.evaluation.foreign_rows import Row
from llm_wrapper.records import Sample

__all__ = ["Matcher"]

_COCO_FILE = re.compile(r"(?:COCO_\w+?\d{4}_)?(\d{12})(?:_\d+)?\.\w+")
"""`COCO_train2014_000000380440_491042.jpg` or `000000380440.jpg`: image 380440; what follows belongs to the ref."""


class Matcher:
    """Finds the samples of a data set that rows name."""

    def __init__(self, dataset: Dataset) -> None:
        self._split = f"{dataset.name} {dataset.split}"
        self._by_id = {sample.sample_id: sample for sample in dataset.samples}
        self._by_ref: defaultdict[str, list[Sample]] = defaultdict(list)
        self._by_image: defaultdict[str, list[Sample]] = defaultdict(list)
        self._by_name: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for sample in dataset.samples:
            self._by_ref[sample.ref_id].append(sample)
            self._by_image[sample.image_id].append(sample)
            if sample.image_path is not None:
                self._by_name[PurePath(sample.image_path).name][sample.image_id] = sample.image_path

    def find(self, row: Row) -> tuple[Sample, ...]:
        """Return the samples that a row answers: several only where image and words are the same.

        Raises:
            ValueError: If it names no sample of the data set, or does not say which.
        """
        if row.sample_id is not None:
            return (self._of_id(row.sample_id, row.expression),)
        if row.ref_id is not None:
            return self._worded(self._by_ref.get(row.ref_id, []), row, f"ref {row.ref_id!r}")
        if row.image is not None:
            image_id = self._image_of(row.image)
            return self._worded(self._by_image.get(image_id, []), row, f"image {row.image!r}")
        if row.image_id is not None:
            return self._worded(self._by_image.get(row.image_id, []), row, f"image_id {row.image_id!r}")
        raise ValueError("names no sample: give 'sample_id', or 'image' and 'expression'")

    def _of_id(self, sample_id: str, expression: str | None) -> Sample:
        sample = self._by_id.get(sample_id)
        if sample is None:
            raise ValueError(f"sample {sample_id!r} was not asked for: it is not in {self._split}")
        # Ids of different data sets are small numbers that overlap; words may be cleaned, but not others.
        if expression is not None and _letters(expression) != _letters(sample.expression):
            raise ValueError(
                f"sample {sample_id!r} of {self._split} is {sample.expression!r}, the prediction is for {expression!r}"
            )
        return sample

    def _worded(self, pool: Sequence[Sample], row: Row, named: str) -> tuple[Sample, ...]:
        if not pool:
            raise ValueError(f"{named} was not asked for: it is not in {self._split}")
        if row.expression is None:
            raise ValueError(
                f"{named} alone does not say which expression was asked: an image has several; "
                "add 'sample_id' or 'expression'"
            )
        found = tuple(sample for sample in pool if sample.expression == row.expression)
        if not found:
            close = nearest(row.expression, list(dict.fromkeys(sample.expression for sample in pool)))
            raise ValueError(f"{named} has no expression {row.expression!r} in {self._split}{close}")
        return found

    def _image_of(self, name: str) -> str:
        """Return the image id of a file's name; folders count only where names repeat."""
        known = self._by_name.get(PurePath(name).name, {})
        if len(known) > 1:
            parts = PurePath(name).parts
            inside = {key: path for key, path in known.items() if PurePath(path).parts[-len(parts) :] == parts}
            if len(inside) != 1:
                raise ValueError(f"image {name!r} is shared by images {', '.join(sorted(known))}: use 'image_id'")
            known = inside
        if known:
            return next(iter(known))
        match = _COCO_FILE.fullmatch(PurePath(name).name)
        return str(int(match[1])) if match else name


def _letters(text: str) -> str:
    """Keep letters and digits alone: cleaned and typed text of one expression have them in common."""
    return "".join(character for character in text.casefold() if character.isalnum())
