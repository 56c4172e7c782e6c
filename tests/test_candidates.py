import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

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
from llm_wrapper.records import Box, Candidate, Detection, Detections

WH = (640, 480)
ZEBRA_RIGHT = Detection(Box(310.2, 80.0, 620.5, 420.0), "zebra", None, "od")
ZEBRA_LEFT = Detection(Box(15.0, 90.5, 298.0, 405.0), "zebra", None, "od")
GRASS = Detection(Box(0.0, 300.0, 640.0, 480.0), "grass", None, "od")
WALK_THROUGH = Detections((ZEBRA_RIGHT, ZEBRA_LEFT, GRASS))


def built(items: list[Detection], *, rng: np.random.Generator | None = None, **policy: object) -> BuiltCandidates:
    return build_candidates(
        Detections(tuple(items)), WH, CandidatePolicy.model_validate(policy), detector="flo2", rng=rng
    )


def at(x: float, *, score: float | None = None, label: str = "cat", source: str = "od", side: float = 10) -> Detection:
    return Detection(Box(x, 0, x + side, side), label, score, source)


def dropped(result: BuiltCandidates) -> dict[str, int]:
    return {reason: count for reason, count in result.counts.items() if count}


@pytest.mark.parametrize(
    ("order", "origins"),
    [("detector", (0, 1, 2)), ("left_to_right", (1, 2, 0))],
)
def test_walk_through_sample(order: str, origins: tuple[int, ...]) -> None:
    result = build_candidates(WALK_THROUGH, WH, CandidatePolicy.model_validate({"order": order}), detector="flo2")
    assert result.origins == origins
    assert [c.box for c in result.candidates] == [WALK_THROUGH.items[i].box for i in origins]
    assert result.candidates[0] == Candidate(result.candidates[0].box, "zebra", None, "flo2", "od")
    assert dropped(result) == {}


def test_no_detection_gives_no_candidate() -> None:
    result = build_candidates(Detections((), num_dropped=3), WH, CandidatePolicy(nms_iou=0.5), detector="flo2")
    assert result.candidates == ()
    assert dropped(result) == {"not_a_box": 3}


def test_sources_keep_only_the_named_tasks() -> None:
    result = built([at(0, source="od"), at(20, source="rec"), at(40, source="dense")], sources=["rec", "dense"])
    assert [c.source for c in result.candidates] == ["rec", "dense"]
    assert dropped(result) == {"other_source": 1}


@pytest.mark.parametrize(
    ("xyxy", "clipped"),
    [
        ((-5.0, -5.0, 10.0, 10.0), (0.0, 0.0, 10.0, 10.0)),
        ((630.0, 470.0, 1e9, 1e9), (630.0, 470.0, 640.0, 480.0)),
        ((640.0, 0.0, 650.0, 10.0), None),
        ((-10.0, 0.0, 0.0, 10.0), None),
    ],
    ids=["top_left", "far_beyond", "touches_right_edge", "touches_left_edge"],
)
def test_boxes_are_clipped_to_the_image(xyxy: tuple[float, ...], clipped: tuple[float, ...] | None) -> None:
    result = built([Detection(Box(*xyxy), "cat", None, "od")])
    assert [c.box.xyxy for c in result.candidates] == ([] if clipped is None else [clipped])
    assert dropped(result) == ({"outside_image": 1} if clipped is None else {})


def test_min_score_keeps_equality() -> None:
    result = built([at(0, score=0.2), at(20, score=0.19), at(40, score=0.21)], min_score=0.2)
    assert [c.score for c in result.candidates] == [0.2, 0.21]
    assert dropped(result) == {"low_score": 1}


@pytest.mark.parametrize("policy", [{"min_score": 0.1}, {"order": "score"}], ids=["min_score", "order"])
def test_a_policy_on_scores_refuses_detections_without(policy: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=r"needs scores, but detector 'flo2' gave none for 'dog' \(source 'rec'\)"):
        built([at(0, score=0.5), at(20, label="dog", source="rec")], **policy)


def test_score_policies_ignore_unscored_sources_that_are_left_out() -> None:
    result = built([at(0, score=0.3), at(20, source="rec"), at(40, score=0.9)], order="score", sources=["od"])
    assert [c.score for c in result.candidates] == [0.9, 0.3]


def test_duplicates_need_the_same_box_and_label_and_the_best_stays() -> None:
    result = built([at(0, score=0.1), at(0, score=0.8), at(0, score=0.7, label=" A\nDOG ")])
    assert [(c.label, c.score) for c in result.candidates] == [("cat", 0.8), (" A\nDOG ", 0.7)]  # labels stay raw
    assert dropped(result) == {"duplicate": 1}


