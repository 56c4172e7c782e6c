"""What a recipe trains on: the samples of its data sets, without images that are evaluated on, in groups."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from llm_wrapper.datasets import leaks
from llm_wrapper.detections.samples import PreparedSample, PreparedSplit, load_prepared_split
from llm_wrapper.recipe import Recipe
from llm_wrapper.training.examples import Group, make_groups, unlabelled_groups

__all__ = ["Pool", "first_drawn", "gather", "not_evaluated"]


@dataclass(frozen=True)
class Pool:
    """Groups to train on, the samples left out by reason, and the sets that both came from.

    Groups without targets are there where the recipe asks for generated expressions first; they are of all images,
    whatever `train.limit` leaves of the annotations.
    """

    groups: Sequence[Group]
    left_out: dict[str, int]
    sets: Sequence[PreparedSplit]


def gather(recipe: Recipe) -> Pool:
    """Read all data sets that a recipe trains on and group what can be used.

    Raises:
        DataError: If annotations cannot be read.
        CacheError: If detections are not cached completely; the message names the command.
    """
    sets = [load_prepared_split(recipe, data, data.train_split) for data in recipe.training_data()]
    samples = not_evaluated(recipe, sets)
    drawn, none = first_drawn(samples, recipe.train.limit, seed=recipe.train.seed), recipe.prompt.none
    groups, left_out = make_groups(drawn, recipe.train, none=none)
    left_out["image_in_an_evaluation_split"] = sum(len(each.samples) for each in sets) - len(samples)
    if recipe.train.generated_steps:
        groups += unlabelled_groups(samples, recipe.train, none=none)
    return Pool(groups, left_out, sets)


def not_evaluated(recipe: Recipe, sets: Sequence[PreparedSplit]) -> list[PreparedSample]:
    """Return the samples of all sets whose image is in no evaluation split of any data set that is trained on."""
    pairs = list(zip(recipe.training_data(), (each.dataset for each in sets), strict=True))
    return [
        prepared
        for each, evaluated in zip(sets, leaks.evaluated_images(pairs), strict=True)
        for prepared in each.samples
        if prepared.sample.image_id not in evaluated
    ]


def first_drawn(samples: Sequence[PreparedSample], limit: int | None, *, seed: int) -> list[PreparedSample]:
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
