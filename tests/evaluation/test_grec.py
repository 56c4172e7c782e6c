"""GREC's measures, "none of these", and its threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_wrapper import boxes
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.evaluation import calibration, comparison, systems
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation.calibration import measure_grec, rowwise_giou
from llm_wrapper.evaluation.comparison import compare_systems
from llm_wrapper.metrics import summarize
from llm_wrapper.prompts.render import PromptBuilder
from llm_wrapper.recipe import PromptSection
from llm_wrapper.records import Answer, Box, Prediction
from tests.evaluation.made import TARGET, WRONG, made, wide
from tests.evaluation.test_systems import LEFT_ZEBRA, ZEBRAS, Script, prepared_sample

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


def asked_about(number: int, box: Box | None, targets: Sequence[Box]) -> Prediction:
    first, *more = targets or [None]
    return made(str(number), box, target=first, further_targets=tuple(more))


@pytest.mark.parametrize(
    ("found", "targets", "right"),
    [
        pytest.param([], [], True, id="nothing-for-nothing"),
        pytest.param([TARGET], [], False, id="something-for-nothing"),
        pytest.param([], [TARGET], False, id="nothing-for-something"),
        pytest.param([wide(0.5)], [TARGET], True, id="half-is-enough"),
        pytest.param([wide(0.49)], [TARGET], False, id="less-is-not"),
        pytest.param([TARGET], [TARGET, SECOND], False, id="one-of-two"),
    ],
)
def test_an_answer_is_right_only_as_the_whole_set(found: list[Box], targets: list[Box], right: bool) -> None:
    assert is_right(found, targets) == right
    assert measure_grec([asked_about(0, found[0] if found else None, targets)]).precision.value == right


near = st.integers(0, 30)
near_boxes = st.builds(lambda x, y, w, h: Box(x, y, x + 20 + w, y + 20 + h), near, near, near, near)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.none() | near_boxes, st.lists(near_boxes, max_size=3)), min_size=1, max_size=6))
def test_precision_is_that_of_the_definition(pairs: list[tuple[Box | None, list[Box]]]) -> None:
    # The targets' own first box, too: others are seldom right.
    pairs = [*pairs, *[(targets[0] if targets else None, targets) for _, targets in pairs]]
    found = measure_grec([asked_about(number, *pair) for number, pair in enumerate(pairs)])
    for generalized, share in ((False, found.precision), (True, found.precision_giou)):
        expected = [is_right([box] if box else [], targets, generalized=generalized) for box, targets in pairs]
        assert share.value == sum(expected) / len(pairs)


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
    found = measure_grec(ROWS)
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
    found = measure_grec([made("a", None, target=None, **changes)])
    assert (found.n_acc.value, found.precision.value, found.precision_giou.value) == (n_acc, n_acc, n_acc)


def test_what_is_not_there_has_no_value() -> None:
    with_target, without = measure_grec([ROWS[0]]), measure_grec([ROWS[3]])
    assert (with_target.n_acc.value, with_target.t_acc.value) == (None, 1.0)
    assert (without.n_acc.value, without.t_acc.value, without.precision.value) == (1.0, None, 1.0)
    assert measure_grec([]).precision == (None, None, 0)


NONE = PromptSection(format="relations", none=True)


def asked(samples: list[PreparedSample], answers: dict[str, Answer], prompt: PromptSection = NONE) -> list[Prediction]:
    return systems.by_llm(samples, "llm", PromptBuilder(prompt), Script(answers))


@pytest.mark.parametrize(
    ("answer", "probability", "shares", "none"),
    [
        (Answer((0.1, 0.2, 0.1, 0.6), 0.9), 0.6, (0.1, 0.2, 0.1), 0.6),
        (Answer(text="3", finish_reason="stop"), None, None, None),
    ],
    ids=["scored", "generated"],
)
def test_none_is_an_answer_and_no_fallback(
    answer: Answer, probability: float | None, shares: tuple[float, ...] | None, none: float | None, tmp_path: Path
) -> None:
    rows = asked([prepared_sample("1", target=None)], {"left zebra": answer})
    (row,) = rows
    assert (row.box, row.decided_by, row.failure, row.says_none) == (None, "llm", None, True)
    assert (row.probability, row.probabilities, row.none_probability) == (probability, shares, none)
    files.save_predictions(tmp_path / "p.parquet", rows)
    assert files.load_predictions(tmp_path / "p.parquet") == rows


def test_one_candidate_is_asked_about_where_none_is_an_answer() -> None:
    samples = [
        prepared_sample("yes", "grass", candidates=ZEBRAS[:1]),
        prepared_sample("no", "left zebra", candidates=ZEBRAS[:1]),
        prepared_sample("unusable", "zebra", candidates=ZEBRAS[:1]),
        prepared_sample("nothing", candidates=()),
    ]
    answers = {"grass": Answer((0.7, 0.3)), "left zebra": Answer((0.4, 0.6)), "zebra": Answer(text="what?")}
    rows = asked(samples, answers)
    assert [row.decided_by for row in rows] == ["llm", "llm", "single_candidate", "no_candidate"]
    assert [row.box for row in rows] == [ZEBRAS[0].box, None, ZEBRAS[0].box, None]
    assert [row.probability for row in rows] == [0.7, 0.6, None, None]
    assert [row.says_none for row in rows] == [False, True, False, False]


def four(prompt: PromptSection = NONE) -> list[Prediction]:
    """Right, falsely none, rightly none, falsely a box."""
    shares = {"a": (0.1, 0.8, 0.1), "b": (0.1, 0.3, 0.1), "c": (0.2, 0.2, 0.1), "d": (0.5, 0.1, 0.1)}
    answers = {
        name: Answer((*each, 1 - sum(each)) if prompt.none else tuple(one / sum(each) for one in each))
        for name, each in shares.items()
    }
    targets = (LEFT_ZEBRA, LEFT_ZEBRA, None, None)
    samples = [
        prepared_sample(name, name, target=target, image_id=name) for name, target in zip("abcd", targets, strict=True)
    ]
    return asked(samples, answers, prompt)


def test_no_metric_drops_a_sample() -> None:
    rows = four()
    found, summary = calibration.measure_grec(rows), summarize(rows)
    assert (found.n_acc.value, found.n_acc.n, found.t_acc.value, found.t_acc.n) == (0.5, 2, 0.5, 2)
    assert (found.precision.value, found.precision.n) == (0.5, 4)
    assert (summary.n, summary.num_without_target, summary.p_at_1) == (2, 2, 0.5)
    assert (summary.decided_by, summary.failures) == ({"llm": 4}, {})
    shares = comparison.outcome_shares(rows)
    assert {name: share.value for name, share in shares.items() if share.value} == {"right": 0.5, "none": 0.5}
    compared = compare_systems(rows, [replace(row, system="other") for row in rows])
    assert compared.mcnemar.n == summary.n
    oracle = calibration.measure_grec(systems.by_oracle([prepared_sample("e"), prepared_sample("f", target=None)]))
    assert (oracle.n_acc.value, oracle.t_acc.value, oracle.precision.value) == (1, 1, 1)
    first, *others = calibration.thresholds(rows)
    assert others
    assert {each.grec.precision.n for each in (first, *others)} == {4}
    assert first.grec == found


@given(st.sampled_from([True, False]), st.floats(0, 1))
def test_a_threshold_afterwards_is_the_threshold_in_the_recipe(none: bool, below: float) -> None:
    prompt = NONE.model_copy(update={"none": none})
    later = calibration.apply_threshold(four(prompt), below)
    at_once = four(prompt.model_copy(update={"none_below": below}))
    assert later == at_once


def test_thresholds_give_up_boxes_one_way_only() -> None:
    found = calibration.thresholds(four(NONE.model_copy(update={"none": False})))
    assert found[0].below == 0
    assert (found[0].answered.value, found[0].risk.value) == (1.0, 0.5)
    n_acc, t_acc = ([getattr(each.grec, name).value for each in found] for name in ("n_acc", "t_acc"))
    assert n_acc == sorted(n_acc)
    assert t_acc == sorted(t_acc, reverse=True)
    assert n_acc[-1] == 1


@pytest.mark.parametrize("rows", [[], four()[1:3]], ids=["nothing", "no box"])
def test_a_threshold_over_nothing_has_no_risk(rows: list[Prediction]) -> None:
    (found,) = calibration.thresholds(rows)
    assert (found.below, found.risk.value) == (0.0, None)


def test_orders_leave_none_at_the_end() -> None:
    answers = [Answer((0.5, 0.2, 0.3), 1.0), Answer((0.1, 0.4, 0.5), 0.5)]
    mean = systems.average_answers(answers, [(0, 1), (1, 0)])
    assert mean.probabilities == pytest.approx((0.45, 0.15, 0.4))
    assert mean.mass == 0.75


@pytest.mark.parametrize("combine", [systems.average, systems.vote], ids=["mean", "vote"])
def test_adapters_say_none_together(combine: object) -> None:
    assert callable(combine)
    rows = four()
    sure = asked([prepared_sample("d", "d", target=None, image_id="d")], {"d": Answer((0.0, 0.1, 0.0, 0.9))})
    (both,) = combine([sure, rows[3:]], "both")
    assert (both.box, both.decided_by, both.says_none) == (None, "llm", True)
    assert both.probability == both.none_probability == pytest.approx(0.6)
    assert both.probabilities == pytest.approx((0.25, 0.1, 0.05))
    # One that was not asked with it gives it no probability.
    without = four(NONE.model_copy(update={"none": False}))[3:]
    (mixed,) = combine([rows[3:], without], "both")
    assert mixed.box == ZEBRAS[0].box
    assert sum(mixed.probabilities or ()) + (mixed.none_probability or 0) == pytest.approx(1)


def test_one_candidate_that_was_asked_about_is_decided_together() -> None:
    one, other = (
        asked([prepared_sample("a", candidates=ZEBRAS[:1])], {"left zebra": Answer((share, 1 - share))})
        for share in (0.1, 0.6)
    )
    (both,) = systems.average([one, other], "both")
    assert both.box is None
    assert both.probability == pytest.approx(0.65)
