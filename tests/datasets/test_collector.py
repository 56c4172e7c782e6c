"""What all readers of foreign files share: boxes that vote on their convention, and problems told together."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_wrapper.datasets.collector import Collector, Convention, image_folder
from llm_wrapper.errors import DataError
from llm_wrapper.records import Box, Sample

WH = (640, 480)
ONLY_XYXY = (400.0, 300.0, 520.0, 400.0)
ONLY_XYWH = (400.0, 300.0, 120.0, 100.0)
BOTH = (10.0, 20.0, 300.0, 200.0)
NEITHER = (700.0, 20.0, 30.0, 600.0)
OUTSIDE = (300.0, 200.0, 700.0, 500.0)
FRACTIONS = (0.5, 0.25, 0.75, 1.0)


def collector_of(convention: Convention, *boxes: tuple[float, ...]) -> Collector:
    collector = Collector("split val of here", convention)
    for number, numbers in enumerate(boxes):
        collector.box(f"row {number}", numbers, WH)
    return collector


@pytest.mark.parametrize(
    ("convention", "boxes"),
    [
        ("xyxy", [ONLY_XYXY]),
        ("xywh", [ONLY_XYWH]),
        ("xyxy", [BOTH, BOTH]),
        ("xywh", [BOTH]),
        ("xyxy", [ONLY_XYXY, OUTSIDE, OUTSIDE]),
        ("xywh", [ONLY_XYWH, ONLY_XYXY]),
        ("xyxy", [(0.0, 0.0, 1.0, 1.0)] * 3),
        ("xyxy", [ONLY_XYXY, FRACTIONS]),
        ("xyxy", []),
    ],
    ids=["xyxy", "xywh", "both", "both", "some outside", "a tie", "single pixels", "one strange row", "nothing"],
)
def test_boxes_that_do_not_contradict_are_taken(convention: Convention, boxes: list[tuple[float, ...]]) -> None:
    assert collector_of(convention, *boxes).samples() == []


@pytest.mark.parametrize(
    ("convention", "boxes", "message"),
    [
        ("xyxy", [BOTH, ONLY_XYXY, ONLY_XYWH, ONLY_XYWH], "should be xyxy in pixels, but 2 of 4 lie .* as xywh, and 1"),
        ("xywh", [BOTH, ONLY_XYXY], "should be xywh in pixels, but 1 of 2 lie .* only when read as xyxy, and 0 only"),
        ("xyxy", [FRACTIONS, FRACTIONS, ONLY_XYXY], "2 of 3 boxes have no number above 1, so they are fractions"),
        ("xywh", [(0.0, 0.0, 1.0, 0.5)], "1 of 1 boxes have no number above 1, so they are fractions"),
    ],
    ids=["xywh", "xyxy", "fractions", "fractions of xywh"],
)
def test_boxes_that_contradict_are_refused(
    convention: Convention, boxes: list[tuple[float, ...]], message: str
) -> None:
    with pytest.raises(DataError, match=rf"^split val of here: .*{message}.*Nothing was read"):
        collector_of(convention, *boxes).samples()


def test_the_convention_is_told_before_the_rows_that_it_spoils() -> None:
    collector = collector_of("xyxy", *[ONLY_XYWH] * 50)
    assert len(collector.problems) == 50
    with pytest.raises(DataError, match="only when read as xywh"):
        collector.samples()


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
def test_a_box_is_a_box_or_a_problem(convention: Convention, numbers: tuple[float, ...], expected: Box | None) -> None:
    collector = Collector("here", convention)
    assert collector.box("row 7", numbers, WH) == expected
    assert [problem.startswith("row 7: box (") for problem in collector.problems] == ([] if expected else [True])


def test_empty_expressions_and_repeated_ids_are_problems() -> None:
    collector = Collector("here", "xyxy")
    for where, sample_id, expression in (("row 0", "a", "cat"), ("row 1", "b", " \n"), ("row 2", "a", "dog")):
        collector.add(where, Sample(sample_id, "r", "i", None, WH, expression, None))
    collector.problems.append("row 9: something of the reader's")
    with pytest.raises(DataError) as caught:
        collector.samples()
    assert str(caught.value).splitlines() == [
        "here cannot be used (3 problems):",
        "  - row 1: the expression of sample b is empty",
        "  - row 2: the id a was used for a sample of row 0 already",
        "  - row 9: something of the reader's",
    ]


def test_samples_come_in_the_order_of_their_rows() -> None:
    collector = Collector("here", "xyxy")
    for sample_id in ("b", "a", "c"):
        collector.add("row", Sample(sample_id, "r", "i", None, WH, "cat", None))
    assert [sample.sample_id for sample in collector.samples()] == ["b", "a", "c"]


def test_the_image_folder_is_the_named_one_or_the_usual_one(tmp_path: Path) -> None:
    assert image_folder(tmp_path, None) is None
    (tmp_path / "images").mkdir()
    (tmp_path / "other").mkdir()
    assert image_folder(tmp_path, None) == tmp_path / "images"
    assert image_folder(tmp_path, str(tmp_path / "other")) == tmp_path / "other"
    with pytest.raises(DataError, match=r"images folder .*gone does not exist.*data\.settings\.images"):
        image_folder(tmp_path, tmp_path / "gone")
