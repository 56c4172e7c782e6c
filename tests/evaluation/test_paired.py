from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from llm_wrapper.errors import DataError
from llm_wrapper.evaluation.paired import MISSING_PREDICTION, compare_systems, completed, flips, paired
from llm_wrapper.metrics import summarize
from llm_wrapper.records import Box, Prediction, Sample
from llm_wrapper.statistics import mcnemar, paired_bootstrap
from tests.evaluation.made import TARGET, WRONG, made, wide

SAMPLES = [Sample(name, "r", name, None, (640, 480), "the left cat", TARGET) for name in "abc"]


def system(name: str, boxes: Sequence[Box | None], *, per_image: int = 1) -> list[Prediction]:
    return [made(str(i), box, system=name, image_id=f"image {i // per_image}") for i, box in enumerate(boxes)]


def test_missing_predictions_count_as_wrong() -> None:
    done = completed([made("c", TARGET), made("a", TARGET)], SAMPLES)
    assert [each.sample_id for each in done] == ["a", "b", "c"]
    assert (done[1].decided_by, done[1].failure, done[1].box) == ("missing", MISSING_PREDICTION, None)
    assert (done[1].target, done[1].image_wh) == (TARGET, (640, 480))
    summary = summarize(done)
    assert (summary.n, summary.p_at_1) == (3, 2 / 3)
    assert summary.failures == {MISSING_PREDICTION: 1}


def test_predictions_for_other_samples_are_refused_with_all_listed() -> None:
    rows = [made("a", TARGET), made("x", TARGET), made("y", None), made("b", TARGET, target=WRONG)]
    with pytest.raises(DataError) as error:
        completed(rows, SAMPLES)
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
        completed(rows, SAMPLES)
    with pytest.raises(DataError, match=message):
        paired(rows, [made("a", TARGET)])


def test_pairs_are_found_by_sample_whatever_the_order() -> None:
    a, b = system("a", [TARGET, WRONG, None]), system("b", [WRONG, WRONG, TARGET])
    assert [(x.sample_id, y.sample_id) for x, y in paired(a, b[::-1])] == [("0", "0"), ("1", "1"), ("2", "2")]
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
