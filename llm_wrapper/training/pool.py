"""What a recipe trains on: the samples of its data sets, without images that are evaluated on, in groups."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from llm_wrapper import storage
from llm_wrapper.datasets import leaks
from llm_wrapper.detections.samples import PreparedSample, PreparedSplit, load_prepared_split
from llm_wrapper.errors import DataError, RecipeError, shell_word
from llm_wrapper.prompts.builder import PromptBuilder
from llm_wrapper.prompts.examples import (
    Embed,
    ExampleSelector,
    Exemplar,
    FixedExamples,
    NearestExamples,
    draw_examples,
    fit_tfidf,
)
from llm_wrapper.prompts.text import require_instruction
from llm_wrapper.recipe import PromptSection, Recipe
from llm_wrapper.training.examples import Group, make_groups, make_unlabelled_groups

__all__ = [
    "TrainingPool",
    "draw_samples",
    "exclude_evaluated",
    "load_exemplars",
    "load_prompt_builder",
    "load_training_pool",
    "require_trainable",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingPool:
    """Groups to train on, the samples left out by reason, and the sets that both came from.

    Groups without targets are there where the recipe asks for generated expressions first; they are of all images,
    whatever `train.limit` leaves of the annotations.
    """

    groups: Sequence[Group]
    left_out: dict[str, int]
    sets: Sequence[PreparedSplit]


def load_training_pool(recipe: Recipe) -> TrainingPool:
    """Read all data sets that a recipe trains on and group what can be used.

    Raises:
        DataError: If annotations cannot be read.
        CacheError: If detections are not cached completely; the message names the command.
    """
    sets = [load_prepared_split(recipe, data, data.train_split) for data in recipe.training_data()]
    samples = exclude_evaluated(recipe, sets)
    drawn, none = draw_samples(samples, recipe.train.limit, seed=recipe.train.seed), recipe.prompt.none
    groups, left_out = make_groups(drawn, recipe.train, none=none)
    left_out["image_in_an_evaluation_split"] = sum(len(each.samples) for each in sets) - len(samples)
    if recipe.train.generated_steps:
        groups += make_unlabelled_groups(samples, recipe.train, none=none)
    return TrainingPool(groups, left_out, sets)


def exclude_evaluated(recipe: Recipe, sets: Sequence[PreparedSplit]) -> list[PreparedSample]:
    """Return the samples of all sets whose image is in no evaluation split of any data set that is trained on."""
    pairs = list(zip(recipe.training_data(), (each.dataset for each in sets), strict=True))
    return [
        prepared
        for each, evaluated in zip(sets, leaks.find_evaluated_images(pairs), strict=True)
        for prepared in each.samples
        if prepared.sample.image_id not in evaluated
    ]


def draw_samples(samples: Sequence[PreparedSample], limit: int | None, *, seed: int) -> list[PreparedSample]:
    """Draw `limit` samples, image by image; a smaller limit draws a subset of a larger one.

    Images are taken in an order that hangs on the seed and their ids alone: the first ones of a file may be of one
    kind, and a curve over nested subsets shows what more samples add rather than what other samples are. What is kept
    stays in its order, so that a limit that leaves nothing out changes nothing.
    """
    if limit is None:
        return list(samples)

    def drawn(place: int) -> tuple[bytes, int]:
        return hashlib.sha256(f"{seed}/{samples[place].sample.image_id}".encode()).digest(), place

    kept = sorted(sorted(range(len(samples)), key=drawn)[:limit])
    return [samples[place] for place in kept]


def load_prompt_builder(recipe: Recipe) -> PromptBuilder:
    """Load the prompt builder of a recipe; it reads the training split where it shows examples.

    Raises:
        PromptError: If the instruction cannot be used.
        DataError: If no training expression can be shown.
        CacheError: If the training split's detections are not cached; the message names the command.
        ModelError: If the embedder cannot be loaded.
    """
    section = recipe.prompt
    if not section.examples:
        return PromptBuilder(section)
    if section.instruction is not None:
        require_instruction(section.instruction)
    sets = [load_prepared_split(recipe, data, data.train_split) for data in recipe.training_data()]
    pool = load_exemplars(recipe, sets)
    _log.info("%d training expressions of %s to take examples from", len(pool), recipe.data.name)
    facts = {
        "pool": len(pool),
        "sets": [
            {"name": each.dataset.name, "split": each.dataset.split, "annotations": each.dataset.digest}
            | {"detections": storage.digest_value(each.identity)}
            for each in sets
        ],
    }
    if not section.retrieve:  # one more is drawn, for questions about one of these pictures
        shown = draw_examples(pool, section.examples + 1, seed=recipe.train.seed)
        facts["examples"] = [each.sample.sample_id for each in shown]
    return PromptBuilder(section, _selector(recipe, pool), facts)


def load_exemplars(recipe: Recipe, sets: Sequence[PreparedSplit]) -> list[Exemplar]:
    """Return the training expressions that can be shown as examples: those that could be trained on.

    None is of an image that is in an evaluation split, and `train.limit` is the most that are used.

    Args:
        recipe: Gives limit, seed and the fewest candidates.
        sets: The training splits, one for each of `recipe.training_data()`.

    Raises:
        DataError: If there is none.
    """
    samples: list[PreparedSample] = draw_samples(
        exclude_evaluated(recipe, sets), recipe.train.limit, seed=recipe.train.seed
    )
    groups, left_out = make_groups(samples, recipe.train, none=recipe.prompt.none)
    found = [
        Exemplar(sample, group.candidates, target)
        for group in groups
        for sample, target in zip(group.samples, group.targets, strict=True)
    ]
    if found:
        return found
    data = recipe.data
    raise DataError(
        f"none of the {sum(len(each.samples) for each in sets)} expressions of {data.name} {data.train_split} can be "
        f"shown as an example (prompt.examples={recipe.prompt.examples}): {left_out or 'all are of evaluated images'}. "
        f"See what is there with: make data-check DATA={shell_word(data.name)}; or set prompt.examples=0"
    )


def require_trainable(section: PromptSection) -> None:
    """Refuse to train with what only an LLM that is not trained is asked with.

    Raises:
        RecipeError: If there are examples, or reasoning.
        PromptError: If the instruction cannot be used.
    """
    if section.instruction is not None:
        require_instruction(section.instruction)
    if section.examples or section.reasoning_tokens:
        raise RecipeError(
            f"an LLM is trained on format and instruction alone, not with {section.summary}: train without, then "
            "evaluate the run with it: make eval RUN=... PROMPT=in-context"
        )


def _selector(recipe: Recipe, pool: Sequence[Exemplar]) -> ExampleSelector:
    section = recipe.prompt
    if not section.retrieve:
        return FixedExamples(pool, section.examples, seed=recipe.train.seed)
    return NearestExamples(pool, section.examples, _embed(section.embedder, pool))


def _embed(name: str, pool: Sequence[Exemplar]) -> Embed:
    if name == "lexical":
        return fit_tfidf([each.sample.expression for each in pool])
    from llm_wrapper.llms.embed import SentenceEmbedder

    return SentenceEmbedder(name)
