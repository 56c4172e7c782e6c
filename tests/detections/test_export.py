"""Exported detections come back as they were through the detector `import`, and other programs read the parts."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
import pytest

from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detections.cache import DetectionCache
from llm_wrapper.detections.contents import Key
from llm_wrapper.detections.maintain import export_cache
from llm_wrapper.detectors import Level, detect_sample, imported
from llm_wrapper.errors import CacheError, DataError, RecipeError
from llm_wrapper.records import Box, Detection, Detections, Sample
from tests.detections.test_cache import IDENTITY

_Shown = tuple[tuple[float, ...], str, float | None]

DOG = Detection(Box(0.1 + 0.2, 1 / 3, 200.7, 1e5), "dog\n<|im_end|>", 0.1, "od")
CAT = Detection(Box(-3.5, 0.0, 1.0, 5e-3), "犬 \u2028 cat", 1.0, "rec")
MUG = Detection(Box(1.0, 2.0, 3.0, 4.0), "mug", None, "dense")


def fill(
    folder: Path, answers: dict[Key, Detections], levels: Sequence[Level], unanswered: dict[str, str] | None = None
) -> DetectionCache:
    with DetectionCache.resume(folder, IDENTITY) as cache:
        for answer in answers.items():
            cache.append([answer])
        cache.finish(levels, unanswered or {}, order=answers, rows_per_part=1)
    return cache


def samples(*image_ids: str) -> list[Sample]:
    return [Sample(f"s{n}", "r", image, None, (9, 9), "x", None) for n, image in enumerate(image_ids)]


def shown(answer: Detections) -> list[_Shown]:
    return [(item.box.xyxy, item.label, item.score) for item in answer.items]


def read_back(path: Path, known: list[Sample], **settings: Any) -> list[list[_Shown]]:
    detector = imported.create_imported({"path": path, **settings}).bind(Dataset("mine", "val", known, "digest"))
    return [shown(detect_sample(detector, sample)) for sample in known]


ALL = Detections((DOG, CAT, MUG), num_dropped=3)
SCORED = Detections((DOG, CAT))
NONE = Detections(())


@pytest.mark.parametrize(
    ("answers", "levels"),
    [
        pytest.param({("7", None): ALL, ("x", None): NONE}, ["image"], id="of images"),
        pytest.param({("7", "s0"): ALL, ("7", "s1"): NONE, ("x", "s2"): SCORED}, ["expression"], id="of expressions"),
        pytest.param(
            {("7", None): ALL, ("7", "s0"): SCORED, ("7", "s1"): NONE, ("x", "s2"): SCORED, ("x", None): NONE},
            ["image", "expression"],
            id="of both",
        ),
    ],
)
def test_lines_come_back_to_the_last_digit(answers: Any, levels: Any, tmp_path: Path) -> None:
    cache, known = fill(tmp_path / "cache", answers, levels), samples("7", "7", "x")
    out = tmp_path / "boxes.jsonl"
    assert export_cache(tmp_path / "cache", out) == [out]
    assert read_back(out, known) == [shown(cache.lookup(sample)) for sample in known]


@pytest.mark.parametrize(
    ("image_ids", "written"),
    [(["7", "0"], [7, 0]), (["7", "0x1"], ["7", "0x1"]), (["7", "007"], ["7", "007"])],
    ids=["numbers", "text", "zeros in front"],
)
def test_results_come_back(image_ids: list[str], written: list[Any], tmp_path: Path) -> None:
    answers: dict[Key, Detections] = {(image_id, None): SCORED for image_id in image_ids}
    cache, known = fill(tmp_path / "cache", {**answers, ("z", None): NONE}, ["image"]), samples(*image_ids, "z")
    out, categories = tmp_path / "boxes.json", tmp_path / "boxes.categories.json"
    assert export_cache(tmp_path / "cache", out) == [categories, out]
    assert [row["image_id"] for row in json.loads(out.read_text())] == [each for each in written for _ in range(2)]
    for one, sample in zip(read_back(out, known, categories=categories), known, strict=True):
        wanted = shown(cache.lookup(sample))
        assert [row[1:] for row in one] == [row[1:] for row in wanted]
        for (box, *_), (original, *_) in zip(one, wanted, strict=True):
            assert box == pytest.approx(original, rel=1e-12)


def test_results_are_what_coco_tools_read(tmp_path: Path) -> None:
    mug = Detection(Box(1.0, 2.0, 4.0, 6.0), "mug", 0.5, "od")
    fill(tmp_path / "cache", {("1", None): Detections((mug, DOG, mug))}, ["image"])
    export_cache(tmp_path / "cache", tmp_path / "boxes.json")
    first, second, third = json.loads((tmp_path / "boxes.json").read_text())
    assert first == third == {"image_id": 1, "category_id": 2, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}
    assert second["category_id"] == 1
    assert json.loads((tmp_path / "boxes.categories.json").read_text()) == {
        "categories": [{"id": 1, "name": DOG.label}, {"id": 2, "name": "mug"}]
    }


def test_an_image_that_was_left_out_has_no_detections_after_all(tmp_path: Path) -> None:
    answers: dict[Key, Detections] = {("7", "s0"): SCORED}
    cache, known = fill(tmp_path / "cache", answers, ["expression"], {"8": "8.jpg is truncated"}), samples("7", "8")
    export_cache(tmp_path / "cache", tmp_path / "boxes.jsonl")
    assert read_back(tmp_path / "boxes.jsonl", known) == [shown(cache.lookup(sample)) for sample in known]
    assert len((tmp_path / "boxes.jsonl").read_bytes().splitlines()) == 1


@pytest.mark.parametrize("name", ["boxes.json", "boxes.jsonl"])
def test_a_cache_without_answers_is_an_empty_file(name: str, tmp_path: Path) -> None:
    fill(tmp_path / "cache", {}, ["image"])
    *categories, out = export_cache(tmp_path / "cache", tmp_path / name)
    settings = {"categories": categories[0]} if categories else {}
    assert read_back(out, samples("7"), **settings) == [[]]


def test_detections_without_scores_are_not_given_any(tmp_path: Path) -> None:
    fill(tmp_path / "cache", {("1", None): ALL, ("2", None): Detections((MUG,))}, ["image"])
    with pytest.raises(RecipeError, match=r"name .*boxes\.jsonl instead(.|\n)*2 of 4 detections have no score"):
        export_cache(tmp_path / "cache", tmp_path / "boxes.json")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize("levels", [["expression"], ["expression", "image"]], ids=["expressions", "both"])
def test_results_cannot_hold_expressions(levels: Any, tmp_path: Path) -> None:
    answers: dict[Key, Detections] = {("1", "s0"): SCORED, ("1", None): SCORED}
    fill(tmp_path / "cache", answers if len(levels) > 1 else {("1", "s0"): SCORED}, levels)
    with pytest.raises(RecipeError, match=r"name .*boxes\.jsonl instead(.|\n)*COCO results know images only"):
        export_cache(tmp_path / "cache", tmp_path / "boxes.json")


def test_an_unfinished_cache_is_not_exported(tmp_path: Path) -> None:
    fill(tmp_path / "cache", {("1", None): SCORED}, ["image"])
    (tmp_path / "cache" / "manifest.json").unlink()
    with pytest.raises(CacheError, match=r"is incomplete: .* Run `llm-wrapper cache-detections --vlm toy"):
        export_cache(tmp_path / "cache", tmp_path / "boxes.json")


def test_a_damaged_cache_is_not_exported(tmp_path: Path) -> None:
    fill(tmp_path / "cache", {("1", None): SCORED, ("2", None): SCORED}, ["image"])
    (tmp_path / "cache" / "part-00001.parquet").unlink()
    with pytest.raises(CacheError, match=r"part-00001\.parquet is missing"):
        export_cache(tmp_path / "cache", tmp_path / "boxes.json")


@pytest.mark.parametrize("taken", ["boxes.json", "boxes.categories.json"])
def test_no_file_is_overwritten(taken: str, tmp_path: Path) -> None:
    fill(tmp_path / "cache", {("1", None): SCORED}, ["image"])
    (tmp_path / taken).write_text("mine")
    with pytest.raises(DataError, match=rf"{taken} exists. Name another file, or remove it: rm "):
        export_cache(tmp_path / "cache", tmp_path / "boxes.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["cache", taken])
    assert (tmp_path / taken).read_text() == "mine"


@pytest.mark.parametrize("name", ["boxes", "boxes.csv", "boxes.JSON"])
def test_a_file_of_neither_format_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"{name} ends neither in .json"):
        export_cache(tmp_path / "absent", tmp_path / name)


@pytest.mark.parametrize("name", ["boxes.json", "boxes.jsonl"])
def test_a_box_without_a_label_comes_back(name: str, tmp_path: Path) -> None:
    bare = Detections((Detection(Box(1.0, 2.0, 3.0, 4.0), "", 0.5, "od"), DOG))
    cache, known = fill(tmp_path / "cache", {("7", None): bare}, ["image"]), samples("7")
    *categories, out = export_cache(tmp_path / "cache", tmp_path / name)
    settings = {"categories": categories[0]} if categories else {}
    [[box, *_]] = read_back(out, known, **settings)
    assert box[1:] == shown(cache.lookup(known[0]))[0][1:]


def test_a_score_that_is_one_but_for_rounding_comes_back_as_one(tmp_path: Path) -> None:
    fill(tmp_path / "cache", {("1", None): Detections((Detection(DOG.box, "dog", 1.0000001, "od"),))}, ["image"])
    [out] = export_cache(tmp_path / "cache", tmp_path / "boxes.jsonl")
    assert read_back(out, samples("1")) == [[(DOG.box.xyxy, "dog", 1.0)]]


def test_what_could_not_be_read_back_is_all_told(tmp_path: Path) -> None:
    box = Box(1.0, 2.0, 3.0, 4.0)
    bad = Detections((Detection(box, "", 0.5, "od"), Detection(box, "mug", -3.5, "od"), DOG))
    answers = {("1", None): bad, ("2", None): NONE, ("2", "s0"): bad}
    fill(tmp_path / "cache", answers, ["image", "expression"])
    with pytest.raises(DataError) as caught:
        export_cache(tmp_path / "cache", tmp_path / "boxes.jsonl")
    assert "empty label" not in str(caught.value)
    assert "sample 's0' of image '2': score -3.5 of 'mug' is not in 0..1" in str(caught.value)


def test_other_programs_read_the_parts_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    fill(folder, {("7", None): ALL, ("8", "s0"): SCORED, ("9", None): NONE}, ["image", "expression"])
    frame = pandas.read_parquet(list(folder.glob("part-*.parquet")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets

        rows = datasets.load_dataset(
            "parquet", data_files=f"{folder}/part-*.parquet", split="train", cache_dir=str(tmp_path / "hf")
        )
    assert sorted(frame["image_id"]) == sorted(rows["image_id"]) == ["7", "8", "9"]
    assert [len(items) for items in frame.sort_values("image_id")["items"]] == [3, 2, 0]
    (row,) = (row for row in rows if row["image_id"] == "7")
    assert row["items"][0]["label"] == DOG.label
    assert math.isclose(row["items"][0]["box"]["y1"], DOG.box.y1)
