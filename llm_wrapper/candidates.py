"""Build the candidates that an LLM chooses from, in the order that it sees, and find the detector's own top-1.

Detections -> sources -> clip -> score -> deduplicate -> NMS -> cap -> order -> BuiltCandidates

Dropped boxes are counted by reason. The order is stored with every prompt and prediction, never derived from a seed.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from llm_wrapper import boxes
from llm_wrapper.errors import RecipeError
from llm_wrapper.records import Box, Candidate, Detections

OWN_ANSWER_SOURCE = "rec"
"""The source of detections that answer the expression itself (Florence-2's referring-expression task)."""

_MOST_COMPARED = 3000
"""Detections of an image of which each is compared with each: 200,000 would take hundreds of gigabytes."""
_BLOCK = 256
"""Detections whose overlaps with all before them are computed at a time."""

Order = Literal["detector", "score", "left_to_right", "shuffled"]


class CandidatePolicy(BaseModel):
    """Which detections become candidates, and their order.

    `sources` are the detector's tasks to keep (`None`: all); `min_score` is in 0..1; `nms_iou` is the IoU above which
    the worse of two boxes is dropped whatever their labels (`None`: no suppression); `cap` is the most candidates.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: Annotated[list[str], Field(min_length=1)] | None = None
    min_score: float | None = Field(default=None, ge=0.0, le=1.0)
    nms_iou: float | None = Field(default=None, gt=0.0, le=1.0)
    cap: int = Field(default=20, ge=2)
    order: Order = "left_to_right"


@dataclass(frozen=True, slots=True)
class BuiltCandidates:
    """Candidates in the order of the prompt, the row of each among the detections, and counts of those dropped.

    The counts and the candidates together account for every output of the detector.
    """

    candidates: tuple[Candidate, ...]
    origins: tuple[int, ...]
    counts: dict[str, int]


class _Kept(NamedTuple):
    """A candidate with its index in the detector's own order."""

    candidate: Candidate
    origin: int


def build_candidates(
    detections: Detections,
    sample_wh: tuple[int, int],
    policy: CandidatePolicy,
    *,
    detector: str,
    rng: np.random.Generator | None = None,
) -> BuiltCandidates:
    """Turn the detections of one sample, whose image is of (width, height) pixels, into candidates.

    Where two compete (duplicates, NMS, cap), the higher score wins, then the detector's answer to the expression, then
    the detector's order. So the detector's own top-1 is lost only where `sources` or `min_score` exclude it. Of more
    than 3,000 before NMS, the others are counted as over the cap, however large it is.

    Raises:
        RecipeError: If the policy needs scores and a detection has none, or order "shuffled" and there is no `rng`
            (`order_rng`).
    """
    items = list(enumerate(detections.items))
    wanted = [(origin, item) for origin, item in items if policy.sources is None or item.source in policy.sources]
    inside = [
        _Kept(Candidate(box, item.label, item.score, detector, item.source), origin)
        for origin, item in wanted
        if (box := boxes.clip(item.box, sample_wh)) is not None
    ]
    least = policy.min_score
    scored = inside if least is None else [each for each in inside if _score(each, "min_score") >= least]
    best: dict[tuple[Box, str], _Kept] = {}
    for each in sorted(scored, key=_rank):
        best.setdefault((each.candidate.box, each.candidate.label), each)
    distinct = list(best.values())
    compared = distinct[:_MOST_COMPARED]
    apart = _suppressed(compared, policy.nms_iou)
    kept = apart[: policy.cap]
    counts = {
        "not_a_box": detections.num_dropped,
        "other_source": len(items) - len(wanted),
        "outside_image": len(wanted) - len(inside),
        "low_score": len(inside) - len(scored),
        "duplicate": len(scored) - len(distinct),
        "nms": len(compared) - len(apart),
        "over_cap": len(apart) - len(kept) + len(distinct) - len(compared),
    }
    return _built(_ordered(kept, policy.order, rng), counts)


def merge_candidates(
    parts: Sequence[BuiltCandidates],
    policy: CandidatePolicy,
    *,
    nms_iou: float | None,
    rng: np.random.Generator | None = None,
) -> BuiltCandidates:
    """Merge the candidates of several detectors for one sample (paper: ensembling).

    Scores of different detectors are on different scales and are never compared. Of boxes of different detectors that
    nearly coincide, that of the detector named first stays. Under the cap the detectors take turns, each in its own
    order, so the top-1 of the detector named first is never lost. Origins count the outputs of all, one after another.

    Args:
        parts: Built by each detector's own policy, in the order in which the detectors are named.
        policy: Its `cap` and `order` are those of the whole; the rest belongs to each detector.
        nms_iou: IoU above which boxes of different detectors are one object (`None`: both are shown).
        rng: For order "shuffled"; see `order_rng`.
    """
    if policy.order == "score":
        raise RecipeError(
            "candidates.order=score cannot order an ensemble: scores of different detectors are not comparable. "
            "Use left_to_right, detector or shuffled"
        )
    entries: list[_Kept] = []
    counts: Counter[str] = Counter()
    start = 0
    for part in parts:
        entries += [_Kept(each, start + origin) for each, origin in zip(part.candidates, part.origins, strict=True)]
        start += len(part.candidates) + sum(part.counts.values()) - part.counts.get("not_a_box", 0)
        counts.update(part.counts)
    apart = _apart_from_others(entries, nms_iou)
    kept = [apart[index] for index in detector_order(_built(apart, {}))][: policy.cap]
    counts.update(nms=len(entries) - len(apart), over_cap=len(apart) - len(kept))
    return _built(_ordered(kept, policy.order, rng), dict(counts))


def detector_choice(built: BuiltCandidates) -> int | None:
    """Return the index of the detector's own top-1 candidate, the first in its order of equals; `None` without any.

    The highest score where all have one; else the detector's answer to the expression (source "rec"); else the highest
    score there is; else, by convention, the largest box. For an ensemble it is that of the first detector that found
    anything: scores of different detectors are not comparable.
    """
    groups = _by_detector(built)
    return _own(built, groups[0]) if groups else None


def detector_order(built: BuiltCandidates) -> list[int]:
    """Return all indices in the detector's own ranking, `detector_choice` first; detectors of an ensemble take turns.

    The higher score comes first, then the answer to the expression, then the detector's order.
    """
    rankings = []
    for group in _by_detector(built):
        own = _own(built, group)
        ranks = {}
        for index in group:
            each = built.candidates[index]
            ranks[index] = (index != own, each.score is None, -(each.score or 0.0), each.source != OWN_ANSWER_SOURCE)
        rankings.append(sorted(group, key=ranks.__getitem__))
    return [index for turn in zip_longest(*rankings) for index in turn if index is not None]


def order_rng(seed: int, sample_id: str) -> np.random.Generator:
    """Return the generator that shuffles one sample's candidates: the same for one seed and sample in any process."""
    # Python's own hash() differs from process to process.
    digest = hashlib.blake2b(f"{seed}\0{sample_id}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _built(entries: Sequence[_Kept], counts: dict[str, int]) -> BuiltCandidates:
    return BuiltCandidates(tuple(each.candidate for each in entries), tuple(each.origin for each in entries), counts)


def _rank(entry: _Kept) -> tuple[float, bool, int]:
    """Sort key, best first; candidates without a score come last."""
    score = entry.candidate.score
    return (np.inf if score is None else -score, entry.candidate.source != OWN_ANSWER_SOURCE, entry.origin)


def _score(entry: _Kept, setting: str) -> float:
    candidate = entry.candidate
    if candidate.score is None:
        raise RecipeError(
            f"candidates.{setting} needs scores, but detector {candidate.detector!r} gave none for {candidate.label!r} "
            f"(source {candidate.source!r}). Remove the setting, or name only sources that score in candidates.sources."
        )
    return candidate.score


def _suppressed(ranked: list[_Kept], nms_iou: float | None) -> list[_Kept]:
    if nms_iou is None or len(ranked) < 2:
        return ranked
    with warnings.catch_warnings():
        # supervision says once, at import, that it works without OpenCV; that is how it is meant to work here.
        warnings.filterwarnings("ignore", message="OpenCV", category=UserWarning)
        from supervision import box_iou_batch, box_non_max_suppression
    # The rank is used as the score, so that candidates without one keep the detector's order.
    ranks = np.arange(len(ranked), 0, -1, dtype=np.float64)
    rows = np.column_stack([boxes.array([entry.candidate.box for entry in ranked]), ranks])
    kept = np.empty(0, dtype=np.intp)
    for start in range(0, len(rows), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(rows)))
        if len(kept):
            block = block[(box_iou_batch(rows[block, :4], rows[kept, :4]) <= nms_iou).all(axis=1)]
        if len(block):
            kept = np.concatenate([kept, block[box_non_max_suppression(rows[block], iou_threshold=nms_iou)]])
    return [ranked[index] for index in kept]


def _apart_from_others(entries: list[_Kept], nms_iou: float | None) -> list[_Kept]:
    """Drop boxes that an earlier one of another detector covers; within a detector its own policy decides."""
    if nms_iou is None:
        return entries
    corners = boxes.array([entry.candidate.box for entry in entries])
    names = np.array([entry.candidate.detector for entry in entries], dtype=object)
    kept: list[int] = []
    for start in range(0, len(entries), _BLOCK):
        rows, before = slice(start, start + _BLOCK), slice(0, start + _BLOCK)
        others = (names[rows, None] != names[None, before]).astype(np.bool_)
        overlaps = (boxes.pairwise_iou(corners[rows], corners[before]) > nms_iou) & others
        for index in range(start, min(start + _BLOCK, len(entries))):
            if not overlaps[index - start, kept].any():
                kept.append(index)
    return [entries[index] for index in kept]


def _by_detector(built: BuiltCandidates) -> list[list[int]]:
    """Return the indices of each detector's candidates, in its own order; the detector named first comes first."""
    groups: dict[str, list[int]] = {}
    for index in sorted(range(len(built.candidates)), key=built.origins.__getitem__):
        groups.setdefault(built.candidates[index].detector, []).append(index)
    return list(groups.values())


def _own(built: BuiltCandidates, order: Sequence[int]) -> int:
    """Return the top-1 of one detector's candidates, given in its own order."""
    scores = {i: score for i in order if (score := built.candidates[i].score) is not None}
    answers = [i for i in order if built.candidates[i].source == OWN_ANSWER_SOURCE]
    if answers and len(scores) < len(order):
        return answers[0]
    if scores:
        return max(scores, key=scores.__getitem__)
    return max(order, key=lambda i: built.candidates[i].box.area)


def _ordered(ranked: list[_Kept], order: Order, rng: np.random.Generator | None) -> list[_Kept]:
    in_detector_order = sorted(ranked, key=lambda entry: entry.origin)
    if order == "left_to_right":
        return sorted(in_detector_order, key=lambda entry: entry.candidate.box.center)
    if order == "score":
        return sorted(in_detector_order, key=lambda entry: -_score(entry, "order=score"))
    if order == "shuffled":
        if rng is None:
            raise RecipeError("candidates.order=shuffled needs a generator: pass rng=order_rng(seed, sample_id)")
        return [in_detector_order[index] for index in rng.permutation(len(in_detector_order))]
    return in_detector_order
