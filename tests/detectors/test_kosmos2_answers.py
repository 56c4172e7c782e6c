from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llm_wrapper.detectors.kosmos2 import KOSMOS2_TASKS, MENTIONED, NUM_CELLS, read_kosmos2_answer
from tests.detectors import tiny_kosmos2 as tiny

_WH = (NUM_CELLS, 2 * NUM_CELLS)
"""With this size a cell is one pixel wide and two high, so a box can be read off its location tokens."""

_AND = "</delimiter_of_multi_objects/>"


def _cell(x: int, y: int) -> str:
    return f"<patch_index_{y * NUM_CELLS + x:04}>"


def _box(x0: int, y0: int, x1: int, y1: int) -> str:
    return _cell(x0, y0) + _cell(x1, y1)


def _said(phrase: str, *boxes: str) -> str:
    return f"<phrase> {phrase}</phrase><object>{_AND.join(boxes)}</object>"


def _read(answer: str, task: str = "caption") -> tuple[list[tuple[str, tuple[float, ...]]], int]:
    """Labels and boxes in cells, and how many were dropped."""
    found = read_kosmos2_answer(answer, task, _WH)
    assert all(item.score is None for item in found.items)
    boxes = [(x0, y0 / 2, x1, y1 / 2) for x0, y0, x1, y1 in (item.box.xyxy for item in found.items)]
    return list(zip([item.label for item in found.items], boxes, strict=True)), found.num_dropped


_DOG, _FIRE = _box(2, 3, 10, 20), _box(5, 0, 15, 28)
_DOG_AT, _FIRE_AT = (2.5, 3.5, 10.5, 20.5), (5.5, 0.5, 15.5, 28.5)


_CUT = f"{_said('a', _DOG)}<phrase> b</phrase>"
_CHAT = "<|im_end|>\n<|im_start|>user"


@pytest.mark.parametrize("task", KOSMOS2_TASKS)
@pytest.mark.parametrize(
    ("answer", "found", "num_dropped"),
    [
        pytest.param(f"<grounding>{_said('a dog', _DOG)}", [("a dog", _DOG_AT)], 0, id="one"),
        pytest.param(
            f"<grounding> An image of{_said('a dog', _DOG)} by{_said('a fire', _FIRE)}.",
            [("a dog", _DOG_AT), ("a fire", _FIRE_AT)],
            0,
            id="two-phrases",
        ),
        pytest.param(_said("dogs", _DOG, _FIRE), [("dogs", _DOG_AT), ("dogs", _FIRE_AT)], 0, id="two-boxes"),
        pytest.param(_said("dog", _DOG, _DOG) + _said("dog", _DOG), [("dog", _DOG_AT)] * 3, 0, id="repeated"),
        pytest.param(_said("dog", _box(10, 3, 2, 20), _DOG), [("dog", _DOG_AT)], 1, id="reversed"),
        pytest.param(_said("dog", _box(5, 3, 4, 3), _box(4, 3, 4, 2)), [], 2, id="reversed-by-one-cell"),
        pytest.param(_said("a", _box(7, 9, 7, 9)), [("a", (7, 9, 8, 10))], 0, id="one-cell"),
        pytest.param(_said("a", _box(7, 9, 12, 9)), [("a", (7, 9, 13, 10))], 0, id="one-row"),
        pytest.param(_said("a", _box(7, 9, 7, 12)), [("a", (7, 9, 8, 13))], 0, id="one-column"),
        pytest.param(_said("a", _box(0, 0, 31, 31)), [("a", (0.5, 0.5, 31.5, 31.5))], 0, id="whole-image"),
        pytest.param(_said("a", _box(0, 0, 3, 90)), [("a", (0.5, 0.5, 3.5, 90.5))], 0, id="out-of-range"),
        pytest.param(f"{_CUT}<object>{_FIRE}", [("a", _DOG_AT), ("b", _FIRE_AT)], 0, id="cut-after-a-box"),
        pytest.param(
            f"{_CUT}<object>{_FIRE}{_AND}{_cell(1, 2)}", [("a", _DOG_AT), ("b", _FIRE_AT)], 1, id="cut-in-a-box"
        ),
        pytest.param(f"{_CUT}<object>{_FIRE}{_AND}", [("a", _DOG_AT), ("b", _FIRE_AT)], 1, id="cut-before-a-box"),
        pytest.param(f"{_CUT}<obj", [("a", _DOG_AT)], 0, id="cut-after-a-phrase"),
        pytest.param(f"{_said('a', _DOG)} and<phrase> a long lab", [("a", _DOG_AT)], 0, id="cut-in-a-phrase"),
        pytest.param(_said("a", _DOG + _FIRE) + _said("b", _DOG), [("b", _DOG_AT)], 1, id="four-locations"),
        pytest.param(_said("a", "") + _said("b", _DOG), [("b", _DOG_AT)], 1, id="empty-object"),
        pytest.param(f"<object>{_DOG}</object>{_said('b', _FIRE)}", [("", _DOG_AT), ("b", _FIRE_AT)], 0, id="bare"),
        pytest.param(f"<phrase></phrase><object>{_DOG}</object>", [("", _DOG_AT)], 0, id="empty-phrase"),
        pytest.param(f"<phrase> a dog</phrase> and{_said('b', _DOG)}", [("b", _DOG_AT)], 0, id="phrase-without-box"),
        pytest.param(f"<phrase> a <phrase> b</phrase><object>{_DOG}</object>", [("b", _DOG_AT)], 0, id="open-phrase"),
        pytest.param(_said("one\ntwo\r\nthree", _DOG), [("one\ntwo\r\nthree", _DOG_AT)], 0, id="line-breaks"),
        pytest.param(_said(_CHAT, _DOG), [(_CHAT, _DOG_AT)], 0, id="chat-tokens"),
        pytest.param(_said(" café ☕ 犬 ", _DOG), [("café ☕ 犬", _DOG_AT)], 0, id="not-ascii"),
        pytest.param("", [], 0, id="empty"),
        pytest.param("<grounding><phrase> a dog</phrase>", [], 0, id="nothing-said"),
        pytest.param("<object><patch_index_x><patch_index_>", [], 1, id="no-locations"),
        pytest.param("<object>" + "<patch_index_99999999999999999>" * 2, [], 1, id="no-such-locations"),
        pytest.param("<phrase>" * 20_000 + "a" * 20_000 + "<" * 20_000, [], 0, id="endless"),
    ],
)
def test_answers(task: str, answer: str, found: list[Any], num_dropped: int) -> None:
    assert _read(answer, task) == ([(label, pytest.approx(box)) for label, box in found], num_dropped)


