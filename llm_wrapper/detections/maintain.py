"""Looks after cache folders by what they hold alone: neither the data set nor the detector is needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from llm_wrapper import storage
from llm_wrapper.detections.cache import DetectionCache
from llm_wrapper.detections.contents import Contents, Problem, fill_command, read, read_sound, told, totals
from llm_wrapper.detections.identity import Recorded, commits_of, distinct
from llm_wrapper.detections.parts import ROWS_PER_PART, Key, row_detections
from llm_wrapper.detectors.base import LEVELS, Level
from llm_wrapper.errors import CacheError, listed

__all__ = ["Info", "Merged", "info", "merge", "verify"]

_Row = tuple[Path, pa.Table, int]
"""Where an answer stands: its cache folder, table and row."""


@dataclass(frozen=True, slots=True)
class Info:
    """What a cache folder holds, over the parts that can be used.

    `levels` are those of the answers that are there. `num_unanswered` (images) and `created` are known of a finished
    cache only. A `damaged` cache has problems, see `verify`; an `incomplete` one has no manifest yet. `recorded` tells
    how the answers were computed.
    """

    folder: str
    state: Literal["complete", "incomplete", "damaged"]
    identity: Mapping[str, Any] | None
    levels: tuple[Level, ...]
    num_rows: int
    num_images: int
    num_detections: int
    num_dropped: int
    num_unanswered: int | None
    num_parts: int
    num_bytes: int
    created: str | None
    recorded: Recorded


@dataclass(frozen=True, slots=True)
class Merged:
    """What `merge` did: answers added, answers found more than once, and whether the result is a finished cache.

    `command` asks what is still missing.
    """

    num_added: int
    num_repeated: int
    is_complete: bool
    command: str


def info(folder: Path) -> Info:
    """Count what a cache folder holds.

    Raises:
        CacheError: If the folder holds no cache at all.
    """
    found = read(folder)
    manifest = found.manifest
    asked: set[Level] = {"image" if sample_id is None else "expression" for _, sample_id in found.keys}
    return Info(
        folder=str(folder),
        state="damaged" if found.problems else "incomplete" if manifest is None else "complete",
        identity=found.identity,
        levels=tuple(level for level in LEVELS if level in asked),
        **totals(found.parts),
        num_unanswered=None if manifest is None else len(manifest.unanswered),
        num_parts=len(found.parts),
        num_bytes=sum((folder / part.entry.name).stat().st_size for part in found.parts),
        created=None if manifest is None else manifest.created,
        recorded=_recorded_in(found),
    )


def verify(folder: Path) -> list[Problem]:
    """Return all that keeps a cache from being used; a cache that is not finished is a problem too.

    Raises:
        CacheError: If the folder holds no cache at all.
    """
    found = read(folder)
    if found.has_manifest:
        return list(found.problems)
    unfinished = Problem(
        f"{folder} is incomplete: it has no manifest.json", f"Run `{found.command}`: it asks only what is missing."
    )
    return [*found.problems, unfinished]


def merge(out: Path, folders: Sequence[Path]) -> Merged:
    """Join caches of one identity, such as those of several machines, in `out`; the sources are only read.

    What `out` holds already is kept, so a killed merge is gone on with by the same call. Only a data set can tell what
    is still missing; therefore the result is left without a manifest, and `cache-detections` asks what is missing and
    writes it. The exception is a result with exactly the answers of a finished source: it is finished too.

    Raises:
        CacheError: If a source is damaged or is `out` itself, with all fields in which identities differ, or with all
            questions that are answered in different ways.
    """
    if out.resolve() in {folder.resolve() for folder in folders}:
        raise CacheError(f"{out} is to be merged into itself. Name another folder for the result.")
    sources = read_sound(folders)
    identity = _common_identity(sources)
    # Before anything is made. Whether `out` contradicts is known only when it is locked.
    _gather(sources)
    with DetectionCache.resume(out, identity) as cache:
        answers, num_repeated = _gather([read(out, may_be_empty=True), *sources])
        recorded = _recorded_in(*sources)
        missing = [key for key in answers if key not in cache]
        for start in range(0, len(missing), ROWS_PER_PART):
            keys = missing[start : start + ROWS_PER_PART]
            cache.append([(key, row_detections(*answers[key][1:])) for key in keys], recorded)
        for source in sources:
            if cache.manifest is None and source.manifest is not None and source.keys == answers.keys():
                order = [key for part in source.parts for key in part.keys]
                cache.finish(source.manifest.levels, source.manifest.unanswered, order=order)
        return Merged(len(missing), num_repeated, cache.manifest is not None, fill_command(identity, out))


def _common_identity(sources: Sequence[Contents]) -> Mapping[str, Any]:
    """Return the identity that all sources share."""
    first = sources[0]
    problems = [
        difference
        for other in sources[1:]
        for difference in storage.differences(
            other.identity or {}, first.identity or {}, places=(f"in {other.folder}", f"in {first.folder}")
        )
    ]
    commits = {each.folder: commits_of(_recorded_in(each)) for each in sources}
    if len(set().union(*commits.values())) > 1:
        problems += [f"{folder} is of commit {', '.join(sorted(found))}" for folder, found in commits.items() if found]
    if problems:
        raise CacheError(listed("only detections that were made in the same way can be merged", problems))
    return first.identity or {}


def _recorded_in(*caches: Contents) -> Recorded:
    return distinct(each for found in caches for part in found.parts for each in part.recorded)


def _gather(caches: Iterable[Contents]) -> tuple[dict[Key, _Row], int]:
    """Return where the answer to each question stands, the first of equals, and how many equals there were."""
    answers: dict[Key, _Row] = {}
    problems: list[str] = []
    num_repeated = 0
    for found in caches:
        for part in found.parts:
            for row, key in enumerate(part.keys):
                here = (found.folder, part.table, row)
                first = answers.setdefault(key, here)
                if first is here:
                    continue
                num_repeated += 1
                if row_detections(*first[1:]) != row_detections(part.table, row):
                    problems.append(f"{told(key)}: {first[0]} and {found.folder} answer differently")
    if problems:
        headline = "answers contradict each other: leave one of the folders out"
        raise CacheError(listed(headline, problems))
    return answers, num_repeated
