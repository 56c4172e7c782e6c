"""Line charts as SVG text that takes the page's own color, so that it can be read on light and on dark."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from llm_wrapper.statistics import Estimate
from llm_wrapper.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "MAX_CELLS",
    "Heat",
    "Series",
    "chart",
    "drawing_settings",
    "factors",
    "figure_text",
    "heat_map",
    "of_estimates",
    "paint",
]

_INK = "#010203"
"""Stands for the color of the page's text until the SVG is done; matplotlib does not know `currentColor`."""

# They can be told apart with every kind of color blindness (Okabe and Ito).
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")

_STYLES: tuple[Any, ...] = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))

_LONG = 50
"""Letters of all ticks together that still stand side by side."""

_FEW = 6
"""Ticks with long names that stand side by side a little turned; more need a turn more."""

_LONGEST = 32
"""Letters of a name in a chart."""

MAX_CELLS = 400
"""Cells of a matrix that is drawn; each needs about 4 square centimetres, and 2,000 in a row were 24 GB of pixels."""

_MANY = 60
"""From so many points on, a line is drawn without markers."""

_RC: Any = {  # matplotlib's own stubs want literal names
    "svg.fonttype": "none",
    "svg.hashsalt": "llm-wrapper",
    "font.size": 10,
    "legend.framealpha": 0.0,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "legend.labelcolor"), _INK
    ),
}


@dataclass(frozen=True, slots=True)
class Series:
    """One line: points (x, y), and how far each may be off below and above.

    `place` decides color, marker and dashes, so that a system looks the same in every chart of a page; the ideal that
    the others are held against has none, and is thin and without markers.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    below: Sequence[float] | None = None
    above: Sequence[float] | None = None
    place: int | None = 0


@dataclass(frozen=True, slots=True)
class Heat:
    """A matrix to be shown by color.

    Attributes:
        rows: Names from the top.
        columns: Names from the left; " / " becomes a line break.
        cells: (row, column), from 0 -> value (`None` without one) and text.
        framed: The cells that a frame marks.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[int, int], tuple[float | None, str]]
    framed: frozenset[tuple[int, int]]


def of_estimates(name: str, x: Sequence[float], found: Sequence[Estimate], *, place: int = 0) -> Series:
    """Return shares in percent with their intervals; what has no value is left out."""
    points = [(at, each.value, each.ci) for at, each in zip(x, found, strict=True) if each.value is not None]
    return Series(
        name,
        [at for at, _, _ in points],
        [100 * value for _, value, _ in points],
        [100 * (value - ci.low) if ci else 0.0 for _, value, ci in points],
        [100 * (ci.high - value) if ci else 0.0 for _, value, ci in points],
        place,
    )


def chart(
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    top: float | None = None,
    ticks: Sequence[str] | None = None,
    log: bool = False,
) -> str:
    """Draw lines and return them as an `<svg>` element, empty where there is no point.

    Args:
        series: The lines; one without points is left out.
        x: What the horizontal axis shows.
        y: What the vertical axis shows.
        top: The vertical axis goes from 0 to here; it fits the points where nothing is given.
        ticks: Names of the places 0, 1, .. of the horizontal axis; points are then not joined.
        log: The horizontal axis goes by factors.
    """
    filled = [each for each in series if len(each.x)]
    if not filled:
        return ""
    lines = 0 if ticks is not None or len(filled) < 2 else (len(filled) + 1) // 2
    turned = 1.4 if ticks is not None and len(ticks) > _FEW else 0.0
    with _drawing((5.0, 3.0 + 0.22 * lines + turned)) as (axes, done):
        for each in filled:
            _draw(axes, each, joined=ticks is None)
        _name_axes(axes, x, y, ticks)
        if top is not None:
            axes.set_ylim(0, top)
        if log:
            factors(axes)
    return done[0]


