"""Line charts as SVG text that takes the page's own color, so that it can be read on light and on dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from llm_wrapper.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Series", "chart", "of_estimates"]

_INK = "#010203"
"""Stands for the color of the page's text until the SVG is done; matplotlib does not know `currentColor`."""

# They can be told apart with every kind of color blindness (Okabe and Ito).
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")

_MANY = 60
"""From so many points on, a line is drawn without markers."""

_RC: Any = {  # matplotlib's own stubs want literal names
    "svg.fonttype": "none",
    "svg.hashsalt": "llm-wrapper",
    "text.parse_math": False,
    "font.size": 10,
    "legend.framealpha": 0.0,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "legend.labelcolor"), _INK
    ),
}


@dataclass(frozen=True, slots=True)
class Series:
    """One line: points (x, y), and how far each may be off below and above."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    below: Sequence[float] | None = None
    above: Sequence[float] | None = None


def of_estimates(name: str, x: Sequence[float], found: Sequence[Estimate]) -> Series:
    """Return shares in percent with their intervals; what has no value is left out."""
    points = [(place, each.value, each.ci) for place, each in zip(x, found, strict=True) if each.value is not None]
    return Series(
        name,
        [place for place, _, _ in points],
        [100 * value for _, value, _ in points],
        [100 * (value - ci.low) if ci else 0.0 for _, value, ci in points],
        [100 * (ci.high - value) if ci else 0.0 for _, value, ci in points],
    )


def chart(
    series: Sequence[Series], *, x: str, y: str, top: float | None = None, ticks: Sequence[str] | None = None
) -> str:
    """Draw lines and return them as an `<svg>` element, empty where there is no point.

    Args:
        series: The lines; one without points is left out.
        x: What the horizontal axis shows.
        y: What the vertical axis shows.
        top: The vertical axis goes from 0 to here; it fits the points where nothing is given.
        ticks: Names of the places 0, 1, .. of the horizontal axis; points are then not joined.
    """
    filled = [each for each in series if len(each.x)]
    if not filled:
        return ""
    import matplotlib  # half a second, and only the page needs it
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a person's own style would make another page of the same run
        matplotlib.rcParams.update(_RC)
        figure = Figure(figsize=(5.0, 3.2), layout="constrained")
        axes = FigureCanvasSVG(figure).figure.add_subplot()
        for place, each in enumerate(filled):
            _draw(axes, each, place, joined=ticks is None)
        _name_axes(axes, x, y, ticks)
        if top is not None:
            axes.set_ylim(0, top)
        content = StringIO()
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(content.getvalue())


def _draw(axes: Axes, each: Series, place: int, *, joined: bool) -> None:
    # A first letter "_" would hide a name from the legend; a letter that the font lacks would warn.
    label = " " + each.name.encode("ascii", "replace").decode()
    marker = "os^Dv"[place % 5] if len(each.x) < _MANY else ""
    style = ("-", "--", "-.", ":")[place % 4] if joined else "none"
    error = None if each.below is None or each.above is None else [each.below, each.above]
    axes.errorbar(
        each.x, each.y, yerr=error, label=label, color=_COLORS[place % 5], marker=marker, linestyle=style, capsize=3
    )


def _name_axes(axes: Axes, x: str, y: str, ticks: Sequence[str] | None) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#80808040")
    if ticks is not None:
        axes.set_xticks(range(len(ticks)), [name.encode("ascii", "replace").decode() for name in ticks])
        axes.margins(x=0.15)
    else:
        axes.legend()


def _inline(svg: str) -> str:
    """Return the bare element: without head, and without the ids that several figures of one page would share."""
    bare = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg[svg.index("<svg") :])
    # A style would hold for the whole page, and the metadata say nothing.
    bare = re.sub(r"<(style|metadata).*?</\1>\s*", "", bare, flags=re.DOTALL)
    return bare.replace(_INK, "currentColor").strip()
