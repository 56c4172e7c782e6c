"""Parts that the benchmarks share: recipes, a clock, result files, and one way to start a script.

runs/bench/<name>.json    one measurement: its question (recipe, size), ratios, versions, cores
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from llm_wrapper import runs, storage
from llm_wrapper.cli.options import extra_words
from llm_wrapper.errors import LLMWrapperError
from llm_wrapper.recipe import Recipe, compose
from llm_wrapper.terminal import log_to_stderr, open_console, say

DataRoot = Annotated[Path | None, typer.Option(help="Folder of the data set, instead of the one in its recipe.")]
_Result = TypeVar("_Result")


def compose_recipe(names: Mapping[str, str], overrides: Sequence[str] = (), data_root: Path | None = None) -> Recipe:
    """Compose a recipe from files of recipes/ (kind -> name) and overrides."""
    recipe = compose(names, overrides)
    return (
        recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": data_root})}) if data_root else recipe
    )


def save_measurement(name: str, question: Mapping[str, Any], facts: Mapping[str, Any], console: Console) -> Path:
    """Write a measurement to runs/bench/<name>.json; one of another size or recipe is kept, see `runs`."""
    path = runs.free_file(runs.RUNS / "bench" / f"{name}.json", question)
    more = {"cores": os.cpu_count(), "versions": storage.versions(), "question": question}
    storage.write_json(path, {**facts, **more})
    say(console, f"kept in {path}")
    return path


@dataclass
class Clock:
    """Seconds of each step by name, on the clock and computed by this process (on all of its cores)."""

    seconds: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)

    def timed(self, step: str, work: Callable[[], _Result]) -> _Result:
        """Run `work`, record its seconds, and return its result."""
        started, computed = time.perf_counter(), time.process_time()
        result = work()
        self.seconds[step] = time.perf_counter() - started
        self.cpu[step] = time.process_time() - computed
        return result


def run_script(command: Callable[..., None]) -> None:
    """Run a benchmark as a program; an error that a user can correct ends it with status 2."""
    log_to_stderr()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        app(args=[*sys.argv[1:], *extra_words()])
    except LLMWrapperError as error:
        say(open_console(stderr=True), f"error: {error}", style="red")
        sys.exit(2)
