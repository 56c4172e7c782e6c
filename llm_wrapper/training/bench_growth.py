"""Time per expression of training and scoring for growing data sets and growing numbers of candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_wrapper.clock import Clock
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.llms.bench import agreement, largest_difference
from llm_wrapper.llms.load import LoadedLLM, load_model
from llm_wrapper.llms.score import score
from llm_wrapper.prompts.render import render
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Answer, Prompt
from llm_wrapper.training import bench, trainer
from llm_wrapper.training.collator import Collator
from llm_wrapper.training.examples import make_groups, schedule_groups

__all__ = ["Sameness", "measure_candidates", "prepare", "same_answers"]

_STEPS = 2


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


def prepare(llm: LoadedLLM, samples: Sequence[PreparedSample], recipe: Recipe, *, clock: Clock) -> None:
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
    prompts = [render(each.sample, each.built.candidates, recipe.prompt.format) for each in samples]
    first = {each.sample.image_id: prompt for each, prompt in zip(reversed(samples), reversed(prompts), strict=True)}
    asked = {"shared": prompts, "single": list(first.values())[::-1]}
    for name, some in asked.items():
        list(score(llm, some[:2]))
        clock.timed(name, lambda some=some: list(score(llm, some)))  # type: ignore[misc]
    found = {name: clock.seconds[name] / len(some) for name, some in asked.items()}
    num_tokens = sum(len(llm.encoder.encode(prompt)) for prompt in prompts)
    return {"tokens": num_tokens / len(prompts), **found, "training": _step(llm, samples, recipe, folder)}


def _step(llm: LoadedLLM, samples: Sequence[PreparedSample], recipe: Recipe, folder: Path) -> float:
    """Train for some steps; return the seconds per expression."""
    section = recipe.train
    groups = make_groups(samples, section)[0][: (1 + _STEPS) * section.groups_per_step]
    watch = bench._ours(llm, groups, recipe, folder)
    return watch.seconds / (_STEPS * section.groups_per_step * section.expressions_per_group)
