"""Expressions about toy scenes, each true of exactly one thing by a clear margin.

A predicate answers `True`, `False`, or `None` where a person could argue. An expression is only made where the
predicate is `True` of one thing and `False` of all others that its noun fits.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from llm_wrapper.records import Box

__all__ = ["KINDS", "Expression", "Fact", "Thing", "all_facts", "describe"]

KINDS = ("attribute", "position", "ordinal", "size", "relation", "negation")
"""The kinds of expressions, by their main clue."""

_SUPERLATIVE_GAP = 24.0
_ORDINAL_GAP = 14.0
_HALF_GAP = 12.0
_RELATION_GAP = 20.0
_NEAR = 70.0
"""Pixels between centers: what counts as clear, and as 'next to'."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One painted shape: `box` holds its visible pixels, `radius` (pixels) is its size before anything was cut."""

    shape: str
    color: str
    box: Box
    radius: float

    def along(self, direction: str) -> float:
        """Return how far the center lies in a direction, in pixels."""
        dx, dy = _STEPS[direction]
        x, y = self.box.center
        return dx * x + dy * y

    def front(self, direction: str) -> float:
        """Return how far the foremost edge lies in a direction, in pixels."""
        x0, y0, x1, y1 = self.box.xyxy
        return {"left": -x0, "right": x1, "top": -y0, "bottom": y1}[direction]


@dataclass(frozen=True, slots=True)
class Expression:
    """One sentence; `target` is the index of the only thing that it is true of."""

    kind: str
    target: int
    text: str


Fact = tuple[int, list[str]]
"""The index of the target, and the texts that say the same of it."""
_Group = tuple[str, list[int]]
_Holds = Callable[[Thing], "bool | None"]

_STEPS = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
_MOST = {
    "left": ["the leftmost {}", "{} furthest to the left", "the far left {}"],
    "right": ["the rightmost {}", "{} furthest to the right", "the far right {}"],
    "top": ["the topmost {}", "the highest {}", "{} nearest the top edge"],
    "bottom": ["the lowest {}", "the bottommost {}", "{} nearest the bottom edge"],
}
_WHERE = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
_BESIDE = {
    "left": ["the {} left of the {}", "{} to the left of the {}", "the {} on the left side of the {}"],
    "right": ["the {} right of the {}", "{} to the right of the {}", "the {} on the right side of the {}"],
    "top": ["the {} above the {}", "{} over the {}", "the {} higher up than the {}"],
    "bottom": ["the {} below the {}", "{} under the {}", "the {} lower down than the {}"],
}
_RANKS = {2: ("second", "2nd"), 3: ("third", "3rd")}


def describe(rng: random.Random, things: Sequence[Thing], image_wh: tuple[int, int]) -> list[Expression] | None:
    """Make one expression of each kind, about as many different things as possible.

    Returns:
        One expression per entry of `KINDS`, in that order; `None` where the scene allows no expression of some kind.
    """
    facts = all_facts(things, image_wh)
    chosen: list[Expression] = []
    for kind in KINDS:
        texts_of: dict[int, list[list[str]]] = defaultdict(list)
        for target, texts in facts[kind]:
            texts_of[target].append(texts)
        if not texts_of:
            return None
        fresh = sorted(set(texts_of) - {done.target for done in chosen}) or sorted(texts_of)
        target = rng.choice(fresh)
        chosen.append(Expression(kind, target, rng.choice(rng.choice(texts_of[target]))))
    return chosen


def all_facts(things: Sequence[Thing], image_wh: tuple[int, int]) -> dict[str, list[Fact]]:
    """Return all that can be said of a scene, under each of `KINDS`."""
    return {
        "attribute": list(_attributes(things)),
        "position": list(_positions(things, image_wh)),
        "ordinal": list(_ordinals(things)),
        "size": list(_sizes(things)),
        "relation": list(_relations(things)),
        "negation": list(_negations(things, image_wh)),
    }


