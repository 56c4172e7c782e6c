"""Each benchmark that the Makefile names starts as a program."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

MAKEFILE = (Path(__file__).parents[2] / "Makefile").read_text()
SCRIPTS = ("detect", "growth", "memory", "metrics", "score", "train")


def test_the_makefile_names_every_benchmark() -> None:
    assert sorted(set(re.findall(r"BENCH\)/(\w+)\.py", MAKEFILE))) == list(SCRIPTS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_says_how_it_is_called(name: str) -> None:
    app = typer.Typer(add_completion=False)
    app.command()(importlib.import_module(name).main)
    done = CliRunner().invoke(app, ["--help"])
    assert done.exit_code == 0
    assert "Usage: " in done.output
