"""Talk2Car, on commands with the fields of the published files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.datasets import check
from llm_wrapper.datasets.long_expressions import load_talk2car
from llm_wrapper.errors import DataError
from llm_wrapper.records import Box


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


def write(root: Path, *commands: Any, split: str = "val") -> Path:
    (root / "commands").mkdir(exist_ok=True)
    content = {"scene_tokens": ["40516b7f46e548d19dfee580e9a5afa6"], "commands": list(commands)}
    (root / "commands" / f"{split}_commands.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def test_a_command_is_a_sample(tmp_path: Path) -> None:
    dataset = load_talk2car(write(tmp_path, command(0)), "val")
    (sample,) = dataset.samples
    assert (dataset.name, dataset.split, dataset.objects) == ("talk2car", "val", None)
    assert (sample.sample_id, sample.ref_id) == ("token0", "528d43a3efda4f5c9df49bc11cd7e4ba")
    assert (sample.image_id, sample.image_wh) == ("2d4d3768518744a8b785c3fc16d1bff3", (1600, 900))
    assert sample.target == Box(1085, 422, 1599, 788)
    assert (sample.kind, sample.image_path) == ("vehicle.car", None)
    assert sample.expression == "once the light turns green, turn left behind the silver car "


def test_commands_about_one_frame_share_its_first_picture(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write(tmp_path, command(0), command(1), command(2, sample_token="other"))
    samples = load_talk2car(tmp_path, "val").samples
    assert [Path(str(sample.image_path)).name for sample in samples] == ["img_val_0.jpg"] * 2 + ["img_val_2.jpg"]


@pytest.mark.parametrize(
    "changes",
    [{"2d_box": ..., "box_token": ..., "obj_name": ..., "translation": ...}, {"2d_box": None, "box_token": None}],
    ids=["absent", "null"],
)
def test_test_commands_may_have_no_box(tmp_path: Path, changes: dict[str, Any]) -> None:
    (sample,) = load_talk2car(write(tmp_path, command(0, **changes), split="test"), "test").samples
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
        load_talk2car(write(tmp_path, command(0), command(1, **changes)), "val")


def test_all_bad_commands_are_listed_at_once(tmp_path: Path) -> None:
    write(tmp_path, 5, command(1), command(2, command=7), command(3, **{"2d_box": [0, 0, 0, 0]}))
    with pytest.raises(DataError, match=r"used: 3 of 4 rows are unusable \(3 problems\)") as caught:
        load_talk2car(tmp_path, "val")
    assert all(f"command {number}: " in str(caught.value) for number in (0, 2, 3))


def test_boxes_in_the_other_convention_are_refused_as_a_whole(tmp_path: Path) -> None:
    boxes = [[1085, 422, 1599, 788], [847, 448, 883, 483], [0, 470, 388, 806]]
    write(tmp_path, *(command(number, **{"2d_box": box}) for number, box in enumerate(boxes)))
    with pytest.raises(DataError, match=r"3 of 3 boxes read as xywh are reversed or outside .* xyxy .*Nothing"):
        load_talk2car(tmp_path, "val")


@pytest.mark.parametrize("content", ["[]", "{}", '{"commands": []}', '{"commands": 3}'])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    write(tmp_path)
    (tmp_path / "commands" / "val_commands.json").write_text(content)
    with pytest.raises(DataError, match="is no file of Talk2Car commands"):
        load_talk2car(tmp_path, "val")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, command(0)) / "commands" / "val_commands.json"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"val_commands\.json is not valid JSON"):
        load_talk2car(tmp_path, "val")


def test_splits_that_exist_are_named(tmp_path: Path) -> None:
    write(tmp_path, command(0))
    write(tmp_path, command(0), split="train")
    with pytest.raises(DataError, match=r"testA_commands\.json does not exist\. The splits there are: train, val\."):
        load_talk2car(tmp_path, "testA")
    with pytest.raises(DataError, match=r"The splits there are: none\..*clone"):
        load_talk2car(tmp_path / "nowhere", "val")


def test_a_frame_in_two_splits_is_a_leak_whatever_its_files_are_called(tmp_path: Path) -> None:
    write(tmp_path, command(0))
    write(tmp_path, command(1, t2c_img="img_train_8.jpg"), split="train")
    report = check.check_datasets([load_talk2car(tmp_path, split) for split in ("train", "val")])
    assert [finding.count for finding in report.findings if finding.what == "images shared"] == [1]


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    before = load_talk2car(write(tmp_path, command(0)), "val").digest
    assert load_talk2car(write(tmp_path, command(0)), "val").digest == before
    assert load_talk2car(write(tmp_path, command(0, size=[1, 1, 1])), "val").digest != before
