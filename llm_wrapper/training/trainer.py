"""Train adapters with transformers' Trainer: packed prompts, checked steps, resumable.

groups --schedule--> (epoch, group) --Collator--> parts of packed rows --PackedTrainer--> adapter, train_log.jsonl
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from rich.progress import track

from llm_wrapper import storage
from llm_wrapper.errors import DataError, ModelError
from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.packing import block_mask
from llm_wrapper.llms.soft_prompts import num_columns
from llm_wrapper.recipe import Recipe
from llm_wrapper.terminal import open_console
from llm_wrapper.training import checkpoints, processes
from llm_wrapper.training.adapters import create_adapter
from llm_wrapper.training.architecture import num_experts
from llm_wrapper.training.callbacks import (
    LOG_NAME,
    PROJECT,
    IntermediateAdapters,
    LossProgress,
    StepLog,
    count_samples_seen,
    find_nonfinite,
    report_to_trackers,
    truncate_log,
)
from llm_wrapper.training.collator import FILLER, IGNORED, Collator, encode_example
from llm_wrapper.training.examples import Group, make_examples, schedule_groups

__all__ = [
    "PackedTrainer",
    "StepBatch",
    "WatchedTrainer",
    "build_trainer",
    "fit_to_length",
    "train_adapter",
    "training_arguments",
]

_NUM_RECENT = 10


@dataclass(frozen=True, slots=True)
class StepBatch:
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
            self.add_callback(LossProgress)
        self._batches: list[StepBatch] = []

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
        checkpoint = checkpoints.find_last_complete(folder)
        if checkpoint is not None:
            checkpoints.verify_checkpoint(checkpoint)
        step = checkpoints.step_of(checkpoint) if checkpoint else 0
        if self.is_world_process_zero():
            checkpoints.remove_after(folder, step)
            truncate_log(self.run / LOG_NAME, step)
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
            with checkpoints.explain_save_errors(folder):
                self.model.save_pretrained(str(folder), state_dict=weights)
        self.accelerator.wait_for_everyone()

    def note(self, batch: StepBatch) -> None:
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
            problem = find_nonfinite(logs, skips_overflow=self.args.fp16)
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
        with checkpoints.explain_save_errors(checkpoint):
            super()._save_checkpoint(*args, **options)
            if self.args.should_save:
                checkpoints.write_digests(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with checkpoints.explain_resume_errors(Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with checkpoints.explain_resume_errors(Path(checkpoint or "")):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with checkpoints.explain_resume_errors(Path(checkpoint or "")):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with checkpoints.explain_resume_errors(Path(checkpoint or "")):
            super()._load_rng_state(checkpoint)


def fit_to_length(llm: LoadedLLM, groups: Sequence[Group], recipe: Recipe) -> tuple[list[Group], int]:
    """Leave out samples whose prompt and answer exceed `train.max_tokens`; return the rest, measured, and how many."""
    kept, num_too_long = [], 0
    section = recipe.train.model_copy(update={"generated_per_group": 0, "shuffle_candidates": False})
    console = open_console(stderr=True, quiet=not processes.is_main_process())
    for group in track(groups, "measuring prompts", console=console, transient=True):
        examples = make_examples(group, recipe.prompt.format, section, epoch=0, instruction=recipe.prompt.instruction)
        lengths = [len(encode_example(llm, example)[0]) for example in examples]
        fits = [length <= recipe.train.max_tokens for length in lengths]
        num_too_long += fits.count(False) if group.num_labelled else 0
        if not any(fits):
            continue
        size = max(length for length, fit in zip(lengths, fits, strict=True) if fit)
        kept.append(replace(_fitting(group, fits), size=size))
    return kept, num_too_long


def _fitting(group: Group, fits: Sequence[bool]) -> Group:
    """Return a group with those of its labelled samples that fit."""
    if not group.num_labelled:
        return group
    rows = [row for row, fit in zip(zip(group.samples, group.targets, strict=True), fits, strict=True) if fit]
    samples, targets = zip(*rows, strict=True)
    return replace(group, samples=samples, targets=targets)


class PackedTrainer(WatchedTrainer):
    """Trainer whose loss is computed at the labelled positions alone, on every device.

    Not TRL's SFTTrainer (1.16): it projects every position to the vocabulary off CUDA, which more than doubles a step
    here, where one or two of about fifty positions carry a label; it refuses adapters on the output layer, turns those
    of 4-bit models to bfloat16, in which small updates are lost, and asks Mixtral for a router loss that cannot be
    computed with a mask of four dimensions. Routers are frozen here, and that loss is never asked for. What it does for
    us otherwise is get_peft_model.
    """

    def __init__(self, **options: Any) -> None:
        """Take the options of `transformers.Trainer`."""
        super().__init__(**options)
        self.model_accepts_loss_kwargs = True  # `compute_loss` divides by the labels of the whole step itself

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Go through the parts of a step one after the other, for its loss and its gradients."""
        *first, last = inputs["parts"]
        with self.accelerator.no_sync(model):  # other processes may have another number of parts
            losses = [super(PackedTrainer, self).training_step(model, part, num_items_in_batch) for part in first]
        losses.append(super().training_step(model, last, num_items_in_batch))
        return torch.stack(losses).sum()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: what Trainer would count knows nothing of shared prefixes."""
        return 0

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean negative log-likelihood per labelled token of the whole step, of all processes."""
        labels, given = inputs.pop("labels"), inputs.pop("rows", None)
        if "ends" in inputs:
            inputs["attention_mask"] = block_mask(inputs.pop("ends"))
        rows, places = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        columns, column_of = places.unique(return_inverse=True)
        if getattr(self.model.config.get_text_config(), "output_router_logits", False):
            inputs["output_router_logits"] = False
        outputs = model(**inputs, logits_to_keep=columns, use_cache=False)
        if outputs.logits.shape[1] != len(columns):  # xLSTM keeps them all
            column_of = places + num_columns(self.model)
        logits, targets = outputs.logits[rows, column_of].float(), labels[rows, places + 1]
        total = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        loss = total / (len(targets) if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        num_right = (logits.argmax(dim=-1) == targets).sum()
        self.note(StepBatch(given, inputs["input_ids"], labels, loss.detach(), num_right, len(targets)))
        return (loss, outputs) if return_outputs else loss


def training_arguments(
    llm: LoadedLLM, recipe: Recipe, folder: Path, *, kind: type[Any] = transformers.TrainingArguments, **more: Any
) -> Any:
    """Return what a recipe means to a trainer whose arguments are of a kind that may take some more."""
    section = recipe.train
    made = kind(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=processes.groups_per_process(section.groups_per_step),
        num_train_epochs=1,
        learning_rate=section.learning_rate,
        lr_scheduler_type=section.scheduler,
        warmup_steps=section.warmup_steps,
        weight_decay=section.weight_decay,
        # Adapters stay in float32; autocast computes their products in the model's own type.
        bf16=llm.model.dtype == torch.bfloat16,
        fp16=llm.model.dtype == torch.float16,
        gradient_checkpointing=section.gradient_checkpointing,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=section.save_steps,
        save_total_limit=2,
        seed=section.seed,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        report_to=list(dict.fromkeys(section.report_to)),
        run_name=folder.name,
        project=PROJECT,
        use_cpu=llm.model.device.type == "cpu",
        dataloader_pin_memory=llm.model.device.type != "cpu",
        # A step may leave out experts, and nothing else.
        ddp_find_unused_parameters=num_experts(llm.model.config) > 0,
        dataloader_num_workers=_num_workers(llm.model.device.type),
        **more,
    )
    made._n_gpu = min(made.n_gpu, 1)  # or one process would copy the model to every GPU, and tear packs apart
    return made


def _num_workers(device: str) -> int:
    """Return how many processes render prompts beside the training.

    One does so while a GPU computes; on a CPU it would take the computation's core. It is forked: a copy of a model on
    a GPU cannot be sent to it.
    """
    return int(device != "cpu" and multiprocessing.get_context().get_start_method() == "fork")


def _fillers(num_rows: int, recipe: Recipe) -> list[tuple[int, int]]:
    """Return rows without labels that fill the last step up.

    accelerate would fill it with rows from the beginning, labels and all.
    """
    missing = -num_rows % recipe.train.groups_per_step if processes.process_count() > 1 else 0
    return [(0, FILLER)] * missing


def build_trainer(llm: LoadedLLM, groups: Sequence[Group], recipe: Recipe, folder: Path) -> PackedTrainer:
    """Build the trainer of a run; it logs and saves in `folder`."""
    rows = schedule_groups(groups, recipe.train)
    filled = [*rows, *_fillers(len(rows), recipe)]
    return PackedTrainer(
        model=create_adapter(llm, recipe),
        args=training_arguments(llm, recipe, folder),
        train_dataset=datasets.Dataset.from_dict({"epoch": [e for e, _ in filled], "group": [g for _, g in filled]}),
        data_collator=Collator(llm, groups, recipe),
        processing_class=llm.tokenizer,
        callbacks=[StepLog(folder / LOG_NAME), IntermediateAdapters(count_samples_seen(groups, rows), recipe.train)],
    )


def train_adapter(llm: LoadedLLM, groups: Sequence[Group], recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Fine-tune an adapter and leave it in `folder/adapter`; resume where checkpoints are found.

    Returns:
        Steps, annotated samples seen, mean loss of the last ten steps, trainable and all parameters, seconds.

    Raises:
        DataError: If there is nothing to train on.
    """
    if not groups:
        raise DataError(
            "no training sample is left; see the counts above for the reasons. Without annotations train on generated "
            "expressions: train.generated_steps=200"
        )
    with checkpoints.explain_disk_full(folder), report_to_trackers(recipe.train.report_to, folder):
        training = build_trainer(llm, groups, recipe, folder)
        trainable, everything = training.model.get_nb_trainable_parameters()
        outcome = training.train(resume_from_checkpoint=training.last_checkpoint())
    training.save_adapter(folder / "adapter", base_model=recipe.llm.model)
    return {
        "steps": outcome.global_step,
        "samples_seen": count_samples_seen(groups, schedule_groups(groups, recipe.train))[-1],
        "loss": training.recent_loss(),
        "trainable_parameters": trainable,
        "parameters": everything,
        "seconds": round(outcome.metrics["train_runtime"], 1),
    }
