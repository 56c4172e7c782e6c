"""`compare-methods` from the command line to files, with a tiny random model that is really asked and trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llm_wrapper import runs
from llm_wrapper.cli import methods
from llm_wrapper.cli.train import run_training
from llm_wrapper.errors import CacheError, RecipeError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.llms import load
from llm_wrapper.metrics import summarize_systems
from llm_wrapper.report import page
from tests.commands import fail, invoke, run
from tests.search.fakes import ProposingServer

pytestmark = pytest.mark.slow

FOLDER = Path("runs/methods/mine")
THREE = ("--method", "in-context", "--method", "lora")
"""The untrained LLM is the third."""


@pytest.fixture
def bare(own_folder: Path, toy: Path, tiny_model: Path) -> list[str]:
    """The options that choose data and LLM."""
    llm = [f"llm.model='{tiny_model}'", "llm.dtype=float32"]
    return ["--data-root", str(toy), "--name", "mine", "--labelled", "8", *llm]


@pytest.fixture
def options(bare: list[str]) -> list[str]:
    """With cached boxes."""
    run("cache-detections", *bare[:2])
    return bare


def compare(*args: str, code: int = 0) -> str:
    result = invoke("compare-methods", *args)
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout


def facts() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "methods.json").read_text(encoding="utf-8"))
    return found


def took() -> dict[str, dict[str, Any]]:
    return {row["name"]: row["took"] for row in facts()["rows"]}


LORA = ["train.epochs=2", "train.groups_per_step=4", "train.warmup_steps=0", "train.learning_rate=0.01"]


def test_rows_are_made_once_and_told_with_their_costs(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    args = (*THREE, *options, "prompt.examples=2", *LORA)
    printed = compare(*args)
    found = facts()
    assert [row["name"] for row in found["rows"]] == ["untrained", "in-context", "lora"]
    assert [each["name"] for each in found["others"]] == ["detector", "rule", "oracle"]
    assert {path.name for path in FOLDER.iterdir()} == {
        "untrained", "in-context", "lora", "methods.json", "methods.md", "methods.png", "methods.svg"
    }  # fmt: skip
    assert "lora" in printed
    assert "<svg" in (FOLDER / "methods.svg").read_text(encoding="utf-8")

    # What the table says is what the predictions say, and each row is a run with the others beside it.
    for row in found["rows"]:
        rows = files.load_predictions(Path(row["run"]) / "predictions-val.parquet")
        by_name = {each.system: each for each in summarize_systems(rows)}
        assert [*by_name] == ["detector", "rule", row["name"], "oracle"]
        assert by_name[row["name"]].p_at_1 == row["result"]["p_at_1"]
        assert runs.recipe_of(Path(row["run"])).prompt.format == "relations"
    untrained, in_context, lora = (took()[name] for name in ("untrained", "in-context", "lora"))
    assert (untrained["labelled"], in_context["labelled"], lora["labelled"]) == (0, 8, 8)
    assert untrained["prepared"]["tokens"] == in_context["prepared"]["tokens"] == 0
    assert in_context["tokens_per_answer"] > 2 * untrained["tokens_per_answer"]
    assert lora["tokens_per_answer"] == untrained["tokens_per_answer"]
    manifest = runs.facts_of(FOLDER / "lora")
    seen = manifest["training"]["samples_seen"]
    assert 0 < manifest["samples"] <= 8
    assert seen == 2 * manifest["samples"]
    # Whole sequences go through, prompt and answer, three times each; padding comes to it.
    assert lora["prepared"]["tokens"] > 3 * seen * 0.9 * untrained["tokens_per_answer"]
    assert any(f"{manifest['samples']} expressions trained on, in" in note for note in lora["notes"])
    assert found["rows"][0]["over_untrained"] is None
    assert found["rows"][2]["over_untrained"]["p_at_1"]["n"] == found["others"][0]["n"]

    before = {path: path.stat().st_mtime_ns for path in (FOLDER / "lora").rglob("*") if path.is_file()}
    table = (FOLDER / "methods.md").read_text(encoding="utf-8")
    with monkeypatch.context() as context:
        context.setattr(load, "load_model", None)  # whoever trains or asks now must fail
        again = compare(*args)
    assert again.count("is there already") == 3
    assert (FOLDER / "methods.md").read_text(encoding="utf-8") == table
    assert {path: path.stat().st_mtime_ns for path in (FOLDER / "lora").rglob("*") if path.is_file()} == before

    written, _ = page.write_report(FOLDER / "lora")
    shown = written.read_text(encoding="utf-8")
    assert "Methods: mine" in shown
    assert "P@1 against compute" in shown

    # Other samples: the adapter is used again, and the budget of the first question decides nothing.
    with monkeypatch.context() as context:
        context.setattr("llm_wrapper.cli.methods.run_training", None)
        compare(*args, "--limit", "5")
    assert (FOLDER / "lora" / "predictions-val-first-5.parquet").is_file()
    (beside,) = FOLDER.parent.glob("mine-*/methods.md")
    assert "the first 5 expressions only" in beside.read_text(encoding="utf-8")
    assert (FOLDER / "methods.md").read_text(encoding="utf-8") == table


def test_a_row_that_fails_loses_no_other_and_is_tried_again(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = (*THREE, *options, *LORA, "--limit", "4", "train.save_steps=1")

    def breaks(recipe: Any, folder: Path, console: Console) -> Path:
        run_training(recipe, folder, console)
        (folder / "manifest.json").unlink()
        raise RuntimeError("out of | memory")

    with monkeypatch.context() as context:
        context.setattr("llm_wrapper.cli.methods.run_training", breaks)
        printed = compare(*args, code=1)
    found = {row["name"]: row for row in facts()["rows"]}
    assert found["lora"]["problem"] == "RuntimeError: out of | memory"
    assert found["lora"]["result"] is None
    assert found["in-context"]["result"]["n"] == 4
    assert "lora failed: RuntimeError: out of | memory; the same command tries it again" in printed
    assert "| lora | failed |" in (FOLDER / "methods.md").read_text(encoding="utf-8")
    spent = json.loads((FOLDER / "lora" / "cost.json").read_text(encoding="utf-8"))["tokens"]
    assert spent > 0

    printed = compare(*args)
    assert printed.count("is there already") == 2
    assert [row["problem"] for row in facts()["rows"]] == [None, None, None]
    # It goes on from its last checkpoint: no step is done again, and what was spent before is not forgotten.
    assert took()["lora"]["prepared"]["tokens"] == spent


def test_without_the_untrained_llm_there_are_no_gains(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    compare("--method", "untrained", *options, "--limit", "4")
    (FOLDER / "untrained" / "predictions-val-first-4.parquet").write_bytes(b"")
    printed = compare("--method", "in-context", *options, "--limit", "4", code=1)
    assert "untrained failed: DataError" in printed
    assert "there are no gains, as there is no untrained LLM" in printed
    (beside,) = FOLDER.parent.glob("mine-*/methods.json")
    assert json.loads(beside.read_text(encoding="utf-8"))["rows"][1]["over_untrained"] is None


def test_a_search_without_a_usable_proposal_says_so(options: list[str]) -> None:
    short = ["search.iterations=1", "search.samples=2", "search.sampling.max_new_tokens=4"]
    printed = compare("--method", "glov-guided", *options, "--limit", "4", *short)
    assert "glov-guided: no proposal was usable (2 refused): this is the seed prompt" in printed
    assert "nothing was guided: it begins when a prompt has beaten the seed prompt" in printed
    row = took()["glov-guided"]
    assert row["prepared"]["tokens"] > 0
    assert row["labelled"] == 8
    history = (FOLDER / "glov-guided" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(history[0])["n"] == 6  # and two to confirm: eight
    instruction = files.load_predictions(FOLDER / "glov-guided" / "predictions-val-first-4.parquet")
    assert len([each for each in instruction if each.system == "glov-guided"]) == 4


def test_reasons_are_counted(options: list[str]) -> None:
    compare("--method", "chain-of-thought", *options, "--limit", "4", "prompt.reasoning_tokens=3")
    plain, reasoned = took()["untrained"], took()["chain-of-thought"]
    assert reasoned["tokens_per_answer"] > 2 * plain["tokens_per_answer"]
    assert reasoned["answered"]["tokens"] > plain["answered"]["tokens"]


def test_a_budget_of_compute_turns_knobs_down(options: list[str]) -> None:
    compare(*THREE, *options, "--limit", "4", "--compute", "1", *LORA)
    assert runs.recipe_of(FOLDER / "in-context").prompt.examples == 1
    assert runs.recipe_of(FOLDER / "lora").train.max_steps == 1
    assert runs.facts_of(FOLDER / "lora")["training"]["steps"] == 1
    assert facts()["compute"] == 1
    printed = compare(*THREE, *options, "--limit", "4", *LORA, code=1)
    assert "in-context is of another recipe; name another with --name, or rm -r runs/methods/mine/in-context" in printed
    assert "prompt.examples: 1 there, 4 now" in printed


def test_a_training_takes_what_its_budget_has(options: list[str]) -> None:
    compare("--method", "lora", *options, "--limit", "4", "--compute", "1", *LORA)
    answers, step = took()["untrained"]["answered"]["tokens"], took()["lora"]["prepared"]["tokens"]
    budget = answers + 3.5 * step
    compare("--method", "lora", *options, "--name", "more", "--limit", "4", "--compute", f"{budget:.0f}", *LORA)
    assert runs.facts_of(Path("runs/methods/more/lora"))["training"]["steps"] == 3
    (row,) = (
        row for row in json.loads(Path("runs/methods/more/methods.json").read_text())["rows"] if row["name"] == "lora"
    )
    assert 0.7 * budget < row["tokens"] <= budget


def test_a_training_whose_length_cannot_be_told_fails_alone(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step_tokens(_: object) -> float:
        raise CacheError("no detections")

    monkeypatch.setattr(methods, "step_tokens", step_tokens)
    printed = compare(*THREE, *options, "--limit", "4", "--compute", "1", *LORA, code=1)
    assert "lora failed: CacheError: no detections" in printed
    assert took()["in-context"]["num_asked"] == 4


def test_nobody_knows_the_tokens_of_a_server_and_nobody_trains_it(options: list[str]) -> None:
    with ProposingServer(["1"]) as server:
        served = ["llm.backend=openai", "llm.model=m", "llm.decode=generate", f"llm.server.base_url={server.url}/v1"]
        chosen = [each for each in options if not each.startswith("llm.")]
        printed = compare(*THREE, *chosen, *served, "--limit", "4", code=1)
    assert "lora failed: ModelError: a served LLM cannot be trained from here" in printed
    row = took()["in-context"]
    assert row["answered"]["tokens"] is None
    assert row["tokens_per_answer"] is None
    assert facts()["rows"][1]["tokens"] is None


def test_a_stop_is_no_failure_of_a_row(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(methods, "make_row", stop)
    assert invoke("compare-methods", *THREE, *options).exit_code != 0
    assert not (FOLDER / "methods.json").exists()


# what is wrong


@pytest.mark.parametrize(
    ("args", "told"),
    [
        pytest.param(["--method", "lore"], "no method is named 'lore'; did you mean 'lora'?", id="no-method"),
        pytest.param(["prompt.format=hints"], "prompt.format=hints tells the LLM what the rule", id="rule-in-format"),
        pytest.param(["--llm", "rule", "llm.model=null"], "LLM=rule is no LLM", id="rule"),
        pytest.param(["--split", "train"], "untrained: split train is evaluated on", id="train-is-evaluated"),
        pytest.param(["data.train_split=test"], "lora: split test is evaluated on", id="test-is-trained-on"),
        pytest.param(["train.limit=9"], "train.limit=9: use --labelled", id="own-option"),
        pytest.param(["prompt.reasoning_tokens=9"], "reasoning_tokens=9: it is for none of untrained", id="none"),
        pytest.param(["train.learning_rat=9"], "unknown key 'train.learning_rat'", id="typing-error"),
    ],
)
def test_what_is_not_fair_or_of_no_use_is_refused(bare: list[str], args: list[str], told: str) -> None:
    name = [] if "--method" in args else ["--method", "lora"]
    options = [each for each in bare if not each.startswith("llm.")] if "rule" in args else bare
    assert told in fail(RecipeError, "compare-methods", *name, *options, *args)
    assert not Path("runs").exists()


def test_missing_detections_are_told_before_anything_is_loaded(
    bare: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_model", None)
    assert "llm-wrapper cache-detections" in fail(CacheError, "compare-methods", *THREE, *bare)


def test_another_llm_may_propose(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def compared(job: Any) -> dict[str, Any]:
        asked.update(job.recipes)
        return {}

    monkeypatch.setattr(methods, "compare", compared)
    compare("--proposer", "llama3", "--method", "glov", "--method", "lora", *options)
    assert asked["glov"].search.proposer.model == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert asked["glov"].llm.model.endswith("tiny")
    assert (asked["glov"].search.slice, asked["glov"].search.confirm) == (6, 2)
    assert asked["lora"].search is None
    assert asked["lora"].train.epochs == 10
