"""Predictions made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_wrapper.records import Box, Candidate, Prediction

TARGET = Box(0, 0, 100, 100)
WRONG = Box(500, 500, 600, 600)


def made(name: str = "a", box: Box | None = None, *, others: Sequence[Box] = (), **changes: Any) -> Prediction:
    """A prediction of system "s" with the target `TARGET`; `box` is shown first, then `others`, all labelled "cat"."""
    shown = (*(() if box is None else (box,)), *others)
    values: dict[str, Any] = {
        "system": "s",
        "sample_id": name,
        "image_id": name,
        "expression": "the left cat",
        "kind": None,
        "target": TARGET,
        "box": box,
        "decided_by": "llm",
        "probability": None,
        "probabilities": None,
        "failure": None,
        "candidates": tuple(Candidate(each, "cat", None, "flo2", "od") for each in shown),
    }
    return Prediction(**{**values, **changes})


def wide(share: float) -> Box:
    """A box whose IoU with `TARGET` is `share`, at most 1."""
    return Box(0, 0, 100, 100 * share)