def test_boxes_that_become_equal_by_clipping_are_duplicates() -> None:
    assert built([Detection(Box(x, 0, 10, 10), "cat", None, "od") for x in (-1, -2)]).origins == (0,)


@pytest.mark.parametrize(
    ("scores", "sources", "kept"),
    [
        ((0.3, 0.9), ("od", "od"), (1,)),
        ((None, None), ("od", "od"), (0,)),
        ((None, 0.1), ("od", "od"), (1,)),
        ((None, None), ("od", "rec"), (1,)),
    ],
    ids=["higher_score", "detector_order", "a_score_before_none", "own_answer"],
)
def test_nms_keeps_the_best_across_labels(
    scores: tuple[float | None, ...], sources: tuple[str, ...], kept: tuple[int, ...]
) -> None:
    items = [at(0, score=scores[0], source=sources[0]), at(1, score=scores[1], source=sources[1], label="dog")]
    result = built(items, nms_iou=0.5)
    assert result.origins == kept
    assert dropped(result) == {"nms": 1}


def test_nms_keeps_boxes_at_the_threshold() -> None:
    items = [Detection(Box(0, 0, 2, 1), "cat", 0.9, "od"), Detection(Box(0, 0, 1, 1), "cat", 0.8, "od")]
    assert len(built(items, nms_iou=0.5).candidates) == 2
    assert len(built(items, nms_iou=0.49).candidates) == 1


@pytest.mark.parametrize(
    ("scores", "sources", "origins"),
    [
        ((0.1, 0.9, 0.5), ("od", "od", "od"), (1, 2)),
        ((None, None, None), ("od", "od", "od"), (0, 1)),
        ((None, None, None), ("od", "od", "rec"), (0, 2)),
    ],
    ids=["highest_scores", "first_of_the_detector", "own_answer_stays"],
)
def test_cap(scores: tuple[float | None, ...], sources: tuple[str, ...], origins: tuple[int, ...]) -> None:
    items = [at(20 * i, score=scores[i], source=sources[i]) for i in range(3)]
    result = built(items, cap=2, order="detector")
    assert result.origins == origins
    assert dropped(result) == {"over_cap": 1}


def test_left_to_right_breaks_ties_by_center_y_then_detector_order() -> None:
    low, high = Detection(Box(0, 50, 10, 60), "low", None, "od"), Detection(Box(0, 0, 10, 10), "high", None, "od")
    same = Detection(Box(2, 2, 8, 8), "same", None, "od")
    assert [c.label for c in built([low, high, same]).candidates] == ["high", "same", "low"]


def test_score_order_is_stable_for_equal_scores() -> None:
    items = [at(40, score=0.5), at(20, score=0.9), at(0, score=0.5)]
    assert built(items, order="score").origins == (1, 0, 2)


def test_shuffled_is_the_same_for_the_same_seed_and_sample_only() -> None:
    items = [at(20 * i) for i in range(12)]
    orders = [
        built(items, order="shuffled", rng=order_rng(seed, name)).origins
        for seed, name in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))
    ]
    assert orders[0] == orders[1]
    assert len(set(orders)) == 3
    assert sorted(orders[0]) == list(range(12))


def test_shuffled_needs_a_generator() -> None:
    with pytest.raises(RecipeError, match="order_rng"):
        built([at(0), at(20)], order="shuffled")


def test_order_rng_is_pinned_and_leaves_the_global_state_alone() -> None:
    before = np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    # The bits, because numpy does not promise that `permutation` stays the same across its versions.
    assert order_rng(0, "refcocog:1").bit_generator.random_raw() == 15969772122511277284
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index,union-attr]


def test_seed_and_sample_id_cannot_be_confused() -> None:
    assert order_rng(1, "1").integers(1 << 60) != order_rng(11, "").integers(1 << 60)


BAD_VALUES = {"cap": [1], "nms_iou": [0.0, 1.1, np.nan], "min_score": [-0.1, np.nan], "sources": [[]],
              "order": ["random"], "topk": [5]}  # fmt: skip


