"""Training of adapters by transformers' Trainer, with the expressions of an image packed behind one shared prefix."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from rich.progress import track

from llm_wrapper.errors import DataError
from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.packing import block_mask
from llm_wrapper.llms.soft_prompts import num_columns
from llm_wrapper.recipe import Recipe
from llm_wrapper.terminal import open_console
from llm_wrapper.training import checkpoints, log, processes, trackers
from llm_wrapper.training.adapted import adapted
from llm_wrapper.training.architecture import num_experts
from llm_wrapper.training.collator import FILLER, IGNORED, Collator, sequence
from llm_wrapper.training.examples import Group, examples_of, schedule
from llm_wrapper.training.kept_adapters import KeptAdapters, seen
from llm_wrapper.training.watched import Batch, WatchedTrainer

__all__ = [
    "PackedTrainer",
    "arguments",
    "fit_to_length",
    "train",
    "trainer",
]


def fit_to_length(llm: LoadedLLM, groups: Sequence[Group], recipe: Recipe) -> tuple[list[Group], int]:
    """Leave out samples whose prompt and answer exceed `train.max_tokens`; return the rest, measured, and how many."""
    kept, num_too_long = [], 0
    section = recipe.train.model_copy(update={"generated_per_group": 0, "shuffle_candidates": False})
    console = open_console(stderr=True, quiet=not processes.is_main())
    for group in track(groups, "measuring prompts", console=console, transient=True):
        examples = examples_of(group, recipe.prompt.format, section, epoch=0, instruction=recipe.prompt.instruction)
        lengths = [len(sequence(llm, example)[0]) for example in examples]
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
        self.note(Batch(given, inputs["input_ids"], labels, loss.detach(), num_right, len(targets)))
        return (loss, outputs) if return_outputs else loss


def arguments(
    llm: LoadedLLM, recipe: Recipe, folder: Path, *, kind: type[Any] = transformers.TrainingArguments, **more: Any
) -> Any:
    """Return what a recipe means to a trainer whose arguments are of a kind that may take some more."""
    section = recipe.train
    made = kind(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=processes.share(section.groups_per_step),
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
        project=trackers.PROJECT,
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
    missing = -num_rows % recipe.train.groups_per_step if processes.count() > 1 else 0
    return [(0, FILLER)] * missing


def trainer(llm: LoadedLLM, groups: Sequence[Group], recipe: Recipe, folder: Path) -> PackedTrainer:
    """Build the trainer of a run; it logs and saves in `folder`."""
    rows = schedule(groups, recipe.train)
    filled = [*rows, *_fillers(len(rows), recipe)]
    return PackedTrainer(
        model=adapted(llm, recipe),
        args=arguments(llm, recipe, folder),
        train_dataset=datasets.Dataset.from_dict({"epoch": [e for e, _ in filled], "group": [g for _, g in filled]}),
        data_collator=Collator(llm, groups, recipe),
        processing_class=llm.tokenizer,
        callbacks=[log.StepLog(folder / log.NAME), KeptAdapters(seen(groups, rows), recipe.train)],
    )


def train(llm: LoadedLLM, groups: Sequence[Group], recipe: Recipe, folder: Path) -> dict[str, Any]:
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
    with checkpoints.explaining_full_disk(folder), trackers.reporting(recipe.train.report_to, folder):
        training = trainer(llm, groups, recipe, folder)
        trainable, everything = training.model.get_nb_trainable_parameters()
        outcome = training.train(resume_from_checkpoint=training.last_checkpoint())
    training.save_adapter(folder / "adapter", base_model=recipe.llm.model)
    return {
        "steps": outcome.global_step,
        "samples_seen": seen(groups, schedule(groups, recipe.train))[-1],
        "loss": training.recent_loss(),
        "trainable_parameters": trainable,
        "parameters": everything,
        "seconds": round(outcome.metrics["train_runtime"], 1),
    }
