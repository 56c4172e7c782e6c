"""Recipes: one short YAML file per choice, composed by name and validated at once."""

from llm_wrapper.recipe.compose import Recipe, compose, load_recipe, load_resolved, prompt_of
from llm_wrapper.recipe.files import (
    RECIPE_KINDS,
    RecipeFile,
    available,
    data_folders,
    read_recipe_file,
    recipe_folders,
    shipped_folder,
)
from llm_wrapper.recipe.schema import (
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

__all__ = ["RECIPE_KINDS", "DataSection", "DetectorSection", "EnsembleSection", "LLMSection", "LoraSection",
           "OtherData", "OtherDetector", "PromptSection", "Recipe", "RecipeFile", "SearchSection", "ServerSection",
           "TrainSection", "available", "compose", "data_folders", "load_recipe", "load_resolved", "prompt_of",
           "read_recipe_file", "recipe_folders", "shipped_folder"]  # fmt: skip
