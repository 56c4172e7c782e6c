"""`cache-detections`, the group `detections` (info, merge, headroom), and `check-data`: what there is before any LLM.

data/detections/<vlm>/<data>/<split>/  part-*.parquet  manifest.json
runs/headroom/<name>-<split>.json
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.prompt import Confirm
from rich.table import Table

from llm_wrapper import datasets, detectors, readers, runs, storage
from llm_wrapper.cli import options
from llm_wrapper.datasets import Dataset
from llm_wrapper.datasets import check as checks
from llm_wrapper.detections import maintain
from llm_wrapper.detections.contents import MANIFEST, dataset_options, describe_recorded
from llm_wrapper.detections.fill import answer_locally, fill_cache
from llm_wrapper.detections.samples import cache_folder, load_prepared_split
from llm_wrapper.detectors import PaidDetector
from llm_wrapper.errors import DataError, RecipeError
from llm_wrapper.evaluation.headroom import Headroom, compare_headroom, remove_cap
from llm_wrapper.recipe import DataSection, DetectorSection, Recipe
from llm_wrapper.report.formatting import NO_DATA, percent
from llm_wrapper.storage import folder_name
from llm_wrapper.terminal import as_cell, say

detections_app = typer.Typer(no_args_is_help=True, help="Inspect, check and join cached detections.")

Folders = Annotated[list[Path], typer.Argument(help="Caches: data/detections/<detector>/<dataset>/<split>.")]


@dataclass(frozen=True)
class Filling:
    """How `cache-detections` goes about it, see `fill_cache`; `workers` are those of Ray, by default as many as fit."""

    overwrite: bool = False
    skip_unreadable: bool = False
    images_per_batch: int = 8
    engine: Literal["local", "ray"] = "local"
    workers: int | None = None


_USUAL = Filling()


def cache_detections_verb(  # noqa: PLR0913 (each is an option of the verb)
    overrides: options.Overrides = None,
    *,
    vlm: options.Vlm = None,
    data: options.Data = None,
    data_root: options.DataRoot = None,
    train: options.Train = None,
    split: options.Split = None,
    overwrite: Annotated[bool, typer.Option(help="Throw away what is cached and ask again.")] = False,
    skip_unreadable: Annotated[
        bool, typer.Option(help="Finish without missing or broken images; they are named.")
    ] = False,
    images_per_batch: Annotated[int, typer.Option(min=1, help="Images that the detector is given at once.")] = 8,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Ask in this process, or in workers of Ray.")
    ] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Ray: how many workers, if not as many as fit.")] = None,
) -> None:
    """Run the detector once on the training and evaluation splits; write its boxes to data/detections."""
    recipe = options.choose_recipe({"vlm": vlm, "llm": "rule", "data": data, "train": train}, overrides, data_root)
    splits = [split] if split else [recipe.data.train_split, recipe.data.eval_split]
    how = Filling(overwrite, skip_unreadable, images_per_batch, engine, workers)
    cache(recipe, splits, options.CONSOLE, how=how)


@detections_app.command("headroom")
def headroom_verb(
    overrides: options.Overrides = None,
    *,
    vlm: options.Vlm = None,
    data: options.Data = None,
    data_root: options.DataRoot = None,
    split: options.Split = None,
    limit: options.Limit = None,
) -> None:
    """Measure how much a perfect choice among the cached boxes would gain; write runs/headroom/*.json."""
    recipe = options.choose_recipe({"vlm": vlm, "llm": "rule", "data": data}, overrides, data_root)
    split = split or recipe.data.eval_split
    measure_headroom(recipe, options.name_of({"vlm": vlm, "data": data}), options.CONSOLE, split=split, limit=limit)


@detections_app.command("info")
def info_verb(
    folders: Folders,
    *,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every digest, column, identity and answer instead; print remedies.")
    ] = False,
    identity: Annotated[bool, typer.Option(help="Print all that decided the answers, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone, with the identity.")] = False,
) -> None:
    """Print what caches hold and whether they are complete; with --verify, whether they are undamaged."""
    console = options.CONSOLE
    if verify:
        problems = {folder: maintain.verify_cache(folder) for folder in folders}
        for folder, found in problems.items():
            for problem in found:
                say(console, f"{problem.text}\n  {problem.remedy}")
            if not found:
                say(console, f"{folder}: complete and undamaged")
        if any(problems.values()):
            raise typer.Exit(1)
        return
    summaries = [maintain.summarize_cache(folder) for folder in folders]
    if as_json:
        say(console, json.dumps([asdict(each) for each in summaries], indent=2))
        return
    table = Table("")
    for each in summaries:
        table.add_column(as_cell(each.folder), justify="right")
    for cells in zip(*map(_facts, summaries), strict=True):
        table.add_row(cells[0][0], *(as_cell(value) for _, value in cells))
    console.print(table)
    for each in summaries if identity else ():
        say(console, f"{each.folder}: {json.dumps(each.identity, indent=2)}")


@detections_app.command("merge")
def merge_verb(out: Annotated[Path, typer.Argument(help="The result, new or begun.")], folders: Folders) -> None:
    """Join caches of one detector and split, such as those of several machines, into a new one; resumable."""
    merged = maintain.merge_caches(out, folders)
    say(options.CONSOLE, f"{out}: {merged.num_added} answers added, {merged.num_repeated} given more than once")
    if not merged.is_complete:
        say(options.CONSOLE, f"To ask what may still be missing, and to finish it: {merged.command}")


def cache(recipe: Recipe, splits: Sequence[str], console: Console, *, how: Filling = _USUAL) -> None:
    """Fill the detections cache of each split, of the recipe's data set and of those trained on beside it."""
    others = [(other, other.train_split) for other in recipe.training_data()[1:]]
    jobs = [(recipe.data, split) for split in splits] + others
    for data, split in jobs:
        for each in recipe.detectors():
            say(console, _cache_split(each.detector, data, split, how))


def _cache_split(section: DetectorSection, data: DataSection, split: str, how: Filling) -> str:
    """Fill one cache and tell what it holds."""
    dataset = datasets.load_dataset(data, split)
    detector = detectors.create_detector(section, dataset)
    if isinstance(detector, PaidDetector) and sys.stdin.isatty():
        detector.confirm = lambda estimate: Confirm.ask(f"{estimate}. Continue?", default=False)
    folder = cache_folder(detector.name, data, split)
    engine = answer_locally
    if how.engine == "ray":
        from llm_wrapper.detections.ray_engine import RayEngine

        build = partial(detectors.create_detector, section, dataset, detectors.loaded_plugins())
        engine = RayEngine(build, how.workers)
    elif how.workers is not None:
        raise RecipeError(f"--workers {how.workers} is for --engine ray; the local engine is one process.")
    manifest = fill_cache(
        detector,
        dataset,
        folder,
        engine=engine,
        overwrite=how.overwrite,
        skip_unreadable=how.skip_unreadable,
        images_per_batch=how.images_per_batch,
    ).manifest
    lines = [f"{folder}: {manifest.num_rows if manifest else 0} answers for {len(dataset.samples)} expressions"]
    if manifest and manifest.unanswered:
        lines[0] += f"; images skipped: {len(manifest.unanswered)}, see {folder / MANIFEST}"
    if absent := getattr(detector, "num_unanswered", 0):
        by_image = detector.levels == ("image",)
        total, what = (len(dataset.images()), "images") if by_image else (len(dataset.samples), "expressions")
        lines[0] += (
            f"; its file names {total - absent:,} of {total:,} {what}, and the others count as without detections"
        )
    return "\n".join([*lines, *dataset.notes()])


def _facts(found: maintain.CacheSummary) -> list[tuple[str, str]]:
    known = found.identity or {}
    numbers = {
        "rows": found.num_rows,
        "images": found.num_images,
        "detections": found.num_detections,
        "dropped": found.num_dropped,
        "unanswered images": found.num_unanswered,
        "parts": found.num_parts,
        "bytes": found.num_bytes,
    }
    return [
        *((name, str(known.get(name, NO_DATA))) for name in ("detector", "dataset", "split")),
        ("levels", ", ".join(found.levels) or NO_DATA),
        *((name, NO_DATA if number is None else f"{number:,}") for name, number in numbers.items()),
        ("created", found.created or NO_DATA),
        ("recorded", describe_recorded(found.recorded) or NO_DATA),
        ("state", found.state),
    ]


def export_detections(folder: Path, out: Path, console: Console) -> None:
    """Write the detections of a cache as a file, and print how it is read back."""
    *categories, boxes = maintain.export_cache(folder, out)
    settings = [("path", boxes), *(("categories", path) for path in categories)]
    overrides = [options.assigned(f"detector.settings.{key}", path) for key, path in settings]
    identity = readers.read_json(folder / MANIFEST)["identity"]
    words = ["--vlm", "import", *dataset_options(identity, folder), *overrides]
    say(
        console,
        f"{out} is written. Add --data-root to the next command if the data lies elsewhere than its recipe says.",
    )
    say(console, f"It is read back by: llm-wrapper cache-detections {shlex.join(words)}")


def measure_headroom(recipe: Recipe, name: str, console: Console, *, split: str, limit: int | None = None) -> None:
    """Print what a selector can gain on a split's cached detections, and keep it in runs/headroom/<name>-<split>.json.

    Results of another question, such as another file of boxes, are not touched, see `runs`.
    """
    cap = recipe.candidates.cap
    found = load_prepared_split(recipe, recipe.data, split, limit=limit)
    result = compare_headroom(remove_cap(found, recipe), found.samples)
    console.print(headroom_table(result, cap))
    without = result.num_samples - result.before.own.n
    more = f"; {without} without a target are not scored" if without else ""
    say(console, f"{result.num_samples} expressions of {result.num_images} images{more}")
    say(
        console,
        f"the cap of {cap} takes {result.num_candidates_lost} candidates from {result.num_capped} expressions; "
        f"points of oracle P@1 lost by that: {percent(result.lost)}",
    )
    for line in found.notes():
        say(console, line)
    question = {
        **recipe.model_dump(mode="json", include={"candidates", "ensemble"}),
        "data": recipe.data.name,
        "detections": found.identity,
        "split": split,
        "limit": limit,
        "seed": recipe.train.seed,
    }
    first = f"-first-{limit}" if limit else ""
    split = folder_name(split, "the split")
    out = runs.RUNS / "headroom" / f"{storage.plain_name(name)}-{split}{first}.json"
    out = runs.free_file(out, question)
    facts = {
        "headroom": result.facts(),
        "question": question,
        "recipe": recipe.model_dump(mode="json"),
        "split": split,
        "limit": limit,
        "detections": found.identity,
        "git": storage.git_revision(),
        "versions": storage.versions(),
    }
    storage.write_json(out, facts)
    say(console, f"kept in {out}")


def headroom_table(result: Headroom, cap: int) -> Table:
    """Lay out one row a measure: before the cap, after it, and over how many; shares in percent (95 % CI)."""
    table = Table("in percent (95 % CI)")
    for name in ("all candidates", f"cap of {cap}", "n"):
        table.add_column(name, justify="right", no_wrap=name != "n")  # no interval breaks over two lines
    offers = (result.before, result.after)
    shares = {
        "detector's own P@1": [offer.own for offer in offers],
        "oracle P@1": [offer.oracle for offer in offers],
        "headroom: oracle - own": [offer.gain for offer in offers],
        **{f"recall@{rank}": [offer.recall[rank] for offer in offers] for rank in result.before.recall},
        "expressions without a candidate": [offer.no_candidate for offer in offers],
        "expressions with one candidate": [offer.one_candidate for offer in offers],
        "candidates that repeat another": [offer.duplicates for offer in offers],
    }
    for name, both in shares.items():
        numbers = dict.fromkeys(f"{share.n:,}" for share in both)
        table.add_row(name, *map(percent, both), " / ".join(numbers))
    for name in ("mean", "median", "max"):
        values = [f"{getattr(offer.per_sample, name):.1f}".removesuffix(".0") for offer in offers]
        table.add_row(f"candidates per expression, {name}", *values, f"{result.num_samples:,}")
    return table


def check_data_verb(
    overrides: options.Overrides = None, *, data: options.Data = None, data_root: options.DataRoot = None
) -> None:
    """Check a data set: print counts, missing images, boxes outside, duplicates and leaks, with remedies."""
    recipe = options.choose_recipe({"vlm": "toy", "llm": "rule", "data": data}, overrides, data_root)
    if not check_data(recipe, options.CONSOLE):
        raise typer.Exit(1)


def check_data(recipe: Recipe, console: Console) -> bool:
    """Print what is in each split and what is wrong with it; tell whether all is well."""
    found: list[Dataset] = []
    unread: dict[str, DataError] = {}
    splits = ("train", "val", "test", "testA", "testB")
    for split in splits:
        try:
            dataset = datasets.load_dataset(recipe.data, split)
        except DataError as error:
            unread[split] = error
            continue
        # A file without splits is the same file under every name, and no leak from one split to another.
        if dataset.samples and all(dataset.samples != other.samples for other in found):
            found.append(dataset)
    if not found:
        nothing = DataError(f"{recipe.data.root} has no sample in any of {', '.join(splits)}")
        raise next(iter(unread.values()), nothing)
    report = checks.check_datasets(found)
    say(console, checks.format_check(report))
    wrong = {split: unread[split] for split in unread if split in (recipe.data.train_split, recipe.data.eval_split)}
    for split, problem in wrong.items():
        say(console, f"error: split {split} cannot be read: {problem}")
    return report.ok and not wrong
