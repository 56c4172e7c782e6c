"""Printing: text of other people can neither move the cursor nor write the clipboard nor forge markup."""

from __future__ import annotations

import logging
import sys
import time
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.text import Text

SHOWS_LOADING: ContextVar[bool] = ContextVar("SHOWS_LOADING", default=True)
"""Whether progress bars may be shown while weights are loaded."""

_DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Classes of Unicode that turn the direction of what follows."""


def printable(text: str) -> str:
    r"""Return a text with control characters, escapes and direction overrides written out (`\x1b`, `\u202e`).

    Line breaks and tabs stay. Joiners inside words (category Cf but for the direction marks) stay too: names in
    Persian or emoji need them.
    """
    if text.isascii() and text.isprintable():
        return text
    pieces = []
    for char in text:
        is_control = unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} and char not in "\n\t"
        if is_control or unicodedata.bidirectional(char) in _DIRECTIONS:
            pieces.append(f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}")
        else:
            pieces.append(char)
    return "".join(pieces)


def say(console: Console, *texts: object, style: str | None = None) -> None:
    """Print texts as they are: no markup, no highlighting, no breaking of long lines."""
    words = " ".join(printable(str(text)) for text in texts)
    console.print(words, style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)


def as_cell(text: object) -> Text:
    """Return the cell or the title of a table, without markup and escapes."""
    return Text(printable(str(text)))


def as_description(text: object) -> str:
    """Return the description of a progress bar, which is always read as markup."""
    return escape(" ".join(printable(str(text)).split()))


@contextmanager
def loading_bars_shown(shown: bool) -> Iterator[None]:
    """Show or hide the progress bars of weights that are loaded inside, and hide warnings among the libraries."""
    token = SHOWS_LOADING.set(shown)
    try:
        with warnings.catch_warnings():
            # PEFT uses names that transformers renamed: nothing that a user could change.
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
            yield
    finally:
        SHOWS_LOADING.reset(token)


class _PrintableConsole(Console):
    """A console on which nothing but its own styles and cursor movements has any power."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as always, with control characters written out in whatever is text."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


def open_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Open the console of the process: tables, bars and Markdown on it are printable too, without markup by default."""
    return _PrintableConsole(stderr=stderr, quiet=quiet, markup=False, highlight=False, emoji=False)


class _Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "-/s")


class ProgressBar(Progress):
    """A progress bar on standard error with `more` columns; where that is a file, a line every `interval` seconds."""

    def __init__(
        self, *more: ProgressColumn, shown: bool = True, transient: bool = True, interval: float = 30.0
    ) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        console = open_console(stderr=True)
        super().__init__(*columns, *more, console=console, disable=not shown, transient=transient)
        self._interval, self._printed = interval, time.monotonic()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Advance a task, and print a line if it is time for one."""
        super().advance(task_id, advance)
        if self.disable or self.console.is_terminal or time.monotonic() - self._printed < self._interval:
            return
        self._printed = time.monotonic()
        task = self._tasks[task_id]
        left = "" if task.time_remaining is None else f", about {task.time_remaining / 60:.0f} min left"
        say(self.console, f"{task.description}: {task.completed:,.0f} of {task.total:,.0f}{left}")


class PrintableFormatter(logging.Formatter):
    """Formats log records by `printable`: a message may quote a server or a file."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text with control characters written out."""
        return printable(super().format(record))


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send the log and Python's warnings to standard error, one printable line a record."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(capture=True)
