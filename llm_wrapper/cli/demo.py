"""`demo`: detect, cache, train and evaluate on the toy data.

runs/demo/  all that `train` and `eval` write, summary.json, pictures/*.png
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from llm_wrapper import results, runs, storage
from llm_wrapper.cli import options
from llm_wrapper.cli.detections import cache
from llm_wrapper.cli.evaluate import Evaluated, Evaluation, evaluate
from llm_wrapper.cli.options import (
    choose_recipe,
)
from llm_wrapper.cli.train import run_training
from llm_wrapper.errors import shell_word
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.recipe import Recipe
from llm_wrapper.report import formatting, pictures
from llm_wrapper.terminal import say

__all__ = ["demo", "demo_verb"]


def demo_verb(
    *,
    fast: Annotated[bool, typer.Option(help="A few steps and samples, to see that everything works.")] = False,
) -> None:
    """Run all steps on the toy data: detect, train, evaluate; write table and pictures to runs/demo."""
    demo(choose_recipe(options.names_by_kind("toy", "smollm2", "toy", "demo"), None), options.CONSOLE, fast=fast)


def demo(recipe: Recipe, console: Console, *, fast: bool) -> None:
    """Walk the whole road on the toy split and leave runs/demo with table, predictions and summary.json.

    The fast way is a few steps and few samples, in runs/demo-fast: it shows that the road is whole, nothing more.
    """
    folder = runs.RUNS / ("demo-fast" if fast else "demo")
    if fast:
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": 4})})
    cache(recipe, [recipe.data.train_split, recipe.data.eval_split], console)
    if runs.is_complete(folder) and runs.recipe_of(folder) == recipe:
        say(console, f"{folder} is trained already; to train again: rm -r {shell_word(folder)}")
    else:
        run_training(recipe, folder, console)
    done = evaluate(Evaluation(recipe, folder, limit=60 if fast else None), console)
    summary = results.free_file(folder / "summary.json", done.question)
    storage.write_json(summary, {"rows": formatting.summary_values(done.summaries), "question": done.question})
    _draw_examples(done, recipe, console)


def _draw_examples(done: Evaluated, recipe: Recipe, console: Console) -> None:
    """Draw tuned predictions of the first images, one each, so that a person sees what the numbers are about."""
    folder = done.folder
    rows = files.load_predictions(folder / f"predictions-{done.name}.parquet")
    tuned = list({row.image_id: row for row in reversed(rows) if row.system == "tuned"}.values())[::-1][:6]
    for number, row in enumerate(tuned):
        image = recipe.data.folder / "images" / f"{row.image_id}.png"
        pictures.save_picture(pictures.draw_prediction(row, image), folder / "pictures" / f"{number}.png")
    say(console, f"{len(tuned)} pictures in {folder / 'pictures'}")
