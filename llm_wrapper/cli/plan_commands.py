"""What the verb `plan` prints: what a training takes, whether the device at hand has it, and what to change if not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from llm_wrapper.errors import CacheError, DataError, ModelError
from llm_wrapper.recipe import Recipe
from llm_wrapper.terminal import as_cell, say

if TYPE_CHECKING:
    from llm_wrapper.training.examples import Group
    from llm_wrapper.training.model_sizes import TrainingEstimate

__all__ = ["plan"]

_DTYPES = {2: "16 bit", 4: "32 bit"}


def plan(recipe: Recipe, console: Console) -> bool:
    """Print what a training would take, without loading the model; tell whether it fits the device at hand.

    Raises:
        ModelError: If the LLM is none that is trained here, or its settings cannot be read.
    """
    if recipe.llm.backend != "transformers":
        raise ModelError(
            f"llm.backend={recipe.llm.backend} has nothing to train; plan a local LLM: llm-wrapper plan --llm llama3"
        )
    from llm_wrapper.training.model_sizes import estimate_training
    from llm_wrapper.training.pool import load_training_pool

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
        ("adapters on", found.targets),
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