def _groups(things: Sequence[Thing], *, least: int) -> list[_Group]:
    """Return each noun with the indices of all things that it fits, where they are at least `least`."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, thing in enumerate(things):
        for noun in ("shape", thing.shape, f"{thing.color} shape", f"{thing.color} {thing.shape}"):
            groups[noun].append(index)
    return [(noun, members) for noun, members in groups.items() if len(members) >= least]


def _only(things: Sequence[Thing], members: Sequence[int], holds: _Holds) -> int | None:
    """Return the one member for which a predicate holds, if it is clearly false of all others."""
    answers = {index: holds(things[index]) for index in members}
    true = [index for index, answer in answers.items() if answer]
    return true[0] if len(true) == 1 and None not in answers.values() else None


def _in_half(direction: str, image_wh: tuple[int, int]) -> _Holds:
    """Predicate: does the center lie in that half of the image?"""
    dx, dy = _STEPS[direction]
    middle = dx * image_wh[0] / 2 + dy * image_wh[1] / 2

    def holds(thing: Thing) -> bool | None:
        beyond = thing.along(direction) - middle
        return beyond > 0 if abs(beyond) >= _HALF_GAP else None

    return holds


def _attributes(things: Sequence[Thing]) -> Iterator[Fact]:
    for noun, members in _groups(things, least=1):
        if len(members) > 1:
            continue
        yield members[0], [f"the {noun}", noun, f"the only {noun}"]
        color, _, shape = noun.partition(" ")
        if shape == "shape":
            yield members[0], [f"the {color} one", f"the one that is {color}", f"the shape in {color}"]
        elif shape:
            yield (
                members[0],
                [f"the {shape} that is {color}", f"the {shape} in {color}", f"the {color} colored {shape}"],
            )


def _positions(things: Sequence[Thing], image_wh: tuple[int, int]) -> Iterator[Fact]:
    for noun, members in _groups(things, least=2):
        for direction in _STEPS:
            first = _foremost([things[index] for index in members], direction)
            if first is not None:
                yield members[first], [text.format(noun) for text in _MOST[direction]]
            only = _only(things, members, _in_half(direction, image_wh))
            if only is not None:
                yield only, [f"the {noun} {_WHERE[direction]}", f"{direction} {noun}", f"the {direction} {noun}"]
        yield from _corners(things, (noun, members), image_wh)


def _foremost(things: Sequence[Thing], direction: str) -> int | None:
    """Return the index of the thing that is clearly ahead, both by its center and by its foremost edge."""
    *rest, first = sorted(range(len(things)), key=lambda index: things[index].along(direction))
    ahead = things[first].along(direction) - things[rest[-1]].along(direction) >= _SUPERLATIVE_GAP
    leads = all(things[first].front(direction) >= things[index].front(direction) for index in rest)
    return first if ahead and leads else None


def _corners(things: Sequence[Thing], group: _Group, image_wh: tuple[int, int]) -> Iterator[Fact]:
    noun, members = group
    for vertical, horizontal in [(a, b) for a in ("top", "bottom") for b in ("left", "right")]:
        halves = [_in_half(direction, image_wh) for direction in (vertical, horizontal)]

        def holds(thing: Thing, halves: list[_Holds] = halves) -> bool | None:
            answers = [half(thing) for half in halves]
            return False if False in answers else (None if None in answers else True)

        only = _only(things, members, holds)
        if only is not None:
            corner = f"{vertical} {horizontal}"
            yield only, [f"the {corner} {noun}", f"{noun} in the {corner}", f"the {noun} in the {corner} corner"]


def _ordinals(things: Sequence[Thing]) -> Iterator[Fact]:
    for noun, members in _groups(things, least=3):
        for direction in _STEPS:
            order = sorted(members, key=lambda index: -things[index].along(direction))
            for rank, (word, short) in _RANKS.items():
                if rank >= len(order):
                    continue
                target = order[rank - 1]
                own = things[target].along(direction)
                if all(abs(things[i].along(direction) - own) >= _ORDINAL_GAP for i in order if i != target):
                    ends = f"from the {direction}"
                    yield target, [f"the {word} {noun} {ends}", f"{short} {noun} {ends}", f"{noun} {word} {ends}"]


def _sizes(things: Sequence[Thing]) -> Iterator[Fact]:
    for noun, members in _groups(things, least=2):
        if len(members) == 2:
            small, large = sorted(members, key=lambda index: things[index].box.area)
            if _is_clearly_larger(things[large], things[small]):
                yield large, [f"the larger {noun}", f"the big {noun}", f"large {noun}"]
                yield small, [f"the smaller {noun}", f"the small {noun}", f"little {noun}"]
        for target in members:
            others = [things[index] for index in members if index != target]
            if all(_is_clearly_larger(things[target], other) for other in others):
                yield target, [f"the largest {noun}", f"the biggest {noun}", f"largest {noun}"]
            if all(_is_clearly_larger(other, things[target]) for other in others):
                yield target, [f"the smallest {noun}", f"the tiniest {noun}", f"smallest {noun}"]


def _is_clearly_larger(a: Thing, b: Thing) -> bool:
    """Compare what is visible and what was painted, so that a cut thing never misleads."""
    return a.box.area >= 1.5 * b.box.area and a.radius >= 1.2 * b.radius


def _relations(things: Sequence[Thing]) -> Iterator[Fact]:
    anchors = [(noun, members[0]) for noun, members in _groups(things, least=1) if len(members) == 1]
    for noun, members in _groups(things, least=2):
        for anchor_noun, anchor in anchors:
            others = [index for index in members if index != anchor]
            if len(others) < 2:
                continue
            for direction, texts in _BESIDE.items():
                only = _only(things, others, _beyond(things[anchor], direction))
                if only is not None:
                    yield only, [text.format(noun, anchor_noun) for text in texts]
            yield from _nearest(things, (noun, others), (anchor_noun, anchor))


def _beyond(anchor: Thing, direction: str) -> _Holds:
    """Predicate: does the center lie in that direction of the anchor's center?"""

    def holds(thing: Thing) -> bool | None:
        gap = thing.along(direction) - anchor.along(direction)
        return True if gap >= _RELATION_GAP else (False if gap <= 0 else None)

    return holds


