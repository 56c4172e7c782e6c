"""RefCOCO's hub forms, against the REFER tree of the same refs."""

from __future__ import annotations

import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper import datasets
from llm_wrapper.datasets import hub, refer
from llm_wrapper.errors import DataError, RecipeError
from tests.datasets import replicas
from tests.datasets.replicas import Row

REPO = "jxu124/refcoco@abc"
_REAL = os.environ.get("LLM_WRAPPER_REAL_DATA", "")


def load_refs(root: Path, split: str = "val", **settings: Any) -> datasets.Dataset:
    return hub.load_hub_refs(root, split, repo=REPO, **settings)


def load_objects(root: Path, split: str = "val") -> datasets.Dataset:
    return hub.load_hub_objects(root, split, repo="lmms-lab/RefCOCO")


def objects(*places: int) -> list[Row]:
    """Rows of the objects form, one for each ref."""
    content = replicas.refs()
    return [replicas.object_row(content[place]) for place in places or range(len(content))]


# the refs form


@pytest.mark.parametrize("text", ["sent", "raw"])
@pytest.mark.parametrize("split", ["train", "val", "testA", "testB", "test"])
def test_refs_equal_those_of_the_refer_tree(tmp_path: Path, split: str, text: Any) -> None:
    replicas.write_refs(tmp_path / "hub", replicas.refs())
    replicas.write_refer(tmp_path, replicas.refs())
    expected = refer.load_refer(tmp_path, split, name="refcoco", split_by="unc", text=text)
    found = load_refs(tmp_path / "hub", split, text=text)
    assert list(found.samples) == list(expected.samples)
    assert (found.name, found.split) == (expected.name, expected.split)


def test_refcocog_has_a_test_split_of_its_own(tmp_path: Path) -> None:
    content = replicas.refs(test_splits=("test",))
    replicas.write_refs(tmp_path / "hub", content)
    replicas.write_refer(tmp_path, content, name="refcocog", split_by="umd")
    expected = refer.load_refer(tmp_path, "test", name="refcocog", split_by="umd")
    assert list(load_refs(tmp_path / "hub", "test").samples) == list(expected.samples)
    with pytest.raises(DataError, match=r"no split 'testA'\. Its splits are: test, train, val\..*hf download"):
        load_refs(tmp_path / "hub", "testA")


def test_rows_of_the_file_test_may_say_test(tmp_path: Path) -> None:
    content = replicas.refs()
    replicas.write_refs(tmp_path, content)
    rows = [{**replicas.ref_row(ref), "split": "test"} for ref in content if ref["split"] == "testA"]
    replicas.write_parquet(next(tmp_path.rglob("test-*.parquet")), rows, replicas.REFS)
    assert [sample.ref_id for sample in load_refs(tmp_path, "testA").samples] == ["5", "5"]


def test_images_lie_where_the_settings_or_the_folder_say(tmp_path: Path) -> None:
    replicas.write_refs(tmp_path, replicas.refs())
    name = "COCO_train2014_000000000033.jpg"
    assert load_refs(tmp_path).samples[0].image_path is None
    (tmp_path / "images").mkdir()
    assert load_refs(tmp_path).samples[0].image_path == str(tmp_path / "images" / name)
    (tmp_path / "coco").mkdir()
    assert load_refs(tmp_path, images=str(tmp_path / "coco")).samples[0].image_path == str(tmp_path / "coco" / name)
    with pytest.raises(DataError, match="images folder nowhere does not exist"):
        load_refs(tmp_path, images="nowhere")


