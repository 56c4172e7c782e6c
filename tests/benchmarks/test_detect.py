"""The benchmark compares what it says, on toys of the same architectures."""

from __future__ import annotations

import numpy as np
import pytest
from detect import compare_florence2, compare_grounding_dino, largest_difference
from PIL import Image

from llm_wrapper.records import Box, Detection, Detections, Sample


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("photographs")
    expressions = ["left zebra", "the zebra that looks to the right", "grass"]
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (48, 64 + number, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return [
        Sample(f"{image}/{n}", "r", f"i{image}", str(folder / f"{image}.png"), (64 + image, 48), expression, None)
        for image in range(2)
        for n, expression in enumerate(expressions)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("compare", [compare_florence2, compare_grounding_dino])
def test_both_ways_give_the_same(compare, samples: list[Sample]) -> None:
    found = compare(samples, small=True)
    assert found.is_equal
    assert found.num_expressions == 6
    assert found.num_detections > 6
    assert found.ratio == found.plain_seconds / found.seconds > 0
    assert all(seconds > 0 for seconds in found.where.values())
    assert len(found.where) == 4


def item(x: float, label: str = "zebra", source: str = "od") -> Detection:
    return Detection(Box(x, 0, x + 10, 10), label, None, source)


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        ([item(1), item(5)], [item(5), item(1)], 0.0),
        ([item(1), item(5)], [item(5.25), item(1)], 0.25),
        ([item(1), item(1)], [item(1), item(7)], 6.0),
        ([item(1)], [item(1), item(1)], None),
        ([item(1)], [item(1, label="horse")], None),
        ([item(1)], [item(1, source="rec")], None),
        ([], [], 0.0),
    ],
    ids=["order", "moved", "lost one of two", "count", "label", "source", "nothing"],
)
def test_the_difference_is_that_of_the_nearest_boxes(
    found: list[Detection], expected: list[Detection], difference: float | None
) -> None:
    assert largest_difference([Detections(tuple(found))], [Detections(tuple(expected))]) == difference
