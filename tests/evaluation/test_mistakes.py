from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_wrapper.evaluation.mistakes import NEAR_IOU, OUTCOMES, by_position, outcomes, split, twins
from llm_wrapper.evaluation.paired import MISSING_PREDICTION
from llm_wrapper.metrics import oracle_ious, summarize
from llm_wrapper.records import Box, Prediction
from tests.evaluation.made import TARGET, WRONG, made, wide

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
    shares = split([*CASES.values(), made("no target", WRONG, target=None)])
    assert tuple(shares) == OUTCOMES
    assert {share.n for share in shares.values()} == {len(CASES)}
    assert sum(share.value or 0.0 for share in shares.values()) == pytest.approx(1)
    assert {share.value for share in split([made("a", None, target=None)]).values()} == {None}


side = st.floats(1, 200)
some_boxes = st.builds(lambda x, y, w, h: Box(x, y, x + w, y + h), side, side, side, side)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.lists(some_boxes, max_size=4), st.booleans()), min_size=1, max_size=6))
def test_right_is_p_at_1_and_missed_is_what_the_oracle_lacks(rows: list[tuple[list[Box], bool]]) -> None:
    made_rows = [
        made(str(i), found[0] if found and has_box else None, others=found[1:] if has_box else found)
        for i, (found, has_box) in enumerate(rows)
    ]
    shares = split(made_rows)
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
    found = by_position([*rows, *left_out])
    assert {index: each[::2] for index, each in found.items()} == {0: (1.0, 2), 2: (0.0, 1), 3: (0.5, 2)}
    assert by_position(left_out) == {}


def test_the_best_candidate_decides_the_index() -> None:
    assert list(by_position([made("a", WRONG, others=[wide(0.6), TARGET])])) == [2]


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
    found = twins(rows)
    assert (found.share.value, found.share.n) == (pytest.approx(2 / 3), 3)
    assert (found.p_at_1.value, found.p_at_1.n) == (0.5, 2)
    assert (found.p_at_1_elsewhere.value, found.p_at_1_elsewhere.n) == (1.0, 1)


def test_twins_of_nothing_are_no_data() -> None:
    assert twins([made("alone", TARGET)]) == ((None, None, 0),) * 3
