"""Boxes of anywhere, and no detector: they are chosen among as those of a detector are, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llm_wrapper import detectors
from llm_wrapper.candidates import CandidatePolicy
from llm_wrapper.errors import DataError, ImageError, RecipeError
from llm_wrapper.recipe import LLMSection
from llm_wrapper.records import Answer, Box, Prompt
from llm_wrapper.wrapper import Wrapper
from tests.fake_llm import FakeLLM
from tests.test_wrapper import LEFT, RIGHT, picture, recipe

__all__ = ["picture"]  # a fixture

ROWS = [[100.0, 20.0, 141.0, 61.0], [10.0, 40.0, 31.0, 61.0], [20.0, 100.0, 60.0, 110.0]]
NAMES = ["square", "square", "grass"]


def chosen(boxes: object = ROWS, labels: object = NAMES, expression: object = "the left square", **options: Any) -> Any:
    wrapper = Wrapper.from_recipe({"llm": "rule"})
    return wrapper.choose(boxes, labels, expression, image_size=(160, 120), **options)


class BoxesOfSupervision:
    """As `supervision.Detections` looks."""

    xyxy, confidence = np.array(ROWS, dtype=np.float32), np.array([0.9, 0.8, 0.7], dtype=np.float32)

    def __init__(self, names: Sequence[str] | None) -> None:
        self.data = {} if names is None else {"class_name": np.array(names)}


class LabelledColumn:
    """As a `pandas.Series` of a sorted table: iterated by position, indexed by labels."""

    def __init__(self, values: Sequence[str]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __getitem__(self, label: int) -> str:
        return self.values[-1 - label]


@pytest.mark.parametrize(
    ("boxes", "labels"),
    [
        pytest.param(ROWS, LabelledColumn(NAMES), id="labelled-column"),
        pytest.param(ROWS, NAMES, id="lists"),
        pytest.param([tuple(row) for row in ROWS], tuple(NAMES), id="tuples"),
        pytest.param(np.array(ROWS, dtype=np.float32), np.array(NAMES), id="numpy"),
        pytest.param([Box(*row) for row in ROWS], NAMES, id="boxes"),
        pytest.param(BoxesOfSupervision(NAMES), None, id="supervision"),
        pytest.param(BoxesOfSupervision(None), NAMES, id="supervision-and-labels"),
    ],
)
def test_boxes_may_come_from_anywhere(boxes: object, labels: object) -> None:
    result = chosen(boxes, labels)
    assert (result.box, result.row, result.index) == (LEFT, 1, 0)
    assert [each.row for each in result.ranked] == [1, 2, 0], "behind the choice from left to right"
    assert [each.label for each in result.ranked] == [NAMES[each.row] for each in result.ranked]
    assert {each.detector for each in result.prediction.candidates} == {"given"}


def test_given_boxes_need_no_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "create_detector", lambda *_: pytest.fail("a detector was made"))
    assert chosen().box == LEFT
    assert [each.box for each in chosen(expression=["left square", "right square"])] == [LEFT, RIGHT]


def test_without_a_detector_an_image_is_refused(picture: Path) -> None:
    with pytest.raises(RecipeError, match=r"names no detector.*wrapper\.choose"):
        Wrapper.from_recipe({"llm": "rule"}).predict(picture, "left square")


def test_given_boxes_are_candidates_as_the_recipe_says() -> None:
    asked: list[Prompt] = []

    def ask(prompts: Sequence[Prompt]) -> list[Answer]:
        asked.extend(prompts)
        return [Answer(probabilities=(0.1, 0.9), mass=0.9) for _ in prompts]

    policy = CandidatePolicy(cap=2, sources=["od"], min_score=0.3)
    section = LLMSection(backend="rule", orders=3)
    wrapper = Wrapper(recipe().model_copy(update={"candidates": policy, "llm": section}), FakeLLM(ask))
    result = wrapper.choose(ROWS, NAMES, "square", image_size=(160, 120))
    assert (len(asked), len(result.prompts)) == (3, 3)
    assert result.dropped["over_cap"] == 1
    scored = wrapper.choose(ROWS, NAMES, "square", image_size=(160, 120), scores=[0.9, 0.8, 0.1])
    assert scored.dropped["low_score"] == 1
    assert [each.score for each in scored.ranked] in ([0.9, 0.8], [0.8, 0.9])


def test_boxes_without_an_image_are_drawn_on_white(tmp_path: Path) -> None:
    drawn = chosen().draw(tmp_path / "drawn.png")
    assert drawn.getpixel((drawn.width - 1, drawn.height - 1)) == (255, 255, 255)
    assert chosen().draw(image=Image.new("RGB", (160, 120))).getpixel((959, drawn.height - 1)) == (0, 0, 0)
    with pytest.raises(ImageError, match="is 10 x 10 pixels, but its boxes are of 160 x 120"):
        chosen().draw(image=Image.new("RGB", (10, 10)))


def test_no_boxes_are_no_box() -> None:
    assert (chosen([], []).box, chosen([], []).prediction.decided_by) == (None, "no_candidate")
    assert chosen(np.empty((0, 4)), []).ranked == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"boxes": [[1, 2, 3]]}, r"shape \(1, 3\), not \(n, 4\)", id="three-numbers"),
        pytest.param({"boxes": [1, 2, 3, 4]}, r"shape \(4,\)", id="one-row"),
        pytest.param({"boxes": [[1, 2, 3, 4], [1, 2]]}, "not rows of four numbers", id="ragged"),
        pytest.param({"boxes": [["a", "b", "c", "d"]]}, "not rows of four numbers", id="texts"),
        pytest.param({"boxes": 3}, "not rows of four numbers", id="no-rows"),
        pytest.param({"boxes": [*ROWS[:2], [1, 2, math.nan, 4]]}, r"boxes\[2\] .*not finite", id="nan"),
        pytest.param({"boxes": [*ROWS[:2], [9, 2, 3, 4]]}, r"boxes\[2\] .*reversed", id="reversed"),
        pytest.param({"labels": NAMES[:2]}, "2 labels for 3 boxes", id="labels"),
        pytest.param({"labels": None}, "no labels", id="no-labels"),
        pytest.param({"labels": "abc"}, "not a list", id="labels-as-text"),
        pytest.param({"labels": ["square", "", 3]}, r"2 problems(.|\n)*labels\[2\] is 3", id="labels-no-texts"),
        pytest.param({"scores": [0.5]}, "1 scores for 3 boxes", id="scores"),
        pytest.param({"scores": [0.5, 0.5, math.nan]}, r"boxes\[2\] = .*score nan", id="score-nan"),
        pytest.param({"scores": [0.5, 0.5, "high"]}, r"scores\[2\] is 'high'", id="score-text"),
        pytest.param({"expression": ""}, "is empty: say what to find", id="no-expression"),
        pytest.param({"expression": []}, "there is no expression", id="no-expressions"),
        pytest.param({"expression": ["a", 3]}, "the expression 3 is not a text", id="expression-no-text"),
        pytest.param({"boxes": np.array(ROWS) / 160}, "box_format='xyxy_norm'", id="shares"),
        pytest.param({"boxes": [[0, 0, 1, 1]] * 3}, "box_format='xyxy_norm'", id="whole-image-as-share"),
        pytest.param({"boxes": np.array(ROWS) * [6, 8, 6, 8]}, "xyxy_1000", id="thousandths"),
        pytest.param({"box_format": "xywg"}, "did you mean 'xywh'", id="unknown-format"),
    ],
)
def test_unusable_boxes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        chosen(**change)


def test_other_formats_are_converted() -> None:
    shares = np.array(ROWS) / [160, 120, 160, 120]
    assert chosen(shares, box_format="xyxy_norm").row == 1
    assert chosen([[100, 20, 41, 41], [10, 40, 21, 21], [20, 100, 40, 10]], box_format="xywh").box == LEFT


@pytest.mark.parametrize("size", [(0, 120), (160,), (160, 120, 3), None, "ab", (16.5, 9), (math.nan, 1)])
def test_an_image_size_is_two_numbers(size: object) -> None:
    with pytest.raises(DataError, match="image_size="):
        Wrapper.from_recipe({"llm": "rule"}).choose(ROWS, NAMES, "square", image_size=size)  # type: ignore[call-overload]