def test_another_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.settings\.text='tokens': it must be 'sent'"):
        load_refs(tmp_path, text="tokens")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": None}, r"bbox: must be a list, got None"),
        ({"bbox": [350.0, 50.0, 550.0]}, r"bbox: must have at least 4 items, has 3"),
        ({"bbox": [350.0, None, 550.0, 350.0]}, r"bbox\[1\]: must be a number, got None"),
        ({"bbox": [float("nan"), 50.0, 550.0, 350.0]}, r"box \(nan.* not finite"),
        ({"bbox": [550.0, 50.0, 350.0, 350.0]}, r"box \(550.* is reversed or has no area"),
        ({"split": "train"}, r"the row is of split 'train', the file of 'val'"),
        ({"raw_image_info": "{"}, r"raw_image_info: Invalid JSON"),
        ({"raw_image_info": '{"file_name": "a.jpg", "width": 640}'}, r"key 'raw_image_info\.height' is missing"),
        ({"raw_image_info": '{"file_name": "a.jpg", "width": 640, "height": 0}'}, r"raw_image_info\.height: .* got 0"),
        ({"sentences": []}, r"it has no sentences"),
        ({"sentences": [{"sent_id": None, "sent": "a"}]}, r"sentences\[0\]\.sent_id: "),
        ({"sentences": [{"sent_id": 9, "sent": " \n"}]}, r"sentence 9: 'sent' must be a text, got ' \\n'"),
        ({"sentences": [{"sent_id": 9, "raw": "a"}]}, r"got None; it has 'raw': data\.settings\.text=raw"),
        ({"sentences": [{"sent_id": 9, "sent": "a"}] * 2}, r"id 9 was used for a sample of validation-\S+ row 0 alr"),
        ({"image_id": None}, r"image_id: "),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_a_bad_row_is_named_with_its_file(tmp_path: Path, changes: Row, message: str) -> None:
    replicas.write_refs(tmp_path, replicas.refs(), lambda rows: rows[0].update(changes))
    with pytest.raises(DataError, match=rf"validation-00000-of-00001-\w+\.parquet row 0: .*{message}"):
        load_refs(tmp_path)


def test_all_bad_rows_are_listed_at_once(tmp_path: Path) -> None:
    def spoil(rows: list[Row]) -> None:
        good = rows[0]
        rows[:] = [
            {**good, "bbox": None},
            good,
            {**good, "split": "testB"},
            {**good, "sentences": None, "raw_image_info": "no"},
        ]

    replicas.write_refs(tmp_path, replicas.refs(), spoil)
    with pytest.raises(DataError) as caught:
        load_refs(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"split val of {tmp_path} cannot be used: 3 of 6 rows are unusable (4 problems):")
    assert all(f" row {number}: " in text for number in (0, 2, 3))
    assert "row 1:" not in text


def test_a_row_that_cannot_be_used_is_skipped_and_counted(tmp_path: Path) -> None:
    def spoil(rows: list[Row]) -> None:
        rows.append({**rows[0], "sentences": []})
        rows.append({**rows[0], "bbox": None})

    replicas.write_refs(tmp_path, replicas.refs(), spoil)
    dataset = load_refs(tmp_path)
    assert len(dataset.samples) == 3
    assert {key: len(places) for key, places in dataset.skipped.items()} == {
        "ref without sentences": 1,
        "row that cannot be read": 1,
    }


def test_targets_that_are_crowds_are_known(tmp_path: Path) -> None:
    def crowd(rows: list[Row]) -> None:
        rows[0]["raw_anns"] = json.dumps({**json.loads(rows[0]["raw_anns"]), "iscrowd": 1})

    replicas.write_refs(tmp_path / "refs", replicas.refs(), crowd)
    dataset = load_refs(tmp_path / "refs")
    assert dataset.crowd_targets == {sample.sample_id for sample in dataset.samples}
    rows = objects(2, 3)
    rows[1]["iscrowd"] = 1
    replicas.write_objects(tmp_path / "objects", rows)
    assert load_objects(tmp_path / "objects").crowd_targets == {"40-0", "40-1"}


def test_an_image_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    def spoil(rows: list[Row]) -> None:
        rows[0]["raw_image_info"] = json.dumps({"file_name": "/etc/passwd", "width": 640, "height": 480})

    replicas.write_refs(tmp_path, replicas.refs(), spoil)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"image '/etc/passwd' lies outside .*data\.settings\.images=/etc"):
        load_refs(tmp_path)


