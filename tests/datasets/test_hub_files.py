"""Copies of hub repositories: which files make a split, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from llm_wrapper.datasets import hub
from llm_wrapper.errors import DataError
from tests.datasets import replicas

REPO = "jxu124/refcoco@abc"


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["hc_refloco_val.parquet", "hc_refloco_test.parquet"], "all", ["hc_refloco_val", "hc_refloco_test"]),
        (["ref-l4-val.parquet", "ref-l4-test.parquet"], "test", ["ref-l4-test"]),
        (
            ["d/val-00001-of-00002.parquet", "d/val-00000-of-00002.parquet"],
            "val",
            ["val-00000-of-00002", "val-00001-of-00002"],
        ),
        (
            ["d/validation-00000-of-00001-db1f654bae6b38ca.parquet"],
            "val",
            ["validation-00000-of-00001-db1f654bae6b38ca"],
        ),
        (["test.parquet", "testB.parquet"], "testA", ["test"]),
        (["test.parquet", "testA.parquet", "testB.parquet"], "test", ["test"]),
        (["testA.parquet", "testB.parquet", "contest.parquet", ".cache/test.parquet"], "test", ["testA", "testB"]),
    ],
    ids=["all", "one", "parts", "validation", "testA", "test of its own", "test of both"],
)
def test_files_are_found_by_their_names(tmp_path: Path, names: list[str], split: str, expected: list[str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.stem for path in hub.find_split_files(tmp_path, split, REPO)] == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["val-00000-of-00003.parquet", "val-00002-of-00003.parquet"],
            r"of the 3 files of a split, number 1 is missing \(counted from 0\) beside \S+val-00000",
        ),
        (
            ["val-00000-of-00001-db1f654bae6b38ca.parquet", "val-00000-of-00001-e89980e20c6ffa24.parquet"],
            r"a split is there more than once, remove what is old: \S+val-00000-of-00001-db1f",
        ),
        (["val-00000-of-00001.parquet", "val-00000-of-00002.parquet"], "a split is there more than once"),
        (["val.parquet", "old/val.parquet"], "a split is there more than once"),
        (["train.parquet"], r"has no split 'val'\. Its splits are: train\."),
        (["testA.parquet"], r"has no split 'val'\. Its splits are: testA\."),
    ],
    ids=["a part is missing", "old and new", "two divisions", "two folders", "no split", "half of test"],
)
def test_a_copy_that_is_not_whole_is_refused_with_the_command(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=message) as caught:
        hub.find_split_files(tmp_path, "val", REPO)
    command = f"hf download jxu124/refcoco --repo-type dataset --revision abc --local-dir {tmp_path}"
    assert command in str(caught.value)


@pytest.mark.parametrize("split", ["test", "all"])
def test_half_of_a_joined_split_is_no_split(tmp_path: Path, split: str) -> None:
    for name in ("testA.parquet", "val.parquet"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=f"no split '{split}'"):
        hub.find_split_files(tmp_path, split, REPO)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 130\n",
    ],
    ids=["cut", "empty", "git-lfs"],
)
def test_a_damaged_file_is_named(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    replicas.write_refs(tmp_path, replicas.refs())
    path = next(tmp_path.rglob("validation-*.parquet"))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=r"validation-\S+ is no Parquet file, damaged or cut off: .*git-lfs"):
        hub.load_hub_refs(tmp_path, "val", repo=REPO)


def test_an_absent_folder_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def fetch(repo_id: str, **options: Any) -> str:
        calls.append({"repo_id": repo_id, **options})
        return str(replicas.write_refs(Path(options["local_dir"]), replicas.refs()))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    root = tmp_path / "new"
    assert [len(hub.load_hub_refs(root, split, repo=REPO).samples) for split in ("val", "train")] == [3, 3]
    assert calls == [
        {
            **{"repo_id": "jxu124/refcoco", "repo_type": "dataset", "revision": "abc", "local_dir": root},
            "allow_patterns": ["*.parquet"],
        }
    ]


def test_without_a_network_the_command_is_told(tmp_path: Path) -> None:
    root = tmp_path / "new"
    with pytest.raises(DataError) as caught:
        hub.load_hub_refs(root, "val", repo=REPO)
    assert f"{root} has no Parquet files, and {REPO} cannot be fetched: " in str(caught.value)
    assert str(caught.value).endswith(f"--revision abc --local-dir {root}")


def test_the_replicas_have_the_types_of_the_cards() -> None:
    from datasets import Features, Image, List, Value

    text, whole, real = Value("string"), Value("int64"), Value("float64")
    sentence = {"raw": text, "sent": text, "sent_id": whole, "tokens": List(text)}
    refs = {
        **{"sent_ids": List(whole), "file_name": text, "ann_id": whole, "ref_id": whole, "image_id": whole},
        **{"split": text, "sentences": List(sentence), "category_id": whole, "raw_anns": text, "raw_image_info": text},
        **{"raw_sentences": text, "image_path": text, "bbox": List(real), "captions": List(text)},
        **{"global_image_id": text, "anns_id": text},
    }
    row = {
        **{"question_id": text, "image": Image(), "question": text, "answer": List(text)},
        **{"segmentation": List(Value("float32")), "bbox": List(Value("float32")), "iscrowd": Value("int8")},
        **{"file_name": text},
    }
    assert Features(refs).arrow_schema.remove_metadata().equals(replicas.REFS)
    assert Features(row).arrow_schema.remove_metadata().equals(replicas.OBJECTS)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_no_file_of_a_split(tmp_path: Path) -> None:
    replicas.write_refs(tmp_path, replicas.refs())
    os.mkfifo(tmp_path / "old-val.parquet")
    assert len(hub.load_hub_refs(tmp_path, "val", repo=REPO).samples) == 3


def test_a_row_group_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replicas.write_refs(tmp_path, replicas.refs())
    monkeypatch.setattr(hub, "_MAX_GROUP", 100)
    with pytest.raises(DataError, match=r"validation-\S+ has a row group of \d+ bytes, more than the 100 that"):
        hub.load_hub_refs(tmp_path, "val", repo=REPO)
