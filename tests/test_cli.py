"""The verbs of the command line, with LLM=rule: what they leave behind, and what they say when something is wrong."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from llm_wrapper import runs
from llm_wrapper.cli import main
from llm_wrapper.errors import CacheError, DataError, ModelError, RecipeError, RunError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.metrics import summarize_systems
from llm_wrapper.recipe import available, compose
from llm_wrapper.report import formatting
from tests.commands import fail, invoke, run

TOY = Path(__file__).parents[1] / "data" / "toy"
NUM_IMAGES = 4
"""Of each split in the fixture `toy`."""


@pytest.fixture(autouse=True)
def _with_wide_errors(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "_ERRORS", Console(stderr=True, width=400))


# the road


def test_cache_evaluate_and_recompute_give_the_same_numbers(toy: Path) -> None:
    cached = run("cache-detections", "--data-root", toy)
    assert f"data/detections/toy/toy/train: {NUM_IMAGES} answers for" in cached
    assert f"data/detections/toy/toy/val: {NUM_IMAGES} answers for" in cached
    printed = run("eval", "--llm", "rule", "--data-root", toy)
    folder = Path("runs/toy-rule-toy-untrained")
    report = json.loads((folder / "report-val.json").read_text())
    rows = files.load_predictions(folder / "predictions-val.parquet")
    assert json.loads(json.dumps(formatting.summary_values(summarize_systems(rows)))) == report["rows"]
    assert [row["name"] for row in report["rows"]] == ["detector", "rule", "oracle"]
    detector, rule, oracle = (row["p_at_1"] for row in report["rows"])
    assert detector <= oracle
    assert 0 < rule <= oracle == report["rows"][0]["oracle_p_at_1"]
    assert (report["split"], report["limit"], report["run"]) == ("val", None, None)
    assert report["recipe"]["data"]["root"] == str(toy)
    assert [data["split"] for data in report["data"]] == ["val"]
    table = printed.partition("kept in")[0].strip()
    assert (folder / "report-val.md").read_text() == formatting.summary_markdown(summarize_systems(rows))
    for target in (folder, folder / "predictions-val.parquet"):
        assert table in run("report", target)


def test_a_cached_answer_is_not_asked_for_again(toy: Path) -> None:
    args = ("cache-detections", "--data-root", toy, "--split", "val")
    first = run(*args)
    manifest = Path("data/detections/toy/toy/val/manifest.json")
    before = (manifest.stat().st_mtime_ns, manifest.read_bytes())
    assert run(*args) == first
    assert (manifest.stat().st_mtime_ns, manifest.read_bytes()) == before
    assert run(*args, "--overwrite") == first
    assert manifest.stat().st_mtime_ns != before[0]
    assert not Path("data/detections/toy/toy/train").exists()


def test_a_limited_evaluation_says_so(toy: Path) -> None:
    run("cache-detections", "--data-root", toy, "--split", "test")
    run("eval", "--llm", "rule", "--data-root", toy, "--split", "test", "--limit", "5")
    report = json.loads(Path("runs/toy-rule-toy-untrained/report-test-first-5.json").read_text())
    assert (report["split"], report["limit"], {row["n"] for row in report["rows"]}) == ("test", 5, {5})


def test_results_go_to_the_latest_complete_run(toy: Path) -> None:
    run("cache-detections", "--data-root", toy, "--split", "val")
    recipe = compose({"vlm": "toy", "llm": "rule", "data": "toy", "train": "default"})
    for day in (1, 2):
        runs.finish(runs.open_run(runs.RUNS / f"toy-rule-toy-2025010{day}T000000Z-nogit", recipe), {})
    runs.open_run(runs.RUNS / "toy-rule-toy-20250103T000000Z-nogit", recipe)
    run("eval", "--llm", "rule", "--data-root", toy)
    found = [str(path.parent) for path in Path("runs").rglob("report-val.json")]
    assert found == ["runs/toy-rule-toy-20250102T000000Z-nogit"]
    assert json.loads((Path(found[0]) / "report-val.json").read_text())["run"] == found[0]


@pytest.mark.slow
def test_nothing_of_this_needs_torch(toy: Path, tmp_path: Path) -> None:
    image = next((toy / "images").iterdir())
    lines = [
        ["cache-detections", "--data-root", str(toy), "--split", "val"],
        ["eval", "--llm", "rule", "--data-root", str(toy)],
        ["report", "runs/toy-rule-toy-untrained"],
        ["check-data", "--data-root", str(toy)],
        ["predict", str(image), "left star", "--llm", "rule", "--vlm", "toy", "--out", "runs/predict.png"],
    ]
    code = (
        "import sys\nfrom llm_wrapper.cli.main import main\n"
        f"for line in {lines!r}:\n"
        "    sys.argv = ['llm-wrapper', *line]\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code, (line, end.code)\n"
        "print('heavy:', {'torch', 'transformers', 'peft', 'trl'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("heavy: set()")
    assert (tmp_path / "runs" / "predict.png").is_file()


# data check


@pytest.mark.parametrize("root", ["part", "shipped"])
def test_data_check_counts_and_is_content(toy: Path, root: str) -> None:
    printed = run("check-data", "--data-root", toy if root == "part" else TOY)
    assert "nothing found that needs a hand" in printed
    assert [line.split()[:2] for line in printed.splitlines()[1:4]] == [
        ["toy", split] for split in ("train", "val", "test")
    ]


def expressions(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps({"expression": "left zebra", **row}) + "\n" for row in rows))
    return path


def test_data_check_finds_what_spoils_results(tmp_path: Path) -> None:
    size = {"width": 9, "height": 9}
    path = expressions(
        tmp_path / "mine.jsonl",
        {"image": "gone.png", "split": "train", **size},
        {"image": "gone.png", "split": "val", **size},
    )
    result = invoke("check-data", "--data", "mine", "--data-root", path)
    assert result.exit_code == 1
    assert "images shared" in result.stdout
    assert "image files missing" in result.stdout


def test_a_file_without_splits_does_not_leak_into_itself(toy: Path, tmp_path: Path) -> None:
    path = expressions(tmp_path / "mine.jsonl", {"image": str(toy / "images" / "toy-val-0000.png")})
    images = f"data.settings.images={json.dumps(str(toy / 'images'))}"
    printed = run("check-data", "--data", "mine", "--data-root", path, images)
    assert "images shared" not in printed
    assert len([line for line in printed.splitlines() if line.startswith("mine")]) == 1


def test_data_check_of_nothing_names_the_file() -> None:
    assert "absent.jsonl does not exist" in fail(
        DataError, "check-data", "--data", "mine", "--data-root", "absent.jsonl"
    )


# what is wrong, and what mends it


def test_evaluating_without_detections_names_the_command(toy: Path) -> None:
    told = fail(CacheError, "eval", "--llm", "rule", "--data-root", toy)
    command = f"llm-wrapper cache-detections --vlm toy --data toy --split val --data-root {shlex.quote(str(toy))}"
    assert command in told
    assert not Path("runs").exists()
    run(*shlex.split(command)[1:])
    run("eval", "--llm", "rule", "--data-root", toy)


def test_data_without_boxes_cannot_be_evaluated(tmp_path: Path) -> None:
    path = expressions(tmp_path / "mine.jsonl", {"image": "a.png", "width": 9, "height": 9})
    (tmp_path / "boxes.jsonl").write_text("")
    args = ("--vlm", "import", "--data", "mine", "--data-root", path, "detector.settings.path=boxes.jsonl")
    run("cache-detections", *args, "--split", "val")
    assert "has no box to compare with; use: llm-wrapper predict" in fail(DataError, "eval", "--llm", "rule", *args)


@pytest.mark.parametrize(
    ("option", "name", "told"),
    [
        ("--vlm", "tooy", "no vlm recipe is named 'tooy'; did you mean 'toy'?"),
        ("--llm", "rul", "no llm recipe is named 'rul'; did you mean 'rule'?"),
        ("--data", "refcoc", "no data recipe is named 'refcoc'; did you mean 'refcoco'?"),
        ("--vlm", "", "no vlm recipe is named ''"),
    ],
)
def test_a_wrong_recipe_name_says_which_exist(option: str, name: str, told: str) -> None:
    assert told in fail(RecipeError, "eval", option, name)


def test_overrides_come_last_and_are_checked(toy: Path) -> None:
    run("cache-detections", "--data-root", "elsewhere", "--split", "val", f"data.root='{toy}'")
    assert "unknown key 'train.epoch'" in fail(RecipeError, "eval", "--llm", "rule", "train.epoch=3")


RECIPE = {"vlm": "toy", "llm": "smollm2", "data": "toy", "train": "default"}


def test_an_unfinished_run_cannot_be_evaluated(toy: Path) -> None:
    folder = runs.open_run(Path("runs/mine"), compose(RECIPE))
    assert "runs/mine holds no finished training; resume it with: llm-wrapper train --run runs/mine" in fail(
        RunError, "eval", "--data-root", toy, "--run", folder
    )
    assert "holds no finished training" in fail(
        RunError, "predict", toy / "images/toy-val-0000.png", "x", "--run", folder
    )


def test_a_run_folder_in_use_is_refused_before_anything_is_loaded() -> None:
    recipe = compose(RECIPE)
    runs.finish(runs.open_run(Path("runs/done"), recipe), {})
    runs.open_run(Path("runs/begun"), recipe.model_copy(update={"data": recipe.data.model_copy(update={"name": "x"})}))
    Path("notes").mkdir()
    Path("notes/a.txt").touch()
    assert "runs/done exists and is complete" in fail(RunError, "train", "--run", "runs/done")
    assert "runs/begun was begun with another recipe" in fail(RunError, "train", "--run", "runs/begun", "--data", "toy")
    assert "notes exists and is no run folder" in fail(RunError, "train", "--run", "notes")


def test_the_rule_cannot_be_trained() -> None:
    assert "LLM=rule has nothing to train" in fail(ModelError, "train", "--llm", "rule", "--run", "runs/mine")
    assert not Path("runs").exists()


def test_a_report_needs_predictions() -> None:
    Path("runs/empty").mkdir(parents=True)
    assert "runs/empty holds no predictions; make some with: llm-wrapper eval --run runs/empty" in fail(
        RunError, "report", "runs/empty"
    )
    assert "absent.parquet does not exist" in fail(RunError, "report", "absent.parquet")


# the frame


def test_recipes_of_the_working_folder_come_first(tmp_path: Path) -> None:
    own = tmp_path / "recipes" / "vlm" / "toy.yaml"
    assert compose(RECIPE).candidates.cap == 20
    own.parent.mkdir(parents=True)
    own.write_text("detector: {name: toy}\ncandidates: {cap: 7}\n", encoding="utf-8")
    (own.parent / "mine.yaml").write_text("detector: {name: toy-gray}\n", encoding="utf-8")
    assert compose(RECIPE).candidates.cap == 7
    assert compose({**RECIPE, "vlm": "toy-gray"}).detector.label == "toy-gray"  # an own file hides no other
    assert {"mine", "flo2"} <= set(available("vlm"))
    assert "did you mean 'mine'? (there are: coco, " in fail(RecipeError, "eval", "--vlm", "minee", "--llm", "rule")


def test_errors_are_printed_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["llm-wrapper", "eval", "--vlm", "[bold]x"])
    with pytest.raises(SystemExit) as end:
        main.main()
    told = capsys.readouterr()
    assert (end.value.code, told.out) == (2, "")
    assert told.err.startswith("error: the recipe cannot be used (1 problem):\n  - no vlm recipe is named '[bold]x'")
    assert "Traceback" not in told.err


@pytest.mark.parametrize(
    "args",
    [
        ["no-such-verb"],
        ["eval", "--no-such-option"],
        ["eval", "--limit", "0"],
        ["export"],
        ["detections", "info"],
        ["detections", "merge"],
    ],
    ids=" ".join,
)
def test_a_wrong_call_ends_with_2(args: list[str]) -> None:
    assert invoke(*args).exit_code == 2


VERBS = ["train", "eval", "predict", "demo", "report", "export", "check-data", "cache-detections", "score",
         "transfer", "ensemble", "curve", "compare-methods", "search-prompts", "detections"]  # fmt: skip
DETECTIONS = ["headroom", "info", "merge"]


def test_every_verb_has_one_imperative_help_line() -> None:
    command: Any = typer.main.get_command(main.app)
    assert [*command.commands] == VERBS
    verbs = {**command.commands, **command.commands["detections"].commands}
    assert [*command.commands["detections"].commands] == DETECTIONS
    for name, verb in verbs.items():
        line = verb.get_short_help_str(limit=200)
        assert not line.endswith("..."), name
        assert line[0].isupper(), name
        assert not line.split()[0].endswith("s"), f"{name}: {line}"


@pytest.mark.parametrize("verb", [*VERBS, *(f"detections {verb}" for verb in DETECTIONS)])
def test_every_verb_explains_itself(verb: str) -> None:
    assert "Usage: " in run(*verb.split(), "--help")
