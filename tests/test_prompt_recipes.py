"""Every prompt recipe on the whole road, with a tiny random LLM: from the command line to kept predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llm_wrapper.errors import CacheError, PromptError, RecipeError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.recipe import available, prompt_of
from tests.commands import invoke, run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture
def options(own_folder: Path, toy: Path, tiny_model: Path) -> list[str | Path]:
    """The toy's detections cached, and the options that choose data and LLM."""
    run("cache-detections", "--data-root", toy)
    model = [f"llm.model={tiny_model}", "llm.dtype=float32", "llm.quantization=none"]
    return ["--data-root", toy, *model]


def evaluated(folder: Path, system: str = "untrained") -> dict[str, tuple[float, ...] | None]:
    rows = files.load_predictions(folder / "predictions-val-first-10.parquet")
    return {row.sample_id: row.probabilities for row in rows if row.system == system}


RECIPES = [name for name in available("prompt") if set(prompt_of(name)) != {"format"}] + ["retrieved+chain-of-thought"]


@pytest.mark.parametrize("name", RECIPES)
def test_each_prompt_recipe_is_evaluated_and_asks_otherwise(name: str, options: list[str | Path]) -> None:
    few = "prompt.reasoning_tokens=4" if "thought" in name else "prompt.format=compact"
    told = run("eval", "--limit", "10", "--prompt", name, *options, few)
    run("eval", "--limit", "10", *options, "prompt.format=compact")
    (folder,) = Path("runs").glob(f"*-untrained-{name.replace('+', '-')}")
    (plain,) = Path("runs").glob("*-untrained")
    prompted, bare = evaluated(folder), evaluated(plain)
    assert prompted.keys() == bare.keys()
    assert len(prompted) == 10
    assert prompted != bare
    report = json.loads((folder / "report-val-first-10.json").read_text())
    summary = "4 retrieved examples" if "retrieved" in name else "4 fixed examples" if "context" in name else ""
    assert summary in told
    assert ("sets" in report["prompt"]) == bool(summary)
    rows = [
        row for row in files.load_predictions(folder / "predictions-val-first-10.parquet") if row.system == "untrained"
    ]
    reasoned = "thought" in name
    assert all((row.reasoning is not None) == reasoned for row in rows)
    assert all((row.num_tokens in range(1, 5)) == reasoned for row in rows)


def test_a_trained_run_keeps_its_words_unless_others_are_asked_for(
    options: list[str | Path],
) -> None:
    training = ["train.limit=8", "train.groups_per_step=4", "train.max_steps=1", "prompt.format=compact"]
    words = "prompt.instruction='{objects} Which is {expression}?'"
    run("train", "--run", "runs/mine", *options, *training, words)
    told = run("eval", "--run", "runs/mine", "--limit", "10", *options)
    assert "asked with compact, own instruction" in told
    assert "not as the run was trained" not in told
    own = evaluated(Path("runs/mine"), "tuned")

    told = run("eval", "--run", "runs/mine", "--limit", "10", "--prompt", "in-context", *options, "prompt.examples=2")
    assert "asked with compact, own instruction, 2 fixed examples" in told
    assert "not as the run was trained: prompt.examples: 0 in runs/mine, 2 here" in told
    assert evaluated(Path("runs/mine-in-context"), "tuned") != own
    assert evaluated(Path("runs/mine"), "tuned") == own

    best = Path("best.yaml")
    best.write_text("prompt: {format: relations, instruction: 'So: {objects} {expression}'}\n", encoding="utf-8")
    told = run("eval", "--run", "runs/mine", "--limit", "10", "--prompt", best, *options)
    assert "asked with relations, own instruction" in told
    assert Path("runs/mine-best.yaml/report-val-first-10.json").is_file()


def test_predict_shows_examples_of_a_training_split(options: list[str | Path], toy: Path) -> None:
    image = next((toy / "images").iterdir())
    command = ["predict", image, "the left star", "--data", "toy", "--vlm", "toy", *options, "prompt.format=compact"]
    bare = run(*command)
    assert "decided by: llm" in bare
    for name in ("retrieved", "in-context+instruction"):
        found = run(*command, "--prompt", name)
        assert found != bare
        assert run(*command, "--prompt", name) == found


def test_examples_of_an_uncached_split_name_the_command(options: list[str | Path]) -> None:
    shutil.rmtree("data/detections/toy/toy/train")
    problem = invoke("eval", "--limit", "10", "--prompt", "in-context", *options).exception
    assert isinstance(problem, CacheError)
    assert "cache-detections --vlm toy --data toy --split train" in str(problem)


@pytest.mark.parametrize("name", ["in-context", "retrieved", "chain-of-thought"])
def test_training_with_examples_or_reasons_is_refused(options: list[str | Path], name: str) -> None:
    problem = invoke("train", "--run", "runs/mine", "--prompt", name, *options).exception
    assert isinstance(problem, RecipeError)
    assert "an LLM is trained on format and instruction alone" in str(problem)
    assert not Path("runs/mine").exists()


def test_an_unusable_instruction_is_refused_before_anything_is_asked(options: list[str | Path]) -> None:
    for verb in (["train", "--run", "runs/mine"], ["eval", "--limit", "10"]):
        problem = invoke(*verb, *options, "prompt.instruction='Which object?'").exception
        assert isinstance(problem, PromptError)
        assert "{objects} occurs in the instruction 0 times" in str(problem)
    assert not Path("runs").exists()


def test_a_transfer_matrix_knows_prompts_with_examples(options: list[str | Path]) -> None:
    chosen = ["--vlm", "toy", "--data", "toy", "--llm", "smollm2", "--limit", "10", *options, "prompt.format=compact"]
    for more in (
        [],
        ["prompt.examples=2"],
        ["prompt.examples=2", "prompt.retrieve=true"],
        ["prompt.reasoning_tokens=3"],
    ):
        run("transfer", *chosen, *more)
    kept = list(Path("runs/transfer").rglob("untrained*.parquet"))
    assert len(kept) == 4
    assert len({str([row.probabilities for row in files.load_predictions(path)]) for path in kept}) == 4
