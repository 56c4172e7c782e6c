"""Two slices of the training data that share no image: prompts are searched on one, and confirmed on the other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llm_wrapper.errors import DataError
from llm_wrapper.records import Sample

__all__ = ["Slices", "cut"]


@dataclass(frozen=True, slots=True)
class Slices:
    """Places of the expressions among the samples that were cut, in the order in which they are asked about."""

    search: Sequence[int]
    confirm: Sequence[int]


def cut(samples: Sequence[Sample], sizes: tuple[int, int], *, without: Iterable[str], seed: int) -> Slices:
    """Cut two slices of so many expressions each.

    Images come in an order that hangs on the seed and their ids alone, so that any beginning of a slice is a fair part
    of it. The last image of each slice may give only some of its expressions; the others are not used.

    Args:
        samples: Of a training split; those without a target tell nothing and are not used.
        sizes: Expressions to search on, and to confirm on.
        without: Ids of images that are evaluated on.
        seed: Of the order.

    Raises:
        DataError: If there are too few expressions; the message has the numbers.
    """
    forbidden = set(without)
    of_image: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        if sample.target is not None and sample.image_id not in forbidden:
            of_image.setdefault(sample.image_id, []).append(place)
    images = sorted(of_image, key=lambda image: hashlib.sha256(f"{seed}/{image}".encode()).digest())
    found: list[list[int]] = []
    rest = iter(images)
    for size in sizes:
        places: list[int] = []
        while len(places) < size and (image := next(rest, None)) is not None:
            places += of_image[image][: size - len(places)]
        found.append(places)
    if [len(places) for places in found] != [*sizes]:
        raise DataError(_too_few(sizes, [len(places) for places in found], of_image))
    return Slices(*found)


def _too_few(sizes: tuple[int, int], found: Sequence[int], of_image: dict[str, list[int]]) -> str:
    num = sum(map(len, of_image.values()))
    return (
        f"search.slice={sizes[0]} and search.confirm={sizes[1]} need {sum(sizes)} expressions of separate images, and "
        f"the training split has {num} with a target, of {len(of_image)} images that are not evaluated on (they give "
        f"{found[0]} and {found[1]}). Ask for less: search.slice={max(2, num // 3)} search.confirm={max(2, num // 3)}"
    )
