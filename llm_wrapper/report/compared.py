"""Other runs, and somebody else's boxes, beside a run: kept in its folder, so that the report needs nothing else.

`<run>/compared/<name>/` holds what `eval` or `score` left in another folder: predictions and their facts. Their systems
are called `<name>: <system>`, and where their recipe is another one the tables say so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_wrapper import artifacts
from llm_wrapper.errors import DataError, RunError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.records import Prediction

__all__ = ["FOLDER", "Guest", "add", "facts_beside", "load", "recipe_of"]

FOLDER = "compared"

_DECIDE = ("detector", "candidates", "ensemble", "data", "prompt", "llm", "train")
"""What decides numbers; the rest of a recipe is about machines."""


@dataclass(frozen=True)
class Guest:
    """A system of another run; `differences` lists where its recipe is another one."""

    run: str
    system: str
    rows: Sequence[Prediction]
    differences: Sequence[str]


def add(folder: Path, other: Path) -> None:
    """Keep the predictions of another folder in a run's own; what was kept of it before is replaced.

    Raises:
        RunError: If the other is the run itself, holds no predictions, or none of an evaluation that the run has.
    """
    found = sorted(other.glob("predictions-*.parquet"))
    if other.resolve() == folder.resolve() or not found:
        what = "is the run itself" if found else "holds no predictions"
        raise RunError(f"{other} {what}; name a folder that eval or score has left: make report RUN={folder}")
    here, there = ({_evaluation(path) for path in paths} for paths in (folder.glob("predictions-*.parquet"), found))
    if not here & there:
        raise RunError(
            f"nothing to compare: {folder} is evaluated on {', '.join(sorted(here)) or 'nothing'}, {other} on "
            f"{', '.join(sorted(there))}. Evaluate both on the same: make eval RUN={other}"
        )
    kept = folder / FOLDER / (re.sub(r"[^\w.+-]+", "-", other.resolve().name).strip("-.") or "other")
    for path in found:
        for each in (path, facts_beside(path)):
            if each.is_file():
                artifacts.write_atomic(kept / each.name, each.read_bytes())


def load(
    folder: Path, name: str, own: Mapping[str, Sequence[Prediction]], recipe: Mapping[str, Any]
) -> tuple[list[Guest], list[str]]:
    """Return the systems that are kept beside an evaluation of a run, and the names of those that are left out.

    Left out is what says the same as a system of the run, since both were asked the same. The oracle is no system.

    Args:
        folder: The run.
        name: Of the evaluation, such as `val`.
        own: The run's own systems.
        recipe: That the run was evaluated by.

    Raises:
        DataError: If a file is damaged.
    """
    guests, left_out = [], []
    for path in sorted((folder / FOLDER).glob(f"*/predictions-{name}.parquet")):
        differences = _differences(recipe, recipe_of(path))
        systems: dict[str, list[Prediction]] = {}
        for row in files.load(path):
            systems.setdefault(row.system, []).append(row)
        for system, rows in systems.items():
            called = f"{path.parent.name}: {system}"
            if all(row.decided_by == "oracle" for row in rows):
                continue
            if _same(rows, own.get(system)):
                left_out.append(called)
                continue
            guests.append(Guest(path.parent.name, called, [replace(row, system=called) for row in rows], differences))
    return guests, left_out


def facts_beside(path: Path) -> Path:
    """Return where the facts of a predictions file are."""
    return path.with_name(f"report-{_evaluation(path)}.json")


def _evaluation(path: Path) -> str:
    """Return what a predictions file is of, such as `val` or `val-first-100`."""
    return path.stem.removeprefix("predictions-")


def recipe_of(path: Path) -> Mapping[str, Any]:
    """Return the recipe of a predictions file as plain values; empty where it is not known."""
    beside = facts_beside(path)
    facts = artifacts.read_json(beside) if beside.is_file() else {}
    if not isinstance(facts, dict):
        raise DataError(f"{beside} does not hold the facts of an evaluation. Make it again: make eval")
    found: Mapping[str, Any] = facts.get("recipe") or {}
    return found


def _differences(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """List where two recipes differ; what one of them does not say (boxes from elsewhere) is said once."""
    unsaid = [name for name in _DECIDE if name in own and name not in other]
    both = [{name: each[name] for name in _DECIDE if name in own and name in other} for each in (own, other)]
    found = artifacts.differences(both[0], both[1], places=("here", "there"))
    return [*found, *([f"not known there: {', '.join(unsaid)}"] if unsaid else [])]


def _same(rows: Sequence[Prediction], own: Sequence[Prediction] | None) -> bool:
    known = {row.sample_id: (row.box, row.candidates) for row in own or ()}
    return len(known) == len(rows) and all(known.get(row.sample_id) == (row.box, row.candidates) for row in rows)
