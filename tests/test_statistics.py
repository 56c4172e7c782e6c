import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats

from llm_wrapper import statistics
from llm_wrapper.statistics import (
    Estimate,
    Interval,
    bootstrap_interval,
    difference,
    estimate,
    mcnemar,
    paired_bootstrap,
)


def coin(n: int, p: float, *, seed: int = 0) -> npt.NDArray[np.float64]:
    return (np.random.default_rng(seed).random(n) < p).astype(np.float64)


def width(interval: Interval | None) -> float:
    assert interval is not None
    return interval.high - interval.low


@pytest.mark.parametrize("values", [coin(400, 0.7), np.random.default_rng(1).random(300)], ids=["binary", "continuous"])
def test_agrees_with_scipy_where_every_group_is_one_value(values: npt.NDArray[np.float64]) -> None:
    ours = bootstrap_interval(values, np.arange(len(values)), num_resamples=10_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.15 * (theirs.high - theirs.low) / 2)


@pytest.mark.parametrize(("level", "sigmas"), [(0.95, 1.96), (0.6827, 1.0)])
def test_width_matches_the_binomial_standard_error(level: float, sigmas: float) -> None:
    values = coin(2000, 0.6)
    error = np.sqrt(values.mean() * (1 - values.mean()) / len(values))
    interval = bootstrap_interval(values, np.arange(len(values)), num_resamples=20_000, level=level)
    assert width(interval) == pytest.approx(2 * sigmas * error, rel=0.04)


def test_groups_are_drawn_whole() -> None:
    # Five copies of a value hold no more information than one; drawing values would give an interval 2.2 x narrower.
    values = coin(300, 0.6)
    single = bootstrap_interval(values, np.arange(300))
    assert bootstrap_interval(np.repeat(values, 5), np.repeat(np.arange(300), 5)) == pytest.approx(single)


def test_the_mean_is_a_ratio_of_sums_over_groups_of_unequal_size() -> None:
    # One image with 90 wrong answers and ten with one right answer each: the mean over values is 0.1.
    values, groups = [0.0] * 90 + [1.0] * 10, ["big"] * 90 + [f"small{i}" for i in range(10)]
    interval = bootstrap_interval(values, groups, num_resamples=20_000)
    # Direct resampling of the 11 images as reference.
    sums, counts = np.array([0.0] + [1.0] * 10), np.array([90] + [1] * 10)
    drawn = np.random.default_rng(3).integers(11, size=(20_000, 11))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    assert interval == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.005)


def test_nominal_coverage() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for seed in range(200):
        rate = np.repeat(rng.beta(2, 1, size=80), 3)  # three expressions of one image share their difficulty
        interval = bootstrap_interval(rng.random(240) < rate, np.repeat(np.arange(80), 3), seed=seed, num_resamples=500)
        assert interval is not None
        hits += interval.low <= 2 / 3 <= interval.high
    assert 0.89 <= hits / 200 <= 0.99


def test_same_seed_same_interval_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values, groups = np.random.default_rng(0).random(60), [f"image{i // 2}" for i in range(60)]
    whole = bootstrap_interval(values, groups, seed=3)
    monkeypatch.setattr(statistics, "_MOST_CELLS", 100)
    assert bootstrap_interval(values, groups, seed=3) == whole
    assert bootstrap_interval(values, groups, seed=4) != whole


def test_order_of_samples_does_not_matter() -> None:
    values, groups = coin(200, 0.5), np.arange(200) // 3
    shuffled = np.random.default_rng(0).permutation(200)
    assert bootstrap_interval(values[shuffled], groups[shuffled]) == bootstrap_interval(values, groups)


@pytest.mark.parametrize(
    ("values", "groups"), [([], []), ([1.0], ["a"]), ([1.0, 0.0], ["a", "a"])], ids=["nothing", "one", "one_image"]
)
def test_less_than_two_groups_have_no_interval(values: list[float], groups: list[str]) -> None:
    assert bootstrap_interval(values, groups) is None


def test_equal_values_have_an_interval_without_width() -> None:
    assert bootstrap_interval([1.0, 1.0, 1.0], ["a", "b", "b"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "groups", "settings", "message"),
    [
        ([1.0, 0.0], ["a"], {}, r"\(2,\) and \(1,\)"),
        ([[1.0]], [["a"]], {}, "flat"),
        ([1.0, float("nan")], ["a", "b"], {}, "1 of 2 values are not finite"),
        ([1.0, 0.0], ["a", "b"], {"level": 95}, "level"),
        ([1.0, 0.0], ["a", "b"], {"num_resamples": 0}, "num_resamples"),
    ],
    ids=["lengths", "shape", "nan", "percent", "no_resamples"],
)
def test_hostile_input_is_refused(values: object, groups: object, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, groups, **settings)  # type: ignore[arg-type]


