"""What the verbs that measure speed do: ratios against a named rival, with equal results checked in the same run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from llm_wrapper import artifacts, datasets, results, runs
from llm_wrapper.cli import detection_commands
from llm_wrapper.datasets import Dataset
from llm_wrapper.detections.samples import PreparedSample, load_prepared_split
from llm_wrapper.errors import DataError
from llm_wrapper.prompts.render import render
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Sample
from llm_wrapper.terminal import say

if TYPE_CHECKING:
    from llm_wrapper.detectors.bench import Comparison
    from llm_wrapper.training.bench import Comparison as TrainingComparison

__all__ = ["detect", "memory", "metrics", "score", "train"]

_PER_IMAGE = 4
_EXACT_STEPS = 2
_GOALS = {"florence2": "one call per expression and task", "grounding_dino": "one call per expression"}


def score(recipe: Recipe, console: Console, *, num_expressions: int) -> None:
    """Time index scoring with an adapter that is trained for it, print ratios, keep runs/bench/score.json.

    `grouped` asks all expressions of an image, `single` one of each image. The choices of each way are compared with
    those of unshared scoring in float32.
    """
    detection_commands.cache(recipe, [recipe.data.train_split, recipe.data.eval_split], console)
    samples = [
        s
        for s in load_prepared_split(recipe, recipe.data, recipe.data.eval_split).samples
        if len(s.built.candidates) > 1
    ]
    first = list({prepared.sample.image_id: prepared for prepared in reversed(samples)}.values())
    with tempfile.TemporaryDirectory() as folder:
        adapter = _trained_adapter(recipe, Path(folder))
        asked = {"grouped": samples[:num_expressions], "single": first[:num_expressions]}
        found = {name: _scored(recipe, chosen, adapter) for name, chosen in asked.items()}
    columns = ("prompts", "way", "expressions/s", "ratio", "same choice", "in float32", "probabilities differ by")
    table = Table(*columns, title="index scoring, tuned; choices against unshared float32 scoring")
    for name, facts in found.items():
        for way in facts["ways"]:
            table.add_row(name, *(str(way[key]) for key in ("name", "rate", "ratio", "agreement", "exact", "differs")))
    console.print(table)
    more = {"cores": os.cpu_count(), "versions": artifacts.versions()}
    _keep(
        "score", {"recipe": recipe.model_dump(mode="json"), "expressions": num_expressions}, {**found, **more}, console
    )


def _keep(name: str, question: Mapping[str, Any], facts: Mapping[str, Any], console: Console) -> None:
    """Write a measurement to runs/bench/<name>.json; one of another size or recipe is not touched, see `results`."""
    path = results.free_file(runs.ROOT / "bench" / f"{name}.json", question)
    artifacts.write_json(path, {**facts, "question": question})
    say(console, f"kept in {path}")


def _trained_adapter(recipe: Recipe, folder: Path) -> Path:
    """Train for some steps: enough to answer with an index and to end there, which is all that speed depends on."""
    samples = load_prepared_split(recipe, recipe.data, recipe.data.train_split).samples
    from llm_wrapper.llms.load import load_model
    from llm_wrapper.training import trainer
    from llm_wrapper.training.examples import make_groups

    trainer.train_adapter(load_model(recipe.llm), make_groups(samples, recipe.train)[0], recipe, folder)
    return folder / "adapter"


def _scored(recipe: Recipe, samples: Sequence[PreparedSample], adapter: Path) -> dict[str, Any]:
    from llm_wrapper.llms import bench
    from llm_wrapper.llms.load import load_model

    prompts = [render(each.sample, each.built.candidates, recipe.prompt.format) for each in samples]
    timings = bench.compare(load_model(recipe.llm, adapter), prompts)
    exact = load_model(recipe.llm.model_copy(update={"dtype": "float32"}), adapter)
    truth, shared = bench.scored(exact, prompts, share=False), bench.scored(exact, prompts)
    exact_ways = {timings[0].name: bench.agreement(prompts, shared, truth)}
    ours = timings[0].seconds
    ways = [
        {
            "name": each.name,
            "rate": round(len(prompts) / each.seconds, 2),
            "ratio": round(each.seconds / ours, 2),
            "agreement": round(bench.agreement(prompts, each.answers, truth), 4),
            "exact": exact_ways.get(each.name, ""),
            "differs": _short(bench.largest_difference(each.answers, truth)),
        }
        for each in timings
    ]
    return {
        "ratio": ways[-1]["ratio"],
        "ratio_to_batched": ways[1]["ratio"],
        "agreement": exact_ways[timings[0].name],
        "largest_difference": bench.largest_difference(shared, truth),
        "n": len(prompts),
        "ways": ways,
    }


def _short(number: float | None) -> str:
    return "" if number is None else f"{number:.1e}"


def train(grouped: Recipe, single: Recipe, console: Console, *, num_steps: int) -> None:
    """Time packed training against TRL's SFTTrainer as it comes; keep runs/bench/train.json, and no adapter.

    Losses are compared in float32 too: in 16 bit the two ways of attention round differently.

    Args:
        grouped: Its evaluation split gives images with many expressions.
        single: Its train split gives one expression an image.
        console: Where the table goes.
        num_steps: Optimizer steps that are timed, of each.
    """
    jobs = {"grouped": (grouped, grouped.data.eval_split), "single": (single, single.data.train_split)}
    for recipe, split in jobs.values():
        detection_commands.cache(recipe, [split], console)
    columns = ("rows", "expressions/s", "rival's", "ratio", "loss differs by", "in float32 by")
    table = Table(*columns, title="training, against TRL's SFTTrainer with batches of 4")
    facts: dict[str, Any] = {"cores": os.cpu_count(), "versions": artifacts.versions()}
    for name, (recipe, split) in jobs.items():
        timed, exact = _trained(recipe, split, num_steps)
        rates = (f"{timed.num_expressions / seconds:.2f}" for seconds in (timed.seconds, timed.rival_seconds))
        differences = (f"{each.max_loss_difference:.1e}" for each in (timed, exact))
        table.add_row(name, *rates, f"{timed.ratio:.2f}", *differences)
        facts[name] = {
            "ratio": timed.ratio,
            "max_loss_difference": exact.max_loss_difference,
            "timed": asdict(timed),
            "float32": asdict(exact),
        }
    console.print(table)
    recipes = {name: recipe.model_dump(mode="json") for name, (recipe, _) in jobs.items()}
    _keep("train", {"recipes": recipes, "steps": num_steps}, facts, console)


def _trained(recipe: Recipe, split: str, num_steps: int) -> tuple[TrainingComparison, TrainingComparison]:
    """Compare in the LLM's own type for the time, and a few steps in float32 for the losses."""
    samples = load_prepared_split(recipe, recipe.data, split).samples
    from llm_wrapper.training.bench import compare
    from llm_wrapper.training.examples import make_groups

    groups, _ = make_groups(samples, recipe.train)
    exact = recipe.model_copy(update={"llm": recipe.llm.model_copy(update={"dtype": "float32"})})
    with tempfile.TemporaryDirectory() as folder:
        return (
            compare(groups, recipe, Path(folder, "timed"), num_steps=num_steps),
            compare(groups, exact, Path(folder, "exact"), num_steps=_EXACT_STEPS),
        )


