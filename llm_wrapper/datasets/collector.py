"""What readers of published annotation files share: samples gathered, unusable rows counted, boxes checked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from llm_wrapper import box_formats, boxes
from llm_wrapper.datasets import rows
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.datasets.coco_instances import Instances
from llm_wrapper.datasets.rows import Skipped
from llm_wrapper.errors import DataError
from llm_wrapper.records import MAX_EXPRESSION, Box, Sample

__all__ = ["Collector", "Convention", "image_folder"]

_log = logging.getLogger(__name__)

Convention = Literal["xyxy", "xywh"]
"""What the four numbers of a box mean; pixels in both."""

_NUM_EXAMPLES = 3


class Collector:
    """Gathers the samples of a split, and counts the rows that cannot be used.

    Attributes:
        skipped: The unusable rows; readers add their own.
        file_names: Names of image files by image id; readers without an instances file add theirs.
    """

    def __init__(self, source: str, convention: Convention) -> None:
        self.skipped = Skipped()
        self.file_names: dict[str, str] = {}
        self._source = source
        self._convention: Convention = convention
        self._boxes: list[Sequence[float]] = []
        self._sizes: list[tuple[int, int]] = []
        self._samples: list[Sample] = []
        self._places: dict[str, str] = {}
        self._crowds: set[str] = set()

    def box(self, where: str, numbers: Sequence[float], image_wh: tuple[int, int]) -> Box | None:
        """Return the box that four numbers of a row mean, or `None` after counting the row."""
        self._boxes.append(numbers)
        self._sizes.append(image_wh)
        try:
            return Box(*numbers) if self._convention == "xyxy" else boxes.from_xywh(numbers)
        except ValueError as error:
            self.skipped.add("target that is no box", where, rows.reason(error))
            return None

    def add(self, where: str, sample: Sample, *, is_crowd: bool = False) -> None:
        """Take a sample, unless its expression is empty or too long, or its id was used before.

        Args:
            where: The place of its row.
            sample: What the row says.
            is_crowd: Whether one of its targets is a crowd region.
        """
        sample_id = sample.sample_id
        if rows.is_blank(sample.expression):
            self.skipped.add("expression that is empty", where, f"the expression of sample {sample_id} is empty")
            return
        if len(sample.expression) > MAX_EXPRESSION:
            detail = f"the expression of sample {sample_id} has {len(sample.expression)} characters"
            self.skipped.add(f"expression of over {MAX_EXPRESSION} characters", where, detail)
            return
        if sample_id in self._places:
            first = self._places[sample_id]
            self.skipped.add("id used before", where, f"the id {sample_id} was used for a sample of {first} already")
            return
        self._places[sample_id] = where
        self._samples.append(sample)
        if is_crowd:
            self._crowds.add(sample_id)

    def dataset(self, name: str, split: str, digest: str, instances: Instances | None = None) -> Dataset:
        """Return the split, with the objects of its instances file if it has one, and log what it lacks.

        Raises:
            DataError: If the boxes cannot be what the reader takes them for, or most rows cannot be used.
        """
        if self._boxes:
            values, sizes = np.array(self._boxes, dtype=np.float64), np.array(self._sizes, dtype=np.float64)
            wrong = box_formats.check(values, sizes, self._convention, how="a data.reader whose boxes are {}")
            if wrong:
                remedy = "Nothing was read: check that data.reader belongs to these files."
                raise DataError(f"{self._source}: {wrong.removesuffix('?')}. {remedy}")
        others = Skipped() if instances is None else instances.skipped
        self.skipped.require_most(self._source, len(self._samples), others.problems)
        skipped = {**others.places, **self.skipped.places}
        for reason, places in skipped.items():
            more = ", ..." if len(places) > _NUM_EXAMPLES else ""
            examples = ", ".join(places[:_NUM_EXAMPLES])
            _log.warning("%s: skipped %d: %s (%s%s)", self._source, len(places), reason, examples, more)
        return Dataset(
            *(name, split, self._samples, digest, None if instances is None else instances.objects),
            file_names=self.file_names if instances is None else self._names_of(instances),
            skipped={reason: tuple(places) for reason, places in skipped.items()},
            crowd_targets=frozenset(self._crowds),
        )

    def _names_of(self, instances: Instances) -> dict[str, str]:
        ids = dict.fromkeys(sample.image_id for sample in self._samples)
        return {image_id: instances.images[image_id].file_name for image_id in ids if image_id in instances.images}


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
