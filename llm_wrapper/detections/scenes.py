"""Sample + cached detections -> sample + candidates: what training and evaluation both start from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_wrapper import candidates, datasets, detectors
from llm_wrapper.candidates import BuiltCandidates
from llm_wrapper.datasets import Dataset
from llm_wrapper.detections.cache import DetectionCache, identity_of
from llm_wrapper.recipe import DataSection, Recipe
from llm_wrapper.records import Sample

__all__ = ["Scene", "SceneSet", "cache_folder", "load_scenes"]

ROOT = Path("data/detections")


@dataclass(frozen=True, slots=True)
class Scene:
    """A sample with the candidates that may be chosen for it, in shown order."""

    sample: Sample
    built: BuiltCandidates


@dataclass(frozen=True)
class SceneSet:
    """All samples of a split with their candidates, and where they came from.

    `dropped` counts detections that did not become candidates, by reason, over all samples.
    """

    scenes: Sequence[Scene]
    dataset: Dataset
    cache: DetectionCache
    dropped: dict[str, int]


def cache_folder(detector: str, data: DataSection, split: str) -> Path:
    """Return the folder of the cached detections of a detector on a split."""
    return ROOT / detector / data.name / split


def load_scenes(recipe: Recipe, data: DataSection, split: str, *, limit: int | None = None) -> SceneSet:
    """Read a split and its cached detections, and build the candidates of each sample.

    Args:
        recipe: Gives the detector and the candidate policy.
        data: The data set, one of `recipe.training_data()`.
        split: Name of the split.
        limit: Use only the first samples.

    Raises:
        CacheError: If the detections are not cached completely; the message names the command.
    """
    dataset = datasets.load(data, split)
    detector = detectors.create(recipe.detector, dataset)
    cache = DetectionCache.open_complete(cache_folder(detector.name, data, split), identity_of(detector, dataset))
    dropped: Counter[str] = Counter()
    scenes = []
    for sample in dataset.samples[:limit]:
        built = candidates.build(
            cache.lookup(sample),
            sample.image_wh,
            recipe.candidates,
            detector=detector.name,
            rng=candidates.order_rng(recipe.train.seed, sample.sample_id),
        )
        dropped.update(built.counts)
        scenes.append(Scene(sample, built))
    return SceneSet(scenes, dataset, cache, dict(dropped))
