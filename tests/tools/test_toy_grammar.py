from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import cache

import pytest
from toy_grammar import KINDS, Thing, all_facts, describe
from toy_scenes import Scene, make_scene

from llm_wrapper.detectors.toy import HUES, OUTLINES
from llm_wrapper.records import Box

NUM_CHECKED = 15


@cache
def scene(split: str, index: int) -> Scene:
    return make_scene(split, index)


def thing(x: float, y: float, *, shape: str = "star", color: str = "red", size: float = 20) -> Thing:
    return Thing(shape, color, Box(x - size / 2, y - size / 2, x + size / 2, y + size / 2), size / 2)


# --- an independent reading of the expressions ---------------------------------------------------------------------

NOUN = rf"(?P<noun>(?:(?:{'|'.join(HUES)}) )?(?:shape|{'|'.join(OUTLINES)}))"
SIDE = r"(?P<side>left|right|top|bottom)"
AXIS = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}
WORDS = {"second": 1, "2nd": 1, "third": 2, "3rd": 2, "topmost": "top", "highest": "top", "lowest": "bottom"}


def fitting(things: tuple[Thing, ...], noun: str) -> list[Thing]:
    words = set(noun.split()) - {"shape"}
    return [one for one in things if words <= {one.color, one.shape}]


def in_order(things: list[Thing], side: str) -> list[Thing]:
    axis, sign = AXIS[side]
    return sorted(things, key=lambda one: sign * one.box.center[axis])


def read_attribute(found: re.Match[str], things: tuple[Thing, ...]) -> list[Thing]:
    """Whatever the sentence, the words for color and shape in it say it all."""
    return fitting(things, " ".join(word for word in found[0].split() if word in {*HUES, *OUTLINES}))


def read_corner(found: re.Match[str], things: tuple[Thing, ...]) -> list[Thing]:
    right, low = "right" in found[0], "bottom" in found[0]
    here = fitting(things, found["noun"])
    return [one for one in here if (one.box.center[0] > 120, one.box.center[1] > 90) == (right, low)]


def read_first(found: re.Match[str], things: tuple[Thing, ...]) -> list[Thing]:
    side = str(WORDS.get(found["side"], found["side"].removesuffix("most")))
    return in_order(fitting(things, found["noun"]), side)[:1]


def read_half(found: re.Match[str], things: tuple[Thing, ...]) -> list[Thing]:
    axis, sign = AXIS[found["side"]]
    middle = (120, 90)[axis]
    return [one for one in fitting(things, found["noun"]) if sign * (one.box.center[axis] - middle) < 0]


def read_rank(found: re.Match[str], things: tuple[Thing, ...]) -> list[Thing]:
    return [in_order(fitting(things, found["noun"]), found["side"])[int(WORDS[found["rank"]])]]


def read_size(found: re.Match[str], things: tuple[Thing, ...]) -> list[Thing]:
    order = sorted(fitting(things, found["noun"]), key=lambda one: one.box.area)
    return [order[-1 if found["word"] in ("largest", "biggest", "larger", "big", "large") else 0]]


def read_beside(found: re.Match[str], things: tuple[Thing, ...]) -> list[Thing]:
    (anchor,) = fitting(things, found["anchor"])
    side = {"above": "top", "over": "top", "higher": "top"}.get(found["side"], found["side"])
    axis, sign = AXIS["bottom" if side in ("below", "under", "lower") else side]
    candidates = [one for one in fitting(things, found["noun"]) if one is not anchor]
    return [one for one in candidates if sign * (one.box.center[axis] - anchor.box.center[axis]) < 0]


def read_near(found: re.Match[str], things: tuple[Thing, ...]) -> list[Thing]:
    (anchor,) = fitting(things, found["anchor"])
    candidates = [one for one in fitting(things, found["noun"]) if one is not anchor]
    (ax, ay) = anchor.box.center
    return sorted(candidates, key=lambda one: (one.box.center[0] - ax) ** 2 + (one.box.center[1] - ay) ** 2)[:1]


def read_not(found: re.Match[str], things: tuple[Thing, ...]) -> list[Thing]:
    return [one for one in fitting(things, found["noun"]) if found["word"] not in (one.color, one.shape)]


def read_not_half(found: re.Match[str], things: tuple[Thing, ...]) -> list[Thing]:
    there = read_half(found, things)
    return [one for one in fitting(things, found["noun"]) if one not in there]


