"""`report`, `score` and `none-below`: tables from predictions alone, of a run or of any other system.

runs/score/<data>-<name>/   predictions-<split>.parquet  report-<split>.json  report-<split>.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from llm_wrapper import datasets, results, runs, storage
from llm_wrapper.box_formats import BoxFormat
from llm_wrapper.cli import options
from llm_wrapper.cli.options import (
    Data,
    DataRoot,
    Overrides,
    Split,
    choose_recipe,
)
from llm_wrapper.errors import DataError, RunError, shell_word
from llm_wrapper.evaluation import external, grec
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation.grec import thresholds
from llm_wrapper.metrics import Summary, summarize, summarize_systems
from llm_wrapper.recipe import DataSection, data_folders
from llm_wrapper.records import Prediction
from llm_wrapper.report import evaluations, formatting, page
from llm_wrapper.report.formatting import percent
from llm_wrapper.storage import folder_name
from llm_wrapper.terminal import say

__all__ = ["none_below_verb", "recompute", "report_verb", "score", "score_verb", "threshold_table"]


def report_verb(
    run: Annotated[Path, typer.Argument(help="A run folder, or a predictions file.")],
    *,
    compare: Annotated[
        list[Path] | None, typer.Option("--with", help="Another run, or a folder of `score`, to compare with; kept.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Where pictures may be shown from, if not from the folder data.")
    ] = None,
) -> None:
    """Print the tables of a run or a prompt search again, and write report.html and report.md to its folder.

    Computed from the stored predictions alone: needs neither torch nor data.
    """
    if not run.exists():
        raise RunError(f"{run} does not exist{options.list_runs(run)}")
    if (run / "history.jsonl").is_file():
        if compare:
            raise RunError(f"{run} is a prompt search; --with is for runs and scores")
        from llm_wrapper.cli.search import show_history

        show_history(run, options.CONSOLE)
    else:
        recompute(run, options.CONSOLE, beside=compare or [], data_root=data_root)


def recompute(path: Path, console: Console, *, beside: Sequence[Path] = (), data_root: Path | None = None) -> None:
    """Print the table of a predictions file, or of every one in a run folder, from the records alone.

    A run folder also gets its page, as HTML and as Markdown; the folders `beside` it are kept in it and compared. Its
    pictures come from the folder `data`, or from `data_root`.
    """
    if beside and not path.is_dir():
        raise RunError(f"{path} is a predictions file; other runs are kept in a run's folder: name that")
    for other in beside:
        evaluations.add_comparison(path, other)
    found = sorted(path.glob("predictions-*.parquet")) if path.is_dir() else [path]
    if not found:
        raise RunError(f"{path} holds no predictions; make some with: llm-wrapper eval --run {shell_word(path)}")
    for file in found:
        say(console, file.name)
        console.print(formatting.summary_table(summarize_systems(files.load_predictions(file))))
    if path.is_dir():
        written = page.write_report(path, [*data_folders(), *([data_root] if data_root else [])])
        say(console, f"the report: {' and '.join(map(str, written))}")


def score_verb(
    file: Annotated[Path, typer.Argument(help="Boxes of any system: JSON lines, a JSON list, or our own Parquet.")],
    overrides: Overrides = None,
    *,
    data: Data = None,
    data_root: DataRoot = None,
    split: Split = None,
    name: Annotated[str | None, typer.Option(help="Of the system, if not by the file.")] = None,
    box_format: Annotated[
        BoxFormat | None, typer.Option(help="Of the boxes, if the file does not say; shares are norm, or 1000.")
    ] = None,
) -> None:
    """Score a file of boxes of any other system on a split; write the table of eval to runs/score."""
    recipe = choose_recipe(options.names_by_kind("toy", "rule", data), overrides, data_root)
    job = ScoreJob(file, recipe.data, split or recipe.data.eval_split, name, box_format)
    score(job, options.CONSOLE)


@dataclass(frozen=True)
class ScoreJob:
    """Whose boxes to score, and on what.

    Attributes:
        file: See `evaluation.external`.
        data: The data set.
        split: Of that data set.
        name: Of the system, if not by the file.
        box_format: Of the boxes that do not say it themselves.
    """

    file: Path
    data: DataSection
    split: str
    name: str | None = None
    box_format: BoxFormat | None = None


def score(job: ScoreJob, console: Console) -> Summary:
    """Compare a file of boxes with the targets of a split, print the table, keep predictions and report.

    Raises:
        DataError: If the split has no box to compare with, or the file does not hold boxes for it.
    """
    split = job.split
    dataset = datasets.load_dataset(job.data, split)
    if not any(sample.target for sample in dataset.samples):
        raise DataError(f"{job.data.name} {split} has no box to compare with")
    result = external.read_external_predictions(job.file, dataset, name=job.name, box_format=job.box_format)
    summary = summarize(result.predictions)
    if not any(prediction.candidates for prediction in result.predictions):
        summary = replace(summary, oracle_p_at_1=None)  # of no candidate that is known, not 0.0
    facts: dict[str, Any] = {
        "recipe": {"data": job.data.model_dump(mode="json")},
        "split": split,
        "data": [{"name": dataset.name, "split": split, "annotations": dataset.digest}],
        "file": {"name": job.file.name, "digest": storage.digest(job.file), "box_format": job.box_format},
    }
    folder, other = _folder(job, summary.system, facts)
    notes = [*dataset.notes(), *result.notes, *_of_answered(result.predictions), *_without_target(result.predictions)]
    facts |= {
        "question": _question(facts),
        "notes": notes,
        "git": storage.git_revision(),
        "versions": storage.versions(),
    }
    files.save_predictions(folder / f"predictions-{split}.parquet", result.predictions)
    storage.write_json(folder / f"report-{split}.json", {"rows": formatting.summary_values([summary]), **facts})
    storage.write_atomic(folder / f"report-{split}.md", formatting.summary_markdown([summary]))
    console.print(formatting.summary_table([summary]))
    for line in [*notes, *other, f"kept in {folder}"]:
        say(console, line)
    return summary


def _folder(job: ScoreJob, system: str, facts: Mapping[str, Any]) -> tuple[Path, list[str]]:
    """Return where a score is stored, and a remark where its usual folder holds that of another file or data set."""
    usual = runs.RUNS / "score" / folder_name(f"{job.data.name}-{storage.plain_name(system)}", "--name")
    written = (f"report-{job.split}.json", f"predictions-{job.split}.parquet")
    folder = results.free_folder(usual, written, _question(facts))
    if folder == usual:
        return folder, []
    return folder, [f"{usual} holds the score of another file or data set, and stays as it is; --name names this one"]


def _question(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that decides a score, from the facts in its report."""
    return {key: facts[key] for key in ("split", "data", "file")}


