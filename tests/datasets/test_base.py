"""What all readers of published files share: unusable rows counted by reason, and one checker of boxes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from llm_wrapper.datasets.base import Collector, Convention, image_folder
from llm_wrapper.errors import DataError
from llm_wrapper.records import Box, Sample

WH = (640, 480)
ONLY_XYXY = (400.0, 300.0, 520.0, 400.0)
ONLY_XYWH = (400.0, 300.0, 120.0, 100.0)
BOTH = (10.0, 20.0, 300.0, 200.0)
NEITHER = (700.0, 20.0, 30.0, 600.0)
OUTSIDE = (300.0, 200.0, 700.0, 500.0)
FRACTIONS = (0.5, 0.25, 0.75, 1.0)


def sample(sample_id: str, expression: str = "cat") -> Sample:
    return Sample(sample_id, "r", "i", None, WH, expression, None)


def shifted(numbers: tuple[float, ...], count: int) -> list[tuple[float, ...]]:
    """Different boxes of one kind."""
    return [(numbers[0] + number / 4, *numbers[1:]) for number in range(count)]


def collector_of(convention: Convention, *boxes: tuple[float, ...]) -> Collector:
    collector = Collector("split val of here", convention)
    for number, numbers in enumerate(boxes):
        if collector.box(f"row {number}", numbers, WH) is not None:
            collector.add(f"row {number}", sample(str(number)))
    return collector


@pytest.mark.parametrize(
    ("convention", "boxes", "num_used"),
    [
        pytest.param("xyxy", [ONLY_XYXY], 1, id="xyxy"),
        pytest.param("xywh", [ONLY_XYWH], 1, id="xywh"),
        pytest.param("xyxy", [BOTH, BOTH], 2, id="both"),
        pytest.param("xywh", [BOTH], 1, id="both as xywh"),
        pytest.param("xyxy", [ONLY_XYXY, OUTSIDE], 2, id="one outside"),
        pytest.param("xyxy", [(0.0, 0.0, 1.0, 1.0)] * 3, 3, id="single pixels"),
        pytest.param("xyxy", [*shifted(ONLY_XYXY, 20), FRACTIONS], 21, id="one strange row"),
        pytest.param("xyxy", [*shifted(ONLY_XYXY, 20), ONLY_XYWH], 20, id="one reversed row"),
        pytest.param("xyxy", [], 0, id="nothing"),
    ],
)
def test_boxes_that_do_not_contradict_are_taken(
    convention: Convention, boxes: list[tuple[float, ...]], num_used: int
) -> None:
    dataset = collector_of(convention, *boxes).dataset("mine", "val", "digest")
    assert len(dataset.samples) == num_used
    assert sum(map(len, dataset.skipped.values())) == len(boxes) - num_used


@pytest.mark.parametrize(
    ("convention", "boxes", "fitting"),
    [
        pytest.param("xyxy", shifted(ONLY_XYWH, 5), "xywh", id="xywh"),
        pytest.param("xywh", shifted(ONLY_XYXY, 5), "xyxy", id="xyxy"),
        pytest.param("xyxy", [FRACTIONS, (0.25, 0.25, 0.5, 0.75)], "xyxy_norm", id="shares"),
        pytest.param("xywh", [(0.1, 0.2, 0.5, 0.5), (0.25, 0.5, 0.75, 0.5)], "xywh_norm", id="shares of xywh"),
        pytest.param("xyxy", [(100.0, 100.0, 900.0, 990.0), (5.0, 400.0, 950.0, 700.0)], "xyxy_1000", id="thousandths"),
    ],
)
def test_boxes_that_contradict_are_refused(
    convention: Convention, boxes: list[tuple[float, ...]], fitting: str
) -> None:
    with pytest.raises(DataError, match=rf"^split val of here: .*read as {convention} .*{fitting} .*Nothing was read"):
        collector_of(convention, *boxes).dataset("mine", "val", "digest")


@pytest.mark.parametrize(
    ("convention", "numbers", "expected"),
    [
        ("xyxy", ONLY_XYXY, Box(400, 300, 520, 400)),
        ("xywh", ONLY_XYWH, Box(400, 300, 520, 400)),
        ("xyxy", OUTSIDE, Box(300, 200, 700, 500)),
        ("xywh", NEITHER, Box(700, 20, 730, 620)),
        ("xyxy", ONLY_XYWH, None),
        ("xywh", (1.0, 1.0, 0.0, 5.0), None),
        ("xywh", (1.0, float("nan"), 5.0, 5.0), None),
        ("xyxy", (1.0, 1.0, float("inf"), 5.0), None),
    ],
    ids=["xyxy", "xywh", "partly outside", "outside", "reversed", "no area", "nan", "infinite"],
)
def test_a_box_is_a_box_or_skipped(convention: Convention, numbers: tuple[float, ...], expected: Box | None) -> None:
    collector = Collector("here", convention)
    assert collector.box("row 7", numbers, WH) == expected
    assert collector.skipped.places == ({} if expected else {"target that is no box": ["row 7"]})
    assert [problem.startswith("row 7: box (") for problem in collector.skipped.problems] == [True] * (not expected)


def test_what_is_skipped_is_counted_by_reason_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector("here", "xyxy")
    rows = [("a", "cat"), ("b", " \n"), ("c", "\u200b"), ("a", "dog"), ("d", "x"), ("e", "y"), ("f", "z"), ("g", "w")]
    rows += [("h", "long " * 2_001), ("i", "v")]
    for number, (sample_id, expression) in enumerate(rows):
        collector.add(f"row {number}", sample(sample_id, expression))
    collector.skipped.add("something else", "row 10", "something of the reader's")
    with caplog.at_level(logging.WARNING):
        dataset = collector.dataset("mine", "val", "digest")
    assert [each.sample_id for each in dataset.samples] == ["a", "d", "e", "f", "g", "i"]
    assert dataset.skipped == {
        "expression that is empty": ("row 1", "row 2"),
        "id used before": ("row 3",),
        "expression of over 10000 characters": ("row 8",),
        "something else": ("row 10",),
    }
    assert dataset.notes() == [
        "mine val: skipped 2: expression that is empty",
        "mine val: skipped 1: id used before",
        "mine val: skipped 1: expression of over 10000 characters",
        "mine val: skipped 1: something else",
    ]
    assert "here: skipped 2: expression that is empty (row 1, row 2)" in caplog.text


def test_where_most_rows_are_unusable_all_problems_are_listed() -> None:
    collector = Collector("here", "xyxy")
    for number, (sample_id, expression) in enumerate([("a", "cat"), ("b", " \n"), ("a", "dog")]):
        collector.add(f"row {number}", sample(sample_id, expression))
    with pytest.raises(DataError) as caught:
        collector.dataset("mine", "val", "digest")
    assert str(caught.value).splitlines() == [
        "here cannot be used: 2 of 3 rows are unusable (2 problems):",
        "  - row 1: the expression of sample b is empty",
        "  - row 2: the id a was used for a sample of row 0 already",
    ]


def test_crowd_targets_are_named() -> None:
    collector = Collector("here", "xyxy")
    collector.add("row 0", sample("a"), is_crowd=True)
    collector.add("row 1", sample("b"))
    dataset = collector.dataset("mine", "val", "digest")
    assert dataset.crowd_targets == {"a"}
    (note,) = dataset.notes()
    assert note.startswith("mine val: 1 of 2 expressions mean a crowd region (iscrowd)")


def test_samples_come_in_the_order_of_their_rows() -> None:
    collector = Collector("here", "xyxy")
    for sample_id in ("b", "a", "c"):
        collector.add("row", sample(sample_id))
    assert [each.sample_id for each in collector.dataset("mine", "val", "digest").samples] == ["b", "a", "c"]


def test_the_image_folder_is_the_named_one_or_the_usual_one(tmp_path: Path) -> None:
    assert image_folder(tmp_path, None) is None
    (tmp_path / "images").mkdir()
    (tmp_path / "other").mkdir()
    assert image_folder(tmp_path, None) == tmp_path / "images"
    assert image_folder(tmp_path, str(tmp_path / "other")) == tmp_path / "other"
    with pytest.raises(DataError, match=r"images folder .*gone does not exist.*data\.settings\.images"):
        image_folder(tmp_path, tmp_path / "gone")
