"""Time each step of an evaluation and a training on crowds of different sizes, to find what grows faster than them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crowds
from measurements import Clock
from score import agreement, largest_difference
from train import train_packed

from llm_wrapper.datasets import Dataset, jsonl
from llm_wrapper.detections.cache import DetectionCache
from llm_wrapper.detections.contents import identity_of
from llm_wrapper.detections.fill import fill_cache
from llm_wrapper.detections.samples import PreparedSample, prepare_candidates
from llm_wrapper.detectors import Level, Question
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation import systems
from llm_wrapper.llms.base import LLM
from llm_wrapper.llms.load import LoadedLLM, load_model
from llm_wrapper.llms.local import score_prompts
from llm_wrapper.metrics import Summary, summarize
from llm_wrapper.prompts.render import PromptBuilder, render_prompt
from llm_wrapper.recipe import PromptSection, Recipe
from llm_wrapper.records import Answer, Detection, Detections, Prediction, Prompt, Sample
from llm_wrapper.training import trainer
from llm_wrapper.training.collator import Collator
from llm_wrapper.training.examples import make_groups, schedule_groups

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


def make_crowds(num_images: int, num_things: int, num_expressions: int) -> list[crowds.Crowd]:
    """Make the first crowds of a size; those of fewer images are the first of more."""
    return [crowds.make_crowd(number, num_things, num_expressions) for number in range(num_images)]


def _detections(found: Sequence[crowds.Crowd]) -> dict[str, Detections]:
    return {
        crowd.image_id: Detections(
            tuple(Detection(thing.box, f"{thing.color} {thing.shape}", 0.5, "detect") for thing in crowd.things)
        )
        for crowd in found
    }


def prepare_samples(
    chosen: Sequence[crowds.Crowd], folder: Path, recipe: Recipe, *, limit: int, clock: Clock
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
    crowds.write(path, iter(chosen), limit=limit)
    dataset = clock.timed("read the data set", lambda: jsonl.load_jsonl(path, "val"))
    finder = _Finder(_detections(chosen))
    clock.timed("cache detections", lambda: fill_cache(finder, dataset, folder / "cache", progress=False))
    return clock.timed("build candidates", lambda: _samples(finder, dataset, folder / "cache", recipe))


def _samples(finder: _Finder, dataset: Dataset, folder: Path, recipe: Recipe) -> list[PreparedSample]:
    cache = DetectionCache.open_complete(folder, identity_of(finder, dataset))
    return [
        PreparedSample(sample, prepare_candidates(recipe, sample, [cache.lookup(sample)], [finder.name]))
        for sample in dataset.samples
    ]


class UniformLLM:
    """Answers without looking: for sizes where the LLM is not asked."""

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return equal probabilities for each prompt."""
        return [Answer((1 / len(prompt.candidates),) * len(prompt.candidates), 1.0) for prompt in prompts]


class _RecordedLLM:
    """Repeats the answers that an LLM gave before."""

    def __init__(self, answers: list[Answer]) -> None:
        self._answers = answers

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        return self._answers


def evaluate(
    samples: Sequence[PreparedSample], recipe: Recipe, folder: Path, *, llm: LLM, clock: Clock
) -> tuple[list[Answer], list[Prompt]]:
    """Build the prompts, ask the LLM, decide by every system, keep the predictions, compute metrics.

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
        "build the prompts",
        lambda: [render_prompt(each.sample, each.built.candidates, prompt_format) for each in samples],
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
        *systems.by_llm(samples, "LLM", PromptBuilder(PromptSection(format=prompt_format)), _RecordedLLM(answers)),
        *systems.by_oracle(samples),
    ]


def _summaries(rows: Sequence[Prediction]) -> list[Summary]:
    names = dict.fromkeys(row.system for row in rows)
    return [summarize([row for row in rows if row.system == name]) for name in names]


STEPS = 2


@dataclass(frozen=True, slots=True)
class Sameness:
    """Whether the first answers are the same, however many questions are asked together with them.

    Attributes:
        num_answers: How many are compared.
        of: The numbers of questions that were asked together, on either side.
        same_choice: The share that chooses the same candidate.
        largest_difference: Of any probability.
    """

    num_answers: int
    of: tuple[int, int]
    same_choice: float
    largest_difference: float | None


def same_answers(prompts: Sequence[Prompt], few: Sequence[Answer], many: Sequence[Answer], *, most: int) -> Sameness:
    """Compare the first `most` answers of a small set with those of a larger one that begins with the same prompts."""
    count = min(most, len(few))
    ours, theirs = few[:count], many[:count]
    same = agreement(prompts[:count], ours, theirs)
    return Sameness(count, (len(few), len(many)), same, largest_difference(ours, theirs))


def prepare_training(llm: LoadedLLM, samples: Sequence[PreparedSample], recipe: Recipe, *, clock: Clock) -> None:
    """Do all of a training that is done before and between its steps, and note how long each part takes."""
    groups, _ = clock.timed("group the samples", lambda: make_groups(samples, recipe.train))
    fitting, _ = clock.timed("measure the prompts", lambda: trainer.fit_to_length(llm, groups, recipe))
    rows = clock.timed("schedule", lambda: schedule_groups(fitting, recipe.train))
    collate, size = Collator(llm, fitting, recipe), recipe.train.groups_per_step
    batches = [
        [{"epoch": epoch, "group": place} for epoch, place in rows[start : start + size]]
        for start in range(0, len(rows), size)
    ]
    clock.timed("make all batches", lambda: [len(collate(batch)["parts"]) for batch in batches])


def measure_candidates(samples: Sequence[PreparedSample], recipe: Recipe, folder: Path) -> dict[str, float]:
    """Return seconds per expression for samples that have equally many candidates, and tokens per prompt.

    Scoring is timed with all expressions of an image (`shared`) and with the first one of each (`single`), after a
    first batch; training over two steps after a first one.

    Args:
        samples: Those of one image as neighbours, at least three steps of groups.
        recipe: Gives the LLM, the prompt format, and what a step of training holds.
        folder: The trainer logs here; no adapter is kept.
    """
    llm, clock = load_model(recipe.llm), Clock()
    prompts = [render_prompt(each.sample, each.built.candidates, recipe.prompt.format) for each in samples]
    first = {each.sample.image_id: prompt for each, prompt in zip(reversed(samples), reversed(prompts), strict=True)}
    asked = {"shared": prompts, "single": list(first.values())[::-1]}
    for name, some in asked.items():
        list(score_prompts(llm, some[:2]))
        clock.timed(name, lambda some=some: list(score_prompts(llm, some)))  # type: ignore[misc]
    found = {name: clock.seconds[name] / len(some) for name, some in asked.items()}
    num_tokens = sum(len(llm.encoder.encode(prompt)) for prompt in prompts)
    return {"tokens": num_tokens / len(prompts), **found, "training": _step(llm, samples, recipe, folder)}


def _step(llm: LoadedLLM, samples: Sequence[PreparedSample], recipe: Recipe, folder: Path) -> float:
    """Train for some steps; return the seconds per expression."""
    section = recipe.train
    groups = make_groups(samples, section)[0][: (1 + STEPS) * section.groups_per_step]
    watch = train_packed(llm, groups, recipe, folder)
    return watch.seconds / (STEPS * section.groups_per_step * section.expressions_per_group)
