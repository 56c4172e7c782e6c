"""Time full-size detectors against the plain loop: one call per expression and task, equal answers (make bench-detect).

The weights are random, see `random_detectors`. Each image is asked four expressions, as in referring data sets.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import random_detectors
import torch
import typer
from measurements import DataRoot, compose_recipe, run_script, save_measurement
from rich.console import Console
from rich.table import Table

from llm_wrapper import datasets, images
from llm_wrapper.boxes import FloatArray, array
from llm_wrapper.datasets import Dataset
from llm_wrapper.detectors import Detector, detect_sample, florence2, joined, questions_about
from llm_wrapper.detectors.florence2 import FLORENCE2_TASKS, Florence2Detector, Florence2Settings
from llm_wrapper.detectors.grounding_dino import GroundingDinoDetector, GroundingDinoSettings
from llm_wrapper.detectors.grounding_dino_base import decode_answer, fit_expression, read_caption, score_answer
from llm_wrapper.errors import DataError
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Box, Detections, Sample
from llm_wrapper.terminal import open_console, say

PER_IMAGE = 4
BASELINES = {"florence2": "one call per expression and task", "grounding_dino": "one call per expression"}
_TASKS = ("rec", "grounding", "dense_caption", "od")
_NEW_TOKENS = 24
"""All answers have this length, about that of two labelled boxes: random weights would end them anywhere."""
_SAME_PIXELS = 1e-3


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds of both ways on the same questions, and whether all boxes (to 1e-3 pixels) and labels are the same.

    `where` gives the seconds that parts of the model took in our way.
    """

    seconds: float
    plain_seconds: float
    num_expressions: int
    num_detections: int
    largest_difference: float | None
    where: dict[str, float]

    @property
    def ratio(self) -> float:
        """How many times faster our way is."""
        return self.plain_seconds / self.seconds

    @property
    def is_equal(self) -> bool:
        """Whether both gave the same detections, and gave some."""
        difference = self.largest_difference
        return self.num_detections > 0 and difference is not None and difference <= _SAME_PIXELS


def compare_florence2(samples: Sequence[Sample], *, small: bool = False) -> Comparison:
    """Compare on all four tasks, with three beams.

    Args:
        samples: With image files; those of one image as neighbours.
        small: Toy models instead of full-size ones.
    """
    texts = [sample.expression for sample in samples]
    model, processor = random_detectors.florence2(texts, small=small)
    model.generation_config.min_new_tokens = _NEW_TOKENS - 1
    settings = Florence2Settings(model="random/florence-2", tasks=_TASKS, max_new_tokens=_NEW_TOKENS)
    detector = Florence2Detector(model, processor, settings)
    core = model.model
    parts = {
        "vision tower": core.vision_tower,
        "text encoder": core.language_model.encoder,
        "text decoder": core.language_model.decoder,
        "vocabulary": model.lm_head,
    }

    def plain(sample: Sample) -> Detections:
        return joined([_plain_florence2(sample, task, model, processor) for task in _TASKS])

    return _compare(detector, parts, samples, plain)


@torch.inference_mode()
def _plain_florence2(sample: Sample, task: str, model: Any, processor: Any) -> Detections:
    """Ask one task as the model's documentation does."""
    image, known = images.read_sample(sample), FLORENCE2_TASKS[task]
    text = known.prompt + (sample.expression if known.level == "expression" else "")
    inputs = processor(text=text, images=image, return_tensors="pt")
    ids = model.generate(**inputs, num_beams=3, max_new_tokens=_NEW_TOKENS, do_sample=False)
    answer = processor.batch_decode(ids, skip_special_tokens=False)[0]
    return florence2.read_florence2_answer(answer, task, image.size)


def compare_grounding_dino(samples: Sequence[Sample], *, small: bool = False) -> Comparison:
    """Compare in mode `gd`; see `compare_florence2` for the arguments."""
    texts = [sample.expression for sample in samples]
    model, processor = random_detectors.grounding_dino(texts, small=small)
    settings = GroundingDinoSettings(model="random/grounding-dino", mode="gd", box_threshold=0.0)
    detector = GroundingDinoDetector(model, processor, settings)
    core = model.model
    parts = {
        "image backbone": core.backbone,
        "text backbone": core.text_backbone,
        "encoder": core.encoder,
        "decoder": core.decoder,
    }

    @torch.inference_mode()
    def plain(sample: Sample) -> Detections:
        image = images.read_sample(sample)
        text, _ = fit_expression(sample.expression, processor.tokenizer, model.config.max_text_len)
        inputs = processor(images=image, text=f"{text}.", return_tensors="pt")
        answer = model(**inputs)
        tokens = processor.tokenizer(f"{text}.", return_offsets_mapping=True)
        read = read_caption(text, tokens["offset_mapping"], tokens.word_ids())
        raw = decode_answer(answer.logits[0].numpy(), answer.pred_boxes[0].numpy(), image.size)
        return score_answer(raw, read, None, settings)

    return _compare(detector, parts, samples, plain)


def _compare(
    detector: Detector, parts: Mapping[str, Any], samples: Sequence[Sample], plain: Callable[[Sample], Detections]
) -> Comparison:
    """Time both ways; each is warmed up on the first sample."""
    detect_sample(detector, samples[0])
    with _seconds_of(parts) as where:
        start = time.perf_counter()
        found = _shared(detector, samples)
        seconds = time.perf_counter() - start
    plain(samples[0])
    start = time.perf_counter()
    expected = [plain(sample) for sample in samples]
    plain_seconds = time.perf_counter() - start
    return Comparison(
        seconds=seconds,
        plain_seconds=plain_seconds,
        num_expressions=len(samples),
        num_detections=sum(len(answer.items) for answer in found),
        largest_difference=largest_difference(found, expected),
        where=dict(where),
    )


