"""Callbacks of the trainer: the log of steps, intermediate adapters, and trackers (TensorBoard, W&B, trackio)."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from llm_wrapper import readers, runs, storage
from llm_wrapper.adapter_files import CONFIG, WEIGHTS
from llm_wrapper.errors import RecipeError, RunError
from llm_wrapper.recipe.schema import TrainSection
from llm_wrapper.training import checkpoints
from llm_wrapper.training.examples import Group

LOG_NAME = "train_log.jsonl"
PROJECT = "llm-wrapper"
"""The project that trackers file runs under."""


class StepLog(transformers.TrainerCallback):  # type: ignore[misc]
    """Appends one JSON line for each step; the main process alone writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write the row of a step; the summary of the whole training is no step's row."""
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written: {error.strerror or error}. Free space, then resume from the last "
                f"checkpoint: {runs.resume_command(self.path.parent)}"
            ) from error


class LossProgress(transformers.ProgressCallback):  # type: ignore[misc]
    """The progress bar of transformers with the loss, in place of a line for each step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Show the loss of the last step."""
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix_str(f"loss {(logs or {})['loss']:.4g}", refresh=False)


def truncate_log(path: Path, step: int) -> None:
    """Drop the rows after a step, which are computed again, and a last row that a kill cut off."""
    if not path.is_file():
        return
    kept = []
    for line in readers.read_bytes(path).decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            if float(json.loads(line)["step"]) <= step:
                kept.append(f"{line}\n")
    storage.write_atomic(path, "".join(kept))


def find_nonfinite(logs: Mapping[str, Any], *, skips_overflow: bool) -> str | None:
    """Return which value of a step's row is infinite or NaN, as a sentence; None if there is none.

    With half precision (`skips_overflow`) the trainer skips a step of infinite gradients.
    """
    names = {"loss": "loss"} if skips_overflow else {"loss": "loss", "grad_norm": "norm of the gradient"}
    for key, name in names.items():
        value = logs.get(key)
        if value is not None and not math.isfinite(value):
            return f"the {name} is {value}"
    return None


def count_samples_seen(groups: Sequence[Group], rows: Sequence[tuple[int, int]]) -> list[int]:
    """Return the annotated samples before each row of a schedule and after the last one, shape (len(rows) + 1,)."""
    return list(itertools.accumulate((groups[group].num_labelled for _, group in rows), initial=0))


class IntermediateAdapters(transformers.TrainerCallback):  # type: ignore[misc]
    """Copies the adapters that `train.keep_adapters` names from checkpoints, for a learning curve.

    The optimizer's state, twice their size, is not copied.
    """

    def __init__(self, samples_seen: Sequence[int], section: TrainSection) -> None:
        self.samples_seen, self.section = samples_seen, section

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Copy from all existing checkpoints: a kill may have come between the last one and its copy."""
        if not args.should_save:
            return
        rows_per_step = args.train_batch_size * args.world_size
        for checkpoint in checkpoints.find_checkpoints(Path(args.output_dir)):
            step = runs.step_of(checkpoint)
            times, rest = divmod(step, self.section.save_steps)
            is_kept = {"last": False, "doubling": not times & (times - 1), "all": True}[self.section.keep_adapters]
            if is_kept and not rest and step < state.max_steps:  # the last one is the run's adapter
                row = min(step * rows_per_step, len(self.samples_seen) - 1)
                _copy_adapter(checkpoint, Path(args.output_dir).parent, self.samples_seen[row])


def _copy_adapter(checkpoint: Path, run: Path, samples_seen: int) -> None:
    """Copy an adapter unless it was copied; the progress file is written last, so that half a copy does not count."""
    target = runs.intermediate_folder(run, runs.step_of(checkpoint))
    if (target / runs.PROGRESS).is_file():
        return
    with checkpoints.explain_save_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        for path in checkpoint.glob("adapter_*"):
            shutil.copyfile(path, target / path.name)
    digests = runs.digests_of(target, (CONFIG, WEIGHTS))
    storage.write_json(target / runs.PROGRESS, {"samples_seen": samples_seen, "sha256": digests})


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are not installed (RecipeError); each is the package of its name."""
    specs = {name: importlib.util.find_spec(name) for name in names}
    # A folder of that name in the working folder, such as W&B makes, has a spec too, but no origin.
    missing = [name for name, spec in specs.items() if spec is None or spec.origin is None]
    if missing:
        raise RecipeError(
            f"train.report_to names {', '.join(missing)}, which is not installed: pip install {' '.join(missing)}"
        )


@contextlib.contextmanager
def report_to_trackers(names: Sequence[str], folder: Path) -> Iterator[None]:
    """Let trackers write into a run's folder while it is trained, unless the environment names another one.

    TensorBoard writes to `tensorboard/`, W&B to `wandb/`; trackio keeps all projects in its own folder.
    """
    require_trackers(names)
    ours = {"TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard"), "WANDB_DIR": str(folder)}
    added = {key: value for key, value in {**ours, "WANDB_PROJECT": PROJECT}.items() if key not in os.environ}
    wandb = importlib.import_module("wandb") if "wandb" in names else None
    run_before = wandb.run if wandb else None
    if names:
        folder.mkdir(parents=True, exist_ok=True)  # else W&B writes elsewhere
        os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)
        if wandb and wandb.run is not run_before:
            wandb.finish()  # else the next training of this process would report to this run
