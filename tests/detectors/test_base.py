from __future__ import annotations

import math

import pytest

from llm_wrapper.detectors.base import detections_from_raw

BOX = [1.0, 2.0, 30.0, 40.0]


@pytest.mark.parametrize(
    ("score", "expected", "is_logged"),
    [
        pytest.param(0.5, 0.5, False, id="number"),
        pytest.param(None, None, False, id="none"),
        pytest.param(math.nan, None, True, id="nan"),
        pytest.param(math.inf, None, True, id="infinite"),
    ],
)
def test_a_box_stays_whatever_its_score(
    score: float | None, expected: float | None, is_logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    found = detections_from_raw([(BOX, "cat", score), (BOX, "dog", 0.25)], "od")
    assert [(each.label, each.score) for each in found.items] == [("cat", expected), ("dog", 0.25)]
    assert found.num_dropped == 0
    assert ("od: scores that are not finite: 1;" in caplog.text) == is_logged


@pytest.mark.parametrize(
    "numbers",
    [[30, 2, 1, 40], [1, 2, 1, 40], [math.nan, 2, 3, 4], [1, 2, 3]],
    ids=["reversed", "no-area", "nan", "three"],
)
def test_what_is_no_box_is_dropped_and_counted(numbers: list[float]) -> None:
    found = detections_from_raw([(numbers, "cat", 0.5), (BOX, "dog", None)], "od")
    assert ([each.label for each in found.items], found.num_dropped) == (["dog"], 1)
