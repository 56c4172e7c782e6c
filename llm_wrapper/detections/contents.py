"""The files of a cache folder: Parquet parts and a manifest, read and checked as far as the folder itself can tell.

A part is written once and carries the identity of its cache. Until a cache is finished, parts may repeat equal answers
of other parts: a process that was killed while it rewrote parts leaves such repeats.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from llm_wrapper import storage
from llm_wrapper.detections.identity import Recorded, adopt_revision, distinct, fill_command, split_recorded
from llm_wrapper.detectors import LEVELS, Level
from llm_wrapper.errors import CacheError, DataError, LLMWrapperError
from llm_wrapper.readers import MIB, parse_json, parse_parquet_table, read_bytes, read_json
from llm_wrapper.records import Box, Detection, Detections, from_dict, to_dict

__all__ = [
    "MANIFEST",
    "PART_NAME",
    "PART_SCHEMA",
    "CachePart",
    "Contents",
    "DamagedPartError",
    "Key",
    "Manifest",
    "Problem",
    "count_answers",
    "describe_key",
    "read_folder",
    "read_part",
    "row_detections",
    "write_part",
    "write_rows",
]

MANIFEST = "manifest.json"
PART_NAME = re.compile(r"part-[0-9]{5,9}\.parquet")

_MAX_MANIFEST = 32 * MIB
"""A manifest names each part and each image that could not be read; JSON takes up to 24 times its size in memory."""
_MAX_PART, _MAX_UNPACKED = 256 * MIB, 512 * MIB
"""Bytes of a part on disk and in memory; 900 boxes for each of 2,000 expressions are about 80 MiB."""
_MAX_DROPPED = 1 << 31


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_BOX = pa.struct([_required(name, pa.float64()) for name in ("x0", "y0", "x1", "y1")])
_ITEM = pa.struct(
    [_required("box", _BOX), _required("label", pa.string()), ("score", pa.float64()), _required("source", pa.string())]
)
_KEY = [_required("image_id", pa.string()), ("sample_id", pa.string())]
PART_SCHEMA = pa.schema([*_KEY, _required("items", pa.list_(_ITEM)), _required("num_dropped", pa.int64())])
"""Columns of a part; `sample_id` is null where the answer holds for the whole image. Boxes are xyxy pixels."""

_IDENTITY, _DIGEST, _RECORDED = (f"llm_wrapper.{name}".encode() for name in ("identity", "identity_sha256", "recorded"))
_RECORDS = TypeAdapter(tuple[dict[str, Any], ...])

Key = tuple[str, str | None]
"""The question that a row answers: (image_id, sample_id), or (image_id, None) for the whole image."""


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
class CachePart:
    """One part in memory: its rows as an Arrow table, the question of each row, and how the rows were computed."""

    entry: PartEntry
    table: pa.Table
    keys: tuple[Key, ...]
    identity: Mapping[str, Any]
    recorded: Recorded = ()


@validated(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Manifest:
    """The summary of a complete cache; `created` is UTC, ISO 8601.

    `unanswered` gives the reason for each image that could not be read, by image id: those of its samples that have no
    answer have no detections. `recorded` has one entry for each way of computing, such as a GPU first and a CPU later.
    """

    identity: dict[str, Any]
    levels: Annotated[tuple[Level, ...], Field(min_length=1, max_length=len(LEVELS))]
    unanswered: dict[str, str]
    parts: tuple[PartEntry, ...]
    num_rows: int
    num_images: int
    num_detections: int
    num_dropped: int
    versions: dict[str, str]
    created: str
    recorded: Recorded = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault of a cache folder and its remedy.

    `part` is the file that cannot be used, where it is one. Filling the cache does not repair a problem that `blocks`.
    """

    text: str
    remedy: str
    part: Path | None = None
    blocks: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """The state of a cache folder: `parts` are those that can be used, `problems` describe all others.

    `manifest` is `None` where there is none, or none that can be read; `identity` is the manifest's, else that of the
    first part, else `None`. `others` are whole parts of another identity.
    """

    folder: Path
    manifest: Manifest | None
    identity: Mapping[str, Any] | None
    parts: tuple[CachePart, ...]
    others: tuple[CachePart, ...]
    problems: tuple[Problem, ...]

    @property
    def keys(self) -> set[Key]:
        """All questions that are answered."""
        return {key for part in self.parts for key in part.keys}

    @property
    def command(self) -> str:
        """The command that computes missing answers and writes the manifest."""
        return fill_command(self.identity, self.folder)

    @property
    def has_manifest(self) -> bool:
        """Whether the cache was filled to its end, even if its manifest cannot be read now."""
        return (self.folder / MANIFEST).exists()


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
    """Write plain rows of `PART_SCHEMA` as one part, as `write_part` does."""
    # The digest tells a damaged identity from that of another cache: checksums do not cover a Parquet file's footer.
    metadata = {_IDENTITY: storage.canonical(identity).encode(), _DIGEST: storage.digest_value(identity).encode()}
    if recorded:
        metadata[_RECORDED] = storage.canonical(recorded).encode()
    storage.write_parquet(path, rows, PART_SCHEMA.with_metadata(metadata))


