"""The evaluations that a run folder holds, and the systems of other folders that are compared with them.

`<run>/compared/<name>/` holds a copy of what `eval` or `score` wrote in another folder, predictions and facts, so that
the report needs nothing else. Their systems are called `<name>: <system>`; the tables say where their recipe differs.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from llm_wrapper import readers, storage
from llm_wrapper.errors import DataError, RunError, listed, shell_word
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.records import Prediction
from llm_wrapper.results import COMPARED, is_same, stored_question
from llm_wrapper.storage import inside, plain_name

__all__ = ["OtherSystem", "StoredEvaluation", "add_comparison", "facts_of_evaluation", "load_evaluations"]

_SOURCE = "source.json"
"""Beside what is kept of another folder: which folder that was."""

_DECIDE = ("detector", "candidates", "ensemble", "data", "prompt", "llm", "train")
"""Sections that decide numbers; the rest of a recipe is about machines."""


_MAX_SYSTEMS = 64
"""Each is compared with each other, by resampling."""
_ROUNDING = 1e-6
_FARTHEST = 1e9
"""The area of a box far beyond any image overflows, and its IoU is not finite."""


@dataclass(frozen=True)
class OtherSystem:
    """A system of another run; `differences` lists where its recipe is another one."""

    run: str
    system: str
    rows: Sequence[Prediction]
    differences: Sequence[str]


@dataclass(frozen=True)
class StoredEvaluation:
    """One evaluation: a split or its first samples.

    Attributes:
        name: `val`, or `val-first-60`.
        systems: System -> its predictions, in the order of the file; then those of other runs.
        facts: What `report-<name>.json` says; empty where there is none.
        others: System -> what is known of it, of those from other runs.
        identical: Systems of other runs that predict the same as one of this run.
    """

    name: str
    systems: Mapping[str, Sequence[Prediction]]
    facts: Mapping[str, Any]
    others: Mapping[str, OtherSystem] = field(default_factory=dict)
    identical: Sequence[str] = ()

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The resolved recipe as plain values; empty where it is not known."""
        found: Mapping[str, Any] = self.facts.get("recipe") or {}
        return found

    @property
    def judged(self) -> dict[str, Sequence[Prediction]]:
        """The systems without the oracle, which is right wherever anything can be."""
        return {name: rows for name, rows in self.systems.items() if any(row.decided_by != "oracle" for row in rows)}

    @property
    def base(self) -> str:
        """The system that the others shall beat: the first."""
        return next(iter(self.judged))

    @property
    def main(self) -> str | None:
        """The system that the report is about: the last that is not the base; the tuned LLM where there is one."""
        own = [name for name in self.judged if name not in self.others and name != self.base]
        return own[-1] if own else None

    def place(self, system: str) -> int:
        """Return the place of a system, which decides its color; the oracle, if shown at all, comes last."""
        return [*self.judged, *(name for name in self.systems if name not in self.judged)].index(system)


def load_evaluations(folder: Path) -> list[StoredEvaluation]:
    """Read every evaluation of a run folder.

    Raises:
        RunError: If there is none.
        DataError: If a file is damaged, or holds the oracle's predictions alone.
    """
    found = sorted(folder.glob("predictions-*.parquet"))
    if not found:
        raise RunError(f"{folder} holds no predictions; make some with: make eval RUN={shell_word(folder)}")
    return [_evaluation_of(folder, path) for path in found]


def _evaluation_of(folder: Path, path: Path) -> StoredEvaluation:
    name = path.stem.removeprefix("predictions-")
    systems: dict[str, list[Prediction]] = {}
    for row in files.load_predictions(inside(folder, path)):
        systems.setdefault(row.system, []).append(row)
    facts = facts_of_evaluation(folder, path)
    if not StoredEvaluation(name, systems, facts).judged:
        raise DataError(f"{path} holds no predictions but the oracle's. Make it again: make eval")
    found, identical = _compared_systems(folder, name, systems, facts.get("recipe") or {})
    others = {each.system: each for each in found}
    together = {**systems, **{each.system: each.rows for each in found}}
    _require_sound(path, together)
    return StoredEvaluation(name, together, facts, others, identical)


def _require_sound(path: Path, systems: Mapping[str, Sequence[Prediction]]) -> None:
    """Refuse predictions that no evaluation writes, and of which no number would mean anything."""
    if len(systems) > _MAX_SYSTEMS:
        raise DataError(f"{path} holds predictions of {len(systems)} systems; a report compares at most {_MAX_SYSTEMS}")
    wrong = [
        f"sample {row.sample_id!r} of {name!r}: {problem}"
        for name, rows in systems.items()
        for row in rows
        if (problem := _problem(row))
    ]
    if wrong:
        raise DataError(listed(f"{path} holds what no evaluation writes; make it again: make eval", wrong))


def _problem(row: Prediction) -> str:
    shares = [*(row.probabilities or ()), *(x for x in (row.probability, row.none_probability) if x is not None)]
    shares += [] if row.mass is None else [row.mass]
    if not all(0 <= share <= 1 + _ROUNDING for share in shares):
        return "a probability that is not within 0 and 1"
    if row.probabilities is not None and len(row.probabilities) != len(row.candidates):
        return f"{len(row.probabilities)} probabilities of {len(row.candidates)} candidates"
    boxes = [row.box, row.target, *row.further_targets, *(each.box for each in row.candidates)]
    if any(max(map(abs, box.xyxy)) > _FARTHEST for box in boxes if box):
        return f"a box over {_FARTHEST:g} pixels away"
    if row.image_wh is not None and min(row.image_wh) < 1:
        return f"an image of {row.image_wh[0]} x {row.image_wh[1]} pixels"
    return ""


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


def add_comparison(folder: Path, other: Path) -> None:
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
    here, there = ({_split_of(path) for path in paths} for paths in (folder.glob("predictions-*.parquet"), found))
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
    kept = folder / COMPARED / plain_name(other.resolve().name)
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


def _compared_systems(
    folder: Path, name: str, own: Mapping[str, Sequence[Prediction]], recipe: Mapping[str, Any]
) -> tuple[list[OtherSystem], list[str]]:
    """Return the systems of other folders, and the names of those that predict the same as a system of the run.

    The oracle is no system.

    Args:
        folder: The run.
        name: Of the evaluation, such as `val`.
        own: The run's own systems.
        recipe: That the run was evaluated by.

    Raises:
        DataError: If a file is damaged.
    """
    others, identical = [], []
    for path in sorted((folder / COMPARED).glob(f"*/predictions-{glob.escape(name)}.parquet")):
        differences = _differences(recipe, facts_of_evaluation(folder, path).get("recipe") or {})
        systems: dict[str, list[Prediction]] = {}
        for row in files.load_predictions(inside(folder, path)):
            systems.setdefault(row.system, []).append(row)
        for system, rows in systems.items():
            called = f"{path.parent.name}: {system}"
            if all(row.decided_by == "oracle" for row in rows):
                continue
            if _same(rows, own.get(system)):
                identical.append(called)
                continue
            others.append(
                OtherSystem(path.parent.name, called, [replace(row, system=called) for row in rows], differences)
            )
    return others, identical


def _facts_beside(path: Path) -> Path:
    return path.with_name(f"report-{_split_of(path)}.json")


def _split_of(path: Path) -> str:
    """Return the evaluation that a predictions file belongs to, such as `val` or `val-first-100`."""
    return path.stem.removeprefix("predictions-")


def facts_of_evaluation(folder: Path, path: Path) -> dict[str, Any]:
    """Return the facts that a run holds about one of its predictions files; empty where it holds none.

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
