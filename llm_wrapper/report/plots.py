"""Charts and heat maps: as SVG text in the page's own color, for light and dark, and as pictures in files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_wrapper import storage
from llm_wrapper.statistics import Estimate
from llm_wrapper.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_log = logging.getLogger(__name__)

_INK = "#010203"
"""Stands for the color of the page's text until the SVG is done; matplotlib does not know `currentColor`."""

# They differ for every kind of color blindness (Okabe and Ito).
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
_STYLES: tuple[Any, ...] = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))

_LONG = 50  # letters of all ticks together that still fit side by side
_FEW = 6  # ticks with long names that fit side by side a little turned; more need a turn more
_LONGEST = 32  # letters of a name in a chart
_MANY = 60  # from this many points on, a line is drawn without markers
_LEAST_RATIO = 1.3  # of two ticks on an axis from zero; closer ones would be written over each other

MAX_CELLS = 400
"""Cells of a matrix that is drawn; each needs about 4 square centimetres, and 2,000 in a row were 24 GB of pixels."""

_FOR_PAGE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "legend.framealpha": 0.0,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "legend.labelcolor"), _INK
    ),
}


@dataclass(frozen=True, slots=True)
class Series:
    """One line: points (x, y), and how far each may be off below and above.

    `place` decides color, marker and dashes, so that a system looks the same in every chart of a page; the ideal
    has none, and is thin and without markers.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    below: Sequence[float] | None = None
    above: Sequence[float] | None = None
    place: int | None = 0


@dataclass(frozen=True, slots=True)
class Heat:
    """A matrix to be shown by color; " / " in the name of a column becomes a line break.

    Attributes:
        cells: (row, column), from 0 -> value (`None` without one) and text.
        framed: The cells that a frame marks.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    cells: Mapping[tuple[int, int], tuple[float | None, str]]
    framed: frozenset[tuple[int, int]]

    @property
    def is_empty(self) -> bool:
        """Whether there is no cell to draw, or more than `MAX_CELLS`."""
        return not self.cells or len(self.rows) * len(self.columns) > MAX_CELLS

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        return 3.0 + 1.7 * len(self.columns), 1.2 + 0.62 * len(self.rows)

    def paint(self, axes: Axes) -> None:
        """Draw a matrix by color, with the text of each cell."""
        import numpy as np
        from matplotlib.patches import Rectangle

        values = np.full((len(self.rows), len(self.columns)), np.nan)
        for cell, (value, _) in self.cells.items():
            values[cell] = np.nan if value is None else value
        known = values[np.isfinite(values)]
        middle = (known.min() + known.max()) / 2 if len(known) else 0.0
        # Cividis is the same picture for every kind of color vision.
        shown = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", aspect="auto")
        for (y, x), (value, text) in self.cells.items():
            ink = _INK if value is None else "white" if value < middle else "black"
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=ink)
        for y, x in self.framed:
            axes.add_patch(Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, fill=False, edgecolor="#d55e00", linewidth=2.5))
        axes.set_xticks(range(len(self.columns)), [figure_text(name).replace(" / ", "\n") for name in self.columns])
        axes.set_yticks(range(len(self.rows)), [figure_text(name) for name in self.rows])
        if len(known):
            axes.figure.colorbar(shown, ax=axes)


def series_of(name: str, x: Sequence[float], found: Sequence[Estimate], *, place: int = 0) -> Series:
    """Return shares in percent with their intervals; a share without a value is skipped."""
    points = [(at, each.value, each.ci) for at, each in zip(x, found, strict=True) if each.value is not None]
    return Series(
        name,
        [at for at, _, _ in points],
        [100 * value for _, value, _ in points],
        [100 * (value - ci.low) if ci else 0.0 for _, value, ci in points],
        [100 * (ci.high - value) if ci else 0.0 for _, value, ci in points],
        place,
    )


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over a horizontal axis.

    Attributes:
        series: The lines; one without points is not drawn.
        top: The vertical axis goes from 0 to here; it fits the points where nothing is given.
        ticks: Names of 0, 1, .. on the horizontal axis; points are then not joined.
        scale: The horizontal axis is `linear`, goes by `factors`, or does so beyond the least value (`from zero`).
        bands: Whether intervals are drawn as bands.
    """

    series: Sequence[Series]
    x: str
    y: str
    top: float | None = None
    ticks: Sequence[str] | None = None
    scale: Literal["linear", "factors", "from zero"] = "linear"
    bands: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is no point to draw."""
        return not any(len(each.x) for each in self.series)

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        count = sum(len(each.x) > 0 for each in self.series)
        lines = 0 if self.ticks is not None or count < 2 else (count + 1) // 2
        turned = 1.4 if self.ticks is not None and len(self.ticks) > _FEW else 0.0
        return 5.0, 3.0 + 0.22 * lines + turned

    def paint(self, axes: Axes) -> None:
        """Draw on the axes of a figure."""
        for each in self.series:
            if len(each.x):
                _draw_series(axes, each, joined=self.ticks is None, bands=self.bands)
        axes.set_xlabel(self.x)
        axes.set_ylabel(self.y)
        axes.grid(color="#80808040")
        if self.ticks is not None:
            self._name_ticks(axes, self.ticks)
        else:
            self._scale(axes)
            handles, labels = axes.get_legend_handles_labels()
            if len(handles) > 1:  # beside the lines, because on them it hides some
                axes.figure.legend(handles, labels, loc="outside lower center", ncols=2)
        if self.top is not None:
            axes.set_ylim(0, self.top)

    def _name_ticks(self, axes: Axes, ticks: Sequence[str]) -> None:
        axes.set_xticks(range(len(ticks)), [figure_text(name) for name in ticks])
        if sum(map(len, ticks)) > _LONG:
            for label in axes.get_xticklabels():
                label.set(rotation=25 if len(ticks) <= _FEW else 50, ha="right", rotation_mode="anchor")
        axes.margins(x=0.15)

    def _scale(self, axes: Axes) -> None:
        from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

        if self.scale == "linear":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        elif self.scale == "factors":
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 20k, 50k, 100k
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            values = sorted(x for each in self.series for x in each.x)
            # Below the least value over 0 the axis is linear, so that 0 has a place.
            axes.set_xscale("symlog", linthresh=min(filter(None, values), default=1), linscale=0.6)
            ticks = [0.0]
            for x in values:
                if x > _LEAST_RATIO * ticks[-1]:
                    ticks.append(x)
            axes.set_xticks(ticks, [f"{x:,.0f}" for x in ticks])
            axes.set_xticks([], minor=True)
            axes.set_xlim(left=0)


