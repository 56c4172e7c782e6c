"""Predictions: decide one from a choice (every fallback rule of the method is in `decide`), and store them.

Every metric can be computed again from the stored file alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from llm_wrapper import boxes
from llm_wrapper.errors import DataError
from llm_wrapper.metrics import require_distinct
from llm_wrapper.prompts.render import NONE_OF_THESE
from llm_wrapper.readers import GIB, parse_parquet_schema, parse_parquet_table, read_bytes
from llm_wrapper.records import Box, Candidate, Choice, DecidedBy, Prediction, Sample
from llm_wrapper.storage import write_parquet

INDEX_OUT_OF_RANGE = "index_out_of_range"
"""Failure of an answer that names a candidate that does not exist."""

UNUSABLE_ANSWER = "unusable_answer"
"""Failure of a choice that has neither an index nor a reason."""

_LEAST_MASS = 0.01
"""Below it the renormalized probabilities are of answers that the LLM would not give."""


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
    where, probabilities = f"sample {sample.sample_id!r}", stored.get("probabilities")
    if own_choice is not None and not 0 <= own_choice < len(candidates):
        raise ValueError(f"{where}: own choice {own_choice} of {len(candidates)} candidates")
    if probabilities is not None and len(probabilities) != len(candidates):
        raise ValueError(f"{where}: {len(probabilities)} probabilities for {len(candidates)} candidates")
    index: int | None = None
    probability: float | None = None
    failure: str | None = None
    if not candidates:
        decided_by = "no_candidate"
    elif choice is not None and choice.reason == NONE_OF_THESE:
        probability = choice.probability
    elif len(candidates) == 1 and not (decided_by == "llm" and choice is not None and choice.index == 0):
        index, decided_by = 0, "single_candidate"
    elif choice is None:
        raise ValueError(f"{where} has {len(candidates)} candidates but no choice was made")
    elif choice.index is None:
        index, decided_by, failure = own_choice, "fallback", choice.reason or UNUSABLE_ANSWER
    elif not 0 <= choice.index < len(candidates):
        index, decided_by, failure = own_choice, "fallback", INDEX_OUT_OF_RANGE
    else:
        index, probability = choice.index, choice.probability
    box = None if index is None else candidates[index].box
    found = {"box": box, "probability": probability, "failure": failure, "candidates": candidates}
    return prediction_of(sample, system, decided_by, **found, **stored)


def prediction_of(sample: Sample, system: str, decided_by: DecidedBy, **fields: Any) -> Prediction:
    """Build the prediction of a system for a sample; fields that are not given are empty."""
    empty: dict[str, Any] = dict.fromkeys(("box", "probability", "probabilities", "failure"))
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
        **{**empty, "candidates": (), **fields},
    )


def oracle_choice(candidates: tuple[Candidate, ...], target: Box | None) -> Choice:
    """Choose the candidate with the highest IoU with the target; the first of equals.

    Without a target it says none, as a selector may; without a candidate there is no index either.
    """
    if not candidates or target is None:
        return Choice(None, reason=NONE_OF_THESE if candidates else "no_candidate")
    overlap = boxes.pairwise_iou(boxes.array([candidate.box for candidate in candidates]), boxes.array([target]))
    return Choice(int(overlap[:, 0].argmax()))


def mass_notes(rows: Sequence[Prediction]) -> list[str]:
    """Say for each system how probable any valid answer was to its LLM, and warn where it would never give one."""
    masses: dict[str, list[float]] = {}
    for row in rows:
        if row.mass is not None:
            masses.setdefault(row.system, []).append(row.mass)
    notes = []
    for system, found in masses.items():
        mass = median(found)
        text = f"{system}: median probability of all valid answers together {mass:.2g}"
        if mass < _LEAST_MASS:
            text = (
                f"warning: {text}: the LLM would hardly ever answer with an index, so that its choices say little. "
                "Look at llm.chat_template; a model that thinks first needs llm.decode=generate, or choice on a server"
            )
        notes.append(text)
    return notes


_BOX = pa.struct([pa.field(name, pa.float64(), nullable=False) for name in ("x0", "y0", "x1", "y1")])

_CANDIDATE = pa.struct(
    [
        pa.field("box", _BOX, nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("detector", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
)

SCHEMA = pa.schema(
    [
        pa.field("system", pa.string(), nullable=False),
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("expression", pa.string(), nullable=False),
        pa.field("kind", pa.string()),
        pa.field("target", _BOX),
        pa.field("box", _BOX),
        pa.field("decided_by", pa.string(), nullable=False),
        pa.field("probability", pa.float64()),
        pa.field("probabilities", pa.list_(pa.float64())),
        pa.field("failure", pa.string()),
        pa.field("candidates", pa.list_(_CANDIDATE), nullable=False),
        pa.field("origins", pa.list_(pa.int64())),
        pa.field("further_targets", pa.list_(_BOX), nullable=False),
        pa.field("image_wh", pa.list_(pa.int64())),
        pa.field("reasoning", pa.string()),
        pa.field("num_tokens", pa.int64()),
        pa.field("none_probability", pa.float64()),
        pa.field("mass", pa.float64()),
    ]
)
"""One row per prediction; the columns are the fields of `Prediction`."""

_EARLIER_SCHEMAS = tuple(pa.schema(list(SCHEMA)[:count]) for count in (12, 15, 17, 18))
"""Files of the first version end with the candidates, those of the second with the image's size, those of the third
with the tokens, those of the fourth with the probability of none; what they lack has a default."""

_BATCH = 2000
"""Rows that are turned to records at a time."""

# One adapter for the whole list: building one per record costs more than the records.
_PREDICTIONS = TypeAdapter(list[Prediction])


def save_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write predictions of one or many systems as one Parquet file, in order.

    Raises:
        DataError: If a system has more than one prediction for a sample; all such are listed.
        LLMWrapperError: If the file cannot be written.
    """
    require_distinct(predictions, str(path))
    write_parquet(path, _PREDICTIONS.dump_python(list(predictions)), SCHEMA)


def load_predictions(path: Path) -> list[Prediction]:
    """Read what `save_predictions` wrote, equal and in the same order.

    Raises:
        DataError: If the file is missing, damaged, cut off, or does not hold predictions.
    """
    content = read_bytes(path, most=GIB)
    schema = parse_parquet_schema(content, str(path))
    if not any(schema.equals(known) for known in (SCHEMA, *_EARLIER_SCHEMAS)):
        found, wanted = list(schema), list(SCHEMA)
        fields = [field for field in wanted if field not in found] + [field for field in found if field not in wanted]
        differing = [field.name for field in fields] or ["their order"]
        raise DataError(
            f"{path} does not hold predictions of this version, columns differ: {', '.join(differing)}. "
            "Make it again with: llm-wrapper eval"
        )
    table = parse_parquet_table(content, str(path), most=GIB)
    predictions: list[Prediction] = []
    for batch in table.to_batches(max_chunksize=_BATCH):  # plain values take several times the memory of records
        try:
            predictions += _PREDICTIONS.validate_python(batch.to_pylist())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            row, *field = first["loc"]
            place = f"row {len(predictions) + int(row)}, {'.'.join(map(str, field)) or 'the whole'}"
            raise DataError(f"{path} holds rows that are no predictions: {place}: {first['msg']}") from error
    require_distinct(predictions, str(path))
    return predictions
