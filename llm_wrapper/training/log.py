"""What a training writes down while it runs: one row a step, and the batch that it broke on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from llm_wrapper import readers, runs, storage
from llm_wrapper.errors import RunError

__all__ = ["NAME", "Progress", "StepLog", "broken", "cut_back"]

NAME = "train_log.jsonl"


class StepLog(transformers.TrainerCallback):  # type: ignore[misc]
    """Appends the row of each step to a file of JSON lines; the main process alone writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write the row of a step; what is said of a whole training is no step's and is left out.

        Raises:
            RunError: If the row cannot be written.
        """
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


class Progress(transformers.ProgressCallback):  # type: ignore[misc]
    """The bar of transformers with the loss behind it, in place of a line for each step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Show the loss of the last step."""
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix_str(f"loss {(logs or {})['loss']:.4g}", refresh=False)


def cut_back(path: Path, step: int) -> None:
    """Drop the rows behind a step: they are computed again, and would stand there twice.

    A last row that a kill cut off goes too.
    """
    if not path.is_file():
        return
    lines = readers.read_bytes(path).decode(errors="replace").splitlines()
    storage.write_atomic(path, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))


def _step_of(line: str) -> float:
    """Return the step of a row; infinity where it is no whole row."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf


def broken(logs: Mapping[str, Any], *, skips_overflow: bool) -> str | None:
    """Say what of a step is no number; None if all is well.

    Args:
        logs: The step's row.
        skips_overflow: Whether a step of infinite gradients is left out by itself, as with half precision.
    """
    names = {"loss": "loss"} if skips_overflow else {"loss": "loss", "grad_norm": "norm of the gradient"}
    for key, name in names.items():
        value = logs.get(key)
        if value is not None and not math.isfinite(value):
            return f"the {name} is {value}"
    return None
