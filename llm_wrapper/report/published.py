"""Published numbers to show beside ours, each with its source; nothing here was measured by this project."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["PUBLISHED", "Published", "beside", "on_same_split"]

_PAPER = "LLM-wrapper (arXiv 2409.11919)"
_CHART = f"{_PAPER}, first version, read off a bar chart, +-0.4"
_WHITE_BOX = "white box, as published for it"
_PROPOSALS = "chooses among ground-truth boxes"


class Published(NamedTuple):
    """P@1 in percent on the whole of RefCOCOg (umd) val, the only split of which numbers are at hand.

    `detector` and `llm` are names of `recipes/vlm` and `recipes/llm`, `system` is ours; all are `None` where the number
    is of a model that this project does not run.
    """

    name: str
    p_at_1: float
    source: str
    system: str | None = None
    detector: str | None = None
    llm: str | None = None


PUBLISHED = (
    Published("Grounding-DINO", 60.09, _PAPER, "detector", "gd"),
    Published("Grounding-DINO, subject scores", 67.61, _PAPER, "detector", "gdrec"),
    Published("Florence-2-L", 68.28, _PAPER, "detector", "flo2"),
    Published("Grounding-DINO, untrained Llama 3", 58.05, _PAPER, "untrained", "gd", "llama3"),
    Published("Grounding-DINO, subject scores, untrained Llama 3", 67.48, _PAPER, "untrained", "gdrec", "llama3"),
    Published("Florence-2-L, untrained Llama 3", 67.69, _PAPER, "untrained", "flo2", "llama3"),
    Published("Grounding-DINO, tuned Mixtral", 77.3, _CHART, "tuned", "gd", "mixtral"),
    Published("Grounding-DINO, tuned Llama 3", 77.9, _CHART, "tuned", "gd", "llama3"),
    Published("Florence-2-L, tuned Mixtral", 77.4, _CHART, "tuned", "flo2", "mixtral"),
    Published("Florence-2-L, tuned Llama 3", 77.6, _CHART, "tuned", "flo2", "llama3"),
    Published("ReCLIP", 67.9, f"as published for it; {_PROPOSALS}"),
    Published("VLM-R1-3B", 84.8, _WHITE_BOX),
    Published("MM-GDINO-T, fine-tuned", 85.5, _WHITE_BOX),
    Published("Qwen3-VL-8B", 88.0, _WHITE_BOX),
    Published("Florence-2-L-FT", 91.2, _WHITE_BOX),
)
"""By rising number within each origin."""

_MODELS = {"llama3": "Meta-Llama-3-8B-Instruct", "mixtral": "Mixtral-8x7B-Instruct-v0.1"}
"""Name of an LLM -> how its model's name ends."""


def on_same_split(recipe: Mapping[str, Any], split: str) -> tuple[Published, ...]:
    """Return the published numbers on the data and split of a resolved recipe; a part of a split is another split."""
    data = recipe.get("data") or {}
    split_by = (data.get("settings") or {}).get("split_by")
    same = (data.get("name"), split_by, split) == ("refcocog", "umd", "val")
    return PUBLISHED if same else ()


def beside(recipe: Mapping[str, Any], split: str, system: str) -> Published | None:
    """Return the number that is published for a system of a run: same data, split, detector and LLM, by their names.

    Settings that were changed on the command line keep the name, and are for the reader of the recipe to judge.
    """
    if (recipe.get("ensemble") or {}).get("also"):
        return None
    detector = (recipe.get("detector") or {}).get("label")
    model = str((recipe.get("llm") or {}).get("model"))
    for each in on_same_split(recipe, split):
        same_llm = each.llm is None or model.endswith(_MODELS[each.llm])
        if detector and (each.system, each.detector) == (system, detector) and same_llm:
            return each
    return None
