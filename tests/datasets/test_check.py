import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llm_wrapper.datasets import check, refer
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.records import Box, Sample

_REAL = os.environ.get("LLM_WRAPPER_REAL_DATA", "")


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (100, 50)).save(path)
    return str(path)


def _sample(number: int, path: str | None, **changes: Any) -> Sample:
    values = {
        **{"sample_id": str(number), "ref_id": "r", "image_id": "1", "image_path": path, "image_wh": (100, 50)},
        **{"expression": f"mug {number}", "target": Box(1, 2, 30, 40), **changes},
    }
    return Sample(**values)


def _dataset(split: str, *samples: Sample, name: str = "mine") -> Dataset:
    return Dataset(name, split, samples, "digest")


def test_counts(image: str) -> None:
    samples = [_sample(1, image), _sample(2, image, target=None, ref_id="s"), _sample(3, image, image_path=image)]
    report = check.check_datasets([_dataset("val", *samples)])
    (counts,) = report.splits
    assert (counts.dataset, counts.split, counts.num_expressions, counts.num_refs) == ("mine", "val", 3, 2)
    assert (counts.num_images, counts.num_without_box) == (1, 1)
    assert report.findings == ()
    assert report.ok
    assert check.format_check(report).splitlines() == [
        "data set  split  expressions  refs  images  without box",
        "mine      val    3            2     1       1",
        "nothing found that needs a hand",
    ]


@pytest.mark.parametrize(
    ("changes", "level", "what"),
    [
        ({"image_path": "gone.jpg"}, "error", "image files missing"),
        ({"image_path": None, "image_id": "2"}, "warning", "images without an image file"),
        ({"target": Box(0, 0, 101.5, 40)}, "warning", "boxes more than a pixel outside"),
        ({"sample_id": "1"}, "error", "sample ids used twice"),
        ({"expression": " MUG 1", "target": Box(0, 0, 9, 9)}, "warning", "several targets"),
        ({"expression": " MUG 1", "target": None}, "warning", "several targets"),
        ({"expression": " MUG 1"}, "warning", "repeated for one target"),
        ({"expression": " "}, "error", "empty expressions"),
        ({"expression": "\u200b\u3164\u0301"}, "error", "empty expressions"),
    ],
)
def test_findings(image: str, changes: dict[str, Any], level: str, what: str) -> None:
    report = check.check_datasets([_dataset("val", _sample(1, image), _sample(2, image, **changes))])
    (finding,) = report.findings
    assert (finding.level, finding.where, finding.count) == (level, "mine val", 1)
    assert what in finding.what
    assert finding.remedy.endswith(".")
    assert report.ok == (level == "warning")


@pytest.mark.parametrize(
    "changes",
    [
        {"target": Box(0, 0, 101, 50.9)},
        {"expression": "mug 1", "image_id": "2"},
        {"expression": "other", "target": Box(1, 2, 30, 40)},
    ],
    ids=["a pixel outside", "same words, other image", "same target, other words"],
)
def test_nothing_is_made_up(image: str, changes: dict[str, Any]) -> None:
    assert check.check_datasets([_dataset("val", _sample(1, image), _sample(2, image, **changes))]).findings == ()


@pytest.mark.parametrize(
    ("changes", "num_shared"),
    [
        ({}, 1),
        ({"image_id": "other"}, 1),
        ({"image_path": None}, 1),
        ({"image_path": None, "image_wh": (7, 7)}, 0),
        ({"image_path": None, "image_id": "other"}, 0),
    ],
    ids=["same", "same file", "same id", "same id, other size", "other"],
)
def test_images_shared_by_train_and_evaluation(image: str, changes: dict[str, Any], num_shared: int) -> None:
    train = _dataset("train", _sample(1, image), _sample(2, image))
    held_out = _dataset("testA", _sample(3, image, **{"target": None, **changes}), name="other")
    shared = [
        finding for finding in check.check_datasets([train, held_out]).findings if finding.what == "images shared"
    ]
    assert sum(finding.count for finding in shared) == num_shared
    assert all(finding.where == "mine train and other testA" and finding.level == "error" for finding in shared)
    evaluations = check.check_datasets([_dataset("val", _sample(1, image)), held_out]).findings
    assert [finding for finding in evaluations if finding.what == "images shared"] == []


@pytest.mark.parametrize(
    ("facts", "where", "what", "count"),
    [
        pytest.param(
            {"has_splits": False}, "mine", "expressions without a split: train and val are one", 2, id="split"
        ),
        pytest.param({"crowd_targets": frozenset("2")}, "mine val", "targets that are crowd regions", 1, id="crowd"),
        pytest.param(
            {"skipped": {"ref without sentences": ("ref 1", "ref 7")}}, "mine val", "skipped", 2, id="skipped"
        ),
    ],
)
def test_what_readers_know_is_named(image: str, facts: dict[str, Any], where: str, what: str, count: int) -> None:
    samples = [_sample(1, image), _sample(2, image)]
    report = check.check_datasets([Dataset("mine", "val", samples, "digest", **facts)])
    (finding,) = report.findings
    assert (finding.level, finding.where, finding.count) == ("warning", where, count)
    assert what in finding.what


@pytest.mark.parametrize(
    ("orientation", "image_wh", "level", "what"),
    [
        pytest.param(1, (100, 50), None, "", id="upright"),
        pytest.param(6, (50, 100), None, "", id="turned-annotated-upright"),
        pytest.param(6, (100, 50), "warning", "annotated as stored", id="turned-annotated-as-stored"),
        pytest.param(1, (50, 100), "error", "of another size than annotated", id="sides-swapped"),
        pytest.param(1, (200, 100), "error", "of another size than annotated", id="other-size"),
    ],
)
def test_sizes_of_files_are_compared_upright(
    tmp_path: Path, orientation: int, image_wh: tuple[int, int], level: str | None, what: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (100, 50)).save(tmp_path / "b.jpg", exif=exif)
    sample = _sample(1, str(tmp_path / "b.jpg"), image_wh=image_wh, target=Box(1, 2, 30, 40))
    found = check.check_datasets([_dataset("val", sample)]).findings
    assert [finding.level for finding in found] == ([] if level is None else [level])
    assert all(what in finding.what for finding in found)


def test_an_image_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_text("no image")
    (finding,) = check.check_datasets([_dataset("val", _sample(1, str(tmp_path / "b.jpg")))]).findings
    assert (finding.level, finding.what) == ("error", "image files that cannot be read")


def test_render_names_examples_and_remedy(image: str) -> None:
    samples = [_sample(number, image, image_path=f"gone{number}.jpg") for number in range(5)]
    lines = check.format_check(check.check_datasets([_dataset("val", *samples)])).splitlines()
    assert lines[2] == "error: mine val: 5 image files missing: gone0.jpg, gone1.jpg, gone2.jpg, ..."
    assert lines[3].startswith("  Fetch these files")


@pytest.mark.slow
@pytest.mark.skipif(not _REAL, reason="LLM_WRAPPER_REAL_DATA is not set: no real annotations here")
def test_real_refcocog_is_clean() -> None:
    root = Path(_REAL) / "refer"
    splits = [refer.load_refer(root, split, name="refcocog", split_by="umd") for split in ("train", "val")]
    report = check.check_datasets(splits)
    assert report.ok
    assert [counts.num_expressions for counts in report.splits] == [9304, 4896]
    assert report.splits[1].num_refs == 2573
