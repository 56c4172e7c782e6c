"""One part of a detections cache: a Parquet file that is written once and carries the identity of its cache."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as validated

from llm_wrapper import storage
from llm_wrapper.detections.identity import Recorded, distinct, split_recorded
from llm_wrapper.errors import CacheError, DataError
from llm_wrapper.readers import MIB, parse_json, parse_parquet_table, read_bytes
from llm_wrapper.records import Box, Detection, Detections, to_dict

__all__ = [
    "PART_NAME",
    "ROWS_PER_PART",
    "SCHEMA",
    "DamagedPartError",
    "Key",
    "Part",
    "PartEntry",
    "read_part",
    "row_detections",
    "write_part",
    "write_rows",
]

ROWS_PER_PART = 2000
"""Answers in each part of a complete cache; the last has what is left."""

_MAX_PART, _MAX_UNPACKED = 256 * MIB, 512 * MIB
"""Bytes of a part on disk and in memory; 900 boxes for each of 2,000 expressions are about 80 MiB."""
_MAX_DROPPED = 1 << 31

_BOX = pa.struct([pa.field(name, pa.float64(), nullable=False) for name in ("x0", "y0", "x1", "y1")])
_ITEM = pa.struct(
    [
        pa.field("box", _BOX, nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("source", pa.string(), nullable=False),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("sample_id", pa.string()),
        pa.field("items", pa.list_(_ITEM), nullable=False),
        pa.field("num_dropped", pa.int64(), nullable=False),
    ]
)
"""Columns of a part; `sample_id` is null where the answer holds for the whole image. Boxes are xyxy pixels."""

_IDENTITY, _DIGEST = b"llm_wrapper.identity", b"llm_wrapper.identity_sha256"
_RECORDED = b"llm_wrapper.recorded"
_RECORDS = TypeAdapter(tuple[dict[str, Any], ...])

PART_NAME = re.compile(r"part-[0-9]{5,9}\.parquet")

Key = tuple[str, str | None]
"""What a row answers: (image_id, sample_id), or (image_id, None) for the whole image."""


class DamagedPartError(CacheError):
    """A part cannot be used; its answers must be computed again."""


@validated(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class PartEntry:
    """One part as the manifest knows it; `sha256` is over the file's bytes, as hex."""

    # A manifest is a file that users pass on: its names must never lead out of its folder.
    name: Annotated[str, Field(pattern=f"^{PART_NAME.pattern}$")]
    sha256: str
    num_rows: int


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One part in memory: its rows as an Arrow table, what they answer, row by row, and how that was computed."""

    entry: PartEntry
    table: pa.Table
    keys: tuple[Key, ...]
    identity: Mapping[str, Any]
    recorded: Recorded = ()


def write_part(
    path: Path, answers: Sequence[tuple[Key, Detections]], identity: Mapping[str, Any], recorded: Recorded = ()
) -> None:
    """Write answers as one part, atomically.

    Raises:
        LLMWrapperError: If the file cannot be written, for instance because the disk is full.
    """
    rows = [
        {"image_id": image_id, "sample_id": sample_id, **to_dict(found)} for (image_id, sample_id), found in answers
    ]
    write_rows(path, rows, identity, recorded)


def write_rows(
    path: Path, rows: Sequence[Mapping[str, Any]], identity: Mapping[str, Any], recorded: Recorded = ()
) -> None:
    """Write plain rows of `SCHEMA` as one part, atomically; equal rows give equal bytes.

    Raises:
        LLMWrapperError: If the file cannot be written, for instance because the disk is full.
    """
    text = storage.canonical(identity)
    # The digest tells a damaged identity from that of another cache: checksums do not cover a Parquet file's footer.
    metadata = {_IDENTITY: text.encode(), _DIGEST: storage.digest_value(identity).encode()}
    if recorded:
        metadata[_RECORDED] = storage.canonical(recorded).encode()
    storage.write_parquet(path, rows, SCHEMA.with_metadata(metadata))


def read_part(path: Path, sha256: str | None = None) -> Part:
    """Read and verify one part.

    Args:
        path: The file.
        sha256: What the manifest says of the file's bytes; `None` where there is no manifest yet.

    Raises:
        DamagedPartError: If the content is not what was written, or holds what is no detection.
        DataError: If the file cannot be read at all: it is no file, is too large, or may not be read.
    """
    content = read_bytes(path, most=_MAX_PART)
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, found):
        raise DamagedPartError(f"{path} is damaged: its sha256 is {found}, the manifest says {sha256}")
    try:
        table = parse_parquet_table(content, str(path), most=_MAX_UNPACKED, schema=SCHEMA)
    except DataError as error:
        raise DamagedPartError(str(error)) from error
    _require_detections(path, table)
    keys = tuple(zip(table["image_id"].to_pylist(), table["sample_id"].to_pylist(), strict=True))
    metadata = table.schema.metadata or {}
    identity, earlier = split_recorded(_identity(path, metadata))
    recorded = distinct([*_recorded(path, metadata), *earlier])
    return Part(PartEntry(path.name, found, len(keys)), table, keys, identity, recorded)


def _require_detections(path: Path, table: pa.Table) -> None:
    """Refuse rows that hold what no detector gives, by columns: a loop over detections would take minutes."""
    items = pc.list_flatten(table["items"])
    corners = {name: pc.struct_field(items, ["box", name]).to_numpy() for name in ("x0", "y0", "x1", "y1")}
    is_wrong = ~((corners["x0"] < corners["x1"]) & (corners["y0"] < corners["y1"]))
    for values in corners.values():
        is_wrong |= ~np.isfinite(values)
    if is_wrong.any():
        place = int(is_wrong.argmax())
        box = tuple(float(values[place]) for values in corners.values())
        raise _no_detection(path, table, place, f"box {box} is reversed, has no area or is not finite")
    scores = pc.struct_field(items, ["score"])
    is_wrong = pc.invert(pc.is_finite(scores)).fill_null(False).to_numpy()
    if is_wrong.any():
        place = int(is_wrong.argmax())
        raise _no_detection(path, table, place, f"score {scores[place].as_py()} is not finite")
    dropped = table["num_dropped"].to_numpy()
    if (wrong := np.flatnonzero((dropped < 0) | (dropped > _MAX_DROPPED))).size:
        row = int(wrong[0])
        raise DamagedPartError(f"{path} is damaged: row {row} says that {dropped[row]} outputs were dropped")


def _no_detection(path: Path, table: pa.Table, place: int, problem: str) -> DamagedPartError:
    """Name the row of the detection at a place among all of a part."""
    row = int(np.searchsorted(np.cumsum(pc.list_value_length(table["items"]).to_numpy()), place, side="right"))
    return DamagedPartError(f"{path} is damaged: row {row}: {problem}")


def _identity(path: Path, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return the identity that a part carries."""
    try:
        identity = parse_json(metadata[_IDENTITY], str(path))
    except (KeyError, DataError) as error:
        raise DamagedPartError(f"{path} is damaged: it carries no identity of its cache") from error
    if not isinstance(identity, dict):
        raise DamagedPartError(f"{path} is damaged: the identity of its cache is no object")
    if storage.digest_value(identity).encode() != metadata.get(_DIGEST):
        raise DamagedPartError(f"{path} is damaged: the identity that it carries was changed")
    return identity


def _recorded(path: Path, metadata: Mapping[bytes, bytes]) -> Recorded:
    """Return what a part says of how its answers were computed."""
    try:
        return _RECORDS.validate_python(parse_json(metadata.get(_RECORDED, b"[]"), str(path)))
    except (DataError, ValueError) as error:
        raise DamagedPartError(f"{path} is damaged: it does not say how its answers were computed") from error


def row_detections(table: pa.Table, row: int) -> Detections:
    """Return the answer in one row of a part's table."""
    items = tuple(
        Detection(Box(**item["box"]), item["label"], item["score"], item["source"])
        for item in table["items"][row].as_py()
    )
    return Detections(items, table["num_dropped"][row].as_py())
