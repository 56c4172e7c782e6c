"""Identity of cached detections: the facts that decide them, those only recorded, and the command that computes them.

A cache that was filled on a GPU in float16 holds answers to the same questions as one filled on a CPU in float32. So
number format, device, attention kernel and image processor are recorded beside the answers and printed, but never
compared: whoever has a cache can read it, without the detector's weights and on any machine.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_wrapper import storage
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detectors import Detector

__all__ = [
    "Recorded",
    "adopt_revision",
    "commits_of",
    "dataset_options",
    "describe_recorded",
    "distinct",
    "fill_command",
    "identity_of",
    "split_recorded",
]

Recorded = tuple[Mapping[str, Any], ...]
"""How answers were computed: one mapping for each way that was used, such as a GPU first and a CPU later."""

_RECORDED = ("attention", "device", "dtype", "image_processor")
_COMMIT = re.compile(r"[0-9a-f]{40}")


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
    if not isinstance(settings, dict) or not settings.keys() & set(_RECORDED):
        return dict(identity), ()
    recorded = {name: settings[name] for name in _RECORDED if name in settings}
    if _is_commit(settings.get("revision")):
        recorded["commit"] = settings["revision"]
    deciding = {name: value for name, value in settings.items() if name not in _RECORDED}
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
    """Say how answers were computed, such as `dtype=float16, device=cuda`; empty where nothing is recorded."""
    ways = (", ".join(f"{name}={each[name]}" for name in sorted(each)) for each in recorded)
    return "; also ".join(ways)


def _is_commit(revision: Any) -> bool:
    return isinstance(revision, str) and _COMMIT.fullmatch(revision) is not None


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
