"""Results of one question never overwrite those of another."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper import runs
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation.jobs import Evaluation, add_known_untrained
from llm_wrapper.recipe import compose
from tests.commands import run
from tests.evaluation.test_predictions import FULL

pytestmark = pytest.mark.usefixtures("own_folder")

ASKED = {"split": "val", "limit": None, "candidates": {"cap": 20}}


def write_facts(path: Path, facts: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts), encoding="utf-8")


# places


@pytest.mark.parametrize(
    ("stored", "is_free"),
    [
        pytest.param(None, True, id="nothing-there"),
        pytest.param({"question": ASKED}, True, id="the-same"),
        pytest.param({"question": {**ASKED, "limit": 5}}, False, id="another"),
        pytest.param({"rows": []}, False, id="no-question"),
        pytest.param([1], False, id="no-facts"),
    ],
)
def test_another_question_gets_another_place(stored: object, is_free: bool) -> None:
    path = Path("runs/a/report-val.json")
    if stored is not None:
        write_facts(path, stored)
    assert (runs.free_name(path.parent, "val", ASKED) == "val") == is_free
    assert (runs.free_file(path, ASKED) == path) == is_free
    found = runs.free_folder(path.parent, (path.name, "predictions-val.parquet"), ASKED)
    assert (found == path.parent) == is_free
    assert found.parent == path.parent.parent
    assert runs.free_folder(path.parent, (path.name,), ASKED) == found  # always the same place


def test_predictions_without_their_question_are_not_overwritten() -> None:
    write_facts(Path("runs/a/predictions-val.parquet"), 0)
    assert runs.free_name(Path("runs/a"), "val", ASKED).startswith("val-")


@functools.cache
def recipe_values() -> dict[str, Any]:
    return compose({"vlm": "toy", "llm": "smollm2", "data": "toy", "train": "default"}).model_dump(mode="json")


def facts(**sections: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(recipe_values())
    for name, changes in sections.items():
        values[name] = {**values[name], **changes}
    data = [{"name": "toy", "split": "val", "annotations": "a", "detections": "d", "dropped": {"cap": 1}}]
    return {"recipe": values, "split": "val", "limit": None, "data": data, "rows": [], "prompt": {}}


@pytest.mark.parametrize(
    ("section", "change", "is_same"),
    [
        pytest.param("candidates", {"order": "shuffled"}, False, id="order"),
        pytest.param("candidates", {"cap": 5}, False, id="cap"),
        pytest.param("detector", {"settings": {"path": "b.jsonl"}}, False, id="boxes"),
        pytest.param("prompt", {"none_below": 0.5}, False, id="threshold"),
        pytest.param("llm", {"orders": 2}, False, id="orders"),
        pytest.param("llm", {"decode": "generate"}, False, id="decode"),
        pytest.param("llm", {"dtype": "float32"}, False, id="dtype"),
        pytest.param("train", {"seed": 1}, False, id="seed"),
        pytest.param("data", {"root": "elsewhere"}, True, id="moved-data"),
        pytest.param("llm", {"tokens_per_batch": 64}, True, id="batch"),
        pytest.param("llm", {"server": {"concurrency": 1}}, True, id="no-server"),
        pytest.param("train", {"epochs": 7}, True, id="training"),
    ],
)
def test_a_question_is_what_decides_answers(section: str, change: Mapping[str, Any], is_same: bool) -> None:
    a, b = (runs.evaluation_question(each) for each in (facts(), facts(**{section: change})))
    assert runs.is_same(a, b) == is_same


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        pytest.param({"base_url": "http://b:8000/v1"}, False, id="another-server"),
        pytest.param({"tokenizer": "t"}, False, id="tokenizer"),
        pytest.param({"concurrency": 2}, True, id="concurrency"),
    ],
)
def test_of_a_server_its_address_counts(change: Mapping[str, Any], is_same: bool) -> None:
    server = {"base_url": "http://a:8000/v1", "tokenizer": None, "concurrency": 16}
    pair = [facts(llm={"backend": "openai", "server": each}) for each in (server, {**server, **change})]
    a, b = map(runs.evaluation_question, pair)
    assert runs.is_same(a, b) == is_same


def test_reports_of_an_earlier_version_say_their_question_but_not_the_weights() -> None:
    now = runs.evaluation_question({**facts(), "weights": {"adapter_model.safetensors": "w"}})
    write_facts(Path("report-val.json"), facts())
    assert runs.is_same(runs.stored_question(Path("report-val.json")), now)
    write_facts(Path("report-val.json"), {**facts(), "weights": {"adapter_model.safetensors": "v"}})
    assert not runs.is_same(runs.stored_question(Path("report-val.json")), now)
    write_facts(Path("report-val.json"), facts(candidates={"cap": 5}))
    assert not runs.is_same(runs.stored_question(Path("report-val.json")), now)


@pytest.mark.parametrize(
    ("files", "is_same"),
    [
        pytest.param(("a", "a"), True, id="the-same"),
        pytest.param(("a", "b"), False, id="replaced"),
        pytest.param((None, "b"), True, id="of-an-earlier-version"),
    ],
)
def test_a_local_llm_whose_files_are_replaced_is_another_question(
    files: tuple[str | None, str | None], is_same: bool
) -> None:
    a, b = (runs.evaluation_question({**facts(), "model_files": each}) for each in files)
    assert runs.is_same(a, b) == is_same


# evaluations


def mine(toy: Path, name: str, label: str) -> None:
    """Own data and a file of boxes of one name each."""
    rows = [json.loads(line) for line in (toy / "val.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps({**row, "image": Path(row["image"]).name, "split": "val"}) for row in rows]
    Path(name).mkdir()
    Path(name, "mine.jsonl").write_text("\n".join(lines[:-2] if name == "b" else lines), encoding="utf-8")
    images = dict.fromkeys(row["image_id"] for row in rows)
    boxes = [
        {"image_id": each, "detections": [{"box": [1, 1, 50, 50], "label": label, "score": None}]} for each in images
    ]
    Path(name, f"{label}.jsonl").write_text("\n".join(map(json.dumps, boxes)), encoding="utf-8")


def options(toy: Path, data: str, boxes: str) -> list[str]:
    images = f"data.settings.images={json.dumps(str(toy / 'images'))}"
    own = ["--data", "mine", "--data-root", f"{data}/mine.jsonl", images]
    return ["--vlm", "import", *own, f"detector.settings.path={boxes}"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(("a", "a/mug.jsonl"), ("a", "b/cup.jsonl"), id="two-files-of-boxes"),
        pytest.param(("a", "a/mug.jsonl"), ("b", "a/mug.jsonl"), id="two-files-of-data", marks=pytest.mark.slow),
    ],
)
def test_what_shares_a_name_shares_no_folder(toy: Path, first: tuple[str, str], second: tuple[str, str]) -> None:
    mine(toy, "a", "mug")
    mine(toy, "b", "cup")
    names = ("runs/import-rule-mine-untrained/report-val.json", "runs/headroom/import-mine-val.json")
    written = []
    for each in (first, second, first):
        run("cache-detections", *options(toy, *each), "--split", "val", "--overwrite")
        run("eval", "--llm", "rule", *options(toy, *each))
        run("detections", "headroom", *options(toy, *each))
        written.append({path.as_posix(): path.read_bytes() for path in Path("runs").rglob("*.json")})
    assert sorted(written[0]) == sorted(names)
    assert all(written[1][name] == written[0][name] for name in names)
    assert len(written[1]) == 4
    assert written[2].keys() == written[1].keys()  # the same question again replaces its own


@pytest.mark.parametrize(
    "more",
    [["candidates.cap=3"], ["candidates.order=shuffled", "train.seed=1"]],
    ids=["cap", "seed"],
)
def test_an_untrained_evaluation_is_not_overwritten_by_another(toy: Path, more: list[str]) -> None:
    run("cache-detections", "--data-root", toy, "--split", "val")
    args = ["eval", "--llm", "rule", "--data-root", str(toy)]
    run(*args)
    path = Path("runs/toy-rule-toy-untrained/report-val.json")
    before = path.read_bytes()
    printed = run(*args, *more)
    assert path.read_bytes() == before
    assert "kept in runs/toy-rule-toy-untrained-" in printed
    assert json.loads(before)["question"]["candidates"]["cap"] == 20


@pytest.mark.slow
def test_a_matrix_of_other_rows_is_written_beside_it(toy: Path) -> None:
    run("cache-detections", "--data-root", toy, "--split", "val")
    args = ["transfer", "--vlm", "toy", "--data", "toy", "--data-root", str(toy)]
    run(*args)
    before = Path("runs/transfer/toy-toy/matrix.json").read_bytes()
    printed = run(*args, "--llm", "rule")
    assert Path("runs/transfer/toy-toy/matrix.json").read_bytes() == before
    assert "kept in runs/transfer/toy-toy-" in printed
    assert run(*args, "--llm", "rule").splitlines()[-1] == printed.splitlines()[-1]
    assert len([*Path("runs/transfer").rglob("*.parquet")]) == 3  # each system was asked once, for all matrices


def test_a_served_llm_does_not_replace_the_run() -> None:
    recipe = compose({"vlm": "toy", "llm": "vllm", "data": "toy", "train": "default"})
    assert Evaluation(recipe, Path("runs/mine")).folder.parent == runs.RUNS
    assert Evaluation(recipe, Path("runs/mine")).folder.name.endswith("-served")


def test_answers_of_the_untrained_llm_stay_where_it_is_not_asked_again(tmp_path: Path) -> None:

    detector, untrained, tuned, oracle = (
        replace(FULL, system=name) for name in ("detector", "untrained", "tuned", "oracle")
    )
    path = tmp_path / "predictions-val.parquet"
    assert add_known_untrained([detector, tuned, oracle], path) == [detector, tuned, oracle]
    files.save_predictions(path, [detector, untrained, tuned, oracle])
    assert add_known_untrained([detector, tuned, oracle], path) == [detector, untrained, tuned, oracle]
