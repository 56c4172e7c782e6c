"""Time of each step of an evaluation around the LLM, for data sets of different sizes: where a square would hide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_wrapper.clock import Clock
from llm_wrapper.datasets import Dataset, jsonl, toy_crowds
from llm_wrapper.detections.cache import DetectionCache
from llm_wrapper.detections.fill import fill
from llm_wrapper.detections.identity import identity_of
from llm_wrapper.detections.samples import PreparedSample, build
from llm_wrapper.detectors.base import Level, Question
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation import systems
from llm_wrapper.llms.base import LLM
from llm_wrapper.metrics import Summary, summarize
from llm_wrapper.prompts.builder import PromptBuilder
from llm_wrapper.prompts.render import render
from llm_wrapper.recipe import PromptSection, Recipe
from llm_wrapper.records import Answer, Detection, Detections, Prediction, Prompt, Sample

__all__ = ["EXPRESSIONS", "THINGS", "UniformLLM", "crowds", "evaluate", "made"]

THINGS = 8
EXPRESSIONS = 4
"""Things and expressions of an image, where the number of expressions is what grows."""


class _Finder:
    """Finds the things of crowds as they are, asked once an image; there is no picture to look at."""

    name = "crowds"
    levels: tuple[Level, ...] = ("image",)
    reads_images = False

    def __init__(self, found: Mapping[str, Detections]) -> None:
        self._found = found

    def identity(self) -> dict[str, Any]:
        return {}

    def prepare(self, sample: Sample) -> None:
        """Read nothing."""

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        return [self._found[question.sample.image_id] for question in questions]


def crowds(num_images: int, num_things: int, num_expressions: int) -> list[toy_crowds.Crowd]:
    """Make the first crowds of a size; those of fewer images are the first of more."""
    return [toy_crowds.make_crowd(number, num_things, num_expressions) for number in range(num_images)]


def _detections(found: Sequence[toy_crowds.Crowd]) -> dict[str, Detections]:
    return {
        crowd.image_id: Detections(
            tuple(Detection(thing.box, f"{thing.color} {thing.shape}", 0.5, "detect") for thing in crowd.things)
        )
        for crowd in found
    }


def made(
    chosen: Sequence[toy_crowds.Crowd], folder: Path, recipe: Recipe, *, limit: int, clock: Clock
) -> list[PreparedSample]:
    """Take crowds the way of every data set: written, read, detected, cached, and built into candidates.

    Args:
        chosen: The images.
        folder: The annotations and the cache are written here.
        recipe: Gives the policy of the candidates.
        limit: Most expressions of all images together.
        clock: Notes the seconds.
    """
    path = folder / "crowds.jsonl"
    toy_crowds.write(path, iter(chosen), limit=limit)
    dataset = clock.timed("read the data set", lambda: jsonl.load_jsonl(path, "val"))
    finder = _Finder(_detections(chosen))
    clock.timed("cache detections", lambda: fill(finder, dataset, folder / "cache", progress=False))
    return clock.timed("build candidates", lambda: _samples(finder, dataset, folder / "cache", recipe))


def _samples(finder: _Finder, dataset: Dataset, folder: Path, recipe: Recipe) -> list[PreparedSample]:
    cache = DetectionCache.open_complete(folder, identity_of(finder, dataset))
    return [
        PreparedSample(sample, build(recipe, sample, [cache.lookup(sample)], [finder.name]))
        for sample in dataset.samples
    ]


class UniformLLM:
    """Answers without looking: for sizes where the LLM is not asked."""

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return equal probabilities for each prompt."""
        return [Answer((1 / len(prompt.candidates),) * len(prompt.candidates), 1.0) for prompt in prompts]


class _Answered:
    """Gives the answers that an LLM gave before."""

    def __init__(self, answers: list[Answer]) -> None:
        self._answers = answers

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        return self._answers


def evaluate(
    samples: Sequence[PreparedSample], recipe: Recipe, folder: Path, *, llm: LLM, clock: Clock
) -> tuple[list[Answer], list[Prompt]]:
    """Word the prompts, ask, decide by every system, keep the predictions, compute metrics.

    Args:
        samples: All with at least two candidates, those of one image as neighbours.
        recipe: Gives the prompt format.
        folder: The predictions are written here.
        llm: Answers the prompts; it is timed as "ask the LLM".
        clock: Notes the seconds.

    Returns:
        The answers and the prompts.
    """
    prompt_format = recipe.prompt.format
    prompts = clock.timed(
        "build the prompts", lambda: [render(each.sample, each.built.candidates, prompt_format) for each in samples]
    )
    answers = clock.timed("ask the LLM", lambda: llm.answer(prompts))
    rows = clock.timed("decide, four systems", lambda: _rows(samples, prompt_format, answers))
    path = folder / "predictions-val.parquet"
    clock.timed("save predictions", lambda: files.save_predictions(path, rows))
    loaded = clock.timed("load predictions", lambda: files.load_predictions(path))
    clock.timed("metrics with intervals", lambda: _summaries(loaded))
    return answers, prompts


def _rows(samples: Sequence[PreparedSample], prompt_format: str, answers: list[Answer]) -> list[Prediction]:
    return [
        *systems.by_detector(samples),
        *systems.by_rule(samples),
        *systems.by_llm(samples, "LLM", PromptBuilder(PromptSection(format=prompt_format)), _Answered(answers)),
        *systems.by_oracle(samples),
    ]


def _summaries(rows: Sequence[Prediction]) -> list[Summary]:
    names = dict.fromkeys(row.system for row in rows)
    return [summarize([row for row in rows if row.system == name]) for name in names]
