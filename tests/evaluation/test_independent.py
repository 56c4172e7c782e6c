"""Statistics against somebody else's: scipy, scikit-learn, pycocotools; and what must hold whatever the predictions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_wrapper import metrics
from llm_wrapper.candidates import BuiltCandidates
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.evaluation import systems
from llm_wrapper.evaluation.calibration import calibrate, risk_coverage
from llm_wrapper.evaluation.comparison import compare_systems
from llm_wrapper.evaluation.slices import recall
from llm_wrapper.metrics import RANKS, mean_accuracy, recall_at, summarize, summarize_columns
from llm_wrapper.prompts.render import PromptBuilder
from llm_wrapper.recipe import PromptSection
from llm_wrapper.records import Answer, Box, Candidate, Prediction, Prompt, Sample
from llm_wrapper.statistics import bootstrap_interval, paired_bootstrap
from tests.evaluation.made import TARGET, made, wide
from tests.fake_llm import FakeLLM

FloatArray = npt.NDArray[np.float64]

WH = (200, 200)


def clustered(seed: int = 0, images: int = 150) -> tuple[FloatArray, FloatArray, npt.NDArray[np.intp]]:
    """Two systems, right or wrong on one to five expressions of each image, which share how hard the image is."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(images), rng.integers(1, 6, size=images))
    easy = rng.beta(1, 1, size=images)[groups]
    a, b = ((rng.random(len(groups)) < easy * share).astype(np.float64) for share in (1.0, 0.8))
    return a, b, groups


