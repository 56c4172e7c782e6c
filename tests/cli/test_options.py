"""A run knows its detector, data, LLM and prompt: verbs that are given a run use them, and say what is overridden."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_wrapper import runs, services
from llm_wrapper.cli import grids
from llm_wrapper.cli.options import choose_recipe, fill_defaults, name_of
from llm_wrapper.errors import RecipeError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation.grid import Column
from llm_wrapper.evaluation.jobs import list_overrides
from llm_wrapper.recipe import Recipe, compose
from tests.commands import fail, run

pytestmark = pytest.mark.usefixtures("own_folder")

RUN = Path("runs/mine")


def finished(toy: Path, folder: Path = RUN, **names: str) -> Recipe:
    """A finished run of the rule on grey boxes, which are no default of any verb."""
    kinds = {"vlm": "toy-gray", "llm": "rule", "data": "toy", "train": "default", **names}
    recipe = compose(kinds, [f"data.root={json.dumps(str(toy))}", "candidates.cap=7"])
    runs.finish(runs.open_run(folder, recipe), {})
    return recipe


def report(path: Path) -> dict[str, dict[str, dict[str, object]]]:
    found: dict[str, dict[str, dict[str, object]]] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param({"vlm": None, "llm": None}, {"vlm": "toy", "llm": "smollm2"}, id="defaults"),
        pytest.param({"vlm": "flo2", "prompt": None}, {"vlm": "flo2"}, id="no-default-for-a-prompt"),
        pytest.param({"vlm": "", "data": None}, {"vlm": "", "data": "toy"}, id="an-empty-name-is-a-name"),
    ],
)
def test_what_is_not_named_is_the_default(names: dict[str, str | None], expected: dict[str, str]) -> None:
    assert fill_defaults(names) == expected


def test_a_name_of_results_has_detector_llm_and_data() -> None:
    assert name_of({"data": None, "train": "demo", "vlm": "flo2", "llm": None}) == "flo2-smollm2-toy"


@pytest.mark.parametrize(
    ("vlm", "overrides", "detector", "cap"),
    [
        pytest.param(None, [], "toy-gray", 7, id="run"),
        pytest.param("toy", [], "toy", 20, id="command-line"),
        pytest.param(None, ["candidates.cap=3"], "toy-gray", 3, id="override"),
        pytest.param("toy+toy-gray", [], "toy", 20, id="ensemble"),
    ],
)
def test_the_command_line_wins_over_the_run(
    toy: Path, vlm: str | None, overrides: list[str], detector: str, cap: int
) -> None:
    trained = finished(toy)
    recipe = choose_recipe({"vlm": vlm, "llm": None, "data": None, "train": None}, overrides, run=RUN)
    assert (recipe.detector.name, recipe.candidates.cap) == (detector, cap)
    assert (recipe.data, recipe.llm, recipe.prompt, recipe.train) == (
        trained.data,
        trained.llm,
        trained.prompt,
        trained.train,
    )
    assert ("toy-gray" in recipe.ensemble.also) == (vlm == "toy+toy-gray")
    assert bool(list_overrides(RUN, recipe)) == (recipe != trained)


def test_a_run_of_an_ensemble_is_one_and_another_detector_is_not(toy: Path) -> None:
    finished(toy, vlm="toy+toy-gray")
    nothing = {"vlm": None, "llm": None}
    assert choose_recipe(nothing, None, run=RUN).vlm == "toy+toy-gray"
    assert choose_recipe({**nothing, "vlm": "toy"}, None, run=RUN).vlm == "toy"


def test_eval_of_a_run_takes_its_detector_and_data(toy: Path) -> None:
    finished(toy)
    run("cache-detections", "--vlm", "toy-gray", "--data-root", toy, "--split", "val")
    printed = run("eval", "--run", RUN)
    facts = report(RUN / "report-val.json")
    assert (facts["recipe"]["detector"]["name"], facts["recipe"]["candidates"]["cap"]) == ("toy-gray", 7)
    assert "kept in runs/mine/report-val.json: toy-gray on toy val" in printed
    assert "not as the run was trained" not in printed


@pytest.mark.slow
def test_eval_of_a_run_on_another_detector_says_so_and_stands_beside_it(toy: Path) -> None:
    finished(toy)
    for vlm in ("toy", "toy-gray"):
        run("cache-detections", "--vlm", vlm, "--data-root", toy, "--split", "val")
    run("eval", "--run", RUN)
    own = files.load_predictions(RUN / "predictions-val.parquet")
    printed = run("eval", "--run", RUN, "--vlm", "toy")
    assert 'not as the run was trained: detector.name: "toy-gray" in runs/mine, "toy" here' in printed
    assert files.load_predictions(RUN / "predictions-val.parquet") == own
    beside = RUN / "compared" / "vlm-toy"
    assert f"kept in {beside}/report-val.json" in printed
    assert files.load_predictions(beside / "predictions-val.parquet") != own
    run("report", RUN)
    assert "vlm-toy: rule" in (RUN / "report.md").read_text(encoding="utf-8")


def test_eval_of_a_run_on_other_data_is_another_evaluation(toy: Path) -> None:
    finished(toy)
    rows = [json.loads(line) for line in (toy / "val.jsonl").read_text(encoding="utf-8").splitlines()]
    mine = [json.dumps({**row, "image": Path(row["image"]).name, "split": "val"}) for row in rows]
    Path("mine.jsonl").write_text("\n".join(mine), encoding="utf-8")
    run("cache-detections", "--vlm", "toy-gray", "--data-root", toy, "--split", "val")
    other = ["--data", "mine", "--data-root", "mine.jsonl", f"data.settings.images={json.dumps(str(toy / 'images'))}"]
    run("cache-detections", "--vlm", "toy-gray", *other, "--split", "val")
    run("eval", "--run", RUN)
    before = (RUN / "predictions-val.parquet").read_bytes()
    printed = run("eval", "--run", RUN, *other)
    assert "toy-gray on mine val" in printed
    assert (RUN / "predictions-val.parquet").read_bytes() == before
    assert report(RUN / "report-mine-val.json")["recipe"]["data"]["name"] == "mine"


def test_the_newest_run_is_evaluated_by_its_own_recipe(toy: Path) -> None:
    folder = runs.RUNS / "toy-gray-rule-toy-20250101T000000Z-nogit"
    finished(toy, folder)
    run("cache-detections", "--vlm", "toy-gray", "--data-root", toy, "--split", "val")
    printed = run("eval", "--vlm", "toy-gray", "--llm", "rule")
    assert f"the newest finished run of these names is evaluated: {folder}" in printed
    assert report(folder / "report-val.json")["recipe"]["candidates"]["cap"] == 7


def test_predict_with_a_run_takes_its_detector(toy: Path) -> None:
    finished(toy)
    question = ("predict", toy / "images" / "toy-val-0000.png", "the left star")
    by_run, gray = run(*question, "--run", RUN), run(*question, "--vlm", "toy-gray", "--llm", "rule")
    colors = run(*question, "--vlm", "toy", "--llm", "rule")
    boxes_of = [text.partition("decided by")[0] for text in (by_run, gray, colors)]
    assert boxes_of[0] == boxes_of[1] != boxes_of[2]


def column_recipes(monkeypatch: pytest.MonkeyPatch, verb: str, *args: str) -> list[Recipe]:
    """Run a verb on empty columns, and return the recipes that it makes columns of."""
    seen: list[Recipe] = []

    def load_columns(recipes: list[Recipe], *_: object, **__: object) -> tuple[list[Column], list[str]]:
        seen.extend(recipes)
        return [Column(each.vlm, []) for each in recipes], []

    monkeypatch.setattr(grids, "load_columns", load_columns)
    monkeypatch.setattr(
        grids, "fill", lambda rows, columns, _: {(row.name, c.name): "-" for row in rows for c in columns}
    )
    run(verb, "--run", RUN, *args)
    return seen


@pytest.mark.parametrize(
    ("args", "columns", "folder"),
    [
        pytest.param([], ["toy-gray / toy", "toy / mine"], "toy-gray_toy-toy_mine", id="those-of-the-runs"),
        pytest.param(["--data", "toy"], ["toy-gray / toy", "toy / toy"], "toy-gray_toy-toy", id="data"),
        pytest.param(["--vlm", "flo2"], ["flo2 / toy", "flo2 / mine"], "flo2-toy_mine", id="detector"),
        pytest.param(["--vlm", "flo2", "--data", "toy"], ["flo2 / toy"], "flo2-toy", id="both"),
    ],
)
def test_transfer_is_about_the_columns_of_its_runs(
    toy: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], columns: list[str], folder: str
) -> None:
    finished(toy)
    finished(toy, Path("runs/other"), vlm="toy", data="mine")
    recipes = column_recipes(monkeypatch, "transfer", "--run", "runs/other", *args, f"data.root={json.dumps(str(toy))}")
    assert [f"{each.vlm} / {each.data.name}" for each in recipes] == columns
    assert (Path("runs/transfer") / folder / "matrix.json").is_file()


def test_an_ensemble_is_that_of_its_run(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(toy)
    assert "toy-gray is one detector" in fail(RecipeError, "ensemble", "--run", RUN)
    finished(toy, Path("runs/other"), vlm="toy")
    told = fail(RecipeError, "ensemble", "--run", RUN, "--run", "runs/other")
    assert "several detectors and data sets (toy-gray / toy, toy / toy): name one by --vlm and --data" in told
    finished(toy, Path("runs/both"), vlm="toy+toy-gray")
    recipes = column_recipes(monkeypatch, "ensemble", "--run", "runs/both")
    assert [each.vlm for each in recipes] == ["toy+toy-gray", "toy", "toy-gray"]
    assert Path("runs/ensemble/toy+toy-gray-toy/matrix.json").is_file()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        pytest.param(["--vlm", "toy"], "--vlm toy", id="vlm"),
        pytest.param(["--llm", "rule", "train.seed=1"], "--llm rule, train.seed=1", id="llm-and-override"),
        pytest.param(["--data-root", "x"], "--data-root", id="data-root"),
    ],
)
def test_a_curve_of_a_run_refuses_another_recipe(toy: Path, args: list[str], told: str) -> None:
    finished(toy)
    assert f"the recipe of runs/mine is used as it is; leave out {told}" in fail(
        RecipeError, "curve", "--run", RUN, *args
    )


@pytest.mark.parametrize("split", ["../../val", "/val", "[bold]val", ".."])
def test_a_split_cannot_leave_its_folder(split: str) -> None:
    assert "becomes a folder's name" in fail(RecipeError, "eval", "--llm", "rule", "--split", split)


CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("overrides", "template", "thinking"),
    [
        pytest.param([], CHAT, True, id="of-the-run"),
        pytest.param(["llm.chat_template=own"], "own", True, id="typed"),
        pytest.param(["llm.enable_thinking=false"], CHAT, False, id="typed-default"),
    ],
)
def test_a_served_run_is_asked_in_its_chat_template(
    toy: Path, overrides: list[str], template: str, thinking: bool
) -> None:
    recipe = finished(toy)
    llm = recipe.llm.model_copy(update={"chat_template": CHAT, "enable_thinking": True})
    runs.finish(runs.open_run(Path("runs/chat"), recipe.model_copy(update={"llm": llm})), {})
    found = choose_recipe({"llm": "vllm"}, overrides, run=Path("runs/chat")).llm
    assert (found.backend, found.chat_template, found.enable_thinking) == ("openai", template, thinking)


@pytest.mark.parametrize("decode", ["first_token", "choice", "generate"])
def test_ways_that_use_the_servers_chat_template_say_so(
    toy: Path, decode: str, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = finished(toy)
    llm = recipe.llm.model_copy(update={"chat_template": CHAT})
    runs.finish(runs.open_run(Path("runs/chat"), recipe.model_copy(update={"llm": llm})), {})
    choose_recipe({"llm": "vllm"}, [f"llm.decode={decode}"], run=Path("runs/chat"))
    assert "vllm serve --chat-template FILE" in caplog.text


@pytest.mark.parametrize("words", ["llm.server.base_url=http://node:8000/v1", ""])
def test_what_is_typed_allows_a_key_and_what_a_run_says_does_not(
    toy: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "_typed", {})
    monkeypatch.setenv("VLLM_API_KEY", "0123456789")
    recipe = finished(toy)
    server = recipe.llm.server.model_copy(update={"base_url": "http://node:8000/v1", "key_variable": "VLLM_API_KEY"})
    llm = recipe.llm.model_copy(update={"backend": "openai", "model": "m", "server": server})
    runs.finish(runs.open_run(Path("runs/served"), recipe.model_copy(update={"llm": llm})), {})
    found = choose_recipe({}, words.split(), run=Path("runs/served")).llm.server
    if words:
        assert services.key_for("VLLM_API_KEY", found.base_url)
    else:
        with pytest.raises(RecipeError, match="you have not allowed that"):
            services.key_for("VLLM_API_KEY", found.base_url)