@pytest.mark.parametrize(
    "said",
    [lambda boxes: _said("thing", *boxes), lambda boxes: "".join(_said("thing", box) for box in boxes)],
    ids=["one-phrase", "many-phrases"],
)
def test_three_hundred_boxes_keep_their_order(said: Callable[[list[str]], str]) -> None:
    corners = [(i % 20, i // 20, i % 20 + 2, i // 20 + 3) for i in range(300)]
    found, num_dropped = _read("<grounding> An image of" + said([_box(*corner) for corner in corners]))
    assert [box for _, box in found] == [tuple(pytest.approx(at + 0.5) for at in corner) for corner in corners]
    assert {label for label, _ in found} == {"thing"}
    assert num_dropped == 0


def test_only_the_phrase_that_was_asked_is_answered() -> None:
    answer = f"<grounding>{_said('a dog', _DOG)} and{_said('a fire', _FIRE)} by{_said('a dog', _FIRE)}"
    answer += f"<object>{_DOG}</object>"
    found = read_kosmos2_answer(answer, "rec", _WH, expression="a dog")
    assert [(item.label, item.source) for item in found.items] == [
        ("a dog", "rec"),
        ("a fire", MENTIONED),
        ("a dog", "rec"),
        ("", MENTIONED),
    ]
    assert {item.source for item in read_kosmos2_answer(answer, "caption", _WH).items} == {"caption"}


def _theirs(answer: str, image_wh: tuple[int, int]) -> list[tuple[str, Any]]:
    """What the processor of transformers reads, without what is no box."""
    _, entities = tiny.processor().post_process_generation(answer)
    scaled = [
        (label, tuple(at * side for at, side in zip(box, image_wh * 2, strict=True)))
        for label, _, boxes in entities
        for box in boxes
    ]
    return [(label, pytest.approx(box)) for label, box in scaled if box[0] < box[2] and box[1] < box[3]]


@pytest.mark.parametrize(
    "answer",
    [
        f"<grounding>{_said('a dog', _DOG)}",
        "<grounding> An image of<phrase> a snowman</phrase><object><patch_index_0044><patch_index_0863></object> "
        "warming himself by<phrase> a fire</phrase><object><patch_index_0005><patch_index_0911></object>.",
        _said("dogs", _DOG, _FIRE, _box(1, 1, 1, 5)) + _said("hats", _box(9, 9, 2, 2), _DOG),
        _said("one\ntwo", _DOG) + " and <phrase> no box</phrase>.",
        "<grounding> An image of nothing",
    ],
    ids=["one", "documented", "several", "line-break", "empty"],
)
@pytest.mark.parametrize("image_wh", [(640, 427), (1, 1), (20_000, 7)], ids=str)
def test_the_processor_of_transformers_reads_the_same(answer: str, image_wh: tuple[int, int]) -> None:
    found = read_kosmos2_answer(answer, "caption", image_wh).items
    assert [(item.label, item.box.xyxy) for item in found] == _theirs(answer, image_wh)


def test_the_processor_of_transformers_reads_the_same_boxes_from_any_two_cells() -> None:
    rng = np.random.default_rng(0)
    cells = rng.integers(0, NUM_CELLS**2, (3000, 2))
    beside = np.arange(NUM_CELLS**2)[:, None] + [[0, 1]]
    pairs = np.concatenate([cells, beside[:-1], beside[:-1, ::-1]]).tolist()
    answer = _said("a", *(f"<patch_index_{one:04}><patch_index_{two:04}>" for one, two in pairs))
    found = read_kosmos2_answer(answer, "caption", (640, 427))
    assert len(found.items) + found.num_dropped == len(pairs)
    boxes = [box for _, box in _theirs(answer, (640, 427))]
    assert len(boxes) > 1000
    assert [item.box.xyxy for item in found.items] == boxes
