"""Time packed training against TRL's SFTTrainer: same rows, steps, adapter, equal losses (make bench-train)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import datasets
import transformers
import trl
import typer
from measurements import DataRoot, compose_recipe, run_script, save_measurement
from rich.console import Console
from rich.table import Table

from llm_wrapper.cli.detections import cache
from llm_wrapper.detections.samples import load_prepared_split
from llm_wrapper.errors import DataError
from llm_wrapper.llms.load import LoadedLLM, load_model
from llm_wrapper.recipe import Recipe
from llm_wrapper.terminal import open_console
from llm_wrapper.training import trainer
from llm_wrapper.training.adapters import lora_config
from llm_wrapper.training.collator import IGNORED, encode_example
from llm_wrapper.training.examples import Group, make_examples, make_groups, schedule_groups

BASELINE_BATCH = 4
WARMUP_STEPS = 1
EXACT_STEPS = 2
EIGHT = ["train.groups_per_step=1", "train.expressions_per_group=8", "train.generated_per_group=0"]
COLUMNS = ("rows", "expressions/s", "baseline's", "ratio", "loss differs by", "in float32 by")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds of both ways for the same optimizer steps, and the largest difference of a step's loss."""

    seconds: float
    baseline_seconds: float
    num_expressions: int
    max_loss_difference: float
    losses: list[float]

    @property
    def ratio(self) -> float:
        """How many times faster packed training is."""
        return self.baseline_seconds / self.seconds


@dataclass
class StepTimer(transformers.TrainerCallback):  # type: ignore[misc]
    """Notes when each step ends and its loss."""

    ends: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record the time."""
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Record the loss."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))

    @property
    def seconds(self) -> float:
        """Seconds of all steps but those that warm up."""
        return self.ends[-1] - self.ends[WARMUP_STEPS - 1]


def compare(groups: Sequence[Group], recipe: Recipe, folder: Path, *, num_steps: int) -> Comparison:
    """Train twice from the same start, `num_steps` steps and one that warms up; keep nothing.

    A step of both sides has the same expressions: the groups of a step here, as many separate rows there, which pass
    in batches of four. The baseline's rows are tokenized beforehand, ours while they are trained on.

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
    needed = (num_steps + WARMUP_STEPS) * section.groups_per_step
    llm = load_model(recipe.llm)
    full = [group for group in groups if len(group.samples) == section.expressions_per_group][:needed]
    full, _ = trainer.fit_to_length(llm, full, recipe)
    if len(full) < needed or per_step % BASELINE_BATCH:
        raise DataError(
            f"{len(full)} usable groups of {section.expressions_per_group} expressions, {needed} are needed; a step of "
            f"{per_step} expressions must be a multiple of {BASELINE_BATCH}. Take fewer steps or more data."
        )
    ours, baseline = train_packed(llm, full, recipe, folder), _train_baseline(full, recipe, folder)
    return Comparison(
        seconds=ours.seconds,
        baseline_seconds=baseline.seconds,
        num_expressions=num_steps * per_step,
        max_loss_difference=max(abs(a - b) for a, b in zip(ours.losses, baseline.losses, strict=True)),
        losses=ours.losses,
    )


def train_packed(llm: LoadedLLM, groups: Sequence[Group], recipe: Recipe, folder: Path) -> StepTimer:
    """Train on packed rows, and return the times and losses of the steps."""
    watch = StepTimer()
    own = trainer.build_trainer(llm, groups, recipe, folder / "packed")
    own.args.logging_steps, own.args.save_strategy = 1, "no"
    own.add_callback(watch)
    own.train()
    return watch


