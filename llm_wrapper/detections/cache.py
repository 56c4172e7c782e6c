"""Detections on disk: Parquet parts that are only ever added, and a manifest that is written last.

    data/detections/<detector>/<dataset>/<split>/part-00000.parquet ... manifest.json

One row is one answer. An answer about an image alone has no `sample_id` and is stored once per image; an answer about
an expression has one. Every part carries the identity of the cache, so that parts of two recipes never mix, not even
before there is a manifest. The rows of a complete cache are in the order of the data set's questions.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa

from llm_wrapper import storage
from llm_wrapper.detections.contents import (
    MANIFEST,
    PART_NAME,
    CachePart,
    Contents,
    DamagedPartError,
    Key,
    Manifest,
    Problem,
    Recorded,
    adopt_revision,
    commits_of,
    count_answers,
    describe_key,
    distinct,
    fill_command,
    read_manifest,
    read_part,
    row_detections,
    write_rows,
)
from llm_wrapper.detectors import Level, joined, questions_about
from llm_wrapper.errors import CacheError, DataError, LLMWrapperError, listed, shell_word
from llm_wrapper.records import Detections, Sample, to_dict
from llm_wrapper.storage import locked

ROWS_PER_PART = 2000
"""Answers in each part of a complete cache; the last has the rest."""

_log = logging.getLogger(__name__)
_NUMBER = re.compile(r"part-([0-9]{5,9})\.")


def read_folder(folder: Path, *, identity: Mapping[str, Any] | None = None, may_be_empty: bool = False) -> Contents:
    """Read a cache folder and check everything that it can tell; nothing on disk is changed.

    Args:
        folder: Its digests, columns, identities, contradicting answers and counts are checked.
        identity: That of all parts; by default that of the manifest or of the first part.
        may_be_empty: Whether a folder without a cache passes; else it is a CacheError.
    """
    if not may_be_empty and not any(folder.glob("part-*.parquet")) and not (folder / MANIFEST).exists():
        raise CacheError(
            f"{folder} holds no detections. Name a folder like data/detections/<detector>/<dataset>/<split>."
        )
    manifest, damage = read_manifest(folder / MANIFEST)
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
    command = f"`{fill_command(wanted, folder)}`"
    remedy = f"Run {command}: it computes again only what is lost."
    problems = [Problem(text, remedy) for text in damage]
    for path, error in outcomes.items():
        if not isinstance(error, CachePart):
            blocks = not isinstance(error, CacheError)
            advice = "Make it a file that you may read." if blocks else remedy
            problems.append(Problem(str(error).removesuffix("."), advice, part=path, blocks=blocks))
    for part in others:
        path, places = folder / part.entry.name, ("in this part", "in the others")
        differences = "; ".join(storage.describe_differences(part.identity, wanted, places=places))
        text = f"{path} is not of the same detector and data as the others: {differences}"
        problems.append(Problem(text, f"Move it to another folder and run {command}.", part=path, blocks=True))
    if manifest is not None and not problems:
        problems += [Problem(text, remedy) for text in _miscounted(folder / MANIFEST, manifest, parts)]
    return Contents(folder, manifest, found, parts, others, tuple(problems))


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
        here = [(part.table, row) for row in range(len(part.keys))]
        counts = Counter(part.keys)
        repeated: dict[Key, None] = {}
        for key, row in zip(part.keys, here, strict=True):
            if counts[key] > 1 or (key in rows and row_detections(*rows[key]) != row_detections(*row)):
                repeated[key] = None
        if not repeated:
            rows.update(zip(part.keys, here, strict=True))
            continue
        path, more = folder / part.entry.name, f" and {len(repeated) - 1} more" if len(repeated) > 1 else ""
        text = f"{path} has a second answer to what is answered already: {describe_key(next(iter(repeated)))}{more}"
        yield path, DamagedPartError(text)


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


class DetectionCache:
    """The detections of one detector on one split: `open_complete` to read them, `resume` to add to them.

    `manifest` is `None` as long as the cache is not complete. `damaged` are the parts that `resume` could not use: set
    aside as `<name>.damaged`, or missing.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity: dict[str, Any] = json.loads(storage.canonical(identity))
        self.manifest: Manifest | None = None
        self.damaged: list[Path] = []
        self._parts: list[CachePart] = []
        self._rows: dict[Key, tuple[pa.Table, int]] = {}
        self._next_number = 0
        self._writable = False
        self._options: tuple[str, ...] = ()

    @classmethod
    def open_complete(cls, folder: Path, identity: Mapping[str, Any], *, options: Sequence[str] = ()) -> DetectionCache:
        """Open a finished cache to look detections up; a message names the command that fills it, with `options`."""
        cache = cls(folder, identity)
        cache._options = tuple(options)
        found = cache._read()
        if not found.has_manifest:
            raise CacheError(f"{folder} is incomplete: it has no {MANIFEST}. Run `{cache._command}`.")
        if found.problems:
            message = listed(f"{folder} cannot be used", [problem.text for problem in found.problems])
            raise CacheError(f"{message}\nRun `{cache._command}`: it computes again only what is lost.")
        cache.manifest = found.manifest
        cache._index(found.parts)
        return cache

    @classmethod
    @contextmanager
    def resume(cls, folder: Path, identity: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[DetectionCache]:
        """Open a cache to add answers, alone: the folder is locked until the block or the process ends.

        Parts that cannot be used are set aside, so that their answers are missing again; parts of another identity are
        refused. `overwrite` removes all parts first.
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

    @property
    def recorded(self) -> Recorded:
        """How the answers were computed."""
        return distinct(each for part in self._parts for each in part.recorded)

    def append(self, answers: Sequence[tuple[Key, Detections]], recorded: Recorded = ()) -> Path:
        """Write answers as the next part and return its path; the cache is incomplete until `finish`.

        Raises:
            CacheError: If the cache is not open to add, an answer is there already, or the answers so far are those of
                another commit of the weights.
        """
        self._require_writable()
        found = dict(answers)
        if len(found) < len(answers) or not found.keys().isdisjoint(self._rows):
            raise CacheError(f"{self.folder} was given two answers to one question; ask only what it does not hold.")
        earlier, now = commits_of(self.recorded), commits_of(recorded)
        if earlier and now and earlier != now:  # a branch that is not pinned may move while a cache is filled
            old, new = (", ".join(sorted(map(str, each))) for each in (earlier, now))
            raise CacheError(
                f"{self.folder} holds answers of commit {old}, and the weights are of commit {new} now. Pin the first "
                f"(detector.settings.revision={old}), or run `{self._command} --overwrite`."
            )
        self._drop_manifest()
        rows = [{"image_id": key[0], "sample_id": key[1], **to_dict(answer)} for key, answer in found.items()]
        part = self._write_part(rows, distinct(recorded))
        self._index([part])
        # Last: an append that is interrupted here and done again replaces its own part.
        self._next_number += 1
        return self.folder / part.entry.name

    def finish(
        self,
        levels: Sequence[Level],
        unanswered: Mapping[str, str],
        *,
        order: Iterable[Key] = (),
        rows_per_part: int = ROWS_PER_PART,
    ) -> Manifest:
        """Sort the answers by `order`, others behind, and write the manifest: from now on the cache is complete.

        New parts are written before the old ones are removed, and the manifest comes last: a process that is killed in
        between leaves equal answers in two parts, which `resume` takes for one. `unanswered` gives the reason for each
        image that is skipped, by image id.
        """
        self._require_writable()
        ordered = dict.fromkeys(key for key in order if key in self._rows)
        others = sorted(self._rows.keys() - ordered, key=lambda key: (key[0], key[1] is not None, key[1] or ""))
        wanted = (*ordered, *others)
        chunks = [wanted[start : start + rows_per_part] for start in range(0, len(wanted), rows_per_part)]
        if [part.keys for part in self._parts] != chunks:
            self._rewrite(chunks)
        manifest = Manifest(
            identity=self.identity,
            levels=tuple(levels),
            unanswered=dict(unanswered),
            parts=tuple(part.entry for part in self._parts),
            **count_answers(self._parts),
            recorded=self.recorded,
            versions=storage.versions(),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        facts = to_dict(manifest)
        if not manifest.recorded:  # the version before refuses fields that it does not know
            del facts["recorded"]
        storage.write_json(self.folder / MANIFEST, facts)
        self.manifest = manifest
        return manifest

    def lookup(self, sample: Sample) -> Detections:
        """Return the detections of a sample: those of its expression first, then those of its image.

        A sample of an image that was skipped has none, unless it was answered before the image was lost.
        """
        if self.manifest is None:
            raise CacheError(f"{self.folder} is incomplete. Run `{self._command}`.")
        keys = [question.key for question in questions_about(sample, self.manifest.levels)]
        if all(key in self._rows for key in keys):
            return joined([row_detections(*self._rows[key]) for key in keys])
        if sample.image_id in self.manifest.unanswered:
            return Detections(())
        raise CacheError(
            f"{self.folder} has no detections of sample {sample.sample_id!r} (image {sample.image_id!r}). "
            f"Run `{self._command}`: it adds what is missing."
        )

    @property
    def _command(self) -> str:
        return fill_command(self.identity, self.folder, self._options)

    def _require_writable(self) -> None:
        if not self._writable:
            raise CacheError(f"{self.folder} is not open to add answers; use `with DetectionCache.resume(...)`.")

    def _drop_manifest(self) -> None:
        (self.folder / MANIFEST).unlink(missing_ok=True)
        self.manifest = None

    def _write_part(self, rows: Sequence[Mapping[str, Any]], recorded: Recorded) -> CachePart:
        path = self.folder / f"part-{self._next_number:05d}.parquet"
        write_rows(path, rows, self.identity, recorded)
        return read_part(path)

    def _rewrite(self, chunks: Sequence[Sequence[Key]]) -> None:
        """Replace all parts by parts of these questions; every answer is in a whole part at any moment."""
        old, recorded = self._parts, self.recorded
        table = pa.concat_tables([part.table for part in old]).combine_chunks()
        row_of = {key: row for row, key in enumerate(key for part in old for key in part.keys)}
        self._drop_manifest()
        new = []
        for keys in chunks:
            new.append(self._write_part(table.take([row_of[key] for key in keys]).to_pylist(), recorded))
            self._next_number += 1
        _sync(self.folder)
        for part in old:
            (self.folder / part.entry.name).unlink(missing_ok=True)
        self._parts, self._rows = [], {}
        self._index(new)

    def _read(self) -> Contents:
        """Read the folder; raise a CacheError that lists how what it holds differs from what is asked for."""
        found = read_folder(self.folder, identity=self.identity, may_be_empty=True)
        first = [(self.folder, found.manifest.identity)] if found.manifest else []
        for place, identity in [*first, *((self.folder / part.entry.name, part.identity) for part in found.others)]:
            problems = storage.describe_differences(identity, self.identity)
            if problems:
                message = listed(f"{place} holds detections of another detector, setting or data set", problems)
                remedy = f"Run `{self._command} --overwrite` to replace them, or use another folder."
                raise CacheError(f"{message}\n{remedy}")
        return found

    def _index(self, parts: Iterable[CachePart]) -> None:
        """Make the rows of parts known."""
        for part in parts:
            self._parts.append(part)
            self._rows.update({key: (part.table, row) for row, key in enumerate(part.keys)})

    def _clean(self, overwrite: bool) -> None:
        """Remove what a killed process left behind, and all parts where they are to be replaced."""
        staged = self.folder / ".final"  # an earlier version wrote sorted parts there first
        if overwrite and staged.is_dir() and not staged.is_symlink():
            shutil.rmtree(staged)
        elif staged.exists() or staged.is_symlink():
            command = f"rm -rf {shell_word(staged)}"
            if not staged.is_symlink() and (staged / MANIFEST).exists() and any(staged.glob("part-*")):
                command += f" {shell_word(self.folder / MANIFEST)}"
                command = f"mv {shell_word(staged)}/part-* {shell_word(self.folder)}; {command}"
            where = f"{staged} is left of a filling by an earlier version"
            raise CacheError(f"{where}. Nothing was changed; run `{command}`")
        if overwrite:
            self._drop_manifest()
        for pattern in (storage.TEMPORARY, *(["part-*.parquet*"] if overwrite else [])):
            for path in self.folder.glob(pattern):
                try:
                    path.unlink()
                except OSError as error:
                    raise CacheError(f"{path} cannot be removed: {error.strerror}. Remove it yourself.") from error

    def _recover(self) -> None:
        """Index the usable parts and set the others aside."""
        found = self._read()
        blocking = [f"{problem.text}. {problem.remedy}" for problem in found.problems if problem.blocks]
        if blocking:
            raise CacheError(listed(f"{self.folder} cannot be used", blocking))
        for problem in found.problems:
            _log.warning("%s: its answers are computed again", problem.text)
            if (path := problem.part) is not None:  # a missing one keeps its name
                names = (path.with_name(f"{path.name}.damaged{f'-{number}' if number else ''}") for number in count())
                aside = next(name for name in names if not name.exists())
                self.damaged.append(path.rename(aside) if path.exists() else path)
        self.manifest = found.manifest
        if found.problems:
            self._drop_manifest()
        parts, num_holders = list(found.parts), Counter(key for part in found.parts for key in part.keys)
        for part in reversed(found.parts if self.manifest is None else ()):
            # A killed rewriting leaves parts of which other parts hold all answers.
            if all(num_holders[key] > 1 for key in part.keys):
                num_holders.subtract(part.keys)
                parts.remove(part)
                (self.folder / part.entry.name).unlink()
        self._index(parts)
        numbers = (_NUMBER.match(path.name) for path in self.folder.iterdir())
        self._next_number = 1 + max((int(match[1]) for match in numbers if match), default=-1)


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on disk: a power cut must not undo half of them."""
    if os.name == "nt":  # Windows has no way to wait for a folder
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
