"""TensorBoard, W&B and trackio behind `train.report_to`: are they there, and where they write."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from llm_wrapper.errors import RecipeError

__all__ = ["PROJECT", "reporting", "require"]

PROJECT = "llm-wrapper"
"""What trackers of several projects file our runs under."""


def require(names: Sequence[str]) -> None:
    """Check that the trackers are installed; each is the package of its name.

    Raises:
        RecipeError: With the command that installs those that are not.
    """
    missing = [name for name in dict.fromkeys(names) if not _is_installed(name)]
    if missing:
        raise RecipeError(
            f"train.report_to names {', '.join(missing)}, which is not installed: pip install {' '.join(missing)}"
        )


def _is_installed(name: str) -> bool:
    # A folder of that name in the working folder, which W&B makes, looks like a package without a file of its own.
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None


@contextmanager
def reporting(names: Sequence[str], folder: Path) -> Iterator[None]:
    """Let trackers write into a run's folder while it is trained, unless the environment says where.

    TensorBoard writes to `tensorboard/`, W&B to `wandb/`. trackio keeps all projects in its own folder, where
    `trackio show` looks for them. Nothing ends W&B's run with the training: of two trainings in one process the second
    would be sent to the run of the first.
    """
    require(names)
    ours = {"TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard"), "WANDB_DIR": str(folder)}
    added = {key: value for key, value in {**ours, "WANDB_PROJECT": PROJECT}.items() if key not in os.environ}
    wandb = importlib.import_module("wandb") if "wandb" in names else None
    begun = wandb.run if wandb else None
    if names:
        folder.mkdir(parents=True, exist_ok=True)  # W&B writes elsewhere where there is no such folder
        os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)
        if wandb and wandb.run is not begun:
            wandb.finish()
