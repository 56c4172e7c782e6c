"""Time per expression for growing data sets and growing numbers of candidates, with a plot (make bench-growth).

runs/bench/   growth.json   growth.md   growth.svg   growth.png
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import growth_report
import growth_steps
import typer
from measurements import Clock, compose_recipe, run_script, save_measurement
from rich.console import Console
from rich.table import Table

from llm_wrapper import storage
from llm_wrapper.errors import RecipeError
from llm_wrapper.llms.load import LoadedLLM, load_model
from llm_wrapper.llms.local import LocalLLM
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Answer, Prompt
from llm_wrapper.terminal import open_console, say

SIZES = (100, 1_000, 10_000)
CANDIDATES = (2, 5, 10, 15, 20)
SETTINGS = [
    "prompt.format=relations",
    "train.groups_per_step=2",
    "train.expressions_per_group=8",
    "train.max_steps=null",
]
_COMPARED = 100
"""The first answers of the smallest size that are asked again in each larger one."""
_EXACT_SIZES = 2


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    `sizes` are numbers of expressions; the LLM is asked up to `most_asked` of them, and above that uniform answers are
    used. `num_images` is the number of images for each number of candidates.
    """

    sizes: Sequence[int] = SIZES
    most_asked: int = SIZES[-1]
    candidates: Sequence[int] = CANDIDATES
    num_images: int = 12


@dataclass
class _Found:
    """Seconds per expression, on the clock and computed, and the answers of each size."""

    seconds: dict[int, dict[str, float]] = field(default_factory=dict)
    cpu: dict[int, dict[str, float]] = field(default_factory=dict)
    answers: dict[int, list[Answer]] = field(default_factory=dict)
    prompts: list[Prompt] = field(default_factory=list)

    def keep(self, size: int, clock: Clock) -> None:
        self.seconds[size] = {step: value / size for step, value in clock.seconds.items()}
        self.cpu[size] = {step: value / size for step, value in clock.cpu.items()}


def bench_growth(recipe: Recipe, console: Console, *, extent: Extent) -> None:
    """Measure on toy crowds, print both tables, keep runs/bench/growth.json, growth.md and the picture.

    Raises:
        RecipeError: If a size or a number of candidates cannot be measured.
    """
    _require_usable(extent, recipe)

    llm = load_model(recipe.llm)
    found = _sizes(llm, recipe, extent, console)
    same = {str(llm.model.dtype).removeprefix("torch."): _sameness(found)}
    if "float32" not in same:
        same["float32"] = _sameness(_exact(recipe, found, extent))
    del llm
    candidates = {number: _candidates(recipe, number, extent.num_images, console) for number in extent.candidates}
    notes = _notes(recipe, extent, same)
    _print(console, found, candidates, notes)
    question = {"recipe": recipe.model_dump(mode="json"), "extent": asdict(extent)}
    facts = {
        "seconds_per_expression": found.seconds,
        "cpu_seconds_per_expression": found.cpu,
        "candidates": candidates,
        "same_answers": same,
        "extent": asdict(extent),
    }
    path = save_measurement("growth", question, facts, console)
    storage.write_atomic(path.with_suffix(".md"), growth_report.markdown(found.seconds, found.cpu, candidates, notes))
    for kind in ("svg", "png"):
        storage.write_atomic(path.with_suffix(f".{kind}"), growth_report.picture(found.seconds, candidates, kind=kind))


def _require_usable(extent: Extent, recipe: Recipe) -> None:
    smallest = growth_steps.EXPRESSIONS
    if min(extent.sizes) < smallest or min(extent.candidates, default=2) < 2 or extent.most_asked < min(extent.sizes):
        raise RecipeError(
            f"sizes {list(extent.sizes)}, candidates {list(extent.candidates)}, LLM asked up to {extent.most_asked}: "
            f"a size must be {smallest} or more, candidates 2 or more, and the LLM must be asked the smallest size"
        )
    steps = 3 * recipe.train.groups_per_step
    if extent.candidates and extent.num_images < steps:
        raise RecipeError(f"{extent.num_images} images are too few for three steps of training; take --images {steps}")


