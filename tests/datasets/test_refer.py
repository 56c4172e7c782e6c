import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.datasets import coco_instances, refer, restricted_pickle
from llm_wrapper.errors import DataError, RecipeError

_REAL = os.environ.get("LLM_WRAPPER_REAL_DATA", "")
needs_real_data = pytest.mark.skipif(not _REAL, reason="LLM_WRAPPER_REAL_DATA is not set: no real annotations here")

_INSTANCES: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "COCO_train2014_000000000001.jpg", "width": 640, "height": 480},
        {"id": 2, "file_name": "COCO_train2014_000000000002.jpg", "width": 100, "height": 50},
        {"id": 3, "file_name": "COCO_train2014_000000000003.jpg", "width": 100, "height": 50},
    ],
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 24, "bbox": [12.0, 88.0, 288.0, 322.0], "iscrowd": 0, "area": 9},
        {"id": 11, "image_id": 1, "category_id": 24, "bbox": [310, 80, 310, 340], "iscrowd": 0},
        {"id": 12, "image_id": 1, "category_id": 24, "bbox": [0, 0, 600, 400], "iscrowd": 1},
        {"id": 13, "image_id": 1, "category_id": 24, "bbox": [5, 5, 0, 10], "iscrowd": 0},
        {"id": 20, "image_id": 2, "category_id": 1, "bbox": [1, 2, 3, 4]},
    ],
    "categories": [{"id": 24, "name": "zebra"}, {"id": 1, "name": "person"}],
}


def _ref(ref_id: int, split: str, **changes: Any) -> dict[str, Any]:
    sentence = {"sent_id": 100 + ref_id, "sent": "left zebra", "raw": " Left Zebra!", "tokens": ["left", "zebra"]}
    row = {"ref_id": ref_id, "ann_id": 10, "image_id": 1, "category_id": 24, "split": split, "sentences": [sentence]}
    return {**row, **changes}


def _tree(root: Path, refs: Any, instances: dict[str, Any] | None = None, name: str = "refcoco") -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "refs(unc).p").write_bytes(refs if isinstance(refs, bytes) else pickle.dumps(refs, protocol=2))
    (folder / "instances.json").write_text(json.dumps(_INSTANCES if instances is None else instances))
    return root


def _load(root: Path, split: str = "val", **options: Any) -> Any:
    return refer.load_refer(root, split, name="refcoco", split_by="unc", **options)


def test_one_sample_per_sentence(tmp_path: Path) -> None:
    two = [{"sent_id": 8, "sent": "left zebra", "raw": "L"}, {"sent_id": 9, "sent": " zebra ", "raw": "Z "}]
    dataset = _load(_tree(tmp_path, [_ref(1, "val", sentences=two), _ref(2, "train")]))
    assert (dataset.name, dataset.split) == ("refcoco", "val")
    assert [(s.sample_id, s.ref_id, s.image_id, s.expression) for s in dataset.samples] == [
        ("8", "1", "1", "left zebra"),
        ("9", "1", "1", " zebra "),
    ]
    sample = dataset.samples[0]
    assert sample.target.xyxy == (12.0, 88.0, 300.0, 410.0)
    assert (sample.image_wh, sample.image_path, sample.kind) == ((640, 480), None, None)


def test_raw_text_is_kept_as_typed(tmp_path: Path) -> None:
    assert _load(_tree(tmp_path, [_ref(1, "val")]), text="raw").samples[0].expression == " Left Zebra!"


