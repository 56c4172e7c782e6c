"""The files of a cache folder, and the identity that they carry: read and checked as far as the folder can tell.

A part is written once. Until a cache is finished, parts may repeat equal answers of other parts: a process that was
killed while it rewrote parts leaves such repeats.

The identity decides which answers may be mixed. Number format, device, attention kernel and image processor are
recorded beside the answers and printed, but never compared: whoever has a cache can read it on any machine.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from llm_wrapper import storage
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detectors import LEVELS, Detector, Level
from llm_wrapper.errors import CacheError, DataError
from llm_wrapper.readers import MIB, parse_json, parse_parquet_table, read_bytes, read_json
from llm_wrapper.records import Box, Detection, Detections, from_dict

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
_RECORDED_SETTINGS = ("attention", "device", "dtype", "image_processor")
_COMMIT = re.compile(r"[0-9a-f]{40}")

Key = tuple[str, str | None]
"""The question that a row answers: (image_id, sample_id), or (image_id, None) for the whole image."""

Recorded = tuple[Mapping[str, Any], ...]
"""How answers were computed: one mapping for each way that was used, such as a GPU first and a CPU later."""


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
    answer have no detections.
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
    """A fault of a cache folder, or of one `part`, and its remedy; filling the cache repairs none that `blocks`."""

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
    def recorded(self) -> Recorded:
        """How the answers were computed."""
        return distinct(each for part in self.parts for each in part.recorded)

    @property
    def command(self) -> str:
        """The command that computes missing answers and writes the manifest."""
        return fill_command(self.identity, self.folder)

    @property
    def has_manifest(self) -> bool:
        """Whether the cache was filled to its end, even if its manifest cannot be read now."""
        return (self.folder / MANIFEST).exists()


def identity_of(detector: Detector, dataset: Dataset) -> dict[str, Any]:
    """Return all that decides the detections of a split; answers may be mixed only where this is the same."""
    identity = {
        "detector": detector.name,
        "settings": detector.identity(),
        "dataset": dataset.name,
        "split": dataset.split,
        "annotations": dataset.digest,
    }
    return split_recorded(identity)[0]


def split_recorded(identity: Mapping[str, Any]) -> tuple[dict[str, Any], Recorded]:
    """Divide an identity into what decides the answers and what is only recorded.

    Some detectors, and all caches of earlier versions, have both in one; earlier versions also wrote the commit that
    was loaded in the place of the revision.
    """
    settings = identity.get("settings")
    if not isinstance(settings, dict) or not settings.keys() & set(_RECORDED_SETTINGS):
        return dict(identity), ()
    recorded = {name: settings[name] for name in _RECORDED_SETTINGS if name in settings}
    if _is_commit(settings.get("revision")):
        recorded["commit"] = settings["revision"]
    deciding = {name: value for name, value in settings.items() if name not in _RECORDED_SETTINGS}
    return {**identity, "settings": deciding}, (recorded,)


def adopt_revision(identity: Mapping[str, Any], recorded: Recorded, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity of a cache with the wanted revision, where both name the same weights.

    They do where the cache was made of the commit that is wanted, and where none is pinned: a branch or a tag is
    whatever it was when the cache was filled, and only the weights' host could tell more.
    """
    settings, wanted_settings = identity.get("settings"), wanted.get("settings")
    if not isinstance(settings, dict) or not isinstance(wanted_settings, dict) or "revision" not in wanted_settings:
        return dict(identity)
    revision = wanted_settings["revision"]
    is_unpinned = not _is_commit(revision) and _is_commit(settings.get("revision"))
    if not is_unpinned and commits_of(recorded) != {revision}:
        return dict(identity)
    return {**identity, "settings": {**settings, "revision": revision}}


def commits_of(recorded: Iterable[Mapping[str, Any]]) -> set[Any]:
    """Return the commits of the weights that were used, as far as they are known."""
    return {each["commit"] for each in recorded if each.get("commit") is not None}


def distinct(recorded: Iterable[Mapping[str, Any]]) -> Recorded:
    """Return each way of computing once, in an order that does not depend on what came first."""
    unique = {storage.canonical(each): each for each in recorded if each}
    return tuple(unique[text] for text in sorted(unique))


def describe_recorded(recorded: Recorded) -> str:
    """Say how answers were computed, such as `dtype=float16, device=cuda`; empty where nothing is recorded.

    Remarks are sentences and follow the values.
    """
    ways = []
    for each in recorded:
        values = ", ".join(f"{name}={each[name]}" for name in sorted(each) if name != "remarks")
        ways.append("; ".join(filter(None, [values, str(each.get("remarks", ""))])))
    return "; also ".join(ways)


def _is_commit(revision: Any) -> bool:
    return isinstance(revision, str) and _COMMIT.fullmatch(revision) is not None


