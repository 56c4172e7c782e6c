from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest

from llm_wrapper.boxes import iou
from llm_wrapper.datasets.base import AnnotatedObject, Dataset
from llm_wrapper.detectors.base import Question, detect_sample
from llm_wrapper.detectors.coco import CocoDegradedDetector, create_coco_degraded
from llm_wrapper.errors import DataError, RecipeError
from llm_wrapper.records import Box, Sample

OBJECTS = [
    AnnotatedObject(Box(100, 100, 200, 180), "car", "1", "vehicle"),
    AnnotatedObject(Box(0, 0, 500, 400), "bus", "2", "vehicle"),
    AnnotatedObject(Box(300, 50, 340, 120), "dog", "3", "animal"),
]


def sample(image_id: str, expression: str = "the car") -> Sample:
    return Sample(f"s-{image_id}", "r", image_id, None, (640, 480), expression, Box(0, 0, 10, 10))


def dataset(objects: list[AnnotatedObject] | None = None, *, count: int = 300) -> Dataset:
    images = {str(number): tuple(OBJECTS if objects is None else objects) for number in range(count)}
    return Dataset("mine", "val", [sample(image_id) for image_id in images], "digest", images)


def made(**settings: Any) -> CocoDegradedDetector:
    return create_coco_degraded(settings).bind(dataset())


def answers(detector: CocoDegradedDetector) -> list[Any]:
    return [detect_sample(detector, each) for each in dataset().samples]


def test_labels_are_super_categories_and_there_are_no_scores() -> None:
    found = [item for answer in answers(made()) for item in answer.items]
    assert {item.label for item in found} == {"vehicle", "animal"}
    assert {(item.score, item.source) for item in found} == {(None, "annotation")}


def test_objects_are_dropped_and_moved_as_often_and_as_far_as_the_settings_say() -> None:
    found = answers(made(jitter=0.1, drop=0.2))
    share = sum(len(answer.items) + answer.num_dropped for answer in found) / (3 * len(found))
    assert 0.75 < share < 0.85
    (dog,) = [one for one in OBJECTS if one.label == "dog"]
    boxes = [item.box for answer in found for item in answer.items if item.label == "animal"]
    moves = np.array([box.xyxy for box in boxes]) - dog.box.xyxy
    np.testing.assert_allclose(moves.std(axis=0), [4, 7, 4, 7], rtol=0.2)
    assert 0.6 < np.mean([iou(box, dog.box) for box in boxes]) < 0.95


def test_without_jitter_and_drop_only_the_labels_are_coarse() -> None:
    for answer in answers(made(jitter=0, drop=0)):
        assert [(item.box, item.label) for item in answer.items] == [
            (OBJECTS[1].box, "vehicle"),
            (OBJECTS[0].box, "vehicle"),
            (OBJECTS[2].box, "animal"),
        ]


def test_answers_depend_on_seed_image_and_boxes_alone() -> None:
    first = answers(made())
    assert answers(made()) == first
    assert answers(made(seed=1)) != first
    assert len(set(first)) > 250
    few = create_coco_degraded({}).bind(dataset(count=3))
    assert [detect_sample(few, sample(str(number), "another")) for number in range(3)] == first[:3]
    for order in permutations(OBJECTS):
        assert detect_sample(create_coco_degraded({}).bind(dataset(list(order), count=1)), sample("0")) == first[0]


def test_the_largest_box_as_given_comes_first() -> None:
    for answer in answers(made(jitter=0.4)):
        areas = [item.box.area for item in answer.items]
        assert areas == sorted(areas, reverse=True)


def test_boxes_that_are_turned_over_are_counted_as_dropped() -> None:
    found = answers(made(jitter=0.5, drop=0))
    assert sum(answer.num_dropped for answer in found) > 0
    assert {len(answer.items) + answer.num_dropped for answer in found} == {3}


def test_identity_has_annotations_and_settings() -> None:
    assert made().identity() == {
        "detector": "coco-degraded", "revision": 1, "annotations": "digest", "jitter": 0.1, "drop": 0.15, "seed": 0,
    }  # fmt: skip
    assert made(seed=2).identity() != made().identity()


def test_unknown_images_are_all_named() -> None:
    with pytest.raises(DataError, match=r"(?s)2 problems.*image x is not.*image y is not"):
        made().detect([Question(sample(image_id), "image") for image_id in "xy"], {})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        pytest.param({"jitter": -0.1, "drop": 1}, r"(?s)2 problems.*jitter.*drop", id="out-of-range"),
        pytest.param({"drops": 0.1}, "unknown key 'drops'", id="unknown"),
        pytest.param({"seed": "x"}, "seed", id="no-number"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        made(**settings)


def test_data_without_objects_or_super_categories_is_refused() -> None:
    with pytest.raises(DataError, match="has no annotated objects"):
        create_coco_degraded({}).bind(Dataset("mine", "val", [], "digest"))
    with pytest.raises(DataError, match=r"(?s)have no super-category.*car"):
        create_coco_degraded({}).bind(dataset([AnnotatedObject(Box(0, 0, 1, 1), "car", "1")]))
