"""A Trainer that notices a broken step at once and knows what was in it, and goes on from where a killed one was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from llm_wrapper import storage
from llm_wrapper.errors import ModelError
from llm_wrapper.training import checkpoints, log

__all__ = ["Batch", "WatchedTrainer"]

_NUM_RECENT = 10


@dataclass(frozen=True, slots=True)
class Batch:
    """What the loss of one process's part of a step was computed from.

    `rows` (n, 2) are the (epoch, group) that the collator was given, where it told; `input_ids` and `labels` are
    (b, t); `loss`, `num_right` and `num_labelled` are numbers that still lie on the device.
    """

    rows: torch.Tensor | None
    input_ids: torch.Tensor
    labels: torch.Tensor
    loss: torch.Tensor
    num_right: torch.Tensor
    num_labelled: int


class WatchedTrainer(transformers.Trainer):  # type: ignore[misc]
    """Trainer that is told each batch by `note`, and has `logging_steps` 1, so that each step is looked at."""

    def __init__(self, **options: Any) -> None:
        """Take the options of `transformers.Trainer`."""
        super().__init__(**options)
        if self.pop_callback(transformers.ProgressCallback) is not None:
            self.add_callback(log.Progress)
        self._batches: list[Batch] = []

    @property
    def run(self) -> Path:
        """The run's folder."""
        return Path(self.args.output_dir).parent

    def last_checkpoint(self) -> str | None:
        """Return the checkpoint to resume from; what was written behind it is removed, for it is done again.

        Raises:
            RunError: If its files are not as they were written.
        """
        folder = Path(self.args.output_dir)
        checkpoint = checkpoints.last_complete(folder)
        if checkpoint is not None:
            checkpoints.verify_checkpoint(checkpoint)
        step = checkpoints.step_of(checkpoint) if checkpoint else 0
        if self.is_world_process_zero():
            checkpoints.clear_behind(folder, step)
            log.cut_back(self.run / log.NAME, step)
        elif checkpoint is None:  # each process draws its own dropout
            torch.manual_seed(self.args.seed + self.args.process_index)
        self.accelerator.wait_for_everyone()
        return str(checkpoint) if checkpoint else None

    def save_adapter(self, folder: Path, *, base_model: str | None) -> None:
        """Write the adapter, gathered from all processes where each has a part of it.

        Args:
            folder: Where it goes.
            base_model: As the recipe names it: where a copy of it lies on this machine helps nobody else.
        """
        weights = None
        if self.is_fsdp_enabled:
            trained = [(name, each) for name, each in self.model.named_parameters() if each.requires_grad]
            weights = {name: getattr(each, "full_tensor", each.detach)().cpu() for name, each in trained}
        if self.is_world_process_zero():
            self.model.peft_config["default"].base_model_name_or_path = base_model
            with checkpoints.saving(folder):
                self.model.save_pretrained(str(folder), state_dict=weights)
        self.accelerator.wait_for_everyone()

    def note(self, batch: Batch) -> None:
        """Keep a batch until its step is logged."""
        self._batches.append(batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a step, with the share of its labelled tokens that were the likeliest.

        Raises:
            ModelError: If the loss or the gradient is no number. In each process alike, since the loss is that of all;
                each then keeps its part of the step.
        """
        if "loss" in logs and self._batches:
            counts = [(batch.num_right, batch.num_labelled) for batch in self._batches]
            found = torch.tensor([float(sum(column)) for column in zip(*counts, strict=True)], device=self.args.device)
            right, labelled = self.accelerator.reduce(found, reduction="sum").tolist()
            logs = {**logs, "token_accuracy": right / labelled}
            problem = log.broken(logs, skips_overflow=self.args.fp16)
            if problem is not None:
                self._stop(problem, logs)
            self._batches = []
        # Each row is in the file; here they would grow with every checkpoint.
        del self.state.log_history[:-_NUM_RECENT]
        super().log(logs, start_time)

    def _stop(self, problem: str, logs: dict[str, float]) -> None:
        step = self.state.global_step
        path = self.run / f"broken-step-{step}-process-{self.args.process_index}.json"
        tell = getattr(self.data_collator, "told", None)
        kept = {
            "step": step,
            "problem": problem,
            "row": {name: str(value) for name, value in logs.items()},
            "batches": [
                {
                    "loss": str(batch.loss.item()),
                    "groups": [tell(*row) for row in batch.rows.tolist()] if tell and batch.rows is not None else None,
                    "input_ids": batch.input_ids.tolist(),
                    "labels": batch.labels.tolist(),
                }
                for batch in self._batches
            ],
        }
        storage.write_json(path, kept)
        self.accelerator.wait_for_everyone()
        raise ModelError(
            f"{problem} at step {step}; lower train.learning_rate or set llm.dtype=float32. The step's samples, "
            f"prompts and tokens are kept in {path}"
        )

    def recent_loss(self) -> float:
        """Return the mean loss of the last steps, ten of them where there were so many."""
        losses = [row["loss"] for row in self.state.log_history if "loss" in row][-_NUM_RECENT:]
        return float(sum(losses) / len(losses))

    def _save_rng_state(self, output_dir: str) -> None:
        """Wait until each process has written its own: then the state comes, by which a checkpoint is complete."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        """Save a checkpoint and its digests, or say that there is no room for it."""
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with checkpoints.saving(checkpoint):
            super()._save_checkpoint(*args, **options)
            if self.args.should_save:
                checkpoints.write_digests(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with checkpoints.resuming(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with checkpoints.resuming(Path(checkpoint or "")):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with checkpoints.resuming(Path(checkpoint or "")):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with checkpoints.resuming(Path(checkpoint or "")):
            super()._load_rng_state(checkpoint)
