from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llm_wrapper.datasets.jsonl import load_toy
from llm_wrapper.errors import DataError
from llm_wrapper.records import Box


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
        (line(box=[30, 2, 1, 40]), "reversed"),
        (line(image="../a.png"), "lies outside"),
        (line(extra=1), "extra"),
    ],
)
def test_load_names_the_line_the_problem_and_the_remedy(text: str, word: str, tmp_path: Path) -> None:
    write_split(tmp_path, [line(sample_id="good"), text])
    with pytest.raises(DataError, match=rf"(?s)val\.jsonl.*line 2.*{word}.*copy it from there, or correct data\.root"):
        load_toy(tmp_path, "val")


def test_load_names_the_splits_and_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'testA'.*train, val, test"):
        load_toy(tmp_path, "testA")
    with pytest.raises(DataError, match=r"val\.jsonl does not exist\. The whole toy data is .*data/toy"):
        load_toy(tmp_path, "val")