def detect(recipe: Recipe, console: Console, *, num_images: int) -> None:
    """Time full-size detectors with random weights against the plain loop, print where the time goes.

    Keeps runs/bench/detect.json. Each image is asked four expressions, as a referring data set has them.
    """
    samples = _four_each(datasets.load_dataset(recipe.data, recipe.data.eval_split), num_images)
    from llm_wrapper.detectors.bench import compare_florence2, compare_grounding_dino

    found: dict[str, Comparison] = {}
    for name, compare in (("florence2", compare_florence2), ("grounding_dino", compare_grounding_dino)):
        say(console, f"{name}: {len(samples)} expressions about {num_images} images, both ways ...")
        found[name] = compare(samples)
    table = Table(
        "detector", "rival", "expressions/s", "rival's", "ratio", "same answers", title="detection, random weights"
    )
    for name, each in found.items():
        rates = (f"{each.num_expressions / seconds:.3f}" for seconds in (each.seconds, each.plain_seconds))
        table.add_row(name, _GOALS[name], *rates, f"{each.ratio:.2f}", "yes" if each.is_equal else "NO")
    console.print(table)
    where = Table("detector", "part", "seconds", "share", title="where the time goes")
    for name, each in found.items():
        for part, seconds in each.where.items():
            where.add_row(name, part, f"{seconds:.1f}", f"{seconds / each.seconds:.0%}")
    console.print(where)
    facts = {name: {"ratio": each.ratio, "equal": each.is_equal, **asdict(each)} for name, each in found.items()}
    more = {"num_images": num_images, "cores": os.cpu_count(), "versions": artifacts.versions()}
    question = {"data": recipe.data.model_dump(mode="json"), "images": num_images}
    _keep("detect", question, {**facts, **more}, console)


