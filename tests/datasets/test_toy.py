from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llm_wrapper.datasets.toy import load_toy
from llm_wrapper.datasets.toy_grammar import KINDS
from llm_wrapper.datasets.toy_scenes import SPLIT_SIZES, main, make_scene, rows
from llm_wrapper.errors import DataError
from llm_wrapper.records import Box

ROOT = Path(__file__).resolve().parents[2] / "data" / "toy"


# --- the committed files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLIT_SIZES)
def test_scenes_made_again_equal_the_committed_files(split: str) -> None:
    lines = (ROOT / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    for index in (0, 7, SPLIT_SIZES[split] - 1):
        made = make_scene(split, index)
        with Image.open(ROOT / "images" / f"{made.image_id}.png") as stored:
            assert np.array_equal(np.asarray(stored.convert("RGB")), np.asarray(made.image.convert("RGB")))
        assert [json.dumps(row) for row in rows(made)] == [line for line in lines if f'"{made.image_id}"' in line]


def test_no_scene_is_in_two_splits_and_no_image_is_orphaned() -> None:
    digests: dict[str, str] = {}
    for split, num_scenes in SPLIT_SIZES.items():
        images = load_toy(ROOT, split).images()
        assert len(images) == num_scenes
        for sample in images:
            assert sample.image_path is not None
            with Image.open(sample.image_path) as stored:
                digest = hashlib.sha256(stored.convert("RGB").tobytes()).hexdigest()
            assert digests.setdefault(digest, sample.image_path) == sample.image_path
    assert set(digests.values()) == {str(path) for path in (ROOT / "images").iterdir()}


@pytest.mark.parametrize("split", SPLIT_SIZES)
def test_kinds_are_balanced(split: str) -> None:
    counts = Counter(sample.kind for sample in load_toy(ROOT, split).samples)
    assert counts == dict.fromkeys(KINDS, SPLIT_SIZES[split])


def test_committed_files_stay_small() -> None:
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) < 2_500_000


@pytest.mark.parametrize("arguments", [[], ["a", "b"]], ids=["none", "two"])
def test_main_refuses_other_than_one_folder(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage" in capsys.readouterr().err


# --- the loader ----------------------------------------------------------------------------------------------------


def write_split(root: Path, lines: list[str]) -> None:
    (root / "images").mkdir(exist_ok=True)
    Image.new("RGB", (240, 180)).save(root / "images" / "a.png")
    (root / "val.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def line(**changes: Any) -> str:
    row = {"sample_id": "a-0", "ref_id": "r", "image_id": "a", "image": "images/a.png", "width": 240, "height": 180}
    return json.dumps(row | {"expression": "red star", "box": [1, 2, 30, 40], "kind": "attribute"} | changes)


def test_load_gives_samples(tmp_path: Path) -> None:
    write_split(tmp_path, [line(), line(sample_id="a-1", expression="the st\u2028ar", box=[0, 0, 240, 180])])
    dataset = load_toy(tmp_path, "val")
    first, second = dataset.samples
    assert (dataset.name, dataset.split, len(dataset.digest)) == ("toy", "val", 64)
    assert first.target == Box(1, 2, 30, 40)
    assert (first.image_path, first.image_wh, first.kind) == (str(tmp_path / "images/a.png"), (240, 180), "attribute")
    assert second.expression == "the st\u2028ar"


def test_digest_follows_the_annotations(tmp_path: Path) -> None:
    write_split(tmp_path, [line()])
    before = load_toy(tmp_path, "val").digest
    write_split(tmp_path, [line(expression="blue star")])
    assert load_toy(tmp_path, "val").digest != before


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "JSON"),
        ("[1]", "object"),
        (line(box=[1, 2, 3]), "box"),
        (line(box=[30, 2, 1, 40]), "reversed"),
        (line(box=[1, 2, 241, 40]), "reaches out"),
        (line(box=[1, 2, "3", 40]), "box[2]: must be a number"),
        (line(expression=" "), "expression: must not be empty"),
        (line(image="../a.png"), "lies outside"),
        ('{"kind": "a", "kind": "b"}', "stands twice"),
        (line(kind="colour"), "colour"),
        (line(image="images/b.png"), "images/b.png"),
        (line(image="images"), "does not exist"),
        (line(width=0), "width"),
        (line(extra=1), "extra"),
        (json.dumps({"sample_id": "a-0"}), "expression"),
    ],
)
def test_load_names_the_line_the_problem_and_the_remedy(text: str, word: str, tmp_path: Path) -> None:
    write_split(tmp_path, [line(sample_id="good"), text])
    with pytest.raises(DataError) as error:
        load_toy(tmp_path, "val")
    message = str(error.value)
    assert "val.jsonl: line 2" in message
    assert word in message
    assert f"python -m llm_wrapper.datasets.toy_scenes {tmp_path}" in message


def test_load_lists_all_problems(tmp_path: Path) -> None:
    write_split(tmp_path, [line(), line(), line(sample_id="b", kind="x", image="images/b.png"), "{"])
    with pytest.raises(DataError, match="4 problems") as error:
        load_toy(tmp_path, "val")
    assert "'a-0' stands on an earlier line too" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe"], ids=["empty", "blank", "not UTF-8"])
def test_load_refuses_a_file_without_rows(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "val.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=r"python -m llm_wrapper\.datasets\.toy_scenes"):
        load_toy(tmp_path, "val")


def test_load_names_the_splits_and_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'testA'.*train, val, test"):
        load_toy(tmp_path, "testA")
    with pytest.raises(DataError, match=r"val\.jsonl does not exist.*python -m llm_wrapper\.datasets\.toy_scenes"):
        load_toy(tmp_path, "val")