def read_part(path: Path, sha256: str | None = None) -> CachePart:
    """Read and verify one part.

    Args:
        path: The file.
        sha256: Digest of the file's bytes in the manifest; `None` where there is no manifest yet.

    Raises:
        DamagedPartError: If the content is not what was written, or a row is no detection.
        DataError: If the file cannot be read at all: it is no file, is too large, or may not be read.
    """
    content = read_bytes(path, most=_MAX_PART)
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, found):
        raise DamagedPartError(f"{path} is damaged: its sha256 is {found}, the manifest says {sha256}")
    try:
        table = parse_parquet_table(content, str(path), most=_MAX_UNPACKED, schema=PART_SCHEMA)
    except DataError as error:
        raise DamagedPartError(str(error)) from error
    _require_detections(path, table)
    keys = tuple(zip(table["image_id"].to_pylist(), table["sample_id"].to_pylist(), strict=True))
    metadata = table.schema.metadata or {}
    identity, earlier = split_recorded(_part_identity(path, metadata))
    try:
        recorded = _RECORDS.validate_python(parse_json(metadata.get(_RECORDED, b"[]"), str(path)))
    except (DataError, ValueError) as error:
        raise DamagedPartError(f"{path} is damaged: it does not say how its answers were computed") from error
    return CachePart(PartEntry(path.name, found, len(keys)), table, keys, identity, distinct([*recorded, *earlier]))


def _require_detections(path: Path, table: pa.Table) -> None:
    """Refuse rows that no detector gives, by columns: a loop over detections would take minutes."""
    items = pc.list_flatten(table["items"])
    corners = {name: pc.struct_field(items, ["box", name]).to_numpy() for name in ("x0", "y0", "x1", "y1")}
    is_wrong = ~((corners["x0"] < corners["x1"]) & (corners["y0"] < corners["y1"]))
    for values in corners.values():
        is_wrong |= ~np.isfinite(values)
    if is_wrong.any():
        index = int(is_wrong.argmax())
        box = tuple(float(values[index]) for values in corners.values())
        raise _no_detection(path, table, index, f"box {box} is reversed, has no area or is not finite")
    scores = pc.struct_field(items, ["score"])
    is_wrong = pc.invert(pc.is_finite(scores)).fill_null(False).to_numpy()
    if is_wrong.any():
        index = int(is_wrong.argmax())
        raise _no_detection(path, table, index, f"score {scores[index].as_py()} is not finite")
    dropped = table["num_dropped"].to_numpy()
    if (wrong := np.flatnonzero((dropped < 0) | (dropped > _MAX_DROPPED))).size:
        row = int(wrong[0])
        raise DamagedPartError(f"{path} is damaged: row {row} says that {dropped[row]} outputs were dropped")