def test_image_paths_where_the_image_folder_exists(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "mscoco" / "images" / "train2014"
    folder.mkdir(parents=True)
    sample = _load(_tree(tmp_path, [_ref(1, "val")])).samples[0]
    assert sample.image_path == str(folder / "COCO_train2014_000000000001.jpg")


def test_objects_are_all_but_crowds_and_boxes_without_area(tmp_path: Path) -> None:
    objects = _load(_tree(tmp_path, [_ref(1, "val")])).objects
    assert [(found.annotation_id, found.label) for found in objects["1"]] == [("10", "zebra"), ("11", "zebra")]
    assert objects["1"][1].box.xyxy == (310.0, 80.0, 620.0, 420.0)
    assert (len(objects["2"]), objects["3"]) == (1, ())
    instances = coco_instances.load_instances(tmp_path / "refcoco" / "instances.json")
    assert (instances.num_crowd, instances.num_degenerate) == (1, 1)


def test_digest_follows_both_files(tmp_path: Path) -> None:
    first = _load(_tree(tmp_path, [_ref(1, "val")])).digest
    assert _load(_tree(tmp_path, [_ref(1, "val")])).digest == first
    other_refs = _load(_tree(tmp_path, [_ref(2, "val")])).digest
    other_objects = _load(_tree(tmp_path, [_ref(1, "val")], {**_INSTANCES, "info": 1})).digest
    assert len({first, other_refs, other_objects}) == 3


@pytest.mark.parametrize(
    ("wanted", "ref_ids"),
    [
        ("train", ["1"]),
        ("val", ["2"]),
        ("testA", ["3", "5"]),
        ("testB", ["4", "5"]),
        ("test", ["3", "4", "5", "6"]),
        ("testAB", ["5"]),
    ],
)
def test_splits_match_as_in_the_toolbox(tmp_path: Path, wanted: str, ref_ids: list[str]) -> None:
    splits = ["train", "val", "testA", "testB", "testAB", "test"]
    _tree(tmp_path, [_ref(number, split) for number, split in enumerate(splits, start=1)])
    assert [sample.ref_id for sample in _load(tmp_path, wanted).samples] == ref_ids


def test_unknown_split_names_those_that_exist(tmp_path: Path) -> None:
    _tree(tmp_path, [_ref(1, "val"), _ref(2, "train")])
    with pytest.raises(DataError, match=r"no split 'testA'.*train, val"):
        _load(tmp_path, "testA")


def test_missing_refs_name_those_that_exist(tmp_path: Path) -> None:
    _tree(tmp_path, [_ref(1, "val")])
    with pytest.raises(DataError, match=r"refs\(google\)\.p does not exist.*refs\(unc\)\.p"):
        refer.load_refer(tmp_path, "val", name="refcoco", split_by="google")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 99}, "image 99 is not in instances.json"),
        ({"ann_id": 99}, "annotation 99 is not in instances.json"),
        ({"ann_id": [10, 11]}, r"ann_id: must be text, got \[10, 11\]"),
        ({"ann_id": 20}, "annotation 20 is of image 2, the ref of image 1"),
        ({"ann_id": 13}, r"annotation 13: box \(5.0, 5.0, 5.0, 15.0\) is reversed or has no area"),
        ({"sentences": []}, "it has no sentences"),
        ({"sentences": [{"sent_id": 1, "sent": "  "}]}, "sentence 1: 'sent' must be a text, got '  '"),
        ({"sentences": [{"sent_id": 1, "sent": 7}]}, "sentence 1: 'sent' must be a text, got 7"),
        ({"sentences": [{"sent_id": 1, "raw": "x"}]}, "sentence 1: 'sent' must be a text, got None"),
        ({"sentences": [{"sent": "x"}]}, r"key 'sentences\[0\].sent_id' is missing"),
    ],
)
def test_damaged_refs_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _load(_tree(tmp_path, [_ref(1, "val", **changes)]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"sentences": []}, "ref without sentences", id="no-sentences"),
        pytest.param({"sentences": [{"sent_id": 1, "sent": "\u3164"}]}, "sentence without text", id="invisible"),
        pytest.param({"ann_id": 99}, "annotation that instances.json lacks", id="unknown-annotation"),
        pytest.param({"ann_id": 13}, "target that is no box", id="no-area"),
        pytest.param({"ann_id": 20}, "annotation of another image", id="other-image"),
        pytest.param({"image_id": 99}, "image that instances.json lacks", id="unknown-image"),
        pytest.param({"split": None}, "row that cannot be read", id="no-split"),
        pytest.param({"image_id": None}, "row that cannot be read", id="no-image"),
        pytest.param({"sentences": [{"sent_id": 101, "sent": "x"}]}, "id used before", id="id"),
    ],
)
def test_a_ref_that_cannot_be_used_is_skipped_and_counted(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    dataset = _load(_tree(tmp_path, [_ref(1, "val"), _ref(2, "val"), {**_ref(3, "val"), **changes}]))
    assert [sample.ref_id for sample in dataset.samples] == ["1", "2"]
    assert {key: len(places) for key, places in dataset.skipped.items()} == {reason: 1}
    assert dataset.skipped[reason][0].startswith("ref 2")


def test_targets_that_are_crowds_are_known(tmp_path: Path) -> None:
    assert _load(_tree(tmp_path, [_ref(1, "val"), _ref(2, "val", ann_id=12)])).crowd_targets == {"102"}


def test_the_other_text_is_named_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'sent' must be a text, got None; it has 'raw': data\.settings\.text=raw"):
        _load(_tree(tmp_path, [_ref(1, "val", sentences=[{"sent_id": 1, "raw": "x"}])]))
    with pytest.raises(RecipeError, match=r"data\.settings\.text='tokens': it must be 'sent' \(cleaned\) or 'raw'"):
        _load(tmp_path, text="tokens")


@pytest.mark.parametrize(
    "settings", [{"name": "../other"}, {"name": "/etc"}, {"split_by": "../x"}], ids=["up", "absolute", "division"]
)
def test_a_name_is_no_path(tmp_path: Path, settings: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match=r"data\.settings\.(name|split_by)='"):
        refer.load_refer(tmp_path, "val", **{"name": "refcoco", "split_by": "unc", **settings})


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    without_id = {key: value for key, value in _ref(3, "val").items() if key != "ref_id"}
    refs = [_ref(0, "val", image_id=99), _ref(1, "val", ann_id=13), without_id, _ref(4, "train", ann_id=77)]
    with pytest.raises(DataError) as caught:
        _load(_tree(tmp_path, refs))
    text = str(caught.value).replace(str(tmp_path), "")  # which may hold any number
    assert "cannot be used: 3 of 3 rows are unusable (3 problems)" in text
    assert "ref 0 (ref_id 0)" in text
    assert "ref 2: key 'ref_id' is missing" in text
    assert "77" not in text


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        ({"a": 1}, "holds a dict, not a list of refs"),
        ([7], "ref 0: it is a int, not a dict"),
        ([{"image_id": 1}], "ref 0: 'split' must be a text, got None"),
        ([{"split": "val"}], "ref 0: 'image_id' must be a number or a text, got None"),
        ([], "no split 'val'. Its splits are: none"),
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, refs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _load(_tree(tmp_path, refs))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("images", lambda rows: rows[0].pop("width"), r"images\[0\]: key 'width' is missing"),
        ("images", lambda rows: rows[0].update(height=0), r"images\[0\]: height: must be greater than 0"),
        ("images", lambda rows: rows.append(rows[0]), "images: id 1 occurs twice"),
        ("annotations", lambda rows: rows.append(rows[0]), "annotations: id 10 occurs twice"),
        ("annotations", lambda rows: rows[0].update(image_id=9), "annotation 10: it has image 9"),
        ("annotations", lambda rows: rows[0].update(category_id=9), "annotation 10: it has category 9"),
        ("annotations", lambda rows: rows[0].update(bbox=[1, 2, 3]), r"annotations\[0\]: bbox: .* at least 4 items"),
        ("annotations", lambda rows: rows[0].update(bbox=["1", 2, 3, 4]), r"annotations\[0\]: bbox\[0\]: .*got '1'"),
        ("categories", lambda rows: rows.append({"id": 24, "name": "cat"}), "categories: id 24 occurs twice"),
        ("annotations", lambda rows: rows[0].update(bbox=[float("nan"), 2, 3, 4]), "not finite"),
    ],
)
def test_damaged_instances_are_refused(tmp_path: Path, part: str, change: Any, message: str) -> None:
    instances = json.loads(json.dumps(_INSTANCES))
    change(instances[part])
    with pytest.raises(DataError, match=message):
        _load(_tree(tmp_path, [_ref(1, "val")], instances))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\xff"], ids=["empty", "open", "deep", "latin1"])
