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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from llm_wrapper import storage
from llm_wrapper.errors import DataError
from llm_wrapper.evaluation.methods import TRAINING, UNTRAINED
from llm_wrapper.readers import MIB, read_json
from llm_wrapper.report.formatting import NO_DATA, Figure, PageSection, Table, percent
from llm_wrapper.report.grid_values import MAX_ROWS, CurveFile, MatrixFile, MethodCosts, MethodsFile
from llm_wrapper.report.plots import MAX_CELLS, Chart, Heat, Series, save_plots, series_of
from llm_wrapper.statistics import Estimate
from llm_wrapper.storage import inside
from llm_wrapper.terminal import as_cell, say

STUDIES = "studies"
"""Folder in a run that holds the grids that the run is in."""

_STEMS = {"transfer": "matrix", "ensemble": "matrix", "curve": "curve", "methods": "methods"}
"""Kind -> name of its files without the suffix."""

_MAX_BYTES = 64 * MIB

_LEVELS = ("detector", "rule")
"""Systems that are levels in a curve, without bands."""

_Y = "P@1 in percent (IoU > 0.5)"
_P_AT_1 = "P@1 in percent (IoU > 0.5; 95 % interval over images)"
_GAINS = "Gains are on the same samples (paired bootstrap; McNemar's p)."


def write_study(kind: str, folder: Path, values: Mapping[str, Any], console: Console) -> None:
    """Write a grid as JSON, as Markdown and as a picture into a folder, and print it."""
    stem = _STEMS[kind]
    storage.write_json(folder / f"{stem}.json", dict(values))
    section = study_section(kind, folder.name, values)
    storage.write_atomic(folder / f"{stem}.md", section.markdown())
    title = section.title if len(section.figures) > 1 else f"{section.title}. {section.figures[0].caption}"
    for suffix in ("png", "svg") if kind == "methods" else ("png",):
        save_plots([figure.plot for figure in section.figures], folder / f"{stem}.{suffix}", title=title)
    for line in (section.title, *section.text):
        console.print(as_cell(f"{line}\n"))
    for table in section.tables:
        say(console, table.caption)
        console.print(table.terminal(console.width))
        console.print()
    for line in [*(f"- {note}" for note in section.notes), f"kept in {folder}"]:
        say(console, line)


def study_section(kind: str, name: str, values: Any) -> PageSection:
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


def _matrix_section(title: str, matrix: MatrixFile) -> PageSection:
    cells = {(cell.system, cell.column): cell for cell in matrix.cells}
    rows, columns = ([*dict.fromkeys(names)] for names in zip(*cells, strict=True)) if cells else ([], [])
    size = len(rows) * len(columns)
    if size > MAX_ROWS:
        raise DataError(f"{title} has {len(rows)} rows and {len(columns)} columns: too many for a page")

    def table(caption: str, texts: Mapping[tuple[str, str], str]) -> Table:
        """Lay texts out by row and column; a row without any is not shown."""
        lines = [[row, *(texts.get((row, column), "") for column in columns)] for row in rows]
        return Table(caption, ("system", *columns), [line for line in lines if any(line[1:])])

    p_at_1 = {place: percent(cell.result.estimate) if cell.result else NO_DATA for place, cell in cells.items()}
    starred = {place: f"{p_at_1[place]} *" if cell.at_home and cell.result else p_at_1[place]
               for place, cell in cells.items()}  # fmt: skip
    tables = [table("P@1 (* trained for this column)", starred)]
    for caption, key in {"own top-1 of the detector": "over_detector", "same LLM untrained": "over_untrained"}.items():
        gains = {place: gained.text for place, cell in cells.items() if (gained := getattr(cell, key))}
        tables += [table(f"Points of P@1 gained over the {caption}", gains)] if gains else []
    lines = [(each.system, each.detector, each.gain.text) for each in matrix.contributions]
    if lines:
        caption = "Points of P@1 that a detector adds: all detectors, minus all but this one"
        tables.append(Table(caption, ("system", "detector", "adds"), lines, (1,)))
    index = {(row, column): (y, x) for y, row in enumerate(rows) for x, column in enumerate(columns)}
    shades = {place: cell.result.p_at_1 if cell.result else None for place, cell in cells.items()}
    heat = Heat(
        rows,
        columns,
        {index[place]: (None if shade is None else 100 * shade, p_at_1[place].replace(" (", "\n("))
         for place, shade in shades.items()},
        frozenset(index[place] for place, cell in cells.items() if cell.at_home),
    )  # fmt: skip
    text = (
        f"{_P_AT_1}. A row is a system, a column a detector on data; all rows of a column are about the same samples."
    )
    sizes = {cell.column: f"{cell.column}: {cell.result.size}" for cell in matrix.cells if cell.result}
    notes = [
        *sizes.values(),
        *(f"{cell.system} on {cell.column}: {cell.problem}" for cell in matrix.cells if cell.problem),
    ]
    if size > MAX_CELLS:
        notes.append(f"The heat map is not drawn: {size} cells, and {MAX_CELLS} is the most; the tables have all")
    figure = Figure("P@1 in percent (95 % interval); framed: trained for this column", heat)
    return PageSection(title, [f"{text} {_GAINS}"], tables, [figure], [*notes, *matrix.notes])


