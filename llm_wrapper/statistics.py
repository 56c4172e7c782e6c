"""Intervals for means over expressions that share images, and tests of two systems.

Several expressions of one image succeed and fail together, so resampling single expressions makes intervals too
narrow. Here whole images are drawn, with all of their expressions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llm_wrapper.boxes import FloatArray

_MOST_CELLS = 1 << 22  # numbers drawn at a time: 32 MiB
_MOST_KINDS = 1 << 13  # kinds of groups that are drawn as they are; more take seconds


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A mean, or a difference of means, over `n` values, with its 95 % interval over images.

    `value` is `None` where there is nothing to count, `ci` also where there is one image only.
    """

    value: float | None
    ci: Interval | None
    n: int


class McNemar(NamedTuple):
    """McNemar's exact test of two systems on the same `n` samples.

    `only_a` and `only_b` are the samples that one system alone has right; only these tell the systems apart.
    `p_value` is two-sided, and `None` without samples. Samples count as independent, which several expressions of
    one image are not, so it claims more than the paired bootstrap: read both.
    """

    n: int
    only_a: int
    only_b: int
    p_value: float | None


def estimate(values: npt.ArrayLike, groups: Sequence[Any] | npt.NDArray[Any], *, seed: int = 0) -> Estimate:
    """Return the mean of values, shape (n,), with its interval over groups; see `bootstrap_interval`."""
    data = np.asarray(values, dtype=np.float64)
    interval = bootstrap_interval(data, groups, seed=seed)
    return Estimate(float(data.mean()) if len(data) else None, interval, len(data))


def difference(
    a: npt.ArrayLike, b: npt.ArrayLike, groups: Sequence[Any] | npt.NDArray[Any], *, seed: int = 0
) -> Estimate:
    """Return mean(a) - mean(b) of two systems on the same samples with its interval; see `paired_bootstrap`."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    interval = paired_bootstrap(first, second, groups, seed=seed)
    return Estimate(float(first.mean() - second.mean()) if len(first) else None, interval, len(first))


def mcnemar(a: npt.ArrayLike, b: npt.ArrayLike) -> McNemar:
    """Test whether two systems are right (booleans of shape (n,)) equally often on the same samples in one order."""
    first, second = np.asarray(a), np.asarray(b)
    if first.shape != second.shape or first.ndim != 1 or {first.dtype, second.dtype} != {np.dtype(np.bool_)}:
        described = " and ".join(f"{each.dtype} of shape {each.shape}" for each in (first, second))
        raise ValueError(f"McNemar's test needs booleans of the same samples, got {described}")
    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    p_value = 1.0 if len(first) else None
    if only_a + only_b:
        from scipy.stats import binomtest  # takes a second to import, and most commands need none

        p_value = float(binomtest(only_a, only_a + only_b, 0.5).pvalue)
    return McNemar(len(first), only_a, only_b, p_value)


def bootstrap_interval(
    values: npt.ArrayLike, groups: Sequence[Any] | npt.NDArray[Any], *,
    seed: int = 0, num_resamples: int = 2000, level: float = 0.95,
) -> Interval | None:  # fmt: skip
    """Percentile bootstrap interval of the mean, drawing whole groups.

    The mean of a draw is its sum over its count, since groups differ in size. `None` where there are fewer than two
    groups: one image cannot tell how images vary. Where all values are equal the interval has no width; with few
    groups that is too narrow, as for every percentile bootstrap.

    Args:
        values: Finite numbers, shape (n,).
        groups: The group of each value (its image id), length n; small whole numbers are fastest.
        seed: Of the generator; the same input gives the same interval.
        num_resamples: How many sets of groups are drawn.
        level: Share of the resampled means within the interval, in (0, 1).
    """
    data, ids = np.asarray(values, dtype=np.float64), np.asarray(groups)
    if data.ndim != 1 or ids.shape != data.shape:
        raise ValueError(f"values and groups must be flat and of one length: shapes are {data.shape} and {ids.shape}")
    if not np.isfinite(data).all():
        raise ValueError(f"{int((~np.isfinite(data)).sum())} of {len(data)} values are not finite")
    if not 0 < level < 1 or num_resamples < 1:
        raise ValueError(f"level must be in (0, 1) and num_resamples at least 1, not {level} and {num_resamples}")
    # Groups are numbered, of which some may be skipped.
    if len(ids) and np.issubdtype(ids.dtype, np.integer) and ids.min() >= 0 and ids.max() < 2 * len(ids):
        codes = ids.astype(np.intp)  # no sorting, which is most of the time of a million
    else:
        codes = np.unique(ids, return_inverse=True)[1].astype(np.intp)
    counts = np.bincount(codes)
    totals = np.bincount(codes, weights=data)[counts > 0].astype(np.float64)
    counts = counts[counts > 0]
    if len(counts) < 2:
        return None
    means = _resampled_means(totals, counts, num_resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def paired_bootstrap(
    a: npt.ArrayLike, b: npt.ArrayLike, groups: Sequence[Any] | npt.NDArray[Any], *,
    seed: int = 0, num_resamples: int = 2000, level: float = 0.95,
) -> Interval | None:  # fmt: skip
    """Percentile bootstrap interval of mean(a) - mean(b) for two systems on the same samples, in the same order.

    Both systems see the same drawn images, so the difficulty that they share cancels out. See `bootstrap_interval`.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired systems need the same samples: shapes are {first.shape} and {second.shape}")
    return bootstrap_interval(first - second, groups, seed=seed, num_resamples=num_resamples, level=level)


def _resampled_means(
    totals: FloatArray, counts: npt.NDArray[np.signedinteger[Any]], num_resamples: int, rng: np.random.Generator
) -> FloatArray:
    """Draw as many groups as there are, given sum and count of each, shape (g,) -> means (num_resamples,)."""
    # Groups with equal sum and count are interchangeable. Right-or-wrong values make a handful of kinds of thousands
    # of groups, and it is enough to draw how often each kind occurs.
    kinds, frequency = np.unique(totals + 1j * counts, return_counts=True)
    if len(kinds) > _MOST_KINDS:
        # Sums are rounded to 1/128 of what makes groups differ, so that hundreds of thousands of groups become
        # thousands of kinds. That widens the interval by a millionth and moves it by some thousandths of its width at
        # most, where 2000 resamples alone move it by some hundredths.
        width = (totals - counts * (totals.sum() / counts.sum())).std() / 128
        rounded = np.round(totals / width) * width if width > 0 else totals
        kinds, frequency = np.unique(rounded + 1j * counts, return_counts=True)
    step = max(1, _MOST_CELLS // len(kinds))
    parts = []
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        drawn = rng.multinomial(len(totals), frequency / len(totals), size=size)
        parts.append((drawn @ kinds.real) / (drawn @ kinds.imag))
    return np.concatenate(parts)
