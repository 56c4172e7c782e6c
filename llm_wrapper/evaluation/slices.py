"""Results by slices: where a system is weak, computed from stored predictions alone.

Within a family the slices are fixed, whatever the data, so that reports can be laid side by side; an empty one says so.
Slices of one family do not overlap, except the kinds of expression, of which one expression can have several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from llm_wrapper import columns
from llm_wrapper.columns import Columns
from llm_wrapper.evaluation.expression_kinds import KINDS, OTHER, kinds_of
from llm_wrapper.metrics import IOU_THRESHOLD, ious
from llm_wrapper.prompts.vocabulary import words_of
from llm_wrapper.records import Prediction
from llm_wrapper.statistics import Estimate, difference, estimate

__all__ = ["FAMILIES", "UNKNOWN", "by_slice", "differences_by_slice", "distractors", "masks", "target_shares"]

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

UNKNOWN = "unknown"
"""The slice of samples for which a family's number is not known."""

_DISTRACTORS = {"none": 0, "1": 1, "2 to 3": 2, "4 or more": 4}
_WORDS = {"1 to 2 words": 1, "3 to 5 words": 3, "6 to 10 words": 6, "11 to 20 words": 11, "over 20 words": 21}
_SHARES = {"tiny (< 1 %)": 0.0, "small (< 5 %)": 0.01, "medium (< 20 %)": 0.05, "big": 0.2}
_CANDIDATES = {"none": 0, "1": 1, "2 to 4": 2, "5 to 9": 5, "10 or more": 10}


def masks(predictions: Sequence[Prediction]) -> dict[str, dict[str, BoolArray]]:
    """Return family -> slice -> whether each prediction belongs to it, shape (n,).

    Families: `kind` of expression, same-class `distractors`, `length` in words, `size` of the target as a share of the
    image, number of `candidates`. The bounds of size are those of the words in the prompt (`prompts.relations`); COCO's
    in pixels would call nearly every object that people refer to large. Each family also has `unknown`.
    """
    return {name: family(predictions) for name, family in FAMILIES.items()}


def by_slice(predictions: Sequence[Prediction], *, seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """Return family -> slice -> P@1 (> 0.5) of one system over the samples with a target; an empty one has no value."""
    scored = [prediction for prediction in predictions if prediction.target is not None]
    right, images = ious(scored) > IOU_THRESHOLD, columns.codes(prediction.image_id for prediction in scored)
    return {
        family: {name: estimate(right[mask], images[mask], seed=seed) for name, mask in slices.items()}
        for family, slices in masks(scored).items()
    }


def differences_by_slice(
    pairs: Sequence[tuple[Prediction, Prediction]], *, seed: int = 0
) -> dict[str, dict[str, Estimate]]:
    """Return family -> slice -> P@1 of the first system minus that of the second.

    Args:
        pairs: From `paired`; the slices are those of the first, whose candidates may differ from the second's.
        seed: Of the bootstrap.
    """
    scored = [pair for pair in pairs if pair[0].target is not None]
    a, b = (ious([pair[place] for pair in scored]) > IOU_THRESHOLD for place in (0, 1))
    images = columns.codes(first.image_id for first, _ in scored)
    return {
        family: {name: difference(a[mask], b[mask], images[mask], seed=seed) for name, mask in slices.items()}
        for family, slices in masks([first for first, _ in scored]).items()
    }


def distractors(predictions: Sequence[Prediction]) -> FloatArray:
    """Count the candidates that share the target's label but are another object, shape (n,).

    The target's label is that of the best candidate, where it has IoU > 0.5; a distractor has the same label, without
    regard to case, and IoU <= 0.5 with the target. NaN where no candidate is right: then the label is not known.
    """
    table = columns.of_records(predictions)
    found = columns.candidate_overlaps(table)
    best = columns.best_overlaps(table, found)
    rows = np.repeat(np.arange(len(predictions)), table.counts)
    place = columns.first_right(table, (found == best[rows]) & (found > IOU_THRESHOLD))
    labels = columns.codes(candidate.label.strip().lower() for each in predictions for candidate in each.candidates)
    own = np.full(len(predictions), -1)
    known = place >= 0
    own[known] = labels[(_starts(table) + place)[known]]
    others = (labels == own[rows]) & (found <= IOU_THRESHOLD)
    counts = np.bincount(rows[others], minlength=len(predictions))
    return np.where(known, counts, np.nan)


def target_shares(predictions: Sequence[Prediction]) -> FloatArray:
    """Return the target's share of the image's area, shape (n,); NaN where one of the two is not known."""
    return np.array(
        [
            np.nan if p.target is None or p.image_wh is None else p.target.area / (p.image_wh[0] * p.image_wh[1])
            for p in predictions
        ],
        dtype=np.float64,
    )


def _starts(table: Columns) -> npt.NDArray[np.intp]:
    starts: npt.NDArray[np.intp] = np.cumsum(table.counts) - table.counts
    return starts


def _kinds(predictions: Sequence[Prediction]) -> dict[str, BoolArray]:
    found = [kinds_of(prediction.expression) for prediction in predictions]
    return {name: np.array([name in kinds for kinds in found], dtype=np.bool_) for name in (*KINDS, OTHER)}


def _lengths(predictions: Sequence[Prediction]) -> dict[str, BoolArray]:
    return _between([len(words_of(prediction.expression)) or np.nan for prediction in predictions], _WORDS)


def _numbers(predictions: Sequence[Prediction]) -> dict[str, BoolArray]:
    # A box without candidates is somebody else's: how many it was chosen from is not known.
    return _between([len(p.candidates) or (np.nan if p.box else 0) for p in predictions], _CANDIDATES)


def _between(values: npt.ArrayLike, bounds: dict[str, int] | dict[str, float]) -> dict[str, BoolArray]:
    """Divide values by slice -> its lower bound; each slice ends where the next begins."""
    numbers = np.asarray(values, dtype=np.float64)
    ends = [*list(bounds.values())[1:], np.inf]
    slices = {name: (numbers >= low) & (numbers < high) for (name, low), high in zip(bounds.items(), ends, strict=True)}
    return {**slices, UNKNOWN: np.isnan(numbers)}


FAMILIES: dict[str, Callable[[Sequence[Prediction]], dict[str, BoolArray]]] = {
    "kind": _kinds,
    "distractors": lambda predictions: _between(distractors(predictions), _DISTRACTORS),
    "length": _lengths,
    "size": lambda predictions: _between(target_shares(predictions), _SHARES),
    "candidates": _numbers,
}
"""Family -> how it divides predictions."""
