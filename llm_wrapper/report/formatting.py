"""Numbers, tables and text as a reader sees them: on the terminal, in Markdown and in JSON. One way for each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table as TerminalTable

from llm_wrapper.evaluation.comparison import Comparison
from llm_wrapper.metrics import Summary
from llm_wrapper.report.plots import Chart, Heat, svg_of
from llm_wrapper.statistics import Estimate, Interval
from llm_wrapper.terminal import as_cell, printable

__all__ = [
    "NO_DATA",
    "CaseLink",
    "Figure",
    "PageSection",
    "Table",
    "counted",
    "escape_markdown",
    "gain",
    "gain_values",
    "markdown_list",
    "number",
    "p_at_1_of",
    "percent",
    "points",
    "summary_markdown",
    "summary_table",
    "summary_values",
]

NO_DATA = "no data"
"""Shown where a metric has nothing to be computed from."""

_COLUMNS = ("system", "P@1 > 0.5 (95 % CI)", "P@1 >= 0.5", "mean IoU", "n", "decisions", "failures")
_NUMBERS = range(1, 5)
_INTERVAL = 1


@dataclass(frozen=True, slots=True)
class Table:
    """Plain text in rows, and in columns of which the first names the row; `prose` are those that hold words."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: Sequence[int] = ()

    def markdown(self) -> str:
        """Return the table as GitHub Markdown without its caption, ending in a newline; every cell is escaped."""
        ruler = ["---" if place in (0, *self.prose) else "---:" for place in range(len(self.head))]
        lines = [[*map(escape_markdown, self.head)], ruler, *([*map(escape_markdown, row)] for row in self.rows)]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


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
        blocks += [markdown_list(each.text for each in self.links)] if self.links else []
        for table in self.tables:
            blocks += [f"**{escape_markdown(table.caption)}**\n", table.markdown()]
        blocks += [markdown_list(self.notes)] if self.notes else []
        return "\n".join(blocks)


def summary_table(summaries: Sequence[Summary]) -> TerminalTable:
    """Lay out one row per system for the terminal; P@1 in percent."""
    result = TerminalTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, name in enumerate(_COLUMNS):
        justify: Literal["left", "right"] = "right" if index in _NUMBERS else "left"
        head = name.replace(" (", "\n(").replace("mean ", "mean\n")
        # At 80 columns something has to break, and never an interval.
        result.add_column(head, justify=justify, no_wrap=index == _INTERVAL, overflow="fold")
    for summary in summaries:
        result.add_row(*map(as_cell, _cells(summary)))
    return result


def summary_markdown(summaries: Sequence[Summary]) -> str:
    """Return the same table as GitHub Markdown, ending in a newline."""
    words = (len(_COLUMNS) - 2, len(_COLUMNS) - 1)
    return Table("", _COLUMNS, [_cells(summary) for summary in summaries], prose=words).markdown()


def summary_values(summaries: Iterable[Summary]) -> list[dict[str, Any]]:
    """Return every number as JSON values, one dict per system; fractions in 0..1, `None` where there is no data."""
    return [
        {
            "name": summary.system,
            "n": summary.n,
            "num_images": summary.num_images,
            "num_without_target": summary.num_without_target,
            "p_at_1": summary.p_at_1,
            "ci": _ends(summary.ci),
            "p_at_1_ge": summary.p_at_1_ge,
            "ci_ge": _ends(summary.ci_ge),
            "mean_iou": summary.mean_iou,
            "oracle_p_at_1": summary.oracle_p_at_1,
            "decided_by": dict(summary.decided_by),
            "failures": dict(summary.failures),
            "by_kind": {
                kind: {"n": part.n, "p_at_1": part.p_at_1, "ci": _ends(part.ci)}
                for kind, part in summary.by_kind.items()
            },
        }
        for summary in summaries
    ]


def gain_values(found: Comparison | None) -> dict[str, Any] | None:
    """Return a comparison as JSON values."""
    if found is None:
        return None
    # A named tuple would become a list, and lose the names.
    named = {name: getattr(found, name)._asdict() for name in ("p_at_1", "p_at_1_ge", "mean_iou", "mcnemar")}
    return {"a": found.a, "b": found.b, **named}


def _cells(summary: Summary) -> list[str]:
    without = f" (+{summary.num_without_target} without target)" if summary.num_without_target else ""
    return [
        summary.system,
        percent(p_at_1_of(summary)),
        percent(Estimate(summary.p_at_1_ge, None, summary.n), interval=False),
        number(summary.mean_iou),
        f"{summary.n}{without}",
        counted(summary.decided_by),
        counted(summary.failures),
    ]


def p_at_1_of(summary: Summary) -> Estimate:
    """Return P@1 of a summary with its interval."""
    return Estimate(summary.p_at_1, summary.ci, summary.n)


def percent(found: Estimate, sign: str = "", *, interval: bool = True) -> str:
    """Return a share in percent with its interval, as 61.5 (58.0 to 65.1)."""
    if found.value is None:
        return NO_DATA
    ends = f" ({100 * found.ci.low:{sign}.1f} to {100 * found.ci.high:{sign}.1f})" if found.ci else " (no CI)"
    return f"{100 * found.value:{sign}.1f}{ends * interval}"


def points(found: Estimate) -> str:
    """Return a difference of shares in points, with its sign."""
    return percent(found, "+")


def gain(found: Estimate, p_value: float | None) -> str:
    """Return a difference in points of P@1 with its interval and McNemar's p."""
    if found.value is None or p_value is None:
        return NO_DATA
    return f"{points(found)}, p {'< 0.001' if p_value < 0.001 else f'= {p_value:.3f}'}"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number, or that there is none."""
    return NO_DATA if value is None else f"{value:.{digits}f}"


def counted(counts: Mapping[str, int]) -> str:
    """Return names with how often each was seen."""
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


def markdown_list(lines: Iterable[str]) -> str:
    """Return a Markdown list of texts, escaped, ending in a newline."""
    return "".join(f"- {escape_markdown(line)}\n" for line in lines)


def escape_markdown(text: str) -> str:
    """Return a text that stays in its line and its cell, and becomes neither markup nor HTML nor a link.

    Addresses are links in GitHub's Markdown even without brackets: a backslash goes into `https://` and `www.`.
    """
    flat = " ".join(printable(text).split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    flat = re.sub(r"([`*\[\]|~$!#]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|[.@](?=[^\W\d_]))", r"\\\1", flat)
    # These would begin a list, a quotation or a line across the page.
    return re.sub(r"^(?=[-+>=]\s|[-=]{2})|^(\d+)(?=[.)](?:\s|$))", r"\1\\", flat)
