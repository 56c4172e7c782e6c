from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_wrapper import columns
from llm_wrapper.columns import Columns

corner = st.floats(-1000, 1000, allow_nan=False)
side = st.floats(0.01, 500)
some_boxes = st.tuples(corner, corner, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])
EMPTY: dict[str, Any] = {
    "images": np.array([0, 0, 1]),
    "targets": np.array([[0, 0, 10, 10], [np.nan] * 4, [0, 0, 10, 10]], dtype=float),
    "boxes": np.array([[0, 0, 10, 5], [0, 0, 1, 1], [np.nan] * 4], dtype=float),
    "candidates": np.array([[20, 20, 30, 30], [0, 0, 10, 9], [0, 0, 10, 8], [0, 0, 1, 1]], dtype=float),
    "counts": np.array([3, 1, 0]),
}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(some_boxes, some_boxes), min_size=1, max_size=8))
def test_iou_is_that_of_pycocotools(pairs: list[tuple[list[float], list[float]]]) -> None:
    mask = pytest.importorskip("pycocotools.mask", reason="pycocotools, the independent IoU, is not installed")
    a, b = (np.array([pair[place] for pair in pairs]) for place in (0, 1))
    as_xywh = [np.hstack([each[:, :2], each[:, 2:] - each[:, :2]]) for each in (a, b)]
    theirs = mask.iou(*as_xywh, [0] * len(b))
    np.testing.assert_allclose(columns.rowwise_iou(a, b), np.diagonal(theirs), atol=1e-9)


def test_missing_boxes_and_targets() -> None:
    table = Columns(**EMPTY)
    found = columns.candidate_overlaps(table)
    np.testing.assert_array_equal(columns.overlaps(table), [0.5, np.nan, 0.0])
    np.testing.assert_allclose(found, [0.0, 0.9, 0.8, np.nan])
    np.testing.assert_allclose(columns.best_overlaps(table, found), [0.9, np.nan, 0.0])
    assert columns.first_right(table, found > 0.5).tolist() == [1, -1, -1]
    assert columns.first_right(table, found > 0.95).tolist() == [-1, -1, -1]


def test_no_sample_at_all() -> None:
    table = columns.of_records([])
    assert columns.overlaps(table).shape == columns.candidate_overlaps(table).shape == (0,)
    assert columns.best_overlaps(table, np.empty(0)).shape == (0,)
    assert columns.first_right(table, np.empty(0, dtype=bool)).shape == (0,)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Columns(**EMPTY)
    whole = columns.candidate_overlaps(table)
    monkeypatch.setattr(columns, "_BLOCK", 2)
    np.testing.assert_array_equal(columns.candidate_overlaps(table), whole)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"counts": np.array([3, 2, 0])}, r"candidates \(4, 4\), not \(5, 4\)", id="counts"),
        pytest.param({"counts": np.array([5, -1, 0])}, "negative", id="negative"),
        pytest.param({"boxes": np.zeros((2, 4))}, r"boxes \(2, 4\), not \(3, 4\)", id="samples"),
        pytest.param({"boxes": np.array([[0, 0, 1, np.nan]] * 3)}, "boxes have a row", id="half-a-box"),
        pytest.param({"candidates": np.full((4, 4), np.inf)}, "candidates have", id="infinite"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Columns(**{**EMPTY, **changed})
