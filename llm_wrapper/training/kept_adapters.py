"""Adapters of the way, copied from checkpoints before these are removed: a learning curve is drawn from them."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from llm_wrapper import runs, storage
from llm_wrapper.adapter_files import CONFIG, WEIGHTS
from llm_wrapper.recipe import TrainSection
from llm_wrapper.training import checkpoints
from llm_wrapper.training.examples import Group

__all__ = ["KeptAdapters", "seen"]


def seen(groups: Sequence[Group], rows: Sequence[tuple[int, int]]) -> list[int]:
    """Return the annotated samples before each row of a schedule and behind the last one, shape (len(rows) + 1,)."""
    return list(itertools.accumulate((groups[place].num_labelled for _, place in rows), initial=0))


class KeptAdapters(transformers.TrainerCallback):  # type: ignore[misc]
    """Copies the adapters that `train.keep_adapters` names; the optimizer's state, twice their size, stays behind."""

    def __init__(self, samples_seen: Sequence[int], section: TrainSection) -> None:
        """Take what `seen` gives for the rows that the trainer goes through."""
        self.samples_seen, self.section = samples_seen, section

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Copy from all checkpoints that there are: a kill may have come between the last one and its copy."""
        if not args.should_save:
            return
        rows_per_step = args.train_batch_size * args.world_size
        for checkpoint in checkpoints.find_checkpoints(Path(args.output_dir)):
            step = runs.step_of(checkpoint)
            if self._is_kept(step) and step < state.max_steps:  # the last one is the run's adapter
                row = min(step * rows_per_step, len(self.samples_seen) - 1)
                _copy(checkpoint, Path(args.output_dir).parent, self.samples_seen[row])

    def _is_kept(self, step: int) -> bool:
        times, rest = divmod(step, self.section.save_steps)
        is_doubled = not times & (times - 1)
        return not rest and {"last": False, "doubling": is_doubled, "all": True}[self.section.keep_adapters]


def _copy(checkpoint: Path, run: Path, samples_seen: int) -> None:
    """Copy an adapter, unless it is there; what it has seen is written last, so that half a copy is none."""
    target = runs.intermediate_folder(run, runs.step_of(checkpoint))
    if (target / runs.PROGRESS).is_file():
        return
    with checkpoints.saving(target):
        target.mkdir(parents=True, exist_ok=True)
        for path in checkpoint.glob("adapter_*"):
            shutil.copyfile(path, target / path.name)
    digests = runs.digests_of(target, (CONFIG, WEIGHTS))
    storage.write_json(target / runs.PROGRESS, {"samples_seen": samples_seen, "sha256": digests})
