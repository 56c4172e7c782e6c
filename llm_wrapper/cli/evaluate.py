"""`eval`, `report` and `score`: what a detector, the rule, an LLM, the oracle or any other system reaches on a split.

runs/<run>/                 predictions-<split>.parquet  report-<split>.json  report-<split>.md
                            report.html  report.md          all of the run's, by `report`
runs/score/<data>-<name>/   the same of another system
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from llm_wrapper import adapter_files, datasets, runs, storage
from llm_wrapper.box_formats import BoxFormat
from llm_wrapper.cli import options
from llm_wrapper.datasets import leaks
from llm_wrapper.detections.samples import load_prepared_split
from llm_wrapper.errors import DataError, RunError, shell_word
from llm_wrapper.evaluation import calibration, external, systems
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation.jobs import (
    Evaluation,
    add_known_untrained,
    choose_place,
    predict_with_llm,
    require_one_adapter,
)
from llm_wrapper.metrics import Summary, summarize, summarize_systems
from llm_wrapper.recipe import DataSection, data_folders
from llm_wrapper.records import Prediction
from llm_wrapper.report import card, evaluations, formatting, page
from llm_wrapper.storage import folder_name, plain_name
from llm_wrapper.terminal import say
from llm_wrapper.training.examples import load_prompt_builder


def evaluate_verb(  # noqa: PLR0913 (each is an option of the verb)
    overrides: options.Overrides = None,
    *,
    vlm: options.Vlm = None,
    llm: options.Llm = None,
    data: options.Data = None,
    data_root: options.DataRoot = None,
    split: options.Split = None,
    run: options.Run = None,
    limit: options.Limit = None,
    adapter: options.AdapterName = None,
    prompt: options.PromptName = None,
    untrained: Annotated[bool, typer.Option(help="Also score the LLM before training.")] = True,
) -> None:
    """Measure P@1 of detector, rule, LLM and oracle on a split; write predictions and report to the run's folder.

    By a run's own recipe: llm-wrapper eval --run runs/flo2-llama3-refcocog-..

    On another split: llm-wrapper eval --run runs/flo2-llama3-refcocog-.. --split test

    Before any training: llm-wrapper eval --vlm flo2 --llm llama3 --data refcocog
    """
    require_one_adapter(run, adapter)
    names = {"vlm": vlm, "llm": llm, "data": data, "prompt": prompt}
    if run is None and adapter is None and (run := runs.latest(options.name_of(names))) is not None:
        say(options.CONSOLE, f"the newest finished run of these names is evaluated: {run}")
        names = {"prompt": prompt}  # the others have chosen the run; its own recipe is used from here
    recipe = options.choose_recipe(names, overrides, data_root, run=run)
    third_party = adapter_files.find_adapter(adapter) if adapter else None
    evaluate(Evaluation(recipe, run, split, limit, untrained, third_party, prompt), options.CONSOLE)


@dataclass(frozen=True)
class Evaluated:
    """The results of an evaluation: a summary a system, and `predictions-<name>.parquet` in a folder."""

    summaries: Sequence[Summary]
    folder: Path
    name: str
    question: Mapping[str, Any]


def evaluate(job: Evaluation, console: Console) -> Evaluated:
    """Predict with every system, print the table, keep predictions and report."""
    recipe, adapter = job.recipe, job.find_adapter_folder()
    split = folder_name(job.split or recipe.data.eval_split, "the split")
    prepared_split = load_prepared_split(recipe, recipe.data, split, limit=job.limit)
    samples = prepared_split.samples
    if not any(prepared.sample.target for prepared in samples):
        raise DataError(f"{recipe.data.name} {split} has no box to compare with; use: llm-wrapper predict")
    rows = [*systems.by_detector(samples), *systems.by_rule(samples)]
    builder = None
    if recipe.llm.backend != "rule":
        builder = load_prompt_builder(recipe)
        rows += predict_with_llm(recipe, builder, adapter, samples, with_untrained=job.untrained)
    rows += systems.by_oracle(samples)
    facts: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "split": split,
        "limit": job.limit,
        "data": [prepared_split.facts()],
        "run": str(job.run) if job.run else None,
        "adapter": job.adapter.facts() if job.adapter else None,
        "weights": adapter_files.digest_adapter(adapter) if adapter else None,
        "model_files": storage.digest_model(recipe.llm.model),
        "prompt": builder.facts if builder else {},
        "git": storage.git_revision(),
        "versions": storage.versions(),
    }
    notes = prepared_split.notes()
    trained = runs.recipe_of(job.run).training_data() if job.run else []
    if prepared_split.dataset.has_splits or trained:
        note = leaks.describe_own_training_data((recipe.data, prepared_split.dataset), trained)
        notes = [*notes, note] if note else notes
    question = json.loads(storage.canonical(runs.evaluation_question(facts)))
    folder, name = choose_place(job, question)
    if not job.untrained:
        rows = add_known_untrained(rows, folder / f"predictions-{name}.parquet")
    files.save_predictions(folder / f"predictions-{name}.parquet", rows)
    summaries = summarize_systems(rows)
    values = {"rows": formatting.summary_values(summaries), **facts, "notes": notes, "question": question}
    storage.write_json(folder / f"report-{name}.json", values)
    bullets = "".join(f"\n- {formatting.escape_markdown(each)}" for each in notes)
    text = formatting.summary_markdown(summaries) + (bullets and f"{bullets}\n")
    storage.write_atomic(folder / f"report-{name}.md", text)
    if adapter is not None and folder == job.run:
        card.write_card(job.run)
    console.print(formatting.summary_table(summaries))
    how = "" if recipe.llm.backend == "rule" else f"; asked with {recipe.prompt.summary}"
    first = f", the first {job.limit} expressions" if job.limit else ""
    what = f"{recipe.vlm} on {recipe.data.name} {split}{first}{how}"
    for line in [f"kept in {folder / f'report-{name}.json'}: {what}", *notes, *job.notes(rows)]:
        say(console, line)
    return Evaluated(summaries, folder, name, question)


def report_verb(
    run: Annotated[Path, typer.Argument(help="A run folder, or a predictions file.")],
    *,
    compare: Annotated[
        list[Path] | None, typer.Option("--with", help="Another run, or a folder of `score`, to compare with; kept.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Where pictures may be shown from, if not from the folder data.")
    ] = None,
    none_below: Annotated[
        str | None,
        typer.Option(
            metavar="SYSTEM",
            help='Print the results of each threshold for "none of these" with the answers of untrained, tuned or '
            "served in a predictions file, to choose prompt.none_below there.",
        ),
    ] = None,
) -> None:
    """Print the tables of a run or a prompt search again, and write report.html and report.md to its folder.

    Computed from the stored predictions alone: needs neither torch nor data.

    A threshold, chosen on one split: llm-wrapper report runs/mine/predictions-val.parquet --none-below tuned
    """
    console, beside = options.CONSOLE, compare or []
    is_run = run.is_dir()
    if not run.exists():
        raise RunError(f"{run} does not exist{options.list_runs(run)}")
    if none_below is not None:
        if beside:
            raise RunError("--none-below reads one predictions file, without --with")
        _print_thresholds(run, none_below, console)
        return
    if (run / "history.jsonl").is_file():
        if beside:
            raise RunError(f"{run} is a prompt search; --with is for runs and scores")
        from llm_wrapper.cli.search import show_history

        show_history(run, console)
        return
    if beside and not is_run:
        raise RunError(f"{run} is a predictions file; other runs are kept in a run's folder: name that")
    for other in beside:
        evaluations.add_comparison(run, other)
    found = sorted(run.glob("predictions-*.parquet")) if is_run else [run]
    if not found:
        raise RunError(f"{run} holds no predictions; make some with: llm-wrapper eval --run {shell_word(run)}")
    for file in found:
        say(console, file.name)
        console.print(formatting.summary_table(summarize_systems(files.load_predictions(file))))
    if is_run:
        written = page.write_report(run, [*data_folders(), *([data_root] if data_root else [])])
        say(console, f"the report: {' and '.join(map(str, written))}")


def _print_thresholds(file: Path, system: str, console: Console) -> None:
    """Print what each threshold for "none of these" gives with the answers of a system in a predictions file."""
    if not file.is_file():
        raise RunError(f"{file} is no file; --none-below needs one: {shell_word(file)}/predictions-val.parquet")
    rows = [row for row in files.load_predictions(file) if row.system == system]
    facts = evaluations.facts_of_evaluation(file.parent, file)
    used = ((facts.get("recipe") or {}).get("prompt") or {}).get("none_below")
    if used:
        raise RunError(f"{file} was made with prompt.none_below={used}; choose from predictions made without")
    if not any(row.probability is not None for row in rows):
        what = "has no probabilities there: evaluate with llm.decode=score" if rows else "is not in it: name another"
        raise RunError(f"{file} cannot be used: system {system!r} {what} (--none-below)")
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
    for name in ("none_\nbelow", "N-acc", "T-acc", "Pr@(F1=1)", "answered", "wrong of\nthese"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in calibration.thresholds(rows):
        shares = map(
            formatting.percent, (each.grec.n_acc, each.grec.t_acc, each.grec.precision, each.answered, each.risk)
        )
        table.add_row(f"{each.below:g}", *(share.replace(" (", "\n").rstrip(")") for share in shares))
    return table


def score_verb(
    file: Annotated[Path, typer.Argument(help="Boxes of any system: JSON lines, a JSON list, or our own Parquet.")],
    overrides: options.Overrides = None,
    *,
    data: options.Data = None,
    data_root: options.DataRoot = None,
    split: options.Split = None,
    name: Annotated[str | None, typer.Option(help="Of the system, if not by the file.")] = None,
    box_format: Annotated[
        BoxFormat | None, typer.Option(help="Of the boxes, if the file does not say; shares are norm, or 1000.")
    ] = None,
) -> None:
    """Score a file of boxes of any other system on a split; write the table of eval to runs/score."""
    recipe = options.choose_recipe({"vlm": "toy", "llm": "rule", "data": data}, overrides, data_root)
    job = ScoreJob(file, recipe.data, split or recipe.data.eval_split, name, box_format)
    score(job, options.CONSOLE)


@dataclass(frozen=True)
class ScoreJob:
    """A file of boxes, see `evaluation.external`, and what they are scored on; name and format as the file says."""

    file: Path
    data: DataSection
    split: str
    name: str | None = None
    box_format: BoxFormat | None = None


def score(job: ScoreJob, console: Console) -> Summary:
    """Compare a file of boxes with the targets of a split, print the table, keep predictions and report."""
    split = job.split
    dataset = datasets.load_dataset(job.data, split)
    if not any(sample.target for sample in dataset.samples):
        raise DataError(f"{job.data.name} {split} has no box to compare with")
    result = external.read_external_predictions(job.file, dataset, name=job.name, box_format=job.box_format)
    summary = summarize(result.predictions)
    if not any(prediction.candidates for prediction in result.predictions):
        summary = replace(summary, oracle_p_at_1=None)  # of no candidate that is known, not 0.0
    # All that decides a score.
    question: dict[str, Any] = {
        "split": split,
        "data": [{"name": dataset.name, "split": split, "annotations": dataset.digest}],
        "file": {"name": job.file.name, "digest": storage.digest(job.file), "box_format": job.box_format},
    }
    usual = runs.RUNS / "score" / folder_name(f"{job.data.name}-{plain_name(summary.system)}", "--name")
    folder = runs.free_folder(usual, (f"report-{split}.json", f"predictions-{split}.parquet"), question)
    notes = [*dataset.notes(), *result.notes, *_notes_of_score(result.predictions)]
    files.save_predictions(folder / f"predictions-{split}.parquet", result.predictions)
    facts = {
        "rows": formatting.summary_values([summary]),
        "recipe": {"data": job.data.model_dump(mode="json")},
        **question,
        "question": question,
        "notes": notes,
        "git": storage.git_revision(),
        "versions": storage.versions(),
    }
    storage.write_json(folder / f"report-{split}.json", facts)
    storage.write_atomic(folder / f"report-{split}.md", formatting.summary_markdown([summary]))
    console.print(formatting.summary_table([summary]))
    if folder != usual:
        notes += [f"{usual} holds the score of another file or data set, and stays as it is; --name names this one"]
    for line in [*notes, f"kept in {folder}"]:
        say(console, line)
    return summary


def _notes_of_score(predictions: Sequence[Prediction]) -> list[str]:
    """Say P@1 of the predictions that there are, where some are missing, and the accuracy of "nothing is meant"."""
    notes = []
    answered = [prediction for prediction in predictions if prediction.decided_by != "missing"]
    summary = summarize(answered) if 0 < len(answered) < len(predictions) else None
    if summary is not None and summary.p_at_1 is not None:
        notes += [f"over the {summary.n} samples with a prediction alone, P@1 is {100 * summary.p_at_1:.1f}"]
    if empty := [prediction for prediction in predictions if prediction.target is None]:
        right = [each for each in empty if each.box is None and calibration.is_answered(each)]
        notes += [
            f"N-acc {100 * len(right) / len(empty):.1f}: {len(right)} of {len(empty)} expressions without a target "
            "were answered by no box (null or []); a missing or unusable answer is none"
        ]
    return notes
