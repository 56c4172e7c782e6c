"""Turn a choice into a prediction: every fallback rule of the method is in `decide`."""

from __future__ import annotations

from typing import Any, NamedTuple

from llm_wrapper import boxes
from llm_wrapper.prompts.render import NONE_OF_THESE
from llm_wrapper.records import Box, Candidate, Choice, DecidedBy, Prediction, Sample

__all__ = ["INDEX_OUT_OF_RANGE", "UNUSABLE_ANSWER", "decide", "oracle_choice", "prediction_of"]

INDEX_OUT_OF_RANGE = "index_out_of_range"
"""Failure of an answer that names a candidate that does not exist."""

UNUSABLE_ANSWER = "unusable_answer"
"""Failure of a choice that has neither an index nor a reason."""


class _Decision(NamedTuple):
    candidate: int | None
    decided_by: DecidedBy
    probability: float | None = None
    failure: str | None = None


def decide(
    sample: Sample,
    candidates: tuple[Candidate, ...],
    choice: Choice | None,
    *,
    system: str,
    decided_by: DecidedBy,
    own_choice: int | None,
    **stored: Any,
) -> Prediction:
    """Decide the box of one sample.

        no candidate                              -> no box                      no_candidate
        "none of these"                           -> no box, no failure          `decided_by`
        one candidate, not chosen by an LLM       -> that candidate              single_candidate
        no index, or one that does not exist      -> the detector's own top-1    fallback, with the reason as `failure`
        an index                                  -> that candidate              `decided_by`

    Args:
        sample: The question.
        candidates: In the order shown; indices refer to it.
        choice: May be `None` only for fewer than 2 candidates, which need no answer.
        system: Name of the deciding system.
        decided_by: Who made the choice, where it holds.
        own_choice: Index of the detector's own top-1, see `candidates.detector_choice`.
        stored: Fields of `Prediction` that are stored as given, such as `probabilities` and `origins`.

    Raises:
        ValueError: If there is something to choose and no choice, or `own_choice`, `probabilities` or `origins` do
            not fit.
    """
    probabilities = stored.get("probabilities")
    if own_choice is not None and not 0 <= own_choice < len(candidates):
        raise ValueError(f"sample {sample.sample_id!r}: own choice {own_choice} of {len(candidates)} candidates")
    if probabilities is not None and len(probabilities) != len(candidates):
        raise ValueError(
            f"sample {sample.sample_id!r}: {len(probabilities)} probabilities for {len(candidates)} candidates"
        )
    by_llm = decided_by == "llm" and choice is not None and choice.index == 0
    if not candidates:
        made = _Decision(None, "no_candidate")
    elif choice is not None and choice.reason == NONE_OF_THESE:
        made = _Decision(None, decided_by, choice.probability)
    elif len(candidates) == 1 and not by_llm:
        made = _Decision(0, "single_candidate")
    elif choice is None:
        raise ValueError(f"sample {sample.sample_id!r} has {len(candidates)} candidates but no choice was made")
    elif choice.index is None:
        made = _Decision(own_choice, "fallback", failure=choice.reason or UNUSABLE_ANSWER)
    elif not 0 <= choice.index < len(candidates):
        made = _Decision(own_choice, "fallback", failure=INDEX_OUT_OF_RANGE)
    else:
        made = _Decision(choice.index, decided_by, choice.probability)
    box = None if made.candidate is None else candidates[made.candidate].box
    kept: dict[str, Any] = {"probability": made.probability, "failure": made.failure, "candidates": candidates}
    return prediction_of(sample, system, made.decided_by, box=box, **kept, **stored)


def prediction_of(sample: Sample, system: str, decided_by: DecidedBy, **fields: Any) -> Prediction:
    """Build the prediction of a system for a sample; fields that are not given are empty."""
    return Prediction(
        system=system,
        sample_id=sample.sample_id,
        image_id=sample.image_id,
        expression=sample.expression,
        kind=sample.kind,
        target=sample.target,
        decided_by=decided_by,
        further_targets=sample.further_targets,
        image_wh=sample.image_wh,
        box=fields.pop("box", None),
        probability=fields.pop("probability", None),
        probabilities=fields.pop("probabilities", None),
        failure=fields.pop("failure", None),
        candidates=fields.pop("candidates", ()),
        **fields,
    )


def oracle_choice(candidates: tuple[Candidate, ...], target: Box | None) -> Choice:
    """Choose the candidate with the highest IoU with the target; the first of equals.

    Without a target it says none, as a selector may; without a candidate there is no index either.
    """
    if not candidates or target is None:
        return Choice(None, reason=NONE_OF_THESE if candidates else "no_candidate")
    overlap = boxes.pairwise_iou(boxes.array([candidate.box for candidate in candidates]), boxes.array([target]))
    return Choice(int(overlap[:, 0].argmax()))
