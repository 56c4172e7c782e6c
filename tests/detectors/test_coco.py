from collections.abc import Sequence
from itertools import permutations

import pytest

from llm_wrapper.datasets.base import AnnotatedObject, Dataset
from llm_wrapper.detectors import coco
from llm_wrapper.detectors.base import Question, detect_sample
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
