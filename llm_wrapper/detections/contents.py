"""What a cache folder holds, and all that is wrong with it, as far as the folder itself can tell."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pyarrow.compute as pc
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as validated

from llm_wrapper import storage
from llm_wrapper.detections.identity import Recorded, adopt_revision, distinct, split_recorded
from llm_wrapper.detections.parts import PART_NAME, DamagedPartError, Key, Part, PartEntry, read_part
from llm_wrapper.detectors.base import LEVELS, Level
from llm_wrapper.errors import CacheError, DataError, LLMWrapperError, listed
from llm_wrapper.readers import MIB, read_json
from llm_wrapper.records import from_dict

__all__ = [
    "MANIFEST",
    "Contents",
    "Manifest",
    "Problem",
    "dataset_options",
    "fill_command",
    "read",
    "read_sound",
    "told",
    "totals",
]

MANIFEST = "manifest.json"
_MAX_MANIFEST = 32 * MIB
"""A manifest names each part and each image that could not be read; JSON takes up to 24 times its size in memory."""


@validated(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Manifest:
    """What a complete cache says of itself; `created` is UTC, ISO 8601.

    `recorded` tells how the answers were computed, one entry for each way, such as a GPU first and a CPU later.

    `unanswered` gives the reason for each image that could not be asked about, by image id: those of its samples that
    have no answer have no detections.
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
    """What is wrong in a cache folder, and what mends it.

    `part` is the file that cannot be used, where it is one. A problem that `blocks` is not mended by filling the cache.
    """

    text: str
    remedy: str
    part: Path | None = None
    blocks: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """A cache folder as found: `parts` are those that can be used, `problems` tells of all the rest.

    `manifest` is `None` where there is none, or none that can be read; `identity` is the manifest's, else that of the
    first part, else `None`. `foreign` are whole parts of another identity.
    """

    folder: Path
    manifest: Manifest | None
    identity: Mapping[str, Any] | None
    parts: tuple[Part, ...]
    foreign: tuple[Part, ...]
    problems: tuple[Problem, ...]

    @property
    def keys(self) -> set[Key]:
        """All questions that are answered."""
        return {key for part in self.parts for key in part.keys}

    @property
    def command(self) -> str:
        """The command that asks what the cache lacks and writes its manifest."""
        return fill_command(self.identity, self.folder)

    @property
    def has_manifest(self) -> bool:
        """Whether the cache was filled to its end, even if its manifest cannot be read now."""
        return (self.folder / MANIFEST).exists()


def fill_command(identity: Mapping[str, Any] | None, folder: Path, options: Sequence[str] = ()) -> str:
    """Return the command that fills a cache folder, with blanks for what is not known.

    Args:
        identity: Of the cache.
        folder: Where it is.
        options: Further words that the command needs, such as where the data lies.
    """
    known = identity or {}
    vlm = _quoted(known.get("detector")) or "<detector>"
    words = ["--vlm", vlm, *dataset_options(identity, folder)]
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
    known = identity or {}
    detector, dataset, split = (known.get(name) for name in ("detector", "dataset", "split"))
    place = folder.absolute()
    is_usual = place.parts[-3::2] == (detector, split)
    return [
        *("--data", _quoted(place.parent.name) if is_usual else f"<recipe of {_quoted(dataset) or 'dataset'}>"),
        *("--split", _quoted(split) or "<split>"),
    ]


def _quoted(name: Any) -> str:
    """Return a name that somebody else may have written as one word of a shell; nothing for what is no name."""
    return shlex.quote(name) if isinstance(name, str) and name else ""


