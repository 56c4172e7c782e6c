"""What each verb of the command line does. torch is imported only where an LLM is needed."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from llm_wrapper import adapter_files, datasets, results, runs, storage
from llm_wrapper.cli.asking_commands import Evaluation, by_llm, notes, with_training
from llm_wrapper.cli.detection_commands import cache, prepared_notes
from llm_wrapper.datasets import Dataset, leaks
from llm_wrapper.datasets import check as checks
from llm_wrapper.detections.samples import PreparedSplit, load_prepared_split
from llm_wrapper.errors import DataError, ModelError, RunError, shell_word
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation import systems
from llm_wrapper.metrics import Summary, summarize
from llm_wrapper.readers import read_text
from llm_wrapper.recipe import Recipe, data_folders
from llm_wrapper.records import Prediction
from llm_wrapper.report import card, compared, page, pictures, tables
from llm_wrapper.storage import folder_name, inside
from llm_wrapper.terminal import say
from llm_wrapper.training import callbacks, processes
from llm_wrapper.training.examples import count_answered_none
from llm_wrapper.training.pool import load_prompt_builder, load_training_pool, require_trainable
from llm_wrapper.training.processes import exit_on_signal

__all__ = [
    "Evaluation",
    "check_data",
    "demo",
    "evaluate",
    "recompute",
    "summaries_of",
    "train",
    "with_training",
    "write_card",
]

_log = logging.getLogger(__name__)
_SPLITS = ("train", "val", "test", "testA", "testB")


def check_data(recipe: Recipe, console: Console) -> bool:
    """Print what is in each split and what is wrong with it; tell whether all is well."""
    found: list[Dataset] = []
    unread: dict[str, DataError] = {}
    for split in _SPLITS:
        try:
            dataset = datasets.load_dataset(recipe.data, split)
        except DataError as error:
            unread[split] = error
            continue
        # A file without splits is the same file under every name, and no leak from one split to another.
        if dataset.samples and all(dataset.samples != other.samples for other in found):
            found.append(dataset)
    if not found:
        nothing = DataError(f"{recipe.data.root} has no sample in any of {', '.join(_SPLITS)}")
        raise next(iter(unread.values()), nothing)
    report = checks.check_datasets(found)
    say(console, checks.format_check(report))
    for split, problem in unread.items():
        if split in (recipe.data.train_split, recipe.data.eval_split):
            say(console, f"error: split {split} cannot be read: {problem}")
    return report.ok and not unread.keys() & {recipe.data.train_split, recipe.data.eval_split}


def train(recipe: Recipe, folder: Path, console: Console, *, is_new: bool = False) -> Path:
    """Train an adapter and leave it in the run folder, which is complete once its manifest is there.

    Args:
        recipe: Of the run.
        folder: Of the run.
        console: Where the course is printed.
        is_new: Make a folder that does not exist yet, see `runs.claim_run`.
    """
    if recipe.llm.backend == "rule":
        raise ModelError("LLM=rule has nothing to train; evaluate it with: llm-wrapper eval --llm rule")
    if recipe.llm.backend == "openai":
        raise ModelError(
            "a served LLM cannot be trained from here: train it as a local one (LLM=llama3), then serve it"
        )
    require_trainable(recipe.prompt)
    with processes.print_from_main(console), contextlib.ExitStack() as held:
        processes.require_devices()
        processes.groups_per_process(recipe.train.groups_per_step)
        callbacks.require_trackers(recipe.train.report_to)
        folder = processes.open_run_together(
            folder, lambda path: held.enter_context(runs.claim_run(path, recipe, is_new=is_new))
        )
        with exit_on_signal(folder, console):
            _adapt(recipe, folder, console)
    return folder


def _adapt(recipe: Recipe, folder: Path, console: Console) -> None:
    """Train in an open run and finish it."""
    pool = load_training_pool(recipe)
    from llm_wrapper.llms.load import load_model
    from llm_wrapper.training import trainer

    llm = load_model(recipe.llm)
    groups, num_too_long = trainer.fit_to_length(llm, pool.groups, recipe)
    left_out = {**pool.left_out, "too_long": num_too_long}
    num_samples = sum(group.num_labelled for group in groups)
    labelled = [group for group in groups if group.num_labelled]
    images = f", {len(groups) - len(labelled)} images to generate expressions for" if labelled != groups else ""
    none = f"; answered by none of these: {count_answered_none(groups)}" if recipe.prompt.none else ""
    found = f"{num_samples} samples in {len(labelled)} groups{images}{none}; left out: {left_out}"
    say(console, found)
    outcome = trainer.train_adapter(llm, groups, recipe, folder)
    if not processes.leave_process_group():
        return
    facts = {"samples": num_samples, "left_out": left_out, "training": outcome, "data": _digests(pool.sets)}
    facts |= {"answered_none": count_answered_none(groups)} if recipe.prompt.none else {}
    runs.finish(folder, facts)
    write_card(folder)
    say(console, f"{folder}: {outcome['steps']} steps in {outcome['seconds']} s")


def write_card(run: Path) -> None:
    """Write the adapter's model card from what the run's folder holds."""
    paths = sorted(run.glob("report-*.md"))
    found = {path.stem.removeprefix("report-"): read_text(inside(run, path)) for path in paths}
    text = card.card(runs.recipe_of(run), runs.facts_of(run), found)
    storage.write_atomic(inside(run, Path("adapter") / "README.md"), text)


def _digests(sets: Sequence[PreparedSplit]) -> list[dict[str, Any]]:
    return [
        {
            "name": each.dataset.name,
            "split": each.dataset.split,
            "annotations": each.dataset.digest,
            "detections": storage.digest_value(each.identity),
            "dropped": each.dropped,
        }
        for each in sets
    ]


@dataclass(frozen=True)
class Evaluated:
    """The results of an evaluation: a summary a system, and `predictions-<name>.parquet` in a folder."""

    summaries: Sequence[Summary]
    folder: Path
    name: str
    question: Mapping[str, Any]


def evaluate(job: Evaluation, console: Console) -> Evaluated:
    """Predict with every system, print the table, keep predictions and report."""
    recipe, adapter = with_training(job)
    split = folder_name(job.split or recipe.data.eval_split, "the split")
    prepared_split = load_prepared_split(recipe, recipe.data, split, limit=job.limit)
    if not any(prepared.sample.target for prepared in prepared_split.samples):
        raise DataError(f"{recipe.data.name} {split} has no box to compare with; use: llm-wrapper predict")
    builder = None if recipe.llm.backend == "rule" else load_prompt_builder(recipe)
    rows = [*systems.by_detector(prepared_split.samples), *systems.by_rule(prepared_split.samples)]
    if builder is not None:
        rows += by_llm(recipe, builder, adapter, prepared_split.samples, with_untrained=job.untrained)
    rows += systems.by_oracle(prepared_split.samples)
    facts: dict[str, Any] = {
        "recipe": recipe.model_dump(mode="json"),
        "split": split,
        "limit": job.limit,
        "data": _digests([prepared_split]),
        "run": str(job.run) if job.run else None,
        "adapter": job.adapter.facts() if job.adapter else None,
        "weights": adapter_files.digest_adapter(adapter) if adapter else None,
        "model_files": storage.digest_model(recipe.llm.model),
        "prompt": builder.facts if builder else {},
        "git": storage.git_revision(),
        "versions": storage.versions(),
    }
    facts["notes"] = [*prepared_notes(prepared_split), *_own_training_data(job, recipe, prepared_split.dataset)]
    facts["question"] = json.loads(storage.canonical(results.evaluation_question(facts)))
    folder, name = _place(job, recipe, facts["question"])
    if not job.untrained:
        rows = _with_known_untrained(rows, folder / f"predictions-{name}.parquet")
    summaries = summaries_of(rows)
    files.save_predictions(folder / f"predictions-{name}.parquet", rows)
    storage.write_json(folder / f"report-{name}.json", {"rows": tables.rows(summaries), **facts})
    bullets = "".join(f"\n- {tables.escape_markdown(each)}" for each in facts["notes"])
    storage.write_atomic(folder / f"report-{name}.md", tables.markdown(summaries) + (bullets and f"{bullets}\n"))
    if adapter is not None and folder == job.run:
        write_card(job.run)
    console.print(tables.table(summaries))
    how = "" if recipe.llm.backend == "rule" else f"; asked with {recipe.prompt.summary}"
    first = f", the first {job.limit} expressions" if job.limit else ""
    what = f"{recipe.vlm} on {recipe.data.name} {split}{first}{how}"
    say(console, f"kept in {folder / f'report-{name}.json'}: {what}")
    for line in [*facts["notes"], *notes(job, rows)]:
        say(console, line)
    return Evaluated(summaries, folder, name, facts["question"])


def _own_training_data(job: Evaluation, recipe: Recipe, dataset: Dataset) -> list[str]:
    """Say whether a run is evaluated on images that it was trained on."""
    trained = runs.recipe_of(job.run).training_data() if job.run else []
    if not dataset.has_splits and not trained:
        return []
    note = leaks.describe_own_training_data((recipe.data, dataset), trained)
    return [note] if note else []


def _place(job: Evaluation, recipe: Recipe, question: dict[str, Any]) -> tuple[Path, str]:
    """Return the folder of an evaluation and its name there; see `results`.

    A run that is asked otherwise than trained stands beside itself, where its report finds it: by `compared` where
    detector, candidates, prompt or LLM are others, by the evaluation's name where the data are.
    """
    first = f"-first-{job.limit}" if job.limit else ""
    name = f"{question['split']}{first}"
    folder = job.folder
    if job.run is None or recipe.llm.backend == "openai":
        return results.free_folder(folder, (f"report-{name}.json", f"predictions-{name}.parquet"), question), name
    trained = runs.recipe_of(job.run)
    if _data(recipe) != _data(trained):
        name = f"{storage.plain_name(recipe.data.name)}-{name}"
    if others := _otherwise(job, recipe, trained):
        place = "-".join(others)
        folder = folder.with_name(f"{folder.name}-{place}") if job.prompt else folder / compared.FOLDER / place
        return results.free_folder(folder, (f"report-{name}.json", f"predictions-{name}.parquet"), question), name
    return folder, results.free_name(folder, name, question)


def _data(recipe: Recipe) -> dict[str, Any]:
    """Return what data is evaluated; where it lies and what of it is trained on does not matter."""
    return recipe.data.model_dump(mode="json", include={"name", "reader", "settings"})


def _otherwise(job: Evaluation, recipe: Recipe, trained: Recipe) -> list[str]:
    """Name in what a run is asked otherwise than it was trained, as parts of a folder's name."""
    others = []
    if (recipe.detector, recipe.ensemble) != (trained.detector, trained.ensemble):
        others.append(f"vlm-{storage.plain_name(recipe.vlm)}")
    if recipe.candidates.order != trained.candidates.order:
        others.append(f"order-{recipe.candidates.order}")
    same_order = {"order": trained.candidates.order}
    if recipe.candidates.model_copy(update=same_order) != trained.candidates and not others:
        others.append("candidates")
    below = recipe.prompt.none_below
    if below not in (None, trained.prompt.none_below):
        others.append(f"none-below-{below:g}")
    same_threshold = {"none_below": trained.prompt.none_below}
    if recipe.prompt.model_copy(update=same_threshold) != trained.prompt and not job.prompt:
        others.append(f"prompt-{storage.plain_name(Path(recipe.prompt.format).stem)}")
    a, b = (results.evaluation_question({"recipe": each.model_dump(mode="json")})["llm"] for each in (recipe, trained))
    if a != b:
        others.append(f"llm-{storage.plain_name(recipe.llm.model or recipe.llm.backend)}-{recipe.llm.decode}")
    return others


