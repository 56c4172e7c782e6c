"""The candidates of several detectors become one list, and the own choice of an ensemble."""

from __future__ import annotations

import pytest

from llm_wrapper.candidates import (
    BuiltCandidates,
    CandidatePolicy,
    build_candidates,
    detector_choice,
    detector_order,
    merge_candidates,
    order_rng,
)
from llm_wrapper.errors import RecipeError
from llm_wrapper.records import Box, Detection, Detections

WH = (1000, 100)
FIRST = CandidatePolicy(order="detector")


def part(
    name: str, *rows: tuple[float, float | None], policy: CandidatePolicy = FIRST, source: str = "od"
) -> BuiltCandidates:
    """Candidates of one detector: boxes of 10 x 10 at the given x, with scores; one output was no box."""
    items = tuple(Detection(Box(x, 0, x + 10, 10), f"{name}{x:.0f}", score, source) for x, score in rows)
    return build_candidates(Detections(items, num_dropped=1), WH, policy, detector=name)


def labels(built: BuiltCandidates) -> list[str]:
    return [candidate.label for candidate in built.candidates]


def test_boxes_that_coincide_are_those_of_the_detector_named_first() -> None:
    one, two = part("a", (0, 0.1), (500, 0.2)), part("b", (1, 0.9), (200, 0.8))
    policy = CandidatePolicy(order="left_to_right")
    assert labels(merge_candidates([one, two], policy, nms_iou=0.7)) == ["a0", "b200", "a500"]
    assert labels(merge_candidates([two, one], policy, nms_iou=0.7)) == ["b1", "b200", "a500"]
    assert labels(merge_candidates([one, two], policy, nms_iou=None)) == ["a0", "b1", "b200", "a500"]
    assert labels(merge_candidates([one, two], policy, nms_iou=0.9)) == ["a0", "b1", "b200", "a500"]


def test_twins_of_one_detector_are_left_to_its_own_policy() -> None:
    twins = part("a", (0, 0.9), (1, 0.8))
    assert labels(merge_candidates([twins, part("b", (0, 0.5))], FIRST, nms_iou=0.5)) == ["a0", "a1"]
    strict = part("a", (0, 0.9), (1, 0.8), policy=CandidatePolicy(order="detector", nms_iou=0.5))
    assert labels(merge_candidates([strict, part("b", (300, 0.5))], FIRST, nms_iou=0.5)) == ["a0", "b300"]


def test_origins_and_counts_account_for_every_output() -> None:
    one = part("a", (0, 0.1), (2000, 0.5), (500, 0.2))
    two = part("b", (1, 0.9), (200, 0.8), (300, 0.7))
    built = merge_candidates([one, two], CandidatePolicy(cap=3), nms_iou=0.7)
    assert labels(built) == ["a0", "b200", "a500"]
    assert built.origins == (0, 4, 2)
    assert {reason: count for reason, count in built.counts.items() if count} == {
        "not_a_box": 2,
        "outside_image": 1,
        "nms": 1,
        "over_cap": 1,
    }
    assert len(built.candidates) + sum(built.counts.values()) == 3 + 3 + 2


def test_under_the_cap_detectors_take_turns_whatever_their_scores() -> None:
    sure = part("a", (0, 0.99), (100, 0.98), (200, 0.97))
    shy = part("b", (300, 0.01), (400, 0.03), (500, 0.02))
    assert labels(merge_candidates([sure, shy], CandidatePolicy(cap=3), nms_iou=0.7)) == ["a0", "a100", "b400"]
    assert labels(merge_candidates([shy, sure], CandidatePolicy(cap=3), nms_iou=0.7)) == ["a0", "b400", "b500"]


def test_a_detector_that_found_nothing_is_no_trouble() -> None:
    nothing = part("a")
    assert labels(merge_candidates([nothing, part("b", (0, 0.5))], FIRST, nms_iou=0.7)) == ["b0"]
    assert merge_candidates([nothing, nothing], FIRST, nms_iou=0.7).candidates == ()
    assert detector_choice(merge_candidates([nothing, part("b", (5, 0.1), (50, 0.5))], FIRST, nms_iou=0.7)) == 1


def test_the_own_choice_is_that_of_the_detector_named_first() -> None:
    sure = part("a", (100, 0.99), (0, 0.98))
    shy = part("b", (300, 0.01), (400, 0.03))
    for order in ("left_to_right", "detector"):
        built = merge_candidates([shy, sure], CandidatePolicy(order=order), nms_iou=0.7)
        choice = detector_choice(built)
        assert choice is not None
        assert built.candidates[choice].label == "b400"
        assert [built.candidates[index].label for index in detector_order(built)] == ["b400", "a100", "b300", "a0"]


def test_one_detector_without_scores_keeps_its_own_answer() -> None:
    vlm = part("v", (700, None), (800, None), source="rec")
    built = merge_candidates([vlm, part("a", (100, 0.99))], FIRST, nms_iou=0.7)
    assert [built.candidates[index].label for index in detector_order(built)] == ["v700", "a100", "v800"]


def test_order_by_score_is_refused_and_shuffling_needs_a_generator() -> None:
    parts = [part("a", (0, 0.1)), part("b", (100, 0.9))]
    with pytest.raises(RecipeError, match=r"order=score cannot order an ensemble.*not comparable"):
        merge_candidates(parts, CandidatePolicy(order="score"), nms_iou=0.7)
    shuffled = CandidatePolicy(order="shuffled")
    with pytest.raises(RecipeError, match="needs a generator"):
        merge_candidates(parts, shuffled, nms_iou=0.7)
    orders = {
        tuple(labels(merge_candidates(parts, shuffled, nms_iou=0.7, rng=order_rng(seed, "s")))) for seed in range(8)
    }
    assert orders == {("a0", "b100"), ("b100", "a0")}


def test_detectors_are_compared_in_blocks() -> None:
    boxes = [Detection(Box(4.0 * n, 0, 4.0 * n + 3, 9), f"x{n}", 0.5, "od") for n in range(600)]
    policy = CandidatePolicy(cap=5000, order="detector")
    one, other = (build_candidates(Detections(tuple(boxes)), (4000, 9), policy, detector=name) for name in ("a", "b"))
    both = merge_candidates([one, other], policy, nms_iou=0.9)
    assert [candidate.detector for candidate in both.candidates] == ["a"] * 600
    assert both.counts["nms"] == 600
