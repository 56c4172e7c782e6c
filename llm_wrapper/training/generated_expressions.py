"""Generate expressions from boxes and labels alone, each true of exactly one candidate, with a margin.

They teach names, position, order, size and neighbourhood without annotations, beside the real expressions of an image,
whose candidate lines they share, or alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llm_wrapper.boxes import FloatArray, array
from llm_wrapper.prompts.relations import Relations, compute_relations, spell_ordinal
from llm_wrapper.prompts.rule import SYNONYMS, find_names, split_words
from llm_wrapper.prompts.text import clean_label
from llm_wrapper.records import Candidate

_LEFT = ("left {n}", "{n} on the left", "{n} on left", "the leftmost {n}", "the left most {n}", "{n} far left",
         "the {n} on the left side", "a {n} to the left of the other", "{n} left")  # fmt: skip
_RIGHT = tuple(text.replace("left", "right") for text in _LEFT)
_LARGE = ("the largest {n}", "biggest {n}", "big {n}", "the bigger {n}", "the larger {n}", "large {n}")
_SMALL = ("the smallest {n}", "smallest {n}", "small {n}", "the smaller {n}", "little {n}", "tiny {n}")
_NEAR = ("front {n}", "{n} in front", "the closest {n}", "the {n} closest to us", "{n} in the foreground",
         "nearest {n}", "the {n} closest to the camera")  # fmt: skip
_FAR = ("back {n}", "{n} in the back", "the {n} in the background", "the farthest {n}", "{n} furthest away",
        "{n} behind")  # fmt: skip
_TOP = ("top {n}", "{n} on top", "the upper {n}", "the highest {n}", "{n} at the top")
_BOTTOM = ("bottom {n}", "{n} on the bottom", "the lower {n}", "the lowest {n}", "{n} at the bottom")
_MIDDLE = ("middle {n}", "the {n} in the middle", "center {n}", "the {n} in the center", "{n} between the others")
_ORDINAL = ("the {o} {n} from the {d}", "{o} {n} from {d}", "{n} {o} from the {d}", "{o} from {d} {n}")
_ONLY = ("{n}", "the {n}", "a {n}", "the only {n}", "{n} in the picture")
_CORNER = ("{p} {n}", "{n} in the {p}", "{n} {p}", "the {n} in the {p} corner", "{p} corner {n}")
_BESIDE = ("{n} next to the {m}", "the {n} near the {m}", "{n} by the {m}", "a {n} beside a {m}",
           "{n} closest to the {m}", "{n} with the {m}")  # fmt: skip

_MARGIN = 0.05
"""Least difference of positions, as a share of the image's side, for a rank to be visible."""
_RATIO = 1.35
"""Least ratio of areas for a size to be visible."""


@dataclass(frozen=True, slots=True)
class GeneratedExpression:
    """An expression and the index of the one candidate it is true of."""

    expression: str
    index: int


@dataclass(frozen=True, slots=True)
class _Scene:
    candidates: Sequence[Candidate]
    relations: Sequence[Relations]
    groups: dict[str, list[int]]
    boxes: FloatArray
    """(n, 4) xyxy as shares of the image's width and height."""


def _own_name(label: str) -> str:
    """Return the words of a label; labels of the same words are one kind, whatever separates them."""
    return " ".join(split_words(label)) or clean_label(label)


def _names(own: str, present: set[str]) -> list[str]:
    """Return names of a kind that fit no other kind present, its own label most often."""
    others = [name for other in present if other != own for name in find_names(other)]
    synonyms = [word for word in SYNONYMS.get(own, "").split()[:14] if (word,) not in others]
    return [own] * max(1, len(synonyms)) + synonyms


def _along(
    scene: _Scene, members: Sequence[int], key: Callable[[FloatArray], FloatArray]
) -> Iterator[tuple[int, int, int]]:
    """Yield (index, rank from 0, count) of each member whose place along `key` has a margin to its neighbours."""
    values = key(scene.boxes[list(members)])
    order = np.argsort(values, kind="stable")
    gaps = np.diff(values[order], prepend=-np.inf, append=np.inf)
    for rank, place in enumerate(order):
        if min(gaps[rank], gaps[rank + 1]) > _MARGIN:
            yield members[int(place)], rank, len(members)


def _order_claims(scene: _Scene, members: Sequence[int]) -> Iterator[tuple[int, str]]:
    for index, rank, count in _along(scene, members, lambda box: (box[:, 0] + box[:, 2]) / 2):
        if rank == 0:
            yield from ((index, text) for text in _LEFT)
        if rank == count - 1:
            yield from ((index, text) for text in _RIGHT)
        if 2 * rank + 1 == count:
            yield from ((index, text) for text in _MIDDLE)
        for place, side in ((rank, "left"), (count - 1 - rank, "right")):
            if count > 2 and place < 4:
                yield from (
                    (index, text.replace("{o}", spell_ordinal(place + 1)).replace("{d}", side)) for text in _ORDINAL
                )


