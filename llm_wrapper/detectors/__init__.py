"""Detectors: image and expression -> detections."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detectors.base import Detector, Level, PaidDetector, Question, detect_sample, detections_from_raw
from llm_wrapper.errors import RecipeError, nearest
from llm_wrapper.recipe import DetectorSection, Recipe

__all__ = [
    "REGISTRY",
    "Detector",
    "Level",
    "PaidDetector",
    "Question",
    "create",
    "create_all",
    "detect_sample",
    "detections_from_raw",
]

REGISTRY = {
    "toy": "llm_wrapper.detectors.toy:create_toy",
    "toy-gray": "llm_wrapper.detectors.toy:create_toy_gray",
    "coco": "llm_wrapper.detectors.coco:create_coco",
    "coco-degraded": "llm_wrapper.detectors.coco:create_coco_degraded",
    "import": "llm_wrapper.detectors.imported:create",
    "florence2": "llm_wrapper.detectors.florence2:create_florence2",
    "grounding-dino": "llm_wrapper.detectors.grounding_dino:create_grounding_dino",
    "groundingdino-py": "llm_wrapper.detectors.groundingdino_py:create_groundingdino_py",
    "kosmos2": "llm_wrapper.detectors.kosmos2:create_kosmos2",
    "dds": "llm_wrapper.detectors.dds:create_dds",
}
"""Short name -> "module:factory"; imported on first use. A factory takes (settings, dataset)."""


def create(section: DetectorSection, dataset: Dataset) -> Detector:
    """Create the detector that a recipe names, for one split of a data set.

    Raises:
        RecipeError: If the name is unknown, or the detector does not take one of the settings.
    """
    if section.name not in REGISTRY:
        names = ", ".join(REGISTRY)
        raise RecipeError(f"no detector is named {section.name!r}{nearest(section.name, [*REGISTRY])} ({names})")
    module, _, factory = REGISTRY[section.name].partition(":")
    detector: Detector = getattr(import_module(module), factory)(section.settings, dataset)
    detector.name = section.label or detector.name
    return detector


def create_all(recipe: Recipe, dataset: Dataset) -> Sequence[Detector]:
    """Create the detectors of a recipe, its own first; of an ensemble there are several.

    Raises:
        RecipeError: As `create`, or if two have one name: their candidates could not be told apart.
    """
    created = [create(each.detector, dataset) for each in recipe.detectors()]
    names = [detector.name for detector in created]
    if len(set(names)) < len(names):
        raise RecipeError(f"detectors of an ensemble need names of their own, not {', '.join(names)}: set their label")
    return created