def _shared(detector: Detector, samples: Sequence[Sample]) -> list[Detections]:
    """Ask each question once, as the cache does: image by image, and join the answers about each sample."""
    first = {sample.image_id: sample for sample in samples}
    prepared = {image_id: detector.prepare(sample) for image_id, sample in first.items()}
    asked = {question.key: question for sample in samples for question in questions_about(sample, detector.levels)}
    answers = dict(zip(asked, detector.detect(list(asked.values()), prepared), strict=True))
    return [
        joined([answers[question.key] for question in questions_about(sample, detector.levels)]) for sample in samples
    ]


def largest_difference(found: Sequence[Detections], expected: Sequence[Detections]) -> float | None:
    """Return the largest distance of a box from the nearest one of its label and source that the other way gave.

    The order of detections is not compared: it follows scores, of which two can be as good as equal.

    Returns:
        Pixels, the largest over the four coordinates; None where labels, sources or counts differ.
    """
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        one, other = _by_label(ours), _by_label(theirs)
        if {name: len(boxes) for name, boxes in one.items()} != {name: len(boxes) for name, boxes in other.items()}:
            return None
        for name, boxes in one.items():
            distances = np.abs(boxes[:, None, :] - other[name][None, :, :]).max(axis=2)
            worst = max(worst, float(distances.min(axis=0).max()), float(distances.min(axis=1).max()))
    return worst


def _by_label(found: Detections) -> dict[tuple[str, str], FloatArray]:
    """Return label and source -> boxes (n, 4)."""
    rows: dict[tuple[str, str], list[Box]] = defaultdict(list)
    for item in found.items:
        rows[item.label, item.source].append(item.box)
    return {name: array(boxes) for name, boxes in rows.items()}


@contextmanager
def _seconds_of(parts: Mapping[str, Any]) -> Iterator[dict[str, float]]:
    """Add up the seconds that modules take while the block runs."""
    spent: dict[str, float] = defaultdict(float)
    started: dict[str, float] = {}

    def before(name: str) -> Any:
        return lambda *_: started.__setitem__(name, time.perf_counter())

    def after(name: str) -> Any:
        return lambda *_: spent.__setitem__(name, spent[name] + time.perf_counter() - started[name])

    handles = [module.register_forward_pre_hook(before(name)) for name, module in parts.items()]
    handles += [module.register_forward_hook(after(name)) for name, module in parts.items()]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def four_each(dataset: Dataset, num_images: int) -> list[Sample]:
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
    return [sample for samples in chosen for sample in _fill_up(samples, dataset.samples)]


def _fill_up(samples: Sequence[Sample], others: Sequence[Sample]) -> list[Sample]:
    known = {sample.expression for sample in samples}
    more = dict.fromkeys(other.expression for other in others if other.expression not in known)
    strangers = [
        replace(samples[0], sample_id=f"{samples[0].sample_id}/{number}", expression=expression, target=None)
        for number, expression in enumerate(more)
    ]
    return [*samples, *strangers][:PER_IMAGE]


def bench_detect(recipe: Recipe, console: Console, *, num_images: int) -> None:
    """Measure both detectors, print ratios and where the time is spent, write runs/bench/detect.json."""
    samples = four_each(datasets.load_dataset(recipe.data, recipe.data.eval_split), num_images)
    found: dict[str, Comparison] = {}
    for name, compare in (("florence2", compare_florence2), ("grounding_dino", compare_grounding_dino)):
        say(console, f"{name}: {len(samples)} expressions about {num_images} images, both ways ...")
        found[name] = compare(samples)
    columns = ("detector", "baseline", "expressions/s", "baseline's", "ratio", "same answers")
    table = Table(*columns, title="detection, random weights")
    parts = Table("detector", "part", "seconds", "share", title="seconds by part of the model")
    for name, each in found.items():
        rates = (f"{each.num_expressions / seconds:.3f}" for seconds in (each.seconds, each.plain_seconds))
        table.add_row(name, BASELINES[name], *rates, f"{each.ratio:.2f}", "yes" if each.is_equal else "NO")
        for part, seconds in each.where.items():
            parts.add_row(name, part, f"{seconds:.1f}", f"{seconds / each.seconds:.0%}")
    console.print(table)
    console.print(parts)
    facts = {name: {"ratio": each.ratio, "equal": each.is_equal, **asdict(each)} for name, each in found.items()}
    question = {"data": recipe.data.model_dump(mode="json"), "images": num_images}
    save_measurement("detect", question, {**facts, "num_images": num_images}, console)


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, the value in YAML.")] = None,
    *,
    data: Annotated[str, typer.Option(help="Data set with its images: a file of recipes/data.")] = "toy",
    data_root: DataRoot = None,
    images: Annotated[int, typer.Option(min=1, help="Images, each with four expressions.")] = 2,
) -> None:
    """Time full-size Florence-2 and Grounding-DINO (random weights) against the plain loop; answers must be equal."""
    recipe = compose_recipe({"vlm": "toy", "llm": "rule", "data": data}, overrides or [], data_root)
    bench_detect(recipe, open_console(), num_images=images)


if __name__ == "__main__":
    run_script(main)
