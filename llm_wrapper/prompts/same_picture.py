"""Which training expressions show the picture that is asked about: an example must not give its answer away."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from llm_wrapper.records import Sample
from llm_wrapper.storage import digest

__all__ = ["Pictures"]


class Pictures:
    """Finds samples of one picture: by image id, by path, and by content where two files are of the same size.

    Ids of two data sets may be equal by chance; then an example is left out for nothing, which does no harm.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples
        self._digests: dict[str, str] = {}
        self._by_id: dict[str, list[int]] = defaultdict(list)
        for place, sample in enumerate(samples):
            self._by_id[sample.image_id].append(place)

    def places_of(self, sample: Sample) -> frozenset[int]:
        """Return the places of all samples that show the picture of this one."""
        found = set(self._by_id.get(sample.image_id, ()))
        path, size = _file(sample)
        others = self._by_size.get(size, {}) if size is not None else {}
        # Nothing about the file that is asked about is kept: another picture may be under its name the next time.
        content = digest(Path(path)) if path is not None and others.keys() - {path} else None
        for other, places in others.items():
            if other == path or self._digest(other) == content:
                found.update(places)
        return frozenset(found)

    @cached_property
    def _by_size(self) -> dict[int, dict[str, list[int]]]:
        """Size of a file in bytes -> path -> places."""
        of_path: dict[str | None, list[int]] = defaultdict(list)
        for place, sample in enumerate(self._samples):
            of_path[sample.image_path].append(place)
        by_size: dict[int, dict[str, list[int]]] = defaultdict(dict)
        for places in of_path.values():
            path, size = _file(self._samples[places[0]])
            if path is not None and size is not None:
                by_size[size].setdefault(path, []).extend(places)
        return by_size

    def _digest(self, path: str) -> str:
        if path not in self._digests:
            self._digests[path] = digest(Path(path))
        return self._digests[path]


def _file(sample: Sample) -> tuple[str | None, int | None]:
    """Return the path of a sample's picture and its size in bytes; `None` where there is no such file."""
    if sample.image_path is None:
        return None, None
    try:
        path = os.path.realpath(sample.image_path)
        found = os.stat(path)
        return (path, found.st_size) if stat.S_ISREG(found.st_mode) else (None, None)  # reading a pipe never ends
    except (OSError, ValueError):
        return None, None
