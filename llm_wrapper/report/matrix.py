"""The transfer matrix as Markdown, as JSON values, and as a heat map."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from llm_wrapper import storage
from llm_wrapper.evaluation.comparison import Comparison
from llm_wrapper.evaluation.ensemble import Contribution
from llm_wrapper.evaluation.transfer import Cell, Matrix
from llm_wrapper.metrics import Summary
from llm_wrapper.report.plots import MAX_CELLS, Heat, drawing_settings, paint
from llm_wrapper.report.tables import NO_DATA, escape_markdown, rows
from llm_wrapper.statistics import Interval

__all__ = [
    "contributions_markdown",
    "gained",
    "heat_map",
    "markdown",
    "p_at_1",
    "plain",
    "plain_contributions",
    "plain_gain",
]

_log = logging.getLogger(__name__)


def markdown(matrix: Matrix, notes: Sequence[str]) -> str:
    """Return the tables: P@1, what is gained over the detector and over the untrained LLM, and the notes."""
    gains = (("over the detector's own choice", _over_detector), ("over the same LLM untrained", _over_untrained))
    parts = ["P@1 in percent (IoU > 0.5; 95 % interval over images). Bold: trained for this column.\n"]
    parts.append(_table(matrix, _p_at_1))
    for title, text in gains:
        if any(text(cell) for cell in matrix.cells.values()):
            parts.append(f"Points of P@1 gained {title}, on the same samples (paired bootstrap; McNemar's p).\n")
            parts.append(_table(matrix, text))
    parts.append("".join(f"- {escape_markdown(note)}\n" for note in [*_sizes(matrix), *_problems(matrix), *notes]))
    return "\n".join(parts)


def plain_contributions(found: Sequence[Contribution]) -> list[dict[str, Any]]:
    """Return what each detector adds as JSON values."""
    return [{"system": each.system, "detector": each.detector, "gain": plain_gain(each.gain)} for each in found]


def contributions_markdown(found: Sequence[Contribution]) -> str:
    """Return a table of what each detector adds to each system."""
    lines = ["Points of P@1 that a detector adds: all detectors, minus all but this one, on the same samples.\n"]
    lines.append("| system | detector | adds |\n| --- | --- | ---: |")
    lines += [
        f"| {escape_markdown(each.system)} | {escape_markdown(each.detector)} | {gained(each.gain)} |" for each in found
    ]
    return "\n".join(lines) + "\n"


def plain(matrix: Matrix) -> list[dict[str, Any]]:
    """Return every cell as JSON values; fractions in 0..1, `None` where there is no data."""
    return [_plain_cell(cell) for cell in matrix.cells.values()]


def heat_map(matrix: Matrix, out: Path) -> None:
    """Draw P@1 of every cell with its interval; a frame marks the column that a system was trained for.

    A matrix of more than `plots.MAX_CELLS` is not drawn, which the log says; the table has all of it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, and only this needs it
    from matplotlib.figure import Figure

    if (number := len(matrix.systems) * len(matrix.columns)) > MAX_CELLS:
        out.unlink(missing_ok=True)  # one of an earlier, smaller matrix would be taken for this one's
        _log.warning("%s is not drawn: %d cells, and %d is the most; matrix.md has all", out, number, MAX_CELLS)
        return
    places = [(y, x, matrix.cells[s, c]) for y, s in enumerate(matrix.systems) for x, c in enumerate(matrix.columns)]
    cells = {(y, x): (_in_percent(cell), _on_map(_p_at_1(cell))) for y, x, cell in places}
    framed = frozenset((y, x) for y, x, cell in places if cell.at_home)
    size = (3.4 + 1.7 * len(matrix.columns), 1.6 + 0.62 * len(matrix.systems))
    content = BytesIO()
    with drawing_settings():
        figure = Figure(figsize=size, layout="constrained")
        axes = FigureCanvasAgg(figure).figure.add_subplot()
        paint(axes, Heat(matrix.systems, matrix.columns, cells, framed))
        axes.set_title("P@1 in percent (95 % interval); framed: trained for this column", fontsize=9)
        figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    storage.write_atomic(out, content.getvalue())


def _in_percent(cell: Cell) -> float | None:
    value = cell.summary.p_at_1 if cell.summary else None
    return None if value is None else 100 * value


def _on_map(text: str) -> str:
    return text.replace("**", "").replace(" (", "\n(")


def _table(matrix: Matrix, text: Callable[[Cell], str]) -> str:
    lines = [["system", *map(escape_markdown, matrix.columns)], ["---", *(["---:"] * len(matrix.columns))]]
    lines += [
        [escape_markdown(system), *(text(matrix.cells[system, column]) for column in matrix.columns)]
        for system in matrix.systems
        if any(text(matrix.cells[system, column]) for column in matrix.columns)
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def p_at_1(summary: Summary | None) -> str:
    """Return P@1 in percent with its interval."""
    if summary is None or summary.p_at_1 is None:
        return NO_DATA
    return f"{100 * summary.p_at_1:.1f}{_ends(summary.ci)}"


def _p_at_1(cell: Cell) -> str:
    text = p_at_1(cell.summary)
    return f"**{text}**" if cell.at_home and text != NO_DATA else text


def _over_detector(cell: Cell) -> str:
    return gained(cell.over_detector) if cell.over_detector else ""


def _over_untrained(cell: Cell) -> str:
    return gained(cell.over_untrained) if cell.over_untrained else ""


def gained(found: Comparison) -> str:
    """Return a difference in points of P@1 with its interval and McNemar's p."""
    gain, p_value = found.p_at_1, found.mcnemar.p_value
    if gain.value is None or p_value is None:
        return NO_DATA
    return f"{100 * gain.value:+.1f}{_ends(gain.ci)}, p {'< 0.001' if p_value < 0.001 else f'= {p_value:.3f}'}"


def _ends(interval: Interval | None) -> str:
    return " (no CI)" if interval is None else f" ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _sizes(matrix: Matrix) -> list[str]:
    """Say how many samples each column has: those of any cell that has predictions."""
    found = {cell.column: cell.summary for cell in matrix.cells.values() if cell.summary}
    return [f"{name}: {each.n} expressions with a target, {each.num_images} images" for name, each in found.items()]


def _problems(matrix: Matrix) -> list[str]:
    return [f"{cell.system} on {cell.column}: {cell.problem}" for cell in matrix.cells.values() if cell.problem]


def _plain_cell(cell: Cell) -> dict[str, Any]:
    return {
        "system": cell.system,
        "column": cell.column,
        "at_home": cell.at_home,
        "problem": cell.problem,
        "result": rows([cell.summary])[0] if cell.summary else None,
        "over_detector": plain_gain(cell.over_detector),
        "over_untrained": plain_gain(cell.over_untrained),
        "predictions": str(cell.path) if cell.path else None,
    }


def plain_gain(found: Comparison | None) -> dict[str, Any] | None:
    """Return a comparison as JSON values."""
    if found is None:
        return None
    # A named tuple would become a list, and lose the names.
    named = {name: getattr(found, name)._asdict() for name in ("p_at_1", "p_at_1_ge", "mean_iou", "mcnemar")}
    return {"a": found.a, "b": found.b, **named}
