"""Numbers, tables and text as a reader sees them: on the terminal, in Markdown and in JSON. One way for each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table as TerminalTable
from rich.text import Text

from llm_wrapper.evaluation.comparison import Comparison
from llm_wrapper.metrics import Summary
from llm_wrapper.report.plots import Chart, Heat, svg_of
from llm_wrapper.statistics import Estimate
from llm_wrapper.terminal import as_cell, printable

NO_DATA = "no data"
"""Shown where a metric has nothing to be computed from."""

_COLUMNS = ("system", "P@1 > 0.5 (95 % CI)", "P@1 >= 0.5", "mean IoU", "n", "decisions", "failures")
_INTERVAL = 1
_PROSE = (5, 6)
"""Indices of columns."""


@dataclass(frozen=True, slots=True)
class Table:
    """Plain text in rows and columns; the first column names the row, and those of indices `prose` hold words."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: Sequence[int] = ()

    def markdown(self) -> str:
        """Return the table as GitHub Markdown without its caption, ending in a newline; every cell is escaped."""
        head, *rows = ([*map(escape_markdown, row)] for row in (self.head, *self.rows))
        ruler = ["---" if index in (0, *self.prose) else "---:" for index in range(len(head))]
        return "".join(f"| {' | '.join(row)} |\n" for row in (head, ruler, *rows))

    def terminal(self, width: int) -> TerminalTable:
        """Return the table without its caption; on a narrow terminal each interval has a line to itself."""
        rows = [[*map(printable, row)] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(self.head, *rows, strict=True)]
        is_narrow = sum(widths) + 2 * len(widths) > width
        if is_narrow:
            rows = [[cell.replace(" (", "\n(").replace("), p", ")\np") for cell in row] for row in rows]
        padding = (0, 0 if is_narrow else 1, 0, 0)
        result = TerminalTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=padding)
        least = [
            max((len(line) for cell in cells for line in cell.splitlines() if " to " in line), default=1)
            for cells in zip(*rows, strict=True)
        ] or [1] * len(self.head)
        fits = sum(least) + 2 * len(least) <= width  # else rich would cut columns off; folded, all can be read
        for index, name in enumerate(self.head):
            justify: Literal["left", "right"] = "left" if index in (0, *self.prose) else "right"
            result.add_column(as_cell(name), justify=justify, min_width=least[index] if fits else None, overflow="fold")
        for row in rows:
            result.add_row(*map(Text, row))
        return result


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot under a caption."""

    caption: str
    plot: Chart | Heat

    @property
    def svg(self) -> str:
        """The plot as an `<svg>` element, empty where there is no data."""
        return svg_of(self.plot)


@dataclass(frozen=True, slots=True)
class CaseLink:
    """A sentence about some cases, and the filter of the gallery that shows them: family -> slice."""

    text: str
    chosen: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PageSection:
    """One heading with its text, tables and figures; `notes` are a list at its end, `links` lead to cases."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = ()
    links: Sequence[CaseLink] = ()

    def filled(self) -> tuple[PageSection | None, list[str]]:
        """Return the section without tables and figures that have no data, and their names; `None` for nothing left."""
        tables = [each for each in self.tables if each.rows]
        figures = [each for each in self.figures if not each.plot.is_empty]
        empty = [each.caption for each in self.tables if not each.rows]
        empty += [each.caption for each in self.figures if each.plot.is_empty]
        if empty and not (tables or figures or self.notes):
            return None, [self.title]
        return replace(self, tables=tables, figures=figures), list(dict.fromkeys(empty))

    def markdown(self) -> str:
        """Return all but the figures as GitHub Markdown, blocks divided by empty lines, ending in a newline."""
        blocks = [f"### {escape_markdown(self.title)}\n", *(f"{escape_markdown(text)}\n" for text in self.text)]
        blocks.append("".join(f"- {escape_markdown(link.text)}\n" for link in self.links))
        for table in self.tables:
            blocks += [f"**{escape_markdown(table.caption)}**\n", table.markdown()]
        blocks.append("".join(f"- {escape_markdown(note)}\n" for note in self.notes))
        return "\n".join(filter(None, blocks))


