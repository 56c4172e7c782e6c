import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llm_wrapper import datasets, images
from llm_wrapper.datasets import check, jsonl
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
    dataset = jsonl.load_jsonl(_write(tmp_path, _ROW), "val")
    (sample,) = dataset.samples
    assert (dataset.name, dataset.split, dataset.objects, dataset.has_splits) == ("mine", "val", None, False)
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
    (sample,) = jsonl.load_jsonl(path, "test", images=tmp_path / "pictures").samples
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
    (sample,) = jsonl.load_jsonl(path, "val", images=kind(tmp_path / "pictures")).samples
    assert (sample.image_path, sample.image_wh) == (str(tmp_path / "pictures" / "a.png"), (100, 50))


def test_the_images_folder_of_a_recipe(tmp_path: Path) -> None:
    path = _write(tmp_path, {**_ROW, "image": "b.png"})
    settings = {"images": str(tmp_path / "pictures")}
    section = DataSection(name="mine", reader="jsonl", root=path, settings=settings)
    with pytest.raises(DataError, match=r"line 1: image .*pictures/b\.png does not exist"):
        datasets.load_dataset(section, "val")
    with pytest.raises(RecipeError, match=r"data\.settings of 'mine' do not fit reader 'jsonl'"):
        datasets.load_dataset(section.model_copy(update={"settings": {"images": 5}}), "val")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ({"box": None}, None),
        ({"bbox_xywh": None}, None),
        ({}, None),
        ({"box": [-5, 2, 130, 40]}, (-5.0, 2.0, 130.0, 40.0)),
    ],
    ids=["box", "xywh", "absent", "partly outside"],
)
def test_no_box_is_none_and_one_partly_outside_is_kept(
    tmp_path: Path, target: dict[str, Any], expected: tuple[float, ...] | None
) -> None:
    row = {"image": "a.png", "expression": "nothing", **target}
    (sample,) = jsonl.load_jsonl(_write(tmp_path, row), "val").samples
    assert (sample.target and sample.target.xyxy) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**_ROW, "expresion": "x"}, "unknown key 'expresion'; the nearest known one is 'expression'"),
        ({**_ROW, "bbox": [1, 2, 3, 4]}, "unknown key 'bbox'; the nearest known one is 'box'"),
        ({"expression": "x"}, "give the image's name once"),
        ({**_ROW, "file_name": "a.png"}, "give the image's name once"),
        ({**_ROW, "bbox_xywh": [1, 2, 3, 4]}, r"give 'box' \(xyxy\) or 'bbox_xywh', not both"),
        ({**_ROW, "width": 5}, "give 'width' and 'height' together"),
        ({**_ROW, "width": "5", "height": 5}, "width: .*got '5'"),
        ({**_ROW, "expression": "  "}, "'expression' is empty"),
        ({**_ROW, "expression": "a" * 10_001}, "'expression' has 10001 characters; 10000 is the most"),
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
        ('{"image": "a.png", "image": "b.png", "expression": "x"}', "key 'image' is given twice in one object"),
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
        jsonl.load_jsonl(_write(tmp_path, _ROW, "", line), "val")


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    lines = [_ROW, "{", {**_ROW, "box": [9, 9, 1, 1]}, {**_ROW, "image": "gone.png"}, {**_ROW, "split": 5}]
    with pytest.raises(DataError) as caught:
        jsonl.load_jsonl(_write(tmp_path, *lines), "val")
    text = str(caught.value)
    assert "(4 problems)" in text
    assert all(f"line {number}" in text for number in (2, 3, 4, 5))


def test_one_image_id_names_one_file(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "b.png")
    rows = [{**_ROW, "image_id": 1}, {**_ROW, "image": "b.png", "box": None, "image_id": 1}]
    with pytest.raises(DataError, match=r"line 2: image_id 1 names b\.png, but a\.png before"):
        jsonl.load_jsonl(_write(tmp_path, *rows), "val")


def test_splits(tmp_path: Path) -> None:
    path = _write(tmp_path, {**_ROW, "split": "train"}, {**_ROW, "split": "val"}, {**_ROW, "split": "train"})
    train = jsonl.load_jsonl(path, "train")
    assert (train.has_splits, [sample.sample_id for sample in train.samples]) == (True, ["1", "3"])
    with pytest.raises(DataError, match=r"no split 'test'\. Its splits are: train, val"):
        jsonl.load_jsonl(path, "test")


