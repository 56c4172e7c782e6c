"""The transfer matrix as Markdown, as JSON values, and as a heat map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from llm_wrapper import artifacts
from llm_wrapper.evaluation.ensemble import Contribution
from llm_wrapper.evaluation.paired import Comparison
from llm_wrapper.evaluation.transfer import Cell, Matrix
from llm_wrapper.report.tables import NO_DATA, rows
from llm_wrapper.statistics import Interval

__all__ = ["contributions_markdown", "heat_map", "markdown", "plain", "plain_contributions"]


def markdown(matrix: Matrix, notes: Sequence[str]) -> str:
    """Return the tables: P@1, what is gained over the detector and over the untrained LLM, and the notes."""
    gains = (("over the detector's own choice", _over_detector), ("over the same LLM untrained", _over_untrained))
    parts = ["P@1 in percent (IoU > 0.5; 95 % interval over images). Bold: trained for this column.\n"]
    parts.append(_table(matrix, _p_at_1))
    for title, text in gains:
        if any(text(cell) for cell in matrix.cells.values()):
            parts.append(f"Points of P@1 gained {title}, on the same samples (paired bootstrap; McNemar's p).\n")
            parts.append(_table(matrix, text))
    parts.append("".join(f"- {_line(note)}\n" for note in [*_sizes(matrix), *_problems(matrix), *notes]))
    return "\n".join(parts)


def plain_contributions(found: Sequence[Contribution]) -> list[dict[str, Any]]:
    """Return what each detector adds as JSON values."""
    return [{"system": each.system, "detector": each.detector, "gain": _plain_gain(each.gain)} for each in found]


def contributions_markdown(found: Sequence[Contribution]) -> str:
    """Return a table of what each detector adds to each system."""
    lines = ["Points of P@1 that a detector adds: all detectors, minus all but this one, on the same samples.\n"]
    lines.append("| system | detector | adds |\n| --- | --- | ---: |")
    lines += [f"| {_line(each.system)} | {_line(each.detector)} | {_gained(each.gain)} |" for each in found]
    return "\n".join(lines) + "\n"


def plain(matrix: Matrix) -> list[dict[str, Any]]:
    """Return every cell as JSON values; fractions in 0..1, `None` where there is no data."""
    return [_plain_cell(cell) for cell in matrix.cells.values()]


def heat_map(matrix: Matrix, out: Path) -> None:
    """Draw P@1 of every cell with its interval; a frame marks the column that a system was trained for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, and only this needs it
    from matplotlib.figure import Figure

    places = [(y, x, matrix.cells[s, c]) for y, s in enumerate(matrix.systems) for x, c in enumerate(matrix.columns)]
    values = np.full((len(matrix.systems), len(matrix.columns)), np.nan)
    for y, x, cell in places:
        values[y, x] = np.nan if _value(cell) is None else 100 * (_value(cell) or 0.0)
    known = values[np.isfinite(values)]
    middle = (known.min() + known.max()) / 2 if len(known) else 0.0
    figure = Figure(figsize=(3.4 + 1.7 * len(matrix.columns), 1.6 + 0.62 * len(matrix.systems)), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    # Cividis is the same picture for every kind of color vision.
    shown = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", aspect="auto")
    for y, x, cell in places:
        dark = bool(values[y, x] < middle)
        text = _p_at_1(cell).replace("**", "").replace(" (", "\n(")
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        if cell.at_home:
            axes.add_patch(_frame(x, y))
    axes.set_xticks(range(len(matrix.columns)), [name.replace(" / ", "\n") for name in matrix.columns])
    axes.set_yticks(range(len(matrix.systems)), matrix.systems)
    axes.set_title("P@1 in percent (95 % interval); framed: trained for this column", fontsize=9)
    figure.colorbar(shown, ax=axes)
    content = BytesIO()
    figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    artifacts.write_atomic(out, content.getvalue())


def _frame(x: int, y: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, fill=False, edgecolor="#d55e00", linewidth=2.5)


def _table(matrix: Matrix, text: Callable[[Cell], str]) -> str:
    lines = [["system", *map(_line, matrix.columns)], ["---", *(["---:"] * len(matrix.columns))]]
    lines += [
        [_line(system), *(text(matrix.cells[system, column]) for column in matrix.columns)]
        for system in matrix.systems
        if any(text(matrix.cells[system, column]) for column in matrix.columns)
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _value(cell: Cell) -> float | None:
    return cell.summary.p_at_1 if cell.summary else None


def _p_at_1(cell: Cell) -> str:
    if cell.summary is None or cell.summary.p_at_1 is None:
        return NO_DATA
    text = f"{100 * cell.summary.p_at_1:.1f}{_ends(cell.summary.ci)}"
    return f"**{text}**" if cell.at_home else text


def _over_detector(cell: Cell) -> str:
    return _gained(cell.over_detector) if cell.over_detector else ""


def _over_untrained(cell: Cell) -> str:
    return _gained(cell.over_untrained) if cell.over_untrained else ""


def _gained(found: Comparison) -> str:
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
        "over_detector": _plain_gain(cell.over_detector),
        "over_untrained": _plain_gain(cell.over_untrained),
        "predictions": str(cell.path) if cell.path else None,
    }


def _plain_gain(found: Comparison | None) -> dict[str, Any] | None:
    if found is None:
        return None
    # A named tuple would become a list, and lose the names.
    named = {name: getattr(found, name)._asdict() for name in ("p_at_1", "p_at_1_ge", "mean_iou", "mcnemar")}
    return {"a": found.a, "b": found.b, **named}


def _line(text: str) -> str:
    """Keep a text in its cell or line: no line breaks, no bars, no HTML."""
    flat = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
    return flat.replace("&", "&amp;").replace("<", "&lt;")
