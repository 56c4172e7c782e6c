import json
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detectors import detect_sample, imported
from llm_wrapper.errors import DataError, RecipeError
from llm_wrapper.records import Box, Sample

_CATEGORIES = {"images": [], "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "mug"}]}
_ITEM = {"box": [1, 2, 30, 40], "label": "mug", "score": 0.5}
_RESULT = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 29, 38], "score": 0.5}


def _dataset(objects: Any = None) -> Dataset:
    samples = [
        Sample(f"s{number}", "r", image_id, f"photos/{image_id}.jpg", (100, 50), "x", Box(0, 0, 9, 9))
        for number, image_id in enumerate(["1", "1", "2"])
    ]
    return Dataset("mine", "val", samples, "digest", objects)


def _lines(folder: Path, *lines: Any, **settings: Any) -> imported.ImportedDetector:
    path = folder / "flo2.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return imported.create_imported({"path": str(path), **settings}).bind(_dataset())


def _results(folder: Path, rows: Any, categories: Any = _CATEGORIES, **settings: Any) -> imported.ImportedDetector:
    (folder / "dino.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))
    (folder / "names.json").write_text(json.dumps(categories))
    paths = {"path": folder / "dino.json", "categories": folder / "names.json"}
    return imported.create_imported({**paths, **settings}).bind(_dataset({"1": (), "2": (), "9": ()}))


def _shown(detector: imported.ImportedDetector) -> list[list[Any]]:
    return [
        [(item.box.xyxy, item.label, item.score, item.source) for item in answer.items]
        for answer in (detect_sample(detector, sample) for sample in _dataset().samples)
    ]


_MUG = ((1.0, 2.0, 30.0, 40.0), "mug", 0.5, "imported")


@pytest.mark.parametrize("key", [{"image_id": 1}, {"image_id": "1"}, {"file_name": "1.jpg"}], ids=str)
def test_lines_by_image(tmp_path: Path, key: dict[str, Any]) -> None:
    detector = _lines(tmp_path, {**key, "detections": [_ITEM, {**_ITEM, "label": "cup", "score": None}]})
    assert (detector.name, detector.levels, detector.num_unanswered) == ("import-flo2", ("image",), 1)
    cup = (*_MUG[:1], "cup", None, "imported")
    assert _shown(detector) == [[_MUG, cup], [_MUG, cup], []]


def test_lines_by_expression(tmp_path: Path) -> None:
    detector = _lines(tmp_path, {"sample_id": "s1", "detections": [_ITEM]}, "", {"sample_id": "s2", "detections": []})
    assert (detector.levels, detector.num_unanswered) == (("expression",), 1)
    assert _shown(detector) == [[], [_MUG], []]


@pytest.mark.parametrize(
    ("item", "settings", "xyxy"),
    [
        ({"box": [1, 2, 3, 5]}, {}, (1.0, 2.0, 3.0, 5.0)),
        ({"bbox_xywh": [1, 2, 3, 5]}, {}, (1.0, 2.0, 4.0, 7.0)),
        ({"box": [1, 2, 3, 5]}, {"box_format": "xywh"}, (1.0, 2.0, 4.0, 7.0)),
        ({"bbox_xywh": [1, 2, 3, 5]}, {"box_format": "xyxy"}, (1.0, 2.0, 4.0, 7.0)),
    ],
)
def test_box_formats_of_lines(tmp_path: Path, item: Any, settings: Any, xyxy: Any) -> None:
    line = {"image_id": 1, "detections": [{**item, "label": "mug", "score": None}]}
    assert _shown(_lines(tmp_path, line, **settings))[0][0][0] == xyxy


@pytest.mark.parametrize("categories", [_CATEGORIES, {"1": "person", "3": "mug"}], ids=["instances", "mapping"])
def test_coco_results(tmp_path: Path, categories: Any) -> None:
    rows = [_RESULT, {**_RESULT, "category_id": 1, "score": 1, "area": 3.0}, {**_RESULT, "image_id": 9}]
    detector = _results(tmp_path, rows, categories, name="dino-t")
    assert (detector.name, detector.levels, detector.num_unanswered) == ("dino-t", ("image",), 1)
    person = (*_MUG[:1], "person", 1.0, "imported")
    assert _shown(detector) == [[_MUG, person], [_MUG, person], []]


def test_coco_results_in_xyxy(tmp_path: Path) -> None:
    detector = _results(tmp_path, [{**_RESULT, "bbox": [1, 2, 30, 40]}], box_format="xyxy")
    assert _shown(detector)[0] == [_MUG]


@pytest.mark.parametrize(
    "box", [[float("nan"), 2, 30, 40], [30, 2, 1, 40], [1, 2, 1, 40]], ids=["nan", "reversed", "no area"]
)
def test_boxes_that_are_none_are_counted(tmp_path: Path, box: list[float]) -> None:
    line = {"image_id": 1, "detections": [{**_ITEM, "box": box}, _ITEM]}
    answer = detect_sample(_lines(tmp_path, line), _dataset().samples[0])
    assert (len(answer.items), answer.num_dropped) == (1, 1)
    rows = [{**_RESULT, "bbox": box}, _RESULT]
    answer = detect_sample(_results(tmp_path, rows, box_format="xyxy"), _dataset().samples[0])
    assert (len(answer.items), answer.num_dropped) == (1, 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"detections": []}, "give exactly one of 'image_id', 'file_name' and 'sample_id'"),
        ({"image_id": 2, "sample_id": "s2", "detections": []}, "give exactly one of"),
        ({"image_id": 2}, "key 'detections' is missing"),
        ({"image_id": 2, "detection": []}, "unknown key 'detection'; did you mean 'detections'"),
        ({"image_id": 1, "detections": []}, "1 was answered in line 1 already"),
        ({"sample_id": "s1", "detections": []}, "some lines name a sample, others an image"),
        ({"image_id": 2, "detections": [{"box": [1, 2, 3, 4], "lable": "x"}]}, r"detections\[0\]: unknown .*'label'"),
        ({"image_id": 2, "detections": [{**_ITEM, "box": {"a": 1}}]}, r"detections\[0\]: a box with the keys a: give"),
        ({"image_id": 2, "detections": [{"label": "x", "score": None}]}, r"detections\[0\]: give exactly one of"),
        ({"image_id": 2, "detections": [_ITEM, {**_ITEM, "score": 87}]}, r"detections\[1\]: score 87.0 is not in 0..1"),
        ({"image_id": 2, "detections": [{**_ITEM, "score": "0.5"}]}, r"detections\[0\]: score: .*got '0.5'"),
        ({"image_id": 2, "detections": [{**_ITEM, "box": [1, 2, 3]}]}, r"detections\[0\]: box: .*at least 4"),
        ({"image_id": 2, "detections": [7]}, r"detections\[0\]: the row: .*got 7"),
        ("{", "is not valid JSON"),
    ],
)
def test_damaged_lines_are_named(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"line 3:? {message}"):
        _lines(tmp_path, {"image_id": 1, "detections": [_ITEM]}, "", line)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category_id": 2}, r"category 2 has no name in names\.json"),
        ({"bbox": [1, 2, 3]}, "bbox: .*at least 4 items"),
        ({"bbox": None}, "bbox: .*got None"),
        ({"score": -0.1}, "score -0.1 is not in 0..1"),
    ],
)
def test_damaged_results_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"row 1: {message}"):
        _results(tmp_path, [_RESULT, {**_RESULT, **changes}])


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    rows = [{**_RESULT, "score": 7}, {"image_id": 1}, _RESULT, {**_RESULT, "category_id": 8}]
    with pytest.raises(DataError, match=r"(?s)\(5 problems\).*row 0:.*row 1: key 'category_id'.*row 3:"):
        _results(tmp_path, rows)


