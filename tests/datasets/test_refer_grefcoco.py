"""gRefCOCO: one, several and no targets, beside the REFER tree of the same objects."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.datasets import check, refer
from llm_wrapper.errors import DataError, RecipeError
from llm_wrapper.records import Box, Sample, from_dict, to_dict
from tests.datasets import replicas


def ref(ref_id: int, ann_ids: Any, split: str = "val", **changes: Any) -> dict[str, Any]:
    """A ref as gRefCOCO has it, about image 380440, whose objects are 10 and 11."""
    sentence = {"sent": "all zebras", "sent_id": 100 + ref_id, "tokens": ["all", "zebras"]}
    row = {
        **{"ref_id": ref_id, "ann_id": ann_ids, "image_id": 380440, "split": split, "sentences": [sentence]},
        **{"category_id": [-1] if ann_ids == [-1] else [24], "file_name": "COCO_train2014_000000380440.jpg"},
    }
    return {**row, **changes}


def write(root: Path, refs: Any, edit: Callable[[dict[str, Any]], object] = dict) -> Path:
    """Write a tree; `edit` may change the instances first."""
    folder = root / "grefcoco"
    folder.mkdir(parents=True, exist_ok=True)
    instances = copy.deepcopy(replicas.INSTANCES)
    edit(instances)
    (folder / "grefs(unc).json").write_text(json.dumps(refs))
    (folder / "instances.json").write_text(json.dumps(instances))
    return root


ZEBRA, OTHER = Box(400.25, 300.5, 516.74, 400.75), Box(12, 88, 300, 410)


@pytest.mark.parametrize(
    ("ann_ids", "kind", "target", "further"),
    [
        ([10], "single_target", ZEBRA, ()),
        (10, "single_target", ZEBRA, ()),
        ([11, 10], "multi_target", OTHER, (ZEBRA,)),
        ([10, 11, 10], "multi_target", ZEBRA, (OTHER,)),
        ([-1], "no_target", None, ()),
        (-1, "no_target", None, ()),
    ],
    ids=["one", "one, not in a list", "several", "one named twice", "none", "none, not in a list"],
)
def test_targets(tmp_path: Path, ann_ids: Any, kind: str, target: Box | None, further: tuple[Box, ...]) -> None:
    (sample,) = refer.load_grefcoco(write(tmp_path, [ref(1, ann_ids)]), "val").samples
    assert (sample.kind, sample.target, sample.further_targets) == (kind, target, further)
    assert (sample.sample_id, sample.ref_id, sample.image_id) == ("101", "1", "380440")
    assert (sample.expression, sample.image_wh, sample.image_path) == ("all zebras", (640, 480), None)


def test_images_are_in_the_folder_of_a_refer_tree_and_the_digest_follows_both_files(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "mscoco" / "images" / "train2014"
    folder.mkdir(parents=True)
    found, same, other_target = (
        refer.load_grefcoco(write(tmp_path, [ref(1, [ann_id])]), "val") for ann_id in (10, 10, 11)
    )
    assert found.samples[0].image_path == str(folder / "COCO_train2014_000000380440.jpg")
    write(tmp_path, [ref(1, [10])], lambda instances: instances.update(info=1))
    other_instances = refer.load_grefcoco(tmp_path, "val")
    assert found.digest == same.digest
    assert len({each.digest for each in (found, other_target, other_instances)}) == 3


def test_single_targets_equal_those_of_the_refer_tree(tmp_path: Path) -> None:
    content = replicas.refs()
    replicas.write_refer(tmp_path, content)
    write(tmp_path, [{**each, "ann_id": [each["ann_id"]], "category_id": [each["category_id"]]} for each in content])
    for split in ("train", "val", "testA", "testB", "test"):
        found = refer.load_grefcoco(tmp_path, split, text="raw")
        expected = refer.load_refer(tmp_path, split, name="refcoco", split_by="unc", text="raw")
        assert {sample.kind for sample in found.samples} == {"single_target"}
        assert [{**to_dict(sample), "kind": None} for sample in found.samples] == list(map(to_dict, expected.samples))
        assert found.objects == expected.objects


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ann_id": []}, "ann_id: .* at least 1 item"),
        ({"ann_id": None}, r"ann_id\[0\]: "),
        ({"ann_id": [10, 99]}, "annotation 99 is not in instances.json"),
        ({"ann_id": [10, -1]}, "annotation -1 is not in instances.json"),
        ({"ann_id": [10, 20]}, "annotation 20 is of image 22, the ref of image 380440"),
        ({"sentences": [{"sent": "a", "sent_id": 101}]}, r"id 101 was used for a sample of ref 0 \(ref_id 1\) already"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_ref_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"ref 1( \(ref_id 2\))?: .*{message}"):
        refer.load_grefcoco(write(tmp_path, [ref(1, [10]), ref(2, [10], **changes)]), "val")


def test_a_target_without_an_area_is_named(tmp_path: Path) -> None:
    write(tmp_path, [ref(1, [10, 11])], lambda instances: instances["annotations"][1].update(bbox=[12, 88, 0, 322]))
    with pytest.raises(DataError, match=r"ref 0 \(ref_id 1\): annotation 11: box .* has no area"):
        refer.load_grefcoco(tmp_path, "val")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"sentences": [{"raw": "a", "sent_id": 5}]}, "sentence without text", id="raw-alone"),
        pytest.param({"ann_id": []}, "row that cannot be read", id="no-annotation"),
        pytest.param({"ann_id": [10, 99]}, "annotation that instances.json lacks", id="unknown-annotation"),
        pytest.param({"ann_id": [20]}, "annotation of another image", id="other-image"),
    ],
)
def test_a_ref_that_cannot_be_used_is_skipped_and_counted(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    refs = [ref(1, [10]), ref(2, [10], **changes), ref(3, [-1])]
    dataset = refer.load_grefcoco(write(tmp_path, refs), "val")
    assert [sample.ref_id for sample in dataset.samples] == ["1", "3"]
    assert {key: len(places) for key, places in dataset.skipped.items()} == {reason: 1}
    assert "ref 1" in dataset.skipped[reason][0]
    assert dataset.notes() == [f"grefcoco val: skipped 1: {reason}"]


def test_targets_that_are_crowds_are_known(tmp_path: Path) -> None:
    refs = [ref(1, [10]), ref(2, [10, 11]), ref(3, [-1]), ref(4, [11])]
    write(tmp_path, refs, lambda instances: instances["annotations"][1].update(iscrowd=1))
    dataset = refer.load_grefcoco(tmp_path, "val")
    assert dataset.crowd_targets == {"102", "104"}
    assert any("2 of 4 expressions mean a crowd region" in note for note in dataset.notes())


def test_one_unusable_entry_of_the_instances_is_counted(tmp_path: Path) -> None:
    more = [
        {"id": 90, "image_id": 22, "category_id": 1, "bbox": [1, 2]},
        {"id": 91, "image_id": 8, "category_id": 1, "bbox": [1, 2, 3, 4]},
    ]
    write(tmp_path, [ref(1, [10]), ref(2, [11])], lambda instances: instances["annotations"].extend(more))
    dataset = refer.load_grefcoco(tmp_path, "val")
    assert len(dataset.samples) == 2
    assert {reason: len(places) for reason, places in dataset.skipped.items()} == {
        "row that cannot be read": 1,
        "annotation of an unknown image or category": 1,
    }


def test_an_image_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images" / "mscoco" / "images" / "train2014").mkdir(parents=True)
    name = "../../../../../elsewhere.jpg"
    write(tmp_path, [ref(1, [10])], lambda instances: instances["images"][0].update(file_name=name))
    with pytest.raises(DataError, match=r"image '\.\./.*elsewhere\.jpg' lies outside .*train2014"):
        refer.load_grefcoco(tmp_path, "val")


@pytest.mark.parametrize("content", [{"a": 1}, [1], "x"], ids=["object", "numbers", "text"])
def test_another_file_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(
        DataError, match=r"grefs\(unc\)\.json holds (a (dict|str), not a list of|refs that cannot be read)"
    ):
        refer.load_grefcoco(write(tmp_path, content), "val")


def test_what_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"grefs\(unc\)\.json does not exist\. Fetch gRefCOCO"):
        refer.load_grefcoco(tmp_path, "val")
    write(tmp_path, [ref(1, [10]), ref(2, [10], "train")])
    with pytest.raises(DataError, match=r"no split 'testA'\. Its splits are: train, val"):
        refer.load_grefcoco(tmp_path, "testA")
    with pytest.raises(RecipeError, match=r"data\.settings\.text='tokens': it must be 'sent'"):
        refer.load_grefcoco(tmp_path, "val", text="tokens")  # type: ignore[arg-type]


def test_the_check_counts_what_has_no_target_and_sees_leaks(tmp_path: Path) -> None:
    write(tmp_path, [ref(1, [10], "train"), ref(2, [10, 11]), ref(3, [-1])])
    report = check.check_datasets([refer.load_grefcoco(tmp_path, split) for split in ("train", "val")])
    assert [counts.num_without_box for counts in report.splits] == [0, 1]
    assert [finding.count for finding in report.findings if finding.what == "images shared"] == [1]


def test_further_targets_survive_plain_data_and_need_a_target() -> None:
    sample = Sample("1", "1", "i", None, (640, 480), "zebras", ZEBRA, further_targets=(OTHER,))
    assert from_dict(Sample, json.loads(json.dumps(to_dict(sample)))) == sample
    with pytest.raises(ValueError, match="sample '1' has further targets, but no target"):
        Sample("1", "1", "i", None, (640, 480), "zebras", None, further_targets=(OTHER,))