def read(folder: Path, *, identity: Mapping[str, Any] | None = None, may_be_empty: bool = False) -> Contents:
    """Read a cache folder and check everything that it can tell; nothing on disk is changed.

    Checked are digests, columns, identities, answers that are given twice, and the manifest's counts.

    Args:
        folder: The folder.
        identity: What the parts must be; without it, what the manifest or the first part says.
        may_be_empty: Whether a folder without a cache is none that is called an error.

    Raises:
        CacheError: If the folder holds no cache.
    """
    if not may_be_empty and not any(folder.glob("part-*.parquet")) and not (folder / MANIFEST).exists():
        raise CacheError(
            f"{folder} holds no detections. Name a folder like data/detections/<detector>/<dataset>/<split>."
        )
    manifest, damage = _manifest(folder / MANIFEST)
    outcomes = dict(_read_parts(folder, manifest))
    readable = [outcome for outcome in outcomes.values() if isinstance(outcome, Part)]
    wanted = identity or (manifest.identity if manifest else readable[0].identity if readable else {})
    if manifest is not None:
        manifest = replace(manifest, identity=adopt_revision(manifest.identity, manifest.recorded, wanted))
    readable = [replace(part, identity=adopt_revision(part.identity, part.recorded, wanted)) for part in readable]
    outcomes.update((folder / part.entry.name, part) for part in readable)
    found = manifest.identity if manifest else readable[0].identity if readable else None
    foreign = tuple(part for part in readable if part.identity != wanted)
    outcomes.update(_repeats(folder, [part for part in readable if part.identity == wanted]))
    parts = tuple(each for each in outcomes.values() if isinstance(each, Part) and each.identity == wanted)
    again = f"Run `{fill_command(wanted, folder)}`: it asks again only what is lost."
    problems = [Problem(text, again) for text in damage]
    problems += [_unusable(path, each, again) for path, each in outcomes.items() if not isinstance(each, Part)]
    problems += [_foreign(folder, part, wanted) for part in foreign]
    if manifest is not None and not problems:
        problems += [Problem(text, again) for text in _miscounted(folder / MANIFEST, manifest, parts)]
    return Contents(folder, manifest, found, parts, foreign, tuple(problems))


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
        manifest = from_dict(Manifest, read_json(path, most=_MAX_MANIFEST))
        identity, earlier = split_recorded(manifest.identity)
        return replace(manifest, identity=identity, recorded=distinct([*manifest.recorded, *earlier])), []
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "it"
        return None, [f"{path} is damaged: {field}: {first['msg']} ({error.error_count()} problems)"]
    except (DataError, ValueError, TypeError) as error:
        return None, [f"{path} is damaged: {error}".removesuffix(".")]


def _read_parts(folder: Path, manifest: Manifest | None) -> Iterator[tuple[Path, Part | LLMWrapperError]]:
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


def _repeats(folder: Path, parts: Iterable[Part]) -> Iterator[tuple[Path, DamagedPartError]]:
    """Yield each part that answers what is answered already."""
    seen: set[Key] = set()
    for part in parts:
        repeated = [key for key, count in Counter(part.keys).items() if count > 1 or key in seen]
        if repeated:
            path = folder / part.entry.name
            more = f" and {len(repeated) - 1} more" if len(repeated) > 1 else ""
            text = f"{path} repeats answers of its own or of another part: {told(repeated[0])}{more}"
            yield path, DamagedPartError(text)
        else:
            seen.update(part.keys)


def _unusable(path: Path, error: LLMWrapperError, again: str) -> Problem:
    """Tell why a part is not used; one that cannot be read is no loss that could be mended by asking again."""
    text = str(error).removesuffix(".")
    if isinstance(error, CacheError):
        return Problem(text, again, part=path)
    return Problem(text, "Make it a file that you may read.", part=path, blocks=True)


def _foreign(folder: Path, part: Part, wanted: Mapping[str, Any]) -> Problem:
    """Tell how a part was made otherwise."""
    places = ("in this part", "in the others")
    text = f"{folder / part.entry.name} was made otherwise than the rest: " + "; ".join(
        storage.differences(part.identity, wanted, places=places)
    )
    remedy = f"Move it to a folder of its own and run `{fill_command(wanted, folder)}`."
    return Problem(text, remedy, part=folder / part.entry.name, blocks=True)


def _miscounted(path: Path, manifest: Manifest, parts: Sequence[Part]) -> Iterator[str]:
    """Yield what a manifest says of its parts that is not so: a lookup would believe it."""
    answered = {"image" if sample_id is None else "expression" for part in parts for _, sample_id in part.keys}
    if unsaid := sorted(answered - set(manifest.levels)):
        yield f"{path} says levels={list(manifest.levels)}, but its parts hold answers of level {', '.join(unsaid)}"
    counts = {part.entry.name: part.entry.num_rows for part in parts}
    for entry in manifest.parts:
        if counts.get(entry.name) != entry.num_rows:
            yield f"{path} says that {entry.name} has {entry.num_rows} rows, but it has {counts.get(entry.name)}"
    for name, number in totals(parts).items():
        if getattr(manifest, name) != number:
            yield f"{path} says {name}={getattr(manifest, name)}, but its parts hold {number}"