def _of_answered(predictions: Sequence[Prediction]) -> list[str]:
    """Say how good the predictions are that there are, where some are missing."""
    answered = [prediction for prediction in predictions if prediction.decided_by != "missing"]
    summary = summarize(answered) if 0 < len(answered) < len(predictions) else None
    if summary is None or summary.p_at_1 is None:
        return []
    return [f"over the {summary.n} samples with a prediction alone, P@1 is {100 * summary.p_at_1:.1f}"]


def _without_target(predictions: Sequence[Prediction]) -> list[str]:
    """Say how many of the expressions without a target got the answer that nothing is meant (N-acc)."""
    empty = [prediction for prediction in predictions if prediction.target is None]
    if not empty:
        return []
    right = [each for each in empty if each.box is None and grec.is_answered(each)]
    return [
        f"N-acc {100 * len(right) / len(empty):.1f}: {len(right)} of {len(empty)} expressions without a target were "
        "answered by no box (null or []); a missing or unusable answer is none"
    ]


def none_below_verb(
    file: Annotated[Path, typer.Argument(help="predictions-<split>.parquet of a split that is only for choosing.")],
    *,
    system: Annotated[str, typer.Option(help="Whose choices: untrained, tuned or served.")] = "tuned",
) -> None:
    """Print what each threshold for "none of these" gives on a split, to choose prompt.none_below there."""
    show_thresholds(file, system, options.CONSOLE)


def show_thresholds(file: Path, system: str, console: Console) -> None:
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
    console.print(threshold_table(rows))
    split = file.stem.removeprefix("predictions-")
    say(
        console,
        f"{len(rows)} samples of {split}. Numbers of {split} are too good for a threshold that is chosen here: report "
        "another split, such as: llm-wrapper eval --run runs/.. --split test prompt.none_below=0.5",
    )


def threshold_table(rows: Sequence[Prediction]) -> Table:
    """Lay out a row for each threshold; the interval is on a second line of its cell, so that 80 columns hold all."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("none_below", "N-acc", "T-acc", "Pr@(F1=1)", "answered", "wrong of these"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in thresholds(rows):
        shares = (each.grec.n_acc, each.grec.t_acc, each.grec.precision, each.answered, each.risk)
        table.add_row(f"{each.below:g}", *(percent(share).replace(" (", "\n(") for share in shares))
    return table
