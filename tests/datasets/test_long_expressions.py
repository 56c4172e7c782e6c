"""HC-RefLoCo, Ref-L4 and Talk2Car, on rows with the fields of the published files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.datasets import Dataset, check
from llm_wrapper.datasets.long_expressions import load_hc_refloco, load_ref_l4, load_talk2car
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
        ({"source_dataset": None, "file_name": "12.jpg", "labels": None}, "12.jpg"),
        ({"source_dataset": None, "file_name": "12.jpg", "labels": []}, "12.jpg"),
    ],
    ids=["coco", "other source", "other name", "no source, labels null", "no source, no labels"],
)
def test_images_of_coco_have_their_coco_number(tmp_path: Path, changes: Row, expected: str) -> None:
    (sample,) = hc_refloco(tmp_path, hc_refloco_row(0, "val", **changes)).samples
    assert sample.image_id == expected
    assert (sample.kind is None) == ("labels" in changes)


def test_ref_l4_images_of_coco_have_their_coco_number(tmp_path: Path) -> None:
    row = ref_l4_row(0, "val", image_id="coco_128974", file_name="COCO_train2014_000000128974.jpg")
    assert ref_l4(tmp_path, row).samples[0].image_id == "128974"


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


def command(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "scene_token": "40516b7f46e548d19dfee580e9a5afa6",
        "sample_token": "2d4d3768518744a8b785c3fc16d1bff3",
        "translation": [-12.975481818041906, 1.3599924571610564, 34.61245070410038],
        "size": [1.906, 4.742, 2.0],
        "rotation": ["-0.13194524184049405", "-0.1456783074380577", "-0.6872109318289954", "0.6993635814598584"],
        "command": "once the light turns green, turn left behind the silver car ",
        "obj_name": "vehicle.car",
        "box_token": "528d43a3efda4f5c9df49bc11cd7e4ba",
        "command_token": f"token{number}",
        "2d_box": [1085, 422, 514, 366],
        "t2c_img": f"img_val_{number}.jpg",
    }
    return {key: value for key, value in {**row, **changes}.items() if value is not ...}


def write_commands(root: Path, *commands: Any, split: str = "val") -> Path:
    (root / "commands").mkdir(exist_ok=True)
    content = {"scene_tokens": ["40516b7f46e548d19dfee580e9a5afa6"], "commands": list(commands)}
    (root / "commands" / f"{split}_commands.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def test_a_command_is_a_sample(tmp_path: Path) -> None:
    dataset = load_talk2car(write_commands(tmp_path, command(0)), "val")
    (sample,) = dataset.samples
    assert (dataset.name, dataset.split, dataset.objects) == ("talk2car", "val", None)
    assert (sample.sample_id, sample.ref_id) == ("token0", "528d43a3efda4f5c9df49bc11cd7e4ba")
    assert (sample.image_id, sample.image_wh) == ("2d4d3768518744a8b785c3fc16d1bff3", (1600, 900))
    assert sample.target == Box(1085, 422, 1599, 788)
    assert (sample.kind, sample.image_path) == ("vehicle.car", None)
    assert sample.expression == "once the light turns green, turn left behind the silver car "


def test_commands_about_one_frame_share_its_first_picture(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write_commands(tmp_path, command(0), command(1), command(2, sample_token="other"))
    samples = load_talk2car(tmp_path, "val").samples
    assert [Path(str(sample.image_path)).name for sample in samples] == ["img_val_0.jpg"] * 2 + ["img_val_2.jpg"]


@pytest.mark.parametrize(
    "changes",
    [{"2d_box": ..., "box_token": ..., "obj_name": ..., "translation": ...}, {"2d_box": None, "box_token": None}],
    ids=["absent", "null"],
)
def test_test_commands_may_have_no_box(tmp_path: Path, changes: dict[str, Any]) -> None:
    (sample,) = load_talk2car(write_commands(tmp_path, command(0, **changes), split="test"), "test").samples
    assert (sample.target, sample.ref_id) == (None, "token0")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"command": ...}, "key 'command' is missing"),
        ({"command": " \n "}, "the expression of sample token1 is empty"),
        ({"command_token": ...}, "key 'command_token' is missing"),
        ({"command_token": "token0"}, "the id token0 was used for a sample of command 0 already"),
        ({"sample_token": None}, "sample_token: "),
        ({"t2c_img": 7}, "t2c_img: .*got 7"),
        ({"2d_box": [1, 2, 3]}, "2d_box: must have at least 4 items, has 3"),
        ({"2d_box": ["1", 2, 3, 4]}, r"2d_box\[0\]: .*got '1'"),
        ({"2d_box": [float("nan"), 2, 3, 4]}, "box .* not finite"),
        ({"2d_box": [800, 400, 0, 4]}, "reversed or has no area"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_command_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"command 1: .*{message}"):
        load_talk2car(write_commands(tmp_path, command(0), command(1, **changes)), "val")


def test_all_bad_commands_are_listed_at_once(tmp_path: Path) -> None:
    write_commands(tmp_path, 5, command(1), command(2, command=7), command(3, **{"2d_box": [0, 0, 0, 0]}))
    with pytest.raises(DataError, match=r"used: 3 of 4 rows are unusable \(3 problems\)") as caught:
        load_talk2car(tmp_path, "val")
    assert all(f"command {number}: " in str(caught.value) for number in (0, 2, 3))


def test_commands_with_xyxy_boxes_are_refused_as_a_whole(tmp_path: Path) -> None:
    boxes = [[1085, 422, 1599, 788], [847, 448, 883, 483], [0, 470, 388, 806]]
    write_commands(tmp_path, *(command(number, **{"2d_box": box}) for number, box in enumerate(boxes)))
    with pytest.raises(DataError, match=r"3 of 3 boxes read as xywh are reversed or outside .* xyxy .*Nothing"):
        load_talk2car(tmp_path, "val")


@pytest.mark.parametrize("content", ["[]", "{}", '{"commands": []}', '{"commands": 3}'])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    write_commands(tmp_path)
    (tmp_path / "commands" / "val_commands.json").write_text(content)
    with pytest.raises(DataError, match="is no file of Talk2Car commands"):
        load_talk2car(tmp_path, "val")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = write_commands(tmp_path, command(0)) / "commands" / "val_commands.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"val_commands\.json is not valid JSON"):
        load_talk2car(tmp_path, "val")


def test_splits_that_exist_are_named(tmp_path: Path) -> None:
    write_commands(tmp_path, command(0))
    write_commands(tmp_path, command(0), split="train")
    with pytest.raises(DataError, match=r"testA_commands\.json does not exist\. The splits there are: train, val\."):
        load_talk2car(tmp_path, "testA")
    with pytest.raises(DataError, match=r"The splits there are: none\..*clone"):
        load_talk2car(tmp_path / "nowhere", "val")


def test_a_frame_in_two_splits_is_a_leak_whatever_its_files_are_called(tmp_path: Path) -> None:
    write_commands(tmp_path, command(0))
    write_commands(tmp_path, command(1, t2c_img="img_train_8.jpg"), split="train")
    report = check.check_datasets([load_talk2car(tmp_path, split) for split in ("train", "val")])
    assert [finding.count for finding in report.findings if finding.what == "images shared"] == [1]


def test_the_digest_follows_the_commands(tmp_path: Path) -> None:
    before = load_talk2car(write_commands(tmp_path, command(0)), "val").digest
    assert load_talk2car(write_commands(tmp_path, command(0)), "val").digest == before
    assert load_talk2car(write_commands(tmp_path, command(0, size=[1, 1, 1])), "val").digest != before
