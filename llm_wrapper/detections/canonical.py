"""The one form of a complete cache: equal answers are equal bytes, however they came together.

Answers come in parts of any size and order: one row each where they cost money, what a minute gave, what a killed
process left, what Ray's workers gave first. A complete cache has them in the order of the data set's questions.

Rewriting loses nothing, wherever it is killed. The new parts are written beside the old ones, into `.final/`, and last
of all the manifest. Without a manifest there, `.final/` is thrown away: the old parts are whole. With it, the new parts
are whole, and `settle` puts them in the place of the old ones. Each of its steps may be done again, so it goes on after
a kill from wherever it stood. The manifest is moved last: until then the cache is incomplete for everybody.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from llm_wrapper import storage
from llm_wrapper.detections.contents import MANIFEST
from llm_wrapper.detections.identity import distinct
from llm_wrapper.detections.parts import PART_NAME, Key, Part, read_part, write_rows
from llm_wrapper.errors import CacheError, DataError
from llm_wrapper.readers import MIB, read_json

__all__ = ["FINAL", "layout", "settle", "stage"]

FINAL = ".final"
"""Folder of the rewritten parts until they are in their place."""
_MAX_NAMES = 4 * MIB
_REPLACED = "replaced.json"
"""Names of the old parts that no new one overwrites. Nothing else is ever removed: a file that somebody put into the
cache meanwhile stays."""


def layout(keys: Collection[Key], order: Iterable[Key], rows_per_part: int) -> dict[str, tuple[Key, ...]]:
    """Return which questions stand in which part of a complete cache: those of `order`, then any others, sorted."""
    ordered = dict.fromkeys(key for key in order if key in keys)
    others = sorted(set(keys) - ordered.keys(), key=lambda key: (key[0], key[1] is not None, key[1] or ""))
    rows = (*ordered, *others)
    starts = range(0, len(rows), rows_per_part)
    return {f"part-{number:05d}.parquet": rows[at : at + rows_per_part] for number, at in enumerate(starts)}


def stage(
    folder: Path, wanted: Mapping[str, Sequence[Key]], parts: Sequence[Part], identity: Mapping[str, Any]
) -> list[Part]:
    """Write the parts of a layout into `.final/` and return them, read back; the manifest is to follow.

    Raises:
        LLMWrapperError: If they cannot be written, for instance because the disk is full.
    """
    settle(folder)
    place = folder / FINAL
    table = pa.concat_tables([part.table for part in parts]).combine_chunks()
    row_of = {key: row for row, key in enumerate(key for part in parts for key in part.keys)}
    recorded = distinct(each for part in parts for each in part.recorded)
    staged = []
    for name, keys in wanted.items():
        write_rows(place / name, table.take([row_of[key] for key in keys]).to_pylist(), identity, recorded)
        staged.append(read_part(place / name))
    storage.write_json(place / _REPLACED, sorted({part.entry.name for part in parts} - wanted.keys()))
    return staged


def settle(folder: Path) -> None:
    """Put rewritten parts into their place, if they are complete; else throw them away.

    Raises:
        CacheError: If `.final/` is not what `stage` made: a link, or with names of other files. A cache is passed on,
            and nothing outside its folder may be moved or removed by what it holds.
    """
    place = folder / FINAL
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise _foreign(place, "it is no folder")
    if (place / MANIFEST).exists():
        replaced = _replaced(place)
        parts = sorted(path for path in place.iterdir() if PART_NAME.fullmatch(path.name))
        if links := [path.name for path in parts if path.is_symlink() or not path.is_file()]:
            raise _foreign(place, f"{links[0]} is no file")
        _sync(place)
        (folder / MANIFEST).unlink(missing_ok=True)
        for path in parts:
            os.replace(path, folder / path.name)
        for name in replaced:
            (folder / name).unlink(missing_ok=True)
        _sync(folder)
        os.replace(place / MANIFEST, folder / MANIFEST)
    if place.exists():
        shutil.rmtree(place)


def _replaced(place: Path) -> list[str]:
    """Return the names of the old parts that are to be removed."""
    try:
        names = read_json(place / _REPLACED, most=_MAX_NAMES)
    except DataError as error:
        raise _foreign(place, str(error)) from error
    if not isinstance(names, list) or not all(isinstance(name, str) and PART_NAME.fullmatch(name) for name in names):
        raise _foreign(place, f"{_REPLACED} does not list parts of this cache")
    return names


def _foreign(place: Path, reason: str) -> CacheError:
    return CacheError(
        f"{place} was not made by a filling of this cache: {reason}. Nothing was changed; "
        f"remove it: rm -r {shlex.quote(str(place))}"
    )


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on disk: a power cut must not undo half of them."""
    if os.name == "nt":  # Windows has no way to wait for a folder
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
