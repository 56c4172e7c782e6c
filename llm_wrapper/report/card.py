"""The model card of an adapter: what it was made of, how to use it, and how well it does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from llm_wrapper import runs, storage
from llm_wrapper.errors import DataError
from llm_wrapper.readers import read_text
from llm_wrapper.recipe import Recipe
from llm_wrapper.report.formatting import escape_markdown
from llm_wrapper.storage import inside

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)

_CARD = """---
{front}---

# LLM-wrapper adapter: {llm} on the boxes of {detector}

An adapter ({words}) with which a language model names the index of the detected box that a referring expression means
([arXiv 2409.11919](https://arxiv.org/abs/2409.11919)). It has seen boxes, labels and expressions as text, and no image.

## Training

| | |
|---|---|
{training}
## Results
{results}
## Use

    llm-wrapper predict photo.jpg "the man on the left" --boxes boxes.jsonl --run <this run's folder>
{export}
It must be asked as it was trained: candidates and prompt are those of `recipe.yaml` beside the adapter's folder. The
licences of the base model and of the data go with it.
"""

_EXPORT = "    llm-wrapper export <this run's folder> merged/     # one model, to be served\n"


class _Data(BaseModel):
    name: str
    split: str
    annotations: str
    detections: str


class _Outcome(BaseModel):
    steps: int | None = None
    loss: float | None = None
    trainable_parameters: int | None = None


class _Manifest(BaseModel):
    samples: int | None = None
    left_out: dict[str, int] = {}
    training: _Outcome = _Outcome()
    data: list[_Data] = []
    git: str | None = None


def card(recipe: Recipe, facts: Mapping[str, Any], results: Mapping[str, str]) -> str:
    """Return a model card in Markdown, with the front matter that hubs read.

    Args:
        recipe: Of the training.
        facts: The run's manifest.
        results: Split -> table of results in Markdown; empty before the first evaluation.

    Raises:
        DataError: If the manifest has other types, or a table of results holds anything else.
    """
    try:
        manifest = _Manifest.model_validate(facts)
    except ValidationError as error:
        raise DataError(f"the manifest of the run cannot be used for a model card: {error}. Train again") from error
    model = recipe.llm.model or ""
    base = {"base_model": model} if _HUB_ID.fullmatch(model) else {}
    tags = ["llm-wrapper", recipe.train.method, "referring-expression-comprehension"]
    front = {"library_name": "peft", "pipeline_tag": "text-generation", **base, "tags": tags}
    rows = {name: value for name, value in _training(recipe, manifest).items() if value not in (None, "")}
    tables = "".join(f"\n### {escape_markdown(split)}\n\n{_safe_table(split, text)}" for split, text in results.items())
    return _CARD.format(
        front=yaml.safe_dump(front, sort_keys=False),
        words=recipe.train.method_words,
        llm=escape_markdown(model),
        detector=escape_markdown(recipe.detector.label or recipe.detector.name),
        training="".join(f"| {name} | {escape_markdown(str(value))} |\n" for name, value in rows.items()),
        results=tables or "\nNot evaluated yet: `make eval` does, and writes its table here.\n",
        export="" if recipe.train.is_soft else _EXPORT,
    )


def _safe_table(split: str, text: str) -> str:
    """Return a table of results as `summary_markdown` writes it, and the notes below it; the file may be anybody's."""
    lines = text.splitlines()
    if not all((line.startswith("|") and line.endswith("|")) or line.startswith("- ") or not line for line in lines):
        raise DataError(f"report-{split}.md holds more than a table of results and its notes. Make it again: make eval")
    # escape_markdown puts a backslash before these; earlier versions did not escape brackets.
    return "".join(re.sub(r"(?<!\\)([\[\]<]|:(?=//))", r"\\\1", line) + "\n" for line in lines)


def _training(recipe: Recipe, manifest: _Manifest) -> dict[str, Any]:
    data = [
        f"{each.name} {each.split} (annotations {each.annotations[:12]}, detections {each.detections[:12]})"
        for each in manifest.data
    ]
    return {
        "data": "; ".join(data),
        "expressions": manifest.samples,
        "skipped": ", ".join(f"{reason} {count}" for reason, count in manifest.left_out.items() if count),
        "prompt": recipe.prompt.summary,
        "method": recipe.train.method_words,
        "learning rate": f"{recipe.train.learning_rate:g}, {recipe.train.scheduler}",
        "steps": manifest.training.steps,
        "last loss": manifest.training.loss,
        "trainable parameters": manifest.training.trainable_parameters,
        "seed": recipe.train.seed,
        "code": manifest.git,
    }


def write_card(run: Path) -> None:
    """Write the adapter's model card from the recipe, the manifest and the reports in a run folder."""
    reports = {
        path.stem.removeprefix("report-"): read_text(inside(run, path)) for path in sorted(run.glob("report-*.md"))
    }
    text = card(runs.recipe_of(run), runs.facts_of(run), reports)
    storage.write_atomic(inside(run, Path("adapter") / "README.md"), text)
