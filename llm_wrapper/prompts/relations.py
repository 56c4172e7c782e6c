"""Compute ranks and position words of candidates, which a small LLM cannot derive from numbers.

All ranks are 1-based and geometric, so they do not depend on the order in which candidates are shown.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_wrapper.records import Box, Candidate

_CARDINALS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


@dataclass(frozen=True, slots=True)
class Rank:
    """A 1-based rank among `count` candidates."""

    rank: int
    count: int

    @property
    def is_first(self) -> bool:
        """True for the first of at least two."""
        return self.rank == 1 and self.count > 1

    @property
    def is_last(self) -> bool:
        """True for the last of at least two."""
        return self.rank == self.count > 1


@dataclass(frozen=True, slots=True)
class Relations:
    """Ranks of one candidate among those of its label and among all.

    `left` counts from the left by center, `size` from the largest area, `top` from the top by center, and `near`
    from the lowest bottom edge, which in most photographs is nearest to the camera. `extent` is the share of the image
    that the box covers, as a word.
    """

    left: Rank
    size: Rank
    top: Rank
    near: Rank
    left_of_all: Rank
    size_of_all: Rank
    position: str
    extent: str


def spell_ordinal(rank: int) -> str:
    """Spell a 1-based rank: first, second, ... tenth, 11th."""
    return _ORDINALS[rank - 1] if rank <= len(_ORDINALS) else f"{rank}th"


def spell_cardinal(count: int) -> str:
    """Spell a number from 1: one, two, ... ten, 11."""
    return _CARDINALS[count - 1] if count <= len(_CARDINALS) else str(count)


_KEYS: dict[str, Callable[[Box], float]] = {
    "left": lambda box: box.center[0],
    "size": lambda box: -box.area,
    "top": lambda box: box.center[1],
    "near": lambda box: -box.y1,
}


def _ranks(candidates: Sequence[Candidate], members: Sequence[int], name: str) -> dict[int, Rank]:
    def place(index: int) -> tuple[object, ...]:
        """Break ties by geometry, not by the order of the list."""
        box = candidates[index].box
        return (_KEYS[name](box), box.center, box.xyxy, candidates[index].label)

    ordered = sorted(members, key=place)
    return {index: Rank(rank, len(members)) for rank, index in enumerate(ordered, start=1)}


def compute_relations(candidates: Sequence[Candidate], image_wh: tuple[int, int]) -> list[Relations]:
    """Compute the relations of each candidate of one image, in the order given; labels are compared lower-cased."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, candidate in enumerate(candidates):
        groups[candidate.label.strip().lower()].append(index)
    own: dict[str, dict[int, Rank]] = {name: {} for name in _KEYS}
    for name, members in itertools.product(_KEYS, groups.values()):
        own[name] |= _ranks(candidates, members, name)
    everyone = range(len(candidates))
    left, size = _ranks(candidates, everyone, "left"), _ranks(candidates, everyone, "size")
    found = []
    for index in everyone:
        box = candidates[index].box
        x, y = box.center[0] / image_wh[0], box.center[1] / image_wh[1]
        column = "left" if x < 0.36 else "right" if x > 0.64 else ""
        row = "top" if y < 0.36 else "bottom" if y > 0.64 else ""
        share = box.area / (image_wh[0] * image_wh[1])
        found.append(
            Relations(
                **{name: ranks[index] for name, ranks in own.items()},
                left_of_all=left[index],
                size_of_all=size[index],
                position=f"{row} {column}".strip() or "center",
                extent="tiny" if share < 0.01 else "small" if share < 0.05 else "medium" if share < 0.2 else "big",
            )
        )
    return found