def test_a_line_without_a_split_among_others_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: names no split, although other lines do"):
        jsonl.load_jsonl(_write(tmp_path, {**_ROW, "split": "train"}, _ROW), "train")


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        jsonl.load_jsonl(tmp_path / "none.jsonl", "val")
    with pytest.raises(DataError, match="holds no expression"):
        jsonl.load_jsonl(_write(tmp_path, ""), "val")


def test_a_folder_of_images_beside_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "mine.jsonl").write_text('{"image": "a.png", "expression": "the mug"}')
    with pytest.raises(DataError, match=r"lies in .*images: add data\.settings\.images="):
        jsonl.load_jsonl(tmp_path / "mine.jsonl", "val")


@pytest.mark.parametrize("missing", [{}, {"expression": None}], ids=["no-key", "null"])
def test_a_photograph_without_an_expression_is_skipped_and_counted(tmp_path: Path, missing: dict[str, Any]) -> None:
    Image.new("RGB", (100, 50)).save(tmp_path / "b.png")
    path = _write(tmp_path, _ROW, {"image": "b.png", **missing}, {**_ROW, "expression": "the kettle"})
    dataset = jsonl.load_jsonl(path, "val")
    assert [sample.sample_id for sample in dataset.samples] == ["1", "3"]
    assert dataset.skipped == {"line without an expression": ["line 2"]}
    (finding,) = (each for each in check.check_datasets([dataset]).findings if each.what.startswith("skipped"))
    assert "Write their expressions, or accept it" in finding.remedy


@pytest.mark.parametrize(
    ("rows", "settings", "skipped"),
    [
        pytest.param([{"split": "train"}, {"split": "val"}], {}, {"train": 2, "val": 1}, id="no-split-among-others"),
        pytest.param([{}, {"image": "b.png"}], {"val_share": 0.5}, {"train": 1, "val": 0}, id="divided-by-images"),
    ],
)
def test_lines_without_an_expression_change_no_split(
    tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], skipped: dict[str, int]
) -> None:
    for name in ("b.png", "c.png"):
        Image.new("RGB", (100, 50)).save(tmp_path / name)
    labelled = [{**_ROW, **row} for row in rows]
    alone = {split: jsonl.load_jsonl(_write(tmp_path, *labelled), split, **settings).samples for split in skipped}
    more = [{"image": "c.png"}, *([{"image": "c.png", "split": "train"}] if "split" in rows[0] else [])]
    path = _write(tmp_path, *labelled, *more)
    found = {split: jsonl.load_jsonl(path, split, **settings) for split in skipped}
    assert {split: dataset.samples for split, dataset in found.items()} == alone
    assert {split: sum(map(len, dataset.skipped.values())) for split, dataset in found.items()} == skipped


def test_a_file_without_any_expression_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of its 2 lines has an 'expression'\. A right line: "):
        jsonl.load_jsonl(_write(tmp_path, {"image": "a.png"}, {"image": "a.png"}), "val")


