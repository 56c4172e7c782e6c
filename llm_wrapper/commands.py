"""What each verb of the command line does. torch is imported only where an LLM is needed."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from llm_wrapper import artifacts, datasets, plan_commands, runs
from llm_wrapper.datasets import Dataset
from llm_wrapper.datasets import check as checks
from llm_wrapper.detection_commands import cache
from llm_wrapper.detections.scenes import Scene, SceneSet, load_scenes
from llm_wrapper.errors import DataError, ModelError, RunError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation import systems
from llm_wrapper.metrics import Summary, summarize
from llm_wrapper.predict import Wrapper
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Prediction
from llm_wrapper.report import card, page, pictures, tables
from llm_wrapper.training.pool import gather

__all__ = [
    "Evaluation",
    "check_data",
    "demo",
    "evaluate",
    "export",
    "predict_and_draw",
    "recipes_folder",
    "recompute",
    "summaries_of",
    "train",
]

_log = logging.getLogger(__name__)
_SPLITS = ("train", "val", "test", "testA", "testB")


def recipes_folder() -> Path:
    """Return the recipes of the working folder, else those beside the package."""
    local = Path("recipes")
    return local if local.is_dir() else Path(__file__).parents[1] / "recipes"


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


def train(recipe: Recipe, folder: Path, console: Console) -> Path:
    """Train an adapter and leave it in the run folder, which is complete once its manifest is there."""
    if recipe.llm.backend == "rule":
        raise ModelError("LLM=rule has nothing to train; evaluate it with: make eval LLM=rule")
    if recipe.llm.backend == "openai":
        raise ModelError(
            "a served LLM cannot be trained from here: train it as a local one (LLM=llama3), then serve it"
        )
    runs.open_run(folder, recipe)
    pool = gather(recipe)
    plan_commands.brief(recipe, pool.groups, console)
    from llm_wrapper.llms.load import load
    from llm_wrapper.training import sft

    llm = load(recipe.llm)
    groups, num_too_long = sft.fit_to_length(llm, pool.groups, recipe)
    left_out = {**pool.left_out, "too_long": num_too_long}
    num_samples = sum(len(group.samples) for group in groups)
    console.print(f"{num_samples} samples in {len(groups)} groups; left out: {left_out}", highlight=False)
    try:
        outcome = sft.train(llm, groups, recipe, folder)
    except KeyboardInterrupt:
        console.print(f"interrupted; go on from the last checkpoint: the same command with RUN={folder}")
        raise
    facts = {"samples": num_samples, "left_out": left_out, "training": outcome, "data": _digests(pool.sets)}
    runs.finish(folder, facts)
    _write_card(folder)
    console.print(f"{folder}: {outcome['steps']} steps in {outcome['seconds']} s", highlight=False)
    return folder


def _write_card(run: Path) -> None:
    """Write the adapter's model card from what the run's folder holds."""
    results = {path.stem.removeprefix("report-"): path.read_text("utf-8") for path in sorted(run.glob("report-*.md"))}
    text = card.card(runs.recipe_of(run), runs.facts_of(run), results)
    artifacts.write_atomic(run / "adapter" / "README.md", text)


def export(run: Path, out: Path, console: Console) -> None:
    """Merge a run's adapter into its base model, for a server."""
    if not runs.is_complete(run):
        raise RunError(f"{run} holds no finished training; go on with it: make train RUN={run}")
    from llm_wrapper.llms.export import export as merge

    merge(runs.recipe_of(run).llm, run / "adapter", out)
    console.print(f"{out} is written; serve it, then: make eval LLM=vllm RUN={run}", markup=False, highlight=False)


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


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate: a recipe on a split, with the adapter of a run where there is one."""

    recipe: Recipe
    run: Path | None
    split: str | None = None
    limit: int | None = None
    untrained: bool = True

    @property
    def folder(self) -> Path:
        """Where predictions and report go."""
        llm = re.sub(r"[^\w.-]+", "-", self.recipe.llm.model or self.recipe.llm.backend)
        name = f"{self.recipe.vlm}-{llm}-{self.recipe.data.name}"
        if self.recipe.llm.backend == "openai":  # what a server gives does not replace what the run itself gave
            return runs.ROOT / f"{name}-served"
        return self.run or runs.ROOT / f"{name}-untrained"


def evaluate(job: Evaluation, console: Console) -> list[Summary]:
    """Predict with every system, print the table, keep predictions and report."""
    recipe, adapter = _with_training(job)
    split = job.split or recipe.data.eval_split
    scene_set = load_scenes(recipe, recipe.data, split, limit=job.limit)
    if not any(scene.sample.target for scene in scene_set.scenes):
        raise DataError(f"{recipe.data.name} {split} has no box to compare with; use: llm-wrapper predict")
    rows = [*systems.by_detector(scene_set.scenes), *systems.by_rule(scene_set.scenes)]
    rows += _by_llm(recipe, adapter, scene_set.scenes, job)
    rows += systems.by_oracle(scene_set.scenes)
    name = f"{split}-first-{job.limit}" if job.limit else split
    files.save(job.folder / f"predictions-{name}.parquet", rows)
    summaries = summaries_of(rows)
    facts = {
        "recipe": recipe.model_dump(mode="json"),
        "split": split,
        "limit": job.limit,
        "data": _digests([scene_set]),
        "run": str(job.run) if job.run else None,
        "git": artifacts.git_revision(),
        "versions": artifacts.versions(),
    }
    artifacts.write_json(job.folder / f"report-{name}.json", {"rows": tables.rows(summaries), **facts})
    artifacts.write_atomic(job.folder / f"report-{name}.md", tables.markdown(summaries))
    if adapter is not None and job.folder == job.run:
        _write_card(job.run)
    console.print(tables.table(summaries))
    console.print(f"kept in {job.folder}", highlight=False)
    return summaries


def _with_training(job: Evaluation) -> tuple[Recipe, Path | None]:
    """Return the recipe to evaluate by, and the adapter: a trained LLM is asked as it was trained."""
    if job.run is None:
        return job.recipe, None
    if not runs.is_complete(job.run):
        raise RunError(f"{job.run} holds no finished training; go on with it: make train RUN={job.run}")
    trained = runs.recipe_of(job.run)
    if job.recipe.candidates != trained.candidates:
        _log.warning("candidates are built by %s; training had %s", job.recipe.candidates, trained.candidates)
    if job.recipe.llm.backend == "openai":  # the server has the weights; how it was asked in training is all it lacks
        return job.recipe.model_copy(update={"prompt": trained.prompt}), None
    asked = {"decode": job.recipe.llm.decode, "orders": job.recipe.llm.orders}
    update = {"prompt": trained.prompt, "llm": trained.llm.model_copy(update=asked)}
    return job.recipe.model_copy(update=update), job.run / "adapter"


def _by_llm(recipe: Recipe, adapter: Path | None, scenes: Sequence[Scene], job: Evaluation) -> list[Prediction]:
    if recipe.llm.backend == "rule":
        return []
    from llm_wrapper.llms.ask import ask, asker
    from llm_wrapper.llms.load import LoadedLLM, load, with_adapter

    def predicted(name: str, asked: systems.Ask) -> list[Prediction]:
        return systems.by_llm(scenes, name, recipe.prompt.format, asked, orders=recipe.llm.orders)

    def loaded(name: str, llm: LoadedLLM) -> list[Prediction]:
        return predicted(name, lambda prompts: ask(llm, prompts, title=name))

    if recipe.llm.backend == "openai":
        return predicted("served", asker(recipe.llm, title="served"))
    llm, rows = load(recipe.llm), []
    if job.untrained or adapter is None:
        rows += loaded("untrained", llm)
    return rows if adapter is None else [*rows, *loaded("tuned", with_adapter(llm, adapter))]


def summaries_of(rows: Sequence[Prediction]) -> list[Summary]:
    """Summarize each system of a list of predictions, in order of appearance."""
    names = dict.fromkeys(row.system for row in rows)
    return [summarize([row for row in rows if row.system == name]) for name in names]


def recompute(path: Path, console: Console) -> None:
    """Print the table of a predictions file, or of every one in a run folder, from the records alone.

    A run folder also gets its page, as HTML and as Markdown.
    """
    found = sorted(path.glob("predictions-*.parquet")) if path.is_dir() else [path]
    if not found:
        raise RunError(f"{path} holds no predictions; make some with: make eval RUN={path}")
    for file in found:
        console.print(file.name, tables.table(summaries_of(files.load(file))))
    if path.is_dir():
        written = page.write(path)
        console.print(f"the report: {' and '.join(map(str, written))}", markup=False, highlight=False, soft_wrap=True)


def predict_and_draw(recipe: Recipe, run: Path | None, question: tuple[Path, str], out: Path, console: Console) -> None:
    """Answer one question about one picture, print the ranked candidates and draw them."""
    image, expression = question
    recipe, adapter = _with_training(Evaluation(recipe, run))
    result = Wrapper.from_recipe(recipe, adapter).predict(image, expression)
    prediction = result.prediction
    for candidate, share in result.ranked:
        mark = "*" if candidate.box == result.box else " "
        coordinates = ", ".join(f"{value:.1f}" for value in candidate.box.xyxy)
        text = f"{mark} {'' if share is None else f'{share:6.3f}'}  {candidate.label}  ({coordinates})"
        console.print(text, markup=False, highlight=False)
    chosen = next((i for i, candidate in enumerate(prediction.candidates) if candidate.box == result.box), None)
    pictures.draw(image, prediction.candidates, out=out, chosen=chosen, probabilities=prediction.probabilities)
    console.print(f"decided by: {prediction.decided_by}; picture: {out}", highlight=False)


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