def memory(console: Console) -> None:
    """Load a random Mixtral in 4 bit in a fresh process, print its peak and sizes, keep runs/bench/memory.json."""
    from llm_wrapper.llms.bench_memory import compare

    with tempfile.TemporaryDirectory() as folder:
        facts = compare(Path(folder))
    table = Table("", "", title="4-bit load of a random Mixtral")
    for name, value in facts.items():
        if isinstance(value, int | float | str):
            table.add_row(name, value if isinstance(value, str) else f"{value:,.3f}".removesuffix(".000"))
    console.print(table)
    _keep("memory", {"bf16_bytes": facts["bf16_bytes"]}, facts, console)


def metrics(console: Console, *, num_predictions: int) -> None:
    """Time the metrics over generated predictions, print both ways, keep runs/bench/metrics.json."""
    from llm_wrapper.evaluation.bench import compare

    found = compare(num_predictions)
    table = Table("predictions", "candidates", "seconds, with intervals", "plain loop, without", "peak MB", "equal")
    table.add_row(
        f"{found.num_predictions:,}",
        f"{found.num_candidates:,}",
        f"{found.seconds:.2f}",
        f"{found.loop_seconds:.2f}",
        f"{found.peak_bytes / 1e6:.0f}",
        "yes" if found.is_equal else "NO",
    )
    console.print(table)
    ratio = found.loop_seconds / found.seconds
    facts = {"ratio": ratio, **asdict(found), "versions": artifacts.versions()}
    _keep("metrics", {"predictions": num_predictions}, facts, console)


def _four_each(dataset: Dataset, num_images: int) -> list[Sample]:
    """Return four samples of each of the first images; where an image has fewer, with expressions of others."""
    of_image: dict[str, list[Sample]] = {}
    for sample in dataset.samples:
        if sample.image_path is not None and Path(sample.image_path).is_file():
            of_image.setdefault(sample.image_id, []).append(sample)
    chosen = list(of_image.values())[:num_images]
    if len(chosen) < num_images:
        raise DataError(
            f"{dataset.name} {dataset.split} has {len(chosen)} images on disk, {num_images} are wanted; name a data "
            "set with its images: make bench-detect DATA=mine DATA_ROOT=path/to/expressions.jsonl"
        )
    return [sample for samples in chosen for sample in _filled_up(samples, dataset.samples)]


def _filled_up(samples: Sequence[Sample], others: Sequence[Sample]) -> list[Sample]:
    known = {sample.expression for sample in samples}
    more = dict.fromkeys(other.expression for other in others if other.expression not in known)
    strangers = [
        replace(samples[0], sample_id=f"{samples[0].sample_id}/{number}", expression=expression, target=None)
        for number, expression in enumerate(more)
    ]
    return [*samples, *strangers][:_PER_IMAGE]