def test_a_newline_in_an_expression_stays(tmp_path: Path) -> None:
    replicas.write_refs(tmp_path, replicas.refs())
    assert "Woman\non right" in [sample.expression for sample in load_refs(tmp_path, "train", text="raw").samples]


@pytest.mark.parametrize("column", ["bbox", "sentences", "raw_image_info"])
def test_a_missing_column_is_named_with_those_that_exist(tmp_path: Path, column: str) -> None:
    replicas.write_refs(tmp_path, replicas.refs(), drop=column)
    with pytest.raises(
        DataError, match=rf"validation-\S+ has no column {column}; its columns are sent_ids, .*data\.reader"
    ):
        load_refs(tmp_path)


def test_the_other_form_is_refused_by_its_columns(tmp_path: Path) -> None:
    replicas.write_objects(tmp_path, objects())
    with pytest.raises(
        DataError, match="has no column ref_id, image_id, sentences, raw_image_info; its columns are qu"
    ):
        load_refs(tmp_path)


def test_the_split_column_may_be_absent(tmp_path: Path) -> None:
    replicas.write_refs(tmp_path, replicas.refs(), drop="split")
    assert len(load_refs(tmp_path).samples) == 3


def test_boxes_in_the_other_convention_are_refused_as_a_whole(tmp_path: Path) -> None:
    def as_xywh(rows: list[Row]) -> None:
        for row in rows:
            row["bbox"] = json.loads(row["raw_anns"])["bbox"]

    content = [{**ref, "split": "val"} for ref in replicas.refs()]
    replicas.write_refs(tmp_path, content, as_xywh)
    with pytest.raises(DataError, match=r"boxes read as xyxy are reversed .* xywh .*Nothing was read"):
        load_refs(tmp_path)


def test_the_digest_follows_the_files_of_the_split_alone(tmp_path: Path) -> None:
    replicas.write_refs(tmp_path / "a", replicas.refs())
    before = load_refs(tmp_path / "a").digest
    replicas.write_refs(tmp_path / "b", replicas.refs())
    assert load_refs(tmp_path / "b").digest == before
    assert load_refs(tmp_path / "a", "train").digest != before
    replicas.write_refs(tmp_path / "b", replicas.refs()[1:])
    assert load_refs(tmp_path / "b").digest == before
    replicas.write_refs(tmp_path / "b", replicas.refs(), lambda rows: rows[0].update(category_id=2))
    assert load_refs(tmp_path / "b").digest != before


# the objects form


def test_objects_say_what_the_refer_tree_says(tmp_path: Path) -> None:
    replicas.write_objects(tmp_path / "hub", objects(2, 3))
    replicas.write_refer(tmp_path, replicas.refs())
    expected = [
        sample
        for split in ("val", "testA")
        for sample in refer.load_refer(tmp_path, split, name="refcoco", split_by="unc", text="raw").samples
    ]
    found = load_objects(tmp_path / "hub").samples
    for one, other in zip(found, expected, strict=True):
        assert (one.expression, one.image_id, one.image_wh) == (other.expression, other.image_id, other.image_wh)
        assert one.target is not None
        assert other.target is not None
        assert one.target.xyxy == pytest.approx(other.target.xyxy, abs=1e-4)  # their numbers are float32
    assert [sample.sample_id for sample in found] == ["30-0", "30-1", "30-2", "40-0", "40-1"]
    assert [sample.ref_id for sample in found] == ["30"] * 3 + ["40"] * 2


def test_each_image_is_written_once_and_whole(tmp_path: Path) -> None:
    rows = objects(0, 3, 4)  # the last two are of one image
    replicas.write_objects(tmp_path, rows)
    samples = load_objects(tmp_path).samples
    paths = sorted((tmp_path / "images").iterdir())
    assert [path.name for path in paths] == ["COCO_train2014_000000000044.jpg", "COCO_train2014_000000380440.jpg"]
    assert {sample.image_path for sample in samples} == {str(path) for path in paths}
    assert paths[0].read_bytes() == rows[1]["image"]["bytes"]
    for path in paths:
        os.utime(path, ns=(1, 1))
    load_objects(tmp_path)
    assert [path.stat().st_mtime_ns for path in paths] == [1, 1]
    paths[0].write_bytes(b"cut off")
    load_objects(tmp_path)
    assert paths[0].read_bytes() == rows[1]["image"]["bytes"]


