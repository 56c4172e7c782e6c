"""Which images are not trained on because they are evaluated on, and which must stay although their ids coincide."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper import datasets
from llm_wrapper.datasets import leaks
from llm_wrapper.recipe import DataSection
from tests.datasets import replicas

_REAL = os.environ.get("LLM_WRAPPER_REAL_DATA", "")
BOX = {"box": [1, 2, 30, 40], "width": 100, "height": 50}


def jsonl(path: Path, *rows: tuple[str, str], name: str = "mine", **settings: Any) -> DataSection:
    """Write (image, split) rows; a split that is empty is not written."""
    found = [{"image": image, "expression": "x", **BOX, **({"split": split} if split else {})} for image, split in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return DataSection(name=name, reader="jsonl", root=path, settings=settings)


def refer(root: Path, *refs: tuple[int, str, int], name: str = "refcoco") -> DataSection:
    """Write a REFER set of (number, split, image of the replica) refs."""
    found = [
        {**ref, "split": split, "ref_id": number, "image_id": image, "ann_id": _object_of(image)}
        for (number, split, image), ref in zip(refs, replicas.refs() * 3, strict=False)
    ]
    replicas.write_refer(root, found, name=name)
    settings = {"name": name, "split_by": "unc"}
    return DataSection(name=name, reader="refer", root=root, settings=settings)


def _object_of(image: int) -> int:
    return next(each["id"] for each in replicas.INSTANCES["annotations"] if each["image_id"] == image)


IMAGES = [image["id"] for image in replicas.INSTANCES["images"]]


def left_out(*sections: DataSection) -> list[set[str]]:
    trained = [(section, datasets.load_dataset(section, section.train_split)) for section in sections]
    return [set(ids) for ids in leaks.find_evaluated_images(trained)]


def test_refer_sets_are_compared_with_each_other_and_with_themselves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third, fourth = map(int, IMAGES[:4])
    plain = refer(tmp_path, (1, "train", first), (2, "val", second), (3, "testA", third))
    plus = refer(tmp_path, (1, "train", third), (2, "train", fourth), (3, "testAB", fourth), name="refcoco+")
    with caplog.at_level(logging.INFO):
        assert left_out(plain) == [set()]
        assert caplog.messages == ["no image that is trained on is in an evaluation split (refcoco val, refcoco testA)"]
        caplog.clear()
        assert left_out(plain, plus) == [set(), {str(third), str(fourth)}]
    assert caplog.messages == [
        "refcoco+ train: 1 images are not trained on, because they are in refcoco testA too "
        f"(the same COCO number): {third}",
        "refcoco+ train: 1 images are not trained on, because they are in refcoco+ testAB too "
        f"(the same COCO number): {fourth}",
    ]


def test_readers_that_name_coco_images_know_each_other(tmp_path: Path) -> None:
    train, held_out = IMAGES[:2]
    tree = refer(tmp_path / "refer", (1, "train", train), (2, "train", held_out))
    rows = [{**ref, "split": "val"} for ref in replicas.refs() if ref["image_id"] == held_out]
    assert rows
    hub = {"repo": "jxu124/refcocog"}
    replicas.write_refs(tmp_path / "hub", [*rows, *(ref for ref in replicas.refs() if ref["split"] == "train")])
    copy = DataSection(name="hub", reader="hub_refs", root=tmp_path / "hub", settings=hub)
    mine = jsonl(tmp_path / "mine.jsonl", (f"COCO_train2014_{held_out:012d}.jpg", "train"), ("other.jpg", "train"))
    found = left_out(tree, copy, mine)
    assert str(held_out) in found[0]
    assert found[2] == {f"COCO_train2014_{held_out:012d}.jpg"}


@pytest.mark.parametrize(
    ("name", "is_coco"),
    [
        ("000000380440.jpg", True),
        ("deep/COCO_val2014_000000380440.jpg", True),
        ("240115093012.jpg", False),
        ("380440.jpg", False),
        ("COCO_train2014_000000380440_1.jpg", False),
        ("000000380440.png", False),
    ],
)
def test_coco_files_are_known_by_their_names(name: str, is_coco: bool, tmp_path: Path) -> None:
    one = jsonl(tmp_path / "a" / "x.jsonl", (name, "train"))
    other = jsonl(tmp_path / "b" / "x.jsonl", ("1.jpg", "train"), ("2.jpg", "train"), (name, "val"), name="theirs")
    assert left_out(one, other) == [{name} if is_coco else set(), set()]


def test_ids_that_coincide_name_no_common_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = jsonl(tmp_path / "a" / "x.jsonl", ("images/1.jpg", "train"))
    other = jsonl(tmp_path / "b" / "x.jsonl", ("images/2.jpg", "train"), ("images/1.jpg", "val"), name="theirs")
    with caplog.at_level(logging.INFO):
        assert left_out(one, other) == [set(), set()]
    assert "no image that is trained on is in an evaluation split (theirs val)" in caplog.messages


def test_refclef_has_images_of_its_own(tmp_path: Path) -> None:
    first, second = IMAGES[:2]
    plain = refer(tmp_path, (1, "train", first))
    clef = refer(tmp_path, (1, "train", second), (2, "val", first), name="refclef")
    assert left_out(plain, clef) == [set(), set()]
    clef = refer(tmp_path, (1, "train", first), (2, "val", first), name="refclef")
    assert left_out(plain, clef) == [set(), {str(first)}]


def test_the_same_file_is_the_same_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (tmp_path / "linked").symlink_to(pictures)
    one = jsonl(tmp_path / "x.jsonl", ("pictures/1.jpg", "train"), ("pictures/2.jpg", "train"))
    other = jsonl(
        tmp_path / "y.jsonl", ("3.jpg", "train"), ("1.jpg", "test"), name="y", images=str(tmp_path / "linked")
    )
    assert left_out(one, other) == [{"pictures/1.jpg"}, set()]
    assert "mine train: 1 images are not trained on, because they are in y test too (the same file): pic" in caplog.text


@pytest.mark.parametrize("split", ["val", "test", "testB", "dev"])
def test_splits_of_one_file_share_no_image(split: str, tmp_path: Path) -> None:
    rows = (("1.jpg", "train"), ("2.jpg", "train"), ("2.jpg", split))
    section = jsonl(tmp_path / "x.jsonl", *rows).model_copy(update={"eval_split": "dev"})
    assert left_out(section) == [{"2.jpg"}]


def test_a_split_that_is_trained_on_is_not_held_out(tmp_path: Path) -> None:
    section = jsonl(tmp_path / "x.jsonl", ("1.jpg", "train"), ("2.jpg", "val"), ("1.jpg", "val"))
    both = [section, section.model_copy(update={"name": "more", "train_split": "val"})]
    assert left_out(*both) == [set(), set()]


def test_a_file_without_splits_does_not_leak_into_itself(tmp_path: Path) -> None:
    assert left_out(jsonl(tmp_path / "x.jsonl", ("1.jpg", ""), ("2.jpg", ""))) == [set()]


def test_an_evaluation_split_that_cannot_be_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    section = jsonl(tmp_path / "x.jsonl", ("1.jpg", "train"))
    assert left_out(section) == [set()]
    (record,) = caplog.records
    assert (record.levelname, record.getMessage().partition(":")[0]) == (
        "WARNING",
        "mine val is not compared with the training images",
    )


@pytest.mark.slow
@pytest.mark.skipif(not _REAL, reason="LLM_WRAPPER_REAL_DATA is not set: no real annotations here")
def test_real_sets_are_compared() -> None:
    settings = {
        name: {"name": name, "split_by": split_by} for name, split_by in (("refcocog", "umd"), ("refcoco+", "unc"))
    }
    first, second = (
        DataSection(name=name, reader="refer", root=Path(_REAL) / "refer", settings=settings[name]) for name in settings
    )
    # Trained on its val, RefCOCO+ meets the val of RefCOCOg.
    found = left_out(first, second.model_copy(update={"train_split": "val"}))
    images = [
        {sample.image_id for sample in datasets.load_dataset(section, "val").samples} for section in (first, second)
    ]
    assert found == [set(), images[0] & images[1]]
    assert found[1]


def test_images_that_two_splits_share_are_those_of_the_same_photographs(tmp_path: Path) -> None:
    first, second, third = map(int, IMAGES[:3])
    plain = refer(tmp_path, (1, "train", first), (2, "train", second))
    plus = refer(tmp_path, (1, "val", second), (2, "val", third), name="refcoco+")
    other = jsonl(tmp_path / "mine.jsonl", (f"{second}.jpg", "val"))
    trained = (plain, datasets.load_dataset(plain, "train"))
    assert leaks.find_shared_images((plus, datasets.load_dataset(plus, "val")), trained) == {str(second)}
    assert leaks.find_shared_images((other, datasets.load_dataset(other, "val")), trained) == frozenset()


def sentence(section: DataSection, split: str, *trained: DataSection) -> str | None:
    return leaks.describe_own_training_data((section, datasets.load_dataset(section, split)), trained)


def test_a_file_without_splits_is_its_own_training_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    section = jsonl(tmp_path / "x.jsonl", ("1.jpg", ""), ("2.jpg", ""), ("2.jpg", ""))
    assert sentence(section, "val") is None
    expected = "evaluated on its own training data: 2 of 2 images of mine val were trained on"
    assert sentence(section, "val", section) == expected
    with caplog.at_level(logging.WARNING):
        assert left_out(section) == [set()]
    assert "mine: " in caplog.text
    assert "names no split" in caplog.text
    assert "data.settings.val_share=0.2" in caplog.text


@pytest.mark.parametrize(
    ("trained", "evaluated", "split", "expected"),
    [
        pytest.param({"val_share": 0.4}, {"val_share": 0.4}, "val", None, id="divided"),
        pytest.param(
            {"val_share": 0.4}, {"val_share": 0.4}, "train", "3 of 3 images of mine train", id="training-split"
        ),
        pytest.param({}, {"val_share": 0.4}, "val", "2 of 2 images of mine val", id="divided-after-training"),
        pytest.param({"val_share": 0.4}, {}, "val", "3 of 5 images of mine val", id="whole-file-after-training"),
        pytest.param({"val_share": 0.4}, {"val_share": 0.4, "split_seed": 7}, "val", " of 2 images", id="another-seed"),
    ],
)
def test_results_on_divided_files(
    tmp_path: Path, trained: dict[str, Any], evaluated: dict[str, Any], split: str, expected: str | None
) -> None:
    section = jsonl(tmp_path / "x.jsonl", *((f"{number}.jpg", "") for number in range(5)), **trained)
    other = section.model_copy(update={"settings": evaluated})
    found = sentence(other, split, section)
    assert found is None if expected is None else expected in str(found)


def test_held_out_splits_of_published_sets_are_not_named(tmp_path: Path) -> None:
    first, second = map(int, IMAGES[:2])
    plain = refer(tmp_path, (1, "train", first), (2, "val", second), (3, "testA", first))
    plus = refer(tmp_path, (1, "train", second), (2, "val", first), name="refcoco+")
    own = "evaluated on its own training data: 1 of 1 images of"
    assert sentence(plain, "val", plain) is None
    assert sentence(plain, "testA", plain) is None
    assert sentence(plain, "train", plain) == f"{own} refcoco train were trained on"
    assert sentence(plus, "val", plain) == f"{own} refcoco+ val were trained on"


def test_training_data_that_is_gone_leaves_a_doubt(tmp_path: Path) -> None:
    section = jsonl(tmp_path / "x.jsonl", ("1.jpg", "train"), ("2.jpg", "val"))
    gone = section.model_copy(update={"root": tmp_path / "gone.jsonl"})
    assert "perhaps evaluated on its own training data" in str(sentence(section, "val", gone))