def test_objects_from_instances_beside_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path, {**_ROW, "image_id": "mine"}, {**_ROW, "image": "b.jpg", "width": 100, "height": 50})
    before = jsonl.load_jsonl(path, "val").digest
    instances = {
        "images": [{"id": 77, "file_name": "a.png", "width": 100, "height": 50}],
        "annotations": [{"id": 1, "image_id": 77, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 0}],
        "categories": [{"id": 3, "name": "cup"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    dataset = jsonl.load_jsonl(path, "val")
    assert dataset.objects is not None
    assert list(dataset.objects) == ["mine"]
    assert [(found.label, found.box.xyxy) for found in dataset.objects["mine"]] == [("cup", (1.0, 2.0, 4.0, 6.0))]
    assert dataset.digest != before


def test_objects_of_an_ambiguous_name_are_counted_and_not_given_to_both(tmp_path: Path) -> None:
    rows = [{**_ROW, "image": name, **WH} for name in ("job1/0.jpg", "job2/0.jpg", "job2/1.jpg")]
    path = _write(tmp_path, *rows)
    instances = {
        "images": [{"id": place, "file_name": f"{place}.jpg", "width": 640, "height": 480} for place in (0, 1, 2)],
        "annotations": [
            {"id": place, "image_id": place, "category_id": 3, "bbox": [1, 2, 3, 4]} for place in (0, 1, 2)
        ],
        "categories": [{"id": 3, "name": "cup"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    dataset = jsonl.load_jsonl(path, "val")
    assert list(dataset.objects or {}) == ["job2/1.jpg"]
    assert dataset.skipped == {"image of an ambiguous name": ["instances.json 0.jpg"]}


@needs_real_data
def test_real_photographs() -> None:
    folder = Path(_REAL) / "coco_images"
    dataset = jsonl.load_jsonl(folder / "expressions.jsonl", "val", images=folder / "images")
    assert len(dataset.samples) == 43
    assert any(sample.target is None for sample in dataset.samples)
    assert dataset.objects is not None
    assert {sample.image_id for sample in dataset.samples} == set(dataset.objects)
    with_box = [sample for sample in dataset.samples if sample.target is not None]
    assert all(Path(sample.image_path or "").is_file() for sample in dataset.samples)
    labels = {found.label for sample in with_box for found in dataset.objects[sample.image_id]}
    assert "person" in labels


WH = {"width": 640, "height": 480}
PIXELS = [(64.0, 96.0, 256.0, 384.0), (320.0, 48.0, 576.0, 432.0)]
FORMS: dict[str, list[list[float]]] = {
    "xyxy_norm": [[0.1, 0.2, 0.4, 0.8], [0.5, 0.1, 0.9, 0.9]],
    "xywh_norm": [[0.1, 0.2, 0.3, 0.6], [0.5, 0.1, 0.4, 0.8]],
    "cxcywh_norm": [[0.25, 0.5, 0.3, 0.6], [0.7, 0.5, 0.4, 0.8]],
    "xyxy_percent": [[10, 20, 40, 80], [50, 10, 90, 90]],
    "xywh_percent": [[10, 20, 30, 60], [50, 10, 40, 80]],
    "xyxy_1000": [[100, 200, 400, 800], [500, 100, 900, 900]],
    "yxyx_1000": [[200, 100, 800, 400], [100, 500, 900, 900]],
    "xywh": [[64, 96, 192, 288], [320, 48, 256, 384]],
    "yxyx": [[96, 64, 384, 256], [48, 320, 432, 576]],
}
"""Two boxes in some formats."""


def _of_format(folder: Path, name: str, key: str = "box") -> Path:
    rows = [{"image": f"{number}.jpg", "expression": "x", key: box, **WH} for number, box in enumerate(FORMS[name])]
    return _write(folder, *rows)


@pytest.mark.parametrize("name", FORMS)
def test_any_format_of_boxes_can_be_declared(tmp_path: Path, name: str) -> None:
    section = DataSection(name="mine", reader="jsonl", root=_of_format(tmp_path, name), settings={"box_format": name})
    targets = [sample.target for sample in datasets.load_dataset(section, "val").samples]
    assert all(target is not None for target in targets)
    assert [target.xyxy for target in targets if target is not None] == [pytest.approx(box) for box in PIXELS]


@pytest.mark.parametrize(
    ("name", "key", "declared"),
    [
        pytest.param("xyxy_norm", "box", None, id="shares"),
        pytest.param("xywh_norm", "bbox_xywh", None, id="shares of xywh"),
        pytest.param("xyxy_percent", "box", None, id="percent"),
        pytest.param("xywh_percent", "bbox_xywh", None, id="percent of xywh"),
        pytest.param("xyxy_1000", "box", None, id="thousandths"),
        pytest.param("xyxy_1000", "box", "xyxy_norm", id="thousandths declared as shares"),
    ],
)
def test_another_format_is_refused_with_the_setting_that_declares_it(
    tmp_path: Path, name: str, key: str, declared: Any
) -> None:
    path = _of_format(tmp_path, name, key)
    with pytest.raises(DataError, match=rf"mine\.jsonl, split val: {key}: .*{name}.*data\.settings\.box_format=\w+"):
        jsonl.load_jsonl(path, "val", box_format=declared)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"box_format": "xyxy_nrom"},
            r"data\.settings\.box_format='xyxy_nrom'; did you mean 'xyxy_norm'\? \(xyxy, xywh",
        ),
        ({"val_share": 1.5}, r"data\.settings\.val_share=1\.5: give a share of the images between 0 and 1"),
        ({"val_share": "x"}, r"data\.settings\.val_share='x'"),
        ({"val_share": float("nan")}, r"data\.settings\.val_share=nan"),
        ({"split_seed": "x"}, r"data\.settings\.split_seed='x'"),
    ],
    ids=["format", "share", "text", "nan", "seed"],
)
def test_settings_that_have_no_such_value(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        jsonl.load_jsonl(_write(tmp_path, _ROW), "val", **settings)


def test_xywh_by_its_key_is_no_other_layout(tmp_path: Path) -> None:
    path = _of_format(tmp_path, "xywh", "bbox_xywh")
    assert jsonl.load_jsonl(path, "val", box_format="xywh").samples == jsonl.load_jsonl(path, "val").samples
    with pytest.raises(DataError, match=r"line 1 has bbox_xywh, but data\.settings\.box_format=xyxy"):
        jsonl.load_jsonl(path, "val", box_format="xyxy")


@pytest.mark.parametrize("indent", [None, 2], ids=["one line", "indented"])
def test_a_json_list_is_read_as_lines_are(tmp_path: Path, indent: int | None) -> None:
    rows = [_ROW, {**_ROW, "expression": "b"}]
    expected = jsonl.load_jsonl(_write(tmp_path, *rows), "val").samples
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(rows, indent=indent))
    assert jsonl.load_jsonl(path, "val").samples == expected
    path.write_text(json.dumps([_ROW, 7]))
    with pytest.raises(DataError, match=r"item 2: the row: must be an object of keys and values, got 7"):
        jsonl.load_jsonl(path, "val")


_LINE = json.dumps({"image": "a.jpg", "expression": "the café", "box": [1, 2, 30, 40], **WH}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"\xef\xbb\xbf" + _LINE.encode() + b"\r\n", None, id="bom and crlf"),
        pytest.param(_LINE.replace("é", "\u2028").encode(), None, id="line separator"),
        pytest.param(_LINE.encode("utf-16"), r"mine\.jsonl is UTF-16: save it as UTF-8", id="utf16"),
        pytest.param(_LINE.encode("latin-1"), "byte 0xe9 is not UTF-8: save the file as UTF-8", id="latin1"),
        pytest.param(f"\r\r{_LINE}\r".encode(), None, id="cr"),
        pytest.param(
            json.dumps(json.loads(_LINE), indent=1).encode(),
            "is no JSON lines: write each object on one line",
            id="indented",
        ),
    ],
)
def test_encodings_are_read_or_named_in_one_sentence(tmp_path: Path, content: bytes, message: str | None) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    if message is None:
        assert len(jsonl.load_jsonl(path, "val").samples) == 1
        return
    with pytest.raises(DataError, match=message) as caught:
        jsonl.load_jsonl(path, "val")
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    "row",
    [
        {"img_path": "a.jpg", "expression": "left dog", "bbox": [1, 2, 3, 4], "dataset_name": "x", **WH},
        {"image": "a.jpg", "problem": "Find: left dog.", "normal_caption": "left dog", "solution": [1, 2, 3, 4], **WH},
        {"image": "a.jpg", "expression": "green dog", "box": [], **WH},
        {"image": "a.jpg", "expression": "green dog", "box": [0, 0, 0, 0], **WH},
    ],
    ids=["shikra", "vlm-r1", "empty box", "zero box"],
)
def test_other_shapes_are_shown_one_right_line(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        jsonl.load_jsonl(_write(tmp_path, row), "val")
    text = str(caught.value)
    assert f"A right line: {jsonl.EXAMPLE}, with box null where nothing fits" in text
    assert "_Row" not in text
    assert "'width'" not in text
    right = tmp_path / "right.jsonl"
    right.write_text(json.dumps({**json.loads(jsonl.EXAMPLE), **WH}))
    assert len(jsonl.load_jsonl(right, "val").samples) == 1


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "deep/../../a.png", "{outside}/a.png"])
@pytest.mark.parametrize("size", [{}, WH], ids=["read", "written"])
def test_images_outside_their_folder_are_not_read(tmp_path: Path, name: str, size: dict[str, int]) -> None:
    (tmp_path / "data").mkdir()
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    row = {"image": name.format(outside=tmp_path), "expression": "x", **size}
    with pytest.raises(DataError, match=r"line 1: image .* lies outside .*data\.settings\.images="):
        jsonl.load_jsonl(_write(tmp_path / "data", row), "val")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param({"image": "a" * 5000}, "does not exist: correct its name", id="5,000 letters"),
        pytest.param({"image": "a\0b", **WH}, "is no name of a file", id="null"),
        pytest.param(
            {"image": "a.png", "width": 10**30, "height": 5}, "width: must be less than or equal to", id="width"
        ),
        pytest.param({"image": "folder"}, "does not exist", id="folder"),
    ],
)
def test_names_and_sizes_that_nothing_has(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=f"line 1: .*{message}"):
        jsonl.load_jsonl(_write(tmp_path, {"expression": "x", **row}), "val")


