""""""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_wrapper import boxes, metrics
from llm_wrapper.boxes import rowwise_iou
from llm_wrapper.errors import DataError
from llm_wrapper.metrics import (
    UNTAGGED,
    Columns,
    ious,
    mean_accuracy,
    oracle_ious,
    recall_at,
    require_distinct,
    summarize,
    summarize_columns,
)
from llm_wrapper.records import Box, Candidate, Prediction
from llm_wrapper.statistics import bootstrap_interval

TARGET = Box(0, 0, 10, 10)
RIGHT, HALF, WRONG = TARGET, Box(0, 0, 10, 5), Box(20, 20, 30, 30)


def predicted(name: str, box: Box | None, *, image: str | None = None, others: tuple[Box, ...] = ()) -> Prediction:
    """A prediction of system "s" whose candidates are `box` and `others`."""
    shown = (*(() if box is None else (box,)), *others)
    return Prediction(
        system="s",
        sample_id=name,
        image_id=name if image is None else image,
        expression="cat",
        kind=None,
        target=TARGET,
        box=box,
        decided_by="llm",
        probability=None,
        probabilities=None,
        failure=None,
        candidates=tuple(Candidate(each, "cat", None, "flo2", "od") for each in shown),
    )


def test_summary_of_a_mixed_set() -> None:
    predictions = [
        predicted("a", RIGHT),
        predicted("b", HALF, image="a"),
        predicted("c", WRONG, others=(RIGHT,)),
        replace(predicted("d", None), decided_by="no_candidate"),
        replace(predicted("e", None, others=(WRONG, RIGHT)), decided_by="fallback", failure="not_a_number"),
        replace(predicted("f", RIGHT), target=None, decided_by="fallback", failure="not_a_number"),
    ]
    summary = summarize(predictions)
    assert (summary.system, summary.n, summary.num_images, summary.num_without_target) == ("s", 5, 4, 1)
    assert (summary.p_at_1, summary.p_at_1_ge, summary.oracle_p_at_1) == (0.2, 0.4, 0.6)
    assert summary.mean_iou == pytest.approx(0.3)
    assert summary.decided_by == {"llm": 3, "fallback": 2, "no_candidate": 1}
    assert summary.failures == {"not_a_number": 2}
    assert summary.by_kind == {}


def test_half_overlap_is_wrong_for_one_convention_and_right_for_the_other() -> None:
    summary = summarize([predicted("a", HALF), predicted("b", HALF)])
    assert ious([predicted("a", HALF)]).tolist() == [0.5]
    assert (summary.p_at_1, summary.ci) == (0.0, (0.0, 0.0))
    assert (summary.p_at_1_ge, summary.ci_ge) == (1.0, (1.0, 1.0))
    assert summary.oracle_p_at_1 == 0.0


def test_intervals_draw_images() -> None:
    right, images = np.repeat(np.random.default_rng(0).random(75) < 0.7, 4), [f"image {i // 4}" for i in range(300)]
    predictions = [predicted(str(i), RIGHT if right[i] else WRONG, image=images[i]) for i in range(300)]
    assert summarize(predictions, seed=5).ci == bootstrap_interval(right, images, seed=5)
    assert summarize(predictions, seed=5).ci != bootstrap_interval(right, range(300), seed=5)


def test_without_any_target_metrics_are_missing_not_zero() -> None:
    summary = summarize([replace(predicted("a", RIGHT), target=None, kind="easy")])
    assert (summary.n, summary.num_images, summary.num_without_target) == (0, 0, 1)
    assert (summary.p_at_1, summary.ci, summary.p_at_1_ge, summary.ci_ge) == (None, None, None, None)
    assert (summary.mean_iou, summary.oracle_p_at_1) == (None, None)
    assert summary.decided_by == {"llm": 1}


def test_where_no_candidate_is_known_the_oracle_is_missing_not_zero() -> None:
    foreign = [replace(predicted("a", RIGHT), candidates=()), predicted("b", None)]
    assert summarize(foreign).p_at_1 == 0.5
    assert summarize(foreign).oracle_p_at_1 is None
    nothing_found = [predicted("a", None), predicted("b", None)]
    assert summarize(nothing_found).oracle_p_at_1 == 0.0


