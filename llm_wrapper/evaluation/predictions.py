"""Store predictions: every metric can be computed again from this file alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from llm_wrapper.errors import DataError
from llm_wrapper.metrics import require_distinct
from llm_wrapper.readers import GIB, parse_parquet_schema, parse_parquet_table, read_bytes
from llm_wrapper.records import Prediction
from llm_wrapper.storage import write_parquet

__all__ = ["SCHEMA", "load_predictions", "save_predictions"]

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
