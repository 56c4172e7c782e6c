"""Checkpoints that a killed training goes on from: which are whole, and what to do where one cannot be written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors

from llm_wrapper.curve_points import step_of
from llm_wrapper.errors import RunError

__all__ = ["clear_behind", "last_complete", "saving", "step_of"]

_STATE = "trainer_state.json"
"""Written last, so a checkpoint that was cut off has none, or one that is no JSON."""


def _found(folder: Path) -> list[Path]:
    """Return the folders that are named as checkpoints."""
    return [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]


def _is_complete(checkpoint: Path) -> bool:
    try:
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and state.get("global_step") == step_of(checkpoint)


def last_complete(folder: Path) -> Path | None:
    """Return the complete checkpoint of the highest step, if there is one."""
    return max(filter(_is_complete, _found(folder)), key=step_of, default=None)


def clear_behind(folder: Path, step: int) -> None:
    """Remove what was written behind a step: nothing goes on from it, and it may be what filled the disk."""
    for path in _found(folder):
        if step_of(path) > step:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Explain a failure to write a checkpoint or an adapter into `folder`.

    Raises:
        RunError: In place of the ways in which torch and safetensors say that a disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # where torch writes its files
            raise
        reason = str(error).splitlines()[0]
        raise RunError(
            f"{folder} cannot be written ({reason}). Is its disk full? Free space, then go on from the checkpoint "
            "before it: the same command again, for this run"
        ) from error