def test_kinds_add_up_to_all_that_is_scored() -> None:
    summary = summarize(
        [
            replace(predicted("a", RIGHT), kind="spatial"),
            replace(predicted("b", WRONG), kind="spatial"),
            replace(predicted("c", RIGHT), kind="color"),
            predicted("d", WRONG),
        ]
    )
    assert {kind: part[:2] for kind, part in summary.by_kind.items()} == {
        "color": (1, 1.0),
        "spatial": (2, 0.5),
        UNTAGGED: (1, 0.0),
    }
    assert summary.by_kind["spatial"].ci == (0.0, 1.0)
    assert summary.by_kind["color"].ci is None
    assert sum(part.n for part in summary.by_kind.values()) == summary.n


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([], "found no predictions"),
        ([predicted("a", RIGHT), replace(predicted("b", RIGHT), system="t")], "found 's', 't'"),
        ([predicted("a", RIGHT), predicted("a", WRONG)], "system 's' has 2 predictions for sample 'a'"),
    ],
    ids=["none", "two_systems", "sample_twice"],
)
def test_what_is_not_one_systems_result_is_refused(predictions: list[Prediction], message: str) -> None:
    with pytest.raises(DataError, match=message):
        summarize(predictions)


def test_every_repeated_sample_is_listed() -> None:
    twice = [predicted(f"sample{i}", RIGHT) for i in range(30)] * 2
    with pytest.raises(DataError) as error:
        require_distinct(twice, "here")
    assert all(f"'sample{i}'" in str(error.value) for i in range(30))


def test_ious_without_box_is_zero_and_without_target_is_nan() -> None:
    predictions = [predicted("a", None), replace(predicted("b", RIGHT), target=None), predicted("c", RIGHT)]
    np.testing.assert_array_equal(ious(predictions), [0.0, np.nan, 1.0])


def test_oracle_takes_each_records_best_candidate() -> None:
    predictions = [
        predicted("a", WRONG, others=(HALF, RIGHT, WRONG)),
        predicted("b", None),
        replace(predicted("c", RIGHT), target=None),
        predicted("d", WRONG, others=(HALF,)),
    ]
    np.testing.assert_array_equal(oracle_ious(predictions), [1.0, 0.0, np.nan, 0.5])


@pytest.mark.parametrize("measure", [ious, oracle_ious])
def test_measures_of_nothing_are_empty(measure: object) -> None:
    assert measure([]).shape == (0,)  # type: ignore[operator]


def test_accuracy_counts_what_exceeds_each_threshold() -> None:
    # 0.75 does not exceed 0.75: of the ten thresholds it exceeds the first five.
    predictions = [predicted("a", Box(0, 0, 10, 7.5)), predicted("b", RIGHT), predicted("c", None)]
    assert mean_accuracy(metrics.to_columns(predictions)).value == pytest.approx((0.5 + 1.0 + 0.0) / 3)


def test_recall_follows_the_order_of_the_candidates() -> None:
    predictions = [
        predicted("a", WRONG, others=(WRONG, RIGHT)),
        predicted("b", RIGHT),
        predicted("c", None),
        replace(predicted("d", RIGHT), target=None),
    ]
    recalls = recall_at(metrics.to_columns(predictions), ranks=(1, 2, 3))
    assert {rank: each.value for rank, each in recalls.items()} == {1: 1 / 3, 2: 1 / 3, 3: 2 / 3}
    assert {each.n for each in recalls.values()} == {3}


def test_scores_of_nothing_are_missing_not_zero() -> None:
    table = metrics.to_columns([replace(predicted("a", RIGHT), target=None)])
    assert {each.value for each in (mean_accuracy(table), *recall_at(table).values())} == {None}


sides = st.floats(-1000, 1000, allow_nan=False)
some_boxes = st.builds(
    lambda x, y, w, h: Box(x, y, x + w, y + h), sides, sides, st.floats(0.01, 500), st.floats(0.01, 500)
)


@settings(deadline=None)
@given(st.lists(st.tuples(some_boxes, some_boxes), max_size=8))
def test_rowwise_iou_is_the_diagonal_of_pairwise_iou(pairs: list[tuple[Box, Box]]) -> None:
    a, b = boxes.array([first for first, _ in pairs]), boxes.array([second for _, second in pairs])
    np.testing.assert_array_equal(rowwise_iou(a, b), np.diagonal(boxes.pairwise_iou(a, b)))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(some_boxes, max_size=4), min_size=1, max_size=6))
