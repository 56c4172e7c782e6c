"""Summaries as a table for the terminal, for Markdown and for JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from llm_wrapper.metrics import Summary
from llm_wrapper.statistics import Interval
from llm_wrapper.terminal import as_cell, printable

__all__ = ["NO_DATA", "escape_markdown", "markdown", "rows", "table"]

NO_DATA = "no data"
"""Stands where a metric has nothing to be computed from."""

_COLUMNS = ("system", "P@1 > 0.5 (95 % CI)", "P@1 >= 0.5", "mean IoU", "n", "decisions", "failures")
_NUMBERS = range(1, 5)
_INTERVAL = 1


def table(summaries: Sequence[Summary]) -> Table:
    """Lay out one row per system for the terminal; P@1 in percent."""
    result = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, name in enumerate(_COLUMNS):
        justify: Literal["left", "right"] = "right" if index in _NUMBERS else "left"
        head = name.replace(" (", "\n(").replace("mean ", "mean\n")
        # At 80 columns something has to break, and never an interval.
        result.add_column(head, justify=justify, no_wrap=index == _INTERVAL, overflow="fold")
    for summary in summaries:
        result.add_row(*map(as_cell, _cells(summary)))
    return result


def markdown(summaries: Sequence[Summary]) -> str:
    """Return the same table as GitHub Markdown, ending in a newline."""
    ruler = ["---:" if index in _NUMBERS else "---" for index in range(len(_COLUMNS))]
    lines = [_COLUMNS, ruler, *(map(escape_markdown, _cells(summary)) for summary in summaries)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rows(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
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


def _cells(summary: Summary) -> list[str]:
    without = f" (+{summary.num_without_target} without target)" if summary.num_without_target else ""
    return [
        summary.system,
        f"{_percent(summary.p_at_1)}{_interval(summary)}",
        _percent(summary.p_at_1_ge),
        NO_DATA if summary.mean_iou is None else f"{summary.mean_iou:.3f}",
        f"{summary.n}{without}",
        _counted(summary.decided_by),
        _counted(summary.failures),
    ]


def _percent(share: float | None) -> str:
    return NO_DATA if share is None else f"{100 * share:.1f}"


def _interval(summary: Summary) -> str:
    if summary.p_at_1 is None:
        return ""
    return " (no CI)" if summary.ci is None else f" ({100 * summary.ci.low:.1f} to {100 * summary.ci.high:.1f})"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


def escape_markdown(text: str) -> str:
    """Return a text that stays in its line and its cell, and becomes neither markup nor HTML nor a link.

    Addresses are links in GitHub's Markdown even without brackets: a backslash goes into `https://` and `www.`.
    """
    flat = " ".join(printable(text).split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    flat = re.sub(r"([`*\[\]|~$!#]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|[.@](?=[^\W\d_]))", r"\\\1", flat)
    # What would begin a list, a quotation or a line across the page.
    return re.sub(r"^(?=[-+>=]\s|[-=]{2})|^(\d+)(?=[.)](?:\s|$))", r"\1\\", flat)
