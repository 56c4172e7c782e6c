"""What is seen of a filling: how far, how fast, how long still, and what it has cost."""

from __future__ import annotations

from collections.abc import Callable

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from llm_wrapper.terminal import open_console

__all__ = ["Money", "progress_bar"]


class Money(ProgressColumn):
    """Dollars that this run may have cost so far, and the estimate of all of it."""

    def __init__(self, spent: Callable[[], float], estimate: float) -> None:
        super().__init__(Column(no_wrap=True))
        self._spent = spent
        self._estimate = estimate

    def render(self, task: Task) -> Text:
        """Say it as $0.25 of about $3.00."""
        return Text(f"${self._spent():.2f} of about ${self._estimate:.2f}")


class _Rate(ProgressColumn):
    """Answers per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "-/s")


def progress_bar(money: Money | None, *, shown: bool) -> Progress:
    """Return a bar on standard error; with `money` for what costs some."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn()]
    return Progress(*columns, *([money] if money else []), console=open_console(stderr=True), disable=not shown)
