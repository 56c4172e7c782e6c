"""What a report is made of: the evaluations that a run folder holds, and sections of text, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_wrapper.errors import DataError, RunError, listed, shell_word
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.records import Prediction
from llm_wrapper.report import compared
from llm_wrapper.report.compared import Guest
from llm_wrapper.report.tables import NO_DATA
from llm_wrapper.statistics import Estimate
from llm_wrapper.storage import inside

__all__ = ["Figure", "Part", "Section", "Table", "counted", "load", "number", "percent", "points"]

_MAX_SYSTEMS = 64
"""Each is compared with each other, by resampling."""
_ROUNDING = 1e-6
_FARTHEST = 1e9
"""Areas of boxes far beyond any image overflow, and their IoU is no number."""


@dataclass(frozen=True, slots=True)
class Table:
    """Plain text in rows, and in columns of which the first names the row; `prose` are those that hold words."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """An `<svg>` element, made by `report.plots` and by nobody else; empty where there is no data."""

    caption: str
    svg: str


@dataclass(frozen=True, slots=True)
class Section:
    """One heading with what stands under it; `notes` are a list at its end."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Part:
    """One evaluation: a split or its first samples.

    Attributes:
        name: `val`, or `val-first-60`.
        systems: System -> its predictions, in the order of the file; behind them the guests'.
        facts: What `report-<name>.json` says; empty where there is none.
        guests: System -> what is known of it, of those from other runs.
        left_out: Systems of other runs that predict the same as one of this run.
    """

    name: str
    systems: Mapping[str, Sequence[Prediction]]
    facts: Mapping[str, Any]
    guests: Mapping[str, Guest] = field(default_factory=dict)
    left_out: Sequence[str] = ()

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
        own = [name for name in self.judged if name not in self.guests and name != self.base]
        return own[-1] if own else None

    def place(self, system: str) -> int:
        """Return the place of a system, which decides its color; the oracle, if shown at all, comes last."""
        return [*self.judged, *(name for name in self.systems if name not in self.judged)].index(system)


def load(folder: Path) -> list[Part]:
    """Read every evaluation of a run folder.

    Raises:
        RunError: If there is none.
        DataError: If a file is damaged, or holds the oracle's predictions alone.
    """
    found = sorted(folder.glob("predictions-*.parquet"))
    if not found:
        raise RunError(f"{folder} holds no predictions; make some with: make eval RUN={shell_word(folder)}")
    return [_part(folder, path) for path in found]


def _part(folder: Path, path: Path) -> Part:
    name = path.stem.removeprefix("predictions-")
    systems: dict[str, list[Prediction]] = {}
    for row in files.load_predictions(inside(folder, path)):
        systems.setdefault(row.system, []).append(row)
    facts = compared.facts_of_evaluation(folder, path)
    if not Part(name, systems, facts).judged:
        raise DataError(f"{path} holds no predictions but the oracle's. Make it again: make eval")
    found, left_out = compared.load(folder, name, systems, facts.get("recipe") or {})
    guests = {each.system: each for each in found}
    together = {**systems, **{each.system: each.rows for each in found}}
    _require_sound(path, together)
    return Part(name, together, facts, guests, left_out)


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


def percent(found: Estimate) -> str:
    """Return a share in percent with its interval."""
    return _with_interval(found, "")


def points(found: Estimate) -> str:
    """Return a difference of shares in points, with its sign."""
    return _with_interval(found, "+")


def number(value: float | None, digits: int = 3) -> str:
    """Return a number, or that there is none."""
    return NO_DATA if value is None else f"{value:.{digits}f}"


def counted(counts: Mapping[str, int]) -> str:
    """Return names with how often each was seen."""
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _with_interval(found: Estimate, sign: str) -> str:
    if found.value is None:
        return NO_DATA
    ends = f"({100 * found.ci.low:{sign}.1f} to {100 * found.ci.high:{sign}.1f})" if found.ci else "(no CI)"
    return f"{100 * found.value:{sign}.1f} {ends}"
