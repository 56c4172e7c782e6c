"""Reports of grids: transfer matrices, ensembles, learning curves and comparisons of methods.

    cells --*_values--> JSON --write_study--> runs/transfer/<name>/matrix.json .md .png      (ensemble: the same)
                          |                   runs/curve/<name>/curve.json .md .png
                          |                   runs/methods/<name>/methods.json .md .png .svg
                          +--add_studies--> <run>/studies/<kind>-<name>.json --study_sections--> run page

Tables and pictures are made from the JSON, so the page of a run shows the same as the command printed, and needs
nothing but the run's own folder.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markdown import Markdown

from llm_wrapper import storage
from llm_wrapper.errors import DataError
from llm_wrapper.evaluation.methods import TRAINING, UNTRAINED
from llm_wrapper.readers import MIB, read_json
from llm_wrapper.report.formatting import (
    NO_DATA,
    Figure,
    Section,
    Table,
    percent,
)
from llm_wrapper.report.grid_values import MAX_ROWS, CurveFile, MatrixFile, MethodCosts, MethodsFile
from llm_wrapper.report.plots import MAX_CELLS, Chart, Heat, Series, save_plots, series_of
from llm_wrapper.statistics import Estimate
from llm_wrapper.storage import inside
from llm_wrapper.terminal import say

__all__ = ["STUDIES", "add_studies", "study_section", "study_sections", "write_study"]

STUDIES = "studies"
"""Folder in a run that holds the grids that the run is in."""

_STEMS = {"transfer": "matrix", "ensemble": "matrix", "curve": "curve", "methods": "methods"}
"""Kind -> name of its files without the suffix."""

_MAX_BYTES = 64 * MIB
_INTERVAL = re.compile(r"\(([^ ()]+) to ([^ ()]+)\)")


_LEVELS = ("detector", "rule")
"""Systems that are levels in a curve, without bands."""


def write_study(kind: str, folder: Path, values: Mapping[str, Any], console: Console) -> None:
    """Write a grid as JSON, as Markdown and as a picture into a folder, and print it."""
    stem = _STEMS[kind]
    storage.write_json(folder / f"{stem}.json", dict(values))
    section = study_section(kind, folder.name, values)
    text = section.markdown()
    storage.write_atomic(folder / f"{stem}.md", text)
    title = section.title if len(section.figures) > 1 else f"{section.title}. {section.figures[0].caption}"
    for suffix in ("png", "svg") if kind == "methods" else ("png",):
        save_plots([figure.plot for figure in section.figures], folder / f"{stem}.{suffix}", title=title)
    # A line breaks at a space, and never within an interval.
    console.print(Markdown(_INTERVAL.sub("(\\1\u00a0to\u00a0\\2)", text)))
    say(console, f"kept in {folder}")


_GAINS = "Gains are on the same samples (paired bootstrap; McNemar's p)."


def study_section(kind: str, name: str, values: Any) -> Section:
    """Return the tables and figures of a grid.

    Raises:
        ValidationError: If the values are no grid of this kind.
    """
    title = f"{kind.capitalize()}: {name}"
    if kind == "methods":
        return _methods_section(title, MethodsFile.model_validate(values))
    if kind == "curve":
        return _curve_section(title, CurveFile.model_validate(values))
    return _matrix_section(title, MatrixFile.model_validate(values))


def _matrix_section(title: str, found: MatrixFile) -> Section:
    rows, columns = (list(dict.fromkeys(getattr(each, name) for each in found.cells)) for name in ("system", "column"))
    if (number := len(rows) * len(columns)) > MAX_ROWS:
        raise DataError(f"{title} has {len(rows)} rows and {len(columns)} columns: too many for a page")
    cells = {(each.system, each.column): each for each in found.cells}
    p_at_1 = {place: percent(each.result.estimate) if each.result else NO_DATA for place, each in cells.items()}
    starred = {place: f"{text} *" if cells[place].at_home and cells[place].result else text
               for place, text in p_at_1.items()}  # fmt: skip
    tables = [_table_of("P@1 (* trained for this column)", (rows, columns), starred)]
    for caption, key in {"own top-1 of the detector": "over_detector", "same LLM untrained": "over_untrained"}.items():
        texts = {place: getattr(each, key).text for place, each in cells.items() if getattr(each, key)}
        tables += [_table_of(f"Points of P@1 gained over the {caption}", (rows, columns), texts)] if texts else []
    lines = [(each.system, each.detector, each.gain.text) for each in found.contributions]
    if lines:
        caption = "Points of P@1 that a detector adds: all detectors, minus all but this one"
        tables.append(Table(caption, ("system", "detector", "adds"), lines, (1,)))
    shades = {place: each.result.p_at_1 if each.result else None for place, each in cells.items()}
    heat = Heat(
        rows,
        columns,
        {(rows.index(s), columns.index(c)): (None if shade is None else 100 * shade, p_at_1[s, c].replace(" (", "\n("))
         for (s, c), shade in shades.items()},
        frozenset((rows.index(s), columns.index(c)) for (s, c), each in cells.items() if each.at_home),
    )  # fmt: skip
    sizes = {each.column: f"{each.column}: {each.result.size}" for each in found.cells if each.result}
    problems = [f"{each.system} on {each.column}: {each.problem}" for each in found.cells if each.problem]
    large = f"The heat map is not drawn: {number} cells, and {MAX_CELLS} is the most; the tables have all"
    text = [
        "P@1 in percent (IoU > 0.5; 95 % interval over images). A row is a system, a column a detector on data; all "
        f"rows of a column are about the same samples. {_GAINS}"
    ]
    figures = [Figure("P@1 in percent (95 % interval); framed: trained for this column", heat)]
    notes = [*sizes.values(), *problems, *[large] * (number > MAX_CELLS), *found.notes]
    return Section(title, text, tables, figures, notes)


def _table_of(caption: str, names: tuple[list[str], list[str]], texts: Mapping[tuple[str, str], str]) -> Table:
    """Lay texts out by row and column; a row without any is not shown."""
    rows, columns = names
    lines = [
        [row, *(texts.get((row, column), "") for column in columns)]
        for row in rows
        if any((row, column) in texts for column in columns)
    ]
    return Table(caption, ("system", *columns), lines)


def _curve_section(title: str, found: CurveFile) -> Section:
    lines = [(each.name, "", "", percent(each.estimate), "", "") for each in found.others]
    for each in found.points:
        gains = [over.text if over else "" for over in (each.over_untrained, each.over_previous)]
        steps = "" if each.steps is None else f"{each.steps:,}"
        lines.append((each.name, f"{each.samples:,}", steps, percent(each.result.estimate), gains[0], gains[1]))
    head = ("system", "samples", "steps", "P@1", "over untrained", "over the point before")
    size = found.others[0].size if found.others else "no expressions"
    text = [f"P@1 in percent (IoU > 0.5; 95 % interval over images) on {found.column}: {size}. Untrained is at 0 "
            f"samples. {_GAINS}"]  # fmt: skip
    figure = Figure("P@1 against training samples, with 95 % bands", _curve_chart(found))
    return Section(title, text, [Table("P@1 against training samples", head, lines)], [figure], found.notes)


def _curve_chart(found: CurveFile) -> Chart:
    starts = [(0, each.estimate) for each in found.others if each.name == UNTRAINED]
    lines: dict[str, list[tuple[int, Estimate]]] = {}
    for each in found.points:
        lines.setdefault(each.series, [*starts]).append((each.samples, each.result.estimate))
    most = max((each.samples for each in found.points), default=1)
    for other in found.others:
        if other.name in _LEVELS:
            lines[other.name] = [(0, other.estimate), (most, other.estimate)]
    series: list[Series] = []
    for place, (name, line) in enumerate(lines.items()):
        ordered = sorted(line, key=lambda pair: pair[0])
        one = series_of(name, [x for x, _ in ordered], [each for _, each in ordered], place=place)
        series.append(replace(one, below=None, above=None) if name in _LEVELS else one)
    return Chart(series, "training samples", "P@1 in percent (IoU > 0.5)", scale="from zero", bands=True)


def _methods_section(title: str, found: MethodsFile) -> Section:
    gives: list[Sequence[str]] = [(each.name, percent(each.estimate), "", "") for each in found.others]
    costs = []
    for row in found.rows:
        if row.result is None or row.took is None:
            gives.append((row.name, "failed", "", ""))
            continue
        over = row.over_untrained.text if row.over_untrained else ""
        gives.append((row.name, percent(row.result.estimate), over, f"{row.took.labelled:,}"))
        costs.append((row.name, *_cost_cells(row.took)))
    known = [(each.name, each.estimate, 1) for each in found.others]
    known += [(row.name, row.result.estimate, 0) for row in found.rows if row.result]
    names = [name for name, _, _ in known] + [f"{row.name} (failed)" for row in found.rows if row.result is None]
    levels = [series_of(name, [at], [each], place=place) for at, (name, each, place) in enumerate(known)]
    compute = [
        series_of(row.name, [row.tokens], [row.result.estimate], place=place)
        for place, row in enumerate(found.rows)
        if row.tokens and row.result
    ]
    size = found.others[0].size if found.others else "no expressions"
    text = [
        f"P@1 in percent (IoU > 0.5; 95 % interval over images) on {found.column}: {size}. {_GAINS}",
        f"Tokens to prepare and to answer went through the LLM; one that is trained on counts {TRAINING} times. Tokens "
        "an answer: read and written, if its question went alone. Seconds are of the machine that ran it.",
    ]
    head = ("method", "tokens to prepare", "tokens to answer", "tokens an answer", "s to prepare", "s an answer")
    tables = [
        Table("P@1 of each method", ("method", "P@1", "over untrained", "labelled"), gives),
        Table("Cost of each method", head, costs),
    ]
    y = "P@1 in percent (IoU > 0.5)"
    figures = [
        Figure("P@1 of each method", Chart(levels, "", y, ticks=names)),
        Figure("P@1 against compute", Chart(compute, "tokens through the LLM, all answers", y, scale="factors")),
    ]
    return Section(title, text, tables, figures, [*found.said, *found.notes])


def _cost_cells(costs: MethodCosts) -> list[str]:
    counts = (costs.prepared.tokens, costs.answered.tokens, costs.tokens_per_answer)
    tokens = [NO_DATA if count is None else f"{count:,.0f}" for count in counts]
    per_answer = NO_DATA if not costs.num_asked else f"{costs.answered.seconds / costs.num_asked:.3f}"
    return [*tokens, f"{costs.prepared.seconds:,.0f}", per_answer]


def add_studies(folder: Path) -> None:
    """Copy the grids that name a run into its folder; copies are renewed while the originals exist.

    Raises:
        DataError: If a file is damaged.
    """
    runs = folder.resolve().parent
    for kind, path in _find_studies(runs):
        found = read_json(inside(runs.parent if kind == "methods" else runs, path), most=_MAX_BYTES)
        named = {run for run in _run_folders(found) if run.name == folder.resolve().name}
        if kind == "methods" and path.parent != runs:  # rows of different comparisons have the same names
            named = {run for run in named if run.parent.name == runs.name}
        if named:
            storage.write_json(inside(folder, Path(STUDIES) / f"{kind}-{path.parent.name}.json"), found)


def _find_studies(runs: Path) -> Iterator[tuple[str, Path]]:
    """Yield (kind, file) of each grid beside some runs, and of the comparisons that they are the rows of."""
    for kind in ("transfer", "ensemble", "curve"):
        yield from ((kind, path) for path in sorted(runs.glob(f"{kind}/*/{_STEMS[kind]}.json")))
    # A comparison of another question has a digest behind its name, and may share the folders of its rows.
    others = sorted(runs.parent.glob(f"{glob.escape(runs.name)}-[0-9a-f]*/methods.json"))
    yield from (("methods", path) for path in (runs / "methods.json", *others) if path.is_file())


def _run_folders(found: Any) -> set[PurePath]:
    """Return the folders of the runs that a grid names."""
    if not isinstance(found, dict):
        return set()
    rows, runs = found.get("rows"), found.get("runs")  # rows: of a comparison of methods
    named = [*(runs if isinstance(runs, dict) else ()), found.get("run")]
    named += [each.get("run") for each in rows if isinstance(each, dict)] if isinstance(rows, list) else []
    return {PurePath(each) for each in named if isinstance(each, str)}


def study_sections(folder: Path) -> list[Section]:
    """Return a section for each grid in a run's folder.

    Raises:
        DataError: If one is damaged.
    """
    found = []
    for path in sorted((folder / STUDIES).glob("*.json")):
        kind, _, name = path.stem.partition("-")
        if kind not in _STEMS:
            continue
        values = read_json(inside(folder, path), most=_MAX_BYTES)
        try:
            found.append(study_section(kind, name, values))
        except ValidationError as error:
            raise DataError(f"{path} is no result of `{kind}`: {error}. Remove it, and it is copied again.") from error
    return found