@pytest.mark.parametrize("policy", [{key: value} for key in BAD_VALUES for value in BAD_VALUES[key]], ids=str)
def test_bad_policies_are_refused(policy: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CandidatePolicy.model_validate(policy)


coordinates = st.floats(-100, 700, allow_nan=False)
detections = st.builds(
    lambda x, y, w, h, label, score, source: Detection(Box(x, y, x + w, y + h), label, score, source),
    coordinates,
    coordinates,
    st.floats(1, 300),
    st.floats(1, 300),
    st.sampled_from(["cat", "dog"]),
    st.floats(0, 1) | st.none(),
    st.sampled_from(["od", "rec"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(detections, max_size=12), st.sampled_from([None, 0.3, 1.0]), st.integers(2, 5))
def test_every_output_of_the_detector_is_accounted_for(items: list[Detection], nms: float | None, cap: int) -> None:
    result = built(items, nms_iou=nms, cap=cap, sources=["od"])
    assert len(result.candidates) + sum(result.counts.values()) == len(items)
    assert len(set(result.origins)) == len(result.origins) == len(result.candidates) <= cap
    for candidate, origin in zip(result.candidates, result.origins, strict=True):
        assert (candidate.label, candidate.score) == (items[origin].label, items[origin].score)


@pytest.mark.slow
def test_nms_works_in_a_fresh_process_with_warnings_as_errors() -> None:
    code = (
        "from tests.test_candidates import at, built\n"
        "assert built([at(0), at(1)], nms_iou=0.5).origins == (0,)\n"
        "import sys; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], check=True, cwd=Path(__file__).parents[1])


def crowd(number: int, *, seed: int = 0, wh: tuple[int, int] = (1000, 1000)) -> list[Detection]:
    rng = np.random.default_rng(seed)
    corners, sides = rng.uniform(0, wh[0] - 70, (number, 2)), rng.uniform(20, 60, (number, 2))
    rows = np.column_stack([corners, corners + sides]).tolist()
    return [
        Detection(Box(*row), "cat", float(score), "od") for row, score in zip(rows, rng.random(number), strict=True)
    ]


@pytest.mark.parametrize("nms_iou", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("number", [255, 256, 257, 900])
def test_suppression_in_blocks_is_that_of_all_pairs_at_once(number: int, nms_iou: float) -> None:
    items = sorted(crowd(number), key=lambda item: -item.score)  # type: ignore[operator]
    rows = np.array([[*item.box.xyxy, item.score] for item in items])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says at import that it works without OpenCV
        import supervision
    expected = [index for index, stays in enumerate(supervision.box_non_max_suppression(rows, nms_iou)) if stays]
    policy = CandidatePolicy(nms_iou=nms_iou, cap=number, order="detector")
    result = build_candidates(Detections(tuple(items)), (1000, 1000), policy, detector="flo2")
    assert list(result.origins) == expected
    assert dropped(result) == ({"nms": number - len(expected)} if len(expected) < number else {})


@pytest.mark.parametrize(
    ("number", "nms_iou"),
    [
        (3001, None),
        pytest.param(20_000, None, marks=pytest.mark.slow),
        pytest.param(20_000, 0.99, marks=pytest.mark.slow),
    ],
)
def test_a_crowd_is_cut_by_score_before_pairs_are_compared(number: int, nms_iou: float | None) -> None:
    items = crowd(number)
    tracemalloc.start()
    policy = CandidatePolicy(nms_iou=nms_iou, cap=10**9, order="score")
    result = build_candidates(Detections(tuple(items)), (1000, 1000), policy, detector="flo2")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000_000
    assert len(result.candidates) + result.counts["nms"] == 3000
    assert result.counts["over_cap"] == number - 3000
    scores = sorted((item.score or 0.0 for item in items), reverse=True)
    assert result.candidates[0].score == scores[0]
    assert min(candidate.score or 0.0 for candidate in result.candidates) >= scores[2999]


# several detectors: their candidates become one list

FIRST = CandidatePolicy(order="detector")


def part(
    name: str, *rows: tuple[float, float | None], policy: CandidatePolicy = FIRST, source: str = "od"
) -> BuiltCandidates:
    """Candidates of one detector: boxes of 10 x 10 at the given x, with scores; one output was no box."""
    items = tuple(Detection(Box(x, 0, x + 10, 10), f"{name}{x:.0f}", score, source) for x, score in rows)
    return build_candidates(Detections(items, num_dropped=1), (1000, 100), policy, detector=name)


def labels(each: BuiltCandidates) -> list[str]:
    return [candidate.label for candidate in each.candidates]


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
    assert dropped(built) == {"not_a_box": 2, "outside_image": 1, "nms": 1, "over_cap": 1}
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
