from __future__ import annotations

from typing import Any

import pytest

from llm_wrapper.detectors.florence2 import FLORENCE2_TASKS, LOCATION_BINS, read_florence2_answer
from llm_wrapper.detectors.prompted import clean_expression
from tests.detectors import tiny_florence2 as tiny

_WH = (LOCATION_BINS, 2 * LOCATION_BINS)
"""With this size a bin is one pixel wide and two high, so a box can be read off its location tokens."""


def _locs(*bins: int) -> str:
    return "".join(f"<loc_{number}>" for number in bins)


def _read(answer: str, task: str = "od", **options: Any) -> tuple[list[tuple[str, tuple[float, ...]]], int]:
    """Labels and boxes in bins, and how many were dropped."""
    found = read_florence2_answer(answer, task, _WH, **options)
    assert all(item.score is None and item.source == task for item in found.items)
    boxes = [(x0 - 0.5, y0 / 2 - 0.5, x1 - 0.5, y1 / 2 - 0.5) for x0, y0, x1, y1 in (i.box.xyxy for i in found.items)]
    return list(zip([item.label for item in found.items], boxes, strict=True)), found.num_dropped


_SHIRT, _DOG = (52, 332, 932, 774), (1, 2, 30, 40)
_POLYGON = (10, 20, 30, 5, 50, 60)


@pytest.mark.parametrize("task", FLORENCE2_TASKS)
@pytest.mark.parametrize(
    ("answer", "found", "num_dropped"),
    [
        pytest.param(f"red shirt{_locs(*_SHIRT)}", [("red shirt", _SHIRT)], 0, id="bare"),
        pytest.param(f"</s><s>red shirt{_locs(*_SHIRT)}</s><pad><pad>", [("red shirt", _SHIRT)], 0, id="ends"),
        pytest.param(f"a{_locs(*_SHIRT)}b c{_locs(*_DOG)}", [("a", _SHIRT), ("b c", _DOG)], 0, id="two"),
        pytest.param(f"dog{_locs(*_SHIRT, *_DOG)}", [("dog", _SHIRT), ("dog", _DOG)], 0, id="two-of-one-label"),
        pytest.param(f"dog{_locs(*_DOG)}dog{_locs(*_DOG)}", [("dog", _DOG)] * 2, 0, id="repeated"),
        pytest.param(f"a{_locs(90, 2, 30, 40)}b{_locs(*_DOG)}", [("b", _DOG)], 1, id="reversed"),
        pytest.param(f"a{_locs(5, 2, 5, 40)}", [], 1, id="no-area"),
        pytest.param(f"a{_locs(0, 0, 1200, 5000)}", [("a", (0, 0, 1200, 5000))], 0, id="out-of-range"),
        pytest.param(f"a{_locs(*_DOG)}b{_locs(1, 2, 3)}", [("a", _DOG)], 1, id="cut-in-a-box"),
        pytest.param(f"a{_locs(*_DOG, 7, 8)}b{_locs(*_SHIRT)}", [("a", _DOG), ("b", _SHIRT)], 1, id="six-locations"),
        pytest.param(f"a{_locs(*_DOG)}a long lab", [("a", _DOG)], 0, id="cut-in-a-label"),
        pytest.param(f"a{_locs(*_DOG)}b<loc_1><loc_", [("a", _DOG)], 1, id="cut-in-a-token"),
        pytest.param(_locs(*_DOG) + f"b{_locs(*_SHIRT)}", [("", _DOG), ("b", _SHIRT)], 0, id="no-label"),
        pytest.param(f"one\ntwo\r\nthree{_locs(*_DOG)}", [("one\ntwo\r\nthree", _DOG)], 0, id="line-breaks"),
        pytest.param(f"  café ☕ 犬 {_locs(*_DOG)}", [("café ☕ 犬", _DOG)], 0, id="not-ascii"),
        pytest.param(f"<od>a{_locs(*_DOG)}</od><and>", [("a", _DOG)], 0, id="other-special-tokens"),
        pytest.param(f"a < b > c{_locs(*_DOG)}", [("c", _DOG)], 0, id="brackets-in-a-label"),
        pytest.param("", [], 0, id="empty"),
        pytest.param("</s><s></s>", [], 0, id="nothing-said"),
        pytest.param("a dog, without a box", [], 0, id="text-alone"),
        pytest.param("a<loc_x><loc_><loc_-1>" + "<loc_99999999999999999>" * 4, [], 0, id="no-locations"),
        pytest.param("a" * 20_000 + "<" * 20_000, [], 0, id="endless"),
    ],
)
def test_answers(task: str, answer: str, found: list[Any], num_dropped: int) -> None:
    assert _read(answer, task) == ([(label, pytest.approx(box)) for label, box in found], num_dropped)


