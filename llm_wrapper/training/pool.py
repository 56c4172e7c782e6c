"""What a recipe trains on: the samples of its data sets, without images that are evaluated on, in groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_wrapper.datasets import leaks
from llm_wrapper.detections.scenes import Scene, SceneSet, load_scenes
from llm_wrapper.recipe import Recipe
from llm_wrapper.training.examples import Group, make_groups

__all__ = ["Pool", "gather", "not_evaluated"]


@dataclass(frozen=True)
class Pool:
    """Groups to train on, the samples left out by reason, and the sets that both came from."""

    groups: Sequence[Group]
    left_out: dict[str, int]
    sets: Sequence[SceneSet]


def gather(recipe: Recipe) -> Pool:
    """Read all data sets that a recipe trains on and group what can be used.

    Raises:
        DataError: If annotations cannot be read.
        CacheError: If detections are not cached completely; the message names the command.
    """
    sets = [load_scenes(recipe, data, data.train_split) for data in recipe.training_data()]
    scenes = not_evaluated(recipe, sets)
    groups, left_out = make_groups(scenes[: recipe.train.limit], recipe.train)
    left_out["image_in_an_evaluation_split"] = sum(len(each.scenes) for each in sets) - len(scenes)
    return Pool(groups, left_out, sets)


def not_evaluated(recipe: Recipe, sets: Sequence[SceneSet]) -> list[Scene]:
    """Return the scenes of all sets whose image is in no evaluation split of any data set that is trained on."""
    pairs = list(zip(recipe.training_data(), (each.dataset for each in sets), strict=True))
    return [
        scene
        for each, evaluated in zip(sets, leaks.evaluated_images(pairs), strict=True)
        for scene in each.scenes
        if scene.sample.image_id not in evaluated
    ]