def _with_known_untrained(rows: list[Prediction], path: Path) -> list[Prediction]:
    """Keep the untrained LLM's answers to the same question, which this time was not asked."""
    if any(row.system == "untrained" for row in rows) or not path.is_file():
        return rows
    known = [row for row in files.load_predictions(path) if row.system == "untrained"]
    last = next((i for i, row in enumerate(rows) if row.system == "tuned"), len(rows))
    return [*rows[:last], *known, *rows[last:]]


def summaries_of(rows: Sequence[Prediction]) -> list[Summary]:
    """Summarize each system of a list of predictions, in order of appearance."""
    names = dict.fromkeys(row.system for row in rows)
    return [summarize([row for row in rows if row.system == name]) for name in names]


def recompute(path: Path, console: Console, *, beside: Sequence[Path] = (), data_root: Path | None = None) -> None:
    """Print the table of a predictions file, or of every one in a run folder, from the records alone.

    A run folder also gets its page, as HTML and as Markdown; the folders `beside` it are kept in it and compared. Its
    pictures come from the folder `data`, or from `data_root`.
    """
    if beside and not path.is_dir():
        raise RunError(f"{path} is a predictions file; other runs are kept in a run's folder: name that")
    for other in beside:
        compared.add(path, other)
    found = sorted(path.glob("predictions-*.parquet")) if path.is_dir() else [path]
    if not found:
        raise RunError(f"{path} holds no predictions; make some with: llm-wrapper eval --run {shell_word(path)}")
    for file in found:
        say(console, file.name)
        console.print(tables.table(summaries_of(files.load_predictions(file))))
    if path.is_dir():
        written = page.write(path, [*data_folders(), *([data_root] if data_root else [])])
        say(console, f"the report: {' and '.join(map(str, written))}")


