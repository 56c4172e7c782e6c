"""A learning curve as Markdown, as JSON values, and as a plot with 95 % bands."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_wrapper import storage
from llm_wrapper.evaluation.curve import RULE, UNTRAINED, Curve, Measured
from llm_wrapper.evaluation.transfer_rows import DETECTOR
from llm_wrapper.metrics import Summary
from llm_wrapper.report.matrix import gained, p_at_1, plain_gain
from llm_wrapper.report.plots import drawing_settings, figure_text
from llm_wrapper.report.tables import escape_markdown, rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["markdown", "plain", "plot"]

_COLORS = ("#0072b2", "#d55e00")
_LEVELS = {DETECTOR: ("#009e73", "--"), RULE: ("#555555", ":")}
_LEAST_RATIO = 1.3
"""Of two ticks; closer ones would be written over each other."""


def markdown(curve: Curve, notes: Sequence[str]) -> str:
    """Return the table: one line a point, behind detector, rule, oracle and the untrained LLM; and the notes."""
    untrained = curve.others[UNTRAINED]
    lines = [
        f"P@1 in percent (IoU > 0.5; 95 % interval over images) on {escape_markdown(curve.column)}: {untrained.n} "
        f"expressions with a target, {untrained.num_images} images. Gains are on the same samples (paired bootstrap; "
        "McNemar's p).\n",
        "| system | samples | steps | P@1 | over untrained | over the point before |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [f"| {name} | | | {p_at_1(each)} | | |" for name, each in curve.others.items() if name != UNTRAINED]
    lines.append(f"| {UNTRAINED} | 0 | 0 | {p_at_1(untrained)} | | |")
    lines += [_line(each) for each in curve.points]
    return "\n".join([*lines, "", *(f"- {escape_markdown(note)}" for note in notes)]).rstrip("\n") + "\n"


def _line(each: Measured) -> str:
    point, over = each.point, gained(each.over_previous) if each.over_previous else ""
    cells = [escape_markdown(point.name), f"{point.num_samples:,}", f"{point.num_steps:,}", p_at_1(each.summary)]
    return f"| {' | '.join([*cells, gained(each.over_untrained), over])} |"


def plain(curve: Curve) -> dict[str, Any]:
    """Return everything as JSON values; fractions in 0..1."""
    return {
        "column": curve.column,
        "others": rows(list(curve.others.values())),
        "points": [
            {
                "name": each.point.name,
                "series": each.point.series,
                "samples": each.point.num_samples,
                "steps": each.point.num_steps,
                "adapter": str(each.point.adapter),
                "result": rows([each.summary])[0],
                "over_untrained": plain_gain(each.over_untrained),
                "over_previous": plain_gain(each.over_previous),
                "predictions": str(each.path),
            }
            for each in curve.points
        ],
    }


def plot(curve: Curve, out: Path) -> None:
    """Draw P@1 with its bands, from the untrained LLM as sample 0; detector and rule are levels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, and only this needs it
    from matplotlib.figure import Figure

    with drawing_settings():
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = FigureCanvasAgg(figure).figure.add_subplot()
        _draw_series(axes, curve)
        for name, (color, style) in _LEVELS.items():
            value = curve.others[name].p_at_1
            if value is not None:
                axes.axhline(100 * value, color=color, linestyle=style, label=f"{name} ({100 * value:.1f})")
        _scale(axes, [each.point.num_samples for each in curve.points])
        axes.set_ylabel("P@1 in percent (IoU > 0.5)")
        axes.set_title(f"{figure_text(curve.column)}: {curve.others[UNTRAINED].n} expressions, 95 % bands", fontsize=10)
        axes.grid(color="#80808040")
        axes.legend(fontsize=8)
        content = BytesIO()
        figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    storage.write_atomic(out, content.getvalue())


def _draw_series(axes: Axes, curve: Curve) -> None:
    for place, series in enumerate(dict.fromkeys(each.point.series for each in curve.points)):
        found: list[tuple[int, Summary]] = [(0, curve.others[UNTRAINED])]
        found += [(each.point.num_samples, each.summary) for each in curve.points if each.point.series == series]
        known = [(x, 100 * each.p_at_1, each.ci) for x, each in found if each.p_at_1 is not None]
        x, y = [row[0] for row in known], [row[1] for row in known]
        low = [100 * ci.low if ci else value for _, value, ci in known]
        high = [100 * ci.high if ci else value for _, value, ci in known]
        axes.fill_between(x, low, high, color=_COLORS[place], alpha=0.2, linewidth=0)
        axes.plot(x, y, color=_COLORS[place], marker="os"[place], label=" " + figure_text(series))


def _scale(axes: Axes, samples: Sequence[int]) -> None:
    """Scale by ratios beyond the fewest samples; below them it is linear, so that 0 has a place."""
    least = min((x for x in samples if x), default=1)
    axes.set_xscale("symlog", linthresh=least, linscale=0.6)
    ticks = [0]
    for x in sorted(samples):
        if x > _LEAST_RATIO * ticks[-1]:
            ticks.append(x)
    axes.set_xticks(ticks, [f"{x:,}" for x in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(left=0)
    axes.set_xlabel("training samples")
