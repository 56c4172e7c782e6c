"""One part of a detections cache: a Parquet file that is written once and carries the identity of its cache."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as validated

from llm_wrapper import artifacts
from llm_wrapper.detections.identity import Recorded, distinct, split_recorded
from llm_wrapper.errors import CacheError, DataError
from llm_wrapper.readers import parse_json
from llm_wrapper.records import Box, Detection, Detections, to_dict

__all__ = [
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

Key = tuple[str, str | None]
"""What a row answers: (image_id, sample_id), or (image_id, None) for the whole image."""


class DamagedPartError(CacheError):
    """A part cannot be used; its answers must be computed again."""


@validated(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class PartEntry:
    """One part as the manifest knows it; `sha256` is over the file's bytes, as hex."""

    # A manifest is a file that users pass on: its names must never lead out of its folder.
    name: Annotated[str, Field(pattern=r"^part-\d+\.parquet$")]
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
    text = artifacts.canonical(identity)
    # The digest tells a damaged identity from that of another cache: checksums do not cover a Parquet file's footer.
    metadata = {_IDENTITY: text.encode(), _DIGEST: artifacts.digest_value(identity).encode()}
    if recorded:
        metadata[_RECORDED] = artifacts.canonical(recorded).encode()
    artifacts.write_parquet(path, rows, SCHEMA.with_metadata(metadata))


def read_part(path: Path, sha256: str | None = None) -> Part:
    """Read and verify one part.

    Args:
        path: The file.
        sha256: What the manifest says of the file's bytes; `None` where there is no manifest yet.

    Raises:
        DamagedPartError: If the content is not what was written.
        DataError: If the file cannot be read at all, for instance for lack of permission.
    """
    found = artifacts.digest(path)
    if sha256 not in (None, found):
        raise DamagedPartError(f"{path} is damaged: its sha256 is {found}, the manifest says {sha256}")
    try:
        table = artifacts.read_table(path)
    except DataError as error:
        raise DamagedPartError(str(error)) from error
    if not table.schema.equals(SCHEMA):
        raise DamagedPartError(f"{path} is damaged: its columns are not those of detections")
    keys = tuple(zip(table["image_id"].to_pylist(), table["sample_id"].to_pylist(), strict=True))
    metadata = table.schema.metadata or {}
    identity, earlier = split_recorded(_identity(path, metadata))
    recorded = distinct([*_recorded(path, metadata), *earlier])
    return Part(PartEntry(path.name, found, len(keys)), table, keys, identity, recorded)


def _identity(path: Path, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return the identity that a part carries."""
    try:
        identity: dict[str, Any] = json.loads(metadata[_IDENTITY])
    except (KeyError, ValueError) as error:
        raise DamagedPartError(f"{path} is damaged: it carries no identity of its cache") from error
    if artifacts.digest_value(identity).encode() != metadata.get(_DIGEST):
        raise DamagedPartError(f"{path} is damaged: the identity that it carries was changed")
    return identity


def _recorded(path: Path, metadata: Mapping[bytes, bytes]) -> Recorded:
    """Return what a part says of how its answers were computed."""
    try:
        return _RECORDS.validate_python(parse_json(metadata.get(_RECORDED, b"[]").decode(), str(path)))
    except (DataError, ValueError) as error:
        raise DamagedPartError(f"{path} is damaged: it does not say how its answers were computed") from error


def row_detections(table: pa.Table, row: int) -> Detections:
    """Return the answer in one row of a part's table."""
    items = tuple(
        Detection(Box(**item["box"]), item["label"], item["score"], item["source"])
        for item in table["items"][row].as_py()
    )
    return Detections(items, table["num_dropped"][row].as_py())
