"""What readers of foreign annotation files share: samples gathered with everything that is wrong with their rows.

Whether a box is xyxy or xywh cannot be seen from its four numbers alone, and a wrong guess spoils every result in
silence. So each row votes: a box that lies within its image under one reading only speaks for that reading.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from llm_wrapper import boxes
from llm_wrapper.datasets import rows
from llm_wrapper.errors import DataError, listed
from llm_wrapper.records import Box, Sample

__all__ = ["Collector", "Convention", "image_folder"]

Convention = Literal["xyxy", "xywh"]
"""What the four numbers of a box mean; pixels in both."""

_BOXES: dict[Convention, Callable[[Sequence[float]], Box]] = {
    "xyxy": lambda numbers: Box(*numbers),
    "xywh": boxes.from_xywh,
}


class Collector:
    """Gathers the samples of a split, and all problems of its rows.

    Attributes:
        problems: One sentence each, with the place; readers append their own.
    """

    def __init__(self, source: str, convention: Convention) -> None:
        self.problems: list[str] = []
        self._source = source
        self._convention = convention
        self._votes: Counter[str] = Counter()
        self._samples: list[Sample] = []
        self._places: dict[str, str] = {}

    def box(self, where: str, numbers: Sequence[float], image_wh: tuple[int, int]) -> Box | None:
        """Return the box that four numbers of a row mean, or `None` after noting why they mean none."""
        self._votes[_vote(numbers, image_wh)] += 1
        try:
            return _BOXES[self._convention](numbers)
        except ValueError as error:
            self.problems.append(f"{where}: {rows.reason(error)}")
            return None

    def add(self, where: str, sample: Sample) -> None:
        """Take a sample; an empty expression and an id used before are problems."""
        if not sample.expression.strip():
            self.problems.append(f"{where}: the expression of sample {sample.sample_id} is empty")
        if sample.sample_id in self._places:
            self.problems.append(
                f"{where}: the id {sample.sample_id} was used for a sample of {self._places[sample.sample_id]} already"
            )
        self._places.setdefault(sample.sample_id, where)
        self._samples.append(sample)

    def samples(self) -> list[Sample]:
        """Return all samples.

        Raises:
            DataError: If more boxes speak against the declared convention than for it; else with all problems.
        """
        self._refuse_other_convention()
        if self.problems:
            raise DataError(listed(f"{self._source} cannot be used", self.problems))
        return self._samples

    def _refuse_other_convention(self) -> None:
        other = "xywh" if self._convention == "xyxy" else "xyxy"
        total = sum(self._votes.values())
        against, for_it = self._votes[other], self._votes[self._convention]
        if against > for_it:
            raise DataError(
                f"{self._source}: the boxes should be {self._convention} in pixels, but {against} of {total} lie "
                f"within their image only when read as {other}, and {for_it} only when read as {self._convention}. "
                "Nothing was read: check that data.reader belongs to these files."
            )
        if 2 * self._votes["fractions"] > total:
            raise DataError(
                f"{self._source}: {self._votes['fractions']} of {total} boxes have no number above 1, so they are "
                "fractions of the image and not pixels. Nothing was read: multiply them by the image's size."
            )


def _vote(numbers: Sequence[float], image_wh: tuple[int, int]) -> str:
    """Return the only convention that fits, or `fractions`, `both` or `neither`."""
    if not all(math.isfinite(value) for value in numbers):
        return "neither"
    if max(numbers) <= 1 and any(value % 1 for value in numbers):
        return "fractions"
    fitting: list[Convention] = [name for name in _BOXES if _fits(numbers, image_wh, name)]
    return fitting[0] if len(fitting) == 1 else ("both" if fitting else "neither")


def _fits(numbers: Sequence[float], image_wh: tuple[int, int], convention: Convention) -> bool:
    try:
        return boxes.is_inside(_BOXES[convention](numbers), image_wh)
    except ValueError:
        return False


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