def test_instances_that_are_not_json_are_refused(tmp_path: Path, text: str) -> None:
    _tree(tmp_path, [_ref(1, "val")])
    (tmp_path / "refcoco" / "instances.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"instances\.json.*is not (valid JSON|used: it is nested|UTF-8)"):
        _load(tmp_path)


class _Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_pickle_is_named_and_not_executed(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "executed"
    hostile = pickle.dumps([_ref(1, "val"), _Malicious(trace)], protocol=protocol)
    with pytest.raises(DataError, match=rf"refers to {os.name}\.system.*NOT executed"):
        _load(_tree(tmp_path, hostile))
    assert not trace.exists()
    pickle.loads(hostile)  # the same bytes do run elsewhere, so the test can fail
    assert trace.exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
        (b"\x80\x02c__builtin__\nset\n]\x85R.", "__builtin__.set"),
        (pickle.dumps(Path("x")), r"pathlib\S*Path"),
    ],
    ids=["global", "inst", "set", "path"],
)
def test_every_global_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / "x.p"
    path.write_bytes(content.replace(b"ios\n", b"(ios\n") if name == "os.system" else content)
    with pytest.raises(DataError, match=f"refers to {name}"):
        restricted_pickle.read_pickle(path)


def test_python_2_byte_strings_become_text(tmp_path: Path) -> None:
    path = tmp_path / "x.p"
    python_2 = (  # pickle.dumps([{'sent': 'caf\xc3\xa9', 'old': 'caf\xe9', 'raw': u'caf\xe9', 'id': 5L}], 2)
        b"\x80\x02]q\x00}q\x01(U\x04sentq\x02U\x05caf\xc3\xa9q\x03U\x03oldq\x04U\x04caf\xe9q\x05"
        b"U\x03rawq\x06X\x05\x00\x00\x00caf\xc3\xa9q\x07U\x02idq\x08\x8a\x01\x05ua."
    )
    path.write_bytes(python_2)
    assert restricted_pickle.read_pickle(path) == [{"sent": "café", "old": "café", "raw": "café", "id": 5}]