def test_the_oracle_is_never_worse_than_the_system(candidates: list[list[Box]]) -> None:
    predictions = [
        predicted(str(i), row[0] if row else None, others=tuple(row[1:])) for i, row in enumerate(candidates)
    ]
    summary = summarize(predictions)
    assert np.all(oracle_ious(predictions) >= ious(predictions))
    assert (summary.p_at_1 or 0.0) <= min(summary.oracle_p_at_1 or 0.0, summary.p_at_1_ge or 0.0)


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(some_boxes, max_size=6), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_invariants_of_scores(candidates: list[list[Box]], random: Random) -> None:
    predictions = [
        predicted(str(i), row[0] if row else None, others=tuple(row[1:])) for i, row in enumerate(candidates)
    ]
    table = metrics.to_columns(predictions)
    scores, recalls = summarize_columns(table), [each.value for each in recall_at(table).values()]
    single = [scores.p_at_1, scores.p_at_1_ge, scores.mean_iou, mean_accuracy(table).value, scores.oracle_p_at_1]
    assert all(0 <= value <= 1 for value in [*single, *recalls] if value is not None)
    assert None not in recalls
    assert recalls == sorted(recalls)  # type: ignore[type-var]
    assert recalls[-1] == scores.oracle_p_at_1, "nothing comes after the last rank"
    shuffled = [
        replace(each, candidates=tuple(random.sample(each.candidates, len(each.candidates)))) for each in predictions
    ]
    random.shuffle(shuffled)
    again = summarize_columns(metrics.to_columns(shuffled))
    assert (again.p_at_1, again.oracle_p_at_1) == (scores.p_at_1, scores.oracle_p_at_1)
    assert again.mean_iou == pytest.approx(scores.mean_iou)


# arrays

corner = st.floats(-1000, 1000, allow_nan=False)
side = st.floats(0.01, 500)
some_boxes = st.tuples(corner, corner, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])
EMPTY: dict[str, Any] = {
    "images": np.array([0, 0, 1]),
    "targets": np.array([[0, 0, 10, 10], [np.nan] * 4, [0, 0, 10, 10]], dtype=float),
    "boxes": np.array([[0, 0, 10, 5], [0, 0, 1, 1], [np.nan] * 4], dtype=float),
    "candidates": np.array([[20, 20, 30, 30], [0, 0, 10, 9], [0, 0, 10, 8], [0, 0, 1, 1]], dtype=float),
    "counts": np.array([3, 1, 0]),
}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(some_boxes, some_boxes), min_size=1, max_size=8))
def test_iou_is_that_of_pycocotools(pairs: list[tuple[list[float], list[float]]]) -> None:
    mask = pytest.importorskip("pycocotools.mask", reason="pycocotools, the independent IoU, is not installed")
    a, b = (np.array([pair[place] for pair in pairs]) for place in (0, 1))
    as_xywh = [np.hstack([each[:, :2], each[:, 2:] - each[:, :2]]) for each in (a, b)]
    theirs = mask.iou(*as_xywh, [0] * len(b))
    np.testing.assert_allclose(metrics.rowwise_iou(a, b), np.diagonal(theirs), atol=1e-9)


def test_missing_boxes_and_targets() -> None:
    table = Columns(**EMPTY)
    found = metrics.candidate_overlaps(table)
    np.testing.assert_array_equal(metrics.overlaps(table), [0.5, np.nan, 0.0])
    np.testing.assert_allclose(found, [0.0, 0.9, 0.8, np.nan])
    np.testing.assert_allclose(metrics.best_overlaps(table, found), [0.9, np.nan, 0.0])
    assert metrics.first_right(table, found > 0.5).tolist() == [1, -1, -1]
    assert metrics.first_right(table, found > 0.95).tolist() == [-1, -1, -1]


def test_no_sample_at_all() -> None:
    table = metrics.to_columns([])
    assert metrics.overlaps(table).shape == metrics.candidate_overlaps(table).shape == (0,)
    assert metrics.best_overlaps(table, np.empty(0)).shape == (0,)
    assert metrics.first_right(table, np.empty(0, dtype=bool)).shape == (0,)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Columns(**EMPTY)
    whole = metrics.candidate_overlaps(table)
    monkeypatch.setattr(metrics, "_BLOCK", 2)
    np.testing.assert_array_equal(metrics.candidate_overlaps(table), whole)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"counts": np.array([3, 2, 0])}, r"candidates \(4, 4\), not \(5, 4\)", id="counts"),
        pytest.param({"counts": np.array([5, -1, 0])}, "negative", id="negative"),
        pytest.param({"boxes": np.zeros((2, 4))}, r"boxes \(2, 4\), not \(3, 4\)", id="samples"),
        pytest.param({"boxes": np.array([[0, 0, 1, np.nan]] * 3)}, "boxes have a row", id="half-a-box"),
        pytest.param({"candidates": np.full((4, 4), np.inf)}, "candidates have", id="infinite"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Columns(**{**EMPTY, **changed})
