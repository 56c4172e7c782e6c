"""Intervals for means over expressions that share images.

Several expressions of one image succeed and fail together, so resampling single expressions makes intervals too
narrow. Here whole images are drawn, with all of their expressions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Interval", "bootstrap_interval", "paired_bootstrap"]

_MOST_CELLS = 1 << 22
"""Numbers drawn at a time: 32 MiB."""


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


def bootstrap_interval(
    values: npt.ArrayLike,
    groups: Sequence[Any] | npt.NDArray[Any],
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> Interval | None:
    """Percentile bootstrap interval of the mean, drawing whole groups.

    The mean of a draw is its sum over its count, since groups differ in size. `None` where there are fewer than two
    groups: one image cannot tell how images vary. Where all values are equal the interval has no width; with few
    groups that is too narrow, as for every percentile bootstrap.

    Args:
        values: Finite numbers, shape (n,).
        groups: The group of each value (its image id), length n.
        seed: Of the generator; the same input gives the same interval.
        num_resamples: How many sets of groups are drawn.
        level: Share of the resampled means within the interval, in (0, 1).

    Raises:
        ValueError: If shapes differ, a value is not finite, or `level` or `num_resamples` is out of range.
    """
    data, ids = np.asarray(values, dtype=np.float64), np.asarray(groups)
    _require_usable(data, ids, num_resamples, level)
    unique_ids, inverse = np.unique(ids, return_inverse=True)
    if len(unique_ids) < 2:
        return None
    totals = np.column_stack([np.bincount(inverse, weights=data), np.bincount(inverse).astype(np.float64)])
    means = _resampled_means(totals, num_resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def paired_bootstrap(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    groups: Sequence[Any] | npt.NDArray[Any],
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> Interval | None:
    """Percentile bootstrap interval of mean(a) - mean(b) for two systems on the same samples, in the same order.

    Both systems see the same drawn images, so the difficulty that they share cancels out. See `bootstrap_interval`.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired systems need the same samples: shapes are {first.shape} and {second.shape}")
    return bootstrap_interval(first - second, groups, seed=seed, num_resamples=num_resamples, level=level)


def _require_usable(data: npt.NDArray[np.float64], ids: npt.NDArray[Any], num_resamples: int, level: float) -> None:
    if data.ndim != 1 or ids.shape != data.shape:
        raise ValueError(f"values and groups must be flat and of one length: shapes are {data.shape} and {ids.shape}")
    if not np.isfinite(data).all():
        raise ValueError(f"{int((~np.isfinite(data)).sum())} of {len(data)} values are not finite")
    if not 0 < level < 1 or num_resamples < 1:
        raise ValueError(f"level must be in (0, 1) and num_resamples at least 1, not {level} and {num_resamples}")


def _resampled_means(
    totals: npt.NDArray[np.float64], num_resamples: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw as many groups as there are; totals (g, 2) holds sum and count of each -> means (num_resamples,)."""
    # Groups with equal sum and count are interchangeable, so it is enough to draw how often each kind occurs: a
    # handful of kinds for right-or-wrong values, where the groups are thousands.
    kinds, frequency = np.unique(totals, axis=0, return_counts=True)
    num_groups = len(totals)
    step = max(1, _MOST_CELLS // len(kinds))
    parts = []
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        drawn = rng.multinomial(num_groups, frequency / num_groups, size=size) @ kinds
        parts.append(drawn[:, 0] / drawn[:, 1])
    return np.concatenate(parts)
