"""The headroom of hand-made samples, and that its numbers are those of every other report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from llm_wrapper.candidates import OWN_ANSWER_SOURCE, BuiltCandidates
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.evaluation.headroom import Offer, compare_headroom, measure_offer
from llm_wrapper.evaluation.systems import by_detector, by_oracle
from llm_wrapper.metrics import RANKS, summarize
from llm_wrapper.records import Box, Candidate, Sample
from llm_wrapper.statistics import Estimate

TARGET = Box(0, 0, 10, 10)
WRONG = Box(50, 50, 60, 60)


def candidate(box: Box = WRONG, score: float | None = None, label: str = "mug", source: str = "od") -> Candidate:
    return Candidate(box, label, score, "scripted", source)


def wrong(number: int) -> Box:
    """Boxes that overlap neither the target nor each other."""
    return Box(20 * number + 20, 50, 20 * number + 30, 60)


def prepared_sample(
    *candidates: Candidate, number: int = 0, image: str | None = None, target: Box | None = TARGET
) -> PreparedSample:
    sample = Sample(f"s{number}", "r", image or f"image{number}", None, (999, 999), "x", target)
    return PreparedSample(sample, BuiltCandidates(candidates, tuple(range(len(candidates))), {}))


def at_rank(rank: int | None, number: int, num_candidates: int = 25) -> PreparedSample:
    """A prepared sample whose target is at a rank (from 1) by score, but is shown last; or nowhere."""
    ranked = [
        candidate(TARGET if place + 1 == rank else wrong(place), 1 - place / 100) for place in range(num_candidates)
    ]
    return prepared_sample(*reversed(ranked), number=number)


def values(offer: Offer) -> dict[int, float | None]:
    return {rank: share.value for rank, share in offer.recall.items()}


def test_recall_counts_targets_among_the_first() -> None:
    offer = measure_offer([at_rank(rank, number) for number, rank in enumerate((1, 2, 3, 5, 6, 20, 21, None))])
    assert values(offer) == {1: 1 / 8, 3: 3 / 8, 5: 4 / 8, 10: 5 / 8, 20: 6 / 8}
    assert (offer.own.value, offer.oracle.value, offer.gain.value) == (1 / 8, 7 / 8, 6 / 8)
    assert {share.n for share in (offer.own, offer.oracle, offer.gain, *offer.recall.values())} == {8}


@pytest.mark.parametrize(
    ("candidates", "first_right"),
    [
        pytest.param([candidate(WRONG, 0.1), candidate(TARGET, 0.9)], 1, id="the higher score leads"),
        pytest.param([candidate(WRONG, 0.5), candidate(TARGET, 0.5)], 3, id="then the detector's order"),
        pytest.param(
            [candidate(WRONG, 0.9), candidate(TARGET, source=OWN_ANSWER_SOURCE)], 1, id="its own answer leads"
        ),
        pytest.param([candidate(TARGET), candidate(Box(50, 50, 90, 90))], 3, id="the largest box leads"),
        pytest.param(
            [candidate(Box(50, 50, 90, 90)), *(candidate(wrong(n)) for n in range(3)), candidate(TARGET)],
            5,
            id="behind it the detector's order, not the size",
        ),
        pytest.param(
            [*(candidate(wrong(n)) for n in range(3)), candidate(Box(50, 50, 90, 90), 0.2), candidate(TARGET, 0.1)],
            3,
            id="scores stand before none",
        ),
        pytest.param(
            [candidate(wrong(0), 0.2), candidate(wrong(1)), candidate(wrong(2)), candidate(TARGET, 0.0)],
            3,
            id="even a score of 0",
        ),
        pytest.param(
            [
                candidate(WRONG, source=OWN_ANSWER_SOURCE),
                *(candidate(wrong(n)) for n in range(5, 8)),
                candidate(TARGET, source=OWN_ANSWER_SOURCE),
            ],
            3,
            id="further answers of its own stand before other tasks",
        ),
    ],
)
def test_the_detector_ranks_as_it_chooses(candidates: Sequence[Candidate], first_right: int) -> None:
    recall = values(measure_offer([prepared_sample(*candidates)]))
    assert recall == {rank: float(rank >= first_right) for rank in RANKS}


def test_the_shown_order_does_not_matter() -> None:
    shown = [candidate(TARGET, 0.3), candidate(WRONG, 0.9), *(candidate(wrong(n), 0.3) for n in range(5, 8))]
    offers = []
    for order in ((0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (1, 2, 3, 0, 4)):
        built = BuiltCandidates(tuple(shown[index] for index in order), order, {})
        offers.append(measure_offer([PreparedSample(prepared_sample().sample, built)]))
    assert offers[0] == offers[1] == offers[2]
    assert values(offers[0]) == {1: 0.0, 3: 1.0, 5: 1.0, 10: 1.0, 20: 1.0}


def random_samples(seed: int, *, scored: bool) -> list[PreparedSample]:
    """Forty samples of ten images, some without candidates or target, boxes near the target and far."""
    rng = np.random.default_rng(seed)

    def box() -> Box:
        x, y = rng.uniform(0, 12, 2)
        return Box(x, y, x + rng.uniform(4, 12), y + rng.uniform(4, 12))

    samples = []
    for number in range(40):
        found = [candidate(box(), float(rng.uniform()) if scored else None) for _ in range(rng.integers(0, 30))]
        target = None if number % 9 == 0 else TARGET
        samples.append(prepared_sample(*found, number=number, image=f"image{number % 10}", target=target))
    return samples


@pytest.mark.parametrize("scored", [True, False], ids=["scored", "without scores"])
@pytest.mark.parametrize("seed", range(3))
def test_the_numbers_are_those_of_the_reports(seed: int, scored: bool) -> None:
    samples = random_samples(seed, scored=scored)
    offer = measure_offer(samples)
    own, oracle = summarize(by_detector(samples)), summarize(by_oracle(samples))
    assert offer.own == Estimate(own.p_at_1, own.ci, own.n)
    assert offer.oracle == Estimate(oracle.p_at_1, oracle.ci, oracle.n)
    assert offer.oracle.value == own.oracle_p_at_1
    assert offer.recall[1] == offer.own
    recall = [share.value for share in (*offer.recall.values(), offer.oracle)]
    assert recall == sorted(recall)
    assert offer.gain.value == pytest.approx(oracle.p_at_1 - own.p_at_1)
    assert offer.gain.ci is not None
    assert offer.gain.ci.low <= offer.gain.value <= offer.gain.ci.high


def test_counts_are_over_all_samples_with_or_without_target() -> None:
    samples = [
        prepared_sample(number=0),
        prepared_sample(candidate(TARGET), number=1),
        prepared_sample(candidate(), number=2, target=None),
        prepared_sample(*(candidate(wrong(n)) for n in range(5)), number=3, target=None),
    ]
    offer = measure_offer(samples)
    assert (offer.no_candidate.value, offer.no_candidate.n) == (1 / 4, 4)
    assert (offer.one_candidate.value, offer.one_candidate.n) == (2 / 4, 4)
    assert (offer.per_sample.mean, offer.per_sample.median, offer.per_sample.max) == (7 / 4, 1.0, 5)
    assert (offer.own.value, offer.own.n) == (1 / 2, 2)


def test_without_targets_nothing_is_claimed() -> None:
    offer = measure_offer([prepared_sample(candidate(), number=number, target=None) for number in range(3)])
    for share in (offer.own, offer.oracle, offer.gain, *offer.recall.values()):
        assert share == Estimate(None, None, 0)
    assert offer.one_candidate.value == 1.0


def test_without_any_candidate_nothing_is_claimed_of_them() -> None:
    offer = measure_offer([prepared_sample(number=0), prepared_sample(number=1)])
    assert offer.duplicates == Estimate(None, None, 0)
    assert (offer.own.value, offer.oracle.value, offer.no_candidate.value) == (0.0, 0.0, 1.0)


def test_one_image_has_no_interval() -> None:
    offer = measure_offer([prepared_sample(candidate(TARGET), number=number, image="same") for number in range(3)])
    assert offer.own == Estimate(1.0, None, 3)
    assert offer.gain == Estimate(0.0, None, 3)


NEAR = Box(0, 0, 10, 9.6)
"""IoU 0.96 with the target."""


@pytest.mark.parametrize(
    ("candidates", "share"),
    [
        pytest.param([candidate(TARGET), candidate(NEAR)], 1 / 2, id="nearly the same box"),
        pytest.param([candidate(TARGET), candidate(Box(0, 0, 10, 9.5))], 0.0, id="0.95 is not above it"),
        pytest.param([candidate(TARGET), candidate(NEAR, label="cup")], 0.0, id="another label"),
        pytest.param([candidate(TARGET), candidate(NEAR, label="Mug")], 0.0, id="labels as they are shown"),
        pytest.param([candidate(TARGET), candidate(NEAR), candidate(NEAR, source="dense")], 2 / 3, id="two repeats"),
        pytest.param([candidate(TARGET), candidate(WRONG)], 0.0, id="elsewhere"),
    ],
)
def test_repeated_candidates_are_counted(candidates: Sequence[Candidate], share: float) -> None:
    found = measure_offer([prepared_sample(*candidates)]).duplicates
    assert (found.value, found.n) == (pytest.approx(share), len(candidates))


def cut(samples: Sequence[PreparedSample], cap: int) -> list[PreparedSample]:
    """Keep the first candidates shown."""
    return [
        PreparedSample(
            each.sample,
            BuiltCandidates(each.built.candidates[:cap], each.built.origins[:cap], {}),
        )
        for each in samples
    ]


def test_what_the_cap_takes_is_told() -> None:
    before = [
        prepared_sample(candidate(wrong(0)), candidate(wrong(1)), candidate(TARGET), number=0),
        prepared_sample(candidate(wrong(0)), candidate(TARGET), candidate(wrong(1)), candidate(wrong(2)), number=1),
        prepared_sample(candidate(TARGET), number=2),
        prepared_sample(*(candidate(wrong(n)) for n in range(3)), number=3, image="image2", target=None),
    ]
    after = cut(before, 2)
    result = compare_headroom(before, after)
    assert (result.before, result.after) == (measure_offer(before), measure_offer(after))
    assert (result.num_samples, result.num_images) == (4, 3)
    assert (result.num_capped, result.num_candidates_lost) == (3, 1 + 2 + 1)
    assert (result.lost.value, result.lost.n) == (pytest.approx(1 / 3), 3)
    assert result.lost.ci is not None


def test_a_cap_that_takes_nothing_costs_nothing() -> None:
    samples = random_samples(0, scored=True)
    result = compare_headroom(samples, samples)
    assert (result.num_capped, result.num_candidates_lost, result.lost.value) == (0, 0, 0.0)
    assert result.lost.ci == (0.0, 0.0)


def test_different_samples_are_not_compared() -> None:
    samples = [prepared_sample(candidate(), number=number) for number in range(2)]
    other = PreparedSample(replace(samples[1].sample, expression="y"), samples[1].built)
    for before, after in ((samples, samples[:1]), (samples, samples[::-1]), (samples, [samples[0], other]), ([], [])):
        with pytest.raises(ValueError, match="the same samples are needed"):
            compare_headroom(before, after)
