"""What a run leaves for its learning curve: adapters of the way, each with the samples that it has seen.

runs/<run>/adapters/step-<n>/   adapter_config.json  adapter_model.safetensors  progress.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_wrapper import artifacts, runs
from llm_wrapper.errors import RunError, shell_word

__all__ = ["PROGRESS", "Kept", "folder_of", "of_run", "step_of"]

PROGRESS = "progress.json"


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
        raise RunError(f"{run} holds no finished training; go on with it: make train RUN={shell_word(run)}")
    outcome = runs.facts_of(run).get("training", {})
    if "samples_seen" not in outcome:
        raise RunError(f"{run} was trained by a version that did not count the samples of its steps; train it again")
    found = [
        Kept(path.parent, step_of(path.parent), artifacts.read_json(path)["samples_seen"])
        for path in (run / "adapters").glob(f"step-*/{PROGRESS}")
    ]
    return [
        *sorted(found, key=lambda each: each.num_steps),
        Kept(run / "adapter", outcome["steps"], outcome["samples_seen"]),
    ]
