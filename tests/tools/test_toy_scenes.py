from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_grammar import KINDS
from toy_scenes import SPLIT_SIZES, annotation_rows, main, make_scene

from llm_wrapper.datasets.jsonl import load_toy

ROOT = Path(__file__).resolve().parents[2] / "data" / "toy"


@pytest.mark.parametrize("split", SPLIT_SIZES)
def test_scenes_painted_again_equal_the_committed_files(split: str) -> None:
    lines = (ROOT / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    for index in (0, SPLIT_SIZES[split] - 1):
        scene = make_scene(split, index)
        with Image.open(ROOT / "images" / f"{scene.image_id}.png") as stored:
            assert np.array_equal(np.asarray(stored.convert("RGB")), np.asarray(scene.image.convert("RGB")))
        assert [json.dumps(row) for row in annotation_rows(scene)] == [
            line for line in lines if f'"{scene.image_id}"' in line
        ]


@pytest.mark.slow
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


@pytest.mark.parametrize("split", ["val", "test"])
def test_kinds_are_balanced(split: str) -> None:
    counts = Counter(sample.kind for sample in load_toy(ROOT, split).samples)
    assert counts == dict.fromkeys(KINDS, SPLIT_SIZES[split])


def test_committed_files_stay_small() -> None:
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) < 2_500_000


@pytest.mark.parametrize("arguments", [[], ["a", "b"]], ids=["none", "two"])
def test_main_refuses_other_than_one_folder(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage" in capsys.readouterr().err