def test_an_absolute_name_under_the_named_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = _write(tmp_path / "data", {"image": str(tmp_path / "data" / "a.png"), "expression": "x"})
    assert jsonl.load_jsonl(path, "val").samples[0].image_wh == (100, 50)
    other = path.rename(tmp_path / "mine.jsonl")
    (sample,) = jsonl.load_jsonl(other, "val", images=str(tmp_path / "data")).samples
    assert sample.image_path == str(tmp_path / "data" / "a.png")


def test_a_linked_folder_of_images_is_read(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").mkdir()
    path = _write(tmp_path / "data", {**_ROW, "image": "images/a.png"})
    (tmp_path / "data" / "a.png").rename(tmp_path / "disk" / "a.png")
    (tmp_path / "data" / "images").symlink_to(tmp_path / "disk")
    assert jsonl.load_jsonl(path, "val").samples[0].image_wh == (100, 50)


def test_the_size_of_a_turned_photograph_is_that_of_its_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = _write(tmp_path, {"image": "a.jpg", "expression": "the lower one", "box": [300, 500, 460, 620]})
    Image.new("RGB", (640, 480)).save(tmp_path / "a.jpg", exif=exif)
    (sample,) = jsonl.load_jsonl(path, "val").samples
    assert sample.image_wh == (480, 640)
    assert images.read_sample(sample).size == (480, 640)


@pytest.mark.parametrize(("share", "num_val"), [(0.2, 2), (0.01, 1), (0.99, 9), (0.5, 5)])
def test_images_are_divided_on_request(tmp_path: Path, share: float, num_val: int) -> None:
    names = [f"{'./' if number % 2 else ''}{number // 2}.jpg" for number in range(20)]
    rows = [{"image": name, "expression": name, **WH} for name in names]
    path = _write(tmp_path, *rows, {"image": "./0.jpg", "expression": "again", "image_id": "other name", **WH})
    train, val = (jsonl.load_jsonl(path, split, val_share=share) for split in ("train", "val"))
    assert (train.has_splits, val.has_splits) == (True, True)
    assert len(train.samples) + len(val.samples) == 21
    files = [{os.path.normpath(str(sample.image_path)) for sample in each.samples} for each in (train, val)]
    assert not files[0] & files[1]
    assert len(files[1]) == num_val
    assert jsonl.load_jsonl(path, "val", val_share=share).samples == val.samples
    digests = {jsonl.load_jsonl(path, "val", val_share=share, split_seed=seed).digest for seed in range(3)}
    assert len(digests | {jsonl.load_jsonl(path, "val").digest, val.digest}) == 4


def test_another_seed_draws_other_images(tmp_path: Path) -> None:
    path = _write(tmp_path, *({"image": f"{number}.jpg", "expression": "x", **WH} for number in range(20)))
    drawn = [
        tuple(sample.image_id for sample in jsonl.load_jsonl(path, "val", val_share=0.3, split_seed=seed).samples)
        for seed in range(4)
    ]
    assert len(set(drawn)) == 4


@pytest.mark.parametrize(
    ("rows", "split", "message"),
    [
        (
            [{**_ROW, "split": "train"}, {**_ROW, "split": "val"}],
            "val",
            "line 1 names split 'train', so .*leave it out",
        ),
        ([_ROW, _ROW], "val", r"is about one image, which data\.settings\.val_share=0\.5 cannot divide"),
        (
            [_ROW, {**_ROW, "image": "b.png"}],
            "test",
            r"no split 'test': data\.settings\.val_share=0\.5 makes train and",
        ),
    ],
    ids=["has splits", "one image", "test"],
)
def test_what_cannot_be_divided(tmp_path: Path, rows: list[Any], split: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        jsonl.load_jsonl(_write(tmp_path, *rows), split, val_share=0.5)
