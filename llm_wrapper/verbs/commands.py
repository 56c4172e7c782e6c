"""What each verb of the command line does. torch is imported only where an LLM is needed."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from llm_wrapper import artifacts, datasets, runs
from llm_wrapper.datasets import Dataset
from llm_wrapper.datasets import check as checks
from llm_wrapper.detections.scenes import SceneSet, load_scenes
from llm_wrapper.errors import DataError, ModelError, RunError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation import systems
from llm_wrapper.metrics import Summary, summarize
from llm_wrapper.recipe import Recipe
from llm_wrapper.recipe_files import folder as recipes_folder
from llm_wrapper.records import Prediction
from llm_wrapper.report import card, compared, page, pictures, tables
from llm_wrapper.training import processes, trackers
from llm_wrapper.training.examples import answered_none
from llm_wrapper.training.interruption import stoppable
from llm_wrapper.training.pool import gather
from llm_wrapper.training.wording import Wording, require_trainable, wording_of
from llm_wrapper.verbs import plan_commands
from llm_wrapper.verbs.asking_commands import Evaluation, by_llm, with_training
from llm_wrapper.verbs.detection_commands import cache

__all__ = [
    "Evaluation",
    "check_data",
    "demo",
    "evaluate",
    "recipes_folder",
    "recompute",
    "summaries_of",
    "train",
    "with_training",
]

_log = logging.getLogger(__name__)
_SPLITS = ("train", "val", "test", "testA", "testB")


def check_data(recipe: Recipe, console: Console) -> bool:
    """Print what is in each split and what is wrong with it; tell whether all is well."""
    found: list[Dataset] = []
    unread: dict[str, DataError] = {}
    for split in _SPLITS:
        try:
            dataset = datasets.load(recipe.data, split)
        except DataError as error:
            unread[split] = error
            continue
        # A file without splits is the same file under every name, and no leak from one split to another.
        if dataset.samples and all(dataset.samples != other.samples for other in found):
            found.append(dataset)
    if not found:
        nothing = DataError(f"{recipe.data.root} has no sample in any of {', '.join(_SPLITS)}")
        raise next(iter(unread.values()), nothing)
    report = checks.check(found)
    console.print(checks.render(report), markup=False, highlight=False, soft_wrap=True)
    for split, problem in unread.items():
        if split in (recipe.data.train_split, recipe.data.eval_split):
            console.print(
                f"error: split {split} cannot be read: {problem}", markup=False, highlight=False, soft_wrap=True
            )
    return report.ok and not unread.keys() & {recipe.data.train_split, recipe.data.eval_split}


def train(recipe: Recipe, folder: Path, console: Console, *, is_new: bool = False) -> Path:
    """Train an adapter and leave it in the run folder, which is complete once its manifest is there.

    Args:
        recipe: Of the run.
        folder: Of the run.
        console: Where the course is printed.
        is_new: Make a folder that nobody has yet, see `runs.claim_run`.
    """
    if recipe.llm.backend == "rule":
        raise ModelError("LLM=rule has nothing to train; evaluate it with: make eval LLM=rule")
    if recipe.llm.backend == "openai":
        raise ModelError(
            "a served LLM cannot be trained from here: train it as a local one (LLM=llama3), then serve it"
        )
    require_trainable(recipe.prompt)
    with processes.main_speaks(console), contextlib.ExitStack() as held:
        processes.require_devices()
        processes.share(recipe.train.groups_per_step)
        trackers.require(recipe.train.report_to)
        folder = processes.open_together(
            folder, lambda path: held.enter_context(runs.claim_run(path, recipe, is_new=is_new))
        )
        with stoppable(folder, console):
            _adapt(recipe, folder, console)
    return folder


def _adapt(recipe: Recipe, folder: Path, console: Console) -> None:
    """Train in an open run and finish it."""
    pool = gather(recipe)
    if processes.is_main():
        plan_commands.brief(recipe, pool.groups, console)
    from llm_wrapper.llms.load import load
    from llm_wrapper.training import sft

    llm = load(recipe.llm)
    groups, num_too_long = sft.fit_to_length(llm, pool.groups, recipe)
    left_out = {**pool.left_out, "too_long": num_too_long}
    num_samples = sum(group.num_labelled for group in groups)
    labelled = [group for group in groups if group.num_labelled]
    images = f", {len(groups) - len(labelled)} images to generate expressions for" if labelled != groups else ""
    none = f"; answered by none of these: {answered_none(groups)}" if recipe.prompt.none else ""
    found = f"{num_samples} samples in {len(labelled)} groups{images}{none}; left out: {left_out}"
    console.print(found, highlight=False, soft_wrap=True)
    outcome = sft.train(llm, groups, recipe, folder)
    if not processes.part():
        return
    facts = {"samples": num_samples, "left_out": left_out, "training": outcome, "data": _digests(pool.sets)}
    facts |= {"answered_none": answered_none(groups)} if recipe.prompt.none else {}
    runs.finish(folder, facts)
    _write_card(folder)
    console.print(f"{folder}: {outcome['steps']} steps in {outcome['seconds']} s", highlight=False)


def _write_card(run: Path) -> None:
    """Write the adapter's model card from what the run's folder holds."""
    results = {path.stem.removeprefix("report-"): path.read_text("utf-8") for path in sorted(run.glob("report-*.md"))}
    text = card.card(runs.recipe_of(run), runs.facts_of(run), results)
    artifacts.write_atomic(run / "adapter" / "README.md", text)


def _digests(sets: Sequence[SceneSet]) -> list[dict[str, Any]]:
    return [
        {
            "name": each.dataset.name,
            "split": each.dataset.split,
            "annotations": each.dataset.digest,
            "detections": artifacts.digest_value(each.identity),
            "dropped": each.dropped,
        }
        for each in sets
    ]


def evaluate(job: Evaluation, console: Console) -> list[Summary]:
    """Predict with every system, print the table, keep predictions and report."""
    recipe, adapter = with_training(job)
    split = job.split or recipe.data.eval_split
    scene_set = load_scenes(recipe, recipe.data, split, limit=job.limit)
    if not any(scene.sample.target for scene in scene_set.scenes):
        raise DataError(f"{recipe.data.name} {split} has no box to compare with; use: llm-wrapper predict")
    # Before anything is asked: what lacks for the prompts is told at once.
    wording = Wording(lambda _: []) if recipe.llm.backend == "rule" else wording_of(recipe)
    rows = [*systems.by_detector(scene_set.scenes), *systems.by_rule(scene_set.scenes)]
    rows += by_llm(recipe, wording.word, adapter, scene_set.scenes, with_untrained=job.untrained)
    rows += systems.by_oracle(scene_set.scenes)
    name = f"{split}-first-{job.limit}" if job.limit else split
    folder = _kept_in(job, recipe)
    files.save(folder / f"predictions-{name}.parquet", rows)
    summaries = summaries_of(rows)
    facts = {
        "recipe": recipe.model_dump(mode="json"),
        "split": split,
        "limit": job.limit,
        "data": _digests([scene_set]),
        "run": str(job.run) if job.run else None,
        "adapter": job.adapter.facts() if job.adapter else None,
        "prompt": wording.facts,
        "git": artifacts.git_revision(),
        "versions": artifacts.versions(),
    }
    artifacts.write_json(folder / f"report-{name}.json", {"rows": tables.rows(summaries), **facts})
    artifacts.write_atomic(folder / f"report-{name}.md", tables.markdown(summaries))
    if adapter is not None and folder == job.run:
        _write_card(job.run)
    console.print(tables.table(summaries))
    asked = "" if recipe.llm.backend == "rule" else f"; asked with {recipe.prompt.summary}"
    console.print(f"kept in {folder}{asked}", highlight=False)
    return summaries


def _kept_in(job: Evaluation, recipe: Recipe) -> Path:
    """Return where an evaluation goes: a run that is asked otherwise than trained stands beside itself.

    There the report finds it, and counts by the order of the candidates what flips, and by the threshold what is
    answered by none.
    """
    if job.run is None:
        return job.folder
    trained, others = runs.recipe_of(job.run), []
    if recipe.candidates.order != trained.candidates.order:
        others.append(f"order-{recipe.candidates.order}")
    if recipe.prompt.none_below not in (None, trained.prompt.none_below):
        others.append(f"none-below-{recipe.prompt.none_below:g}")
    return job.folder / compared.FOLDER / "-".join(others) if others else job.folder


def summaries_of(rows: Sequence[Prediction]) -> list[Summary]:
    """Summarize each system of a list of predictions, in order of appearance."""
    names = dict.fromkeys(row.system for row in rows)
    return [summarize([row for row in rows if row.system == name]) for name in names]


def recompute(path: Path, console: Console, *, beside: Sequence[Path] = ()) -> None:
    """Print the table of a predictions file, or of every one in a run folder, from the records alone.

    A run folder also gets its page, as HTML and as Markdown; the folders `beside` it are kept in it and compared.
    """
    if beside and not path.is_dir():
        raise RunError(f"{path} is a predictions file; other runs are kept in a run's folder: name that")
    for other in beside:
        compared.add(path, other)
    found = sorted(path.glob("predictions-*.parquet")) if path.is_dir() else [path]
    if not found:
        raise RunError(f"{path} holds no predictions; make some with: make eval RUN={path}")
    for file in found:
        console.print(file.name, tables.table(summaries_of(files.load(file))))
    if path.is_dir():
        written = page.write(path)
        console.print(f"the report: {' and '.join(map(str, written))}", markup=False, highlight=False, soft_wrap=True)


def demo(recipe: Recipe, console: Console, *, fast: bool) -> None:
    """Walk the whole road on the toy split and leave runs/demo with table, predictions and summary.json.

    The fast way is a few steps and few samples, in runs/demo-fast: it shows that the road is whole, nothing more.
    """
    folder = runs.ROOT / ("demo-fast" if fast else "demo")
    if fast:
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": 4})})
    cache(recipe, [recipe.data.train_split, recipe.data.eval_split], console)
    if runs.is_complete(folder) and runs.recipe_of(folder) == recipe:
        console.print(f"{folder} is trained already; to train again: rm -r {folder}", highlight=False)
    else:
        train(recipe, folder, console)
    summaries = evaluate(Evaluation(recipe, folder, limit=60 if fast else None), console)
    artifacts.write_json(folder / "summary.json", {"rows": tables.rows(summaries)})
    _draw_examples(folder, console)


def _draw_examples(folder: Path, console: Console) -> None:
    """Draw the first tuned predictions, so that a person sees what the numbers are about."""
    newest = max(folder.glob("predictions-*.parquet"), key=os.path.getmtime)
    tuned = [row for row in files.load(newest) if row.system == "tuned"][:6]
    for number, row in enumerate(tuned):
        chosen = next((i for i, candidate in enumerate(row.candidates) if candidate.box == row.box), None)
        image = Path("data/toy/images") / f"{row.image_id}.png"
        out = folder / "pictures" / f"{number}.png"
        pictures.draw(image, row.candidates, out=out, chosen=chosen, probabilities=row.probabilities, target=row.target)
    console.print(f"{len(tuned)} pictures in {folder / 'pictures'}", highlight=False)
