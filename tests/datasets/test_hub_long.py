"""HC-RefLoCo and Ref-L4, on copies of the rows that their cards show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.datasets import Dataset
from llm_wrapper.datasets.long_expressions import load_hc_refloco, load_ref_l4
from llm_wrapper.errors import DataError
from llm_wrapper.records import Box
from tests.datasets.replicas import HC_REFLOCO, REF_L4, Row, hc_refloco_row, ref_l4_row, write_parquet


def hc_refloco(root: Path, *rows: Row, split: str = "val", **settings: Any) -> Dataset:
    write_parquet(root / f"hc_refloco_{split}.parquet", rows, HC_REFLOCO)
    return load_hc_refloco(root, split, repo="Jinjing713/HC-RefLoCo@abc", **settings)


def ref_l4(root: Path, *rows: Row, split: str = "val", **settings: Any) -> Dataset:
    write_parquet(root / f"ref-l4-{split}.parquet", rows, REF_L4)
    return load_ref_l4(root, split, repo="JierunChen/Ref-L4@abc", **settings)


def test_the_row_of_the_hc_refloco_card(tmp_path: Path) -> None:
    dataset = hc_refloco(tmp_path, hc_refloco_row(0, "val"))
    (sample,) = dataset.samples
    assert (dataset.name, dataset.split, dataset.objects) == ("HC-RefLoCo", "val", None)
    assert (sample.sample_id, sample.image_id, sample.image_wh) == ("0000000", "2685", (640, 555))
    assert sample.target == Box(315.54, 56.12, 315.54 + 323.02, 56.12 + 384.14)
    assert sample.expression.startswith("The individual in question")
    assert (sample.kind, sample.image_path) == ("Appearance + Position", None)


def test_the_row_of_the_ref_l4_card(tmp_path: Path) -> None:
    dataset = ref_l4(tmp_path, ref_l4_row(1, "val"))
    (sample,) = dataset.samples
    assert (dataset.name, dataset.split) == ("Ref-L4", "val")
    assert (sample.sample_id, sample.ref_id, sample.image_id) == ("1", "o365_527361", "o365_922765")
    assert sample.image_wh == (1024, 741)
    assert sample.target is not None
    assert sample.target.xyxy == pytest.approx((580.6163, 179.4965, 674.2156, 291.5979), abs=1e-4)
    assert (sample.kind, sample.image_path) == ("o365_64", None)


def test_expressions_about_one_box_are_of_one_ref(tmp_path: Path) -> None:
    rows = [hc_refloco_row(0, "val"), hc_refloco_row(1, "val", caption="rewritten", is_rewrite=True)]
    rows.append(hc_refloco_row(2, "val", bbox=[315.54, 56.12, 323.02, 300.0]))
    first, second, other = hc_refloco(tmp_path, *rows).samples
    assert first.ref_id == second.ref_id != other.ref_id


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"source_dataset": "coco2017", "file_name": "000000002685.jpg"}, "2685"),
        ({"source_dataset": "openimages", "file_name": "000000002685.jpg"}, "000000002685.jpg"),
        ({"source_dataset": "coco2017", "file_name": "a/b.jpg"}, "a/b.jpg"),
        ({"source_dataset": None, "file_name": "12.jpg"}, "12.jpg"),
    ],
    ids=["coco", "other source", "other name", "no source"],
)
def test_images_of_coco_have_their_coco_number(tmp_path: Path, changes: Row, expected: str) -> None:
    assert hc_refloco(tmp_path, hc_refloco_row(0, "val", **changes)).samples[0].image_id == expected


def test_ref_l4_images_of_coco_have_their_coco_number(tmp_path: Path) -> None:
    row = ref_l4_row(0, "val", image_id="coco_128974", file_name="COCO_train2014_000000128974.jpg")
    assert ref_l4(tmp_path, row).samples[0].image_id == "128974"


@pytest.mark.parametrize("labels", [None, []], ids=["null", "none"])
def test_without_labels_there_is_no_kind(tmp_path: Path, labels: Any) -> None:
    assert hc_refloco(tmp_path, hc_refloco_row(0, "val", labels=labels)).samples[0].kind is None


def test_images_lie_in_the_unpacked_archive(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert ref_l4(tmp_path, ref_l4_row(0, "val")).samples[0].image_path == str(
        tmp_path / "images" / "objects365_v2_00922765.jpg"
    )


def test_all_is_val_and_test(tmp_path: Path) -> None:
    test = ref_l4(tmp_path, ref_l4_row(2, "test"), ref_l4_row(1, "test"), split="test")
    val = ref_l4(tmp_path, ref_l4_row(0, "val"))
    both = load_ref_l4(tmp_path, "all", repo="JierunChen/Ref-L4")
    assert [*val.samples, *test.samples] == list(both.samples)
    assert len({val.digest, test.digest, both.digest}) == 3
    with pytest.raises(DataError, match=r"no split 'train'\. Its splits are: test, val"):
        load_ref_l4(tmp_path, "train", repo="JierunChen/Ref-L4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": None}, "id: "),
        ({"caption": None}, "caption: "),
        ({"caption": " \t"}, "the expression of sample 1 is empty"),
        ({"width": 0}, "width: must be greater than 0, got 0"),
        ({"height": None}, "height: "),
        ({"file_name": None}, "file_name: "),
        ({"bbox_id": None}, "bbox_id: "),
        ({"bbox": []}, "bbox: must have at least 4 items, has 0"),
        ({"bbox": [580.6, float("nan"), 93.6, 112.1]}, "box .* not finite"),
        ({"bbox": [580.6, 179.5, -93.6, 112.1]}, "reversed or has no area"),
        ({"split": "test"}, "the row is of split 'test', the file of 'val'"),
        ({"id": 0}, "the id 0 was used for a sample of ref-l4-val.parquet row 0 already"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_row_is_named_with_its_file(tmp_path: Path, changes: Row, message: str) -> None:
    with pytest.raises(DataError, match=rf"ref-l4-val\.parquet row 1: .*{message}"):
        ref_l4(tmp_path, ref_l4_row(0, "val"), {**ref_l4_row(1, "val"), **changes})


def test_newlines_stay(tmp_path: Path) -> None:
    assert ref_l4(tmp_path, ref_l4_row(0, "val", caption="a\nb\u2028c")).samples[0].expression == "a\nb\u2028c"


def test_boxes_in_the_other_convention_are_refused_as_a_whole(tmp_path: Path) -> None:
    rows = [ref_l4_row(number, "val", bbox=[580.6 + number, 179.5, 674.2, 641.6]) for number in range(3)]
    with pytest.raises(DataError, match=r"3 of 3 boxes read as xywh are reversed or outside .* xyxy .*Nothing"):
        ref_l4(tmp_path, *rows)


def test_an_older_revision_without_ids_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "ref-l4-val.parquet", [ref_l4_row(0, "val")], REF_L4, drop="id")
    with pytest.raises(DataError, match=r"ref-l4-val\.parquet has no column id; its columns are caption"):
        load_ref_l4(tmp_path, "val", repo="JierunChen/Ref-L4")


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    before = hc_refloco(tmp_path, hc_refloco_row(0, "val")).digest
    assert hc_refloco(tmp_path, hc_refloco_row(0, "val")).digest == before
    assert hc_refloco(tmp_path, hc_refloco_row(0, "val", caption="other")).digest != before
