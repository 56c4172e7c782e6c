"""Train adapters with transformers' Trainer: packed prompts, checked steps, resumable.

groups --schedule_groups--> (epoch, group) --Collator--> parts of a step --PackedTrainer--> adapter, train_log.jsonl
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

from llm_wrapper import runs, storage
from llm_wrapper.errors import DataError, ModelError
from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.packing import block_mask
from llm_wrapper.llms.soft_prompts import num_columns
from llm_wrapper.recipe import Recipe
from llm_wrapper.terminal import open_console
from llm_wrapper.training import callbacks, checkpoints, processes
from llm_wrapper.training.adapters import create_adapter, num_experts
from llm_wrapper.training.collator import FILLER, IGNORED, Collator, encode_example
from llm_wrapper.training.examples import Group, make_examples, schedule_groups

_NUM_RECENT = 10


def fit_to_length(llm: LoadedLLM, groups: Sequence[Group], recipe: Recipe) -> tuple[list[Group], int]:
    """Drop samples whose prompt and answer exceed `train.max_tokens`; return the rest, measured, and their number."""
    fitting, num_too_long = [], 0
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
        if group.num_labelled:
            rows = [row for row, fit in zip(zip(group.samples, group.targets, strict=True), fits, strict=True) if fit]
            samples, targets = zip(*rows, strict=True)
            fitting.append(replace(group, samples=samples, targets=targets, size=size))
        else:
            fitting.append(replace(group, size=size))
    return fitting, num_too_long


@dataclass(frozen=True, slots=True)
class _Batch:
    """One part of a step: `rows` (n, 2) of (epoch, group), `input_ids` and `labels` (b, t), numbers on the device."""

    rows: torch.Tensor
    input_ids: torch.Tensor
    labels: torch.Tensor
    loss: torch.Tensor
    num_right: torch.Tensor
    num_labelled: int


class PackedTrainer(transformers.Trainer):  # type: ignore[misc]
    """Trainer of packed prompts that stops at a non-finite step and resumes after a kill.

    The loss is computed at the labelled positions alone. Not TRL's SFTTrainer (1.16): it projects every position to the
    vocabulary off CUDA, which more than doubles a step where one or two of fifty positions carry a label; it refuses
    adapters on the output layer, turns those of 4-bit models to bfloat16, in which small updates are lost, and asks
    Mixtral for a router loss that cannot be computed with a mask of four dimensions.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.model_accepts_loss_kwargs = True  # `compute_loss` divides by the labels of the whole step
        if self.pop_callback(transformers.ProgressCallback) is not None:
            self.add_callback(callbacks.LossProgress)
        self._run = Path(self.args.output_dir).parent
        self._batches: list[_Batch] = []

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Run the parts of a step one after the other, for its loss and its gradients."""
        *first, last = inputs["parts"]
        with self.accelerator.no_sync(model):  # other processes may have another number of parts
            losses = [super(PackedTrainer, self).training_step(model, part, num_items_in_batch) for part in first]
        losses.append(super().training_step(model, last, num_items_in_batch))
        return torch.stack(losses).sum()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: Trainer's own count knows nothing of shared prefixes."""
        return 0

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean negative log-likelihood per labelled token of the whole step, of all processes.

        labels (b, t)            .  .  .  7  .  9      logits are kept for the columns 2 and 4 alone, one to the left
                                 .  .  .  .  .  3      of a label: (row 0, col 2), (row 0, col 4), (row 1, col 4)
        """
        labels, rows_of_batch = inputs.pop("labels"), inputs.pop("rows", torch.empty(0, 2))
        if "ends" in inputs:
            inputs["attention_mask"] = block_mask(inputs.pop("ends"))
        rows, positions = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        columns, column_of = positions.unique(return_inverse=True)
        if getattr(self.model.config.get_text_config(), "output_router_logits", False):
            inputs["output_router_logits"] = False
        outputs = model(**inputs, logits_to_keep=columns, use_cache=False)
        if outputs.logits.shape[1] != len(columns):  # xLSTM keeps them all
            column_of = positions + num_columns(self.model)
        logits, targets = outputs.logits[rows, column_of].float(), labels[rows, positions + 1]
        total = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        loss = total / (len(targets) if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        num_right = (logits.argmax(dim=-1) == targets).sum()
        self._batches.append(_Batch(rows_of_batch, inputs["input_ids"], labels, loss.detach(), num_right, len(targets)))
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a step with its token accuracy; stop if it is non-finite, where each process first writes its part."""
        if "loss" in logs and self._batches:
            counts = [(batch.num_right, batch.num_labelled) for batch in self._batches]
            sums = torch.tensor([float(sum(column)) for column in zip(*counts, strict=True)], device=self.args.device)
            right, labelled = self.accelerator.reduce(sums, reduction="sum").tolist()
            logs = {**logs, "token_accuracy": right / labelled}
            if problem := callbacks.find_nonfinite(logs, skips_overflow=self.args.fp16):
                self._stop(problem, logs)
            self._batches = []
        del self.state.log_history[:-_NUM_RECENT]  # all rows are in the file; here they would grow each checkpoint
        super().log(logs, start_time)

    def _stop(self, problem: str, logs: dict[str, float]) -> None:
        step = self.state.global_step
        path = self._run / f"broken-step-{step}-process-{self.args.process_index}.json"
        batches = [
            {
                "loss": str(batch.loss.item()),
                "groups": [self.data_collator.describe_row(*row) for row in batch.rows.tolist()],
                "input_ids": batch.input_ids.tolist(),
                "labels": batch.labels.tolist(),
            }
            for batch in self._batches
        ]
        row = {name: str(value) for name, value in logs.items()}
        storage.write_json(path, {"step": step, "problem": problem, "row": row, "batches": batches})
        self.accelerator.wait_for_everyone()
        raise ModelError(
            f"{problem} at step {step}; lower train.learning_rate or set llm.dtype=float32. The step's samples, "
            f"prompts and tokens are kept in {path}"
        )

    def recent_loss(self) -> float:
        """Return the mean loss of the last ten steps."""
        losses = [row["loss"] for row in self.state.log_history if "loss" in row][-_NUM_RECENT:]
        return float(sum(losses) / len(losses))

    def last_checkpoint(self) -> str | None:
        """Return the checkpoint to resume from, verified, and remove all that was written after it."""
        folder = Path(self.args.output_dir)
        checkpoint = checkpoints.find_last_complete(folder)
        if checkpoint is not None:
            checkpoints.verify_checkpoint(checkpoint)
        step = runs.step_of(checkpoint) if checkpoint else 0
        if self.is_world_process_zero():
            checkpoints.remove_after(folder, step)
            callbacks.truncate_log(self._run / callbacks.LOG_NAME, step)
        elif checkpoint is None:  # each process draws its own dropout
            torch.manual_seed(self.args.seed + self.args.process_index)
        self.accelerator.wait_for_everyone()
        return str(checkpoint) if checkpoint else None

    def save_adapter(self, folder: Path, *, base_model: str | None) -> None:
        """Write the adapter, gathered from all processes; it names its base model as the recipe does, not by a path."""
        weights = None
        if self.is_fsdp_enabled:
            trained = [(name, each) for name, each in self.model.named_parameters() if each.requires_grad]
            weights = {name: getattr(each, "full_tensor", each.detach)().cpu() for name, each in trained}
        if self.is_world_process_zero():
            self.model.peft_config["default"].base_model_name_or_path = base_model
            with checkpoints.explain_save_errors(folder):
                self.model.save_pretrained(str(folder), state_dict=weights)
        self.accelerator.wait_for_everyone()

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # the state is written next, and makes a checkpoint complete

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
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