def _no_detection(path: Path, table: pa.Table, index: int, problem: str) -> DamagedPartError:
    """Name the row of one detection, which is counted over all rows of the part."""
    row = int(np.searchsorted(np.cumsum(pc.list_value_length(table["items"]).to_numpy()), index, side="right"))
    return DamagedPartError(f"{path} is damaged: row {row}: {problem}")


def _part_identity(path: Path, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    try:
        identity = parse_json(metadata[_IDENTITY], str(path))
    except (KeyError, DataError) as error:
        raise DamagedPartError(f"{path} is damaged: it carries no identity of its cache") from error
    if not isinstance(identity, dict):
        raise DamagedPartError(f"{path} is damaged: the identity of its cache is no object")
    if storage.digest_value(identity).encode() != metadata.get(_DIGEST):
        raise DamagedPartError(f"{path} is damaged: the identity that it carries was changed")
    return identity


def row_detections(table: pa.Table, row: int) -> Detections:
    """Return the answer in one row of a part's table."""
    items = tuple(
        Detection(Box(**item["box"]), item["label"], item["score"], item["source"])
        for item in table["items"][row].as_py()
    )
    return Detections(items, table["num_dropped"][row].as_py())


def describe_key(key: Key) -> str:
    """Name a question in a message."""
    image_id, sample_id = key
    return f"image {image_id!r}" if sample_id is None else f"sample {sample_id!r} of image {image_id!r}"


def count_answers(parts: Sequence[CachePart]) -> dict[str, int]:
    """Return the counts of a manifest, by its names."""
    tables = [part.table for part in parts]
    return {
        "num_rows": sum(table.num_rows for table in tables),
        "num_images": len({image_id for part in parts for image_id, _ in part.keys}),
        "num_detections": sum(len(pc.list_flatten(table["items"])) for table in tables),
        "num_dropped": sum(pc.sum(table["num_dropped"], min_count=0).as_py() for table in tables),
    }


def read_folder(folder: Path, *, identity: Mapping[str, Any] | None = None, may_be_empty: bool = False) -> Contents:
    """Read a cache folder and check everything that it can tell; nothing on disk is changed.

    Checked are digests, columns, identities, questions with two different answers, and the manifest's counts.

    Args:
        folder: The folder.
        identity: That of all parts; by default that of the manifest or of the first part.
        may_be_empty: Whether a folder without a cache passes.

    Raises:
        CacheError: If the folder holds no cache.
    """
    if not may_be_empty and not any(folder.glob("part-*.parquet")) and not (folder / MANIFEST).exists():
        raise CacheError(
            f"{folder} holds no detections. Name a folder like data/detections/<detector>/<dataset>/<split>."
        )
    manifest, damage = _read_manifest(folder / MANIFEST)
    outcomes = dict(_read_parts(folder, manifest))
    readable = [outcome for outcome in outcomes.values() if isinstance(outcome, CachePart)]
    wanted = identity or (manifest.identity if manifest else readable[0].identity if readable else {})
    if manifest is not None:
        manifest = replace(manifest, identity=adopt_revision(manifest.identity, manifest.recorded, wanted))
    readable = [replace(part, identity=adopt_revision(part.identity, part.recorded, wanted)) for part in readable]
    outcomes.update((folder / part.entry.name, part) for part in readable)
    found = manifest.identity if manifest else readable[0].identity if readable else None
    others = tuple(part for part in readable if part.identity != wanted)
    outcomes.update(_contradictions(folder, [part for part in readable if part.identity == wanted]))
    parts = tuple(each for each in outcomes.values() if isinstance(each, CachePart) and each.identity == wanted)
    remedy = f"Run `{fill_command(wanted, folder)}`: it computes again only what is lost."
    problems = [Problem(text, remedy) for text in damage]
    for path, error in outcomes.items():
        if isinstance(error, CacheError):
            problems.append(Problem(str(error).removesuffix("."), remedy, part=path))
        elif not isinstance(error, CachePart):
            advice = "Make it a file that you may read."
            problems.append(Problem(str(error).removesuffix("."), advice, part=path, blocks=True))
    problems += [_of_another_cache(folder, part, wanted) for part in others]
    if manifest is not None and not problems:
        problems += [Problem(text, remedy) for text in _miscounted(folder / MANIFEST, manifest, parts)]
    return Contents(folder, manifest, found, parts, others, tuple(problems))


def _read_manifest(path: Path) -> tuple[Manifest | None, list[str]]:
    """Return the manifest, if there is one, and what is wrong with it."""
    if not path.exists():
        return None, []
    try:
        manifest = from_dict(Manifest, read_json(path, most=_MAX_MANIFEST))
        identity, earlier = split_recorded(manifest.identity)
        return replace(manifest, identity=identity, recorded=distinct([*manifest.recorded, *earlier])), []
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "it"
        return None, [f"{path} is damaged: {field}: {first['msg']} ({error.error_count()} problems)"]
    except (DataError, ValueError, TypeError) as error:
        return None, [f"{path} is damaged: {error}".removesuffix(".")]


def _read_parts(folder: Path, manifest: Manifest | None) -> Iterator[tuple[Path, CachePart | LLMWrapperError]]:
    """Yield each part, or why it cannot be used; those that are missing come first."""
    known = None if manifest is None else {entry.name: entry.sha256 for entry in manifest.parts}
    paths = sorted(folder.glob("part-*.parquet"))
    for name in sorted(set(known or ()) - {path.name for path in paths}):
        yield folder / name, DamagedPartError(f"{folder / name} is missing")
    for path in paths:
        try:
            if not PART_NAME.fullmatch(path.name):
                raise DamagedPartError(f"{path} is not named like a part (part-00000.parquet)")
            if known is not None and path.name not in known:
                raise DamagedPartError(f"{path} is not in the manifest")
            yield path, read_part(path, known[path.name] if known else None)
        except (CacheError, DataError) as error:
            yield path, error


def _contradictions(folder: Path, parts: Iterable[CachePart]) -> Iterator[tuple[Path, DamagedPartError]]:
    """Yield each part that answers a question twice, or otherwise than an earlier part."""
    rows: dict[Key, tuple[pa.Table, int]] = {}
    for part in parts:
        counts = Counter(part.keys)
        repeated = [
            key
            for row, key in enumerate(part.keys)
            if counts[key] > 1 or (key in rows and row_detections(*rows[key]) != row_detections(part.table, row))
        ]
        if repeated:
            path, names = folder / part.entry.name, list(dict.fromkeys(repeated))
            named = f"{describe_key(names[0])}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"
            yield path, DamagedPartError(f"{path} has a second answer to what is answered already: {named}")
        else:
            rows.update({key: (part.table, row) for row, key in enumerate(part.keys)})


def _of_another_cache(folder: Path, part: CachePart, wanted: Mapping[str, Any]) -> Problem:
    differences = storage.describe_differences(part.identity, wanted, places=("in this part", "in the others"))
    text = f"{folder / part.entry.name} is not of the same detector and data as the others: {'; '.join(differences)}"
    remedy = f"Move it to another folder and run `{fill_command(wanted, folder)}`."
    return Problem(text, remedy, part=folder / part.entry.name, blocks=True)


def _miscounted(path: Path, manifest: Manifest, parts: Sequence[CachePart]) -> Iterator[str]:
    """Yield each claim of a manifest about its parts that is not true: a lookup would believe it."""
    answered = {"image" if sample_id is None else "expression" for part in parts for _, sample_id in part.keys}
    if unsaid := sorted(answered - set(manifest.levels)):
        yield f"{path} says levels={list(manifest.levels)}, but its parts hold answers of level {', '.join(unsaid)}"
    counts = {part.entry.name: part.entry.num_rows for part in parts}
    for entry in (each for each in manifest.parts if counts.get(each.name) != each.num_rows):
        yield f"{path} says that {entry.name} has {entry.num_rows} rows, but it has {counts.get(entry.name)}"
    for name, number in count_answers(parts).items():
        if getattr(manifest, name) != number:
            yield f"{path} says {name}={getattr(manifest, name)}, but its parts hold {number}"
