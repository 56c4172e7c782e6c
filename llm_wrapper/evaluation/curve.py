"""P@1 against training samples (paper: figure 2): each adapter of a curve on the same samples, with what it gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_wrapper.errors import PromptError
from llm_wrapper.evaluation import systems
from llm_wrapper.evaluation.comparison import Comparison, compare_systems
from llm_wrapper.evaluation.transfer import Column, Filled, System
from llm_wrapper.evaluation.transfer_rows import DETECTOR, asked, free
from llm_wrapper.metrics import Summary, summarize
from llm_wrapper.prompts.builder import PromptBuilder
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Prediction

__all__ = ["RULE", "UNTRAINED", "Curve", "Measured", "Point", "measure", "systems_of"]

RULE, UNTRAINED, ORACLE = "rule", "untrained", "oracle"


@dataclass(frozen=True, slots=True)
class Point:
    """An adapter of a curve.

    Attributes:
        name: Not that of another point.
        series: The line that it is on.
        num_samples: Annotated samples that it was trained on.
        num_steps: Steps of its training.
        adapter: Its folder.
    """

    name: str
    series: str
    num_samples: int
    num_steps: int
    adapter: Path


@dataclass(frozen=True, slots=True)
class Measured:
    """A point with its results; `over_previous` is what it gains over the one before it in its series."""

    point: Point
    summary: Summary
    over_untrained: Comparison
    over_previous: Comparison | None
    path: Path


@dataclass(frozen=True)
class Curve:
    """All points in order, and what they are held against: detector, rule, oracle, and the LLM before training."""

    column: str
    others: Mapping[str, Summary]
    points: Sequence[Measured]


def systems_of(points: Sequence[Point], recipe: Recipe) -> list[System]:
    """Return who has to be asked: detector, rule and oracle, the untrained LLM, and the adapter of each point."""
    free_ones = [
        free(DETECTOR, systems.by_detector),
        free(RULE, systems.by_rule),
        free(ORACLE, systems.by_oracle),
    ]
    builder = PromptBuilder(recipe.prompt)
    tuned = [asked(point.name, recipe, point.adapter, builder=builder) for point in points]
    return [*free_ones, asked(UNTRAINED, recipe, builder=builder), *tuned]


def measure(filled: Filled, points: Sequence[Point], column: Column) -> Curve:
    """Compute every point from the predictions of `systems_of`.

    Raises:
        PromptError: If the LLM cannot be asked about the column, such as one without scores by a prompt with them.
    """
    found: dict[str, tuple[Path, list[Prediction]]] = {}
    for (system, _), cell in filled.items():
        if isinstance(cell, str):
            raise PromptError(f"{system} on {column.name}: {cell}")
        found[system] = cell
    previous: dict[str, str] = {}
    measured = []
    for point in points:
        path, rows = found[point.name]
        before = previous.get(point.series)
        over = compare_systems(rows, found[before][1]) if before else None
        gain = compare_systems(rows, found[UNTRAINED][1])
        measured.append(Measured(point, summarize(rows), gain, over, path))
        previous[point.series] = point.name
    others = {name: summarize(found[name][1]) for name in (DETECTOR, RULE, ORACLE, UNTRAINED)}
    return Curve(column.name, others, measured)
