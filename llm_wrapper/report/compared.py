"""Other runs, and somebody else's boxes, beside a run: kept in its folder, so that the report needs nothing else.

`<run>/compared/<name>/` holds what `eval` or `score` left in another folder: predictions and their facts. Their systems
are called `<name>: <system>`, and where their recipe is another one the tables say so.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from llm_wrapper import readers, storage
from llm_wrapper.errors import DataError, RunError, shell_word
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.records import Prediction
from llm_wrapper.results import is_same, stored_question
from llm_wrapper.storage import inside, plain_name

__all__ = ["FOLDER", "Guest", "add", "facts_of_evaluation", "load"]

FOLDER = "compared"

_SOURCE = "source.json"
"""Beside what is kept of another folder: which folder that was."""

_DECIDE = ("detector", "candidates", "ensemble", "data", "prompt", "llm", "train")
"""What decides numbers; the rest of a recipe is about machines."""


@dataclass(frozen=True)
class Guest:
    """A system of another run; `differences` lists where its recipe is another one."""

    run: str
    system: str
    rows: Sequence[Prediction]
    differences: Sequence[str]


class _Data(BaseModel):
    settings: dict[str, Any] | None = None


class _Ensemble(BaseModel):
    also: dict[str, Any] | None = None


class _Recipe(BaseModel):
    data: _Data | None = None
    ensemble: _Ensemble | None = None
    detector: dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    llm: dict[str, Any] | None = None


class _Facts(BaseModel):
    """The shape of what the report looks up in the facts of an evaluation; the rest of them is shown as it is."""

    recipe: _Recipe | None = None
    split: str | None = None
    limit: int | None = None
    notes: list[str] | None = None


def add(folder: Path, other: Path) -> None:
    """Keep the predictions of another folder in a run's own; what was kept of it before is replaced.

    Another folder of the same name is kept beside it, under a name with a digest.

    Raises:
        RunError: If the other is the run itself, holds no predictions, or none of an evaluation that the run has.
    """
    found = sorted(other.glob("predictions-*.parquet"))
    if other.resolve() == folder.resolve() or not found:
        what = "is the run itself" if found else "holds no predictions"
        raise RunError(
            f"{other} {what}; name a folder that eval or score has left: make report RUN={shell_word(folder)}"
        )
    here, there = ({_evaluation(path) for path in paths} for paths in (folder.glob("predictions-*.parquet"), found))
    if not here & there:
        raise RunError(
            f"nothing to compare: {folder} is evaluated on {', '.join(sorted(here)) or 'nothing'}, {other} on "
            f"{', '.join(sorted(there))}. Evaluate both on the same: make eval RUN={shell_word(other)}"
        )
    kept = _free_place(folder, other, found)
    storage.write_json(inside(folder, kept / _SOURCE), _source(other))
    for path in found:
        for each in (path, _facts_beside(path)):
            if each.is_file():
                storage.write_atomic(inside(folder, kept / each.name), readers.read_bytes(inside(other, each)))


def _free_place(folder: Path, other: Path, found: Sequence[Path]) -> Path:
    """Return where another folder's predictions are kept in a run's own: never where those of a third one are."""
    kept = folder / FOLDER / plain_name(other.resolve().name)
    if not kept.exists():
        return kept
    source = inside(folder, kept / _SOURCE)
    if source.exists():
        is_its = readers.read_json(source, most=readers.MIB) == _source(other)
    else:  # kept by an earlier version, or what an evaluation in another way left in the run itself
        pairs = [(kept / beside.name, beside) for beside in map(_facts_beside, found) if (kept / beside.name).exists()]
        is_its = bool(pairs) and all(
            is_same(stored_question(inside(folder, mine)), stored_question(inside(other, theirs)) or {})
            for mine, theirs in pairs
        )
    return kept if is_its else kept.with_name(f"{kept.name}-{storage.digest_value(_source(other))[:8]}")


def _source(other: Path) -> dict[str, str]:
    return {"folder": str(other.resolve())}


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
    for path in sorted((folder / FOLDER).glob(f"*/predictions-{glob.escape(name)}.parquet")):
        differences = _differences(recipe, facts_of_evaluation(folder, path).get("recipe") or {})
        systems: dict[str, list[Prediction]] = {}
        for row in files.load_predictions(inside(folder, path)):
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


def _facts_beside(path: Path) -> Path:
    return path.with_name(f"report-{_evaluation(path)}.json")


def _evaluation(path: Path) -> str:
    """Return what a predictions file is of, such as `val` or `val-first-100`."""
    return path.stem.removeprefix("predictions-")


def facts_of_evaluation(folder: Path, path: Path) -> dict[str, Any]:
    """Return what a run holds about one of its predictions files; empty where it holds nothing.

    Args:
        folder: The run; a link that leaves it is not followed.
        path: The predictions.

    Raises:
        DataError: If the facts are damaged, or of other types than an evaluation writes.
    """
    beside = _facts_beside(path)
    if not beside.exists():
        return {}
    facts: Any = readers.read_json(inside(folder, beside), most=64 * readers.MIB)
    try:
        _Facts.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{beside} does not hold the facts of an evaluation: {where}: {first['msg']}. Make it again: make eval"
        ) from error
    return dict(facts)


def _differences(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """List where two recipes differ; what one of them does not say (boxes from elsewhere) is said once."""
    unsaid = [name for name in _DECIDE if name in own and name not in other]
    both = [{name: each[name] for name in _DECIDE if name in own and name in other} for each in (own, other)]
    found = storage.describe_differences(both[0], both[1], places=("here", "there"))
    return [*found, *([f"not known there: {', '.join(unsaid)}"] if unsaid else [])]


def _same(rows: Sequence[Prediction], own: Sequence[Prediction] | None) -> bool:
    known = {row.sample_id: (row.box, row.candidates) for row in own or ()}
    return len(known) == len(rows) and all(known.get(row.sample_id) == (row.box, row.candidates) for row in rows)
