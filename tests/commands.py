"""Call the verbs as a user does; every test of them starts in an empty folder (fixture `own_folder`)."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner

from llm_wrapper.cli import main
from llm_wrapper.errors import LLMWrapperError

__all__ = ["fail", "invoke", "run"]


def invoke(*args: object) -> Result:
    """Run a command, whatever comes of it."""
    return CliRunner().invoke(main.app, [str(arg) for arg in args])


def run(*args: object) -> str:
    """Run a command that must succeed; return what it printed."""
    result = invoke(*args)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def fail(kind: type[LLMWrapperError], *args: object) -> str:
    """Run a command that must fail with an error that the user can act on; return its message."""
    result = invoke(*args)
    assert isinstance(result.exception, kind), result.exception
    return str(result.exception)
