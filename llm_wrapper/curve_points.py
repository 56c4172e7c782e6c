"""What a run leaves for its learning curve: adapters of the way, each with the samples that it has seen.

runs/<run>/adapters/step-<n>/   adapter_config.json  adapter_model.safetensors  progress.json
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_wrapper import readers, runs
from llm_wrapper.adapter_files import CONFIG, WEIGHTS
from llm_wrapper.errors import RunError, shell_word

__all__ = ["PROGRESS", "Kept", "folder_of", "of_run", "step_of"]

PROGRESS = "progress.json"
_NAME = re.compile(r"step-[0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class Kept:
    """An adapter, the steps behind it, and the annotated samples that these saw; one seen twice counts twice."""

    folder: Path
    num_steps: int
    num_samples: int


def folder_of(run: Path, step: int) -> Path:
    """Return where the adapter of a step is kept."""
    return run / "adapters" / f"step-{step}"


def step_of(folder: Path) -> int:
    """Return the step that a folder is named after: `step-100`, `checkpoint-100`."""
    return int(folder.name.rpartition("-")[2])


def of_run(run: Path) -> list[Kept]:
    """Return the adapters of a finished run by rising step, the finished one last.

    Raises:
        RunError: If the run is not finished, or does not tell how many samples it has seen.
    """
    if not runs.is_complete(run):
        raise RunError(f"{run} holds no finished training; resume it with: {runs.resume_command(run)}")
    outcome = runs.facts_of(run).get("training")
    if not isinstance(outcome, dict) or not _are_counts(outcome.get("samples_seen"), outcome.get("steps")):
        raise RunError(f"{run} was trained by a version that did not count the samples of its steps; train it again")
    found = [
        Kept(folder, step_of(folder), _samples_seen(folder))
        for folder in (run / "adapters").glob("step-*")
        if _NAME.fullmatch(folder.name) and (folder / PROGRESS).is_file()
    ]
    return [
        *sorted(found, key=lambda each: each.num_steps),
        Kept(run / runs.ADAPTER, outcome["steps"], outcome["samples_seen"]),
    ]


def _samples_seen(folder: Path) -> int:
    """Return the samples behind an intermediate adapter, whose files are as they were written."""
    progress = readers.read_json(folder / PROGRESS, most=readers.MIB)
    seen = progress.get("samples_seen") if isinstance(progress, dict) else None
    digests = progress.get("sha256") if isinstance(progress, dict) else None
    if not isinstance(seen, int) or not _are_counts(seen) or not (digests is None or isinstance(digests, dict)):
        raise RunError(
            f"{folder / PROGRESS} does not say how many samples were seen: remove it: rm -r {shell_word(folder)}"
        )
    runs.require_unchanged(folder, digests, names=(CONFIG, WEIGHTS))
    return seen


def _are_counts(*values: Any) -> bool:
    return all(isinstance(value, int) and value >= 0 for value in values)