def _sizes(llm: LoadedLLM, recipe: Recipe, extent: Extent, console: Console) -> _Found:
    found, sizes = _Found(), sorted(set(extent.sizes))
    crowds = growth_steps.make_crowds(
        -(-sizes[-1] // growth_steps.EXPRESSIONS), growth_steps.THINGS, growth_steps.EXPRESSIONS
    )
    for size in sizes:
        say(console, f"{size:,} expressions ...")
        clock, is_asked = Clock(), size <= extent.most_asked
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            chosen = crowds[: -(-size // growth_steps.EXPRESSIONS)]
            samples = growth_steps.prepare_samples(chosen, folder, recipe, limit=size, clock=clock)
            asked = LocalLLM(llm) if is_asked else growth_steps.UniformLLM()
            answers, prompts = growth_steps.evaluate(samples, recipe, folder, llm=asked, clock=clock)
        growth_steps.prepare_training(llm, samples, recipe, clock=clock)
        if is_asked:
            found.answers[size], found.prompts = answers, prompts
        else:
            del clock.seconds["ask the LLM"], clock.cpu["ask the LLM"]
        found.keep(size, clock)
    return found


def _exact(recipe: Recipe, found: _Found, extent: Extent) -> _Found:
    """Ask the two smallest sizes again in float32, where batches of another shape do not round otherwise."""
    llm = load_model(recipe.llm.model_copy(update={"dtype": "float32"}))
    sizes = sorted(found.answers)[:_EXACT_SIZES]
    exact = LocalLLM(llm, title="LLM, float32")
    answers = {size: exact.answer(found.prompts[:size]) for size in sizes}
    return _Found(answers=answers, prompts=found.prompts)


def _sameness(found: _Found) -> list[dict[str, Any]]:
    """Compare the answers of the smallest size with the first ones of each larger size."""
    few, *larger = sorted(found.answers)
    return [
        asdict(growth_steps.same_answers(found.prompts, found.answers[few], found.answers[many], most=_COMPARED))
        for many in larger
    ]


def _candidates(recipe: Recipe, number: int, num_images: int, console: Console) -> dict[str, float]:

    say(console, f"{number} candidates ...")
    whole = recipe.model_copy(update={"candidates": recipe.candidates.model_copy(update={"cap": max(number, 2)})})
    count = recipe.train.expressions_per_group
    crowds = growth_steps.make_crowds(num_images, number, count)
    with tempfile.TemporaryDirectory() as name:
        samples = growth_steps.prepare_samples(crowds, Path(name), whole, limit=num_images * count, clock=Clock())
        return growth_steps.measure_candidates(samples, whole, Path(name))


def _notes(recipe: Recipe, extent: Extent, same: dict[str, list[dict[str, Any]]]) -> list[str]:
    known = storage.versions()
    lines = [
        f"Made-up samples of the toy grammar, seeds fixed: {growth_steps.THINGS} candidates and "
        f"{growth_steps.EXPRESSIONS} "
        f"expressions an image above, {recipe.train.expressions_per_group} expressions an image below. "
        f"{recipe.llm.model}, untrained, prompt.format={recipe.prompt.format}; the LLM is asked up to "
        f"{extent.most_asked:,} expressions. 'grows by': computing time per expression at the largest size / at the "
        "one before; a square would give the quotient of the sizes. In 16 bit a batch of another shape rounds "
        "otherwise, which moves the near ties of an untrained model; float32 tells whether company matters.",
        f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}; Python {known['python']}, "
        f"torch {known['torch']}, transformers {known['transformers']}.",
    ]
    for dtype, rows in same.items():
        lines += [
            f"The first {row['num_answers']} answers, asked in a set of {row['of'][0]:,} and of {row['of'][1]:,}, in "
            f"{dtype}: same choice in {row['same_choice']:.1%}, probabilities differ by at most "
            f"{row['largest_difference']:.1e}."
            for row in rows
        ]
    return lines


def _print(console: Console, found: _Found, candidates: growth_report.Steps, notes: Sequence[str]) -> None:
    table = Table(
        "ms per expression", *(f"{size:,}" for size in found.seconds), "grows by", title="growth, expressions"
    )
    for row in growth_report.size_rows(found.seconds, found.cpu):
        table.add_row(*row)
    console.print(table)
    if candidates:
        table = Table(
            "candidates", *growth_report.CANDIDATE_COLUMNS.values(), title="growth, candidates: ms per expression"
        )
        for row in growth_report.candidate_rows(candidates):
            table.add_row(*row)
        console.print(table)
    for line in notes:
        say(console, line)


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, the value in YAML.")] = None,
    *,
    size: Annotated[list[int] | None, typer.Option(min=4, help="Expressions; repeat it, 100 1000 10000.")] = None,
    most_asked: Annotated[int, typer.Option(help="Larger sizes are measured without the LLM.")] = 10_000,
    candidates: Annotated[list[int] | None, typer.Option(min=2, help="Repeat it, 2 5 10 15 20.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images for each number of candidates.")] = 12,
) -> None:
    """Time SmolLM2 and all steps around it, for 100 to 10,000 expressions and 2 to 20 candidates."""
    recipe = compose_recipe(
        {"vlm": "toy", "llm": "smollm2", "data": "toy", "train": "demo"}, [*SETTINGS, *(overrides or [])]
    )
    extent = Extent(size or SIZES, most_asked, candidates or CANDIDATES, images)
    bench_growth(recipe, open_console(), extent=extent)


if __name__ == "__main__":
    run_script(main)
