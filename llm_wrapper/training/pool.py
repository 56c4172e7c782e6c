"""Collect the training expressions of a recipe: groups to train on, or few-shot examples to show.

data sets --exclude_evaluated--> --draw_samples(train.limit)--> groups to train on, or exemplars of a PromptBuilder
"""

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
    """Groups to train on, skipped samples by reason, and the splits that both came from.

    With `train.generated_steps` there are groups without targets too, of all images whatever `train.limit` is.
    """

    groups: Sequence[Group]
    skipped: dict[str, int]
    sets: Sequence[PreparedSplit]


def load_training_pool(recipe: Recipe) -> TrainingPool:
    """Read all data sets that a recipe trains on and group their usable samples.

    Raises:
        DataError: If annotations cannot be read.
        CacheError: If detections are not cached completely; the message names the command.
    """
    sets = [load_prepared_split(recipe, data, data.train_split) for data in recipe.training_data()]
    samples = exclude_evaluated(recipe, sets)
    drawn, none = draw_samples(samples, recipe.train.limit, seed=recipe.train.seed), recipe.prompt.none
    groups, skipped = make_groups(drawn, recipe.train, none=none)
    skipped["image_in_an_evaluation_split"] = sum(len(each.samples) for each in sets) - len(samples)
    if recipe.train.generated_steps:
        groups += make_unlabelled_groups(samples, recipe.train, none=none)
    return TrainingPool(groups, skipped, sets)


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
    """Draw `limit` samples, image by image, by the seed; a smaller limit draws a subset of a larger one.

    A learning curve over nested subsets shows the effect of more samples rather than of other ones. The samples keep
    their order.
    """
    if limit is None:
        return list(samples)

    def key(i: int) -> tuple[bytes, int]:
        return hashlib.sha256(f"{seed}/{samples[i].sample.image_id}".encode()).digest(), i

    return [samples[i] for i in sorted(sorted(range(len(samples)), key=key)[:limit])]


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
    if not section.retrieve:  # one more is drawn, see FixedExamples
        shown = draw_examples(pool, section.examples + 1, seed=recipe.train.seed)
        facts["examples"] = [each.sample.sample_id for each in shown]
    return PromptBuilder(section, _selector(recipe, pool), facts)


def load_exemplars(recipe: Recipe, sets: Sequence[PreparedSplit]) -> list[Exemplar]:
    """Return up to `train.limit` training expressions to show as examples: those that could be trained on.

    Raises:
        DataError: If there is none.
    """
    samples = draw_samples(exclude_evaluated(recipe, sets), recipe.train.limit, seed=recipe.train.seed)
    groups, skipped = make_groups(samples, recipe.train, none=recipe.prompt.none)
    exemplars = [
        Exemplar(sample, group.candidates, target)
        for group in groups
        for sample, target in zip(group.samples, group.targets, strict=True)
    ]
    if exemplars:
        return exemplars
    data = recipe.data
    raise DataError(
        f"none of the {sum(len(each.samples) for each in sets)} expressions of {data.name} {data.train_split} can be "
        f"shown as an example (prompt.examples={recipe.prompt.examples}): {skipped or 'all are of evaluated images'}. "
        f"See what is there with: make data-check DATA={shell_word(data.name)}; or set prompt.examples=0"
    )


def require_trainable(section: PromptSection) -> None:
    """Refuse to train with examples or reasoning (RecipeError), or with an unusable instruction (PromptError)."""
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
    if section.embedder == "lexical":
        return NearestExamples(pool, section.examples, fit_tfidf([each.sample.expression for each in pool]))
    from llm_wrapper.llms.embed import SentenceEmbedder

    return NearestExamples(pool, section.examples, SentenceEmbedder(section.embedder))