def svg_of(plot: Chart | Heat) -> str:
    """Draw a plot and return it as an `<svg>` element; empty where there is nothing to draw."""
    if plot.is_empty:
        return ""
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # half a second, and only the page needs it
    from matplotlib.figure import Figure

    with drawing_settings(_FOR_PAGE):
        figure = Figure(figsize=plot.size, layout="constrained")
        plot.paint(FigureCanvasSVG(figure).figure.add_subplot())
        content = StringIO()
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    # Without head, and without the ids that several figures of one page would share.
    svg = content.getvalue()
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg[svg.index("<svg") :])
    # A style would hold for the whole page, and the metadata say nothing.
    svg = re.sub(r"<(style|metadata).*?</\1>\s*", "", svg, flags=re.DOTALL)
    return svg.replace(_INK, "currentColor").strip()


def save_plots(plots: Sequence[Chart | Heat], out: Path, title: str = "") -> None:
    """Write a picture of some plots side by side, as PNG or SVG by the file's name.

    Those that are empty or too large are not drawn; without any there is no picture, which the log says.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plots = [plot for plot in plots if not plot.is_empty]
    if not plots:
        out.unlink(missing_ok=True)  # an earlier, smaller one would be taken for this one
        _log.warning("%s is not drawn: nothing to draw, or over %d cells; the tables have all", out, MAX_CELLS)
        return
    kind = out.suffix[1:]
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
    widths, heights = zip(*(plot.size for plot in plots), strict=True)
    content = BytesIO()
    with drawing_settings({"svg.fonttype": "none"}):
        figure = Figure(figsize=(sum(widths), max(heights) + 0.3 * bool(title)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(plots), squeeze=False, width_ratios=widths)[0]
        for axes, plot in zip(panels, plots, strict=True):
            plot.paint(axes)
        if title:
            figure.suptitle(figure_text(title, longest=90), fontsize=10)
        figure.savefig(content, format=kind, dpi=150, metadata=metadata)
    storage.write_atomic(out, content.getvalue())


@contextmanager
def drawing_settings(settings: Mapping[str, Any] | None = None) -> Iterator[None]:
    r"""Draw by matplotlib's defaults and these settings, and take every name as text.

    A user's own style would make another picture of the same numbers, and `$\frac$` in a name is no formula.
    """
    import matplotlib

    # matplotlib's own stubs want literal names.
    chosen: Any = {**(settings or {}), "text.parse_math": False, "svg.hashsalt": "llm-wrapper"}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(chosen)
        yield


def figure_text(name: str, longest: int = _LONGEST) -> str:
    """Return a name that can be drawn: a letter that the font lacks would warn, and a long name leave no room.

    The end of a name stays, since it tells the systems of another run apart.
    """
    flat, half = " ".join(printable(name).split()), (longest - 3) // 2
    text = flat.encode("ascii", "replace").decode()
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"


def _draw_series(axes: Axes, each: Series, *, joined: bool, bands: bool) -> None:
    # A first letter "_" would hide a name from the legend.
    label = " " + figure_text(each.name)
    if each.place is None:
        axes.plot(each.x, each.y, label=label, color=_INK, linewidth=0.8, linestyle=":")
        return
    marker = "os^Dv*"[each.place % 6] if len(each.x) < _MANY else ""
    style = _STYLES[each.place % len(_STYLES)] if joined else "none"
    error = None if each.below is None or each.above is None else [each.below, each.above]
    color = _COLORS[each.place % len(_COLORS)]
    if bands and error and len(each.x) > 1:
        low, high = ([y + sign * off for y, off in zip(each.y, ends, strict=True)]
                     for sign, ends in ((-1, error[0]), (1, error[1])))  # fmt: skip
        axes.fill_between(each.x, low, high, color=color, alpha=0.2, linewidth=0)
        error = None
    axes.errorbar(
        each.x, each.y, yerr=error, label=label, color=color, marker=marker, markersize=5,
        linestyle=style, linewidth=1.4, elinewidth=0.9, capsize=2.5,
    )  # fmt: skip
