"""The JSON of grids: matrix.json, curve.json and methods.json, as they are written and as they are read again.

A file that is read may be anybody's: shares, counts and lengths are bounded, and unknown keys are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from llm_wrapper.evaluation.grid import Cell, Contribution
from llm_wrapper.evaluation.methods import UNTRAINED, MethodResult
from llm_wrapper.metrics import Summary
from llm_wrapper.report.formatting import gain, gain_values, summary_values
from llm_wrapper.statistics import Estimate, Interval

MAX_ROWS = 10_000
"""Cells of a matrix that is shown."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """An adapter that was trained on `samples` annotated samples, on the line `series` of a curve."""

    name: str
    series: str
    samples: int
    steps: int
    adapter: Path


def matrix_values(cells: Sequence[Cell], contributions: Sequence[Contribution] = ()) -> dict[str, Any]:
    """Return a matrix as JSON values; fractions in 0..1, `None` where there is no data."""
    return {
        "cells": [
            {
                "system": cell.system,
                "column": cell.column,
                "at_home": cell.at_home,
                "problem": cell.problem,
                "result": _result_values(cell.summary),
                "over_detector": gain_values(cell.over_detector),
                "over_untrained": gain_values(cell.over_untrained),
                "predictions": str(cell.path) if cell.path else None,
            }
            for cell in cells
        ],
        "contributions": [
            {"system": each.system, "detector": each.detector, "gain": gain_values(each.gain)} for each in contributions
        ],
    }


def curve_values(column: str, cells: Sequence[Cell], points: Sequence[CurvePoint]) -> dict[str, Any]:
    """Return a curve as JSON values: its points in order, and the other systems for comparison."""
    by_name = {cell.system: cell for cell in cells}
    pairs = [(point, by_name[point.name]) for point in points]
    names = {point.name for point in points}
    return {
        "column": column,
        "others": [_result_values(cell.summary) for name, cell in by_name.items() if name not in names],
        "points": [
            {
                **asdict(point),
                "adapter": str(point.adapter),
                "result": _result_values(cell.summary),
                "over_untrained": gain_values(cell.over_untrained),
                "over_previous": gain_values(cell.over_previous),
                "predictions": str(cell.path),
            }
            for point, cell in pairs
        ],
    }


def methods_values(
    column: str, others: Sequence[Summary], cells: Sequence[Cell], results: Mapping[str, MethodResult | str]
) -> dict[str, Any]:
    """Return a comparison of methods as JSON values.

    Args:
        column: Detector, data and split.
        others: Detector, rule and oracle.
        cells: One for each method.
        results: Method -> its result, or why it has none.
    """
    rows: list[dict[str, Any]] = []
    remarks: list[str] = []
    for cell in cells:
        result = results[cell.system]
        done = None if isinstance(result, str) else result
        rows.append(
            {
                "name": cell.system,
                "problem": cell.problem,
                "result": _result_values(cell.summary),
                "over_untrained": gain_values(cell.over_untrained),
                "tokens": done.tokens if done else None,
                "took": done.facts() if done else None,
                "run": str(done.folder) if done else None,
            }
        )
        if done is None:
            remarks.append(f"{cell.system} failed: {cell.problem}; the same command tries it again")
            continue
        remarks += [f"{cell.system}: {note}" for note in done.notes]
        over = cell.over_untrained.p_at_1.ci if cell.over_untrained else None
        if over is not None and over.low <= 0:
            verdict = "worse" if over.high < 0 else "not surely better"
            remarks.append(f"{cell.system}: {verdict} than the untrained LLM")
    if isinstance(results.get(UNTRAINED), str):
        remarks.append("there are no gains, as there is no untrained LLM to compare with")
    return {"column": column, "others": summary_values(others), "rows": rows, "said": remarks}


def _result_values(summary: Summary | None) -> dict[str, Any] | None:
    return summary_values([summary])[0] if summary else None


_Share = Annotated[float, Field(ge=-1, le=1)]
_Count = Annotated[int, Field(ge=0, le=10**15)]
_Number = Annotated[float, Field(ge=0, le=1e15)]


class _Estimate(BaseModel):
    value: _Share | None
    ci: tuple[_Share, _Share] | None
    n: _Count


class _Test(BaseModel):
    p_value: _Share | None


class _Gain(BaseModel):
    p_at_1: _Estimate
    mcnemar: _Test

    @property
    def text(self) -> str:
        ci = self.p_at_1.ci and Interval(*self.p_at_1.ci)
        return gain(Estimate(self.p_at_1.value, ci, self.p_at_1.n), self.mcnemar.p_value)


class _Result(BaseModel):
    name: str
    n: _Count
    num_images: _Count | None = None
    p_at_1: _Share | None
    ci: tuple[_Share, _Share] | None

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.p_at_1, self.ci and Interval(*self.ci), self.n)

    @property
    def size(self) -> str:
        images = "" if self.num_images is None else f", {self.num_images} images"
        return f"{self.n} expressions with a target{images}"


_Results = Annotated[list[_Result], Field(max_length=500)]


class _Cell(BaseModel):
    system: str
    column: str
    at_home: bool
    problem: str | None
    result: _Result | None
    over_detector: _Gain | None
    over_untrained: _Gain | None


class _Contribution(BaseModel):
    system: str
    detector: str
    gain: _Gain


class MatrixFile(BaseModel):
    """Content of matrix.json."""

    cells: Annotated[list[_Cell], Field(max_length=MAX_ROWS)]
    contributions: Annotated[list[_Contribution], Field(max_length=MAX_ROWS)] = []
    notes: list[str] = []


class _Point(BaseModel):
    name: str
    series: str
    samples: _Count
    steps: _Count | None = None
    result: _Result
    over_untrained: _Gain | None = None
    over_previous: _Gain | None = None


class CurveFile(BaseModel):
    """Content of curve.json."""

    column: str
    others: _Results
    points: Annotated[list[_Point], Field(max_length=500)]
    notes: list[str] = []


class _Cost(BaseModel):
    tokens: _Count | None
    seconds: _Number


class MethodCosts(BaseModel):
    """Costs of a method: of training or search, and of its answers."""

    labelled: _Count
    prepared: _Cost
    answered: _Cost
    num_asked: _Count
    tokens_per_answer: _Number | None


class _Method(BaseModel):
    name: str
    result: _Result | None
    over_untrained: _Gain | None
    tokens: _Count | None
    took: MethodCosts | None


class MethodsFile(BaseModel):
    """Content of methods.json."""

    column: str
    others: _Results
    rows: Annotated[list[_Method], Field(max_length=500)]
    said: list[str]
    notes: list[str] = []