def training_arguments(
    llm: LoadedLLM, recipe: Recipe, folder: Path, *, kind: type[Any] = transformers.TrainingArguments, **more: Any
) -> Any:
    """Convert a recipe to training arguments of a class, which may take some more."""
    section = recipe.train
    arguments = kind(
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
        project=callbacks.PROJECT,
        use_cpu=llm.model.device.type == "cpu",
        dataloader_pin_memory=llm.model.device.type != "cpu",
        # A step may skip experts, and nothing else.
        ddp_find_unused_parameters=num_experts(llm.model.config) > 0,
        dataloader_num_workers=_num_workers(llm.model.device.type),
        **more,
    )
    # Or one process would copy the model to all GPUs and tear packs apart.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _num_workers(device: str) -> int:
    """Return 1 where a forked worker can render prompts while a GPU computes; on a CPU it would slow the training."""
    return int(device != "cpu" and multiprocessing.get_context().get_start_method() == "fork")


def _fillers(num_rows: int, recipe: Recipe) -> list[tuple[int, int]]:
    """Return rows without labels that complete the last step; accelerate would repeat labelled rows."""
    missing = -num_rows % recipe.train.groups_per_step if processes.process_count() > 1 else 0
    return [(0, FILLER)] * missing


def build_trainer(llm: LoadedLLM, groups: Sequence[Group], recipe: Recipe, folder: Path) -> PackedTrainer:
    """Build the trainer of a run; it logs and saves in `folder`."""
    rows = schedule_groups(groups, recipe.train)
    filled = [*rows, *_fillers(len(rows), recipe)]
    samples_seen = callbacks.count_samples_seen(groups, rows)
    return PackedTrainer(
        model=create_adapter(llm, recipe),
        args=training_arguments(llm, recipe, folder),
        train_dataset=datasets.Dataset.from_dict({"epoch": [e for e, _ in filled], "group": [g for _, g in filled]}),
        data_collator=Collator(llm, groups, recipe),
        processing_class=llm.tokenizer,
        callbacks=[
            callbacks.StepLog(folder / callbacks.LOG_NAME),
            callbacks.IntermediateAdapters(samples_seen, recipe.train),
        ],
    )


def train_adapter(llm: LoadedLLM, groups: Sequence[Group], recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Fine-tune an adapter and write it to `folder/adapter`; resume from the last checkpoint.

    Returns:
        Steps, annotated samples seen, mean loss of the last ten steps, trainable and all parameters, seconds.
    """
    if not groups:
        raise DataError(
            "no training sample is left; see the counts above for the reasons. Without annotations train on generated "
            "expressions: train.generated_steps=200"
        )
    with checkpoints.explain_disk_full(folder), callbacks.report_to_trackers(recipe.train.report_to, folder):
        trainer = build_trainer(llm, groups, recipe, folder)
        trainable, everything = trainer.model.get_nb_trainable_parameters()
        outcome = trainer.train(resume_from_checkpoint=trainer.last_checkpoint())
    trainer.save_adapter(folder / "adapter", base_model=recipe.llm.model)
    return {
        "steps": outcome.global_step,
        "samples_seen": callbacks.count_samples_seen(groups, schedule_groups(groups, recipe.train))[-1],
        "loss": trainer.recent_loss(),
        "trainable_parameters": trainable,
        "parameters": everything,
        "seconds": round(outcome.metrics["train_runtime"], 1),
    }