def _depth_claims(scene: _Scene, members: Sequence[int]) -> Iterator[tuple[int, str]]:
    for key, first, last in (
        (lambda box: (box[:, 1] + box[:, 3]) / 2, _TOP, _BOTTOM),
        (lambda box: box[:, 3], _FAR, _NEAR),
    ):
        for index, rank, count in _along(scene, members, key):
            if rank == 0:
                yield from ((index, text) for text in first)
            if rank == count - 1:
                yield from ((index, text) for text in last)


def _size_claims(scene: _Scene, members: Sequence[int]) -> Iterator[tuple[int, str]]:
    ordered = sorted(members, key=lambda index: scene.candidates[index].box.area)
    areas = [scene.candidates[index].box.area for index in ordered]
    if areas[-1] > _RATIO * areas[-2]:
        yield from ((ordered[-1], text) for text in _LARGE)
    if areas[1] > _RATIO * areas[0]:
        yield from ((ordered[0], text) for text in _SMALL)


def _corner_claims(scene: _Scene, members: Sequence[int]) -> Iterator[tuple[int, str]]:
    words = [scene.relations[index].position for index in members]
    for index, word in zip(members, words, strict=True):
        # Top left is on the left too: of two zebras, one left and one top left, neither is "the zebra on the left".
        fitting = [other for other in words if set(word.split()) <= set(other.split())]
        if len(fitting) == 1 and word != "center":
            yield from ((index, text.replace("{p}", word)) for text in _CORNER)


def _neighbour_claims(scene: _Scene, members: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yield claims about the member that is clearly nearest to the only object of another label."""
    centers = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2
    for label, (anchor, *more) in scene.groups.items():
        if more or anchor in members:
            continue
        distances = sorted((float(np.linalg.norm(centers[index] - centers[anchor])), index) for index in members)
        if len(distances) == 1 or distances[1][0] > _RATIO * distances[0][0] + _MARGIN:
            yield from ((distances[0][1], text.replace("{m}", label)) for text in _BESIDE)


def _claims(scene: _Scene, members: Sequence[int]) -> list[list[tuple[int, str]]]:
    """Return claims about the members of one label, grouped by kind, so that kinds can be drawn evenly."""
    if len(members) == 1:
        return [[(members[0], text) for text in _ONLY], list(_corner_claims(scene, members)),
                list(_neighbour_claims(scene, members))]  # fmt: skip
    makers = (_order_claims, _order_claims, _depth_claims, _size_claims, _corner_claims, _neighbour_claims)
    return [list(maker(scene, members)) for maker in makers]


def generate_expressions(
    candidates: Sequence[Candidate], image_wh: tuple[int, int], rng: random.Random, *, count: int
) -> list[GeneratedExpression]:
    """Draw up to `count` different expressions about the candidates of one image.

    Labels with several members are drawn twice as often as single ones, which need nothing but their name.
    """
    groups: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        groups.setdefault(_own_name(candidate.label), []).append(index)
    shares = array([candidate.box for candidate in candidates]) / np.array([*image_wh, *image_wh], dtype=np.float64)
    scene = _Scene(candidates, compute_relations(candidates, image_wh), groups, shares)
    pools = {label: [kind for kind in _claims(scene, members) if kind] for label, members in groups.items()}
    labels = [label for label, kinds in pools.items() if kinds for _ in range(min(len(groups[label]), 2))]
    drawn: dict[str, int] = {}
    for _ in range(3 * count if labels else 0):
        label = rng.choice(labels)
        index, text = rng.choice(rng.choice(pools[label]))
        drawn.setdefault(text.replace("{n}", rng.choice(_names(label, set(groups)))), index)
        if len(drawn) == count:
            break
    return [GeneratedExpression(expression, index) for expression, index in drawn.items()]


def generate_absent_expression(candidates: Sequence[Candidate], rng: random.Random) -> str | None:
    """Draw an expression that names a kind of object not among the candidates.

    None where a label is not in the vocabulary, since such a label may mean anything.
    """
    present = {_own_name(candidate.label) for candidate in candidates}
    if not present <= SYNONYMS.keys():
        return None
    taken = {name for kind in present for name in find_names(kind)}
    kind = rng.choice([kind for kind in SYNONYMS if taken.isdisjoint(find_names(kind))])
    return rng.choice(_ONLY).replace("{n}", rng.choice(_names(kind, present)))