def test_three_hundred_boxes_keep_their_order() -> None:
    boxes = [(i, 2 * i, i + 100, 2 * i + 50) for i in range(300)]
    found, num_dropped = _read("</s><s>" + "".join(f"thing {i}{_locs(*box)}" for i, box in enumerate(boxes)))
    assert [label for label, _ in found] == [f"thing {i}" for i in range(300)]
    assert [box for _, box in found] == [pytest.approx(box) for box in boxes]
    assert num_dropped == 0


@pytest.mark.parametrize(
    ("answer", "found", "num_dropped"),
    [
        pytest.param(f"hat<poly>{_locs(*_POLYGON)}</poly>", [("hat", (10, 5, 50, 60))], 0, id="polygon"),
        pytest.param(
            f"hat<poly>{_locs(*_POLYGON)}<sep>{_locs(1, 70, 90, 2)}</poly>", [("hat", (1, 2, 90, 70))], 0, id="parts"
        ),
        pytest.param(
            f"hat<poly>{_locs(*_POLYGON)}</poly><poly>{_locs(1, 2, 3, 4)}</poly>cat{_locs(*_DOG)}",
            [("hat", (10, 5, 50, 60)), ("hat", (1, 2, 3, 4)), ("cat", _DOG)],
            0,
            id="two-polygons-and-a-box",
        ),
        pytest.param(f"hat<poly>{_locs(*_POLYGON, 999)}</poly>", [("hat", (10, 5, 50, 60))], 0, id="odd-coordinate"),
        pytest.param(
            f"hat<poly>{_locs(7)}<sep>{_locs(*_POLYGON)}</poly>", [("hat", (10, 5, 50, 60))], 0, id="odd-part"
        ),
        pytest.param(f"hat<poly>{_locs(1, 2)}</poly>b{_locs(*_DOG)}", [("b", _DOG)], 1, id="one-point"),
        pytest.param(f"hat<poly>{_locs(1)}</poly>", [], 1, id="half-a-point"),
        pytest.param("hat<poly></poly>", [], 1, id="empty-polygon"),
        pytest.param(f"hat<poly>{_locs(1, 2, 9, 2, 30, 2)}</poly>", [], 1, id="flat"),
        pytest.param(
            f"a<poly>{_locs(*_POLYGON)}</poly>b<poly>{_locs(*_POLYGON)}", [("a", (10, 5, 50, 60))], 1, id="cut-short"
        ),
        pytest.param(f"a{_locs(*_DOG)}<poly>{_locs(1, 2, 3)}", [("a", _DOG)], 1, id="box-then-cut-polygon"),
        pytest.param(f"a</poly>{_locs(*_DOG)}<sep>", [("a", _DOG)], 0, id="stray-marks"),
    ],
)
def test_polygons_become_their_bounding_boxes(answer: str, found: list[Any], num_dropped: int) -> None:
    assert _read(answer, "rec") == ([(label, pytest.approx(box)) for label, box in found], num_dropped)