def _train_baseline(groups: Sequence[Group], recipe: Recipe, folder: Path) -> StepTimer:
    llm, watch, section = load_model(recipe.llm.model_copy(update={"attention": "sdpa"})), StepTimer(), recipe.train
    per_step = section.groups_per_step * section.expressions_per_group
    arguments = trainer.training_arguments(llm, recipe, folder / "baseline", kind=trl.SFTConfig, max_length=None)
    arguments.per_device_train_batch_size = BASELINE_BATCH
    arguments.gradient_accumulation_steps = per_step // BASELINE_BATCH
    arguments.logging_steps, arguments.save_strategy = 1, "no"
    own = trl.SFTTrainer(
        model=llm.model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(_rows(llm, groups, recipe)),
        processing_class=llm.tokenizer,
        peft_config=lora_config(section.lora, llm.model),
        callbacks=[watch],
    )
    own.train()
    return watch


def _rows(llm: LoadedLLM, groups: Sequence[Group], recipe: Recipe) -> list[dict[str, list[int]]]:
    """Return the rows of packed training in the same order, each expression with a whole prompt."""
    rows = []
    for epoch, place in schedule_groups(groups, recipe.train):
        words, section = recipe.prompt, recipe.train
        for example in make_examples(groups[place], words.format, section, epoch=epoch, instruction=words.instruction):
            ids, span = encode_example(llm, example)
            rows.append({"input_ids": ids, "labels": [IGNORED] * (len(ids) - span) + ids[-span:]})
    return rows


def compare_twice(recipe: Recipe, split: str, num_steps: int) -> tuple[Comparison, Comparison]:
    """Compare in the LLM's dtype for the time, and a few steps in float32 for the losses."""
    groups, _ = make_groups(load_prepared_split(recipe, recipe.data, split).samples, recipe.train)
    exact = recipe.model_copy(update={"llm": recipe.llm.model_copy(update={"dtype": "float32"})})
    with tempfile.TemporaryDirectory() as folder:
        return (
            compare(groups, recipe, Path(folder, "timed"), num_steps=num_steps),
            compare(groups, exact, Path(folder, "exact"), num_steps=EXACT_STEPS),
        )


def bench_train(grouped: Recipe, single: Recipe, console: Console, *, num_steps: int) -> None:
    """Measure both recipes, print ratios, write runs/bench/train.json, and keep no adapter.

    Losses are compared in float32 too: in 16 bit the two ways of attention round differently.

    Args:
        grouped: Its evaluation split gives images with many expressions.
        single: Its train split gives one expression an image.
        console: Where the table is printed.
        num_steps: Optimizer steps that are timed, of each.
    """
    jobs = {"grouped": (grouped, grouped.data.eval_split), "single": (single, single.data.train_split)}
    for recipe, split in jobs.values():
        cache(recipe, [split], console)
    table = Table(*COLUMNS, title=f"training, against TRL's SFTTrainer with batches of {BASELINE_BATCH}")
    facts: dict[str, Any] = {}
    for name, (recipe, split) in jobs.items():
        timed, exact = compare_twice(recipe, split, num_steps)
        rates = (f"{timed.num_expressions / seconds:.2f}" for seconds in (timed.seconds, timed.baseline_seconds))
        differences = (f"{each.max_loss_difference:.1e}" for each in (timed, exact))
        table.add_row(name, *rates, f"{timed.ratio:.2f}", *differences)
        facts[name] = {"ratio": timed.ratio, "max_loss_difference": exact.max_loss_difference}
        facts[name] |= {"timed": asdict(timed), "float32": asdict(exact)}
    console.print(table)
    recipes = {name: recipe.model_dump(mode="json") for name, (recipe, _) in jobs.items()}
    save_measurement("train", {"recipes": recipes, "steps": num_steps}, facts, console)


def main(
    data_root: DataRoot = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps that are timed.")] = 8,
) -> None:
    """Time packed training of SmolLM2 on RefCOCO and RefCOCOg rows against TRL's SFTTrainer; losses must agree."""
    names = {"vlm": "coco", "llm": "smollm2"}
    grouped = compose_recipe({**names, "data": "refcoco", "train": "generated"}, EIGHT, data_root)
    single = compose_recipe({**names, "data": "refcocog", "train": "default"}, ["train.groups_per_step=8"], data_root)
    bench_train(grouped, single, open_console(), num_steps=steps)


if __name__ == "__main__":
    run_script(main)
