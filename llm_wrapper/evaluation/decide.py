"""Turn a choice into a prediction: every fallback rule of the method lives here."""

from __future__ import annotations

from llm_wrapper import boxes
from llm_wrapper.prompts.choose import NONE_OF_THESE
from llm_wrapper.records import Box, Candidate, Choice, DecidedBy, Prediction, Sample

__all__ = ["INDEX_OUT_OF_RANGE", "UNUSABLE_ANSWER", "decide", "oracle_choice"]

INDEX_OUT_OF_RANGE = "index_out_of_range"
"""Failure of an answer that names a candidate that does not exist."""

UNUSABLE_ANSWER = "unusable_answer"
"""Failure of a choice that has neither an index nor a reason."""


def decide(
    sample: Sample,
    candidates: tuple[Candidate, ...],
    choice: Choice | None,
    *,
    system: str,
    decided_by: DecidedBy,
    own_choice: int | None,
    probabilities: tuple[float, ...] | None = None,
    origins: tuple[int, ...] | None = None,
) -> Prediction:
    """Decide the box of one sample.

    No candidate: no box. A choice of "none of these": no box either, and that is no failure. One candidate: it is
    taken, whatever else the choice; the LLM decided it only where it was asked and said so. A choice without an index,
    or with one that does not exist: the detector's own choice, where it has one, with the reason as `failure`. Else:
    the choice.

    Args:
        sample: What was asked.
        candidates: In the order shown; indices refer to it.
        choice: May be `None` only where nobody had to be asked (fewer than two candidates).
        system: Name of the deciding system.
        decided_by: Who made the choice, where it holds.
        own_choice: The detector's own pick, see `candidates.detector_choice`.
        probabilities: The answer's probability per candidate, stored as it is.
        origins: The place of each candidate among the detector's outputs, stored as it is.

    Raises:
        ValueError: If there is something to choose and no choice, or `own_choice`, `probabilities` or `origins` do
            not fit.
    """
    _require_fit(sample, candidates, own_choice, probabilities)
    index: int | None
    probability: float | None = None
    failure: str | None = None
    if not candidates:
        index, decided_by = None, "no_candidate"
    elif choice is not None and choice.reason == NONE_OF_THESE:
        index, probability = None, choice.probability
    elif len(candidates) == 1 and not (decided_by == "llm" and choice is not None and choice.index == 0):
        index, decided_by = 0, "single_candidate"
    elif choice is None:
        raise ValueError(f"sample {sample.sample_id!r} has {len(candidates)} candidates but no choice was made")
    else:
        failure = _failure(choice, len(candidates))
        if failure is None:
            index, probability = choice.index, choice.probability
        else:
            index, decided_by = own_choice, "fallback"
    return Prediction(
        system=system,
        sample_id=sample.sample_id,
        image_id=sample.image_id,
        expression=sample.expression,
        kind=sample.kind,
        target=sample.target,
        box=None if index is None else candidates[index].box,
        decided_by=decided_by,
        probability=probability,
        probabilities=probabilities,
        failure=failure,
        candidates=candidates,
        origins=origins,
        further_targets=sample.further_targets,
        image_wh=sample.image_wh,
    )


def oracle_choice(candidates: tuple[Candidate, ...], target: Box | None) -> Choice:
    """Choose the candidate with the highest IoU with the target; the first of equals.

    Without a target it says none, as a selector may; without a candidate there is no index either.
    """
    if not candidates or target is None:
        return Choice(None, reason=NONE_OF_THESE if candidates else "no_candidate")
    overlap = boxes.pairwise_iou(boxes.array([candidate.box for candidate in candidates]), boxes.array([target]))
    return Choice(int(overlap[:, 0].argmax()))


def _failure(choice: Choice, num_candidates: int) -> str | None:
    if choice.index is None:
        return choice.reason or UNUSABLE_ANSWER
    return None if 0 <= choice.index < num_candidates else INDEX_OUT_OF_RANGE


def _require_fit(
    sample: Sample,
    candidates: tuple[Candidate, ...],
    own_choice: int | None,
    probabilities: tuple[float, ...] | None,
) -> None:
    if own_choice is not None and not 0 <= own_choice < len(candidates):
        raise ValueError(f"sample {sample.sample_id!r}: own choice {own_choice} of {len(candidates)} candidates")
    if probabilities is not None and len(probabilities) != len(candidates):
        raise ValueError(
            f"sample {sample.sample_id!r}: {len(probabilities)} probabilities for {len(candidates)} candidates"
        )
