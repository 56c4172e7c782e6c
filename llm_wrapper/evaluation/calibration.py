"""Whether a system knows when it is right: calibration, risk against coverage, abstention.

All functions take `confidence`, the probability of the choice, shape (n,) in 0..1, NaN where there is none, and
`right`, shape (n,). A choice without a probability (a single candidate, a fallback, no box) says nothing about
calibration; where it comes to answering or not, it counts as the least confident of all, so nothing is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llm_wrapper.boxes import BoolArray, FloatArray
from llm_wrapper.records import Prediction
from llm_wrapper.statistics import Estimate, estimate

__all__ = [
    "Abstention",
    "Bin",
    "Calibration",
    "RiskCoverage",
    "abstain",
    "calibrate",
    "confidences",
    "mass_notes",
    "risk_coverage",
    "threshold_for_risk",
]


NUM_BINS = 15

_LEAST_MASS = 0.01
"""Below it the renormalized probabilities are of answers that the LLM would not give."""


class Bin(NamedTuple):
    """One bar of a reliability plot: `n` choices, their mean confidence and the share that is right."""

    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well probabilities fit what happens.

    Attributes:
        ece: Expected calibration error: mean of |accuracy - confidence| over the bins, weighted by their size.
        bins: Those that hold something, by rising confidence.
        n: Choices with a probability.
        num_unknown: Choices without.
    """

    ece: float | None
    bins: tuple[Bin, ...]
    n: int
    num_unknown: int


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Risk and coverage of answering only the most confident samples.

    Point i answers all samples with a confidence of at least `thresholds[i]`; the last one answers all, its threshold
    is minus infinity. All arrays have shape (k,), coverage rises.

    Attributes:
        thresholds: Falling confidences.
        coverage: Share of samples answered.
        risk: Share of the answered that is wrong.
        aurc: Area under risk against coverage: the mean risk of the first 1, 2, .. n samples by confidence, where
            equally confident ones come in the mean of all orders; `None` without samples.
    """

    thresholds: FloatArray
    coverage: FloatArray
    risk: FloatArray
    aurc: float | None


class Abstention(NamedTuple):
    """Results of answering only from a confidence on; `risk` is over what it answers."""

    threshold: float
    coverage: Estimate
    risk: Estimate


def confidences(predictions: Sequence[Prediction]) -> FloatArray:
    """Return the probability of each choice, shape (n,), NaN where there is none."""
    values = [np.nan if each.probability is None else each.probability for each in predictions]
    return np.array(values, dtype=np.float64)


def calibrate(confidence: FloatArray, right: BoolArray, *, num_bins: int = NUM_BINS) -> Calibration:
    """Compare confidence with what happened, in bins of equal mass.

    Equal mass, because the probabilities of a choice among few crowd near 1, where bins of equal width would hold
    nearly everything in the last one. The bounds are quantiles, as in scikit-learn's `calibration_curve`, so that equal
    confidences share a bin and the order of samples does not matter.

    Raises:
        ValueError: If shapes differ, or a confidence is outside 0..1.
    """
    _require_fit(confidence, right)
    known = ~np.isnan(confidence)
    values, hits = confidence[known], right[known].astype(np.float64)
    num_unknown = int((~known).sum())
    if not len(values):
        return Calibration(None, (), 0, num_unknown)
    inner = np.quantile(values, np.linspace(0, 1, num_bins + 1)[1:-1])
    places = np.searchsorted(inner, values)
    counts = np.bincount(places, minlength=num_bins)
    totals = [np.bincount(places, weights=each, minlength=num_bins)[counts > 0] for each in (values, hits)]
    filled = counts[counts > 0]
    mean, accuracy = totals[0] / filled, totals[1] / filled
    bins = tuple(Bin(int(n), float(c), float(a)) for n, c, a in zip(filled, mean, accuracy, strict=True))
    return Calibration(float((filled * np.abs(accuracy - mean)).sum() / len(values)), bins, len(values), num_unknown)


def risk_coverage(confidence: FloatArray, right: BoolArray) -> RiskCoverage:
    """Compute risk against coverage at every threshold that changes what is answered.

    Raises:
        ValueError: As `calibrate`.
    """
    _require_fit(confidence, right)
    n = len(right)
    if not n:
        return RiskCoverage(np.empty(0), np.empty(0), np.empty(0), None)
    rank = np.where(np.isnan(confidence), -np.inf, confidence)
    thresholds, place = np.unique(-rank, return_inverse=True)
    answered = np.bincount(place)
    wrong = np.bincount(place, weights=~right)
    covered = answered.cumsum()
    # Equals come in the mean of all orders, so each adds the share of its equals that is wrong.
    spread = np.repeat(wrong / answered, answered).cumsum() / np.arange(1, n + 1)
    bounds = -thresholds
    bounds[-1] = -np.inf
    return RiskCoverage(bounds, covered / n, wrong.cumsum() / covered, float(spread.mean()))


def threshold_for_risk(confidence: FloatArray, right: BoolArray, risk: float) -> float | None:
    """Return the confidence from which to answer so that most is answered at no more than a risk.

    Choose it on one set of samples and use it on another: on its own set it is too good.

    Args:
        confidence: See above.
        right: See above.
        risk: Share of the answered that may be wrong, in 0..1.

    Returns:
        `None` where even the most confident are wrong more often; minus infinity where all may be answered.

    Raises:
        ValueError: As `calibrate`, or if the risk is outside 0..1.
    """
    if not 0 <= risk <= 1:
        raise ValueError(f"risk must be in 0..1, not {risk}")
    curve = risk_coverage(confidence, right)
    allowed = np.flatnonzero(curve.risk <= risk)
    return float(curve.thresholds[allowed[-1]]) if len(allowed) else None


def abstain(
    confidence: FloatArray, right: BoolArray, images: npt.NDArray[np.intp], *, threshold: float, seed: int = 0
) -> Abstention:
    """Answer only from a threshold on.

    Args:
        confidence: See above.
        right: See above.
        images: Number of each sample's image, shape (n,), for the intervals.
        threshold: From `threshold_for_risk`.
        seed: Of the bootstrap.

    Raises:
        ValueError: As `calibrate`.
    """
    _require_fit(confidence, right)
    answered = np.where(np.isnan(confidence), -np.inf, confidence) >= threshold
    return Abstention(
        threshold=threshold,
        coverage=estimate(answered, images, seed=seed),
        risk=estimate(~right[answered], images[answered], seed=seed),
    )


def _require_fit(confidence: FloatArray, right: BoolArray) -> None:
    if confidence.shape != right.shape or right.ndim != 1 or right.dtype != np.bool_:
        raise ValueError(
            f"a confidence and a boolean per sample are needed: {confidence.shape} and {right.dtype} {right.shape}"
        )
    outside = confidence[(confidence < 0) | (confidence > 1)]
    if len(outside):
        raise ValueError(f"{len(outside)} confidences are outside 0..1, the first is {outside[0]}")


def mass_notes(rows: Sequence[Prediction]) -> list[str]:
    """Say for each system how probable any valid answer was to its LLM, and warn where it would never give one."""
    masses: dict[str, list[float]] = {}
    for row in rows:
        if row.mass is not None:
            masses.setdefault(row.system, []).append(row.mass)
    return [_mass_note(system, median(each)) for system, each in masses.items()]


def _mass_note(system: str, mass: float) -> str:
    text = f"{system}: median probability of all valid answers together {mass:.2g}"
    if mass >= _LEAST_MASS:
        return text
    return (
        f"warning: {text}: the LLM would hardly ever answer with an index, so that its choices say little. Look at "
        "llm.chat_template; a model that thinks first needs llm.decode=generate, or choice on a server"
    )
