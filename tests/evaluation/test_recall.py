from __future__ import annotations

from dataclasses import replace

from llm_wrapper.evaluation.headroom import measure
from llm_wrapper.evaluation.recall import recall
from llm_wrapper.evaluation.systems import by_oracle
from llm_wrapper.records import Prediction
from tests.evaluation.made import TARGET, WRONG, made
from tests.evaluation.test_headroom import at_rank


def test_recall_is_that_of_the_headroom() -> None:
    samples = [at_rank(rank, number) for number, rank in enumerate((1, 2, 3, 5, 6, 20, 21, None))]
    found = recall(by_oracle(samples))
    assert found is not None
    assert {rank: each.value for rank, each in found.items()} == {
        rank: share.value for rank, share in measure(samples).recall.items()
    }


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
