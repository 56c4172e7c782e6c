from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from llm_wrapper.boxes import iou
from llm_wrapper.datasets.base import AnnotatedObject, Dataset
from llm_wrapper.detectors import Question, coco, detect_sample
from llm_wrapper.detectors.coco import CocoDegradedDetector, create_coco_degraded
from llm_wrapper.errors import DataError, RecipeError
from llm_wrapper.records import Box, Sample

_OBJECTS = [
    AnnotatedObject(Box(0, 0, 10, 10), "mug", "1"),
    AnnotatedObject(Box(0, 0, 50, 40), "table", "2"),
    AnnotatedObject(Box(5, 0, 15, 10), "mug", "3"),
]


def _sample(image_id: str, expression: str = "the mug") -> Sample:
    return Sample("s", "r", image_id, None, (100, 50), expression, Box(0, 0, 10, 10))


def _dataset(objects: Sequence[AnnotatedObject] = _OBJECTS) -> Dataset:
    return Dataset("mine", "val", [_sample("a"), _sample("b")], "digest", {"a": objects, "b": ()})


def test_gives_all_objects_without_scores() -> None:
    detector = coco.create_coco({}).bind(_dataset())
    assert (detector.name, detector.levels, detector.reads_images) == ("coco", ("image",), False)
    first, second = (detect_sample(detector, _sample(image_id)) for image_id in "ab")
    assert [(item.label, item.score, item.source) for item in first.items] == [
        ("table", None, "annotation"),
        ("mug", None, "annotation"),
        ("mug", None, "annotation"),
    ]
    assert first.items[1].box.xyxy == (0.0, 0.0, 10.0, 10.0)
    assert (second.items, first.num_dropped, second.num_dropped) == ((), 0, 0)


def test_annotation_order_and_expression_reveal_nothing() -> None:
    answers = {
        detect_sample(coco.create_coco({}).bind(_dataset(order)), _sample("a", expression))
        for order in permutations(_OBJECTS)
        for expression in ("the mug", "the table")
    }
    assert len(answers) == 1


def test_identity_follows_the_annotations() -> None:
    other = Dataset("mine", "val", [], "other", {})
    assert coco.create_coco({}).bind(_dataset()).identity() == {"detector": "coco", "annotations": "digest"}
    assert coco.create_coco({}).bind(other).identity() != coco.create_coco({}).bind(_dataset()).identity()


def test_unknown_images_are_all_named() -> None:
    with pytest.raises(DataError, match=r"(?s)2 problems.*image x is not.*image y is not"):
        coco.create_coco({}).bind(_dataset()).detect([Question(_sample(image_id), "image") for image_id in "xayx"], {})


def test_a_data_set_without_objects_is_refused() -> None:
    with pytest.raises(DataError, match="data set mine has no annotated objects"):
        coco.create_coco({}).bind(Dataset("mine", "val", [], "digest"))


def test_settings_are_refused() -> None:
    with pytest.raises(RecipeError, match="unknown key 'threshold'"):
        coco.create_coco({"threshold": 0.3}).bind(_dataset())


# --- coco-degraded ---

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


def build_degraded(**settings: Any) -> CocoDegradedDetector:
    return create_coco_degraded(settings).bind(dataset())


def answers(detector: CocoDegradedDetector) -> list[Any]:
    return [detect_sample(detector, each) for each in dataset().samples]


def test_labels_are_super_categories_and_there_are_no_scores() -> None:
    found = [item for answer in answers(build_degraded()) for item in answer.items]
    assert {item.label for item in found} == {"vehicle", "animal"}
    assert {(item.score, item.source) for item in found} == {(None, "annotation")}


def test_objects_are_dropped_and_moved_as_often_and_as_far_as_the_settings_say() -> None:
    found = answers(build_degraded(jitter=0.1, drop=0.2))
    share = sum(len(answer.items) + answer.num_dropped for answer in found) / (3 * len(found))
    assert 0.75 < share < 0.85
    (dog,) = [one for one in OBJECTS if one.label == "dog"]
    boxes = [item.box for answer in found for item in answer.items if item.label == "animal"]
    moves = np.array([box.xyxy for box in boxes]) - dog.box.xyxy
    np.testing.assert_allclose(moves.std(axis=0), [4, 7, 4, 7], rtol=0.2)
    assert 0.6 < np.mean([iou(box, dog.box) for box in boxes]) < 0.95


def test_without_jitter_and_drop_only_the_labels_are_coarse() -> None:
    for answer in answers(build_degraded(jitter=0, drop=0)):
        assert [(item.box, item.label) for item in answer.items] == [
            (OBJECTS[1].box, "vehicle"),
            (OBJECTS[0].box, "vehicle"),
            (OBJECTS[2].box, "animal"),
        ]


def test_answers_depend_on_seed_image_and_boxes_alone() -> None:
    first = answers(build_degraded())
    assert answers(build_degraded()) == first
    assert answers(build_degraded(seed=1)) != first
    assert len(set(first)) > 250
    few = create_coco_degraded({}).bind(dataset(count=3))
    assert [detect_sample(few, sample(str(number), "another")) for number in range(3)] == first[:3]
    for order in permutations(OBJECTS):
        assert detect_sample(create_coco_degraded({}).bind(dataset(list(order), count=1)), sample("0")) == first[0]


def test_the_largest_box_as_given_comes_first() -> None:
    for answer in answers(build_degraded(jitter=0.4)):
        areas = [item.box.area for item in answer.items]
        assert areas == sorted(areas, reverse=True)


def test_boxes_that_are_turned_over_are_counted_as_dropped() -> None:
    found = answers(build_degraded(jitter=0.5, drop=0))
    assert sum(answer.num_dropped for answer in found) > 0
    assert {len(answer.items) + answer.num_dropped for answer in found} == {3}


def test_degraded_identity_has_annotations_and_settings() -> None:
    assert build_degraded().identity() == {
        "detector": "coco-degraded", "revision": 1, "annotations": "digest", "jitter": 0.1, "drop": 0.15, "seed": 0,
    }  # fmt: skip
    assert build_degraded(seed=2).identity() != build_degraded().identity()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"jitter": -0.1, "drop": 1}, r"(?s)2 problems.*jitter.*drop", id="out-of-range"),
        pytest.param({"drops": 0.1}, "unknown key 'drops'", id="unknown"),
        pytest.param({"seed": "x"}, "seed", id="no-number"),
    ],
)
def test_degraded_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_degraded(**settings)


def test_categories_without_super_categories_are_refused() -> None:
    with pytest.raises(DataError, match=r"(?s)have no super-category.*car"):
        create_coco_degraded({}).bind(dataset([AnnotatedObject(Box(0, 0, 1, 1), "car", "1")]))
