"""LoRA fine-tuning by transformers' Trainer, with the expressions of an image packed behind one shared prefix."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers
from rich.console import Console
from rich.progress import track

from llm_wrapper.errors import DataError, ModelError
from llm_wrapper.llms.load import LoadedLLM, can_share_prefixes
from llm_wrapper.llms.packing import Pack, collate, pack_tree
from llm_wrapper.llms.score import attention_mask
from llm_wrapper.recipe import LoraSection, Recipe
from llm_wrapper.training.examples import Example, Group, examples_of, schedule

__all__ = [
    "IGNORED",
    "Collator",
    "PackedTrainer",
    "arguments",
    "fit_to_length",
    "lora",
    "sequence",
    "train",
    "trainer",
]

IGNORED = -100
"""The label of a token that is not trained on."""
_MULTIPLE = 16


def sequence(llm: LoadedLLM, example: Example) -> tuple[list[int], int]:
    """Return the token ids of a prompt and its completion, and how many of them are the completion's."""
    completion = llm.encoder.completion(example.index)
    return [*llm.encoder.encode(example.prompt), *completion], len(completion)


def fit_to_length(llm: LoadedLLM, groups: Sequence[Group], recipe: Recipe) -> tuple[list[Group], int]:
    """Leave out samples whose prompt and answer exceed `train.max_tokens`; return the rest, measured, and how many."""
    kept, num_too_long = [], 0
    for group in track(groups, "measuring prompts", console=Console(stderr=True), transient=True):
        section = recipe.train.model_copy(update={"generated_per_group": 0, "shuffle_candidates": False})
        examples = examples_of(group, recipe.prompt.format, section, epoch=0)
        lengths = [len(sequence(llm, example)[0]) for example in examples]
        fits = [length <= recipe.train.max_tokens for length in lengths]
        num_too_long += fits.count(False)
        rows = [row for row, fit in zip(zip(group.samples, group.targets, strict=True), fits, strict=True) if fit]
        if rows:
            samples, targets = zip(*rows, strict=True)
            size = max(length for length, fit in zip(lengths, fits, strict=True) if fit)
            kept.append(Group(samples, targets, group.candidates, size))
    return kept, num_too_long


@dataclass
class Collator:
    """Turns rows {"epoch", "group"} into a batch: packs, positions that restart, an ancestor mask, labels."""

    llm: LoadedLLM
    groups: Sequence[Group]
    recipe: Recipe

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `position_ids`, `labels` (b, t) and the `attention_mask` that the model takes."""
        packs: list[Pack] = []
        lengths: list[Sequence[int]] = []
        for row in rows:
            examples = examples_of(
                self.groups[row["group"]], self.recipe.prompt.format, self.recipe.train, epoch=row["epoch"]
            )
            sequences, spans = zip(*(sequence(self.llm, example) for example in examples), strict=True)
            if can_share_prefixes(self.llm.model):
                # Equal prompts would share all: each completion needs a token of its own branch to stand behind.
                shortest = min(len(one) - span for one, span in zip(sequences, spans, strict=True))
                packs.append(pack_tree(sequences, merge=False, most_shared=shortest - 1))
                lengths.append(spans)
            else:
                packs += [pack_tree([one], merge=False) for one in sequences]
                lengths += [[span] for span in spans]
        batch = collate(packs, self.llm.tokenizer.pad_token_id, multiple=_MULTIPLE)
        batch["labels"] = _labels(packs, lengths, batch["input_ids"])
        batch["attention_mask"] = attention_mask(self.llm.model, packs, batch["attention_mask"])
        return batch


def _labels(packs: Sequence[Pack], lengths: Sequence[Sequence[int]], input_ids: torch.Tensor) -> torch.Tensor:
    """Label the completions' tokens; each stands right behind its parent, so the usual shift by one is right."""
    labels = torch.full_like(input_ids, IGNORED)
    for row, (pack, spans) in enumerate(zip(packs, lengths, strict=True)):
        for path, span in zip(pack.paths, spans, strict=True):
            for place in path[len(path) - span :]:
                labels[row, place] = pack.input_ids[place]
    return labels


