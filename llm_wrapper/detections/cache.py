"""Detections on disk: Parquet parts that are only ever added, and a manifest that is written last.

    data/detections/<detector>/<dataset>/<split>/part-00000.parquet ... manifest.json

One row is one answer. An answer about an image alone has no `sample_id` and is stored once per image; an answer about
an expression has one. Every part carries the identity of the cache, so that parts of two recipes never mix, not even
before there is a manifest. `pandas.read_parquet(list(folder.glob("part-*.parquet")))` reads a cache in one line.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from llm_wrapper import artifacts
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detections.lock import locked
from llm_wrapper.detections.parts import (
    DamagedPartError,
    Key,
    Part,
    PartEntry,
    read_part,
    row_detections,
    write_part,
)
from llm_wrapper.detectors.base import Detector, Level, joined, questions_about
from llm_wrapper.errors import CacheError, DataError, listed
from llm_wrapper.records import Detections, Sample, from_dict, to_dict

__all__ = ["DetectionCache", "Manifest", "identity_of"]

_log = logging.getLogger(__name__)
_PART_NAME = re.compile(r"part-(\d+)\.parquet(\.damaged)?")


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Manifest:
    """What a complete cache says of itself; `created` is UTC, ISO 8601.

    `unanswered` gives the reason for each image that could not be asked about, by image id: its samples have no
    detections.
    """

    identity: dict[str, Any]
    levels: tuple[Level, ...]
    unanswered: dict[str, str]
    parts: tuple[PartEntry, ...]
    num_rows: int
    num_images: int
    num_detections: int
    num_dropped: int
    versions: dict[str, str]
    created: str


def identity_of(detector: Detector, dataset: Dataset) -> dict[str, Any]:
    """Return all that decides the detections of a split; answers may be mixed only where this is the same."""
    return {
        "detector": detector.name,
        "settings": detector.identity(),
        "dataset": dataset.name,
        "split": dataset.split,
        "annotations": dataset.digest,
    }


class DetectionCache:
    """The detections of one detector on one split: `open_complete` to read them, `resume` to add to them.

    Attributes:
        folder: Where the parts are.
        identity: Plain JSON values, see `identity_of`.
        manifest: `None` as long as the cache is not complete.
        damaged: Parts that `resume` could not use: set aside as `<name>.damaged`, or missing.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity: dict[str, Any] = json.loads(artifacts.canonical(identity))
        self.manifest: Manifest | None = None
        self.damaged: list[Path] = []
        self._parts: dict[str, Part] = {}
        self._rows: dict[Key, tuple[pa.Table, int]] = {}
        self._next_number = 0
        self._writable = False

    @classmethod
    def open_complete(cls, folder: Path, identity: Mapping[str, Any]) -> DetectionCache:
        """Open a finished cache to look detections up.

        Raises:
            CacheError: If the cache is missing, incomplete, damaged or of another identity.
        """
        cache = cls(folder, identity)
        cache.manifest = cache._read_manifest()
        if cache.manifest is None:
            raise CacheError(f"{folder} is incomplete: it has no manifest.json. Run `{cache._command()}`.")
        cache._refuse_others(folder, cache.manifest.identity)
        problems = cache._load()
        if problems:
            message = listed(f"{folder} cannot be used", problems.values())
            raise CacheError(f"{message}\nRun `{cache._command()}`: it computes again only what is lost.")
        return cache

    @classmethod
    @contextmanager
    def resume(cls, folder: Path, identity: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[DetectionCache]:
        """Open a cache to add answers, alone: the folder is locked until the block or the process ends.

        Parts that cannot be used are set aside and named in `damaged`, so that their answers are missing again.

        Args:
            folder: Made where it does not exist.
            identity: See `identity_of`.
            overwrite: Remove all parts first, whatever they hold.

        Raises:
            CacheError: If the parts are of another identity, or another process fills the cache.
        """
        cache = cls(folder, identity)
        with locked(folder):
            cache._clean(overwrite)
            cache._recover()
            cache._writable = True
            try:
                yield cache
            finally:
                cache._writable = False

    def __contains__(self, key: Key) -> bool:
        """Tell whether the cache holds the answer to a question."""
        return key in self._rows

    def append(self, answers: Sequence[tuple[Key, Detections]]) -> Path:
        """Write answers as the next part and return its path; the cache is incomplete until `finish`.

        Raises:
            CacheError: If the cache is not open to add, or an answer is there already.
            LLMWrapperError: If the part cannot be written, for instance because the disk is full.
        """
        self._require_writable()
        found = dict(answers)
        if len(found) < len(answers) or not found.keys().isdisjoint(self._rows):
            raise CacheError(f"{self.folder} was given two answers to one question; ask only what it does not hold.")
        self._drop_manifest()
        path = self.folder / f"part-{self._next_number:05d}.parquet"
        write_part(path, list(found.items()), self.identity)
        self._add(read_part(path))
        # Last: an append that is interrupted here and done again replaces its own part.
        self._next_number += 1
        return path

    def finish(self, levels: Sequence[Level], unanswered: Mapping[str, str]) -> Manifest:
        """Write the manifest: from now on the cache counts as complete.

        Args:
            levels: Levels of the detector.
            unanswered: Image id -> why there is no answer about it, for images that are left out by choice.
        """
        self._require_writable()
        tables = [part.table for part in self._parts.values()]
        self.manifest = Manifest(
            identity=self.identity,
            levels=tuple(levels),
            unanswered=dict(unanswered),
            parts=tuple(part.entry for part in self._parts.values()),
            num_rows=len(self._rows),
            num_images=len({image_id for image_id, _ in self._rows}),
            num_detections=sum(pc.sum(pc.list_value_length(table["items"]), min_count=0).as_py() for table in tables),
            num_dropped=sum(pc.sum(table["num_dropped"], min_count=0).as_py() for table in tables),
            versions=artifacts.versions(),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        artifacts.write_json(self._manifest_path, to_dict(self.manifest))
        return self.manifest

    def lookup(self, sample: Sample) -> Detections:
        """Return the detections of a sample: those of its expression first, then those of its image.

        Raises:
            CacheError: If the cache has no answer for the sample.
        """
        if self.manifest is None:
            raise CacheError(f"{self.folder} is incomplete. Run `{self._command()}`.")
        if sample.image_id in self.manifest.unanswered:
            return Detections(())
        keys = [question.key for question in questions_about(sample, self.manifest.levels)]
        if not all(key in self._rows for key in keys):
            raise CacheError(
                f"{self.folder} has no detections of sample {sample.sample_id!r} (image {sample.image_id!r}). "
                f"Run `{self._command()}`: it adds what is missing."
            )
        return joined([row_detections(*self._rows[key]) for key in keys])

    @property
    def _manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    def _command(self) -> str:
        """Return the command that fills this cache."""
        names = (self.identity.get(name) for name in ("detector", "dataset", "split"))
        return "llm-wrapper cache-detections --vlm {} --data {} --split {}".format(*names)

    def _require_writable(self) -> None:
        if not self._writable:
            raise CacheError(f"{self.folder} is not open to add answers; use `with DetectionCache.resume(...)`.")

    def _read_manifest(self) -> Manifest | None:
        if not self._manifest_path.exists():
            return None
        try:
            return from_dict(Manifest, artifacts.read_json(self._manifest_path))
        except (DataError, ValueError, TypeError) as error:
            raise CacheError(f"{self._manifest_path} is damaged: {error}\nRun `{self._command()}`.") from error

    def _drop_manifest(self) -> None:
        self._manifest_path.unlink(missing_ok=True)
        self.manifest = None

    def _refuse_others(self, place: Path, found: Mapping[str, Any]) -> None:
        """Raise a CacheError that lists how an identity on disk differs from the one asked for."""
        problems = artifacts.differences(found, self.identity)
        if problems:
            message = listed(f"{place} holds detections that were made otherwise", problems)
            raise CacheError(f"{message}\nRun `{self._command()} --overwrite` to replace them, or use another folder.")

    def _load(self) -> dict[Path, str]:
        """Index every part; return the reason for each one that cannot be used."""
        known = {entry.name: entry.sha256 for entry in self.manifest.parts} if self.manifest else None
        paths = sorted(self.folder.glob("part-*.parquet"))
        absent = sorted(set(known or ()) - {path.name for path in paths})
        problems = {self.folder / name: f"{self.folder / name} is missing" for name in absent}
        for path in paths:
            try:
                if known is not None and path.name not in known:
                    raise DamagedPartError(f"{path} is not in the manifest")
                part = read_part(path, known[path.name] if known else None)
                self._refuse_others(path, part.identity)
                self._add(part)
            except DamagedPartError as error:
                problems[path] = str(error)
        return problems

    def _add(self, part: Part) -> None:
        """Index the rows of one part."""
        rows = {key: (part.table, row) for row, key in enumerate(part.keys)}
        if len(rows) < len(part.keys) or not rows.keys().isdisjoint(self._rows):
            raise DamagedPartError(f"{self.folder / part.entry.name} repeats answers of another part")
        self._parts[part.entry.name] = part
        self._rows.update(rows)

    def _clean(self, overwrite: bool) -> None:
        """Remove what a killed process left behind, and all parts where they are to be replaced."""
        if overwrite:
            self._drop_manifest()
        for pattern in (artifacts.TEMPORARY, *(["part-*.parquet*"] if overwrite else [])):
            for path in self.folder.glob(pattern):
                path.unlink()

    def _recover(self) -> None:
        """Index the usable parts and set the others aside."""
        try:
            self.manifest = self._read_manifest()
        except CacheError as error:
            _log.warning("%s", error)
            self._drop_manifest()
        if self.manifest is not None:
            self._refuse_others(self.folder, self.manifest.identity)
        for path, reason in self._load().items():
            _log.warning("%s: its answers are computed again", reason)
            self.damaged.append(_set_aside(path))
            self._drop_manifest()
        numbers = (_PART_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        self._next_number = 1 + max((int(match[1]) for match in numbers if match), default=-1)


def _set_aside(path: Path) -> Path:
    """Rename a part that cannot be used, and return its new path; a missing one keeps its name."""
    aside = path.with_name(f"{path.name}.damaged")
    return path.rename(aside) if path.exists() else path
