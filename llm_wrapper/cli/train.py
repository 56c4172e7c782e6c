"""`train`: fine-tune the LLM, or print what that takes; `demo`: all steps on the toy data.

runs/<vlm>-<llm>-<data>-<utc>-<git>/  recipe.yaml  train_log.jsonl  adapter/  manifest.json (written last)
runs/demo/                            the same, what `eval` writes, summary.json, pictures/*.png
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from llm_wrapper import runs, storage
from llm_wrapper.cli import options
from llm_wrapper.cli.detections import cache
from llm_wrapper.cli.evaluate import evaluate
from llm_wrapper.errors import CacheError, DataError, ModelError, shell_word
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation.jobs import Evaluation
from llm_wrapper.recipe import Recipe
from llm_wrapper.report import card, formatting, pictures
from llm_wrapper.terminal import as_cell, say
from llm_wrapper.training import processes
from llm_wrapper.training.examples import count_answered_none, load_training_pool, require_trainable

if TYPE_CHECKING:
    from llm_wrapper.training.memory_estimate import TrainingEstimate


def train_verb(  # noqa: PLR0913 (each is an option of the verb)
    overrides: options.Overrides = None,
    *,
    vlm: options.Vlm = None,
    llm: options.Llm = None,
    data: options.Data = None,
    data_root: options.DataRoot = None,
    train: options.Train = None,
    prompt: options.PromptName = None,
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
    names = {"vlm": vlm, "llm": llm, "data": data, "train": train, "prompt": prompt}
    begun = run if run and (run / "recipe.yaml").is_file() else None
    recipe = options.choose_recipe(names, overrides, data_root, run=begun)
    if plan:
        if not plan_training(recipe, options.CONSOLE):
            raise typer.Exit(1)
        return
    run_training(recipe, run or runs.RUNS / runs.new_name(options.name_of(names)), options.CONSOLE, is_new=run is None)


def run_training(recipe: Recipe, folder: Path, console: Console, *, is_new: bool = False) -> Path:
    """Train an adapter and leave it in the run folder, which is complete once its manifest is there.

    With `is_new` the folder must not exist yet, see `runs.claim_run`.
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
        with processes.exit_on_signal(folder, console):
            _adapt(recipe, folder, console)
    return folder