def of_scipy(totals: FloatArray, counts: FloatArray) -> tuple[float, float]:
    """The interval of a ratio of sums over images, each drawn with all that is in it."""
    found = scipy.stats.bootstrap(
        (totals, counts),
        lambda total, count, axis=-1: total.sum(axis) / count.sum(axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    return float(found.low), float(found.high)


@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_over_images_are_those_of_scipy(seed: int) -> None:
    a, b, groups = clustered(seed)
    counts = np.bincount(groups).astype(np.float64)
    low, high = of_scipy(np.bincount(groups, weights=a), counts)
    ours = bootstrap_interval(a, groups, num_resamples=20_000)
    assert ours == pytest.approx((low, high), abs=0.05 * (high - low))
    low, high = of_scipy(np.bincount(groups, weights=a - b), counts)
    ours = paired_bootstrap(a, b, groups, num_resamples=20_000)
    assert ours == pytest.approx((low, high), abs=0.05 * (high - low))
    alone = scipy.stats.bootstrap((a - b,), np.mean, method="percentile", rng=np.random.default_rng(1))
    assert (high - low) != pytest.approx(np.subtract(*alone.confidence_interval[::-1]), rel=0.01), "images do matter"


def test_a_comparison_is_tested_as_scipy_does() -> None:
    a, b, groups = clustered(2)
    first, second = (
        [
            made(str(i), TARGET if right else wide(0.2), system=name, image_id=str(image))
            for i, (right, image) in enumerate(zip(values, groups, strict=True))
        ]
        for name, values in (("a", a), ("b", b))
    )
    found = compare_systems(first, second).mcnemar
    # The exact conditional test of two proportions of the same samples is a sign test of those that differ.
    signs = (a - b)[a != b]
    assert found.p_value == pytest.approx(scipy.stats.binomtest(int((signs > 0).sum()), len(signs)).pvalue)
    assert found.p_value == pytest.approx(
        scipy.stats.wilcoxon(signs, zero_method="wilcox", method="asymptotic").pvalue, abs=0.01
    )


def test_calibration_error_is_that_of_scikit_learns_curve() -> None:
    sklearn = pytest.importorskip("sklearn.calibration", reason="scikit-learn, the independent curve, is not installed")
    rng = np.random.default_rng(3)
    confidence = rng.beta(4, 1, size=600)
    right = rng.random(600) < confidence**1.5
    found = calibrate(confidence, right, num_bins=12)
    accuracy, mean = sklearn.calibration_curve(right, confidence, n_bins=12, strategy="quantile")
    # 600 distinct values in 12 bins of equal mass: 50 in each.
    assert found.ece == pytest.approx(np.abs(accuracy - mean).mean())
    assert [each.n for each in found.bins] == [50] * 12


@pytest.mark.parametrize("digits", [12, 1], ids=["distinct", "many-equals"])
def test_risk_is_what_scikit_learns_precision_lacks(digits: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn, the independent curve, is not installed")
    rng = np.random.default_rng(4)
    confidence = np.round(rng.random(400), digits)
    right = rng.random(400) < confidence
    precision, recalled, thresholds = metrics.precision_recall_curve(right, confidence, drop_intermediate=False)
    curve = risk_coverage(confidence, right)
    np.testing.assert_allclose(curve.risk, 1 - precision[:-1][::-1])
    np.testing.assert_allclose(curve.thresholds[:-1], thresholds[1:][::-1])
    answered_right = recalled[:-1][::-1] * right.sum()
    np.testing.assert_allclose((1 - curve.risk) * curve.coverage * len(right), answered_right)


def test_scores_are_those_of_a_plain_loop_over_pycocotools() -> None:
    mask = pytest.importorskip("pycocotools.mask", reason="pycocotools, the independent IoU, is not installed")
    rng = random.Random(5)
    rows = []
    for number in range(200):
        found = [scattered(rng) for _ in range(rng.randrange(0, 7))]
        rows.append(made(str(number), rng.choice(found) if found else None, others=found, target=scattered(rng)))

    def overlap(box: Box | None, target: Box | None) -> float:
        if box is None or target is None:
            return 0.0
        corners = [[[each.x0, each.y0, each.x1 - each.x0, each.y1 - each.y0]] for each in (box, target)]
        return float(mask.iou(*(np.array(each) for each in corners), [0])[0, 0])

    chosen = [overlap(row.box, row.target) for row in rows]
    offered = [[overlap(candidate.box, row.target) for candidate in row.candidates] for row in rows]
    table = metrics.to_columns(rows)
    scores = summarize_columns(table)
    assert 0.02 < sum(value > 0.5 for value in chosen) / len(rows) < 0.98
    assert scores.p_at_1 == sum(value > 0.5 for value in chosen) / len(rows)
    assert scores.mean_iou == pytest.approx(sum(chosen) / len(rows))
    assert scores.oracle_p_at_1 == sum(max(each, default=0) > 0.5 for each in offered) / len(rows)
    thresholds = [0.5 + 0.05 * step for step in range(10)]
    assert mean_accuracy(table).value == pytest.approx(np.mean([[v > t + 1e-9 for t in thresholds] for v in chosen]))
    for rank, share in recall_at(table).items():
        assert share.value == sum(max(each[:rank], default=0) > 0.5 for each in offered) / len(rows)


# what must hold


def scattered(rng: random.Random) -> Box:
    x, y = rng.randrange(0, 20), rng.randrange(0, 20)
    return Box(x, y, x + rng.randrange(20, 60), y + rng.randrange(20, 60))


@st.composite
def samples(draw: st.DrawFn) -> list[PreparedSample]:
    """One to six samples with up to seven candidates, some of them right."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    result = []
    for number in range(draw(st.integers(1, 6))):
        offered = tuple(
            Candidate(scattered(rng), rng.choice(("dog", "cat")), round(rng.random(), 3), "tiny", "od")
            for _ in range(draw(st.integers(0, 7)))
        )
        sample = Sample(f"s{number}", "r", f"i{number // 2}", None, WH, "left dog", scattered(rng))
        result.append(PreparedSample(sample, BuiltCandidates(offered, tuple(range(len(offered))), {})))
    return result


COMPACT = PromptBuilder(PromptSection(format="compact"))


def biased(prompts: Sequence[Prompt]) -> list[Answer]:
    """An LLM that likes first places, and some boxes a little more than others."""
    answers = []
    for prompt in prompts:
        weights = [
            (5.0 if place == 0 else 1.0) * (1 + random.Random(repr(each)).random())
            for place, each in enumerate(prompt.candidates)
        ]
        answers.append(Answer(probabilities=tuple(weight / sum(weights) for weight in weights), mass=1.0))
    return answers


def permuted(prepared: PreparedSample, rng: random.Random) -> PreparedSample:
    order = rng.sample(range(len(prepared.built.candidates)), len(prepared.built.candidates))
    shown, places = (
        tuple(each[place] for place in order) for each in (prepared.built.candidates, prepared.built.origins)
    )
    built = BuiltCandidates(shown, places, {})
    return replace(prepared, built=built)


def chosen(rows: Sequence[Prediction]) -> list[Box | None]:
    return [row.box for row in rows]


@settings(deadline=None, max_examples=40)
@given(samples())
def test_no_system_is_better_than_the_oracle(found: list[PreparedSample]) -> None:
    best = summarize(systems.by_oracle(found))
    for rows in (
        systems.by_detector(found),
        systems.by_rule(found),
        systems.by_llm(found, "llm", COMPACT, FakeLLM(biased)),
    ):
        summary = summarize(rows)
        assert summary.p_at_1 is not None
        assert best.p_at_1 is not None
        assert summary.p_at_1 <= best.p_at_1
        assert summary.oracle_p_at_1 == best.p_at_1
        assert summary.mean_iou is not None
        assert best.mean_iou is not None
        assert summary.mean_iou <= best.mean_iou + 1e-12


@settings(deadline=None, max_examples=40)
@given(samples())
def test_recall_grows_from_the_detectors_choice_to_the_oracle(found: list[PreparedSample]) -> None:
    rows = systems.by_detector(found)
    shares = recall(rows)
    assert shares is not None
    values = [shares[rank].value or 0.0 for rank in RANKS]
    assert values == sorted(values)
    assert values[0] == summarize(rows).p_at_1
    assert values[-1] == summarize(systems.by_oracle(found)).p_at_1


@settings(deadline=None, max_examples=40)
@given(samples(), st.randoms(use_true_random=False))
def test_an_average_over_orders_does_not_see_the_order(found: list[PreparedSample], rng: random.Random) -> None:
    other = [permuted(prepared, rng) for prepared in found]
    rows, again = (systems.by_llm(each, "llm", COMPACT, FakeLLM(biased), orders=4) for each in (found, other))
    assert chosen(rows) == chosen(again)
    assert summarize(rows).p_at_1 == summarize(again).p_at_1


def test_one_order_alone_does_see_it() -> None:
    rng = random.Random(0)
    offered = tuple(Candidate(scattered(rng), "dog", None, "tiny", "od") for _ in range(6))
    prepared = PreparedSample(
        Sample("s", "r", "i", None, WH, "left dog", TARGET), BuiltCandidates(offered, tuple(range(6)), {})
    )
    found = {chosen(systems.by_llm([permuted(prepared, rng)], "llm", COMPACT, FakeLLM(biased)))[0] for _ in range(10)}
    assert len(found) > 1
