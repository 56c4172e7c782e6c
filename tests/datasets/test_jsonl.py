import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llm_wrapper import datasets
from llm_wrapper.datasets import jsonl
from llm_wrapper.errors import DataError, RecipeError
from llm_wrapper.recipe import DataSection

_REAL = os.environ.get("LLM_WRAPPER_REAL_DATA", "")
needs_real_data = pytest.mark.skipif(not _REAL, reason="LLM_WRAPPER_REAL_DATA is not set: no real photographs here")

_ROW = {"image": "a.png", "expression": "the mug", "box": [1, 2, 30, 40]}


def _write(folder: Path, *lines: Any) -> Path:
    Image.new("RGB", (100, 50)).save(folder / "a.png")
    path = folder / "mine.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


def test_defaults(tmp_path: Path) -> None:
    dataset = jsonl.load(_write(tmp_path, _ROW), "val")
    (sample,) = dataset.samples
    assert (dataset.name, dataset.split, dataset.objects) == ("mine", "val", None)
    assert (sample.sample_id, sample.ref_id, sample.image_id) == ("1", "1", "a.png")
    assert (sample.image_path, sample.image_wh, sample.kind) == (str(tmp_path / "a.png"), (100, 50), None)
    assert sample.target is not None
    assert sample.target.xyxy == (1.0, 2.0, 30.0, 40.0)


def test_everything_given_needs_no_image_file(tmp_path: Path) -> None:
    row = {
        **{
            "file_name": "deep/b.jpg",
            "expression": " Le café\u2028rouge ",
            "bbox_xywh": [1.5, 2, 3, 4],
            "sample_id": 7,
        },
        **{"ref_id": "r", "image_id": 5, "split": "test", "width": 10, "height": 20, "kind": "colour", "source": "me"},
    }
    path = _write(tmp_path, json.dumps(row, ensure_ascii=False), "")
    (sample,) = jsonl.load(path, "test", images=tmp_path / "pictures").samples
    assert (sample.sample_id, sample.ref_id, sample.image_id, sample.kind) == ("7", "r", "5", "colour")
    assert (sample.image_wh, sample.expression) == ((10, 20), " Le café\u2028rouge ")
    assert sample.image_path == str(tmp_path / "pictures" / "deep" / "b.jpg")
    assert sample.target is not None
    assert sample.target.xyxy == (1.5, 2.0, 4.5, 6.0)


@pytest.mark.parametrize("kind", [str, Path])
def test_the_images_folder_may_be_text(kind: type[str | Path], tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    path = _write(tmp_path, _ROW).rename(tmp_path / "here.jsonl")
    (tmp_path / "a.png").rename(tmp_path / "pictures" / "a.png")
    (sample,) = jsonl.load(path, "val", images=kind(tmp_path / "pictures")).samples
    assert (sample.image_path, sample.image_wh) == (str(tmp_path / "pictures" / "a.png"), (100, 50))


def test_the_images_folder_of_a_recipe(tmp_path: Path) -> None:
    path = _write(tmp_path, {**_ROW, "image": "b.png"})
    settings = {"images": str(tmp_path / "pictures")}
    section = DataSection(name="mine", reader="jsonl", root=path, settings=settings)
    with pytest.raises(DataError, match=r"line 1: image .*pictures/b\.png does not exist"):
        datasets.load(section, "val")
    with pytest.raises(RecipeError, match=r"data\.settings of 'mine' do not fit reader 'jsonl'"):
        datasets.load(section.model_copy(update={"settings": {"images": 5}}), "val")


@pytest.mark.parametrize("missing", [{"box": None}, {"bbox_xywh": None}, {}], ids=["box", "xywh", "absent"])
def test_no_box_is_none(tmp_path: Path, missing: dict[str, None]) -> None:
    row = {"image": "a.png", "expression": "nothing", **missing}
    assert jsonl.load(_write(tmp_path, row), "val").samples[0].target is None


def test_a_box_partly_outside_is_kept(tmp_path: Path) -> None:
    (sample,) = jsonl.load(_write(tmp_path, {**_ROW, "box": [-5, 2, 130, 40]}), "val").samples
    assert sample.target is not None
    assert sample.target.xyxy == (-5.0, 2.0, 130.0, 40.0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**_ROW, "expresion": "x"}, "unknown key 'expresion'; the nearest known one is 'expression'"),
        ({**_ROW, "bbox": [1, 2, 3, 4]}, "unknown key 'bbox'; the nearest known one is 'box'"),
        ({"image": "a.png"}, "key 'expression' is missing"),
        ({"expression": "x"}, "give the image's name once"),
        ({**_ROW, "file_name": "a.png"}, "give the image's name once"),
        ({**_ROW, "bbox_xywh": [1, 2, 3, 4]}, r"give 'box' \(xyxy\) or 'bbox_xywh', not both"),
        ({**_ROW, "width": 5}, "give 'width' and 'height' together"),
        ({**_ROW, "width": "5", "height": 5}, "width: .*got '5'"),
        ({**_ROW, "expression": "  "}, "'expression' is empty"),
        ({**_ROW, "expression": 5}, "expression: .*got 5"),
        ({**_ROW, "box": [1, 2, 3]}, r"box must be four numbers or null where nothing fits, got \[1, 2, 3\]"),
        ({**_ROW, "box": [1, 2, "3", 4]}, r"box must be four numbers .*, got \[1, 2, '3', 4\]"),
        ({**_ROW, "box": []}, r"box must be four numbers or null where nothing fits, got \[\]"),
        ({**_ROW, "box": [0, 0, 0, 0]}, r"box is \[0, 0, 0, 0\]: write null where nothing fits"),
        ({**_ROW, "box": [[1, 2, 30, 40], [2, 3, 4, 5]]}, "box must be four numbers, of one object a line, or null"),
        ({**_ROW, "img_path": "a.png"}, r"unknown key .img_path. \(known: image, file_name, expression, box"),
        ({**_ROW, "license": "cc-by"}, r"unknown key .license. \(known: "),
        ({**_ROW, "expression": "\u200b\u3164 "}, "'expression' is empty: nothing of .* can be seen"),
        ({**_ROW, "width": 50, "height": 100}, "a.png is 50 x 100, but 100 x 50 in a line before"),
        ('{"image": "a.png", "image": "b.png", "expression": "x"}', "key 'image' stands twice in one object"),
        ({**_ROW, "box": [float("nan"), 2, 3, 4]}, "box .*not finite"),
        ({**_ROW, "box": [30, 2, 3, 40]}, "box .* reversed or has no area"),
        ({**_ROW, "box": [3, 2, 3, 40]}, "box .* reversed or has no area"),
        ({**_ROW, "box": [100, 2, 130, 40]}, r"box .* lies outside its image, which is \(100, 50\)"),
        ({**_ROW, "image": "b.png"}, "image .*b.png does not exist"),
        ({**_ROW, "image": "mine.jsonl"}, ".*mine.jsonl cannot be read as an image: its content is none of"),
        ({**_ROW, "image_id": None, "image": "."}, "image .* does not exist"),
        ("{", "is not valid JSON"),
        ("[1]", "the row: must be an object of keys and values, got \\[1\\]"),
    ],
)
def test_damaged_lines_are_named(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"line 3:? .*{message}"):
        jsonl.load(_write(tmp_path, _ROW, "", line), "val")


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    lines = [_ROW, "{", {**_ROW, "box": [9, 9, 1, 1]}, {**_ROW, "image": "gone.png"}, {"image": "a.png"}]
    with pytest.raises(DataError) as caught:
        jsonl.load(_write(tmp_path, *lines), "val")
    text = str(caught.value)
    assert "(4 problems)" in text
    assert all(f"line {number}" in text for number in (2, 3, 4, 5))