def test_python_2_text_protocol(tmp_path: Path) -> None:
    path = tmp_path / "x.p"
    path.write_bytes(b"(lp0\n(dp1\nS'split'\np2\nS'val'\np3\nsS'id'\np4\nL5L\nsS'area'\nF1.5\nsa.")
    assert restricted_pickle.read_pickle(path) == [{"split": "val", "id": 5, "area": 1.5}]


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.p"
    whole = pickle.dumps([_ref(1, "val")], protocol=2)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="no complete pickle"):
            restricted_pickle.read_pickle(path)


@pytest.mark.parametrize("content", [b"not a pickle", b"\x80\x02\x85.", b"\x80\x02]\x81.", b"\x80\xff."])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.p"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no complete pickle"):
        restricted_pickle.read_pickle(path)


@pytest.mark.slow
@needs_real_data
@pytest.mark.parametrize(
    ("name", "split", "num_expressions", "num_images"),
    [
        ("refcocog", "val", 4896, 1300),
        ("refcocog", "train", 9304, 9304),
        ("refcoco", "val", 10834, 1500),
        ("refcoco", "train", 15103, 15103),
        ("refcoco+", "val", 10758, 1500),
    ],
)
def test_real_splits(name: str, split: str, num_expressions: int, num_images: int) -> None:
    started = time.process_time()
    dataset = refer.load_refer(Path(_REAL) / "refer", split, name=name, split_by=refer.USUAL_SPLIT_BY[name])
    assert time.process_time() - started < 15
    assert len(dataset.samples) == num_expressions
    assert len(dataset.images()) == num_images
    assert dataset.objects is not None
    for sample in dataset.samples:
        assert any(found.box == sample.target for found in dataset.objects[sample.image_id])
