"""Files of supervision's sinks; the texts are those that supervision 0.31.2 wrote."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detectors import detect_sample, imported
from llm_wrapper.errors import DataError, RecipeError
from llm_wrapper.records import Sample

# Three calls of sink.append: no detection in image 9, two in image 1 with an extra value each, one without class name
# and confidence in image 2.
JSON_ROWS: list[dict[str, Any]] = [
    {"x_min": 1.0, "y_min": 2.0, "x_max": 30.0, "y_max": 40.0, "class_id": 41, "confidence": 0.5, "tracker_id": ""},
    {"x_min": 5.5, "y_min": 2.0, "x_max": 9.25, "y_max": 8.0, "class_id": 0, "confidence": 0.25, "tracker_id": ""},
    {"x_min": 10.1, "y_min": 2.0, "x_max": 12.0, "y_max": 8.0, "class_id": 41, "confidence": "", "tracker_id": ""},
]
JSON_ROWS[0] |= {"class_name": "mug", "image_id": 1, "extra": 0.5}
JSON_ROWS[1] |= {"class_name": "per,son", "image_id": 1, "extra": 0.25}
JSON_ROWS[2] |= {"image_id": 2, "extra": {"a": 1}}
JSON_SINK = json.dumps(JSON_ROWS, indent=4)
HEADER = "x_min,y_min,x_max,y_max,class_id,confidence,tracker_id,class_name,extra,image_id"
CSV_SINK = f"""{HEADER}
1.0,2.0,30.0,40.0,41,0.5,,mug,0.5,1
5.5,2.0,9.25,8.0,0,0.25,,"per,son",0.25,1
10.1,2.0,12.0,8.0,41,,,,{{'a': 1}},2
"""
NAMES = {"41": "cup", "0": "person"}
MUG, PERSON = ((1.0, 2.0, 30.0, 40.0), "mug", 0.5), ((5.5, 2.0, 9.25, 8.0), "per,son", 0.25)
CUP = ((10.1, 2.0, 12.0, 8.0), "cup", None)


def dataset() -> Dataset:
    samples = [
        Sample(f"s{number}", "r", image_id, f"photos/{image_id}.jpg", (100, 50), "x", None)
        for number, image_id in enumerate(["1", "1", "2", "9"])
    ]
    return Dataset("mine", "val", samples, "digest")


def read(path: Path, text: str | None = None, **settings: Any) -> imported.ImportedDetector:
    if text is not None:
        path.write_text(text, encoding="utf-8")
    names = path.with_name("names.json")
    names.write_text(json.dumps(NAMES))
    return imported.create_imported({"path": path, "categories": names, **settings}).bind(dataset())


def shown(detector: imported.ImportedDetector) -> list[list[Any]]:
    answers = [detect_sample(detector, sample) for sample in dataset().samples]
    return [[(item.box.xyxy, item.label, item.score) for item in answer.items] for answer in answers]


def json_rows(*changes: dict[str, Any]) -> str:
    rows = [{key: value for key, value in {**JSON_ROWS[0], **change}.items() if value is not ...} for change in changes]
    return json.dumps(rows)


@pytest.mark.parametrize(("name", "text"), [("boxes.json", JSON_SINK), ("boxes.csv", CSV_SINK)])
def test_rows_of_a_sink(name: str, text: str, tmp_path: Path) -> None:
    detector = read(tmp_path / name, text)
    assert (detector.name, detector.levels, detector.num_unanswered) == ("import-boxes", ("image",), 1)
    assert shown(detector) == [[MUG, PERSON], [MUG, PERSON], [CUP], []]


def test_a_table_saved_by_another_program(tmp_path: Path) -> None:
    text = "\ufeff" + CSV_SINK.replace("\n", "\r\n") + "\r\n"
    assert shown(read(tmp_path / "boxes.csv", text)) == [[MUG, PERSON], [MUG, PERSON], [CUP], []]


@pytest.mark.parametrize(("name", "text"), [("boxes.json", "[]"), ("boxes.csv", HEADER + "\n")])
def test_nothing_detected(name: str, text: str, tmp_path: Path) -> None:
    detector = read(tmp_path / name, text, categories=None)
    assert (detector.levels, detector.num_unanswered, shown(detector)) == (("image",), 3, [[]] * 4)


def test_rows_about_expressions_and_files(tmp_path: Path) -> None:
    changes = [{"sample_id": "s1", "image_id": ...}, {"sample_id": "s3", "image_id": "", "class_name": "dog"}]
    detector = read(tmp_path / "boxes.json", json_rows(*changes))
    dog = (MUG[0], "dog", 0.5)
    assert (detector.levels, detector.num_unanswered) == (("expression",), 2)
    assert shown(detector) == [[], [MUG], [], [dog]]
    text = CSV_SINK.replace("image_id", "file_name").replace(",1\n", ",1.jpg\n").replace(",2\n", ",photos/2.jpg\n")
    assert shown(read(tmp_path / "boxes.csv", text)) == [[MUG, PERSON], [MUG, PERSON], [CUP], []]


@pytest.mark.parametrize("change", [{"x_min": float("nan")}, {"x_min": 30.0}], ids=["nan", "empty"])
def test_boxes_that_are_none_are_counted(change: dict[str, Any], tmp_path: Path) -> None:
    answer = detect_sample(read(tmp_path / "boxes.json", json_rows(change, {})), dataset().samples[0])
    assert (len(answer.items), answer.num_dropped) == (1, 1)


def test_a_score_that_is_no_number_is_none(tmp_path: Path) -> None:
    detector = read(tmp_path / "boxes.json", json_rows({"confidence": float("nan")}, {}))
    assert shown(detector)[0] == [(*MUG[:2], None), MUG]
    assert "1 box has a score that is not finite, used without it" in detector.remarks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": ...}, "give exactly one of 'image_id', 'file_name' and 'sample_id'"),
        ({"sample_id": "s1"}, "give exactly one of 'image_id', 'file_name' and 'sample_id'"),
        ({"image_id": ..., "sample_id": "s1"}, "some lines name a sample, others an image"),
        ({"x_min": ...}, "key 'x_min' is missing"),
        ({"y_max": ""}, "y_max: .*got None"),
        ({"x_min": "1.0"}, "x_min: .*got '1.0'"),
        ({"confidence": ...}, "key 'confidence' is missing"),
        ({"confidence": 87.0}, r"score 87\.0 is not in 0\.\.1"),
        ({"class_name": 5}, "class_name: .*got 5"),
        ({"class_name": "", "class_id": 7}, r"category 7 has no name in names\.json"),
        ({"class_name": ..., "class_id": ""}, "no class_name, and 'categories' names no class_id None"),
    ],
)
def test_damaged_rows_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"boxes\.json cannot be used with mine val(?s:.*)row 1: {message}"):
        read(tmp_path / "boxes.json", json_rows({}, change))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1.0,2.0,30.0,40.0,41,0.5,,mug,0.5,", "give exactly one of"),
        ("1.0,2.0,abc,40.0,41,0.5,,mug,0.5,1", "x_max: .*got 'abc'"),
        ("1.0,2.0,,40.0,41,0.5,,mug,0.5,1", "x_max: .*got None"),
        ("1.0,2.0,30.0,40.0,41,2,,mug,0.5,1", r"score 2\.0 is not in"),
        ("1.0,2.0,30.0,40.0,7,0.5,,,0.5,1", r"category 7 has no name in names\.json"),
        ("1.0,2.0,30.0,40.0,41,0.", "6 cells, but the header has 10"),
        ("1.0,2.0,30.0,40.0,41,0.5,,mug,0.5,1,1", "11 cells, but the header has 10"),
    ],
)
def test_damaged_lines_are_named(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"line 5: {message}"):
        read(tmp_path / "boxes.csv", f"{CSV_SINK}{line}\n")


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    text = json_rows({"confidence": 7}, {"confidence": "x", "x_min": None}, {}, {"class_name": "", "class_id": 8})
    with pytest.raises(DataError, match=r"(?s)\(4 problems\).*row 0:.*row 1:.*row 1:.*row 3:"):
        read(tmp_path / "boxes.json", text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"not of supervision's CSVSink: no column x_min, .* \(has none\)"),
        ("left,top\n1,2\n", r"no column x_min, y_min, x_max, y_max, class_id, confidence \(has left, top\)"),
        (f'{HEADER}\n1,"2', "cannot be read as CSV"),
    ],
    ids=["empty", "columns", "quote"],
)
def test_a_table_of_something_else_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / "boxes.csv", text)


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_bytes(CSV_SINK.replace("mug", "café").encode("latin-1"))
    with pytest.raises(DataError, match=r"boxes\.csv, line 2: byte 0xe9 is not UTF-8"):
        read(tmp_path / "boxes.csv")


@pytest.mark.parametrize(("name", "text"), [("boxes.json", JSON_SINK), ("boxes.csv", CSV_SINK)])
def test_boxes_of_a_sink_are_never_xywh(name: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"box_format: .* whose boxes are xyxy"):
        read(tmp_path / name, text, box_format="xywh")


# supervision itself


@pytest.fixture(scope="module")
def sv() -> Any:
    with warnings.catch_warnings():
        # It says once that it works without OpenCV.
        warnings.simplefilter("ignore")
        return pytest.importorskip("supervision")


def supervised(sv: Any) -> dict[int, Any]:
    """The detections of image 9, 1 and 2 that the texts above hold."""
    xyxy = np.array([[1, 2, 30, 40], [5.5, 2, 9.25, 8]], dtype=np.float32)
    scores, names = np.array([0.5, 0.25], dtype=np.float32), {"class_name": np.array(["mug", "per,son"])}
    return {
        9: sv.Detections.empty(),
        1: sv.Detections(xyxy, confidence=scores, class_id=np.array([41, 0]), data=names),
        2: sv.Detections(xyxy=np.array([[10.1, 2, 12, 8]]), class_id=np.array([41])),
    }


@pytest.mark.parametrize(("kind", "name"), [("JSONSink", "boxes.json"), ("CSVSink", "boxes.csv")])
def test_what_supervision_writes_today(kind: str, name: str, sv: Any, tmp_path: Path) -> None:
    extras = {9: None, 1: np.array([0.5, 0.25]), 2: {"a": 1}}
    with getattr(sv, kind)(str(tmp_path / name)) as sink:
        for image_id, found in supervised(sv).items():
            sink.append(found, custom_data={"image_id": image_id, "extra": extras[image_id]})
    assert (tmp_path / name).read_text() == {"boxes.json": JSON_SINK, "boxes.csv": CSV_SINK}[name]
    assert shown(read(tmp_path / name)) == [[MUG, PERSON], [MUG, PERSON], [CUP], []]
