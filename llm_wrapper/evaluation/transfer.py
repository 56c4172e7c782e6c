"""Many systems on many detectors and data sets (paper: table 3): each is asked once, and every number has its rivals.

Predictions are kept under a name that holds a digest of the system and of all that it was asked. So a repeated command
asks only what is missing, and what was asked otherwise stands beside it and is never mistaken for it.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_wrapper import storage
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.errors import PromptError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation.comparison import Comparison, compare_systems
from llm_wrapper.metrics import Summary, summarize
from llm_wrapper.prompts.builder import PromptBuilder
from llm_wrapper.records import Prediction

__all__ = ["Cell", "Column", "Filled", "Matrix", "Predict", "System", "fill", "measure"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Column:
    """One detector, or ensemble, on one split of a data set."""

    name: str
    samples: Sequence[PreparedSample]


Predict = Callable[[Column], list[Prediction]]


@dataclass(frozen=True)
class System:
    """A row of the matrix.

    Attributes:
        name: Not that of another row.
        identity: JSON values that decide its predictions, together with what it is asked.
        load: Gives the function that predicts; called once, and only where something is missing.
        builder: Builds its prompts, where it is an LLM.
        baseline: Name of the same LLM before training.
        home: Names of the columns that it was trained for.
    """

    name: str
    identity: Mapping[str, Any]
    load: Callable[[], Predict]
    builder: PromptBuilder | None = None
    baseline: str | None = None
    home: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Cell:
    """One system in one column.

    Attributes:
        system: Name of the row.
        column: Name of the column.
        at_home: Whether the system was trained for this column.
        problem: Why there are no predictions, such as a prompt that shows scores to a detector that has none.
        summary: `None` where there is a problem, as all that follows.
        over_detector: What it gains over the detector's own choice, on the same samples.
        over_untrained: What it gains over the same LLM untrained.
        path: The predictions.
    """

    system: str
    column: str
    at_home: bool
    problem: str | None = None
    summary: Summary | None = None
    over_detector: Comparison | None = None
    over_untrained: Comparison | None = None
    path: Path | None = None


@dataclass(frozen=True)
class Matrix:
    """All cells, by (system, column); rows and columns in the order to be shown."""

    systems: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[str, str], Cell]


Filled = dict[tuple[str, str], tuple[Path, list[Prediction]] | str]
"""(system, column) -> file and predictions, or why there are none."""


def fill(systems: Sequence[System], columns: Sequence[Column], folder: Path) -> Filled:
    """Predict what is not kept in `folder` yet, system by system, so that one LLM at a time is loaded.

    A prompt that cannot be rendered leaves its cell empty and says why; every other error ends the whole.
    """
    filled: Filled = {}
    questions: dict[tuple[str, PromptBuilder | None], str] = {}
    for system in systems:
        predict: Predict | None = None
        for column in columns:
            asked = (column.name, system.builder)
            try:
                if asked not in questions:
                    questions[asked] = _questions(column.samples, system.builder)
                path = _path(folder, system, column, questions[asked])
                if not path.is_file():
                    _log.info("%s: predicting on %s (%d samples)", system.name, column.name, len(column.samples))
                    predict = predict or system.load()
                    files.save_predictions(path, predict(column))
                filled[system.name, column.name] = (
                    path,
                    [replace(row, system=system.name) for row in files.load_predictions(path)],
                )
            except PromptError as error:
                filled[system.name, column.name] = str(error)
    return filled


def measure(filled: Filled, systems: Sequence[System], columns: Sequence[Column], *, detector: str) -> Matrix:
    """Compute every cell, with what it gains over the system called `detector` and over its own untrained LLM."""
    cells: dict[tuple[str, str], Cell] = {}
    for system in systems:
        for column in columns:
            found, at_home = filled[system.name, column.name], column.name in system.home
            if isinstance(found, str):
                cells[system.name, column.name] = Cell(system.name, column.name, at_home, problem=found)
                continue
            path, rows = found
            cells[system.name, column.name] = Cell(
                system.name,
                column.name,
                at_home,
                summary=summarize(rows),
                over_detector=_gain(rows, filled.get((detector, column.name))),
                over_untrained=_gain(rows, filled.get((system.baseline or "", column.name))),
                path=path,
            )
    return Matrix([system.name for system in systems], [column.name for column in columns], cells)


def _gain(rows: list[Prediction], other: tuple[Path, list[Prediction]] | str | None) -> Comparison | None:
    if other is None or isinstance(other, str) or other[1][0].system == rows[0].system:
        return None
    return compare_systems(rows, other[1])


def _questions(samples: Sequence[PreparedSample], builder: PromptBuilder | None) -> str:
    """Digest all that a system sees of the samples, and what it is scored by."""
    total = hashlib.sha256()
    asked = [(each.sample, each.built.candidates) for each in samples if len(each.built.candidates) > 1]
    prompts = iter(builder.build(asked) if builder else ())
    for prepared in samples:
        sample = prepared.sample
        known = (sample.sample_id, sample.image_id, sample.image_wh, sample.expression, sample.kind)
        total.update(repr((known, sample.target, sample.further_targets, prepared.built)).encode())
        if builder is not None and len(prepared.built.candidates) > 1:
            total.update(repr(next(prompts).messages).encode())
    return total.hexdigest()


def _path(folder: Path, system: System, column: Column, questions: str) -> Path:
    digest = storage.digest_value({"system": dict(system.identity), "questions": questions})
    # Not by the whole name of the row: it tells rows apart, so it hangs on which others there are.
    return folder / _file_name(column.name) / f"{_file_name(system.name.split()[0])}-{digest[:16]}.parquet"


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")
