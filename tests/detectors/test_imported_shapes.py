"""Files of detections that people have: all are read, what they lack is counted, what they contradict refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detectors import detect_sample, imported
from llm_wrapper.errors import DataError
from llm_wrapper.records import Box, Sample

WIDE = (640, 480)
LEFT, RIGHT = (64.0, 96.0, 256.0, 384.0), (320.0, 48.0, 576.0, 432.0)
LEFT_XYWH, RIGHT_XYWH = [64, 96, 192, 288], [320, 48, 256, 384]
SKIERS = [[374.3, 65.0, 136.0, 202.0], [229.0, 41.4, 142.0, 270.4]]
SKIERS_XYXY = [pytest.approx((374.3, 65.0, 510.3, 267.0)), pytest.approx((229.0, 41.4, 371.0, 311.8))]


def sample(image_id: str, target: tuple[float, ...] | None = LEFT, **fields: Any) -> Sample:
    known = {"sample_id": f"s{image_id}", "ref_id": "r", "image_path": f"photos/{image_id}", "image_wh": WIDE}
    box = None if target is None else Box(*target)
    return Sample(image_id=image_id, expression="left dog", target=box, **{**known, **fields})


def data(*samples: Sample) -> Dataset:
    return Dataset("mine", "val", samples, "digest")


TWO = data(sample("a.jpg"), sample("b.jpg", RIGHT))
COCO = data(sample("380440", (374.31, 65.06, 510.35, 267.0), image_path=None, image_wh=(640, 376)))


def read(path: Path, content: Any, dataset: Dataset = TWO, **settings: Any) -> imported.ImportedDetector:
    """Write a file (a list becomes lines where it is called so) and read it."""
    if not isinstance(content, str):
        is_lines = path.suffix == ".jsonl"
        content = "".join(json.dumps(row) + "\n" for row in content) if is_lines else json.dumps(content)
    path.write_text(content, encoding="utf-8")
    if "categories" in settings:
        names = path.with_name("names.yaml" if isinstance(settings["categories"], str) else "names.json")
        names.write_text(names_text(settings["categories"]))
        settings["categories"] = names
    return imported.create_imported({"path": path, **settings}).bind(dataset)


def names_text(names: Any) -> str:
    return names if isinstance(names, str) else json.dumps(names)


def shown(detector: imported.ImportedDetector, dataset: Dataset) -> list[list[Any]]:
    answers = [detect_sample(detector, each) for each in dataset.samples]
    return [[(item.box.xyxy, item.label, item.score) for item in answer.items] for answer in answers]


def dogs(*boxes: list[float], key: str = "box", **changes: Any) -> list[dict[str, Any]]:
    return [{key: box, "label": "dog", "score": 0.9, **changes} for box in boxes]


MATTNET = [
    {"det_id": n, "h5_id": n, "image_id": 380440, "category_id": 1, "category_name": "person", "box": box, "score": 0.9}
    for n, box in enumerate(SKIERS)
]
REFER = {
    "dets": [
        {"box": dict(zip("xywh", box, strict=True)), "image_id": 380440, "object_id": n, "score": 0.9}
        for n, box in enumerate(SKIERS)
    ]
}
ROBOFLOW = {
    "predictions": [
        {"x": x + w / 2, "y": y + h / 2, "width": w, "height": h, "confidence": 0.9, "class": "person", "class_id": 0}
        for x, y, w, h in SKIERS
    ],
    "image": {"width": 640, "height": 376},
}
HF = [
    {
        "image_id": 380440,
        "detections": [
            {"score": 0.9, "label": "person", "box": {"xmin": x, "ymin": y, "xmax": x + w, "ymax": y + h}}
            for x, y, w, h in SKIERS
        ],
    }
]
FLAT = [{"image_id": 380440, "bbox_xywh": box, "label": "person", "score": 0.9} for box in SKIERS]
BARE = [{"image_id": 380440, "detections": [{"bbox_xywh": box} for box in SKIERS]}]
EXTRA = [{**HF[0], "model": "yolo", "detections": [{**each, "track_id": None} for each in HF[0]["detections"]]}]  # type: ignore[dict-item,attr-defined]


@pytest.mark.parametrize(
    ("name", "content", "label", "score"),
    [
        pytest.param("mattnet.json", MATTNET, "person", 0.9, id="mattnet"),
        pytest.param("reclip.json", {"380440": SKIERS}, "", None, id="reclip"),
        pytest.param("refer.json", REFER, "", 0.9, id="refer"),
        pytest.param("roboflow.json", ROBOFLOW, "person", 0.9, id="roboflow-of-the-one-picture"),
        pytest.param("hf.jsonl", HF, "person", 0.9, id="hf-pipeline"),
        pytest.param("hf.json", HF, "person", 0.9, id="lines-as-a-list"),
        pytest.param("flat.jsonl", FLAT, "person", 0.9, id="one-box-a-line"),
        pytest.param("bare.jsonl", BARE, "", None, id="boxes-alone"),
        pytest.param("extra.jsonl", EXTRA, "person", 0.9, id="more-keys"),
    ],
)
def test_files_of_the_field(tmp_path: Path, name: str, content: Any, label: str, score: float | None) -> None:
    detector = read(tmp_path / name, content, COCO)
    assert shown(detector, COCO) == [[(box, label, score) for box in SKIERS_XYXY]]
    assert ("2 boxes have no label; prompts call them 'object'" in detector.remarks) == (label == "")
    assert ("keys that are not read: model, track_id" in detector.remarks) == (name == "extra.jsonl")


@pytest.mark.parametrize(
    ("name", "change"),
    [("b.json", {}), ("x.json", {"image_path": "photos/b.jpg"})],
    ids=["by-the-file's-name", "by-path"],
)
def test_a_response_of_roboflow_among_several_pictures(tmp_path: Path, name: str, change: dict[str, str]) -> None:
    row = {"x": 448, "y": 240, "width": 256, "height": 384, "confidence": 0.9, "class": "cat", **change}
    assert shown(read(tmp_path / name, {"predictions": [row]}), TWO) == [[], [(RIGHT, "cat", 0.9)]]


ULTRALYTICS = data(sample("kitchen_01.jpg"), sample("000000380440.jpg", RIGHT))
PREDICTIONS = [
    {"image_id": "kitchen_01", "file_name": "kitchen_01.jpg", "category_id": 17, "bbox": LEFT_XYWH, "score": 0.91},
    {"image_id": 380440, "file_name": "000000380440.jpg", "category_id": 17, "bbox": RIGHT_XYWH, "score": 0.88},
]
COCO_NAMES = {"categories": [{"id": 1, "name": "person"}, {"id": 17, "name": "dog"}]}
YOLO_NAMES = {"0": "person", "16": "dog", "17": "horse"}
YOLO_YAML = "nc: 80\nnames:\n  0: person\n  16: dog\n  17: horse\n"


@pytest.mark.parametrize(
    ("names", "category", "expected", "is_shifted"),
    [
        pytest.param(COCO_NAMES, 17, "dog", False, id="coco"),
        pytest.param(YOLO_NAMES, 17, "dog", True, id="names-from-0"),
        pytest.param({"names": YOLO_NAMES}, 17, "dog", True, id="names-key"),
        pytest.param(YOLO_YAML, 17, "dog", True, id="yaml"),
        pytest.param(["person", "bicycle"], 2, "bicycle", True, id="list-ids-from-1"),
        pytest.param(["person", "bicycle"], 0, "person", False, id="list-ids-from-0"),
        pytest.param({"1": "person"}, 0, "person", True, id="ids-from-0-names-from-1"),
    ],
)
def test_ultralytics_predictions(tmp_path: Path, names: Any, category: int, expected: str, is_shifted: bool) -> None:
    rows = [{**row, "category_id": category} for row in PREDICTIONS]
    detector = read(tmp_path / "predictions.json", rows, ULTRALYTICS, categories=names)
    assert shown(detector, ULTRALYTICS) == [[(LEFT, expected, 0.91)], [(RIGHT, expected, 0.88)]]
    assert any("category ids are read as counted from" in remark for remark in detector.remarks) is is_shifted
    assert ("category_ids" in detector.identity()) is is_shifted


@pytest.mark.parametrize("drop", ["image_id", "file_name"])
def test_ultralytics_images_by_either_name(tmp_path: Path, drop: str) -> None:
    rows = [{key: value for key, value in row.items() if key != drop} for row in PREDICTIONS]
    detector = read(tmp_path / "predictions.json", rows, ULTRALYTICS, categories=COCO_NAMES)
    assert [len(items) for items in shown(detector, ULTRALYTICS)] == [1, 1]


def test_an_id_and_a_file_name_of_different_images_contradict(tmp_path: Path) -> None:
    rows = [{**PREDICTIONS[0], "file_name": "000000380440.jpg"}]
    with pytest.raises(DataError, match=r"row 0: 'kitchen_01' and '000000380440\.jpg' are different images"):
        read(tmp_path / "predictions.json", rows, ULTRALYTICS, categories=COCO_NAMES)


@pytest.mark.parametrize("names", [["dog", "cat"], {"0": "dog", "1": "cat"}], ids=["list", "mapping"])
def test_labels_that_are_class_indices(tmp_path: Path, names: Any) -> None:
    items = [*dogs(list(LEFT), label=0), *dogs(list(RIGHT), label=1)]
    detector = read(tmp_path / "x.jsonl", [{"file_name": "a.jpg", "detections": items}], categories=names)
    assert [label for _, label, _ in shown(detector, TWO)[0]] == ["dog", "cat"]
    only = read(tmp_path / "x.jsonl", [{"file_name": "a.jpg", "detections": items[1:]}], categories=names)
    assert [label for _, label, _ in shown(only, TWO)[0]] == ["cat"]


@pytest.mark.parametrize("label", ["", "   ", None])
def test_an_empty_label_is_none(tmp_path: Path, label: str | None) -> None:
    items = [*dogs(list(LEFT)), *dogs(list(RIGHT), label=label)]
    detector = read(tmp_path / "x.jsonl", [{"file_name": "a.jpg", "detections": items}])
    assert [each for _, each, _ in shown(detector, TWO)[0]] == ["dog", ""]
    assert "1 box has no label; prompts call them 'object'" in detector.remarks


def test_an_empty_category_is_no_label(tmp_path: Path) -> None:
    rows = [{"image_id": "a.jpg", "category_id": 2, "bbox": LEFT_XYWH, "score": 0.9}]
    assert shown(read(tmp_path / "x.json", rows, categories={"1": "dog", "2": ""}), TWO)[0] == [(LEFT, "", 0.9)]


@pytest.mark.parametrize(
    ("score", "expected"),
    [(None, None), (float("nan"), None), (float("inf"), None), (1.0000001, 1.0), (-1e-7, 0.0), (0.5, 0.5)],
)
@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_scores(tmp_path: Path, name: str, score: float | None, expected: float | None) -> None:
    row = {"image_id": "a.jpg", "category_id": 1, "bbox": LEFT_XYWH, "score": score}
    line = {"image_id": "a.jpg", "detections": dogs(list(LEFT), score=score)}
    detector = read(tmp_path / name, [row if name == "x.json" else line], categories={"1": "dog"})
    assert shown(detector, TWO)[0] == [(LEFT, "dog", expected)]
    is_odd = isinstance(score, float) and expected is None
    assert any("a score that is not finite" in remark for remark in detector.remarks) is is_odd
    assert ("scores" in detector.identity()) is is_odd


# images that only one of file and data has


def lines_of(*names: str) -> list[dict[str, Any]]:
    return [{"file_name": name, "detections": dogs(list(LEFT), list(RIGHT))} for name in names]


def test_a_line_may_name_its_image_twice(tmp_path: Path) -> None:
    rows = [{**row, "image_id": "a"} for row in lines_of("a.jpg")]
    assert [len(items) for items in shown(read(tmp_path / "x.jsonl", rows), TWO)] == [2, 0]
    with pytest.raises(DataError, match=r"line 1: 'b' and 'a\.jpg' are different images"):
        read(tmp_path / "x.jsonl", [{**row, "image_id": "b"} for row in rows])


@pytest.mark.parametrize("key", ["file_name", "image_id", "image"])
def test_one_file_serves_several_splits(tmp_path: Path, key: str) -> None:
    rows = [{key: row["file_name"], "detections": row["detections"]} for row in lines_of("a.jpg", "b.jpg", "c.jpg")]
    for name in ("a.jpg", "b.jpg"):
        split = data(sample(name))
        detector = read(tmp_path / "x.jsonl", rows, split)
        assert [len(items) for items in shown(detector, split)] == [2]
        assert "2 of its 3 images are not of mine val and are ignored: " in detector.remarks[0]


def test_names_of_instances_without_photographs(tmp_path: Path) -> None:
    dataset = Dataset("mine", "val", [sample("5", image_path=None)], "digest", file_names={"5": "rooms/kitchen.jpg"})
    for name in ("rooms/kitchen.jpg", "kitchen.jpg", "/x/rooms/kitchen.JPG", "kitchen"):
        assert [len(items) for items in shown(read(tmp_path / "x.jsonl", lines_of(name), dataset), dataset)] == [2]


def test_rows_about_other_samples_and_images_are_ignored(tmp_path: Path) -> None:
    rows = [{"sample_id": name, "detections": dogs(list(LEFT))} for name in ("sa.jpg", "s9")]
    assert "1 of its 2 samples are not of mine val" in read(tmp_path / "x.jsonl", rows).remarks[0]
    results = [{"image_id": name, "category_id": 1, "bbox": LEFT_XYWH, "score": 0.9} for name in ("a", "z")]
    found = read(tmp_path / "x.json", results, categories={"1": "dog"})
    assert "1 of its 2 images are not of mine val and are ignored: 'z' (row 1)" in found.remarks


def test_a_file_for_other_data_is_refused(tmp_path: Path) -> None:
    message = r"0 of the 2 images that the file names are of mine val(?s:.*)it names 'x\.jpg' \(line 1\), 'y\.jpg'"
    with pytest.raises(DataError, match=message):
        read(tmp_path / "x.jsonl", lines_of("x.jpg", "y.jpg"))


def test_a_file_that_covers_a_part_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = data(*(sample(f"{number}.jpg") for number in range(20)))
    detector = read(tmp_path / "boxes.jsonl", lines_of(*(f"{number}.jpg" for number in range(5))), dataset)
    remark = "15 of 20 images of mine val are not named, so they have no detections: '5.jpg', '6.jpg'"
    assert detector.num_unanswered == 15
    assert remark in detector.remarks[0]
    assert remark in str(detector.recorded())
    assert not caplog.records
    shown(detector, dataset)
    assert [record.getMessage().startswith("import-boxes: 15 of 20 images") for record in caplog.records] == [True]


@pytest.mark.parametrize(("name", "content"), [("x.jsonl", ""), ("x.jsonl", "\n"), ("x.json", "[]")])
def test_an_empty_file_names_nothing(tmp_path: Path, name: str, content: str) -> None:
    assert "2 of 2 images of mine val are not named" in read(tmp_path / name, content).remarks[0]


# formats


def scaled(box: tuple[float, ...], unit: float) -> list[float]:
    return [unit * value / side for value, side in zip(box, WIDE * 2, strict=True)]


WRONG = {
    "shares": ([scaled(LEFT, 1), scaled(RIGHT, 1)], "xyxy_norm"),
    "percent": ([scaled(LEFT, 100), scaled(RIGHT, 100)], "xyxy_percent"),
    "thousandths": ([scaled(LEFT, 1000), scaled(RIGHT, 1000)], "xyxy_1000"),
    "xywh": ([LEFT_XYWH, RIGHT_XYWH], "xywh"),
    "y-first": ([[box[1], box[0], box[3], box[2]] for box in (LEFT, RIGHT)], "yxyx"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_formats_are_refused_and_can_be_declared(tmp_path: Path, case: str) -> None:
    boxes, box_format = WRONG[case]
    rows = [{"file_name": name, "detections": dogs(*boxes)} for name in ("a.jpg", "b.jpg")]
    with pytest.raises(DataError, match=rf"detector\.settings\.box_format={box_format}(?!\w)"):
        read(tmp_path / "x.jsonl", rows)
    found = shown(read(tmp_path / "x.jsonl", rows, box_format=box_format), TWO)
    assert [box for box, _, _ in found[0]] == [pytest.approx(LEFT), pytest.approx(RIGHT)]


def test_a_declared_format_is_checked_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"detector\.settings\.box_format=xyxy(?!\w)"):
        read(tmp_path / "x.jsonl", lines_of("a.jpg", "b.jpg"), box_format="xyxy_norm")


def test_coco_results_in_corners_are_refused(tmp_path: Path) -> None:
    rows = [{"image_id": name, "category_id": 1, "bbox": box, "score": 0.9} for name in "ab" for box in (LEFT, RIGHT)]
    with pytest.raises(DataError, match=r"read as xywh(?s:.*)box_format=xyxy(?!\w)"):
        read(tmp_path / "x.json", rows, categories={"1": "dog"})


def test_the_key_says_the_layout_and_the_setting_the_unit(tmp_path: Path) -> None:
    boxes = [scaled(tuple(map(float, box)), 100) for box in (LEFT_XYWH, RIGHT_XYWH)]
    rows = [{"file_name": name, "detections": dogs(*boxes, key="bbox_xywh")} for name in ("a.jpg", "b.jpg")]
    with pytest.raises(DataError, match=r"box_format=xywh_percent"):
        read(tmp_path / "x.jsonl", rows)
    found = shown(read(tmp_path / "x.jsonl", rows, box_format="xywh_percent"), TWO)
    assert [box for box, _, _ in found[0]] == [pytest.approx(LEFT), pytest.approx(RIGHT)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param({"a": 1}, "holds an object with the keys a, none of the forms", id="object"),
        pytest.param({"annotations": [{"id": 1}], "images": []}, "none of the forms", id="annotations"),
        pytest.param({"a.jpg": [[1, 2, 3]]}, r"key 'a\.jpg'\[0\]: a box has four numbers, this has 3", id="three"),
        pytest.param("[" * 90 + "]" * 90, "nested more than 64 levels", id="deep"),
        pytest.param('[{"image_id": ' + "9" * 5000 + "}]", "an integer of 5000 digits", id="digits"),
        pytest.param({"dets": [{"image_id": 1, "box": {"x": 1}, "score": 0.1}]}, r"dets\[0\]: a box with", id="dets"),
        pytest.param({"predictions": [{"x": 1}]}, r"predictions\[0\]: key 'y' is missing", id="predictions"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / "x.json", content)


def test_other_encodings_are_named(tmp_path: Path) -> None:
    for name in ("x.jsonl", "x.json", "x.csv"):
        (tmp_path / name).write_bytes('[{"image_id": "a.jpg"}]'.encode("utf-16"))
        with pytest.raises(DataError, match="is UTF-16: save it as UTF-8"):
            imported.create_imported({"path": tmp_path / name}).bind(TWO)
