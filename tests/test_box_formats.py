"""Formats of boxes: every one converts, a wrong one is refused with what fits, and little evidence refuses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from llm_wrapper import box_formats
from llm_wrapper.box_formats import BOX_FORMATS, BoxFormat, TargetPairs

WIDE = (640, 480)
TWO = [[64.0, 96.0, 256.0, 384.0], [320.0, 48.0, 576.0, 432.0]]
THREE = [*TWO, [64.0, 48.0, 320.0, 240.0]]
SIDES = {"": None, "norm": 1.0, "percent": 100.0, "1000": 1000.0, "1024": 1024.0}
BOX = [160.0, 120.0, 480.0, 240.0]
WRITTEN = {
    "xyxy": BOX,
    "xywh": [160, 120, 320, 120],
    "yxyx": [120, 160, 240, 480],
    "cxcywh": [320, 180, 320, 120],
    "xyxy_norm": [0.25, 0.25, 0.75, 0.5],
    "xywh_percent": [25, 25, 50, 25],
    "yxyx_1000": [250, 250, 500, 750],
    "cxcywh_1024": [512, 384, 512, 256],
}


def written(boxes: Sequence[Sequence[float]], box_format: BoxFormat, wh: tuple[int, int] = WIDE) -> list[list[float]]:
    """Write xyxy pixels in another format, by plain arithmetic of its own."""
    layout, _, unit = box_format.partition("_")
    rows = []
    for x0, y0, x1, y1 in boxes:
        sx, sy = (1.0, 1.0) if not unit else (SIDES[unit] / wh[0], SIDES[unit] / wh[1])  # type: ignore[operator]
        a, b, c, d = x0 * sx, y0 * sy, x1 * sx, y1 * sy
        rows.append(
            {
                "xyxy": [a, b, c, d],
                "xywh": [a, b, c - a, d - b],
                "yxyx": [b, a, d, c],
                "cxcywh": [(a + c) / 2, (b + d) / 2, c - a, d - b],
            }[layout]
        )
    return rows


def check(boxes: Sequence[Sequence[float]], declared: str | None, wh: tuple[int, int] = WIDE, **options: Any) -> Any:
    values = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    sizes = np.array([wh] * len(values), dtype=np.float64).reshape(-1, 2)
    return box_formats.check(values, sizes, declared, how="--box-format {}", **options)  # type: ignore[arg-type]


def own(targets: Sequence[Sequence[float]]) -> TargetPairs:
    return TargetPairs.of_rows([[each] for each in targets])


@pytest.mark.parametrize("box_format", WRITTEN)
def test_formats_become_pixels(box_format: BoxFormat) -> None:
    pixels = box_formats.to_pixels(np.array([WRITTEN[box_format]], dtype=float), np.array([WIDE], float), box_format)
    assert pixels.tolist() == [pytest.approx(BOX)]


@pytest.mark.parametrize("box_format", BOX_FORMATS)
def test_what_is_declared_rightly_is_taken(box_format: BoxFormat) -> None:
    boxes = written(THREE, box_format)
    assert check(boxes, box_format) is None
    assert check(boxes, box_format, targets=own(THREE)) is None


@pytest.mark.parametrize("box_format", [each for each in BOX_FORMATS if each != "xyxy"])
def test_with_targets_every_other_format_is_recognised(box_format: BoxFormat) -> None:
    problem = check(written(THREE, box_format), "xyxy", targets=own(THREE))
    assert problem is not None
    assert f"{box_format} (3 of 3, mean IoU with the targets 1.00)" in problem
    assert f"give --box-format {box_format}" in problem or f"as --box-format {box_format}" in problem


@pytest.mark.parametrize(
    ("boxes", "declared", "fitting"),
    [
        pytest.param([[0.1, 0.2, 0.4, 0.8], [0.5, 0.1, 0.9, 0.9]], "xyxy", "xyxy_norm", id="shares"),
        pytest.param([[0.1, 0.2, 0.4, 0.8]], "xyxy", "xyxy_norm", id="one-box-of-shares"),
        pytest.param([[64, 96, 192, 288], [320, 48, 256, 384], [300, 90, 99, 80]], "xyxy", "xywh", id="xywh"),
        pytest.param([*TWO, [400, 300, 600, 470]], "xywh", "xyxy", id="xyxy-as-xywh"),
        pytest.param([[100, 200, 400, 800], [500, 100, 900, 900]], "xyxy", "xyxy_1000", id="thousandths"),
    ],
)
def test_images_alone_contradict(boxes: list[list[float]], declared: str, fitting: str) -> None:
    problem = check(boxes, declared)
    assert f"boxes read as {declared} are reversed or outside their images" in problem
    assert f"--box-format {fitting}" in problem


CORNER = [[10, 20, 30, 60], [50, 10, 40, 80]]


def test_percent_is_a_problem_where_pixels_are_only_the_default() -> None:
    problem = check(CORNER, "xywh", is_default=True)
    assert "all 2 boxes read as xywh lie in one corner" in problem
    assert "give --box-format xywh_percent; if xywh is meant, give --box-format xywh" in problem
    assert check(CORNER, "xywh") is None


@pytest.mark.parametrize(
    ("boxes", "wh"),
    [
        pytest.param([[0, 0, 1, 1]], WIDE, id="one-pixel"),
        pytest.param([[0, 0, 1, 1], [0, 0, 1, 2]], WIDE, id="pixels-of-the-corner"),
        pytest.param([[0, 0, 5, 5], [3, 3, 10, 10]], (10, 10), id="tiny-image"),
        pytest.param([[0, 0, 500, 500], [300, 30, 1000, 999]], (1000, 1000), id="thousandths-are-pixels"),
        pytest.param([[10, 10, 100, 100]] * 20, WIDE, id="one-box-everywhere"),
        pytest.param([[10, 10, 100, 100], [300, 10, 400, 100]], WIDE, id="two-boxes"),
        pytest.param([[2, 3, 9, 9], [4, 4, 20, 20], [1, 1, 30, 9]], WIDE, id="small-ones-at-the-corner"),
        pytest.param([[64, 96, 256, 384], [2, 311, 99999, 98]], WIDE, id="one-slip"),
        pytest.param([[64, 96, 256, 384], [0, 0, 0, 0]], WIDE, id="zeros"),
        pytest.param([[256, 384, 64, 96]], WIDE, id="one-reversed"),
        pytest.param([[float("nan"), 1, 2, 3], [1, 2, float("inf"), 9]], WIDE, id="not-finite"),
        pytest.param([[-9, -3, 649, 485]] * 5, WIDE, id="overshoot"),
        pytest.param([], WIDE, id="none"),
    ],
)
def test_little_evidence_refuses_nothing(boxes: list[list[float]], wh: tuple[int, int]) -> None:
    assert check(boxes, "xyxy", wh, is_default=True) is None


def test_a_poor_detector_is_not_a_wrong_format() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, [560, 400], (300, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(20, 80, (300, 2))], axis=1)
    others = rng.permutation(boxes)
    assert check(boxes.tolist(), "xyxy", targets=own(others.tolist()), is_default=True) is None


def test_what_may_be_of_the_declared_format_is_taken() -> None:
    assert check([[0, 0, 60, 60], [400, 20, 460, 90]], "xyxy", targets=own(TWO)) is None, "two poor boxes"
    assert check(THREE, "xyxy", (64, 48), targets=own(THREE)) is None, "they fit the targets, whatever the sizes say"
    assert check([[10, 20, 300, 400]] * 30, "xyxy", (500, 500)) is None, "square images cannot tell y first"


def test_formats_that_cannot_be_told_apart_are_all_named() -> None:
    boxes = written(THREE, "yxyx_1000")
    problem = check(boxes, None)
    assert "the format of 3 boxes is not declared" in problem
    assert "xyxy_1000 (3 of 3), yxyx_1000 (3 of 3)" in problem
    assert "cannot tell them apart" in problem
    ranked = check(boxes, None, targets=own(THREE))
    assert ranked.index("yxyx_1000 (3 of 3, mean IoU with the targets 1.00)") < ranked.index(" xyxy_1000 (3 of 3")
    declared = check(boxes, "xyxy_1000", targets=own(THREE))
    assert "read as xyxy_1000, the boxes overlap with the targets by a mean IoU of 0.49" in declared
    assert "as --box-format yxyx_1000" in declared


def test_boxes_of_no_format_are_of_another_size() -> None:
    far = [[10 * value + shift for value in box] for box in THREE for shift in (0, 9)]
    problem = check(far, "xyxy")
    assert "6 of 6 boxes read as xyxy" in problem
    assert check(far[:3], "xyxy") is None
    assert "images of another size?" in problem


def test_targets_of_an_image_are_compared_with_all_its_boxes() -> None:
    boxes = written(TWO, "xyxy_norm") * 2
    pairs = TargetPairs.of_images(["a", "a", "b", "b"], [("a", TWO[0]), ("b", TWO[1]), ("c", TWO[1])])
    assert (pairs.rows.tolist(), pairs.numbers.tolist()) == ([0, 1, 2, 3], [0, 0, 1, 1])
    assert "xyxy_norm (4 of 4, mean IoU with the targets 1.00) fits" in check(boxes, "xyxy", targets=pairs)
    assert len(TargetPairs.of_images(["a"], [("a", TWO[0])] * 10, most=4).rows) == 4


def test_a_sample_of_many_boxes_is_not_of_one_kind() -> None:
    boxes = written([*THREE, [300, 200, 500, 270], [400, 50, 600, 99]], "xywh") * 12_000
    assert "--box-format xywh" in check(boxes, "xyxy")


def test_many_boxes_of_one_image_are_not_all_paired() -> None:
    pairs = TargetPairs.of_images(["a"] * 2000, [("a", [0, 0, 1, 1 + number]) for number in range(1000)])
    assert len(pairs.rows) == len(pairs.targets) == 500_000
    assert pairs.numbers.max() == 249
