"""Other people's text on the terminal: visible, and without any power."""

from __future__ import annotations

import ast
import io
import logging
import re
from pathlib import Path

import pytest
from rich.console import Console, RenderableType
from rich.markdown import Markdown
from rich.progress import Progress
from rich.table import Table

import llm_wrapper
from llm_wrapper.terminal import PrintableFormatter, ProgressBar, as_cell, as_description, open_console, printable, say


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("a\x1b]52;c;aGk=\x07b", r"a\x1b]52;c;aGk=\x07b", id="clipboard"),
        pytest.param("\x9b31m", r"\x9b31m", id="eight-bit-escape"),
        pytest.param("a\rb", r"a\x0db", id="carriage-return"),
        pytest.param("exe\u202egpj", "exe\\u202egpj", id="direction-override"),
        pytest.param("a\ud800b", "a\\ud800b", id="surrogate"),
        pytest.param("two\nlines\tand a tab", "two\nlines\tand a tab", id="lines-and-tabs"),
        pytest.param("[bold]狗 café[/]", "[bold]狗 café[/]", id="plain-text-of-any-script"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("text", ["[bold]x", "[/]", "[link=http://a]b[/link]", ":warning:", "x" * 300])
def test_say_prints_what_it_is_given(text: str) -> None:
    stream = io.StringIO()
    say(Console(file=stream, width=80), text)
    assert stream.getvalue() == f"{text}\n"


def test_log_records_are_printable() -> None:
    record = logging.LogRecord("a", logging.INFO, "a.py", 1, "server said %s", ("\x1b[2J",), None)
    assert PrintableFormatter("%(message)s").format(record) == r"server said \x1b[2J"


HOSTILE = "[/x][bold]a\x1b]52;c;aGk=\x07\u202eb:warning:"


def table(title: RenderableType, text: RenderableType) -> Table:
    found = Table(title=title)  # type: ignore[arg-type]
    found.add_column("a")
    found.add_row(text)
    return found


@pytest.mark.parametrize(
    "renderable",
    [
        pytest.param(HOSTILE, id="text"),
        pytest.param(table(HOSTILE, HOSTILE), id="table"),
        pytest.param(Markdown(f"| a |\n| --- |\n| {HOSTILE} |\n"), id="markdown"),
    ],
)
def test_nothing_has_power_on_the_console_of_the_process(
    renderable: RenderableType, capsys: pytest.CaptureFixture[str]
) -> None:
    open_console().print(renderable)
    shown = capsys.readouterr().out
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", shown)
    assert "[/x][bold]a" in shown
    assert "\u26a0" not in shown


def test_cells_and_descriptions_have_no_power_on_any_console() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=200, force_terminal=False)
    console.print(table(as_cell(HOSTILE), as_cell(HOSTILE)))
    with Progress(console=console) as bar:
        bar.add_task(as_description(HOSTILE), total=1)
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().count("[/x][bold]a") == 3


def test_text_is_printed_by_say_alone() -> None:
    """Tables, bars and Markdown go to a console of `open_console`; a text goes through `say`."""
    found = []
    for path in Path(llm_wrapper.__file__).parent.rglob("*.py"):
        if path.name == "terminal.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Name) and node.func.id == "Console":
                found.append(f"{path.name}:{node.lineno}: Console")
            is_print = isinstance(node.func, ast.Attribute) and node.func.attr == "print"
            if is_print and any(isinstance(each, ast.Constant | ast.JoinedStr) for each in node.args):
                found.append(f"{path.name}:{node.lineno}: print of a text")
    assert found == []


def test_a_redirected_progress_bar_prints_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("llm_wrapper.terminal.time.monotonic", lambda: now[0])
    with ProgressBar(interval=30.0) as bar:
        task = bar.add_task("scoring", total=1000)
        for _ in range(100):
            now[0] += 1.0
            bar.advance(task, 10)
    printed = [line for line in capsys.readouterr().err.splitlines() if line]
    assert [line.split(" of ")[0] for line in printed] == ["scoring: 300", "scoring: 600", "scoring: 900"]
    assert "of 1,000, about" in printed[0]


def test_a_bar_that_is_not_shown_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(shown=False, interval=0.0) as bar:
        bar.advance(bar.add_task("scoring", total=2))
    assert capsys.readouterr().err == ""
