"""The verb that says what a threshold for "none of these" gives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from llm_wrapper.cli import options
from llm_wrapper.errors import RunError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation.grec import thresholds
from llm_wrapper.report import evaluations
from llm_wrapper.report.formatting import percent
from llm_wrapper.terminal import say

__all__ = ["add_to", "none_below"]

_HEAD = ("prompt.none_below", "N-acc", "T-acc", "Pr@(F1=1)", "answered", "wrong of these")


def add_to(app: typer.Typer) -> None:
    """Register the verb."""
    app.command("none-below", rich_help_panel="Studies")(_verb)


def _verb(
    file: Annotated[Path, typer.Argument(help="predictions-<split>.parquet of a split that is only for choosing.")],
    *,
    system: Annotated[str, typer.Option(help="Whose choices: untrained, tuned or served.")] = "tuned",
) -> None:
    """Show what prompt.none_below gives on a split, to choose it there; report another split with it."""
    none_below(file, system, options.CONSOLE)


def none_below(file: Path, system: str, console: Console) -> None:
    """Print what each threshold gives, in percent with 95 % intervals.

    Raises:
        DataError: If the file does not hold predictions.
        RunError: If the system is not in it, gives no probabilities, or was asked with a threshold.
    """
    rows = [row for row in files.load_predictions(file) if row.system == system]
    facts = evaluations.facts_of_evaluation(file.parent, file)
    used = ((facts.get("recipe") or {}).get("prompt") or {}).get("none_below")
    if used:
        raise RunError(f"{file} was made with prompt.none_below={used}; choose from predictions made without")
    if not any(row.probability is not None for row in rows):
        what = "has no probabilities there: evaluate with llm.decode=score" if rows else "is not in it: name another"
        raise RunError(f"{file} cannot be used: system {system!r} {what} (--system)")
    table = Table(*_HEAD)
    for each in thresholds(rows):
        shares = (each.grec.n_acc, each.grec.t_acc, each.grec.precision, each.answered, each.risk)
        table.add_row(f"{each.below:g}", *map(percent, shares))
    console.print(table)
    split = file.stem.removeprefix("predictions-")
    say(
        console,
        f"{len(rows)} samples of {split}. Numbers of {split} are too good for a threshold that is chosen here: report "
        "another split, such as: llm-wrapper eval --run runs/.. --split test prompt.none_below=0.5",
    )
