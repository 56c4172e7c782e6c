"""Two systems on the same samples, and why a system is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_wrapper.errors import DataError
from llm_wrapper.evaluation.comparison import (
    MISSING_PREDICTION,
    NEAR_IOU,
    OUTCOMES,
    compare_systems,
    complete_predictions,
    flips,
    near_ties,
    outcome_shares,
    outcomes,
    p_at_1_by_position,
    pair_predictions,
)
from llm_wrapper.metrics import oracle_ious, summarize
from llm_wrapper.records import Box, Prediction, Sample
from llm_wrapper.statistics import mcnemar, paired_bootstrap
from tests.evaluation.made import TARGET, WRONG, made, wide

SAMPLES = [Sample(name, "r", name, None, (640, 480), "the left cat", TARGET) for name in "abc"]


def system(name: str, boxes: Sequence[Box | None], *, per_image: int = 1) -> list[Prediction]:
    return [made(str(i), box, system=name, image_id=f"image {i // per_image}") for i, box in enumerate(boxes)]


def test_missing_predictions_count_as_wrong() -> None:
    done = complete_predictions([made("c", TARGET), made("a", TARGET)], SAMPLES)
    assert [each.sample_id for each in done] == ["a", "b", "c"]
    assert (done[1].decided_by, done[1].failure, done[1].box) == ("missing", MISSING_PREDICTION, None)
    assert (done[1].target, done[1].image_wh) == (TARGET, (640, 480))
    summary = summarize(done)
    assert (summary.n, summary.p_at_1) == (3, 2 / 3)
    assert summary.failures == {MISSING_PREDICTION: 1}


def test_predictions_for_other_samples_are_refused_with_all_listed() -> None:
    rows = [made("a", TARGET), made("x", TARGET), made("y", None), made("b", TARGET, target=WRONG)]
    with pytest.raises(DataError) as error:
        complete_predictions(rows, SAMPLES)
    message = str(error.value)
    assert "'x' was not asked for" in message
    assert "'y' was not asked for" in message
    assert "sample 'b' has target" in message


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param([made("a", TARGET), made("a", WRONG)], "2 predictions for sample 'a'", id="duplicate"),
        pytest.param([made("a", TARGET), made("b", TARGET, system="t")], "found 's', 't'", id="two-systems"),
        pytest.param([], "no predictions", id="nothing"),
    ],
)
def test_what_is_not_one_systems_result_is_refused(rows: list[Prediction], message: str) -> None:
    with pytest.raises(DataError, match=message):
        complete_predictions(rows, SAMPLES)
    with pytest.raises(DataError, match=message):
        pair_predictions(rows, [made("a", TARGET)])


def test_pairs_are_found_by_sample_whatever_the_order() -> None:
    a, b = system("a", [TARGET, WRONG, None]), system("b", [WRONG, WRONG, TARGET])
    assert [(x.sample_id, y.sample_id) for x, y in pair_predictions(a, b[::-1])] == [("0", "0"), ("1", "1"), ("2", "2")]
    assert compare_systems(a, b[::-1]) == compare_systems(a, b)


def test_different_samples_are_refused() -> None:
    a, b = system("a", [TARGET, WRONG]), system("b", [TARGET, WRONG, TARGET])
    other = [b[0], replace(b[1], target=wide(0.9))]
    with pytest.raises(DataError, match="sample '2' has a prediction of 'b' only"):
        compare_systems(a, b)
    with pytest.raises(DataError, match="sample '1' has target"):
        compare_systems(a, other)


def test_a_comparison_is_the_paired_bootstrap_and_mcnemar() -> None:
    rng = np.random.default_rng(0)
    right_a, right_b = rng.random(120) < 0.7, rng.random(120) < 0.5
    a = system("a", [TARGET if right else WRONG for right in right_a], per_image=3)
    b = system("b", [wide(0.8) if right else None for right in right_b], per_image=3)
    none = [made("none", WRONG, system=name, target=None) for name in "ab"]
    found = compare_systems([*a, none[0]], [*b, none[1]], seed=2)
    interval = paired_bootstrap(right_a, right_b, np.arange(120) // 3, seed=2)
    assert found.p_at_1 == (right_a.mean() - right_b.mean(), interval, 120)
    assert found.p_at_1_ge == found.p_at_1
    assert found.mean_iou.value == pytest.approx(right_a.mean() - 0.8 * right_b.mean())
    assert found.mcnemar == mcnemar(right_a, right_b)
    assert (found.a, found.b) == ("a", "b")


def test_a_comparison_without_any_target_has_no_value() -> None:
    a, b = ([made("a", TARGET, system=name, target=None)] for name in "ab")
    found = compare_systems(a, b)
    assert (found.p_at_1.value, found.mcnemar.p_value) == (None, None)


def test_flips_are_chosen_boxes_that_differ() -> None:
    first = [
        made("a", TARGET, others=[WRONG]),
        made("b", TARGET, others=[WRONG]),
        made("c", None),
        made("d", WRONG, target=None),
    ]
    second = [replace(each, system="t", candidates=each.candidates[::-1]) for each in first]
    assert flips(first, second).value == 0.0
    second[1] = replace(second[1], box=WRONG)
    assert flips(first, second)[::2] == (0.25, 4)


def test_flips_need_the_same_candidates() -> None:
    with pytest.raises(DataError, match="sample 'a' was shown 2 and 1"):
        flips([made("a", TARGET, others=[WRONG])], [made("a", TARGET, system="t")])


CASES = {
    "right": made("right", TARGET, others=[WRONG]),
    "right after a failure": made("rescued", TARGET, others=[WRONG], decided_by="fallback", failure="no_number"),
    "missing": made("missing", None, decided_by="missing", failure=MISSING_PREDICTION),
    "missed": made("missed", WRONG, others=[wide(0.5)]),
    "missed, and no candidate": made("none", None, decided_by="no_candidate"),
    "missed before unusable": made("both", None, others=[WRONG, WRONG], decided_by="fallback", failure="no_number"),
    "unusable": made("unusable", None, others=[TARGET, WRONG], decided_by="fallback", failure="no_number"),
    "fallback": made("fallback", WRONG, others=[TARGET], decided_by="fallback", failure="no_number"),
    # Half of the target, and a box 1.4 times as large: they share 0.5 / 0.7 of the larger.
    "near": made("near", wide(0.5), others=[wide(0.7)]),
    "wrong": made("wrong", WRONG, others=[TARGET]),
    "wrong, a bit less near": made("far", wide(0.49), others=[wide(0.71)]),
    "wrong, without candidates": made("foreign", WRONG, candidates=()),
}


@pytest.mark.parametrize("name", CASES)
def test_each_outcome(name: str) -> None:
    assert outcomes([CASES[name]]).tolist() == [name.split(maxsplit=1)[0].strip(",")]


def test_the_split_adds_up_and_says_where_there_is_no_data() -> None:
    shares = outcome_shares([*CASES.values(), made("no target", WRONG, target=None)])
    assert tuple(shares) == OUTCOMES
    assert {share.n for share in shares.values()} == {len(CASES)}
    assert sum(share.value or 0.0 for share in shares.values()) == pytest.approx(1)
    assert {share.value for share in outcome_shares([made("a", None, target=None)]).values()} == {None}


side = st.floats(1, 200)
some_boxes = st.builds(lambda x, y, w, h: Box(x, y, x + w, y + h), side, side, side, side)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.lists(some_boxes, max_size=4), st.booleans()), min_size=1, max_size=6))
def test_right_is_p_at_1_and_missed_is_what_the_oracle_lacks(rows: list[tuple[list[Box], bool]]) -> None:
    made_rows = [
        made(str(i), found[0] if found and has_box else None, others=found[1:] if has_box else found)
        for i, (found, has_box) in enumerate(rows)
    ]
    shares = outcome_shares(made_rows)
    assert shares["right"].value == summarize(made_rows).p_at_1
    assert shares["missed"].value == pytest.approx((oracle_ious(made_rows) <= 0.5).mean())


def at(index: int, chosen: int, name: str) -> Prediction:
    """A prediction whose target was shown at an index among four and that chose another index."""
    shown = [Box(200 * n, 500, 200 * n + 50, 600) for n in range(4)]
    shown[index] = TARGET
    base = made(name, None, others=shown)
    return replace(base, box=base.candidates[chosen].box)


def test_p_at_1_by_the_index_of_the_target() -> None:
    rows = [at(0, 0, "a"), at(0, 0, "b"), at(3, 0, "c"), at(3, 3, "d"), at(2, 0, "e")]
    left_out = [made("f", TARGET), made("g", WRONG, others=[WRONG]), made("h", WRONG, others=[TARGET], target=None)]
    found = p_at_1_by_position([*rows, *left_out])
    assert {index: each[::2] for index, each in found.items()} == {0: (1.0, 2), 2: (0.0, 1), 3: (0.5, 2)}
    assert p_at_1_by_position(left_out) == {}


def test_the_best_candidate_decides_the_index() -> None:
    assert list(p_at_1_by_position([made("a", WRONG, others=[wide(0.6), TARGET])])) == [2]


@pytest.mark.parametrize(("share", "outcome"), [(NEAR_IOU, "near"), (NEAR_IOU - 0.01, "wrong")])
def test_the_bound_of_near_belongs_to_it(share: float, outcome: str) -> None:
    # The best candidate is wider than the target; the chosen one is a part of it.
    best = Box(0, 0, 100, 120)
    chosen = Box(0, 0, 100, 120 * share) if share * 120 < 50 else Box(0, 120 * (1 - share), 100, 120)
    assert outcomes([made("a", chosen, others=[best], target=Box(0, 0, 100, 70))]).tolist() == [outcome]


def test_twins_are_the_two_best_candidates_that_nearly_coincide() -> None:
    rows = [
        made("twins", wide(0.4), others=[wide(0.9), WRONG, TARGET]),
        made("far apart", TARGET, others=[wide(0.6)]),
        made("right twin", TARGET, others=[wide(NEAR_IOU)]),
        made("no right one", wide(0.4), others=[wide(0.4)]),
        made("alone", TARGET),
        made("foreign", TARGET, candidates=()),
        made("no target", TARGET, others=[TARGET], target=None),
    ]
    found = near_ties(rows)
    assert (found.share.value, found.share.n) == (pytest.approx(2 / 3), 3)
    assert (found.p_at_1.value, found.p_at_1.n) == (0.5, 2)
    assert (found.p_at_1_elsewhere.value, found.p_at_1_elsewhere.n) == (1.0, 1)


def test_twins_of_nothing_are_no_data() -> None:
    assert near_ties([made("alone", TARGET)]) == ((None, None, 0),) * 3