ANCHOR = NOUN.replace("noun", "anchor")
LEFT_RIGHT = r"(?:to the )?(?:on the )?(?P<side>left|right)(?: side)? of"
UP_DOWN = r"(?P<side>above|over|higher|below|under|lower)(?: up than| down than)?"
READERS: list[tuple[str, str, Callable[[re.Match[str], tuple[Thing, ...]], list[Thing]]]] = [
    ("attribute", r".*", read_attribute),
    ("position", rf"the (?P<side>leftmost|rightmost|topmost|bottommost|highest|lowest) {NOUN}", read_first),
    ("position", rf"{NOUN} (?:furthest to|nearest) the {SIDE}(?: edge)?", read_first),
    ("position", rf"the far {SIDE} {NOUN}", read_first),
    ("position", rf"the {NOUN} (?:on|at) the {SIDE}", read_half),
    ("position", rf"(?:the )?{SIDE} {NOUN}", read_half),
    ("position", rf"the (?:top|bottom) (?:left|right) {NOUN}", read_corner),
    ("position", rf"(?:the )?{NOUN} in the (?:top|bottom) (?:left|right)(?: corner)?", read_corner),
    ("ordinal", rf"(?:the )?(?P<rank>second|2nd|third|3rd) {NOUN} from the {SIDE}", read_rank),
    ("ordinal", rf"{NOUN} (?P<rank>second|third) from the {SIDE}", read_rank),
    ("size", rf"(?:the )?(?P<word>\w+) {NOUN}", read_size),
    ("relation", rf"(?:the )?{NOUN} {LEFT_RIGHT} the {ANCHOR}", read_beside),
    ("relation", rf"(?:the )?{NOUN} {UP_DOWN} the {ANCHOR}", read_beside),
    ("relation", rf"the {NOUN} (?:closest to|nearest to|next to|beside|by) the {ANCHOR}", read_near),
    ("negation", rf"(?:the )?{NOUN} (?:that is not|which isn't) (?:a )?(?P<word>(?!on|at)\w+)", read_not),
    ("negation", rf"the non-(?P<word>\w+) {NOUN}", read_not),
    ("negation", rf"(?:the )?{NOUN} (?:that is )?not (?:on|at) the {SIDE}", read_not_half),
]


@pytest.mark.parametrize("kind", KINDS)
def test_expressions_are_true_of_the_target_alone(kind: str) -> None:
    for index in range(NUM_CHECKED):
        made = scene("val", index)
        (expression,) = [one for one in made.expressions if one.kind == kind]
        matches = [(re.fullmatch(pattern, expression.text), reader) for of, pattern, reader in READERS if of == kind]
        found, reader = next((match, reader) for match, reader in matches if match)
        assert reader(found, made.things) == [made.things[expression.target]], expression


# --- the grammar on scenes laid by hand ----------------------------------------------------------------------------


def said(things: list[Thing]) -> set[tuple[str, int]]:
    facts = [fact for of_kind in all_facts(things, (240, 180)).values() for fact in of_kind]
    return {(text, target) for target, texts in facts for text in texts}


CLEAR = [
    thing(30, 40),
    thing(90, 140, color="blue"),
    thing(150, 35, color="blue", size=44),
    thing(215, 100, shape="circle"),
]


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("the only red star", 0),
        ("the leftmost star", 0),
        ("the second star from the left", 1),
        ("the largest star", 2),
        ("the star closest to the red circle", None),
        ("the non-blue star", 0),
        ("the non-red star", None),
        ("the rightmost circle", None),
        ("the third star from the left", None),
    ],
)
def test_what_can_be_said_of_a_clear_scene(text: str, target: int | None) -> None:
    assert {index for other, index in said(CLEAR) if other == text} == ({target} if target is not None else set())


@pytest.mark.parametrize(
    ("clear", "unclear", "text"),
    [
        ([thing(30, 40), thing(70, 140)], [thing(30, 40), thing(40, 140)], "the leftmost red star"),
        ([thing(70, 140), thing(100, 40, size=70)], [thing(70, 140), thing(100, 40, size=98)], "the leftmost red star"),
        ([thing(80, 20), thing(215, 20)], [thing(112, 20), thing(215, 20)], "left red star"),
        ([thing(30, 40), thing(30, 150, size=26)], [thing(30, 40), thing(30, 150, size=23)], "the larger red star"),
    ],
    ids=["nearly as far left", "an edge further left", "near the middle", "nearly as large"],
)
def test_what_could_be_argued_is_not_said(clear: list[Thing], unclear: list[Thing], text: str) -> None:
    assert text in {other for other, _ in said([*clear, *CLEAR[1:]])}
    assert text not in {other for other, _ in said([*unclear, *CLEAR[1:]])}


@pytest.mark.parametrize("things", [[], CLEAR[:1], CLEAR[:2]], ids=["empty", "one", "two"])
def test_a_scene_without_all_kinds_is_refused(things: list[Thing]) -> None:
    assert describe(random.Random(0), things, (240, 180)) is None
