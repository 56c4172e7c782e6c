"""How time grows, as two small tables and one picture with two charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from llm_wrapper.report.formatting import escape_markdown
from llm_wrapper.report.plots import drawing_settings, figure_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Steps = Mapping[int, Mapping[str, float]]
"""Number of expressions, or of candidates, -> step -> seconds per expression."""

CANDIDATE_COLUMNS = {
    "tokens": "tokens of a prompt",
    "shared": "scoring, shared",
    "single": "scoring, single",
    "training": "training step",
}

_LINES = 5
"""The slowest steps are drawn one by one; the table has all."""

# Distinct with every kind of color blindness (Okabe and Ito).
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#000000")


def size_rows(seconds: Steps, cpu: Steps) -> list[list[str]]:
    """Return a row for each step: ms per expression at each size, and how many times the last is the one before.

    The ratio is of computing time, which other work on the machine hardly moves: 1.0 is growth in proportion, ten times
    as many expressions with 10.0 would be a square.
    """
    sizes = sorted(seconds)
    steps = dict.fromkeys(step for size in sizes for step in seconds[size])
    return [
        [step, *(_ms(seconds[size].get(step)) for size in sizes), _ratio([cpu[size].get(step) for size in sizes])]
        for step in steps
    ]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.3g}"


def _ratio(values: Sequence[float | None]) -> str:
    known = [value for value in values if value]
    return f"{known[-1] / known[-2]:.2f}" if len(known) > 1 else "-"


def markdown(seconds: Steps, cpu: Steps, candidates: Steps, notes: Sequence[str]) -> str:
    """Return both tables, in ms per expression, with the notes below them."""
    sizes = [f"{size:,}" for size in sorted(seconds)]
    first = _table(["ms per expression", *sizes, "grows by"], size_rows(seconds, cpu))
    columns = [each if key == "tokens" else f"{each}, ms" for key, each in CANDIDATE_COLUMNS.items()]
    second = _table(["candidates", *columns], candidate_rows(candidates))
    return "\n\n".join(part for part in (first, second, *notes) if part) + "\n"


def candidate_rows(candidates: Steps) -> list[list[str]]:
    """Return a row for each number of candidates: tokens, and ms per expression of each way."""
    return [
        [
            str(number),
            *(f"{found[key]:.0f}" if key == "tokens" else _ms(found[key]) for key in CANDIDATE_COLUMNS),
        ]
        for number, found in sorted(candidates.items())
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *(map(escape_markdown, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def picture(seconds: Steps, candidates: Steps, *, kind: str) -> bytes:
    """Draw ms per expression against the number of expressions (both logarithmic) and of candidates.

    Args:
        seconds: The five slowest steps become lines.
        candidates: Each way becomes a line.
        kind: "svg" or "png".
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    content = BytesIO()
    with drawing_settings({"svg.hashsalt": "llm-wrapper", "font.size": 9}):
        figure = Figure(figsize=(9.0, 3.6), layout="constrained")
        left, right = FigureCanvasAgg(figure).figure.subplots(1, 2)
        _draw(left, seconds, _slowest(seconds), "expressions")
        left.set(xscale="log", yscale="log")
        left.set_xticks(sorted(seconds), [f"{size:,}" for size in sorted(seconds)])
        left.set_xticks([], minor=True)
        left.yaxis.set_major_formatter("{x:g}")
        _draw(right, candidates, [key for key in CANDIDATE_COLUMNS if key != "tokens"], "candidates")
        right.set_xticks(sorted(candidates))
        right.set_ylim(bottom=0)
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(content, format=kind, dpi=120, metadata=metadata)
    return content.getvalue()


def _slowest(seconds: Steps) -> list[str]:
    """Return the steps that take longest at the largest size that has them, slowest first."""
    last = {step: value for size in sorted(seconds) for step, value in seconds[size].items()}
    return sorted(last, key=lambda step: -last[step])[:_LINES]


def _draw(axes: Axes, found: Steps, names: Sequence[str], x: str) -> None:
    for place, name in enumerate(names):
        points = [(number, 1000 * found[number][name]) for number in sorted(found) if name in found[number]]
        if points:
            axes.plot(
                [number for number, _ in points],
                [value for _, value in points],
                label=" " + figure_text(CANDIDATE_COLUMNS.get(name, name)),
                color=_COLORS[place],
                marker="os^Dv"[place],
            )
    axes.set_xlabel(x)
    axes.set_ylabel("ms per expression")
    axes.grid(color="#80808040")
    if axes.has_data():
        axes.legend(fontsize=8)