def test_one_image_id_names_one_file(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "b.png")
    rows = [{**_ROW, "image_id": 1}, {**_ROW, "image": "b.png", "box": None, "image_id": 1}]
    with pytest.raises(DataError, match=r"line 2: image_id 1 names b\.png, but a\.png before"):
        jsonl.load(_write(tmp_path, *rows), "val")


def test_splits(tmp_path: Path) -> None:
    path = _write(tmp_path, {**_ROW, "split": "train"}, {**_ROW, "split": "val"}, {**_ROW, "split": "train"})
    assert [sample.sample_id for sample in jsonl.load(path, "train").samples] == ["1", "3"]
    with pytest.raises(DataError, match=r"no split 'test'\. Its splits are: train, val"):
        jsonl.load(path, "test")


def test_a_line_without_a_split_among_others_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: names no split, although other lines do"):
        jsonl.load(_write(tmp_path, {**_ROW, "split": "train"}, _ROW), "train")


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        jsonl.load(tmp_path / "none.jsonl", "val")
    with pytest.raises(DataError, match="holds no expression"):
        jsonl.load(_write(tmp_path, ""), "val")


def test_objects_from_instances_beside_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path, {**_ROW, "image_id": "mine"}, {**_ROW, "image": "b.jpg", "width": 100, "height": 50})
    before = jsonl.load(path, "val").digest
    instances = {
        "images": [{"id": 77, "file_name": "a.png", "width": 100, "height": 50}],
        "annotations": [{"id": 1, "image_id": 77, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 0}],
        "categories": [{"id": 3, "name": "cup"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    dataset = jsonl.load(path, "val")
    assert dataset.objects is not None
    assert list(dataset.objects) == ["mine"]
    assert [(found.label, found.box.xyxy) for found in dataset.objects["mine"]] == [("cup", (1.0, 2.0, 4.0, 6.0))]
    assert dataset.digest != before


@needs_real_data
def test_real_photographs() -> None:
    folder = Path(_REAL) / "coco_images"
    dataset = jsonl.load(folder / "expressions.jsonl", "val", images=folder / "images")
    assert len(dataset.samples) == 43
    assert any(sample.target is None for sample in dataset.samples)
    assert dataset.objects is not None
    assert {sample.image_id for sample in dataset.samples} == set(dataset.objects)
    with_box = [sample for sample in dataset.samples if sample.target is not None]
    assert all(Path(sample.image_path or "").is_file() for sample in dataset.samples)
    labels = {found.label for sample in with_box for found in dataset.objects[sample.image_id]}
    assert "person" in labels
