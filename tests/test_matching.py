"""One matcher of images and samples: what names one of the data is found in any spelling, nothing else is."""

from __future__ import annotations

from typing import Any

import pytest

from llm_wrapper.matching import AmbiguousNameError, Matcher, NotInDataError, is_other_data
from llm_wrapper.records import Sample


def sample(image_id: str, path: str | None = None, **fields: Any) -> Sample:
    known = {"sample_id": f"of {image_id}", "ref_id": "r", "expression": "the cat", "target": None}
    return Sample(image_id=image_id, image_path=path, image_wh=(640, 480), **{**known, **fields})


COCO = [sample("380440", "data/train2014/COCO_train2014_000000380440.jpg"), sample("7", "data/train2014/COCO_x.jpg")]
BARE = [sample("380440"), sample("7")]
FOLDERS = [sample(name, f"/photos/{name}") for name in ("job1/0.jpg", "job2/0.jpg", "kitchen/01.JPG")]
PREDICT = [sample("photo", "photo.jpg")]
SPELLINGS = [
    "COCO_train2014_000000380440.jpg",
    "COCO_train2014_000000380440_491042.jpg",
    "COCO_train2014_000000380440_491042",
    "COCO_train2014_000000380440",
    "/data/coco/train2014/COCO_train2014_000000380440.jpg",
    "C:\\coco\\train2014\\COCO_train2014_000000380440.JPG",
    "./train2014/000000380440.jpg",
    "000000380440.jpg",
    "000000380440",
    "380440.jpg",
    "380440",
    "380440.0",
]


@pytest.mark.parametrize("data", [COCO, BARE], ids=["with-files", "without"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_coco_numbers_in_any_spelling(name: str, data: list[Sample]) -> None:
    assert Matcher(data, "mine val").image_of(name) == "380440"


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        pytest.param(FOLDERS, "job1/0.jpg", "job1/0.jpg", id="as-the-data-has-it"),
        pytest.param(FOLDERS, "./job2/0.jpg", "job2/0.jpg", id="dot"),
        pytest.param(FOLDERS, "job2\\0.JPG", "job2/0.jpg", id="other-slash-and-case"),
        pytest.param(FOLDERS, "/elsewhere/job2/0.jpg", "job2/0.jpg", id="longer-path"),
        pytest.param(FOLDERS, "01.jpg", "kitchen/01.JPG", id="tail"),
        pytest.param(FOLDERS, "kitchen/01", "kitchen/01.JPG", id="stem-in-its-folder"),
        pytest.param(FOLDERS, "01", "kitchen/01.JPG", id="stem"),
        pytest.param(FOLDERS, "01.jpeg", "kitchen/01.JPG", id="jpeg"),
        pytest.param(FOLDERS, "1", "kitchen/01.JPG", id="stem-as-number"),
        pytest.param(PREDICT, "imgs/photo.jpg", "photo", id="one-picture-in-another-folder"),
        pytest.param(PREDICT, "photo", "photo", id="one-picture-by-stem"),
        pytest.param([sample("kitchen_01")], "x/kitchen_01.png", "kitchen_01", id="id-is-the-stem"),
        pytest.param([sample("1", "a.jpg"), sample("2", "b.jpg")], "2.0", "2", id="id-as-float"),
        pytest.param([sample("1", "1.jpg"), sample("2", "0001.jpg")], "0001.jpg", "2", id="name-before-number"),
        pytest.param([sample("5", "1.jpg"), sample("2", "0001.jpg")], "1.jpg", "5", id="shorter-name-before-number"),
    ],
)
def test_images_are_found(data: list[Sample], name: str, expected: str) -> None:
    assert Matcher(data, "mine val").image_of(name) == expected


@pytest.mark.parametrize(
    ("data", "name"),
    [
        pytest.param(FOLDERS, "job3/0.jpg", id="another-folder"),
        pytest.param(FOLDERS, "job1/1.jpg", id="another-name"),
        pytest.param(FOLDERS, "job1/0.png", id="another-ending"),
        pytest.param(FOLDERS, "job3/1.jpg", id="another-folder-by-number"),
        pytest.param([sample("7", "a.jpg")], "7.jpg", id="a-file-name-is-no-id"),
        pytest.param(COCO, "COCO_train2014_000000380441.jpg", id="another-number"),
        pytest.param(COCO, "", id="empty"),
    ],
)
def test_other_images_are_not_in_the_data(data: list[Sample], name: str) -> None:
    with pytest.raises(NotInDataError, match="is not in mine val"):
        Matcher(data, "mine val").image_of(name)


