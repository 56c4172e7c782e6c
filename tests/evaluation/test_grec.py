from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_wrapper import boxes
from llm_wrapper.evaluation.grec import answered, measure, none_curve, right_sets, rowwise_giou
from llm_wrapper.records import Box, Prediction
from tests.evaluation.made import TARGET, WRONG, made, wide

SECOND = Box(200, 200, 300, 300)


def is_right(given_boxes: Sequence[Box], targets: Sequence[Box], *, generalized: bool = False) -> bool:
    """By the definition: match the best pair, strike both out, go on; F1 = 1 where nothing is left over."""
    left, wanted = list(given_boxes), list(targets)
    while left and wanted:
        a, b = boxes.array(left), boxes.array(wanted)
        if generalized:
            overlap = rowwise_giou(np.repeat(a, len(b), axis=0), np.tile(b, (len(a), 1))).reshape(len(a), len(b))
        else:
            overlap = boxes.pairwise_iou(a, b)
        row, column = np.unravel_index(overlap.argmax(), overlap.shape)
        if overlap[row, column] < 0.5:
            return False
        del left[int(row)], wanted[int(column)]
    return not left and not wanted


def all_right(pairs: Sequence[tuple[Sequence[Box], Sequence[Box]]], *, generalized: bool = False) -> list[bool]:
    found, targets = [given_boxes for given_boxes, _ in pairs], [wanted for _, wanted in pairs]
    return right_sets(
        boxes.array([box for group in found for box in group]),
        np.array([len(group) for group in found], dtype=np.intp),
        boxes.array([box for group in targets for box in group]),
        np.array([len(group) for group in targets], dtype=np.intp),
        generalized=generalized,
    ).tolist()


@pytest.mark.parametrize(
    ("found", "targets", "right"),
    [
        pytest.param([], [], True, id="nothing-for-nothing"),
        pytest.param([TARGET], [], False, id="something-for-nothing"),
        pytest.param([], [TARGET], False, id="nothing-for-something"),
        pytest.param([wide(0.5)], [TARGET], True, id="half-is-enough"),
        pytest.param([wide(0.49)], [TARGET], False, id="less-is-not"),
        pytest.param([SECOND, TARGET], [TARGET, SECOND], True, id="any-order"),
        pytest.param([TARGET, TARGET], [TARGET, SECOND], False, id="one-found-twice"),
        pytest.param([TARGET], [TARGET, SECOND], False, id="one-of-two"),
        pytest.param([TARGET, SECOND], [TARGET], False, id="one-too-many"),
        pytest.param([wide(0.6), wide(0.8)], [TARGET, wide(0.7)], True, id="neighbours"),
    ],
)
def test_right_sets(found: list[Box], targets: list[Box], right: bool) -> None:
    assert is_right(found, targets) == right
    assert all_right([(found, targets)]) == [right]


near = st.integers(0, 30)
near_boxes = st.builds(lambda x, y, w, h: Box(x, y, x + 20 + w, y + 20 + h), near, near, near, near)
sets = st.lists(near_boxes, max_size=4)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(sets, sets), max_size=6), st.booleans())
def test_many_samples_at_once_are_those_of_the_definition(
    pairs: list[tuple[list[Box], list[Box]]], generalized: bool
) -> None:
    # The same boxes in another order, too: sets of one size alone are seldom right.
    pairs = [*pairs, *[(targets[::-1], targets) for _, targets in pairs]]
    expected = [is_right(found, targets, generalized=generalized) for found, targets in pairs]
    assert all_right(pairs, generalized=generalized) == expected


@settings(deadline=None, max_examples=50)
@given(near_boxes, near_boxes)
def test_generalised_iou_is_never_larger(a: Box, b: Box) -> None:
    giou = float(rowwise_giou(boxes.array([a]), boxes.array([b]))[0])
    assert -1 < giou <= boxes.iou(a, b) + 1e-12
    assert float(rowwise_giou(boxes.array([a]), boxes.array([a]))[0]) == pytest.approx(1)


def test_generalised_iou_by_hand() -> None:
    # Apart by a gap as wide as each: hull 3, union 2.
    a, b = np.array([[0.0, 0, 1, 1]]), np.array([[2.0, 0, 3, 1]])
    np.testing.assert_allclose(rowwise_giou(a, b), [-1 / 3])


