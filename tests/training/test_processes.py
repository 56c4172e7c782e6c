"""Several processes train as one does: the same steps, the same losses, one adapter; and what cannot be is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from rich.console import Console

from llm_wrapper import runs
from llm_wrapper.errors import RecipeError, RunError
from llm_wrapper.training import processes, trainer
from llm_wrapper.training.collator import Collator
from tests.llms import tiny
from tests.training import tiny_run
from tests.training.test_trainer import IGNORED, recipe

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
OPTIONS: dict[str, Any] = {
    "tokens_per_batch": 200,  # so that the processes have several parts of a step each, and not equally many
    "groups_per_step": 4,
    "epochs": 2,
    "save_steps": 2,
    "scheduler": "linear",
    "shuffle_candidates": True,
    "lora": {"rank": 4, "alpha": 8},
}


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the second of three."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")


def test_one_process_does_everything() -> None:
    assert (processes.process_count(), processes.is_main_process(), processes.groups_per_process(5)) == (1, True, 5)
    assert trainer._fillers(7, recipe(groups_per_step=3)) == []


@pytest.mark.usefixtures("three")
def test_a_step_is_shared_out_evenly() -> None:
    assert processes.groups_per_process(12) == 4
    with pytest.raises(
        RecipeError, match=r"groups_per_step=4 .* among 3 processes: start 1, 2, 4, or .* multiple of 3"
    ):
        processes.groups_per_process(4)


@pytest.mark.usefixtures("three")
def test_the_main_process_alone_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console()
    with pytest.raises(SystemExit) as ended, processes.print_from_main(console):
        raise RunError("the main process says this")
    assert (ended.value.code, console.quiet) == (2, True)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RunError, match="mine"), processes.print_from_main(Console()):
        raise RunError("mine")


@pytest.mark.usefixtures("three")
def test_the_last_step_is_filled_up_without_labels() -> None:
    chosen = recipe(groups_per_step=3)
    assert [len(trainer._fillers(count, chosen)) for count in (6, 7, 8)] == [0, 2, 1]
    llm, (filler, _) = tiny.llm(), trainer._fillers(7, chosen)
    batch = Collator(llm, tiny_run.groups(), chosen)([{"epoch": filler[0], "group": filler[1]}])["parts"][0]
    assert bool((batch["labels"] == IGNORED).all())
    assert batch["rows"].tolist() == [list(filler)]


def test_one_process_keeps_to_one_device(tmp_path: Path) -> None:
    class Arguments(SimpleNamespace):
        n_gpu = 4

    assert trainer.training_arguments(tiny.llm(), recipe(), tmp_path, kind=Arguments)._n_gpu == 1


@pytest.mark.parametrize(
    ("gpus", "count", "problem"),
    [(False, "2", "there is none"), (True, "1", "needs several processes"), (True, "2", None)],
    ids=["no GPU", "one process", "as it should be"],
)
def test_shared_weights_need_devices_to_share_them(
    gpus: bool, count: str, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", count)
    with pytest.raises(RecipeError, match=problem) if problem else nullcontext():
        processes.require_devices()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_leave_the_number_of_processes_and_the_precision_to_others(path: Path) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert "num_processes" not in values  # Makefile: PROCESSES
    assert values["mixed_precision"] == "no"  # `trainer.training_arguments` decides by the model's own type


def test_makefile_names_a_configuration_that_is_there() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "ACCELERATE ?= ddp\n" in text
    assert {path.stem for path in CONFIGS} == {"ddp", "fsdp"}


def launch(folder: Path, *, dies_at: int | None = None) -> subprocess.CompletedProcess[str]:
    """Train with two processes, as `make train PROCESSES=2` does."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/ddp.yaml"]
    command += ["--num_processes", "2", "--main_process_port", "0", "-m", "tests.training.tiny_run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if dies_at:
        environment[tiny_run.DIES_AT] = str(dies_at)
    command += [str(folder), json.dumps(OPTIONS)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_one_of_them_killed_give_the_losses_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in (("cli.train", "load_training_pool"), ("llms.load", "load_model")):
        monkeypatch.setattr(f"llm_wrapper.{module}.{name}", None)  # `train` sets them; here they are put back
    tiny_run.train(tmp_path / "one", {**OPTIONS})
    expected = rows(tmp_path / "one")
    assert [row["step"] for row in expected] == [1, 2, 3, 4, 5, 6]  # 22 groups: the last step has 2 of them, not 4

    killed = launch(tmp_path / "two", dies_at=4)
    assert killed.returncode != 0
    assert not runs.is_complete(tmp_path / "two")
    assert max(row["step"] for row in rows(tmp_path / "two")) == 3

    resumed = launch(tmp_path / "two")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.count("6 steps in") == 1
    found = rows(tmp_path / "two")
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    for key in ("loss", "grad_norm", "learning_rate", "token_accuracy"):
        assert [row[key] for row in found] == pytest.approx([row[key] for row in expected], abs=1e-5, rel=1e-5)
    name = "adapter/adapter_model.safetensors"
    one, two = (safetensors.torch.load_file(tmp_path / run / name) for run in ("one", "two"))
    assert one.keys() == two.keys()
    for key, value in one.items():  # Adam makes whole steps (0.01) of gradients near zero: the order of sums shows
        torch.testing.assert_close(two[key], value, atol=5e-4, rtol=1e-4)
    manifest = runs.facts_of(tmp_path / "two")
    assert manifest["training"]["loss"] == pytest.approx(runs.facts_of(tmp_path / "one")["training"]["loss"], abs=1e-5)
