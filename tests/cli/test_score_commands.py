"""`llm-wrapper score`: the same table, predictions and JSON as an evaluation leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llm_wrapper import datasets
from llm_wrapper.errors import DataError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.metrics import summarize_systems
from llm_wrapper.recipe import DataSection, compose
from llm_wrapper.report import formatting
from tests.commands import fail, run

pytestmark = pytest.mark.usefixtures("own_folder")

TOY = Path(__file__).parents[2] / "data" / "toy"
NAMES = {"vlm": "toy", "llm": "rule", "train": "default"}


def section(data: str, root: Path) -> DataSection:
    return compose({**NAMES, "data": data}, [f"data.root={json.dumps(str(root))}"]).data


def wrong_every_fifth(data: DataSection, split: str, path: Path) -> int:
    """Write the targets as boxes, less the first sample, with a box elsewhere at every fifth; return how many lines."""
    samples = datasets.load_dataset(data, split).samples[1:]
    rows = []
    for place, each in enumerate(samples):
        assert each.target is not None
        box = each.target.xyxy if place % 5 else (0, 0, 3, 3)
        rows.append({"sample_id": each.sample_id, "box": box})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def test_a_score_leaves_what_an_evaluation_leaves() -> None:
    num_lines = wrong_every_fifth(section("toy", TOY), "val", Path("[glip].jsonl"))
    printed = run("score", "[glip].jsonl", "--data-root", TOY)
    folder = Path("runs/score/toy-glip")
    rows = files.load_predictions(folder / "predictions-val.parquet")
    report = json.loads((folder / "report-val.json").read_text())
    (row,) = report["rows"]
    assert (row["name"], row["n"]) == ("[glip]", num_lines + 1)
    assert row["p_at_1"] == pytest.approx((num_lines - len(range(0, num_lines, 5))) / (num_lines + 1))
    assert row["ci"][0] < row["p_at_1"] < row["ci"][1]
    assert row["oracle_p_at_1"] is None
    assert row["decided_by"] == {"detector": num_lines, "missing": 1}
    assert (report["split"], report["file"]["name"], report["file"]["box_format"]) == ("val", "[glip].jsonl", None)
    assert report["recipe"]["data"]["root"] == str(TOY)
    lines = printed.splitlines()
    assert report["notes"] == [line for line in lines if "have no prediction" in line or "a prediction alone" in line]
    share = (num_lines - len(range(0, num_lines, 5))) / num_lines
    assert f"over the {num_lines} samples with a prediction alone, P@1 is {100 * share:.1f}" in lines
    assert (folder / "report-val.md").read_text() == formatting.summary_markdown(summarize_systems(rows))
    again = run("report", folder)
    assert printed.partition(report["notes"][0])[0].strip() in again


@pytest.mark.slow
def test_name_split_and_format_are_options() -> None:
    data = section("toy", TOY)
    wrong_every_fifth(data, "test", Path("a.jsonl"))
    assert "of toy val is" not in (told := fail(DataError, "score", "a.jsonl", "--data-root", TOY))
    assert "predictions are not for toy val: line 1: sample " in told
    assert "read as xyxy_norm, the boxes overlap with the targets by a mean IoU of 0.00" in fail(
        DataError, "score", "a.jsonl", "--data-root", TOY, "--split", "test", "--box-format", "xyxy_norm"
    )
    assert not Path("runs").exists()
    run("score", "a.jsonl", "--data-root", TOY, "--split", "test", "--name", "white box")
    assert Path("runs/score/toy-white-box/report-test.json").is_file()


def test_our_own_predictions_keep_their_candidates() -> None:
    wrong_every_fifth(section("toy", TOY), "val", Path("a.jsonl"))
    run("score", "a.jsonl", "--data-root", TOY)
    first = Path("runs/score/toy-a")
    printed = run("score", first / "predictions-val.parquet", "--data-root", TOY, "--name", "b")
    assert "kept in runs/score/toy-b" in printed
    rows = [
        json.loads((folder / "report-val.json").read_text())["rows"][0] for folder in (first, Path("runs/score/toy-b"))
    ]
    assert {**rows[0], "name": "b"} == rows[1]


def rows_of(path: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads((path / "report-val.json").read_text())["rows"]
    return rows


@pytest.mark.slow
def test_another_file_of_that_name_is_kept_beside_the_first() -> None:
    data = section("toy", TOY)
    for folder in ("one", "two"):
        Path(folder).mkdir()
        wrong_every_fifth(data, "val", Path(folder, "boxes.jsonl"))
    more = Path("two", "boxes.jsonl")
    more.write_text(more.read_text().replace("[0, 0, 3, 3]", "[0, 0, 3, 4]"))
    first, again = (
        run("score", "one/boxes.jsonl", "--data-root", TOY),
        run("score", "one/boxes.jsonl", "--data-root", TOY),
    )
    assert first == again
    kept = rows_of(Path("runs/score/toy-boxes"))
    printed = run("score", more, "--data-root", TOY)
    assert "runs/score/toy-boxes holds the score of another file or data set, and stays as it is" in printed
    assert rows_of(Path("runs/score/toy-boxes")) == kept
    assert len(list(Path("runs/score").glob("toy-boxes-*/report-val.json"))) == 1


def test_expressions_without_a_target_have_an_accuracy_of_their_own() -> None:
    line = {"image": "a.png", "width": 640, "height": 480}
    targets = [[64, 96, 256, 384], None, None, None, None]
    rows = [{**line, "sample_id": f"s{n}", "expression": f"no. {n}", "box": box} for n, box in enumerate(targets)]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = [targets[0], [], None, [1]]
    given = [{"sample_id": f"s{n}", "box": box} for n, box in enumerate(answers)]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    printed = run("score", "a.jsonl", "--data", "mine", "--data-root", "mine.jsonl")
    assert "N-acc 50.0: 2 of 4 expressions without a target were answered by no box" in printed
    assert "1 of 5 samples have no prediction and count as wrong: s4" in printed


def test_data_without_targets_cannot_be_scored() -> None:
    Path("mine.jsonl").write_text(json.dumps({"image": "a.png", "expression": "x", "width": 9, "height": 9}))
    Path("a.jsonl").write_text(json.dumps({"sample_id": "1", "box": [1, 2, 3, 4]}))
    assert "mine val has no box to compare with" in fail(
        DataError, "score", "a.jsonl", "--data", "mine", "--data-root", "mine.jsonl"
    )


@pytest.mark.slow
def test_real_refcocog_as_an_image_and_words_file() -> None:
    root = os.environ.get("LLM_WRAPPER_REAL_DATA")
    if not root:
        pytest.skip("LLM_WRAPPER_REAL_DATA is not set: no real annotations")
    samples = datasets.load_dataset(section("refcocog", Path(root) / "refer"), "val").samples
    rows = [
        {"image": f"COCO_train2014_{int(s.image_id):012d}.jpg", "expression": s.expression, "box": s.target.xyxy}
        for s in {(s.image_id, s.expression): s for s in samples}.values()
        if s.target is not None
    ]
    Path("targets.json").write_text(json.dumps(rows))
    run("score", "targets.json", "--data", "refcocog", "--data-root", Path(root) / "refer")
    (row,) = json.loads(Path("runs/score/refcocog-targets/report-val.json").read_text())["rows"]
    assert row["n"] == len(samples)
    assert row["p_at_1"] > 0.99
