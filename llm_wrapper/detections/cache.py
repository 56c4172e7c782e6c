"""Detections on disk: Parquet parts that are only ever added, and a manifest that is written last.

    data/detections/<detector>/<dataset>/<split>/part-00000.parquet ... manifest.json

One row is one answer. An answer about an image alone has no `sample_id` and is stored once per image; an answer about
an expression has one. Every part carries the identity of the cache, so that parts of two recipes never mix, not even
before there is a manifest. The rows of a complete cache are in the order of the data set's questions, however they
were computed. `pandas.read_parquet(list(folder.glob("part-*.parquet")))` reads a cache in one line.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    Key,
    Manifest,
    count_answers,
    read_folder,
    read_part,
    row_detections,
    write_part,
    write_rows,
)
from llm_wrapper.detections.identity import Recorded, commits_of, distinct, fill_command
from llm_wrapper.detectors import Level, joined, questions_about
from llm_wrapper.errors import CacheError, listed
from llm_wrapper.records import Detections, Sample, to_dict
from llm_wrapper.storage import locked

__all__ = ["ROWS_PER_PART", "DetectionCache"]

ROWS_PER_PART = 2000
"""Answers in each part of a complete cache; the last has the rest."""

_log = logging.getLogger(__name__)
_NUMBER = re.compile(r"part-([0-9]{5,9})\.")
_STAGED = ".final"
"""Folder in which earlier versions rewrote the parts of a cache before they moved them into their place."""


class DetectionCache:
    """The detections of one detector on one split: `open_complete` to read them, `resume` to add to them.

    Attributes:
        folder: Where the parts are.
        identity: Plain JSON values, see `identity.identity_of`.
        manifest: `None` as long as the cache is not complete.
        damaged: Parts that `resume` could not use: set aside as `<name>.damaged`, or missing.
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
        """Open a finished cache to look detections up.

        Args:
            folder: Where it is.
            identity: See `identity.identity_of`.
            options: What the command that fills it needs further, as a message names it.

        Raises:
            CacheError: If the cache is missing, incomplete, damaged or of another identity.
        """
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

        Parts that cannot be used are set aside and named in `damaged`, so that their answers are missing again.

        Args:
            folder: Made where it does not exist.
            identity: See `identity.identity_of`.
            overwrite: Remove all parts first, whatever they hold.

        Raises:
            CacheError: If the parts are of another identity or cannot be read, or another process fills the cache.
        """
        cache = cls(folder, identity)
        with locked(folder):
            cache._adopt_staged()
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
        """How the answers were computed: number formats, devices and commits, one entry for each way."""
        return distinct(each for part in self._parts for each in part.recorded)

    def append(self, answers: Sequence[tuple[Key, Detections]], recorded: Recorded = ()) -> Path:
        """Write answers as the next part and return its path; the cache is incomplete until `finish`.

        Args:
            answers: What was asked and answered.
            recorded: How the answers were computed.

        Raises:
            CacheError: If the cache is not open to add, an answer is there already, or the answers so far are those of
                another commit of the weights.
            LLMWrapperError: If the part cannot be written, for instance because the disk is full.
        """
        self._require_writable()
        found = dict(answers)
        if len(found) < len(answers) or not found.keys().isdisjoint(self._rows):
            raise CacheError(f"{self.folder} was given two answers to one question; ask only what it does not hold.")
        self._require_commit(recorded)
        self._drop_manifest()
        path = self._next_path()
        write_part(path, list(found.items()), self.identity, distinct(recorded))
        self._index([read_part(path)])
        # Last: an append that is interrupted here and done again replaces its own part.
        self._next_number += 1
        return path

    def finish(
        self,
        levels: Sequence[Level],
        unanswered: Mapping[str, str],
        *,
        order: Iterable[Key] = (),
        rows_per_part: int = ROWS_PER_PART,
    ) -> Manifest:
        """Sort the answers and write the manifest: from now on the cache counts as complete.

        Where parts are not sorted, or of other sizes, new ones are written before the old ones are removed, and the
        manifest comes last: a process that is killed in between leaves equal answers in two parts, which `resume` takes
        for one.

        Args:
            levels: Levels of the detector.
            unanswered: Image id -> why there is no answer about it, for images that are skipped.
            order: The questions in the order of the data set; answers to others follow, sorted.
            rows_per_part: Answers in each part.

        Raises:
            LLMWrapperError: If something cannot be written, for instance because the disk is full; nothing is lost.
        """
        self._require_writable()
        wanted = _sorted_keys(self._rows.keys(), order)
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

        Raises:
            CacheError: If the cache has no answer for the sample.
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

    def _next_path(self) -> Path:
        return self.folder / f"part-{self._next_number:05d}.parquet"

    def _require_writable(self) -> None:
        if not self._writable:
            raise CacheError(f"{self.folder} is not open to add answers; use `with DetectionCache.resume(...)`.")

    def _require_commit(self, recorded: Recorded) -> None:
        """Refuse answers of other weights: a branch that is not pinned may move while a cache is filled."""
        earlier, now = commits_of(self.recorded), commits_of(recorded)
        if earlier and now and earlier != now:
            old, new = (", ".join(sorted(map(str, each))) for each in (earlier, now))
            raise CacheError(
                f"{self.folder} holds answers of commit {old}, and the weights are of commit {new} now. Pin the first "
                f"(detector.settings.revision={old}), or run `{self._command} --overwrite`."
            )

    def _drop_manifest(self) -> None:
        (self.folder / MANIFEST).unlink(missing_ok=True)
        self.manifest = None

    def _rewrite(self, chunks: Sequence[Sequence[Key]]) -> None:
        """Replace all parts by parts of these questions; every answer is in a whole part at any moment."""
        old, recorded = self._parts, self.recorded
        table = pa.concat_tables([part.table for part in old]).combine_chunks()
        row_of = {key: row for row, key in enumerate(key for part in old for key in part.keys)}
        self._drop_manifest()
        new = []
        for keys in chunks:
            path = self._next_path()
            write_rows(path, table.take([row_of[key] for key in keys]).to_pylist(), self.identity, recorded)
            new.append(read_part(path))
            self._next_number += 1
        _sync(self.folder)
        for part in old:
            (self.folder / part.entry.name).unlink(missing_ok=True)
        self._parts, self._rows = [], {}
        self._index(new)

    def _read(self) -> Contents:
        """Read the folder; raise a CacheError that lists how what it holds differs from what is asked for."""
        found = read_folder(self.folder, identity=self.identity, may_be_empty=True)
        identities = {self.folder / part.entry.name: part.identity for part in found.others}
        if found.manifest is not None:
            identities = {self.folder: found.manifest.identity, **identities}
        for place, identity in identities.items():
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

    def _adopt_staged(self) -> None:
        """Take over the parts that an earlier version rewrote; without a manifest they are not all there, nor needed.

        Raises:
            CacheError: If `.final/` is a link, or holds one. A cache is passed on, and its contents must not move or
                remove anything outside its folder.
        """
        place = self.folder / _STAGED
        if not place.is_symlink() and not place.exists():
            return
        reason = "it is no folder" if place.is_symlink() or not place.is_dir() else ""
        is_whole = not reason and (place / MANIFEST).exists()
        parts = sorted(path for path in place.iterdir() if PART_NAME.fullmatch(path.name)) if is_whole else []
        for path in parts:
            if path.is_symlink() or not path.is_file():
                reason = f"{path.name} is no file"
        if reason:
            raise CacheError(
                f"{place} was not made by a filling of this cache: {reason}. Nothing was changed; "
                f"remove it: rm -r {shlex.quote(str(place))}"
            )
        if parts:
            self._drop_manifest()
        self._number_parts()
        for path in parts:
            path.rename(self._next_path())
            self._next_number += 1
        _sync(self.folder)
        shutil.rmtree(place)

    def _clean(self, overwrite: bool) -> None:
        """Remove what a killed process left behind, and all parts where they are to be replaced."""
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
            if problem.part is not None:
                self.damaged.append(_set_aside(problem.part))
        self.manifest = found.manifest
        if found.problems:
            self._drop_manifest()
        self._index(found.parts if self.manifest else self._without_repeats(found.parts))
        self._number_parts()

    def _without_repeats(self, parts: Sequence[CachePart]) -> list[CachePart]:
        """Remove each part of which other parts hold all answers; a killed rewriting leaves such parts."""
        num_holders = Counter(key for part in parts for key in part.keys)
        remaining = []
        for part in reversed(parts):
            if all(num_holders[key] > 1 for key in part.keys):
                num_holders.subtract(part.keys)
                (self.folder / part.entry.name).unlink()
            else:
                remaining.append(part)
        return remaining[::-1]

    def _number_parts(self) -> None:
        numbers = (_NUMBER.match(path.name) for path in self.folder.iterdir())
        self._next_number = 1 + max((int(match[1]) for match in numbers if match), default=-1)


def _set_aside(path: Path) -> Path:
    """Rename a part that cannot be used, and return its new path; a missing one keeps its name."""
    if not path.exists():
        return path
    names = (f"{path.name}.damaged{f'-{number}' if number else ''}" for number in count())
    return path.rename(next(path.with_name(name) for name in names if not path.with_name(name).exists()))


def _sorted_keys(keys: Collection[Key], order: Iterable[Key]) -> tuple[Key, ...]:
    """Return the questions in the order of a complete cache: those of `order`, then any others, sorted."""
    ordered = dict.fromkeys(key for key in order if key in keys)
    others = sorted(set(keys) - ordered.keys(), key=lambda key: (key[0], key[1] is not None, key[1] or ""))
    return (*ordered, *others)


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on disk: a power cut must not undo half of them."""
    if os.name == "nt":  # Windows has no way to wait for a folder
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
