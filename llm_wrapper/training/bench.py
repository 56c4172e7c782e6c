"""Speed of packed training against TRL's SFTTrainer as it comes: the same rows, steps and adapter, and equal losses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import transformers
import trl

from llm_wrapper.errors import DataError
from llm_wrapper.llms.load import LoadedLLM, load_model
from llm_wrapper.recipe import Recipe
from llm_wrapper.training import trainer
from llm_wrapper.training.adapters import lora_config
from llm_wrapper.training.collator import IGNORED, encode_example
from llm_wrapper.training.examples import Group, make_examples, schedule_groups

__all__ = ["Comparison", "compare"]

_RIVAL_BATCH = 4
_WARMUP_STEPS = 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds of both ways for the same optimizer steps, and the largest difference of a step's loss."""

    seconds: float
    rival_seconds: float
    num_expressions: int
    max_loss_difference: float
    losses: list[float]

    @property
    def ratio(self) -> float:
        """How many times faster packed training is."""
        return self.rival_seconds / self.seconds


@dataclass
class _Watch(transformers.TrainerCallback):  # type: ignore[misc]
    """Notes when each step ends and its loss."""

    ends: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))

    @property
    def seconds(self) -> float:
        """Seconds of all steps but those that warm up."""
        return self.ends[-1] - self.ends[_WARMUP_STEPS - 1]


def compare(groups: Sequence[Group], recipe: Recipe, folder: Path, *, num_steps: int) -> Comparison:
    """Train twice from the same start, `num_steps` steps and one that warms up; keep nothing.

    A step of both sides has the same expressions: the groups of a step here, as many separate rows there, which pass
    in batches of four. The rival's rows are tokenized beforehand, ours while they are trained on.

    Args:
        groups: All with `train.expressions_per_group` expressions.
        recipe: Gives the LLM, the adapter, and how many groups a step has.
        folder: Both write their logs here.
        num_steps: Steps that are timed.

    Raises:
        DataError: If there are too few groups, or a step's expressions do not fill batches of four.
    """
    section = recipe.train
    per_step = section.groups_per_step * section.expressions_per_group
    needed = (num_steps + _WARMUP_STEPS) * section.groups_per_step
    llm = load_model(recipe.llm)
    full = [group for group in groups if len(group.samples) == section.expressions_per_group][:needed]
    full, _ = trainer.fit_to_length(llm, full, recipe)
    if len(full) < needed or per_step % _RIVAL_BATCH:
        raise DataError(
            f"{len(full)} usable groups of {section.expressions_per_group} expressions, {needed} are needed; a step of "
            f"{per_step} expressions must be a multiple of {_RIVAL_BATCH}. Take fewer steps or more data."
        )
    ours, rival = _ours(llm, full, recipe, folder), _rival(full, recipe, folder)
    return Comparison(
        seconds=ours.seconds,
        rival_seconds=rival.seconds,
        num_expressions=num_steps * per_step,
        max_loss_difference=max(abs(a - b) for a, b in zip(ours.losses, rival.losses, strict=True)),
        losses=ours.losses,
    )


def _ours(llm: LoadedLLM, groups: Sequence[Group], recipe: Recipe, folder: Path) -> _Watch:
    watch = _Watch()
    packed = trainer.build_trainer(llm, groups, recipe, folder / "packed")
    packed.args.logging_steps, packed.args.save_strategy = 1, "no"
    packed.add_callback(watch)
    packed.train()
    return watch


def _rival(groups: Sequence[Group], recipe: Recipe, folder: Path) -> _Watch:
    llm, watch, section = load_model(recipe.llm.model_copy(update={"attention": "sdpa"})), _Watch(), recipe.train
    per_step = section.groups_per_step * section.expressions_per_group
    arguments = trainer.training_arguments(llm, recipe, folder / "rival", kind=trl.SFTConfig, max_length=None)
    arguments.per_device_train_batch_size = _RIVAL_BATCH
    arguments.gradient_accumulation_steps = per_step // _RIVAL_BATCH
    arguments.logging_steps, arguments.save_strategy = 1, "no"
    rival = trl.SFTTrainer(
        model=llm.model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(_rows(llm, groups, recipe)),
        processing_class=llm.tokenizer,
        peft_config=lora_config(section.lora, llm.model),
        callbacks=[watch],
    )
    rival.train()
    return watch


def _rows(llm: LoadedLLM, groups: Sequence[Group], recipe: Recipe) -> list[dict[str, list[int]]]:
    """Return what packed training sees, in the same order, each expression with a prompt of its own."""
    rows = []
    for epoch, place in schedule_groups(groups, recipe.train):
        words, section = recipe.prompt, recipe.train
        for example in make_examples(groups[place], words.format, section, epoch=epoch, instruction=words.instruction):
            ids, span = encode_example(llm, example)
            rows.append({"input_ids": ids, "labels": [IGNORED] * (len(ids) - span) + ids[-span:]})
    return rows
