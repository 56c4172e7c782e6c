"""Headroom: how much a perfect selector could gain on a detector's candidates, before any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_wrapper import boxes
from llm_wrapper.boxes import BoolArray
from llm_wrapper.candidates import BuiltCandidates, detector_order
from llm_wrapper.detections.samples import PreparedSample, PreparedSplit, prepare_candidates
from llm_wrapper.evaluation.slices import recall
from llm_wrapper.evaluation.systems import by_detector
from llm_wrapper.metrics import IOU_THRESHOLD, ious, oracle_ious
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Prediction
from llm_wrapper.statistics import Estimate, difference, estimate

DUPLICATE_IOU = 0.95
"""Above this overlap two candidates of one label are the same to whoever reads them."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Candidates per expression."""

    mean: float
    median: float
    max: int


@dataclass(frozen=True, slots=True)
class Offer:
    """The candidates that a selector chooses from. Shares of right and wrong are over the samples with a target.

    Attributes:
        own: P@1 of the detector's own choice, see `detector_choice`.
        oracle: P@1 of the best candidate.
        gain: `oracle - own`, on the same drawn images: the gain of a perfect selector.
        recall: Rank k -> share of samples for which one of the detector's first k candidates has IoU > 0.5. Its first
            is its own choice; behind it come the higher score, then its own order. So recall@1 is `own`.
        no_candidate: Share of all samples without a candidate.
        one_candidate: Share of all samples with one, which is taken unasked.
        per_sample: Candidates per sample, over all samples.
        duplicates: Share of candidates whose IoU with an earlier one of the same label exceeds 0.95.
    """

    own: Estimate
    oracle: Estimate
    gain: Estimate
    recall: dict[int, Estimate]
    no_candidate: Estimate
    one_candidate: Estimate
    per_sample: Spread
    duplicates: Estimate


@dataclass(frozen=True, slots=True)
class Headroom:
    """Candidates before and after the cap on their number.

    `num_samples` counts all, the shares `own`, `oracle`, .. have the number of those with a target. `num_capped`
    samples lose `num_candidates_lost` candidates to the cap, and `lost` oracle P@1.
    """

    before: Offer
    after: Offer
    num_samples: int
    num_images: int
    num_capped: int
    num_candidates_lost: int
    lost: Estimate

    def facts(self) -> dict[str, Any]:
        """Return all as JSON values."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; a named tuple would become a list and lose its names."""
    if isinstance(value, Estimate):
        return value._asdict()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, Spread | Offer):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return value


def compare_headroom(before: Sequence[PreparedSample], after: Sequence[PreparedSample]) -> Headroom:
    """Measure the same samples with all of their candidates and with those that the cap leaves.

    Raises:
        ValueError: If there is no sample, or the two are not the same samples in the same order.
    """
    if not before or [prepared.sample for prepared in before] != [prepared.sample for prepared in after]:
        raise ValueError(f"the same samples are needed before and after the cap: {len(before)} and {len(after)}")
    rows, rows_after = by_detector(_with_target(before)), by_detector(_with_target(after))
    losses = [len(a.built.candidates) - len(b.built.candidates) for a, b in zip(before, after, strict=True)]
    return Headroom(
        before=measure_offer(before),
        after=measure_offer(after),
        num_samples=len(before),
        num_images=len({prepared.sample.image_id for prepared in before}),
        num_capped=sum(loss > 0 for loss in losses),
        num_candidates_lost=sum(losses),
        lost=difference(_is_offered(rows), _is_offered(rows_after), _images(rows)),
    )


def measure_offer(samples: Sequence[PreparedSample]) -> Offer:
    """Measure what the candidates of some samples, at least one, offer to a selector."""
    rows = by_detector(_with_target(samples))
    images, all_images = _images(rows), _images([prepared.sample for prepared in samples])
    right, offered = ious(rows) > IOU_THRESHOLD, _is_offered(rows)
    counts = np.array([len(prepared.built.candidates) for prepared in samples])
    repeats = np.concatenate([_repeats(prepared.built) for prepared in samples])
    return Offer(
        own=estimate(right, images),
        oracle=estimate(offered, images),
        gain=difference(offered, right, images),
        recall=recall(rows) or {},
        no_candidate=estimate(counts == 0, all_images),
        one_candidate=estimate(counts == 1, all_images),
        per_sample=Spread(float(counts.mean()), float(np.median(counts)), int(counts.max())),
        duplicates=estimate(repeats, np.repeat(all_images, counts)),
    )


def _with_target(samples: Sequence[PreparedSample]) -> list[PreparedSample]:
    return [prepared for prepared in samples if prepared.sample.target is not None]


def _is_offered(rows: Sequence[Prediction]) -> BoolArray:
    """Tell of each row whether one of its candidates is right; shape (n,)."""
    offered: BoolArray = oracle_ious(rows) > IOU_THRESHOLD
    return offered


def _repeats(built: BuiltCandidates) -> BoolArray:
    """Tell of each candidate, in the detector's own order, whether an earlier one has its label and nearly its box."""
    candidates = [built.candidates[index] for index in detector_order(built)]
    corners = boxes.array([candidate.box for candidate in candidates])
    labels = np.array([candidate.label for candidate in candidates], dtype=object)
    same = (boxes.pairwise_iou(corners, corners) > DUPLICATE_IOU) & (labels[:, None] == labels[None, :])
    repeats: BoolArray = np.triu(same.astype(np.bool_), 1).any(axis=0)
    return repeats


def _images(rows: Sequence[Any]) -> npt.NDArray[Any]:
    """Return the image id of each sample or prediction, shape (n,)."""
    return np.array([row.image_id for row in rows], dtype=np.str_)


def remove_cap(split: PreparedSplit, recipe: Recipe) -> list[PreparedSample]:
    """Build the candidates again as if there were no cap, where it dropped any."""
    uncapped = recipe.without_cap()
    names = [cache.identity["detector"] for cache in split.caches]
    samples = []
    for prepared in split.samples:
        built = prepared.built
        if built.counts["over_cap"]:
            answers = [cache.lookup(prepared.sample) for cache in split.caches]
            built = prepare_candidates(uncapped, prepared.sample, answers, names)
        samples.append(PreparedSample(prepared.sample, built))
    return samples