def demo(recipe: Recipe, console: Console, *, fast: bool) -> None:
    """Walk the whole road on the toy split and leave runs/demo with table, predictions and summary.json.

    The fast way is a few steps and few samples, in runs/demo-fast: it shows that the road is whole, nothing more.
    """
    folder = runs.RUNS / ("demo-fast" if fast else "demo")
    if fast:
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": 4})})
    cache(recipe, [recipe.data.train_split, recipe.data.eval_split], console)
    if runs.is_complete(folder) and runs.recipe_of(folder) == recipe:
        say(console, f"{folder} is trained already; to train again: rm -r {shell_word(folder)}")
    else:
        train(recipe, folder, console)
    done = evaluate(Evaluation(recipe, folder, limit=60 if fast else None), console)
    summary = results.free_file(folder / "summary.json", done.question)
    storage.write_json(summary, {"rows": tables.rows(done.summaries), "question": done.question})
    _draw_examples(done, recipe, console)


def _draw_examples(done: Evaluated, recipe: Recipe, console: Console) -> None:
    """Draw tuned predictions of the first images, one each, so that a person sees what the numbers are about."""
    folder = done.folder
    rows = files.load_predictions(folder / f"predictions-{done.name}.parquet")
    tuned = list({row.image_id: row for row in reversed(rows) if row.system == "tuned"}.values())[::-1][:6]
    for number, row in enumerate(tuned):
        image = recipe.data.folder / "images" / f"{row.image_id}.png"
        pictures.save_picture(pictures.draw_prediction(row, image), folder / "pictures" / f"{number}.png")
    say(console, f"{len(tuned)} pictures in {folder / 'pictures'}")
