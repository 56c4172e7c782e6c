"""Candidates made by hand: boxes of a label around a place, and the walk-through sample."""

from __future__ import annotations

from hypothesis import strategies as st

from llm_wrapper.records import Box, Candidate


def candidate(label: str, *xyxy: float) -> Candidate:
    return Candidate(Box(*xyxy), label, None, "d", "od")


def at(label: str, x: float, y: float, side: float = 10.0) -> Candidate:
    """A square around a center."""
    return candidate(label, x - side / 2, y - side / 2, x + side / 2, y + side / 2)


ZEBRAS = (
    candidate("zebra", 310.2, 80.0, 620.5, 420.0),
    candidate("zebra", 15.0, 90.5, 298.0, 405.0),
    candidate("grass", 0.0, 300.0, 640.0, 480.0),
)


def boxes(most_xy: int, most_size: int) -> st.SearchStrategy[Box]:
    """Small boxes of whole numbers, so that many coordinates are equal."""
    xy, size = st.integers(0, most_xy), st.integers(1, most_size)
    return st.tuples(xy, xy, size, size).map(lambda xywh: Box(*xywh[:2], xywh[0] + xywh[2], xywh[1] + xywh[3]))