def summary_table(summaries: Sequence[Summary]) -> TerminalTable:
    """Lay out one row per system for the terminal; P@1 in percent."""
    result = TerminalTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, name in enumerate(_COLUMNS):
        justify: Literal["left", "right"] = "left" if index in (0, *_PROSE) else "right"
        head = name.replace(" (", "\n(").replace("mean ", "mean\n")
        # At 80 columns something has to break, and never an interval.
        result.add_column(head, justify=justify, no_wrap=index == _INTERVAL, overflow="fold")
    for summary in summaries:
        result.add_row(*map(as_cell, _cells(summary)))
    return result


def summary_markdown(summaries: Sequence[Summary]) -> str:
    """Return the same table as GitHub Markdown, ending in a newline."""
    return Table("", _COLUMNS, [_cells(summary) for summary in summaries], prose=_PROSE).markdown()


def _cells(summary: Summary) -> list[str]:
    without = f" (+{summary.num_without_target} without target)" if summary.num_without_target else ""
    return [
        summary.system,
        percent(Estimate(summary.p_at_1, summary.ci, summary.n)),
        NO_DATA if summary.p_at_1_ge is None else f"{100 * summary.p_at_1_ge:.1f}",
        number(summary.mean_iou),
        f"{summary.n}{without}",
        counted(summary.decided_by),
        counted(summary.failures),
    ]


def summary_values(summaries: Iterable[Summary]) -> list[dict[str, Any]]:
    """Return every number as JSON values, one dict per system; fractions in 0..1, `None` where there is no data."""
    rows = []
    for summary in summaries:
        values = asdict(summary)
        # A named tuple would become a list, and lose the names.
        by_kind = {kind: share._asdict() for kind, share in summary.by_kind.items()}
        rows.append({"name": values.pop("system"), **values, "by_kind": by_kind})
    return rows


def gain_values(found: Comparison | None) -> dict[str, Any] | None:
    """Return a comparison as JSON values."""
    if found is None:
        return None
    named = {name: getattr(found, name)._asdict() for name in ("p_at_1", "p_at_1_ge", "mean_iou", "mcnemar")}
    return {"a": found.a, "b": found.b, **named}


def percent(found: Estimate, sign: str = "") -> str:
    """Return a share in percent with its interval, as 61.5 (58.0 to 65.1)."""
    if found.value is None:
        return NO_DATA
    ends = f" ({100 * found.ci.low:{sign}.1f} to {100 * found.ci.high:{sign}.1f})" if found.ci else " (no CI)"
    return f"{100 * found.value:{sign}.1f}{ends}"


def points(found: Estimate) -> str:
    """Return a difference of shares in points, with its sign."""
    return percent(found, "+")


def gain(found: Estimate, p_value: float | None) -> str:
    """Return a difference in points of P@1 with its interval and McNemar's p."""
    if found.value is None or p_value is None:
        return NO_DATA
    return f"{points(found)}, p {'< 0.001' if p_value < 0.001 else f'= {p_value:.3f}'}"


def number(value: float | None) -> str:
    """Return a number with 3 decimals, or that there is none."""
    return NO_DATA if value is None else f"{value:.3f}"


def counted(counts: Mapping[str, int]) -> str:
    """Return names with how often each was seen."""
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def escape_markdown(text: str) -> str:
    """Return a text that stays in its line and its cell, and becomes neither markup nor HTML nor a link.

    Addresses are links in GitHub's Markdown even without brackets: a backslash goes into `https://` and `www.`.
    """
    flat = " ".join(printable(text).split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    flat = re.sub(r"([`*\[\]|~$!#]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|[.@](?=[^\W\d_]))", r"\\\1", flat)
    # These would begin a list, a quotation or a line across the page.
    return re.sub(r"^(?=[-+>=]\s|[-=]{2})|^(\d+)(?=[.)](?:\s|$))", r"\1\\", flat)
