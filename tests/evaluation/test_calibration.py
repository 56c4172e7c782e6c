from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from llm_wrapper.evaluation.calibration import (
    NUM_BINS,
    calibrate,
    confidences,
    risk_coverage,
    threshold_for_risk,
)
from tests.evaluation.made import TARGET, made

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
NONE = (np.empty(0), np.empty(0, dtype=np.bool_))


def outcomes(n: int, *, seed: int = 0, digits: int = 12) -> tuple[FloatArray, BoolArray]:
    """Confidences and whether each is right, a bit less often than it says."""
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.beta(4, 1, size=n), digits)
    return confidence, rng.random(n) < confidence**1.5


@pytest.mark.parametrize("digits", [12, 1], ids=["distinct", "many-equals"])
def test_reliability_is_that_of_scikit_learn(digits: int) -> None:
    sklearn = pytest.importorskip("sklearn.calibration", reason="scikit-learn, the independent curve, is not installed")
    confidence, right = outcomes(500, digits=digits)
    accuracy, mean = sklearn.calibration_curve(right, confidence, n_bins=NUM_BINS, strategy="quantile")
    found = calibrate(confidence, right)
    np.testing.assert_allclose([each.accuracy for each in found.bins], accuracy)
    np.testing.assert_allclose([each.confidence for each in found.bins], mean)


def test_ece_by_hand() -> None:
    # Two bins, split at the median 0.7: (0.6, 0.6) with one right, (0.8, 1.0) with both right.
    found = calibrate(np.array([0.6, 0.6, 0.8, 1.0, np.nan]), np.array([True, False, True, True, False]), num_bins=2)
    assert found.bins == ((2, pytest.approx(0.6), 0.5), (2, pytest.approx(0.9), 1.0))
    assert found.ece == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    assert (found.n, found.num_unknown) == (4, 1)


def test_without_probabilities_there_is_no_calibration() -> None:
    assert calibrate(np.array([np.nan]), np.array([True])) == calibrate(np.array([np.nan]), np.array([False]))
    assert calibrate(*NONE).ece is None


def test_risk_and_coverage_by_hand() -> None:
    confidence = np.array([0.9, 0.5, 0.9, np.nan, 0.7])
    right = np.array([True, True, False, False, True])
    curve = risk_coverage(confidence, right)
    assert curve.thresholds.tolist() == [0.9, 0.7, 0.5, -np.inf]
    assert curve.coverage.tolist() == [0.4, 0.6, 0.8, 1.0]
    np.testing.assert_allclose(curve.risk, [1 / 2, 1 / 3, 1 / 4, 2 / 5])
    # Of the two equals one is wrong, first or second: 0.5 each on average.
    assert curve.aurc == pytest.approx(np.mean([0.5, 1 / 2, 1 / 3, 1 / 4, 2 / 5]))


def test_nothing_has_no_area() -> None:
    curve = risk_coverage(*NONE)
    assert (curve.aurc, len(curve.risk)) == (None, 0)
    assert threshold_for_risk(*NONE, 0.5) is None


rates = arrays.arrays(np.float64, st.integers(1, 30), elements=st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0, np.nan]))


@settings(deadline=None, max_examples=80)
@given(rates, st.randoms(use_true_random=False))
def test_invariants(confidence: FloatArray, random: object) -> None:
    right = np.array([bool(random.getrandbits(1)) for _ in confidence])  # type: ignore[attr-defined]
    curve = risk_coverage(confidence, right)
    assert (np.diff(curve.coverage) > 0).all()
    assert (curve.coverage[-1], curve.thresholds[-1]) == (1.0, -np.inf)
    assert curve.risk[-1] == pytest.approx((~right).mean())
    assert ((curve.risk >= 0) & (curve.risk <= 1)).all()
    assert curve.aurc is not None
    assert 0 <= curve.aurc <= 1
    order = np.array(random.sample(range(len(right)), len(right)))  # type: ignore[attr-defined]
    again, calibrated = risk_coverage(confidence[order], right[order]), calibrate(confidence[order], right[order])
    assert again.aurc == pytest.approx(curve.aurc)
    expected = calibrate(confidence, right).ece
    assert calibrated.ece == (None if expected is None else pytest.approx(expected))
    assert sum(each.n for each in calibrated.bins) == calibrated.n == len(right) - calibrated.num_unknown
    best = risk_coverage(right.astype(np.float64), right).aurc
    assert best is not None
    assert best <= curve.aurc + 1e-12, "nobody orders better than one who knows"


@settings(deadline=None, max_examples=80)
@given(rates, st.floats(0, 1), st.randoms(use_true_random=False))
def test_a_threshold_keeps_its_promise_where_it_was_chosen(confidence: FloatArray, risk: float, random: object) -> None:
    right = np.array([bool(random.getrandbits(1)) for _ in confidence])  # type: ignore[attr-defined]
    threshold = threshold_for_risk(confidence, right, risk)
    curve = risk_coverage(confidence, right)
    if threshold is None:
        assert (curve.risk > risk).all()
        return
    answered = np.nan_to_num(confidence, nan=-np.inf) >= threshold
    assert (~right[answered]).mean() <= risk + 1e-12
    more = curve.coverage > answered.mean() + 1e-12
    assert (curve.risk[more] > risk).all(), "more could have been answered"


def test_a_threshold_of_one_slice_is_used_on_another() -> None:
    confidence, right = outcomes(4000)
    threshold = threshold_for_risk(confidence[:2000], right[:2000], 0.15)
    assert threshold is not None
    answered = confidence[2000:] >= threshold
    assert (~right[2000:][answered]).mean() == pytest.approx(0.15, abs=0.03)
    assert 0.1 < answered.mean() < 0.9


def test_confidences_of_records() -> None:
    np.testing.assert_array_equal(confidences([made("a", TARGET, probability=0.25), made("b")]), [0.25, np.nan])
    assert confidences([]).shape == (0,)


@pytest.mark.parametrize(
    ("confidence", "right", "message"),
    [
        pytest.param([0.5], [True, False], "per sample", id="lengths"),
        pytest.param([0.5], [1], "per sample", id="numbers"),
        pytest.param([50.0, 0.5], [True, False], "1 confidences are outside 0..1, the first is 50.0", id="percent"),
        pytest.param([-np.inf], [True], "outside", id="infinite"),
    ],
)
def test_what_does_not_fit_is_refused(confidence: list[float], right: list[object], message: str) -> None:
    for function in (calibrate, risk_coverage):
        with pytest.raises(ValueError, match=message):
            function(np.array(confidence), np.array(right))
    with pytest.raises(ValueError, match="risk must be"):
        threshold_for_risk(np.array([0.5]), np.array([True]), 5)