def test_paired_interval_is_narrower_than_that_of_independent_systems() -> None:
    a = coin(500, 0.6)
    b = a.copy()
    b[:25] = 1 - b[:25]
    groups = np.arange(500) // 2
    interval = paired_bootstrap(a, b, groups)
    assert interval is not None
    assert interval.low <= (a - b).mean() <= interval.high
    assert width(interval) < 0.5 * width(bootstrap_interval(a, groups))


def test_paired_systems_are_compared_sample_by_sample() -> None:
    assert paired_bootstrap(coin(50, 0.5), coin(50, 0.5), np.arange(50)) == (0.0, 0.0)
    assert paired_bootstrap([1, 1, 1], [0, 0, 0], ["a", "b", "c"]) == (1.0, 1.0)  # a minus b
    with pytest.raises(ValueError, match="same samples"):
        paired_bootstrap([1.0], [1.0, 0.0], ["a"])


def test_thousands_of_kinds_are_rounded_without_moving_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(600), rng.integers(1, 6, 600))
    values = rng.random(600)[groups] / 2 + rng.random(len(groups)) / 2
    exact = bootstrap_interval(values, groups, num_resamples=4000)
    assert exact is not None
    monkeypatch.setattr(statistics, "_MOST_KINDS", 100)
    rounded = bootstrap_interval(values, groups, num_resamples=4000)
    assert rounded != exact
    # Two intervals of 4000 resamples each differ by some hundredths of their width, rounded or not.
    assert rounded == pytest.approx(exact, abs=0.04 * width(exact))


@pytest.mark.parametrize(
    "rename",
    [lambda g: g + 7, lambda g: -g, lambda g: g * 10**9, lambda g: np.array([f"image{i}" for i in g])],
    ids=["gap", "negative", "huge", "text"],
)
def test_how_groups_are_called_does_not_matter(rename: Callable[[npt.NDArray[np.intp]], object]) -> None:
    values, groups = coin(100, 0.5), np.arange(100) // 3
    assert bootstrap_interval(values, rename(groups)) == bootstrap_interval(values, groups)  # type: ignore[arg-type]


def test_an_estimate_of_nothing_has_no_value() -> None:
    assert estimate([], []) == Estimate(None, None, 0)
    assert difference([], [], []) == Estimate(None, None, 0)
    assert estimate([1.0], ["a"]) == Estimate(1.0, None, 1)


def test_estimates_are_means_with_the_intervals_above() -> None:
    a, b, groups = coin(200, 0.7), coin(200, 0.5, seed=1), np.arange(200) // 2
    assert estimate(a, groups, seed=4) == (a.mean(), bootstrap_interval(a, groups, seed=4), 200)
    assert difference(a, b, groups, seed=4) == (a.mean() - b.mean(), paired_bootstrap(a, b, groups, seed=4), 200)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 5), (10, 2), (3, 40)])
def test_mcnemar_is_the_exact_binomial(only_a: int, only_b: int) -> None:
    a = np.array([True] * only_a + [False] * only_b + [True] * 30 + [False] * 20)
    b = np.array([False] * only_a + [True] * only_b + [True] * 30 + [False] * 20)
    # From its definition: twice the tail of a fair coin, at most 1.
    tail = sum(math.comb(only_a + only_b, k) for k in range(min(only_a, only_b) + 1)) / 2 ** (only_a + only_b)
    found = mcnemar(a, b)
    assert found[:3] == (50 + only_a + only_b, only_a, only_b)
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))
    if only_a + only_b:
        assert found.p_value == scipy.stats.binomtest(only_a, only_a + only_b).pvalue
    assert mcnemar(b, a) == (found.n, only_b, only_a, found.p_value)


def test_mcnemar_of_nothing_is_no_result() -> None:
    assert mcnemar(np.array([], dtype=bool), np.array([], dtype=bool)) == (0, 0, 0, None)


@pytest.mark.parametrize(
    ("a", "b"), [([True], [True, False]), ([1, 0], [1, 0]), ([[True]], [[True]])], ids=["lengths", "numbers", "shape"]
)
def test_mcnemar_refuses_what_is_not_paired(a: object, b: object) -> None:
    with pytest.raises(ValueError, match="same samples"):
        mcnemar(a, b)  # type: ignore[arg-type]
