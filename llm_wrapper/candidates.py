"""Choose which detections an LLM may choose from, and in which order it sees them.

What is dropped is counted by reason, and the order is the order of the returned tuple: it is stored with every
prompt and prediction and never derived again from a seed.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from llm_wrapper import boxes
from llm_wrapper.errors import RecipeError
from llm_wrapper.records import Candidate, Detection, Detections

__all__ = ["OWN_ANSWER_SOURCE", "BuiltCandidates", "CandidatePolicy", "build", "order_rng"]

OWN_ANSWER_SOURCE = "rec"
"""The source of detections that answer the expression itself (Florence-2's referring-expression task)."""

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
    """The candidates in shown order, the place of each among the detections, and what was dropped by reason.

    The counts and the candidates together account for every output of the detector.
    """

    candidates: tuple[Candidate, ...]
    origins: tuple[int, ...]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Kept:
    """A candidate with its place in the detector's own order."""

    candidate: Candidate
    origin: int


def build(
    detections: Detections,
    sample_wh: tuple[int, int],
    policy: CandidatePolicy,
    *,
    detector: str,
    rng: np.random.Generator | None = None,
) -> BuiltCandidates:
    """Turn the detections of one sample into candidates.

    The steps: sources, clip to the image, score, duplicates (same box and label), NMS, cap, order. Where two compete
    (duplicates, NMS, cap), the higher score stays; then comes the detector's own answer to the expression, then the
    rest in the detector's order. So the detector's own choice is lost only where `sources` or `min_score` exclude it.

    Args:
        detections: What the detector said, in its own order.
        sample_wh: Width and height of the image in pixels.
        policy: What to keep.
        detector: Name of the detector, stored in each candidate.
        rng: Needed for order "shuffled" only; see `order_rng`.

    Raises:
        RecipeError: If the policy needs scores and a detection has none, or a generator and there is none.
    """
    items = list(enumerate(detections.items))
    wanted = [(origin, item) for origin, item in items if policy.sources is None or item.source in policy.sources]
    inside = _clipped(wanted, sample_wh, detector)
    scored = _scored_enough(inside, policy.min_score)
    distinct = _distinct(sorted(scored, key=_rank))
    apart = _suppressed(distinct, policy.nms_iou)
    kept = apart[: policy.cap]
    counts = {
        "not_a_box": detections.num_dropped,
        "other_source": len(items) - len(wanted),
        "outside_image": len(wanted) - len(inside),
        "low_score": len(inside) - len(scored),
        "duplicate": len(scored) - len(distinct),
        "nms": len(distinct) - len(apart),
        "over_cap": len(apart) - len(kept),
    }
    shown = _ordered(kept, policy.order, rng)
    return BuiltCandidates(tuple(e.candidate for e in shown), tuple(e.origin for e in shown), counts)


def order_rng(seed: int, sample_id: str) -> np.random.Generator:
    """Return the generator that shuffles one sample's candidates: the same for one seed and sample in any process."""
    # Python's own hash() differs from process to process.
    digest = hashlib.blake2b(f"{seed}\0{sample_id}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _clipped(items: Sequence[tuple[int, Detection]], sample_wh: tuple[int, int], detector: str) -> list[_Kept]:
    pairs = [(origin, item, boxes.clip(item.box, sample_wh)) for origin, item in items]
    return [
        _Kept(Candidate(box, item.label, item.score, detector, item.source), origin)
        for origin, item, box in pairs
        if box is not None
    ]


def _rank(entry: _Kept) -> tuple[float, bool, int]:
    """Sort key, best first; a candidate without a score stands behind all that have one."""
    score = entry.candidate.score
    return (np.inf if score is None else -score, entry.candidate.source != OWN_ANSWER_SOURCE, entry.origin)


def _score(entry: _Kept, setting: str) -> float:
    candidate = entry.candidate
    if candidate.score is None:
        raise RecipeError(
            f"candidates.{setting} needs scores, but detector {candidate.detector!r} gave none for {candidate.label!r} "
            f"(source {candidate.source!r}). Leave it out, or name only sources that score in candidates.sources."
        )
    return candidate.score


def _scored_enough(entries: list[_Kept], min_score: float | None) -> list[_Kept]:
    return entries if min_score is None else [e for e in entries if _score(e, "min_score") >= min_score]


def _distinct(ranked: Sequence[_Kept]) -> list[_Kept]:
    first: dict[tuple[object, str], _Kept] = {}
    for entry in ranked:
        first.setdefault((entry.candidate.box, entry.candidate.label), entry)
    return list(first.values())


def _suppressed(ranked: list[_Kept], nms_iou: float | None) -> list[_Kept]:
    if nms_iou is None or len(ranked) < 2:
        return ranked
    with warnings.catch_warnings():
        # supervision says once, at import, that it works without OpenCV; that is how it is meant to work here.
        warnings.filterwarnings("ignore", message="OpenCV", category=UserWarning)
        from supervision import box_non_max_suppression
    # The rank stands in for the score, so that candidates without one keep the detector's order.
    ranks = np.arange(len(ranked), 0, -1, dtype=np.float64)
    rows = np.column_stack([boxes.array([entry.candidate.box for entry in ranked]), ranks])
    keep = box_non_max_suppression(rows, iou_threshold=nms_iou)
    return [entry for entry, stays in zip(ranked, keep, strict=True) if stays]


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