@pytest.mark.parametrize("content", ["{", '{"a": 1}'], ids=["damaged", "no list"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"dino\.json"):
        _results(tmp_path, content)


@pytest.mark.parametrize("categories", [[], {"1": 5}, {"categories": [{"id": 1}]}], ids=["list", "number", "nameless"])
def test_categories_without_names_are_refused(tmp_path: Path, categories: Any) -> None:
    with pytest.raises(DataError, match=r"names\.json names no categories"):
        _results(tmp_path, [_RESULT], categories)


def test_a_shared_file_name_is_refused(tmp_path: Path) -> None:
    samples = [Sample(name, "r", name, f"{name}/1.jpg", (100, 50), "x", None) for name in ("left", "right")]
    (tmp_path / "x.jsonl").write_text('{"file_name": "1.jpg", "detections": []}\n')
    with pytest.raises(DataError, match=r"'1\.jpg' is shared by images left, right: use image_id"):
        imported.create_imported({"path": tmp_path / "x.jsonl"}).bind(Dataset("mine", "val", samples, "digest"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "key 'path' is missing"),
        ({"path": "x.jsonl", "box_fromat": "xyxy"}, "unknown key 'box_fromat'; the nearest known one is 'box_format'"),
        ({"path": "x.jsonl", "box_format": "corners"}, "box_format: .*'xyxy', 'xywh'"),
        ({"path": "x.pkl"}, r"x\.pkl ends neither in \.json"),
        ({"path": "x.jsonl", "name": ".."}, "name: "),
        ({"path": "x.jsonl", "name": "a/b"}, "name: "),
    ],
)
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        imported.create_imported(settings).bind(_dataset())


def test_labels_that_are_numbers_need_names(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps([_RESULT]))
    message = r"labels are numbers \(3\): name them by detector\.settings\.categories=FILE"
    with pytest.raises(DataError, match=message):
        imported.create_imported({"path": tmp_path / "x.json"}).bind(_dataset())
    with pytest.raises(DataError, match=message):
        _lines(tmp_path, {"image_id": 1, "detections": [{**_ITEM, "label": 3}]})


@pytest.mark.parametrize(
    ("name", "expected"), [("my # of: boxes", "import-my-of-boxes"), ("..", "import-.."), ("a.b+c-d", "import-a.b+c-d")]
)
def test_the_file_names_the_detector(name: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.jsonl").write_text("")
    settings = {"path": tmp_path / f"{name}.jsonl"}
    assert imported.create_imported(settings).bind(_dataset()).name == expected
    assert imported.create_imported({**settings, "name": "dino-t"}).bind(_dataset()).name == "dino-t"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        imported.create_imported({"path": tmp_path / "none.jsonl"}).bind(_dataset())


def test_identity_follows_content_and_settings(tmp_path: Path) -> None:
    line = {"image_id": 1, "detections": [_ITEM]}
    first = _lines(tmp_path, line).identity()
    assert first == _lines(tmp_path, line).identity()
    others = [
        _lines(tmp_path, {**line, "detections": []}).identity(),
        _lines(tmp_path, line, name="other").identity(),
        _lines(tmp_path, line, box_format="xyxy").identity(),
    ]
    assert all(other != first for other in others)
    assert json.loads(json.dumps(first)) == first