def test_rows_that_repeat_are_taken_once_and_further_expressions_counted_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, other = objects(2, 3)
    more = {**first, "answer": ["the coat", first["answer"][0]]}
    replicas.write_objects(tmp_path, [first, other, first, more])
    with caplog.at_level(logging.INFO):
        samples = load_objects(tmp_path).samples
    assert [sample.sample_id for sample in samples] == ["30-0", "30-1", "30-2", "40-0", "40-1", "30-3", "30-4"]
    assert samples[-2].expression == "the coat"
    assert "1 rows repeat another one" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": []}, "answer: must have at least 1 item, has 0"),
        ({"answer": None}, "answer: must be a list"),
        ({"answer": ["a", None]}, r"answer\[1\]: "),
        ({"answer": ["\u200b", " "]}, "the expression of sample 30-1 is empty"),
        ({"file_name": "../../elsewhere.jpg"}, r"file_name '\.\./\.\./elsewhere\.jpg' is not the name of a COCO image"),
        ({"file_name": "COCO_train2014_000000000033_7.png"}, "is not the name of a COCO image"),
        ({"image": None}, "image: "),
        ({"image": {"bytes": None, "path": "a.jpg"}}, r"image\.bytes: "),
        ({"image": {"bytes": b"no image", "path": "a.jpg"}}, "cannot be read as an image: its content"),
        ({"bbox": [float("inf"), 1.0, 2.0, 3.0]}, "not finite"),
        ({"bbox": [350.0, 50.0, 0.0, 300.0]}, "reversed or has no area"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_object_is_named_with_its_file(tmp_path: Path, changes: Row, message: str) -> None:
    rows = objects(1, 2)
    rows[1].update(changes)
    replicas.write_objects(tmp_path, rows)
    with pytest.raises(DataError, match=rf"val-00000-of-00001\.parquet row 1: .*{message}"):
        load_objects(tmp_path)


def test_objects_in_the_other_convention_are_refused_as_a_whole(tmp_path: Path) -> None:
    rows = objects(0, 1, 2)
    for row in rows:
        left, top, width, height = row["bbox"]
        row["bbox"] = [left, top, left + width, top + height]
    replicas.write_objects(tmp_path, rows)
    with pytest.raises(DataError, match=r"3 of 3 boxes read as xywh are reversed or outside .* xyxy .*Nothing"):
        load_objects(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not _REAL, reason="LLM_WRAPPER_REAL_DATA is not set: no real annotations here")
@pytest.mark.parametrize(
    ("name", "split_by", "split"), [("refcocog", "umd", "val"), ("refcoco", "unc", "val"), ("refcoco+", "unc", "val")]
)
def test_a_copy_of_real_refs_equals_them(tmp_path: Path, name: str, split_by: str, split: str) -> None:
    tree = Path(_REAL) / "refer"
    content = pickle.loads((tree / name / f"refs({split_by}).p").read_bytes())
    instances = json.loads((tree / name / "instances.json").read_text())
    images = {image["id"]: image for image in instances["images"]}
    annotations = {annotation["id"]: annotation["bbox"] for annotation in instances["annotations"]}
    rows = []
    for ref in content:
        if ref["split"] == split:
            left, top, width, height = annotations[ref["ann_id"]]
            info = json.dumps(images[ref["image_id"]])
            rows.append({**ref, "raw_image_info": info, "bbox": [left, top, left + width, top + height]})
    replicas.write_parquet(tmp_path / "validation-00000-of-00001.parquet", rows, replicas.REFS)
    expected = refer.load_refer(tree, split, name=name, split_by=split_by)
    assert list(load_refs(tmp_path, split).samples) == list(expected.samples)