def _adapt(recipe: Recipe, folder: Path, console: Console) -> None:
    """Train in an open run and finish it."""
    pool = load_training_pool(recipe)
    from llm_wrapper.llms.load import load_model
    from llm_wrapper.training import trainer

    llm = load_model(recipe.llm)
    groups, num_too_long = trainer.fit_to_length(llm, pool.groups, recipe)
    facts = {
        "samples": sum(group.num_labelled for group in groups),
        "left_out": {**pool.skipped, "too_long": num_too_long},
        "data": [each.facts() for each in pool.sets],
        **({"answered_none": count_answered_none(groups)} if recipe.prompt.none else {}),
    }
    num_labelled = sum(bool(group.num_labelled) for group in groups)
    found = f"{facts['samples']} samples in {num_labelled} groups"
    if num_labelled < len(groups):
        found += f", {len(groups) - num_labelled} images to generate expressions for"
    if recipe.prompt.none:
        found += f"; answered by none of these: {facts['answered_none']}"
    say(console, f"{found}; skipped: {facts['left_out']}")
    outcome = trainer.train_adapter(llm, groups, recipe, folder)
    if not processes.leave_process_group():
        return
    runs.finish(folder, {**facts, "training": outcome})
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
    from llm_wrapper.training.memory_estimate import estimate_training

    groups, reason = None, "no group fits train.max_tokens, or none is left to train on"
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
    """Return the rows of the table as (name, text); `reason` says why there is no epoch."""
    from llm_wrapper.training.memory_estimate import ADAPTER_BYTES, activation_bytes

    dtypes = {2: "16 bit", 4: "32 bit"}
    sizes, setup, memory, epoch = found.sizes, found.setup, found.memory, found.epoch
    packed = f", {_count(sizes.num_packable)} of them in 4 bit" if setup.is_4bit else ""
    share = sizes.num_trainable / sizes.num_parameters
    kept = {way: activation_bytes(sizes, replace(setup, has_checkpointing=way), found.batch) for way in (True, False)}
    used, other = (_bytes(kept[way]) for way in (setup.has_checkpointing, not setup.has_checkpointing))
    without = "without" if setup.has_checkpointing else "with"
    batch = f"{found.batch.num_rows} rows of {found.batch.length:,} tokens"
    if epoch:
        tokens, steps = f"about {_count(epoch.num_tokens)}, with padding", f"about {epoch.num_steps:,}"
    else:
        batch += ", the longest that train.max_tokens allows"
        tokens, steps = f"unknown: {reason}", "unknown"
        steps += f", at most {recipe.train.max_steps:,}" if recipe.train.max_steps else ""
    return [
        ("parameters", f"{_count(sizes.num_parameters)} in {dtypes[setup.number_bytes]}{packed}"),
        ("trainable", f"{_count(sizes.num_trainable)} ({share:.1%}) in {dtypes[ADAPTER_BYTES]}"),
        ("adapters on", found.sizes.targets),
        ("weights", _bytes(memory.weights)),
        ("adapter", _bytes(memory.adapter)),
        ("gradients", _bytes(memory.gradients)),
        ("optimizer", _bytes(memory.optimizer)),
        ("activations", f"{used}, estimated; {other} {without} gradient checkpointing"),
        ("working memory", f"{_bytes(memory.working)}, estimated"),
        ("expected peak", f"{_bytes(memory.peak)}, beside Python and its libraries"),
        ("largest batch", batch),
        ("tokens per epoch", tokens),
        ("steps", steps),
        ("device", f"{found.device.name}, {_bytes(found.device.free)} free"),
    ]


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
    changes = list(suggest_changes(found.sizes, found.setup, found.batch, alpha=recipe.train.lora.alpha))
    lines += [
        f"  {change.overrides}: {_bytes(change.peak)}{', fits' if fits_memory(change.peak, found.device.free) else ''}"
        for change in changes
    ]
    if not any(fits_memory(change.peak, found.device.free) for change in changes):
        lines.append("  none of these is enough: choose a smaller LLM, or a device with more memory")
    return lines


def _bytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def _count(number: int) -> str:
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.4g} {word}"
    return f"{number:,}"


def demo_verb(
    *,
    fast: Annotated[bool, typer.Option(help="A few steps and samples, to see that everything works.")] = False,
) -> None:
    """Run all steps on the toy data: detect, train, evaluate; write table and pictures to runs/demo."""
    names = {"vlm": "toy", "llm": "smollm2", "data": "toy", "train": "demo"}
    demo(options.choose_recipe(names, None), options.CONSOLE, fast=fast)


def demo(recipe: Recipe, console: Console, *, fast: bool) -> None:
    """Detect, train and evaluate in runs/demo, and draw examples; `fast`: 4 steps and 60 samples in runs/demo-fast."""
    folder = runs.RUNS / ("demo-fast" if fast else "demo")
    if fast:
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": 4})})
    cache(recipe, [recipe.data.train_split, recipe.data.eval_split], console)
    if runs.is_complete(folder) and runs.recipe_of(folder) == recipe:
        say(console, f"{folder} is trained already; to train again: rm -r {shell_word(folder)}")
    else:
        run_training(recipe, folder, console)
    done = evaluate(Evaluation(recipe, folder, limit=60 if fast else None), console)
    summary = runs.free_file(folder / "summary.json", done.question)
    storage.write_json(summary, {"rows": formatting.summary_values(done.summaries), "question": done.question})
    # The first images, one prediction each, so that a person sees what the numbers are about.
    rows = files.load_predictions(done.folder / f"predictions-{done.name}.parquet")
    tuned = list({row.image_id: row for row in reversed(rows) if row.system == "tuned"}.values())[::-1][:6]
    for number, row in enumerate(tuned):
        image = recipe.data.folder / "images" / f"{row.image_id}.png"
        pictures.save_picture(pictures.draw_prediction(row, image), done.folder / "pictures" / f"{number}.png")
    say(console, f"{len(tuned)} pictures in {done.folder / 'pictures'}")