def _nearest(things: Sequence[Thing], group: _Group, anchor: tuple[str, int]) -> Iterator[Fact]:
    noun, members = group
    anchor_noun, anchor_index = anchor
    center = things[anchor_index].box.center
    away = {index: math.dist(things[index].box.center, center) for index in members}
    first, second = sorted(members, key=lambda index: away[index])[:2]
    if away[first] <= 0.6 * away[second]:
        yield first, [f"the {noun} {word} to the {anchor_noun}" for word in ("closest", "nearest")]
        if away[first] <= _NEAR:
            yield first, [f"the {noun} {word} the {anchor_noun}" for word in ("next to", "beside", "by")]


def _negations(things: Sequence[Thing], image_wh: tuple[int, int]) -> Iterator[Fact]:
    for noun, members in _groups(things, least=2):
        here = [things[index] for index in members]
        for color in sorted({thing.color for thing in here}):
            only = _only(things, members, lambda thing, color=color: thing.color != color)  # type: ignore[misc]
            if only is not None:
                yield (
                    only,
                    [f"the {noun} that is not {color}", f"{noun} which isn't {color}", f"the non-{color} {noun}"],
                )
        for shape in sorted({thing.shape for thing in here}):
            only = _only(things, members, lambda thing, shape=shape: thing.shape != shape)  # type: ignore[misc]
            if only is not None:
                yield only, [f"the {noun} that is not a {shape}", f"{noun} which isn't a {shape}"]
        for direction in _STEPS:
            only = _only(things, members, _in_half(direction, image_wh))
            rest = [index for index in members if index != only]
            if only is not None and len(rest) == 1:
                yield rest[0], [f"the {noun} that is not {_WHERE[direction]}", f"{noun} not {_WHERE[direction]}"]
