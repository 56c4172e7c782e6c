"""Other people's text on the terminal: visible, and without any power."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from llm_wrapper.terminal import PrintableFormatter, printable, say


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
