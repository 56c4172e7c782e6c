"""One row of `compare-methods`: train or search, then answer every sample, and count the cost of both."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from llm_wrapper import runs, storage
from llm_wrapper.cli.search import run_search
from llm_wrapper.cli.train import run_training
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.evaluation import methods, systems
from llm_wrapper.evaluation.methods import Cost, Method, MethodResult
from llm_wrapper.prompts.render import PromptBuilder
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Prediction
from llm_wrapper.search.history import History, SearchStart
from llm_wrapper.training.examples import load_prompt_builder

__all__ = ["MethodRow", "make_row", "step_tokens"]


_COST = "cost.json"
_NOT_DRAWN = "image_in_an_evaluation_split"


@dataclass(frozen=True)
class MethodRow:
    """A row to be made, by its recipe, in its folder."""

    method: Method
    recipe: Recipe
    folder: Path

    @property
    def is_prepared(self) -> bool:
        """Whether the method trains or searches before it answers."""
        return self.method.kind in ("train", "search")


def make_row(row: MethodRow, samples: Sequence[PreparedSample], console: Console) -> tuple[MethodResult, PromptBuilder]:
    """Train or search, where the method does and it is not done yet, and ask about all samples.

    Raises:
        LLMWrapperError: Whatever training, search or answering raises; its cost until then is written down.
    """
    recipe, folder = row.recipe, row.folder
    if row.is_prepared:
        _prepare(row, console)
    else:
        runs.write_recipe(folder, recipe)
    notes = _notes(row)
    if row.method.kind == "search":
        prompt = recipe.prompt.model_copy(update={"instruction": runs.facts_of(folder)["best"]})
        recipe = recipe.model_copy(update={"prompt": prompt})
    builder = load_prompt_builder(recipe)
    rows, answered, spoken = _answers(row, recipe, builder, samples)
    num_asked = sum(len(prepared.built.candidates) > 1 for prepared in samples)
    learns = row.is_prepared or recipe.prompt.examples
    done = MethodResult(
        folder=folder,
        rows=rows,
        labelled=recipe.train.limit or 0 if learns else 0,
        prepared=_read_cost(folder),
        answered=answered,
        num_asked=num_asked,
        per_answer=None if spoken is None or not num_asked else spoken / num_asked,
        notes=notes,
    )
    return done, builder


def step_tokens(recipe: Recipe) -> float | None:
    """Return the tokens that a step of a training takes, each counted `methods.TRAINING` times, before it is begun.

    Raises:
        CacheError: If detections are missing.
        DataError: If there is nothing to train on.
    """
    from llm_wrapper.training.examples import load_training_pool
    from llm_wrapper.training.memory_estimate import estimate_training

    whole = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": None})})
    epoch = estimate_training(whole, load_training_pool(whole).groups).epoch
    return None if epoch is None else methods.TRAINING * epoch.num_tokens * whole.train.epochs / epoch.num_steps


def _prepare(row: MethodRow, console: Console) -> None:
    if runs.is_complete(row.folder):
        return
    prepare = run_training if row.method.kind == "train" else run_search
    with _count_cost(row.folder):
        prepare(row.recipe, row.folder, console)


@contextmanager
def _count_cost(folder: Path) -> Iterator[None]:
    """Add the cost of a block to that in a folder, also where the block fails."""
    from llm_wrapper.llms.meter import metered

    started = time.perf_counter()
    with metered(training=methods.TRAINING) as meter:
        try:
            yield
        finally:
            before = _read_cost(folder)
            seconds = round(before.seconds + time.perf_counter() - started, 1)
            if folder.is_dir():  # else nothing was begun
                facts = {"tokens": (before.tokens or 0) + meter.tokens, "seconds": seconds}
                storage.write_json(folder / _COST, facts)


def _read_cost(folder: Path) -> Cost:
    path = folder / _COST
    return Cost(**storage.read_json(path)) if path.is_file() else Cost(0, 0.0)


def _answers(
    row: MethodRow, recipe: Recipe, builder: PromptBuilder, samples: Sequence[PreparedSample]
) -> tuple[list[Prediction], Cost, int | None]:
    """Ask the LLM about every sample; return the predictions, their cost, and the tokens read and written alone."""
    from llm_wrapper.llms import meter
    from llm_wrapper.llms.base import LLM, LocalLLM, add_reasoning, load_llm
    from llm_wrapper.llms.load import load_model

    name, num_tokens, spoken = row.method.name, recipe.prompt.reasoning_tokens, meter.Spoken()
    is_served = recipe.llm.backend == "openai"  # its tokens are not known
    if is_served:
        llm: LLM = load_llm(recipe.llm, title=name, reasoning_tokens=num_tokens)
    else:
        loaded = load_model(recipe.llm, row.folder / "adapter" if row.method.kind == "train" else None)
        llm = add_reasoning(meter.CountingLLM(LocalLLM(loaded, title=name), spoken), num_tokens)
    started = time.perf_counter()
    with nullcontext(meter.Meter()) if is_served else meter.metered(training=methods.TRAINING) as through:
        rows = systems.by_llm(samples, name, builder, llm, orders=recipe.llm.orders)
    seconds = round(time.perf_counter() - started, 3)
    if is_served:
        return rows, Cost(None, seconds), None
    return rows, Cost(through.tokens, seconds), spoken.read + spoken.written


def _notes(row: MethodRow) -> list[str]:
    """Say how long a training was, and what a search found."""
    if row.method.kind == "train":
        return _training_notes(row)
    return _search_notes(row) if row.method.kind == "search" else []


def _training_notes(row: MethodRow) -> list[str]:
    facts, rising = runs.facts_of(row.folder), row.recipe.train.warmup_steps
    steps = facts["training"]["steps"]
    # Images that are evaluated on do not count towards the budget.
    skipped = {key: count for key, count in facts["left_out"].items() if key != _NOT_DRAWN and count}
    left = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in skipped.items())
    notes = [f"{facts['samples']} expressions trained on, in {steps} steps{f'; skipped: {left}' if left else ''}"]
    if steps <= 2 * rising:
        notes.append(f"the learning rate rises for train.warmup_steps={rising} of {steps} steps")
    return notes


def _search_notes(row: MethodRow) -> list[str]:
    history = History(row.folder / "history.jsonl")
    confirmed = {each["name"]: each for each in storage.read_json(row.folder / "confirmed.json")["rows"]}
    best = confirmed["best 1"]
    num_usable = len({each.prompt for each in history.evaluated if each.iteration})
    refused = f"{len(history.refused)} refused"
    if not num_usable:
        notes = [f"no proposal was usable ({refused}): this is the seed prompt"]
    elif best["iteration"] == 0:
        notes = [f"none of {num_usable} usable proposals beat the seed prompt ({refused}): this is the seed prompt"]
    else:
        gain = best["gain_over_seed"]
        over = f"{100 * gain['value']:+.1f} points over the seed prompt on the second slice (n = {gain['n']})"
        notes = [f"found in round {best['iteration']}, among {num_usable} usable proposals, {refused}; {over}"]
    return [*notes, *_steering_notes(row, history)]


def _steering_notes(row: MethodRow, history: History) -> list[str]:
    """Say why nothing was steered where the recipe asks for it."""
    section = row.recipe.search
    if section is None or not section.alphas:
        return []
    if any(not isinstance(each, SearchStart) and each.alpha is not None for each in history.rows):
        return []
    is_served = (section.proposer or row.recipe.llm).backend == "openai"
    why = "the proposer is on a server" if is_served else "it begins when a prompt has beaten the seed prompt"
    return [f"nothing was guided: {why}"]