def _curve_section(title: str, curve: CurveFile) -> PageSection:
    lines = [(each.name, "", "", percent(each.estimate), "", "") for each in curve.others]
    starts = [(0, each.estimate) for each in curve.others if each.name == UNTRAINED]
    series: dict[str, list[tuple[int, Estimate]]] = {}
    for point in curve.points:
        series.setdefault(point.series, [*starts]).append((point.samples, point.result.estimate))
        gains = [over.text if over else "" for over in (point.over_untrained, point.over_previous)]
        steps = "" if point.steps is None else f"{point.steps:,}"
        lines.append((point.name, f"{point.samples:,}", steps, percent(point.result.estimate), gains[0], gains[1]))
    most = max((point.samples for point in curve.points), default=1)
    series |= {each.name: [(0, each.estimate), (most, each.estimate)] for each in curve.others if each.name in _LEVELS}
    drawn: list[Series] = []
    for place, (name, pairs) in enumerate(series.items()):
        samples, estimates = zip(*sorted(pairs, key=lambda pair: pair[0]), strict=True)
        one = series_of(name, samples, estimates, place=place)
        drawn.append(replace(one, below=None, above=None) if name in _LEVELS else one)
    size = curve.others[0].size if curve.others else "no expressions"
    text = f"{_P_AT_1} on {curve.column}: {size}. Untrained is at 0 samples. {_GAINS}"
    head = ("system", "samples", "steps", "P@1", "over untrained", "over the point before")
    chart = Chart(drawn, "training samples", _Y, scale="from zero", bands=True)
    figure = Figure("P@1 against training samples, with 95 % bands", chart)
    return PageSection(title, [text], [Table("P@1 against training samples", head, lines)], [figure], curve.notes)


def _methods_section(title: str, found: MethodsFile) -> PageSection:
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
    levels = [series_of(name, [x], [each], place=place) for x, (name, each, place) in enumerate(known)]
    compute = [
        series_of(row.name, [row.tokens], [row.result.estimate], place=place)
        for place, row in enumerate(found.rows)
        if row.tokens and row.result
    ]
    size = found.others[0].size if found.others else "no expressions"
    text = [
        f"{_P_AT_1} on {found.column}: {size}. {_GAINS}",
        f"Tokens to prepare and to answer went through the LLM; one that is trained on counts {TRAINING} times. Tokens "
        "an answer: read and written, if its question went alone. Seconds are of the machine that ran it.",
    ]
    head = ("method", "tokens to prepare", "tokens to answer", "tokens an answer", "s to prepare", "s an answer")
    tables = [
        Table("P@1 of each method", ("method", "P@1", "over untrained", "labelled"), gives),
        Table("Cost of each method", head, costs),
    ]
    figures = [
        Figure("P@1 of each method", Chart(levels, "", _Y, ticks=names)),
        Figure("P@1 against compute", Chart(compute, "tokens through the LLM, all answers", _Y, scale="factors")),
    ]
    return PageSection(title, text, tables, figures, [*found.said, *found.notes])


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


def study_sections(folder: Path) -> list[PageSection]:
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
