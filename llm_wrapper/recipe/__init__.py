"""Recipes: one short YAML file per choice, composed by name and validated at once."""

from llm_wrapper.recipe.compose import KINDS, Recipe, compose, load_recipe, load_resolved, prompt_of
from llm_wrapper.recipe.files import available
from llm_wrapper.recipe.sections import (
    DataSection,
    DetectorSection,
    EnsembleSection,
    LLMSection,
    LoraSection,
    OtherData,
    OtherDetector,
    PromptSection,
    SearchSection,
    ServerSection,
    TrainSection,
)

__all__ = [
    "KINDS",
    "DataSection",
    "DetectorSection",
    "EnsembleSection",
    "LLMSection",
    "LoraSection",
    "OtherData",
    "OtherDetector",
    "PromptSection",
    "Recipe",
    "SearchSection",
    "ServerSection",
    "TrainSection",
    "available",
    "compose",
    "load_recipe",
    "load_resolved",
    "prompt_of",
]
