""""""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llm_wrapper.evaluation.comparison import pair_predictions
from llm_wrapper.evaluation.slices import (
    UNKNOWN,
    by_slice,
    differences_by_slice,
    distractors,
    masks,
    recall,
    target_shares,
)
from llm_wrapper.records import Box, Candidate, Prediction
from tests.evaluation.made import TARGET, WRONG, made, wide


def slice_of(family: str, prediction: Prediction) -> list[str]:
    return [name for name, mask in masks([prediction])[family].items() if mask[0]]


def candidate(box: Box, label: str) -> Candidate:
    return Candidate(box, label, None, "flo2", "od")


def with_labels(*pairs: tuple[Box, str]) -> Prediction:
    return made("a", None, candidates=tuple(candidate(box, label) for box, label in pairs))


@pytest.mark.parametrize(
    ("prediction", "count"),
    [
        pytest.param(with_labels((TARGET, "cat")), 0, id="alone"),
        pytest.param(with_labels((TARGET, "cat"), (WRONG, "Cat "), (WRONG, "dog")), 1, id="case-does-not-matter"),
        pytest.param(with_labels((wide(0.9), "dog"), (TARGET, "cat"), (WRONG, "dog")), 0, id="the-best-one-names-it"),
        pytest.param(with_labels((TARGET, "cat"), (wide(0.9), "cat")), 0, id="the-target-again"),
        pytest.param(with_labels((wide(0.5), "cat"), (WRONG, "cat")), None, id="missed"),
        pytest.param(made("a", None), None, id="no-candidate"),
        pytest.param(made("a", TARGET, others=[WRONG], target=None), None, id="no-target"),
    ],
)
def test_distractors(prediction: Prediction, count: int | None) -> None:
    found = distractors([made("before", TARGET, others=[WRONG, WRONG]), prediction])
    np.testing.assert_array_equal(found, [2, np.nan if count is None else count])


def test_target_shares() -> None:
    rows = [made("a", image_wh=(200, 500)), made("b"), made("c", target=None, image_wh=(200, 500))]
    np.testing.assert_array_equal(target_shares(rows), [0.1, np.nan, np.nan])


@pytest.mark.parametrize(
    ("family", "changes", "name"),
    [
        ("size", {"image_wh": (1001, 1000)}, "tiny (< 1 %)"),
        ("size", {"image_wh": (1000, 1000)}, "small (< 5 %)"),
        ("size", {"image_wh": (200, 250)}, "big"),
        ("size", {}, UNKNOWN),
        ("length", {"expression": "cat"}, "1 to 2 words"),
        ("length", {"expression": "the  left-most, big cat"}, "3 to 5 words"),
        ("length", {"expression": "a " * 20}, "11 to 20 words"),
        ("length", {"expression": "a " * 21}, "over 20 words"),
        ("length", {"expression": "?"}, UNKNOWN),
        ("candidates", {}, "none"),
        ("candidates", {"box": TARGET, "candidates": ()}, UNKNOWN),
        ("candidates", {"candidates": (candidate(WRONG, "x"),) * 10}, "10 or more"),
        ("distractors", {}, UNKNOWN),
        ("distractors", {"candidates": (candidate(TARGET, "x"), *(candidate(WRONG, "x"),) * 4)}, "4 or more"),
    ],
)
def test_bounds(family: str, changes: dict[str, object], name: str) -> None:
    assert slice_of(family, made("a", **changes)) == [name]


def test_every_family_but_kinds_divides_all() -> None:
    rows = [made(str(i), TARGET, others=[WRONG] * i, expression="red cat " * i) for i in range(12)]
    for family, slices in masks(rows).items():
        total = np.sum(list(slices.values()), axis=0)
        assert (total >= 1).all()
        assert family == "kind" or (total == 1).all()
    assert slice_of("kind", made("a", expression="red cat on the left")) == ["left_right", "colour"]


def test_an_empty_slice_has_no_data() -> None:
    found = by_slice([made("a", TARGET, expression="left cat"), made("b", WRONG, expression="left dog")])
    assert [*found] == ["kind", "distractors", "length", "size", "candidates"]
    assert found["kind"]["left_right"] == (0.5, (0.0, 1.0), 2)
    assert found["kind"]["negation"] == (None, None, 0)
    assert {each.value for slices in by_slice([]).values() for each in slices.values()} == {None}
    assert by_slice([made("a", TARGET, target=None)]) == by_slice([])


def test_differences_are_sliced_by_the_first_system() -> None:
    a = [made("a", TARGET, others=[WRONG]), made("b", TARGET)]
    b = [replace(a[0], system="t", box=WRONG, candidates=()), replace(a[1], system="t")]
    found = differences_by_slice(pair_predictions(a, b))
    assert found["candidates"]["2 to 4"] == (1.0, None, 1)
    assert found["candidates"]["1"] == (0.0, None, 1)
    assert found["candidates"]["none"] == (None, None, 0)
    assert found["kind"]["left_right"].value == 0.5


def test_the_shown_order_does_not_matter() -> None:
    shown = made("a", WRONG, others=[TARGET])
    first: Prediction = replace(
        shown, candidates=(replace(shown.candidates[0], source="rec"), shown.candidates[1]), origins=(0, 1)
    )
    second = replace(first, candidates=first.candidates[::-1], origins=(1, 0))
    assert recall([first], ranks=(1, 2)) == recall([second], ranks=(1, 2)) == {1: (0.0, None, 1), 2: (1.0, None, 1)}


def test_without_the_detectors_order_there_is_no_recall() -> None:
    assert recall([made("a", TARGET)]) is None
    assert recall([made("a", None)], ranks=(1,)) == {1: (0.0, None, 1)}


def test_of_boxes_from_elsewhere_recall_is_not_known() -> None:
    assert recall([made("a", TARGET, candidates=()), made("b", None)]) is None