def test_a_shared_name_is_ambiguous() -> None:
    with pytest.raises(AmbiguousNameError, match=r"'0\.jpg' is shared by images job1/0\.jpg, job2/0\.jpg: use image"):
        Matcher(FOLDERS, "mine val").image_of("0.jpg")


def test_of_two_spellings_the_nearer_one_is_meant() -> None:
    data = [sample("1", "val/job1/0.jpg")]
    assert Matcher(data, "mine val").image_of("job3/0.jpg") == "1"
    both = Matcher(data, "mine val", spellings=["job1/0.jpg", "job3/0.jpg"])
    assert both.image_of("job1/0.jpg") == "1"
    with pytest.raises(NotInDataError):
        both.image_of("job3/0.jpg")


def test_names_of_data_without_files() -> None:
    matcher = Matcher([sample("5"), sample("6")], "mine val", file_names={"5": "a/kitchen.jpg", "6": "b/kitchen.jpg"})
    assert [matcher.image_of(name) for name in ("a/kitchen.jpg", "x/b/kitchen.jpg", "5")] == ["5", "6", "5"]


WORDED = [
    sample("1", sample_id="08", ref_id="r1", expression="skier in yellow coat"),
    sample("1", sample_id="9", ref_id="r2", expression="the cat"),
    sample("1", sample_id="10", ref_id="r2", expression="the cat."),
    sample("2", sample_id="11", ref_id="r3", expression="man"),
    sample("2", sample_id="12", ref_id="r4", expression="man"),
    sample("3", sample_id="13", ref_id="r5", expression="the only one"),
]


@pytest.mark.parametrize(
    ("name", "expression", "expected"),
    [
        ("1", "skier in yellow coat", ["08"]),
        ("1", "Skier  in yellow coat. ", ["08"]),
        ("1", "the cat", ["9"]),
        ("1", "the cat.", ["10"]),
        ("2", "man", ["11", "12"]),
        ("3", None, ["13"]),
    ],
)
def test_samples_by_image_and_expression(name: str, expression: str | None, expected: list[str]) -> None:
    found = Matcher(WORDED, "mine val").samples_of_image(name, expression)
    assert [each.sample_id for each in found] == expected


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("The cat!", "has several expressions like 'The cat!': use 'sample_id'"),
        ("the cats", "has no expression 'the cats' in mine val; did you mean 'the cat"),
        (None, "alone does not say which of its 3 expressions is meant"),
    ],
)
def test_expressions_that_do_not_say_which_sample(expression: str | None, message: str) -> None:
    with pytest.raises(AmbiguousNameError, match=message):
        Matcher(WORDED, "mine val").samples_of_image("1", expression)


def test_samples_by_id_and_ref() -> None:
    matcher = Matcher(WORDED, "mine val")
    assert [matcher.sample_of(name).sample_id for name in ("08", "8", "9.0")] == ["08", "08", "9"]
    assert matcher.sample_of("08", "Skier in yellow coat.").sample_id == "08"
    assert [each.sample_id for each in matcher.samples_of_ref("r2", "the cat")] == ["9"]
    with pytest.raises(AmbiguousNameError, match="is 'the cat', the prediction is for 'a dog'"):
        matcher.sample_of("9", "a dog")
    for missing in (lambda: matcher.sample_of("99"), lambda: matcher.samples_of_ref("r9", "x")):
        with pytest.raises(NotInDataError, match="is not in mine val"):
            missing()


@pytest.mark.parametrize(
    ("named", "matched", "known", "expected"),
    [(100_000, 1, 1, False), (1, 0, 20, True), (5, 5, 20, False), (3, 1, 2, False), (10_000, 3, 10_000, True),
     (0, 0, 20, False)],
)  # fmt: skip
def test_a_file_for_other_data_names_almost_nothing(named: int, matched: int, known: int, expected: bool) -> None:
    assert is_other_data(named, matched, known) is expected