@pytest.mark.parametrize("task", FLORENCE2_TASKS)
def test_phrases_that_ground_nothing_are_left_out_of_grounding_alone(task: str) -> None:
    answer = f"it{_locs(*_SHIRT)} the image {_locs(*_SHIRT)}the dog{_locs(*_DOG)}"
    found, num_dropped = _read(answer, task, banned_phrases={"it", "the image"})
    assert [label for label, _ in found] == (["the dog"] if task == "grounding" else ["it", "the image", "the dog"])
    assert num_dropped == 0


@pytest.mark.parametrize("image_wh", [(640, 480), (1, 1), (20_000, 7)], ids=str)
def test_a_location_is_the_middle_of_its_bin(image_wh: tuple[int, int]) -> None:
    width, height = image_wh
    (item,) = read_florence2_answer(f"a{_locs(0, 499, 999, 500)}", "od", image_wh).items
    expected = (0.0005 * width, 0.4995 * height, 0.9995 * width, 0.5005 * height)
    assert item.box.xyxy == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("task", FLORENCE2_TASKS)
@pytest.mark.parametrize(
    "answer",
    [
        f"</s><s>red shirt{_locs(*_SHIRT)}</s>",
        f"</s><s>car{_locs(53, 334, 933, 775)}door handle{_locs(425, 504, 474, 516, 1, 2, 3, 4)}</s><pad>",
        f"</s><s>the image{_locs(*_SHIRT)}the dog{_locs(*_DOG, *_SHIRT)}</s>",
        f"</s><s>cut short{_locs(*_DOG)}again{_locs(1, 2, 3)}",
        "</s><s></s>",
    ],
    ids=["one", "several", "banned", "cut", "empty"],
)
def test_the_processor_of_transformers_reads_the_same(task: str, answer: str) -> None:
    token, image_wh = FLORENCE2_TASKS[task].prompt, (640, 427)
    theirs = tiny.processor().post_process_generation(text=answer, task=token, image_size=image_wh)[token]
    boxes = theirs["bboxes"]
    labels = theirs["bboxes_labels" if task == "rec" else "labels"]
    ours = read_florence2_answer(answer, task, image_wh, banned_phrases=tiny.BANNED).items
    assert [item.label for item in ours] == labels
    # It cuts to whole pixels, in single precision.
    for item, box in zip(ours, boxes, strict=True):
        assert all(-1e-3 <= mine - other < 1 for mine, other in zip(item.box.xyxy, box, strict=True))


def test_the_processor_of_transformers_reads_the_same_polygons() -> None:
    answer, token = (
        f"</s><s>hat<poly>{_locs(*_POLYGON)}<sep>{_locs(1, 70, 90, 2)}</poly></s>",
        FLORENCE2_TASKS["rec"].prompt,
    )
    theirs = tiny.processor().post_process_generation(text=answer, task=token, image_size=(1000, 1000))[token]
    assert theirs["polygons"] == [[[*_POLYGON], [1, 70, 90, 2]]]
    (item,) = read_florence2_answer(answer, "rec", (1000, 1000)).items
    assert [item.label] == theirs["polygons_labels"]
    assert item.box.xyxy == (1.5, 2.5, 90.5, 70.5)


@pytest.mark.parametrize(
    ("expression", "asked"),
    [
        pytest.param("the left dog", "the left dog", id="plain"),
        pytest.param("  two\n lines\tand\x00more \u2028 ", "two lines and more", id="blanks"),
        pytest.param("<OD> a <loc_5></s><image>", "(OD) a (loc_5)(/s)(image)", id="tokens"),
        pytest.param("{input} {0} 100%", "{input} {0} 100%", id="braces"),
        pytest.param("犬と café, Ünï", "犬と café, Ünï", id="scripts"),
        pytest.param("a\ud800b", "a b", id="lone-surrogate"),
        pytest.param("\u200b\n ", "", id="nothing-left"),
        pytest.param("", "", id="empty"),
    ],
)
def test_expressions_are_made_harmless(expression: str, asked: str) -> None:
    assert clean_expression(expression) == asked
