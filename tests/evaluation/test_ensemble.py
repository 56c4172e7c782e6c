"""Several adapters on the same candidates as one system."""

from __future__ import annotations

from typing import Any

import pytest

from llm_wrapper.errors import DataError
from llm_wrapper.evaluation.grid import contributions
from llm_wrapper.evaluation.systems import average, vote
from llm_wrapper.records import Box, Candidate, Prediction
from tests.evaluation.made import TARGET, WRONG, made

BOXES = (WRONG, TARGET, Box(700, 0, 800, 100))
SHOWN = tuple(Candidate(box, "cat", score, "d", "od") for box, score in zip(BOXES, (0.1, 0.9, 0.2), strict=True))


def said(index: int | None, *shares: float, name: str = "a", **changes: Any) -> list[Prediction]:
    """One adapter's prediction for one sample: an index with its probabilities, or an unusable answer."""
    if index is None:
        changes = {"decided_by": "fallback", "failure": "no_number", "box": TARGET, **changes}
    else:
        changes = {"box": BOXES[index], "probability": shares[index] if shares else None, **changes}
    return [made(name, candidates=SHOWN, origins=(0, 1, 2), probabilities=shares or None, **changes)]


def test_the_mean_of_the_probabilities_decides() -> None:
    (found,) = average([said(0, 0.6, 0.4, 0.0), said(1, 0.1, 0.5, 0.4)], "mean")
    assert (found.system, found.box, found.decided_by) == ("mean", TARGET, "llm")
    assert found.probabilities == pytest.approx((0.35, 0.45, 0.2))
    assert found.probability == pytest.approx(0.45)


def test_equal_means_go_to_what_is_shown_first() -> None:
    (found,) = average([said(1, 0.25, 0.75, 0.0), said(0, 0.75, 0.25, 0.0)], "mean")
    assert found.box == BOXES[0]


def test_the_majority_wins_even_against_the_mean() -> None:
    parts = [said(0, 1.0, 0.0, 0.0), said(1, 0.4, 0.6, 0.0), said(1, 0.4, 0.6, 0.0)]
    assert average(parts, "mean")[0].box == BOXES[0]
    assert vote(parts, "vote")[0].box == BOXES[1]


@pytest.mark.parametrize(
    ("parts", "index"),
    [
        pytest.param([said(0, 0.6, 0.3, 0.1), said(1, 0.1, 0.8, 0.1)], 1, id="higher-mean"),
        pytest.param([said(0, 0.5, 0.1, 0.4), said(1, 0.1, 0.5, 0.4)], 0, id="not-what-nobody-chose"),
        pytest.param([said(2), said(1)], 2, id="no-probabilities-first-adapter"),
        pytest.param([said(2), said(1, 0.0, 1.0, 0.0)], 2, id="half-of-the-probabilities"),
    ],
)
def test_a_tied_vote(parts: list[list[Prediction]], index: int) -> None:
    assert vote(parts, "vote")[0].box == BOXES[index]


@pytest.mark.parametrize("combine", [average, vote], ids=["mean", "vote"])
def test_unusable_answers_say_nothing(combine: Any) -> None:
    (found,) = combine([said(None), said(2, 0.2, 0.2, 0.6)], "both")
    assert (found.box, found.decided_by, found.failure) == (BOXES[2], "llm", None)
    (found,) = combine([said(None), said(None)], "both")
    # The highest score is the detector's own choice.
    assert (found.box, found.decided_by, found.failure, found.probabilities) == (TARGET, "fallback", "no_number", None)


@pytest.mark.parametrize("combine", [average, vote], ids=["mean", "vote"])
@pytest.mark.parametrize("decided_by", ["single_candidate", "no_candidate"])
def test_what_nobody_was_asked_stays(combine: Any, decided_by: Any) -> None:
    box = TARGET if decided_by == "single_candidate" else None
    alone = [made("a", box, decided_by=decided_by)]
    (found,) = combine([alone, alone], "both")
    assert (found.system, found.box, found.decided_by) == ("both", box, decided_by)


def test_two_labels_of_one_box_are_one_choice() -> None:
    twins = (*SHOWN, Candidate(TARGET, "dog", 0.3, "d", "od"))
    parts = [
        [made("a", BOXES[index], candidates=twins, probabilities=shares)]
        for index, shares in ((1, (0.0, 0.6, 0.0, 0.4)), (1, (0.0, 0.1, 0.0, 0.9)), (0, (1.0, 0.0, 0.0, 0.0)))
    ]
    (found,) = vote(parts, "vote")
    assert (found.box, found.probability) == (TARGET, pytest.approx(1.3 / 3))


def test_other_questions_are_refused_with_all_named() -> None:
    with pytest.raises(DataError, match=r"(?s)same order.*'a' of 's', 'b' of 's'"):
        average([said(0), said(0, name="b")], "mean")
    moved = [made("a", BOXES[0], candidates=SHOWN[::-1])]
    with pytest.raises(DataError, match="the same candidates"):
        vote([said(0), moved], "vote")
    with pytest.raises(DataError, match="two adapters at least"):
        average([said(0)], "mean")
    with pytest.raises(DataError, match="found sizes 1, 2"):
        vote([said(0), [*said(0), *said(0, name="b")]], "vote")


def test_what_a_detector_adds_is_a_paired_difference() -> None:
    names = [str(number) for number in range(20)]
    whole = [made(name, TARGET) for name in names]
    less = [made(name, TARGET if int(name) % 2 else WRONG) for name in names]
    (found,) = contributions({"s": whole}, {"flo2": {"s": less}, "gd": {}})
    assert (found.system, found.detector) == ("s", "flo2")
    assert (found.gain.p_at_1.value, found.gain.mcnemar.only_a, found.gain.mcnemar.n) == (0.5, 10, 20)
    assert found.gain.p_at_1.ci is not None
    assert 0.2 < found.gain.p_at_1.ci.low < 0.5 < found.gain.p_at_1.ci.high < 0.8
