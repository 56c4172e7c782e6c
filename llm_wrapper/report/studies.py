"""Transfer matrices, ensembles, curves and comparisons that a run is in: kept in its folder, and told in its report.

They lie beside the runs (`runs/transfer/<name>/matrix.json`, `runs/ensemble/..`, `runs/curve/<name>/curve.json`), and
over the rows of a comparison of methods (`runs/methods/<name>/methods.json`). Those that name the run are copied to
`<run>/studies/`, so that the report can be made again from the run's folder alone.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm_wrapper.errors import DataError
from llm_wrapper.readers import MIB, read_json
from llm_wrapper.report.parts import Figure, Section, Table, percent, points
from llm_wrapper.report.plots import MAX_CELLS, Heat, Series, chart, heat_map, of_estimates
from llm_wrapper.report.tables import NO_DATA
from llm_wrapper.statistics import Estimate, Interval
from llm_wrapper.storage import inside, write_json

__all__ = ["FOLDER", "add", "sections"]

FOLDER = "studies"

_FILES = {"transfer": "matrix.json", "ensemble": "matrix.json", "curve": "curve.json"}
_METHODS = "methods.json"
_MAX_BYTES = 64 * MIB
_MAX_ROWS = 10_000
_MAX_DRAWN = 500


_Share = Annotated[float, Field(ge=-1, le=1)]
_Count = Annotated[int, Field(ge=0, le=10**15)]
_Seconds = Annotated[float, Field(ge=0, le=1e15)]


class _Loose(BaseModel):
    """What the report needs of a file that says more."""

    model_config = ConfigDict(extra="ignore")


class _Estimate(_Loose):
    value: _Share | None
    ci: tuple[_Share, _Share] | None
    n: _Count


class _Result(_Loose):
    name: str
    n: _Count
    p_at_1: _Share | None
    ci: tuple[_Share, _Share] | None

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.p_at_1, self.ci and Interval(*self.ci), self.n)


class _Test(_Loose):
    p_value: _Share | None


class _Gain(_Loose):
    p_at_1: _Estimate
    mcnemar: _Test

    @property
    def text(self) -> str:
        p_value, gain = self.mcnemar.p_value, self.p_at_1
        if p_value is None:
            return NO_DATA
        text = points(Estimate(gain.value, gain.ci and Interval(*gain.ci), gain.n))
        return f"{text}, p {'< 0.001' if p_value < 0.001 else f'= {p_value:.3f}'}"


class _Cell(_Loose):
    system: str
    column: str
    at_home: bool
    problem: str | None
    result: _Result | None
    over_detector: _Gain | None
    over_untrained: _Gain | None


class _Contribution(_Loose):
    system: str
    detector: str
    gain: _Gain


class _Matrix(_Loose):
    cells: Annotated[list[_Cell], Field(max_length=_MAX_ROWS)]
    contributions: Annotated[list[_Contribution], Field(max_length=_MAX_ROWS)] = []
    notes: list[str] = []


class _Point(_Loose):
    name: str
    series: str
    samples: _Count
    result: _Result
    over_untrained: _Gain


class _Curve(_Loose):
    column: str
    others: Annotated[list[_Result], Field(max_length=_MAX_DRAWN)]
    points: Annotated[list[_Point], Field(max_length=_MAX_DRAWN)]
    notes: list[str] = []


class _Spent(_Loose):
    tokens: _Count | None
    seconds: _Seconds


class _Took(_Loose):
    labelled: _Count
    prepared: _Spent
    answered: _Spent
    num_asked: _Count
    tokens_per_answer: _Seconds | None


class _Method(_Loose):
    name: str
    result: _Result | None
    over_untrained: _Gain | None
    tokens: _Count | None
    took: _Took | None


class _Methods(_Loose):
    column: str
    others: Annotated[list[_Result], Field(max_length=_MAX_DRAWN)]
    rows: Annotated[list[_Method], Field(max_length=_MAX_DRAWN)]
    said: list[str]
    notes: list[str] = []


def add(folder: Path) -> None:
    """Copy the studies that name a run into its folder; those that are kept there are renewed where they are at hand.

    Raises:
        DataError: If a file is damaged.
    """
    runs = folder.resolve().parent
    for kind, path in _at_hand(runs):
        found = read_json(inside(runs.parent if kind == "methods" else runs, path), most=_MAX_BYTES)
        asked = {run for run in _runs_of(found) if run.name == folder.resolve().name}
        if kind == "methods" and path.parent != runs:  # rows of different comparisons have the same names
            asked = {run for run in asked if run.parent.name == runs.name}
        if asked:
            write_json(inside(folder, Path(FOLDER) / f"{kind}-{path.parent.name}.json"), found)


def _at_hand(runs: Path) -> Iterator[tuple[str, Path]]:
    """Yield (kind, file) of each study beside some runs, and of the comparisons that they are the rows of."""
    for kind, file in _FILES.items():
        yield from ((kind, path) for path in sorted(runs.glob(f"{kind}/*/{file}")))
    # A comparison of another question has a digest behind its name, and may share the folders of its rows.
    others = sorted(runs.parent.glob(f"{glob.escape(runs.name)}-[0-9a-f]*/{_METHODS}"))
    yield from (("methods", path) for path in (runs / _METHODS, *others) if path.is_file())


def _runs_of(found: Any) -> set[PurePath]:
    """Return the folders of the runs that a study asked, as it names them."""
    if not isinstance(found, dict):
        return set()
    rows, runs = found.get("rows"), found.get("runs")  # rows: of a comparison of methods
    named = [*(runs if isinstance(runs, dict) else ()), found.get("run")]
    named += [each.get("run") for each in rows if isinstance(each, dict)] if isinstance(rows, list) else []
    return {PurePath(each) for each in named if isinstance(each, str)}


def sections(folder: Path) -> list[Section]:
    """Return a section for each study that is kept in a run's folder.

    Raises:
        DataError: If one is damaged.
    """
    found = []
    for path in sorted((folder / FOLDER).glob("*.json")):
        kind, _, name = path.stem.partition("-")
        values = read_json(inside(folder, path), most=_MAX_BYTES)
        try:
            if kind == "methods":
                found.append(_methods(name, _Methods.model_validate(values)))
            elif kind == "curve":
                found.append(_curve(name, _Curve.model_validate(values)))
            elif kind in _FILES:
                found.append(_matrix(f"{kind.capitalize()}: {name}", _Matrix.model_validate(values)))
        except ValidationError as error:
            raise DataError(f"{path} is no result of `{kind}`: {error}. Remove it, and it is copied again.") from error
    return found


def _matrix(title: str, found: _Matrix) -> Section:
    rows, columns = (list(dict.fromkeys(getattr(each, name) for each in found.cells)) for name in ("system", "column"))
    cells = {(each.system, each.column): each for each in found.cells}
    if len(rows) * len(columns) > _MAX_ROWS:
        raise DataError(f"{title} has {len(rows)} rows and {len(columns)} columns: too many for a page")
    tables = [_grid("P@1 (* trained for this column)", cells, {place: _value(each) for place, each in cells.items()})]
    gains = {"over the detector's own choice": "over_detector", "over the same LLM untrained": "over_untrained"}
    for caption, name in gains.items():
        texts = {place: getattr(each, name).text for place, each in cells.items() if getattr(each, name)}
        tables += [_grid(f"Points of P@1 gained {caption}", cells, texts)] if texts else []
    lines = [(each.system, each.detector, each.gain.text) for each in found.contributions]
    if lines:
        tables.append(Table("Points of P@1 that a detector adds", ("system", "detector", "adds"), lines, (1,)))
    heat = Heat(
        rows,
        columns,
        {(rows.index(s), columns.index(c)): _shade(each) for (s, c), each in cells.items()},
        frozenset((rows.index(s), columns.index(c)) for (s, c), each in cells.items() if each.at_home),
    )
    problems = [f"{each.system} on {each.column}: {each.problem}" for each in found.cells if each.problem]
    text = ["A row is a system, a column a detector on data; all rows of a column are about the same samples."]
    caption = "P@1 in percent; framed: trained for this column"
    if (number := len(rows) * len(columns)) > MAX_CELLS:
        caption = f"Not drawn: {number} cells, and {MAX_CELLS} is the most; the tables have all"
    figure = Figure(caption, heat_map(heat))
    return Section(title, text, tables, [figure], [*problems, *found.notes])


def _grid(caption: str, cells: Mapping[tuple[str, str], _Cell], texts: Mapping[tuple[str, str], str]) -> Table:
    """Lay texts out by row and column; a row without any is left out."""
    rows, columns = (list(dict.fromkeys(place[side] for place in cells)) for side in (0, 1))
    lines = [
        [row, *(texts.get((row, column), "") for column in columns)]
        for row in rows
        if any((row, column) in texts for column in columns)
    ]
    return Table(caption, ("system", *columns), lines)


def _value(cell: _Cell) -> str:
    text = percent(cell.result.estimate) if cell.result else NO_DATA
    return f"{text} *" if cell.at_home and cell.result else text


def _shade(cell: _Cell) -> tuple[float | None, str]:
    value = cell.result.p_at_1 if cell.result else None
    return (None, NO_DATA) if value is None else (100 * value, f"{100 * value:.1f}")


def _curve(name: str, found: _Curve) -> Section:
    lines = [(each.name, "", percent(each.estimate), "") for each in found.others]
    lines += [
        (each.name, f"{each.samples}", percent(each.result.estimate), each.over_untrained.text) for each in found.points
    ]
    table = Table("P@1 against training samples", ("system", "samples", "P@1", "over untrained"), lines)
    text = [f"On {found.column}. Untrained stands for 0 samples."]
    figure = Figure("P@1 against training samples, with 95 % bands", _drawn(found))
    return Section(f"Curve: {name}", text, [table], [figure], found.notes)


def _drawn(found: _Curve) -> str:
    series = []
    starts = [each for each in found.others if each.name == "untrained"]
    for place, name in enumerate(dict.fromkeys(each.series for each in found.points)):
        known: list[tuple[int, Estimate]] = [(0, each.estimate) for each in starts]
        known += [(each.samples, each.result.estimate) for each in found.points if each.series == name]
        series.append(_line(name, known, place))
    most = max((each.samples for each in found.points), default=1)
    for place, each in enumerate((each for each in found.others if each.name in ("detector", "rule")), len(series)):
        series.append(_line(each.name, [(0, each.estimate), (most, each.estimate)], place))
    return chart(series, x="training samples", y="P@1 in percent")


def _line(name: str, found: Sequence[tuple[int, Estimate]], place: int) -> Series:
    ordered = sorted(found, key=lambda pair: pair[0])
    return of_estimates(name, [x for x, _ in ordered], [each for _, each in ordered], place=place)


def _methods(name: str, found: _Methods) -> Section:
    gives: list[Sequence[str]] = [(each.name, percent(each.estimate), "", "") for each in found.others]
    gives += [(each.name, *_given(each)) for each in found.rows]
    takes = [(each.name, *_taken(each.took)) for each in found.rows if each.took]
    about = f"On {found.column}. Tokens went through the LLM; those that are trained on are counted three times."
    series = [
        of_estimates(each.name, [each.tokens], [each.result.estimate], place=place)
        for place, each in enumerate(found.rows)
        if each.tokens and each.result
    ]
    drawn = chart(series, x="tokens through the LLM", y="P@1 in percent", log=True)
    costs = ("tokens to prepare", "tokens to answer", "tokens an answer", "s to prepare", "s an answer")
    tables = [
        Table("P@1 of each method", ("method", "P@1", "over untrained", "labelled"), gives),
        Table("What each method takes", ("method", *costs), takes),
    ]
    figure = Figure("P@1 against compute, for preparing and for all answers", drawn)
    return Section(f"Methods: {name}", [about], tables, [figure], [*found.said, *found.notes])


def _given(each: _Method) -> list[str]:
    if each.result is None or each.took is None:
        return ["failed", "", ""]
    over = each.over_untrained
    return [percent(each.result.estimate), over.text if over else "", f"{each.took.labelled:,}"]


def _taken(took: _Took) -> list[str]:
    counts = (took.prepared.tokens, took.answered.tokens, took.tokens_per_answer)
    tokens = [NO_DATA if count is None else f"{count:,.0f}" for count in counts]
    per = NO_DATA if not took.num_asked else f"{took.answered.seconds / took.num_asked:.3f}"
    return [*tokens, f"{took.prepared.seconds:,.0f}", per]
