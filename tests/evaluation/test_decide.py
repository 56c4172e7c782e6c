import numpy as np
import pytest

from llm_wrapper import boxes
from llm_wrapper.candidates import BuiltCandidates, CandidatePolicy, build_candidates, detector_choice
from llm_wrapper.evaluation.predictions import INDEX_OUT_OF_RANGE, UNUSABLE_ANSWER, decide, oracle_choice
from llm_wrapper.metrics import summarize
from llm_wrapper.records import Box, Candidate, Choice, Detection, Detections, Sample

SAMPLE = Sample(
    sample_id="1",
    ref_id="1",
    image_id="zebras",
    image_path=None,
    image_wh=(640, 480),
    expression="left zebra",
    target=Box(12.0, 88.0, 300.0, 410.0),
    kind="spatial",
)
DETECTIONS = Detections(
    (
        Detection(Box(310.2, 80.0, 620.5, 420.0), "zebra", None, "od"),
        Detection(Box(15.0, 90.5, 298.0, 405.0), "zebra", None, "od"),
        Detection(Box(0.0, 300.0, 640.0, 480.0), "grass", None, "od"),
    )
)
BUILT = build_candidates(DETECTIONS, SAMPLE.image_wh, CandidatePolicy(order="detector"), detector="flo2")
CANDIDATES = BUILT.candidates


def built(*specs: tuple[float | None, str, float], origins: tuple[int, ...] | None = None) -> BuiltCandidates:
    """Candidates of (score, source, side in pixels), in shown order."""
    made = tuple(Candidate(Box(0, 0, side, side), "cat", score, "d", source) for score, source, side in specs)
    return BuiltCandidates(made, tuple(range(len(made))) if origins is None else origins, {})


def test_walk_through_sample() -> None:
    assert SAMPLE.target is not None
    overlap = boxes.pairwise_iou(boxes.array([c.box for c in CANDIDATES]), boxes.array([SAMPLE.target]))[:, 0]
    np.testing.assert_array_equal(overlap.round(4), [0.0, 0.9598, 0.1797])

    oracle = oracle_choice(CANDIDATES, SAMPLE.target)
    assert oracle == Choice(1)
    by_llm = decide(
        SAMPLE,
        CANDIDATES,
        Choice(1, 0.8),
        system="flo2-llama3",
        decided_by="llm",
        own_choice=detector_choice(BUILT),
        probabilities=(0.1, 0.8, 0.1),
    )
    by_oracle = decide(SAMPLE, CANDIDATES, oracle, system="oracle", decided_by="oracle", own_choice=None)
    assert by_llm.box == by_oracle.box == DETECTIONS.items[1].box
    assert (by_llm.decided_by, by_llm.probability, by_llm.failure) == ("llm", 0.8, None)
    assert (by_llm.sample_id, by_llm.image_id, by_llm.expression, by_llm.kind) == (
        "1",
        "zebras",
        "left zebra",
        "spatial",
    )
    assert (by_llm.target, by_llm.candidates, by_llm.probabilities) == (SAMPLE.target, CANDIDATES, (0.1, 0.8, 0.1))
    for prediction in (by_llm, by_oracle):
        summary = summarize([prediction])
        assert (summary.p_at_1, summary.oracle_p_at_1) == (1.0, 1.0)
        assert summary.mean_iou == pytest.approx(0.9598, abs=5e-5)


@pytest.mark.parametrize(
    ("num_candidates", "choice", "own_choice", "box", "decided_by", "failure"),
    [
        pytest.param(0, None, None, None, "no_candidate", None, id="none"),
        pytest.param(0, Choice(0), None, None, "no_candidate", None, id="none_but_chosen"),
        pytest.param(1, None, None, 0, "single_candidate", None, id="single"),
        pytest.param(1, Choice(5, 0.9), 0, 0, "single_candidate", None, id="single_out_of_range"),
        pytest.param(1, Choice(None, reason="not_a_number"), None, 0, "single_candidate", None, id="single_unusable"),
        pytest.param(3, Choice(2, 0.4), 0, 2, "llm", None, id="chosen"),
        pytest.param(3, Choice(0), 2, 0, "llm", None, id="first"),
        pytest.param(3, Choice(None, reason="not_a_number"), 2, 2, "fallback", "not_a_number", id="unusable"),
        pytest.param(3, Choice(None, reason="not_a_number"), None, None, "fallback", "not_a_number", id="without_own"),
        pytest.param(3, Choice(None), 0, 0, "fallback", UNUSABLE_ANSWER, id="no_reason"),
        pytest.param(3, Choice(3, 0.9), 1, 1, "fallback", INDEX_OUT_OF_RANGE, id="beyond"),
        pytest.param(3, Choice(-1, 0.9), 1, 1, "fallback", INDEX_OUT_OF_RANGE, id="negative"),
    ],
)
def test_every_rule(
    num_candidates: int,
    choice: Choice | None,
    own_choice: int | None,
    box: int | None,
    decided_by: str,
    failure: str | None,
) -> None:
    candidates = CANDIDATES[:num_candidates]
    prediction = decide(SAMPLE, candidates, choice, system="s", decided_by="llm", own_choice=own_choice)
    assert prediction.box == (None if box is None else candidates[box].box)
    assert (prediction.decided_by, prediction.failure) == (decided_by, failure)
    asked = decided_by == "llm" and choice is not None
    assert prediction.probability == (choice.probability if asked and choice else None)


