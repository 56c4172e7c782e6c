"""Time index scoring against plain batches and greedy generation; all must choose the same (make bench-score).

`grouped` scores all expressions of an image, `single` one of each image. The choices of each way are compared with
those of unshared scoring in float32.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measurements import compose_recipe, run_script, save_measurement
from rich.console import Console
from rich.table import Table

from llm_wrapper.cli.detections import cache
from llm_wrapper.detections.samples import PreparedSample, load_prepared_split
from llm_wrapper.llms.load import LoadedLLM, load_model
from llm_wrapper.llms.local import generate, score_prompts
from llm_wrapper.prompts.render import choose, render_prompt
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Answer, Prompt
from llm_wrapper.terminal import open_console
from llm_wrapper.training import trainer
from llm_wrapper.training.examples import make_groups

SETTINGS = ["prompt.format=relations", "train.groups_per_step=2", "train.expressions_per_group=6", "train.max_steps=20"]
COLUMNS = ("prompts", "way", "expressions/s", "ratio", "same choice", "in float32", "probabilities differ by")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one way of asking the same prompts, and its answers."""

    name: str
    seconds: float
    answers: list[Answer]


def score_all(llm: LoadedLLM, prompts: Sequence[Prompt], *, share: bool = True) -> list[Answer]:
    """Return the answer to each prompt, in order."""
    return [answer for _, answer in sorted(score_prompts(llm, prompts, share=share), key=lambda pair: pair[0])]


def _one_by_one(llm: LoadedLLM, prompts: Sequence[Prompt]) -> list[Answer]:
    """Generate greedily, batch size 1: the way of the paper's code."""
    return [next(generate(llm, [prompt]))[1] for prompt in prompts]


def compare(llm: LoadedLLM, prompts: Sequence[Prompt]) -> list[Timing]:
    """Time shared-prefix scoring, batched scoring that shares nothing, and greedy generation one by one.

    Each way is warmed up with the first prompts.

    Args:
        llm: Tuned, so that it ends its answers: an untrained one generates until it is cut off.
        prompts: Those of one image as neighbours.
    """
    ways: dict[str, Callable[[Sequence[Prompt]], list[Answer]]] = {
        "shared-prefix scoring": lambda rows: score_all(llm, rows),
        "batched scoring, nothing shared": lambda rows: score_all(llm, rows, share=False),
        "greedy generation, batch 1": lambda rows: _one_by_one(llm, rows),
    }
    timings = []
    for name, way in ways.items():
        way(prompts[:2])
        start = time.perf_counter()
        answers = way(prompts)
        timings.append(Timing(name, time.perf_counter() - start, answers))
    return timings


def agreement(prompts: Sequence[Prompt], a: Sequence[Answer], b: Sequence[Answer]) -> float:
    """Return the share of prompts for which both answers choose the same index."""
    same = [
        choose(one, len(prompt.candidates)).index == choose(other, len(prompt.candidates)).index
        for prompt, one, other in zip(prompts, a, b, strict=True)
    ]
    return sum(same) / len(same)


def largest_difference(a: Sequence[Answer], b: Sequence[Answer]) -> float | None:
    """Return the largest difference of any probability; None where an answer has none."""
    pairs = [(one.probabilities, other.probabilities) for one, other in zip(a, b, strict=True)]
    if any(one is None or other is None for one, other in pairs):
        return None
    return max(float((torch.tensor(one) - torch.tensor(other)).abs().max()) for one, other in pairs if one and other)


def train_adapter(recipe: Recipe, folder: Path) -> Path:
    """Train a few steps: enough to answer with an index and to end there, which is all that speed depends on."""
    samples = load_prepared_split(recipe, recipe.data, recipe.data.train_split).samples
    trainer.train_adapter(load_model(recipe.llm), make_groups(samples, recipe.train)[0], recipe, folder)
    return folder / "adapter"


def measure(recipe: Recipe, samples: Sequence[PreparedSample], adapter: Path) -> dict[str, Any]:
    """Return the facts of each way over the same samples."""
    prompts = [render_prompt(each.sample, each.built.candidates, recipe.prompt.format) for each in samples]
    timings = compare(load_model(recipe.llm, adapter), prompts)
    exact = load_model(recipe.llm.model_copy(update={"dtype": "float32"}), adapter)
    truth, shared = score_all(exact, prompts, share=False), score_all(exact, prompts)
    exact_agreement = agreement(prompts, shared, truth)
    ways = []
    for each in timings:
        difference = largest_difference(each.answers, truth)
        ways.append(
            {
                "name": each.name,
                "rate": round(len(prompts) / each.seconds, 2),
                "ratio": round(each.seconds / timings[0].seconds, 2),
                "agreement": round(agreement(prompts, each.answers, truth), 4),
                "exact": exact_agreement if each is timings[0] else "",
                "differs": "" if difference is None else f"{difference:.1e}",
            }
        )
    return {
        "ratio": ways[-1]["ratio"],
        "ratio_to_batched": ways[1]["ratio"],
        "agreement": exact_agreement,
        "largest_difference": largest_difference(shared, truth),
        "n": len(prompts),
        "ways": ways,
    }


def bench_score_prompts(recipe: Recipe, console: Console, *, num_expressions: int) -> None:
    """Measure with an adapter that is trained for it, print ratios, write runs/bench/score.json."""
    cache(recipe, [recipe.data.train_split, recipe.data.eval_split], console)
    split = load_prepared_split(recipe, recipe.data, recipe.data.eval_split)
    samples = [each for each in split.samples if len(each.built.candidates) > 1]
    first = list({prepared.sample.image_id: prepared for prepared in reversed(samples)}.values())
    with tempfile.TemporaryDirectory() as folder:
        adapter = train_adapter(recipe, Path(folder))
        grouped, single = samples[:num_expressions], first[:num_expressions]
        found = {"grouped": measure(recipe, grouped, adapter), "single": measure(recipe, single, adapter)}
    table = Table(*COLUMNS, title="index scoring, tuned; choices against unshared float32 scoring")
    for name, facts in found.items():
        for way in facts["ways"]:
            table.add_row(name, *(str(way[key]) for key in ("name", "rate", "ratio", "agreement", "exact", "differs")))
    console.print(table)
    save_measurement(
        "score", {"recipe": recipe.model_dump(mode="json"), "expressions": num_expressions}, found, console
    )


def main(expressions: Annotated[int, typer.Option(min=2, help="Expressions that each way is asked.")] = 60) -> None:
    """Time shared-prefix scoring against plain batches and greedy generation on the toy split."""
    recipe = compose_recipe({"vlm": "toy", "llm": "smollm2", "data": "toy", "train": "demo"}, SETTINGS)
    bench_score_prompts(recipe, open_console(), num_expressions=expressions)


if __name__ == "__main__":
    run_script(main)
