"""What every detector offers: an identity for the cache, and detections for samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

from llm_wrapper.records import Box, Detection, Detections, Sample

__all__ = ["Detector", "Level", "detections_from_raw"]

Level = Literal["image", "expression"]
"""Whether an answer depends on the image alone (stored once per image) or on the expression too."""


class Detector(Protocol):
    """A detector or VLM that can be called but not trained."""

    name: str
    level: Level

    def identity(self) -> dict[str, Any]:
        """Return all that decides the answers (JSON values): id, revision, tasks, thresholds."""
        ...

    def detect(self, samples: Sequence[Sample]) -> list[Detections]:
        """Return the detections of each sample, in order; for level `image` the expression must not matter."""
        ...


def detections_from_raw(rows: Iterable[tuple[Sequence[float], str, float | None]], source: str) -> Detections:
    """Turn raw (xyxy pixels, label, score) rows into `Detections`, counting those that are no box.

    Args:
        rows: Boxes as the detector gave them; reversed, empty and not finite ones are dropped and counted.
        source: The detector's task that produced them.
    """
    items: list[Detection] = []
    num_dropped = 0
    for xyxy, label, score in rows:
        values = [float(value) for value in xyxy]
        usable = (
            len(values) == 4 and all(map(math.isfinite, values)) and values[0] < values[2] and values[1] < values[3]
        )
        if not usable or (score is not None and not math.isfinite(score)):
            num_dropped += 1
            continue
        items.append(Detection(Box(*values), label, score, source))
    return Detections(tuple(items), num_dropped)