def factors(axes: Axes) -> None:
    """Let a horizontal axis go by factors, with plain numbers (20k, 50k, 100k)."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())


def heat_map(heat: Heat) -> str:
    """Draw a matrix and return it as an `<svg>` element, empty where there is no cell, or more than `MAX_CELLS`."""
    if not heat.cells or len(heat.rows) * len(heat.columns) > MAX_CELLS:
        return ""
    with _drawing((2.6 + 1.3 * len(heat.columns), 1.0 + 0.5 * len(heat.rows))) as (axes, done):
        paint(axes, heat)
    return done[0]


def paint(axes: Axes, heat: Heat) -> None:
    """Draw a matrix by color, with the text of each cell."""
    import numpy as np
    from matplotlib.patches import Rectangle

    values = np.full((len(heat.rows), len(heat.columns)), np.nan)
    for place, (value, _) in heat.cells.items():
        values[place] = np.nan if value is None else value
    known = values[np.isfinite(values)]
    middle = (known.min() + known.max()) / 2 if len(known) else 0.0
    # Cividis is the same picture for every kind of color vision.
    shown = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", aspect="auto")
    for (y, x), (value, text) in heat.cells.items():
        ink = _INK if value is None else "white" if value < middle else "black"
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color=ink)
    for y, x in heat.framed:
        axes.add_patch(Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, fill=False, edgecolor="#d55e00", linewidth=2.5))
    axes.set_xticks(range(len(heat.columns)), [figure_text(name).replace(" / ", "\n") for name in heat.columns])
    axes.set_yticks(range(len(heat.rows)), [figure_text(name) for name in heat.rows])
    if len(known):
        axes.figure.colorbar(shown, ax=axes)


@contextmanager
def drawing_settings(settings: Mapping[str, Any] | None = None) -> Iterator[None]:
    r"""Draw by matplotlib's defaults and these settings, and take every name as text.

    A user's own style would make another picture of the same numbers, and `$\frac$` in a name is no formula.
    """
    import matplotlib

    chosen: Any = {**(settings or {}), "text.parse_math": False}  # matplotlib's own stubs want literal names
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(chosen)
        yield


def figure_text(name: str) -> str:
    """Return a name that can be drawn: a letter that the font lacks would warn, and a long name leave no room.

    The end of a name stays, since it tells the systems of another run apart.
    """
    flat, half = " ".join(printable(name).split()), (_LONGEST - 3) // 2
    text = flat.encode("ascii", "replace").decode()
    return text if len(text) <= _LONGEST else f"{text[:half]}...{text[-half:]}"


@contextmanager
def _drawing(size: tuple[float, float]) -> Iterator[tuple[Axes, list[str]]]:
    """Give axes to draw on, and a list that holds the `<svg>` element afterwards."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # half a second, and only the page needs it
    from matplotlib.figure import Figure

    done: list[str] = []
    with drawing_settings(_RC):
        figure = Figure(figsize=size, layout="constrained")
        yield FigureCanvasSVG(figure).figure.add_subplot(), done
        content = StringIO()
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    done.append(_inline(content.getvalue()))


def _draw(axes: Axes, each: Series, *, joined: bool) -> None:
    # A first letter "_" would hide a name from the legend.
    label = " " + figure_text(each.name)
    if each.place is None:
        axes.plot(each.x, each.y, label=label, color=_INK, linewidth=0.8, linestyle=":")
        return
    marker = "os^Dv*"[each.place % 6] if len(each.x) < _MANY else ""
    style = _STYLES[each.place % len(_STYLES)] if joined else "none"
    error = None if each.below is None or each.above is None else [each.below, each.above]
    axes.errorbar(
        each.x, each.y, yerr=error, label=label, color=_COLORS[each.place % len(_COLORS)], marker=marker, markersize=5,
        linestyle=style, linewidth=1.4, elinewidth=0.9, capsize=2.5,
    )  # fmt: skip


def _name_axes(axes: Axes, x: str, y: str, ticks: Sequence[str] | None) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#80808040")
    if ticks is not None:
        axes.set_xticks(range(len(ticks)), [figure_text(name) for name in ticks])
        if sum(map(len, ticks)) > _LONG:
            for label in axes.get_xticklabels():
                label.set(rotation=25 if len(ticks) <= _FEW else 50, ha="right", rotation_mode="anchor")
        axes.margins(x=0.15)
        return
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    if len(axes.get_legend_handles_labels()[0]) < 2:
        return
    # Beside the lines, because on them it hides some.
    axes.figure.legend(loc="outside lower center", ncols=2)


def _inline(svg: str) -> str:
    """Return the bare element: without head, and without the ids that several figures of one page would share."""
    bare = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg[svg.index("<svg") :])
    # A style would hold for the whole page, and the metadata say nothing.
    bare = re.sub(r"<(style|metadata).*?</\1>\s*", "", bare, flags=re.DOTALL)
    return bare.replace(_INK, "currentColor").strip()