def test_nobody_asked_where_there_is_a_choice_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="sample '1' has 3 candidates but no choice"):
        decide(SAMPLE, CANDIDATES, None, system="s", decided_by="llm", own_choice=0)


@pytest.mark.parametrize("own_choice", [3, -1])
def test_an_own_choice_that_does_not_exist_is_a_mistake(own_choice: int) -> None:
    with pytest.raises(ValueError, match=f"own choice {own_choice} of 3"):
        decide(SAMPLE, CANDIDATES, Choice(0), system="s", decided_by="llm", own_choice=own_choice)


def test_probabilities_must_fit_the_candidates() -> None:
    with pytest.raises(ValueError, match="2 probabilities for 3"):
        decide(SAMPLE, CANDIDATES, Choice(0), system="s", decided_by="llm", own_choice=0, probabilities=(0.5, 0.5))


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        pytest.param(built(), None, id="none"),
        pytest.param(built((0.2, "od", 9), (0.9, "od", 1)), 1, id="highest_score"),
        pytest.param(built((0.9, "od", 1), (0.9, "od", 9)), 0, id="first_of_equal_scores"),
        pytest.param(built((0.9, "od", 1), (0.9, "od", 9), origins=(7, 3)), 1, id="first_in_detector_order"),
        pytest.param(built((0.2, "rec", 9), (0.9, "od", 1)), 1, id="scores_before_own_answer"),
        pytest.param(built((None, "od", 9), (None, "rec", 1), (None, "rec", 2)), 1, id="own_answer"),
        pytest.param(built((None, "rec", 1), (None, "rec", 2), origins=(5, 4)), 1, id="first_own_answer"),
        pytest.param(built((None, "od", 1), (None, "od", 9), (None, "od", 9)), 1, id="largest"),
        pytest.param(built((None, "od", 9), (None, "od", 9), origins=(1, 0)), 1, id="first_of_the_largest"),
        pytest.param(built((0.9, "od", 9), (None, "rec", 1)), 1, id="own_answer_before_some_scores"),
        pytest.param(built((None, "od", 9), (0.1, "od", 1)), 1, id="some_scores"),
    ],
)
def test_detector_choice(candidates: BuiltCandidates, expected: int | None) -> None:
    assert detector_choice(candidates) == expected


def test_detector_choice_of_the_walk_through_is_the_largest_box() -> None:
    # 640 x 180 of grass is larger than either zebra, so the detector alone is wrong here.
    assert detector_choice(BUILT) == 2


@pytest.mark.parametrize("order", ["detector", "left_to_right"])
def test_detector_choice_does_not_depend_on_the_shown_order(order: str) -> None:
    policy = CandidatePolicy.model_validate({"order": order})
    result = build_candidates(DETECTIONS, SAMPLE.image_wh, policy, detector="flo2")
    choice = detector_choice(result)
    assert choice is not None
    assert result.candidates[choice].label == "grass"


@pytest.mark.parametrize(
    ("num_candidates", "target", "expected"),
    [
        (0, SAMPLE.target, Choice(None, reason="no_candidate")),
        (3, None, Choice(None, reason="none_of_these")),
        (3, Box(600.0, 0.0, 610.0, 10.0), Choice(0)),
    ],
    ids=["no_candidate", "no_target", "first_of_equals"],
)
def test_oracle_choice(num_candidates: int, target: Box | None, expected: Choice) -> None:
    assert oracle_choice(CANDIDATES[:num_candidates], target) == expected
