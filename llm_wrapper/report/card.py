"""The model card of an adapter: what it was made of, how to use it, and how well it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_wrapper.recipe import Recipe

__all__ = ["card"]

_HEAD = """---
library_name: peft
pipeline_tag: text-generation
{base}tags: [llm-wrapper, {method}, referring-expression-comprehension]
---

# LLM-wrapper adapter: {llm} on the boxes of {detector}

An adapter ({words}) with which a language model names the index of the detected box that a referring expression means
([arXiv 2409.11919](https://arxiv.org/abs/2409.11919)). It has seen boxes, labels and expressions as text, and no image.
"""

_USE = """
## Use

    llm-wrapper predict photo.jpg "the man on the left" --boxes boxes.jsonl --run <this run's folder>
{export}
It must be asked as it was trained: candidates and prompt are those of `recipe.yaml` beside the adapter's folder. The
licences of the base model and of the data go with it.
"""

_EXPORT = "    llm-wrapper export <this run's folder> merged/     # one model, to be served\n"


def card(recipe: Recipe, facts: Mapping[str, Any], results: Mapping[str, str]) -> str:
    """Return a model card in Markdown, with the front matter that hubs read.

    Args:
        recipe: What the adapter was trained by.
        facts: The run's manifest.
        results: Split -> table of results in Markdown; empty before the first evaluation.
    """
    model = recipe.llm.model or ""
    is_hub_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    head = _HEAD.format(
        base=f"base_model: {model}\n" if is_hub_id else "",
        method=recipe.train.method,
        words=recipe.train.method_words,
        llm=_plain(model),
        detector=_plain(recipe.detector.label or recipe.detector.name),
    )
    use = _USE.format(export="" if recipe.train.is_soft else _EXPORT)
    tables = "".join(f"\n### {_plain(split)}\n\n{table}" for split, table in results.items())
    return f"{head}\n## Training\n\n{_training(recipe, facts)}\n## Results\n{tables or _NOT_YET}{use}"


_NOT_YET = "\nNot evaluated yet: `make eval` does, and writes its table here.\n"


def _training(recipe: Recipe, facts: Mapping[str, Any]) -> str:
    section, outcome = recipe.train, facts.get("training", {})
    data = [
        f"{each['name']} {each['split']} (annotations {each['annotations'][:12]}, detections {each['detections'][:12]})"
        for each in facts.get("data", [])
    ]
    rows = {
        "data": "; ".join(data),
        "expressions": facts.get("samples"),
        "left out": ", ".join(f"{name} {number}" for name, number in facts.get("left_out", {}).items() if number),
        "prompt": recipe.prompt.summary,
        "method": section.method_words,
        "learning rate": f"{section.learning_rate:g}, {section.scheduler}",
        "steps": outcome.get("steps"),
        "last loss": outcome.get("loss"),
        "trainable parameters": outcome.get("trainable_parameters"),
        "seed": section.seed,
        "code": facts.get("git"),
    }
    lines = [f"| {name} | {_plain(str(value))} |\n" for name, value in rows.items() if value not in (None, "")]
    return "".join(["| | |\n|---|---|\n", *lines])


def _plain(text: str) -> str:
    """Return a text that cannot end a table's cell or line."""
    return " ".join(text.replace("|", "/").split())
