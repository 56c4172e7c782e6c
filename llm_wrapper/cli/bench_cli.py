"""The verbs that measure: speed and memory as ratios against a named rival, with equal results in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_wrapper.cli import bench_commands, bench_growth_commands
from llm_wrapper.cli.options import DataRoot, Overrides, chosen
from llm_wrapper.recipe import Recipe
from llm_wrapper.terminal import open_console

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Measure speed and memory on this machine; keeps runs/bench/<verb>.json.")

_console = open_console()


def _recipe(vlm: str, llm: str, data: str, train: str, overrides: list[str], root: Path | None = None) -> Recipe:
    return chosen({"vlm": vlm, "llm": llm, "data": data, "train": train}, overrides, root)


@app.command()
def score(
    *,
    expressions: Annotated[int, typer.Option(min=2, help="Expressions that each way is asked.")] = 60,
) -> None:
    """Shared-prefix scoring against plain batches and greedy generation on the toy split; choices must agree."""
    chosen = ["prompt.format=relations", "train.groups_per_step=2", "train.expressions_per_group=6"]
    recipe = _recipe("toy", "smollm2", "toy", "demo", [*chosen, "train.max_steps=20"])
    bench_commands.score(recipe, _console, num_expressions=expressions)


@app.command()
def train(
    *,
    data_root: DataRoot = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps that are timed.")] = 8,
) -> None:
    """Packed training of SmolLM2 on real RefCOCO and RefCOCOg rows against TRL's SFTTrainer; losses must agree."""
    eight = ["train.groups_per_step=1", "train.expressions_per_group=8", "train.generated_per_group=0"]
    grouped = _recipe("coco", "smollm2", "refcoco", "generated", eight, data_root)
    single = _recipe("coco", "smollm2", "refcocog", "default", ["train.groups_per_step=8"], data_root)
    bench_commands.train(grouped, single, _console, num_steps=steps)


@app.command()
def detect(
    overrides: Overrides = None,
    *,
    data: Annotated[str, typer.Option(help="Data set with its images: a file of recipes/data.")] = "toy",
    data_root: DataRoot = None,
    images: Annotated[int, typer.Option(min=1, help="Images, each with four expressions.")] = 2,
) -> None:
    """Full-size Florence-2 and Grounding-DINO (random weights) against the plain loop; answers must be equal."""
    recipe = _recipe("toy", "rule", data, "default", overrides or [], data_root)
    bench_commands.detect(recipe, _console, num_images=images)


@app.command()
def memory() -> None:
    """A random Mixtral of 3 B parameters, written to disk and loaded in 4 bit: its peak against its 16-bit size."""
    bench_commands.memory(_console)


@app.command()
def metrics(
    *,
    predictions: Annotated[int, typer.Option(min=1000, help="Predictions, generated.")] = 1_000_000,
) -> None:
    """All metrics with their intervals against a plain loop over samples; values must be equal."""
    bench_commands.metrics(_console, num_predictions=predictions)


@app.command()
def growth(
    overrides: Overrides = None,
    *,
    size: Annotated[list[int] | None, typer.Option(min=4, help="Expressions; once for each, 100 1000 10000.")] = None,
    most_asked: Annotated[int, typer.Option(help="Larger sizes are measured without asking the LLM.")] = 10_000,
    candidates: Annotated[list[int] | None, typer.Option(min=2, help="Once for each number, 2 5 10 15 20.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images that each number of candidates is tried on.")] = 12,
) -> None:
    """Time per expression of SmolLM2 and of all around it, for 100 to 10,000 expressions and 2 to 20 candidates."""
    chosen = ["prompt.format=relations", "train.groups_per_step=2", "train.expressions_per_group=8"]
    recipe = _recipe("toy", "smollm2", "toy", "demo", [*chosen, "train.max_steps=null", *(overrides or [])])
    sizes, numbers = size or bench_growth_commands.SIZES, candidates or bench_growth_commands.CANDIDATES
    extent = bench_growth_commands.Extent(sizes, most_asked, numbers, images)
    bench_growth_commands.growth(recipe, _console, extent=extent)