class PackedTrainer(transformers.Trainer):  # type: ignore[misc]
    """Trainer whose loss is computed at the labelled positions alone, on every device.

    Not TRL's SFTTrainer (1.16): it projects every position to the vocabulary off CUDA, which more than doubles a step
    here, where one or two of about fifty positions carry a label; it refuses adapters on the output layer, turns those
    of 4-bit models to bfloat16, in which small updates are lost, and asks Mixtral for a router loss that cannot be
    computed with a mask of four dimensions. What it does for us otherwise is get_peft_model.
    """

    def __init__(self, **options: Any) -> None:
        """Take the options of `transformers.Trainer`."""
        super().__init__(**options)
        self.model_accepts_loss_kwargs = True  # `compute_loss` divides by the labels of the whole step itself
        self._accuracies: list[float] = []

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the share of labelled tokens that were the likeliest since the last time."""
        if "loss" in logs and self._accuracies:
            logs = {**logs, "token_accuracy": sum(self._accuracies) / len(self._accuracies)}
            self._accuracies = []
        super().log(logs, start_time)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean negative log-likelihood per labelled token of the whole step."""
        labels = inputs.pop("labels")
        rows, places = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        columns, column_of = places.unique(return_inverse=True)
        outputs = model(**inputs, logits_to_keep=columns, use_cache=False)
        logits, targets = outputs.logits[rows, column_of].float(), labels[rows, places + 1]
        total = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        loss = total / (len(targets) if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes
        right = (logits.argmax(dim=-1) == targets).float().mean()
        self._accuracies.append(self.accelerator.gather_for_metrics(right).mean().item())
        return (loss, outputs) if return_outputs else loss


class _Log(transformers.TrainerCallback):  # type: ignore[misc]
    """Appends each logged row to `train_log.jsonl`, and stops a run whose loss is no number."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Write one line; raise ModelError on a loss that is NaN or infinite."""
        row = {"step": state.global_step, **(logs or {})}
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        loss = row.get("loss")
        if loss is not None and not torch.isfinite(torch.tensor(float(loss))):
            raise ModelError(
                f"the loss is {loss} at step {state.global_step}; lower train.learning_rate or set llm.dtype=float32"
            )


def lora(section: LoraSection, model: Any) -> peft.LoraConfig:
    """Return what a recipe means to PEFT.

    Raises:
        ModelError: If the output layer is to be adapted, and it is the embeddings too.
    """
    modules = section.target_modules
    if not isinstance(modules, str) and "lm_head" in modules and model.config.get_text_config().tie_word_embeddings:
        raise ModelError(
            "train.lora.target_modules names lm_head, but in this model it is the same weight as the embeddings: a "
            "merged adapter would change what the model reads; leave it out"
        )
    return peft.LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=modules,
        task_type="CAUSAL_LM",
    )


def arguments(
    llm: LoadedLLM, recipe: Recipe, folder: Path, *, kind: type[Any] = transformers.TrainingArguments, **more: Any
) -> Any:
    """Return what a recipe means to a trainer whose arguments are of a kind that may take some more."""
    section = recipe.train
    return kind(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=section.groups_per_step,
        gradient_accumulation_steps=section.accumulation,
        num_train_epochs=1,
        learning_rate=section.learning_rate,
        lr_scheduler_type=section.scheduler,
        warmup_steps=section.warmup_steps,
        weight_decay=section.weight_decay,
        # Adapters stay in float32; autocast computes their products in the model's own type.
        bf16=llm.model.dtype == torch.bfloat16,
        fp16=llm.model.dtype == torch.float16,
        gradient_checkpointing=section.gradient_checkpointing,
        logging_steps=10,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_steps=section.save_steps,
        save_total_limit=2,
        seed=section.seed,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        report_to="none",
        use_cpu=llm.model.device.type == "cpu",
        dataloader_pin_memory=llm.model.device.type != "cpu",
        **more,
    )


def _adapted(llm: LoadedLLM, recipe: Recipe) -> Any:
    """Put a fresh adapter on the model, drawn by the seed."""
    transformers.set_seed(recipe.train.seed)
    model = peft.get_peft_model(llm.model, lora(recipe.train.lora, llm.model))
    if recipe.train.gradient_checkpointing:
        model.enable_input_require_grads()
    # Or the whole output layer would be stored with every checkpoint where it is adapted.
    model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
    return model


def trainer(llm: LoadedLLM, groups: Sequence[Group], recipe: Recipe, folder: Path) -> PackedTrainer:
    """Build the trainer of a run; it logs and saves in `folder`."""
    rows = schedule(groups, recipe.train)
    return PackedTrainer(
        model=_adapted(llm, recipe),
        args=arguments(llm, recipe, folder),
        train_dataset=datasets.Dataset.from_dict({"epoch": [e for e, _ in rows], "group": [g for _, g in rows]}),
        data_collator=Collator(llm, groups, recipe),
        processing_class=llm.tokenizer,
        callbacks=[_Log(folder / "train_log.jsonl")],
    )


def train(llm: LoadedLLM, groups: Sequence[Group], recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Fine-tune a LoRA adapter and leave it in `folder/adapter`; resume where checkpoints are found.

    Returns:
        Steps, loss of the last logged step, trainable and all parameters, seconds.

    Raises:
        DataError: If there is nothing to train on.
    """
    if not groups:
        raise DataError("no training sample is left; see the counts above for the reasons")
    training = trainer(llm, groups, recipe, folder)
    outcome = training.train(resume_from_checkpoint=_last_checkpoint(folder / "checkpoints"))
    # As the recipe names it: where a copy of it lies on this machine helps nobody else.
    training.model.peft_config["default"].base_model_name_or_path = recipe.llm.model
    training.model.save_pretrained(str(folder / "adapter"))
    trainable, everything = training.model.get_nb_trainable_parameters()
    return {
        "steps": outcome.global_step,
        "loss": [row["loss"] for row in training.state.log_history if "loss" in row][-1],
        "trainable_parameters": trainable,
        "parameters": everything,
        "seconds": round(outcome.metrics["train_runtime"], 1),
    }


def _last_checkpoint(folder: Path) -> str | None:
    """Return the last complete checkpoint: its state is written last, so one that was cut off has none."""
    complete = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2]))) if complete else None
