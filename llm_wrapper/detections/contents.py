"""What a cache folder holds, and all that is wrong with it, as far as the folder itself can tell."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from llm_wrapper import artifacts
from llm_wrapper.detections.cache import Manifest
from llm_wrapper.detections.parts import DamagedPartError, Key, Part, read_part
from llm_wrapper.errors import CacheError, DataError, LLMWrapperError, listed
from llm_wrapper.records import from_dict

__all__ = ["Contents", "Problem", "fill_command", "read", "read_sound", "told", "totals"]

_MANIFEST = "manifest.json"
_PART_NAME = re.compile(r"part-\d+\.parquet")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong in a cache folder, and what mends it."""

    text: str
    remedy: str


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """A cache folder as found: `parts` are those that can be used, `problems` tells of all the rest.

    `manifest` is `None` where there is none, or none that can be read; `identity` is the manifest's, else that of the
    first part, else `None`.
    """

    folder: Path
    manifest: Manifest | None
    identity: Mapping[str, Any] | None
    parts: tuple[Part, ...]
    problems: tuple[Problem, ...]

    @property
    def keys(self) -> set[Key]:
        """All questions that are answered."""
        return {key for part in self.parts for key in part.keys}

    @property
    def command(self) -> str:
        """The command that asks what the cache lacks and writes its manifest."""
        return fill_command(self.identity)

    @property
    def has_manifest(self) -> bool:
        """Whether the cache was filled to its end, even if its manifest cannot be read now."""
        return (self.folder / _MANIFEST).exists()


def fill_command(identity: Mapping[str, Any] | None) -> str:
    """Return the command that fills a cache of an identity, with blanks for what is not known."""
    known = identity or {}
    names = (known.get(name, f"<{name}>") for name in ("detector", "dataset", "split"))
    return "llm-wrapper cache-detections --vlm {} --data {} --split {}".format(*names)


def read(folder: Path, *, may_be_empty: bool = False) -> Contents:
    """Read a cache folder and check everything that it can tell; nothing on disk is changed.

    Checked are digests, columns, identities, answers that are given twice, and the manifest's counts.

    Raises:
        CacheError: If the folder holds no cache, unless it may be empty.
    """
    if not may_be_empty and not any(folder.glob("part-*.parquet")) and not (folder / _MANIFEST).exists():
        raise CacheError(
            f"{folder} holds no detections. Name a folder like data/detections/<detector>/<dataset>/<split>."
        )
    manifest, damage = _manifest(folder / _MANIFEST)
    outcomes = _read_parts(folder, manifest)
    readable = [outcome for outcome in outcomes if isinstance(outcome, Part)]
    identity = manifest.identity if manifest else readable[0].identity if readable else None
    parts = tuple(part for part in readable if part.identity == identity)
    again = f"Run `{fill_command(identity)}`: it asks again only what is lost."
    problems = [Problem(text, again) for text in [*damage, *_repeats(folder, parts)]]
    problems += [found for outcome in outcomes for found in _unusable(folder, outcome, identity)]
    problems += _misnamed(folder)
    if manifest is not None and not problems:
        problems += _miscounted(folder / _MANIFEST, manifest, parts)
    return Contents(folder, manifest, identity, parts, tuple(problems))


def read_sound(folders: Iterable[Path]) -> list[Contents]:
    """Read caches that must be whole, though they need not be finished.

    Raises:
        CacheError: If a folder holds no cache, or with every problem of every folder.
    """
    found = [read(folder) for folder in folders]
    problems = [f"{problem.text}. {problem.remedy}" for each in found for problem in each.problems]
    if problems:
        raise CacheError(listed("not all of these detections can be used", problems))
    return found


def totals(parts: Sequence[Part]) -> dict[str, int]:
    """Return the counts that a manifest has, by its names."""
    tables = [part.table for part in parts]
    return {
        "num_rows": sum(table.num_rows for table in tables),
        "num_images": len({image_id for part in parts for image_id, _ in part.keys}),
        "num_detections": sum(len(pc.list_flatten(table["items"])) for table in tables),
        "num_dropped": sum(pc.sum(table["num_dropped"], min_count=0).as_py() for table in tables),
    }


def told(key: Key) -> str:
    """Name a question in a message."""
    image_id, sample_id = key
    return f"image {image_id!r}" if sample_id is None else f"sample {sample_id!r} of image {image_id!r}"


def _manifest(path: Path) -> tuple[Manifest | None, list[str]]:
    """Return the manifest, if there is one, and what is wrong with it."""
    if not path.exists():
        return None, []
    try:
        return from_dict(Manifest, artifacts.read_json(path)), []
    except (DataError, ValueError, TypeError) as error:
        return None, [f"{path} is damaged: {error}".removesuffix(".")]


def _read_parts(folder: Path, manifest: Manifest | None) -> list[Part | LLMWrapperError]:
    """Return each part, or why it cannot be used."""
    known = None if manifest is None else {entry.name: entry.sha256 for entry in manifest.parts}
    paths = sorted(path for path in folder.glob("part-*.parquet") if _PART_NAME.fullmatch(path.name))
    absent = sorted(set(known or ()) - {path.name for path in paths})
    outcomes: list[Part | LLMWrapperError] = [DamagedPartError(f"{folder / name} is missing") for name in absent]
    for path in paths:
        try:
            if known is not None and path.name not in known:
                raise DamagedPartError(f"{path} is not in the manifest")
            outcomes.append(read_part(path, known[path.name] if known else None))
        except (CacheError, DataError) as error:
            outcomes.append(error)
    return outcomes


def _unusable(folder: Path, outcome: Part | LLMWrapperError, identity: Mapping[str, Any] | None) -> Iterable[Problem]:
    """Tell why a part is not used, if it is not."""
    command = fill_command(identity)
    if isinstance(outcome, CacheError):
        yield Problem(str(outcome).removesuffix("."), f"Run `{command}`: it asks again only what is lost.")
    elif isinstance(outcome, LLMWrapperError):
        yield Problem(str(outcome).removesuffix("."), "Make it a file that you may read.")
    elif outcome.identity != identity:
        texts = "; ".join(artifacts.differences(outcome.identity, identity or {}))
        text = f"{folder / outcome.entry.name} was made otherwise than the rest: {texts}"
        yield Problem(text, f"Move it to a folder of its own and run `{command}`.")


def _repeats(folder: Path, parts: Iterable[Part]) -> Iterable[str]:
    """Tell of each part that answers what is answered already."""
    seen: set[Key] = set()
    for part in parts:
        repeated = [key for key, count in Counter(part.keys).items() if count > 1 or key in seen]
        if repeated:
            yield f"{folder / part.entry.name} repeats answers of its own or of another part: {told(repeated[0])}" + (
                f" and {len(repeated) - 1} more" if len(repeated) > 1 else ""
            )
        seen.update(part.keys)


def _misnamed(folder: Path) -> Iterable[Problem]:
    for path in sorted(folder.glob("part-*.parquet")):
        if not _PART_NAME.fullmatch(path.name):
            yield Problem(f"{path} is not named like a part (part-00000.parquet)", "Move it to another folder.")


def _miscounted(path: Path, manifest: Manifest, parts: Sequence[Part]) -> Iterable[Problem]:
    remedy = f"Run `rm {shlex.quote(str(path))}` and `{fill_command(manifest.identity)}`: nothing is asked again."
    for name, number in totals(parts).items():
        if getattr(manifest, name) != number:
            yield Problem(f"{path} says {name}={getattr(manifest, name)}, but its parts hold {number}", remedy)
