"""Kills, signals, full disks and broken steps: a training says what happened, and goes on as if nothing had."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import pathlib
import pickle
import random
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rich.console import Console
from safetensors import SafetensorError

from llm_wrapper import runs
from llm_wrapper.errors import ModelError, RunError
from llm_wrapper.training import callbacks, checkpoints, trainer
from llm_wrapper.training.examples import schedule_groups
from llm_wrapper.training.processes import exit_on_signal
from tests.llms import tiny
from tests.training import tiny_run
from tests.training.test_trainer import CHOSEN, log_of, recipe, train_groups, weights_of

pytestmark = pytest.mark.slow

OPTIONS: dict[str, Any] = {
    "groups_per_step": 2,
    "epochs": 20,
    "save_steps": 3,
    "shuffle_candidates": True,
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.2},
}
"""110 steps, 37 checkpoints."""

_apart = multiprocessing.get_context("forkserver")
_apart.set_forkserver_preload(["tests.training.tiny_run"])


def start(folder: Path) -> BaseProcess:
    output = folder.with_suffix(".txt")
    process = _apart.Process(target=tiny_run.train_apart, args=(folder, {**OPTIONS}, output))
    process.start()
    return process


def wait_for(process: BaseProcess, folder: Path, num_rows: int) -> None:
    """Wait until the log has so many rows, or the process has ended."""
    path = folder / callbacks.LOG_NAME
    while process.is_alive() and not (path.is_file() and path.read_bytes().count(b"\n") >= num_rows):
        time.sleep(0.002)


def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0, (tmp_path / "whole.txt").read_text()

    rng, run = random.Random(7), tmp_path / "killed"
    for number in range(20):
        process = start(run)
        done = len(log_of(run)) if (run / callbacks.LOG_NAME).is_file() else 0
        wait_for(process, run, done + rng.randrange(-2, 4))
        time.sleep(rng.uniform(0, 0.05))
        assert process.is_alive(), f"ended before kill {number}: {(tmp_path / 'killed.txt').read_text()}"
        process.kill() if rng.random() < 0.5 else process.terminate()
        process.join()
        assert process.exitcode in {-signal.SIGKILL, -signal.SIGTERM, 143}
    assert checkpoints.find_last_complete(run / "checkpoints")
    last = start(run)
    last.join()
    assert last.exitcode == 0, (tmp_path / "killed.txt").read_text()

    assert log_of(run) == log_of(tmp_path / "whole")
    assert len(log_of(run)) == 110
    adapters = [(folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (run, tmp_path / "whole")]
    assert adapters[0] == adapters[1]
    assert "Traceback" not in (tmp_path / "killed.txt").read_text()


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")],
    ids=["interrupt", "terminate"],
)
def test_a_signal_is_answered_with_how_to_go_on(tmp_path: Path, number: int, code: int, name: str) -> None:
    run = tmp_path / "run"
    process = start(run)
    wait_for(process, run, 8)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()
    printed = (tmp_path / "run.txt").read_text()
    assert process.exitcode == code, printed
    checkpoint = checkpoints.find_last_complete(run / "checkpoints")
    assert checkpoint is not None
    step = runs.step_of(checkpoint)
    assert f"stopped by {name}. To resume after step {step}: llm-wrapper train --run {run}" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_before_the_first_checkpoint(
    tmp_path: Path, number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended, exit_on_signal(tmp_path, Console(width=400)):
        signal.raise_signal(number)
    assert ended.value.code == code
    assert "from the start (no checkpoint yet)" in capsys.readouterr().out
    assert signal.getsignal(number) is before


def test_what_a_library_makes_of_a_signal_is_still_a_signal_and_errors_are_left_alone(tmp_path: Path) -> None:
    def library() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException as error:
            raise RuntimeError("the step failed") from error

    with pytest.raises(SystemExit) as ended, exit_on_signal(tmp_path, Console(quiet=True)):
        library()
    assert ended.value.code == 143
    with pytest.raises(RunError, match="mine"), exit_on_signal(tmp_path, Console(quiet=True)):
        raise RunError("mine")


def test_a_signal_that_a_finalizer_swallows_stops_the_training_all_the_same(tmp_path: Path) -> None:
    class Freed:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def train() -> None:
        Freed()
        time.sleep(10)

    with pytest.raises(SystemExit) as ended, exit_on_signal(tmp_path, Console(quiet=True)):
        train()
    assert ended.value.code == 143


# --- the log and checkpoints -----------------------------------------------------------------------------------------


def test_rows_behind_the_checkpoint_are_cut_from_the_log(tmp_path: Path) -> None:
    path = tmp_path / callbacks.LOG_NAME
    callbacks.truncate_log(path, 4)
    assert not path.exists()
    lines = ['{"step": 3, "loss": 2.5}', '{"step": 4, "loss": 2.0}', '{"step": 5, "loss": 1.0}', '{"step": 6, "lo']
    path.write_text("\n".join(lines))
    callbacks.truncate_log(path, 4)
    assert path.read_text() == '{"step": 3, "loss": 2.5}\n{"step": 4, "loss": 2.0}\n'
    callbacks.truncate_log(path, 0)
    assert path.read_text() == ""


def state(folder: Path, step: int, text: str | None = None) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if text is None or text:
        (path / "trainer_state.json").write_text(text or json.dumps({"global_step": step}))
    return path


def test_the_last_whole_checkpoint_is_found_and_cut_off_ones_behind_it_go(tmp_path: Path) -> None:
    assert checkpoints.find_last_complete(tmp_path) is None
    kept = state(tmp_path, 5, "")
    two, ten = state(tmp_path, 2), state(tmp_path, 10)
    cut = [state(tmp_path, 15, '{"global_step": 15, "epo'), state(tmp_path, 20, ""), state(tmp_path, 25, "[25]")]
    (tmp_path / "checkpoint-last").mkdir()
    assert checkpoints.find_last_complete(tmp_path) == ten
    checkpoints.remove_after(tmp_path, 10)
    assert all(path.is_dir() for path in (kept, two, ten, tmp_path / "checkpoint-last"))
    assert not any(path.exists() for path in cut)


@pytest.mark.parametrize("name", ["checkpoint-²", "checkpoint-٣", "checkpoint--1", "checkpoint-" + "9" * 5000])
def test_folders_that_are_named_like_checkpoints_are_left_alone(tmp_path: Path, name: str) -> None:
    kept = state(tmp_path, 2)
    if len(name) < 200:
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-7").touch()
    assert checkpoints.find_last_complete(tmp_path) == kept
    checkpoints.remove_after(tmp_path, 1)
    assert not kept.exists()
    assert len(name) >= 200 or (tmp_path / name).is_dir()


@pytest.mark.parametrize("text", ['{"a": ' * 100_000, '{"global_step": ' + "1" * 5000 + "}"], ids=["deep", "digits"])
def test_a_state_that_is_a_bomb_is_none(tmp_path: Path, text: str) -> None:
    state(tmp_path, 5, text)
    assert checkpoints.find_last_complete(tmp_path) is None


def interrupted(folder: Path) -> Path:
    """Train to the second checkpoint of three, and return it."""
    trainer.train_adapter(tiny.llm(), train_groups(6), recipe(**{**CHOSEN, "max_steps": 4}), folder)
    (last,) = (path for path in (folder / "checkpoints").iterdir() if path.name == "checkpoint-4")
    return last


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": pathlib.PurePosixPath("x")}))


gone = Path.unlink


@pytest.mark.parametrize(
    ("has_digests", "damage"),
    [(True, flip), (True, cut), (True, pickled), (True, gone), (False, cut), (False, pickled)],
)
@pytest.mark.parametrize("name", ["optimizer.pt", "adapter_model.safetensors", "rng_state.pth", "scheduler.pt"])
def test_a_damaged_checkpoint_is_refused_with_the_command(
    tmp_path: Path, name: str, damage: Any, has_digests: bool
) -> None:
    last = interrupted(tmp_path)
    damage(last / name)
    if not has_digests:
        (last / "sha256.json").unlink()
    reason = f"{name}: changed" if has_digests else ""
    with pytest.raises(RunError, match=rf"checkpoint-4 cannot be resumed from .*{reason}.*rm -r {last}"):
        trainer.train_adapter(tiny.llm(), train_groups(6), recipe(**CHOSEN), tmp_path)


def test_a_checkpoint_of_an_earlier_version_is_taken_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (interrupted(tmp_path) / "sha256.json").unlink()
    with caplog.at_level("INFO", logger="llm_wrapper"):
        trainer.train_adapter(tiny.llm(), train_groups(6), recipe(**CHOSEN), tmp_path)
    assert [row for row in caplog.messages if "checkpoint-4 has no digests" in row]


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError(errno.ENOSPC, "No space left on device"), id="system"),
        pytest.param(OSError(errno.EDQUOT, "Disk quota exceeded"), id="quota"),
        pytest.param(Exception("No space left on device (os error 28)"), id="tokenizers"),
        pytest.param(RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), id="torch"),
        pytest.param(SafetensorError("I/O error: No space left on device (os error 28)"), id="safetensors"),
    ],
)
@pytest.mark.parametrize("place", ["_save_checkpoint", "training_step", "save_model"])
def test_a_full_disk_anywhere_in_a_training_is_told(
    tmp_path: Path, error: Exception, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(transformers.Trainer, place, full)
    with pytest.raises(RunError, match=r"cannot be written .*Is its disk full\? Free space, then resume"):
        trainer.train_adapter(tiny.llm(), train_groups(6), recipe(**{**CHOSEN, "save_steps": 1}), tmp_path)


def test_a_full_disk_at_the_copy_of_an_adapter_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(RunError, match=r"adapters/step-1 cannot be written .*No space left"):
        trainer.train_adapter(tiny.llm(), train_groups(6), recipe(**{**CHOSEN, "save_steps": 1}), tmp_path)


def test_an_adapter_is_not_written_through_a_link_and_other_errors_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="another"), checkpoints.explain_save_errors(tmp_path / "new"):
        raise RuntimeError("another")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "adapter").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="adapter is a link"):
        trainer.train_adapter(tiny.llm(), train_groups(4), recipe(max_steps=1), tmp_path)
    assert not list((tmp_path / "elsewhere").iterdir())


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let the system refuse larger files, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("num_bytes", [64, 10_000, 50_000], ids=["every file", "the adapter", "the optimizer"])
def test_a_full_disk_at_a_checkpoint_leaves_the_one_before(
    tmp_path: Path, num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(**{**CHOSEN, "lora": recipe().train.lora.model_copy(update={"rank": 8})})
    trainer.train_adapter(tiny.llm(), train_groups(6), chosen, tmp_path / "whole")
    original = transformers.Trainer._save_checkpoint

    def saved(self: Any, *args: Any, **options: Any) -> None:
        with largest_file(num_bytes if self.state.global_step == 4 else resource.RLIM_INFINITY):
            original(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(transformers.Trainer, "_save_checkpoint", saved)
        with pytest.raises(RunError, match=r"checkpoints/checkpoint-4 cannot be written .* Free space, then resume"):
            trainer.train_adapter(tiny.llm(), train_groups(6), chosen, tmp_path / "full")
    last = checkpoints.find_last_complete(tmp_path / "full" / "checkpoints")
    assert last is not None
    assert last.name == "checkpoint-2"
    trainer.train_adapter(tiny.llm(), train_groups(6), chosen, tmp_path / "full")
    assert log_of(tmp_path / "full") == log_of(tmp_path / "whole")
    whole = weights_of(tmp_path / "whole")
    assert all(torch.equal(value, whole[name]) for name, value in weights_of(tmp_path / "full").items())


def test_a_full_disk_at_the_log_is_told(tmp_path: Path) -> None:
    kept = callbacks.StepLog(tmp_path / callbacks.LOG_NAME)
    now: Any = transformers.TrainerState(global_step=7, is_world_process_zero=True)
    with largest_file(8), pytest.raises(RunError, match=r"train_log\.jsonl cannot be written: File too large"):
        kept.on_log(None, now, None, logs={"loss": 1.5})


# --- steps that break ------------------------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, step: int, what: str) -> None:
    """Make weights or gradients of a step no numbers."""
    original = transformers.Trainer.training_step

    def poisoned(self: Any, model: Any, *args: Any, **options: Any) -> Any:
        weight = model.get_output_embeddings().weight
        if self.state.global_step == step - 1 and what == "loss":
            weight.data.fill_(float("nan"))
        loss = original(self, model, *args, **options)
        if self.state.global_step == step - 1 and what == "gradient":
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("inf"))
        return loss

    monkeypatch.setattr(transformers.Trainer, "training_step", poisoned)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_broken_first_step_ends_the_training(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any line of the log and any checkpoint."""
    poison(monkeypatch, 1, what)
    with pytest.raises(ModelError, match=rf"the .*{what} is (nan|inf) at step 1; lower train\.learning_rate"):
        trainer.train_adapter(tiny.llm(), train_groups(), recipe(save_steps=1), tmp_path)
    assert not (tmp_path / "adapter").exists()
    assert checkpoints.find_last_complete(tmp_path / "checkpoints") is None


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_broken_step_leaves_its_batch(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 3, what)
    chosen, groups = recipe(tokens_per_batch=64, save_steps=1), train_groups()
    path = tmp_path / "broken-step-3-process-0.json"
    told = rf"the .*{what} is (nan|inf) at step 3; lower train\.learning_rate.* kept in {path}"
    with pytest.raises(ModelError, match=told):
        trainer.train_adapter(tiny.llm(), groups, chosen, tmp_path)
    assert not (tmp_path / "adapter").exists()
    found = json.loads(path.read_text())
    assert len(found["batches"]) > 1
    size = chosen.train.groups_per_step
    step = [groups[place].samples[0] for _, place in schedule_groups(groups, chosen.train)[2 * size : 3 * size]]
    shown = [sample for batch in found["batches"] for rows in batch["groups"] for sample in rows]
    texts = {each["sample_id"]: each["text"] for each in shown}
    assert texts.keys() == {sample.sample_id for sample in step}
    assert all(sample.expression in texts[sample.sample_id] for sample in step)
    for batch in found["batches"]:
        assert (batch["loss"] == "nan") == (what == "loss")
        assert [len(row) for row in batch["input_ids"]] == [len(row) for row in batch["labels"]]
        assert any(label != -100 for row in batch["labels"] for label in row)
    assert [row["step"] for row in log_of(tmp_path)] == [1, 2]
    last = checkpoints.find_last_complete(tmp_path / "checkpoints")
    assert last is not None
    assert last.name == "checkpoint-2"


@pytest.mark.parametrize(
    ("loss", "gradient", "skips", "problem"),
    [
        (1.0, 2.0, False, None),
        (math.nan, 2.0, False, "the loss is nan"),
        (1.0, math.inf, False, "the norm of the gradient is inf"),
        (1.0, math.inf, True, None),  # half precision skips an overflow
        (math.inf, None, True, "the loss is inf"),
    ],
)
def test_what_is_broken(loss: float, gradient: float | None, skips: bool, problem: str | None) -> None:
    assert callbacks.find_nonfinite({"loss": loss, "grad_norm": gradient}, skips_overflow=skips) == problem
