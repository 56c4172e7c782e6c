"""The comparison of methods as Markdown, as JSON values, and as a plot: P@1, and P@1 against compute."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_wrapper import storage
from llm_wrapper.evaluation.methods import TRAINING, UNTRAINED, Methods, Row
from llm_wrapper.metrics import Summary
from llm_wrapper.report.matrix import gained, p_at_1, plain_gain
from llm_wrapper.report.plots import drawing_settings, factors, figure_text
from llm_wrapper.report.tables import NO_DATA, escape_markdown, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["markdown", "plain", "plot"]

_GIVES = ("method", "P@1", "over untrained", "labelled")
_TAKES = ("method", "tokens to prepare", "tokens to answer", "tokens an answer", "s to prepare", "s an answer")
_OTHERS, _ROWS = "#555555", "#0072b2"
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "os^Dv*P"


def markdown(found: Methods, notes: Sequence[str]) -> str:
    """Return two tables, what each method gives and what it takes, then what is said of each, and the notes.

    One table would be too wide for a terminal. Detector, rule and oracle stand above the methods.
    """
    first, column = found.others[0], escape_markdown(found.column)
    lines = [
        f"P@1 in percent (IoU > 0.5; 95 % interval over images) on {column}: n = {first.n} expressions "
        f"with a target, {first.num_images} images. Gains are on the same samples (paired bootstrap; McNemar's p).\n",
        *_head(_GIVES),
        *(_line(_GIVES, each.system, [p_at_1(each)]) for each in found.others),
        *(_line(_GIVES, each.name, _given(each)) for each in found.rows),
        f"\nTokens to prepare and to answer went through the LLM; one that is trained on counts {TRAINING} times. "
        "Tokens an answer: read and written, if its question went alone. Seconds are of this machine.\n",
        *_head(_TAKES),
        *(_line(_TAKES, each.name, _taken(each)) for each in found.rows),
    ]
    return (
        "\n".join([*lines, "", *(f"- {escape_markdown(note)}" for note in [*_said(found), *notes])]).rstrip("\n") + "\n"
    )


def _head(names: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", f"| --- |{' ---: |' * (len(names) - 1)}"]


def _line(names: Sequence[str], name: str, cells: Sequence[str]) -> str:
    empty = [""] * (len(names) - 1 - len(cells))
    return f"| {' | '.join([escape_markdown(name), *cells, *empty])} |"


def _given(row: Row) -> list[str]:
    if row.done is None:
        return ["failed"]
    return [p_at_1(row.summary), gained(row.over_untrained) if row.over_untrained else "", f"{row.done.labelled:,}"]


def _taken(row: Row) -> list[str]:
    done = row.done
    if done is None:
        return ["failed"]
    return [
        _count(done.prepared.tokens),
        _count(done.answered.tokens),
        _count(done.per_answer),
        f"{done.prepared.seconds:,.0f}",
        f"{done.answered.seconds / done.num_asked:.3f}" if done.num_asked else NO_DATA,
    ]


def _count(value: float | None) -> str:
    return NO_DATA if value is None else f"{value:,.0f}"


def _said(found: Methods) -> list[str]:
    """Say of each row what has to be said, and of a method that did not help that it did not."""
    lines = []
    for row in found.rows:
        if row.done is None:
            lines.append(f"{row.name} failed: {row.problem}; the same command tries it again")
            continue
        lines += [f"{row.name}: {note}" for note in row.done.notes]
        gain = row.over_untrained.p_at_1 if row.over_untrained else None
        if gain is not None and gain.ci is not None and gain.ci.low <= 0:
            lines.append(f"{row.name}: {_verdict(gain.ci.high)}")
    if any(row.name == UNTRAINED and row.done is None for row in found.rows):
        lines.append("nothing can be said of gains, as there is no untrained LLM to compare with")
    return lines


def _verdict(high: float) -> str:
    return "worse than the untrained LLM" if high < 0 else "not surely better than the untrained LLM"


def plain(found: Methods) -> dict[str, Any]:
    """Return everything as JSON values; fractions in 0..1."""
    return {
        "column": found.column,
        "others": rows(list(found.others)),
        "rows": [
            {
                "name": row.name,
                "problem": row.problem,
                "result": rows([row.summary])[0] if row.summary else None,
                "over_untrained": plain_gain(row.over_untrained),
                "tokens": row.done.tokens if row.done else None,
                "took": row.done.facts() if row.done else None,
                "run": str(row.done.folder) if row.done else None,
            }
            for row in found.rows
        ],
        "said": _said(found),
    }


def plot(found: Methods, folder: Path) -> None:
    """Draw methods.png and methods.svg: P@1 of each row with its interval, and against tokens through the LLM."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, and only this needs it
    from matplotlib.figure import Figure

    with drawing_settings({"svg.hashsalt": "llm-wrapper", "svg.fonttype": "none"}):
        figure = Figure(figsize=(11.5, 2.0 + 0.3 * (len(found.rows) + len(found.others))), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        _draw_levels(left, found)
        _draw_compute(right, found)
        title = f"{figure_text(found.column)}: {found.others[0].n} expressions, 95 % intervals over images"
        figure.suptitle(title, fontsize=10)
        for kind, more in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            content = BytesIO()
            figure.savefig(content, format=kind, dpi=150, metadata=more)
            storage.write_atomic(folder / f"methods.{kind}", content.getvalue())


def _draw_levels(axes: Axes, found: Methods) -> None:
    shown = [(each.system, each, _OTHERS) for each in found.others]
    shown += [(row.name, row.summary, _ROWS) for row in found.rows if row.summary]
    failed = [row.name for row in found.rows if row.summary is None]
    for place, (_, summary, color) in enumerate(shown):
        _dot(axes, place, summary, color)
    names = [name for name, _, _ in shown] + [f"{name} (failed)" for name in failed]
    axes.set_yticks(range(len(names)), [figure_text(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("P@1 in percent (IoU > 0.5)")
    axes.grid(color="#80808040")


def _dot(axes: Axes, place: int, summary: Summary, color: str) -> None:
    if summary.p_at_1 is not None:
        axes.errorbar(100 * summary.p_at_1, place, xerr=_off(summary), fmt="o", color=color, capsize=3)


def _off(summary: Summary) -> list[list[float]] | None:
    """Return how far the interval reaches below and above, in percent."""
    if summary.ci is None or summary.p_at_1 is None:
        return None
    return [[100 * (summary.p_at_1 - summary.ci.low)], [100 * (summary.ci.high - summary.p_at_1)]]


def _draw_compute(axes: Axes, found: Methods) -> None:
    for place, row in enumerate(found.rows):
        tokens = row.done.tokens if row.done else None
        if not tokens or row.summary is None or row.summary.p_at_1 is None:
            continue
        axes.errorbar(
            tokens, 100 * row.summary.p_at_1, yerr=_off(row.summary), label=" " + figure_text(row.name), capsize=3,
            fmt=_MARKERS[place % len(_MARKERS)], color=_COLORS[place % len(_COLORS)],
        )  # fmt: skip
    factors(axes)
    axes.set_xlabel("tokens through the LLM, to prepare and to answer all")
    axes.set_ylabel("P@1 in percent (IoU > 0.5)")
    axes.grid(color="#80808040")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