ROWS = [
    made("right", TARGET, probability=0.9, probabilities=(0.9, 0.1), others=[WRONG]),
    made("wrong", WRONG, probability=0.6, probabilities=(0.6, 0.4), others=[TARGET]),
    made("both", TARGET, further_targets=(SECOND,), probability=0.5, probabilities=(0.5, 0.5), others=[SECOND]),
    made("nothing", None, target=None),
    made("something", WRONG, target=None, probability=0.3, probabilities=(0.3, 0.7), others=[WRONG]),
]


def test_measures_of_single_answers() -> None:
    found = measure(ROWS)
    assert (found.n_acc.value, found.n_acc.n) == (0.5, 2)
    assert (found.t_acc.value, found.t_acc.n) == (1.0, 3)
    assert (found.precision.value, found.precision.n) == (0.4, 5)
    assert found.precision_giou == found.precision


@pytest.mark.parametrize(
    ("changes", "n_acc"),
    [
        pytest.param({}, 1.0, id="none-of-these"),
        pytest.param({"decided_by": "no_candidate"}, 1.0, id="no-candidate"),
        pytest.param({"decided_by": "missing"}, 0.0, id="missing"),
        pytest.param({"decided_by": "fallback", "failure": "unusable box"}, 0.0, id="unusable"),
    ],
)
def test_only_an_answer_says_that_nothing_is_meant(changes: dict[str, Any], n_acc: float) -> None:
    found = measure([made("a", None, target=None, **changes)])
    assert (found.n_acc.value, found.precision.value, found.precision_giou.value) == (n_acc, n_acc, n_acc)


def test_with_a_least_probability_several_or_none_are_answered() -> None:
    assert answered(ROWS[2], least=0.5) == (TARGET, SECOND)
    assert answered(ROWS[1], least=0.7) == ()
    assert answered(made("a", TARGET), least=0.1) == (), "a probability that is not known is no probability"
    assert measure(ROWS, least=0.5).precision.value == 3 / 5
    assert measure(ROWS, least=0.8).n_acc.value == 1.0


def test_what_is_not_there_has_no_value() -> None:
    with_target, without = measure([ROWS[0]]), measure([ROWS[3]])
    assert (with_target.n_acc.value, with_target.t_acc.value) == (None, 1.0)
    assert (without.n_acc.value, without.t_acc.value, without.precision.value) == (1.0, None, 1.0)
    assert measure([]).precision == (None, None, 0)


def curve_by_hand(rows: Sequence[Prediction], threshold: float) -> tuple[float, float]:
    kept = [row.box is not None and (threshold == -np.inf or (row.probability or -1) >= threshold) for row in rows]
    without = [not keeps for keeps, row in zip(kept, rows, strict=True) if row.target is None]
    with_target = [keeps for keeps, row in zip(kept, rows, strict=True) if row.target is not None]
    return sum(without) / len(without), sum(with_target) / len(with_target)


def test_none_of_these_by_threshold() -> None:
    rows = [*ROWS, made("unsure", TARGET), replace(ROWS[4], sample_id="no probability", probability=None)]
    curve = none_curve(
        np.array([np.nan if row.probability is None else row.probability for row in rows]),
        np.array([row.box is not None for row in rows]),
        np.array([row.target is not None for row in rows]),
    )
    assert curve.thresholds.tolist() == [-np.inf, 0.3, 0.5, 0.6, 0.9]
    assert curve.n_acc is not None
    assert curve.t_acc is not None
    found = list(zip(curve.n_acc.tolist(), curve.t_acc.tolist(), strict=True))
    assert found == [pytest.approx(curve_by_hand(rows, threshold)) for threshold in curve.thresholds]
    assert (np.diff(curve.n_acc) >= 0).all()
    assert (np.diff(curve.t_acc) <= 0).all()


def test_a_curve_without_such_samples_has_no_values() -> None:
    everything = np.array([True])
    curve = none_curve(np.array([0.5]), everything, everything)
    assert curve.n_acc is None
    assert curve.t_acc is not None
    assert none_curve(np.empty(0), np.empty(0, dtype=bool), np.empty(0, dtype=bool)).t_acc is None