def fill_command(identity: Mapping[str, Any] | None, folder: Path, options: Sequence[str] = ()) -> str:
    """Return the command that fills a cache folder, with blanks for what is not known; `options` are further words."""
    known = identity or {}
    words = ["--vlm", _quoted(known.get("detector")) or "<detector>", *dataset_options(identity, folder)]
    if isinstance(settings := known.get("settings"), dict) and settings.get("detector") == "imported":
        path = "detector.settings.path="
        is_known = any(option.startswith(path) for option in options)
        words = ["--vlm", "import", *words[2:], *([] if is_known else [f"{path}<its file of boxes>"])]
    return f"llm-wrapper cache-detections {' '.join([*words, *map(shlex.quote, options)])}"


def dataset_options(identity: Mapping[str, Any] | None, folder: Path) -> list[str]:
    """Return the options that name the data set and split of a cache, with blanks for what is not known.

    An identity has the data set's own name, which need not be that of its recipe; the recipe is known only where the
    folder is called `<detector>/<recipe>/<split>`.
    """
    detector, dataset, split = ((identity or {}).get(name) for name in ("detector", "dataset", "split"))
    place = folder.absolute()
    is_usual = place.parts[-3::2] == (detector, split)
    data = _quoted(place.parent.name) if is_usual else f"<recipe of {_quoted(dataset) or 'dataset'}>"
    return ["--data", data, "--split", _quoted(split) or "<split>"]


def _quoted(name: Any) -> str:
    """Return a name that somebody else may have written as one word of a shell; nothing for what is no name."""
    return shlex.quote(name) if isinstance(name, str) and name else ""


def write_rows(
    path: Path, rows: Sequence[Mapping[str, Any]], identity: Mapping[str, Any], recorded: Recorded = ()
) -> None:
    """Write plain rows of `PART_SCHEMA` as one part, atomically."""
    # The digest tells a damaged identity from that of another cache: checksums do not cover a Parquet file's footer.
    metadata = {_IDENTITY: storage.canonical(identity).encode(), _DIGEST: storage.digest_value(identity).encode()}
    if recorded:
        metadata[_RECORDED] = storage.canonical(recorded).encode()
    storage.write_parquet(path, rows, PART_SCHEMA.with_metadata(metadata))


def read_manifest(path: Path) -> tuple[Manifest | None, list[str]]:
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


def read_part(path: Path, sha256: str | None = None) -> CachePart:
    """Read and verify one part, by its digest in the manifest where there is one."""
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
    try:
        identity = parse_json(metadata[_IDENTITY], str(path))
    except (KeyError, DataError) as error:
        raise DamagedPartError(f"{path} is damaged: it carries no identity of its cache") from error
    if not isinstance(identity, dict) or storage.digest_value(identity).encode() != metadata.get(_DIGEST):
        raise DamagedPartError(f"{path} is damaged: the identity that it carries was changed")
    identity, earlier = split_recorded(identity)
    try:
        recorded = _RECORDS.validate_python(parse_json(metadata.get(_RECORDED, b"[]"), str(path)))
    except (DataError, ValueError) as error:
        raise DamagedPartError(f"{path} is damaged: it does not say how its answers were computed") from error
    return CachePart(PartEntry(path.name, found, len(keys)), table, keys, identity, distinct([*recorded, *earlier]))


def _require_detections(path: Path, table: pa.Table) -> None:
    """Refuse rows that no detector gives, by columns: a loop over detections would take minutes."""
    items = pc.list_flatten(table["items"])
    x0, y0, x1, y1 = (pc.struct_field(items, ["box", name]).to_numpy() for name in ("x0", "y0", "x1", "y1"))
    scores = pc.struct_field(items, ["score"])
    dropped = table["num_dropped"].to_numpy()
    of_item = np.repeat(np.arange(table.num_rows), pc.list_value_length(table["items"]).to_numpy())
    is_box = (x0 < x1) & (y0 < y1) & np.isfinite([x0, y0, x1, y1]).all(axis=0)
    is_score = pc.is_finite(scores).fill_null(True).to_numpy(zero_copy_only=False)
    is_count = (dropped >= 0) & (dropped <= _MAX_DROPPED)
    problem = ""
    if not is_box.all():
        item = int(is_box.argmin())
        row, box = of_item[item], tuple(float(side[item]) for side in (x0, y0, x1, y1))
        problem = f"box {box} is reversed, has no area or is not finite"
    elif not is_score.all():
        item = int(is_score.argmin())
        row, problem = of_item[item], f"score {scores[item].as_py()} is not finite"
    elif not is_count.all():
        row = int(is_count.argmin())
        problem = f"{dropped[row]} outputs cannot have been dropped"
    if problem:
        raise DamagedPartError(f"{path} is damaged: row {row}: {problem}")


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
