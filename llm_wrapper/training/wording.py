"""The wording of a recipe: what turns its questions into prompts, with the training expressions shown as examples."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_wrapper import artifacts
from llm_wrapper.detections.samples import PreparedSample, PreparedSplit, load_prepared_split
from llm_wrapper.errors import DataError, RecipeError, shell_word
from llm_wrapper.prompts import instruction
from llm_wrapper.prompts.examples import Chooser, Exemplar, draw, fixed, with_examples
from llm_wrapper.prompts.lexical import Lexical
from llm_wrapper.prompts.retrieve import Embed, nearest
from llm_wrapper.prompts.words import Worder, plain
from llm_wrapper.recipe import PromptSection, Recipe
from llm_wrapper.training.examples import make_groups
from llm_wrapper.training.pool import first_drawn, not_evaluated

__all__ = ["Wording", "exemplars", "require_trainable", "wording_of"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wording:
    """What words the questions of a recipe, and what is to be kept of where its examples came from."""

    word: Worder
    facts: dict[str, Any] = field(default_factory=dict)


def wording_of(recipe: Recipe) -> Wording:
    """Return what words the questions of a recipe; reads its training split where it shows examples.

    Raises:
        PromptError: If the instruction cannot be used.
        DataError: If no training expression can be shown.
        CacheError: If the training split's detections are not cached; the message names the command.
        ModelError: If the embedder cannot be loaded.
    """
    section = recipe.prompt
    word = plain(section.model_copy(update={"examples": 0}))
    if not section.examples:
        return Wording(word)
    sets = [load_prepared_split(recipe, data, data.train_split) for data in recipe.training_data()]
    pool = exemplars(recipe, sets)
    _log.info("%d training expressions of %s to take examples from", len(pool), recipe.data.name)
    facts = {
        "pool": len(pool),
        "sets": [
            {"name": each.dataset.name, "split": each.dataset.split, "annotations": each.dataset.digest}
            | {"detections": artifacts.digest_value(each.identity)}
            for each in sets
        ],
    }
    if not section.retrieve:  # one more is drawn, for questions about one of these pictures
        shown = draw(pool, section.examples + 1, seed=recipe.train.seed)
        facts["examples"] = [each.sample.sample_id for each in shown]
    return Wording(with_examples(word, section, _chooser(recipe, pool)), facts)


def exemplars(recipe: Recipe, sets: Sequence[PreparedSplit]) -> list[Exemplar]:
    """Return the training expressions that can be shown as examples: those that could be trained on.

    None is of an image that is in an evaluation split, and `train.limit` is the most that are used.

    Args:
        recipe: Gives limit, seed and the fewest candidates.
        sets: The training splits, one for each of `recipe.training_data()`.

    Raises:
        DataError: If there is none.
    """
    samples: list[PreparedSample] = first_drawn(not_evaluated(recipe, sets), recipe.train.limit, seed=recipe.train.seed)
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
        instruction.require(section.instruction)
    if section.examples or section.reasoning_tokens:
        raise RecipeError(
            f"an LLM is trained on format and instruction alone, not with {section.summary}: train without, then "
            "evaluate the run with it: make eval RUN=... PROMPT=in-context"
        )


def _chooser(recipe: Recipe, pool: Sequence[Exemplar]) -> Chooser:
    section = recipe.prompt
    if not section.retrieve:
        return fixed(pool, section.examples, seed=recipe.train.seed)
    return nearest(pool, section.examples, _embed(section.embedder, pool))


def _embed(name: str, pool: Sequence[Exemplar]) -> Embed:
    if name == "lexical":
        return Lexical([each.sample.expression for each in pool])
    from llm_wrapper.llms.embed import SentenceEmbedder

    return SentenceEmbedder(name)
