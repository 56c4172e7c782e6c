"""`train`: fine-tune the LLM, or print what that takes.

runs/<vlm>-<llm>-<data>-<utc>-<git>/  recipe.yaml  train_log.jsonl  adapter/  manifest.json (written last)
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from llm_wrapper import runs
from llm_wrapper.cli import options
from llm_wrapper.cli.options import (
    Data,
    DataRoot,
    Llm,
    Overrides,
    PromptName,
    Train,
    Vlm,
    choose_recipe,
    name_of,
)
from llm_wrapper.errors import CacheError, DataError, ModelError
from llm_wrapper.recipe import Recipe
from llm_wrapper.report import card
from llm_wrapper.terminal import as_cell, say
from llm_wrapper.training import processes
from llm_wrapper.training.examples import count_answered_none, load_training_pool, require_trainable
from llm_wrapper.training.processes import exit_on_signal

if TYPE_CHECKING:
    from llm_wrapper.training.examples import Group
    from llm_wrapper.training.memory_estimate import TrainingEstimate


__all__ = ["plan_training", "run_training", "train_verb"]


_DTYPES = {2: "16 bit", 4: "32 bit"}


def train_verb(  # noqa: PLR0913 (each is an option of the verb)
    overrides: Overrides = None,
    *,
    vlm: Vlm = None,
    llm: Llm = None,
    data: Data = None,
    data_root: DataRoot = None,
    train: Train = None,
    prompt: PromptName = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Run folder: an interrupted one is resumed by its own recipe, a new one is made."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print memory, tokens and steps, and whether the device has it; then stop.")
    ] = False,
) -> None:
    """Fine-tune the LLM to choose the right box; write the adapter to a new folder in runs/.

    Start: llm-wrapper train --vlm flo2 --llm llama3 --data refcocog

    Resume after an interruption: llm-wrapper train --run runs/flo2-llama3-refcocog-..

    Memory and steps alone: llm-wrapper train --vlm flo2 --llm llama3 --data refcocog --plan
    """
    names = options.names_by_kind(vlm, llm, data, train, prompt=prompt)
    begun = run if run and (run / "recipe.yaml").is_file() else None
    recipe = choose_recipe(names, overrides, data_root, run=begun)
    if plan:
        if not plan_training(recipe, options.CONSOLE):
            raise typer.Exit(1)
        return
    run_training(recipe, run or runs.RUNS / runs.new_name(name_of(names)), options.CONSOLE, is_new=run is None)


def run_training(recipe: Recipe, folder: Path, console: Console, *, is_new: bool = False) -> Path:
    """Train an adapter and leave it in the run folder, which is complete once its manifest is there.

    Args:
        recipe: Of the run.
        folder: Of the run.
        console: Where the course is printed.
        is_new: Make a folder that does not exist yet, see `runs.claim_run`.
    """
    if recipe.llm.backend == "rule":
        raise ModelError("LLM=rule has nothing to train; evaluate it with: llm-wrapper eval --llm rule")
    if recipe.llm.backend == "openai":
        raise ModelError(
            "a served LLM cannot be trained from here: train it as a local one (LLM=llama3), then serve it"
        )
    require_trainable(recipe.prompt)
    with processes.print_from_main(console), contextlib.ExitStack() as held:
        processes.require_devices()
        processes.groups_per_process(recipe.train.groups_per_step)
        from llm_wrapper.training.callbacks import require_trackers  # it imports transformers

        require_trackers(recipe.train.report_to)
        folder = processes.open_run_together(
            folder, lambda path: held.enter_context(runs.claim_run(path, recipe, is_new=is_new))
        )
        with exit_on_signal(folder, console):
            _adapt(recipe, folder, console)
    return folder


def _adapt(recipe: Recipe, folder: Path, console: Console) -> None:
    """Train in an open run and finish it."""
    pool = load_training_pool(recipe)
    from llm_wrapper.llms.load import load_model
    from llm_wrapper.training import trainer

    llm = load_model(recipe.llm)
    groups, num_too_long = trainer.fit_to_length(llm, pool.groups, recipe)
    left_out = {**pool.skipped, "too_long": num_too_long}
    num_samples = sum(group.num_labelled for group in groups)
    labelled = [group for group in groups if group.num_labelled]
    images = f", {len(groups) - len(labelled)} images to generate expressions for" if labelled != groups else ""
    none = f"; answered by none of these: {count_answered_none(groups)}" if recipe.prompt.none else ""
    found = f"{num_samples} samples in {len(labelled)} groups{images}{none}; skipped: {left_out}"
    say(console, found)
    outcome = trainer.train_adapter(llm, groups, recipe, folder)
    if not processes.leave_process_group():
        return
    facts = {
        "samples": num_samples,
        "left_out": left_out,
        "training": outcome,
        "data": [each.facts() for each in pool.sets],
    }
    facts |= {"answered_none": count_answered_none(groups)} if recipe.prompt.none else {}
    runs.finish(folder, facts)
    card.write_card(folder)
    say(console, f"{folder}: {outcome['steps']} steps in {outcome['seconds']} s")


def plan_training(recipe: Recipe, console: Console) -> bool:
    """Print what a training would take, without loading the model; tell whether it fits the device at hand.

    Raises:
        ModelError: If the LLM is none that is trained here, or its settings cannot be read.
    """
    if recipe.llm.backend != "transformers":
        raise ModelError(
            f"llm.backend={recipe.llm.backend} has nothing to train; plan a local LLM: "
            "llm-wrapper train --plan --llm llama3"
        )
    from llm_wrapper.training.examples import load_training_pool
    from llm_wrapper.training.memory_estimate import estimate_training

    groups: Sequence[Group] | None = None
    reason = "no group fits train.max_tokens, or none is left to train on"
    try:
        groups = load_training_pool(recipe).groups
    except (CacheError, DataError) as error:
        reason = str(error).splitlines()[0]
    found = estimate_training(recipe, groups)
    table = Table(title=as_cell(f"training {recipe.llm.model}"), show_header=False)
    for name, text in _rows(found, recipe, reason):
        table.add_row(name, as_cell(text))
    console.print(table)
    for line in _verdict(found, recipe):
        say(console, line)
    return found.fits


def _rows(found: TrainingEstimate, recipe: Recipe, reason: str) -> list[tuple[str, str]]:
    """Return the rows of the table as (name, text)."""
    from llm_wrapper.training.memory_estimate import ADAPTER_BYTES, activation_bytes

    sizes, setup, memory, epoch = found.sizes, found.setup, found.memory, found.epoch
    kept = {way: activation_bytes(sizes, replace(setup, has_checkpointing=way), found.batch) for way in (True, False)}
    packed = f", {_count(sizes.num_packable)} of them in 4 bit" if setup.is_4bit else ""
    batch = f"{found.batch.num_rows} rows of {found.batch.length:,} tokens"
    share = sizes.num_trainable / sizes.num_parameters
    return [
        ("parameters", f"{_count(sizes.num_parameters)} in {_DTYPES[setup.number_bytes]}{packed}"),
        ("trainable", f"{_count(sizes.num_trainable)} ({share:.1%}) in {_DTYPES[ADAPTER_BYTES]}"),
        ("adapters on", found.sizes.targets),
        ("weights", _bytes(memory.weights)),
        ("adapter", _bytes(memory.adapter)),
        ("gradients", _bytes(memory.gradients)),
        ("optimizer", _bytes(memory.optimizer)),
        (
            "activations",
            f"{_bytes(kept[setup.has_checkpointing])}, estimated; {_other_way(setup.has_checkpointing, kept)}",
        ),
        ("working memory", f"{_bytes(memory.working)}, estimated"),
        ("expected peak", f"{_bytes(memory.peak)}, beside Python and its libraries"),
        ("largest batch", batch if epoch else f"{batch}, the longest that train.max_tokens allows"),
        ("tokens per epoch", f"about {_count(epoch.num_tokens)}, with padding" if epoch else f"unknown: {reason}"),
        ("steps", f"about {epoch.num_steps:,}" if epoch else _steps(recipe)),
        ("device", f"{found.device.name}, {_bytes(found.device.free)} free"),
    ]


def _other_way(has_checkpointing: bool, kept: dict[bool, int]) -> str:
    return f"{_bytes(kept[not has_checkpointing])} with{'out' if has_checkpointing else ''} gradient checkpointing"


def _steps(recipe: Recipe) -> str:
    limit = recipe.train.max_steps
    return f"unknown, at most {limit:,}" if limit else "unknown"


def _verdict(found: TrainingEstimate, recipe: Recipe) -> list[str]:
    """Say yes or no; if no, each change that helps, with the peak that it leads to."""
    from llm_wrapper.training.memory_estimate import fits_memory, suggest_changes

    peak, free = _bytes(found.memory.peak), _bytes(found.device.free)
    if found.fits:
        return [f"yes: {peak} of the {free} that {found.device.name} has free"]
    lines = [
        f"no: {peak} are expected, with a quarter of that and 0.25 GB to spare; {found.device.name} has {free} free"
    ]
    if found.epoch is None:
        lines.append("  prompts may be shorter than was assumed: cache detections first (llm-wrapper cache-detections)")
    options = list(suggest_changes(found.sizes, found.setup, found.batch, alpha=recipe.train.lora.alpha))
    lines += [
        f"  {change.overrides}: {_bytes(change.peak)}{', fits' if fits_memory(change.peak, found.device.free) else ''}"
        for change in options
    ]
    if not any(fits_memory(change.peak, found.device.free) for change in options):
        lines.append("  none of these is enough: choose a smaller LLM, or a device with more memory")
    return lines


def _bytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def _count(number: int) -> str:
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.4g} {word}"
    return f"{number:,}"
