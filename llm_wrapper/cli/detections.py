"""The verbs of cached detections: `cache-detections`, and the group `detections`.

data/detections/<vlm>/<data>/<split>/  part-*.parquet  manifest.json
runs/headroom/<name>-<split>.json
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.prompt import Confirm
from rich.table import Table

from llm_wrapper import datasets, detectors, results, runs, storage
from llm_wrapper.cli import options
from llm_wrapper.cli.options import (
    Data,
    DataRoot,
    Limit,
    Overrides,
    Split,
    Train,
    Vlm,
    choose_recipe,
    name_of,
)
from llm_wrapper.detections import maintain
from llm_wrapper.detections.contents import MANIFEST, dataset_options, describe_recorded
from llm_wrapper.detections.fill import Engine, answer_locally, fill_cache
from llm_wrapper.detections.maintain import CacheSummary
from llm_wrapper.detections.samples import (
    PreparedSample,
    PreparedSplit,
    cache_folder,
    load_prepared_split,
    prepare_candidates,
)
from llm_wrapper.detectors import Detector, PaidDetector
from llm_wrapper.errors import RecipeError
from llm_wrapper.evaluation.headroom import Headroom, Offer, compare_headroom
from llm_wrapper.recipe import DataSection, DetectorSection, Recipe
from llm_wrapper.report.formatting import NO_DATA, percent
from llm_wrapper.statistics import Estimate
from llm_wrapper.storage import folder_name
from llm_wrapper.terminal import as_cell, say

__all__ = [
    "Filling",
    "cache",
    "cache_detections_verb",
    "detections_app",
    "export",
    "info",
    "measure_headroom",
    "merge",
    "verify",
]


detections_app = typer.Typer(no_args_is_help=True, help="Inspect, check, join and export cached detections.")


Folder = Annotated[Path, typer.Argument(help="A cache: data/detections/<detector>/<dataset>/<split>.")]
Folders = Annotated[list[Path], typer.Argument(help="Caches: data/detections/<detector>/<dataset>/<split>.")]


@dataclass(frozen=True)
class Filling:
    """How `cache-detections` goes about it, see `fill`; `workers` are those of Ray, by default as many as fit."""

    overwrite: bool = False
    skip_unreadable: bool = False
    images_per_batch: int = 8
    engine: Literal["local", "ray"] = "local"
    workers: int | None = None


_USUAL = Filling()


def cache_detections_verb(  # noqa: PLR0913 (each is an option of the verb)
    overrides: Overrides = None,
    *,
    vlm: Vlm = None,
    data: Data = None,
    data_root: DataRoot = None,
    train: Train = None,
    split: Split = None,
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
    recipe = choose_recipe(options.names_by_kind(vlm, "rule", data, train), overrides, data_root)
    splits = [split] if split else [recipe.data.train_split, recipe.data.eval_split]
    how = Filling(overwrite, skip_unreadable, images_per_batch, engine, workers)
    cache(recipe, splits, options.CONSOLE, how=how)


@detections_app.command("headroom")
def headroom_verb(
    overrides: Overrides = None,
    *,
    vlm: Vlm = None,
    data: Data = None,
    data_root: DataRoot = None,
    split: Split = None,
    limit: Limit = None,
) -> None:
    """Measure how much a perfect choice among the cached boxes would gain; write runs/headroom/*.json."""
    recipe = choose_recipe(options.names_by_kind(vlm, "rule", data), overrides, data_root)
    split = split or recipe.data.eval_split
    measure_headroom(recipe, name_of({"vlm": vlm, "data": data}), options.CONSOLE, split=split, limit=limit)


@detections_app.command("info")
def info_verb(
    folders: Folders,
    *,
    identity: Annotated[bool, typer.Option(help="Print all that decided the answers, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone, with the identity.")] = False,
) -> None:
    """Print what caches hold and whether they are complete."""
    info(folders, options.CONSOLE, identity=identity, as_json=as_json)


@detections_app.command("verify")
def verify_verb(folders: Folders) -> None:
    """Check every digest, column, identity and answer of caches; print remedies. Changes nothing."""
    if not verify(folders, options.CONSOLE):
        raise typer.Exit(1)


@detections_app.command("merge")
def merge_verb(out: Annotated[Path, typer.Argument(help="The result, new or begun.")], folders: Folders) -> None:
    """Join caches of one detector and split, such as those of several machines, into a new one; resumable."""
    merge(out, folders, options.CONSOLE)


@detections_app.command("export")
def export_verb(
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="COCO results where it ends in .json, else our JSONL in .jsonl.")],
) -> None:
    """Write cached detections as COCO results or JSONL for other programs; VLM=import reads them back."""
    export(folder, out, options.CONSOLE)


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
    options = asdict(how)
    build = partial(detectors.create_detector, section, dataset, detectors.loaded_plugins())
    engine = _engine(options.pop("engine"), options.pop("workers"), build)
    manifest = fill_cache(detector, dataset, folder, engine=engine, **options).manifest
    count = manifest.num_rows if manifest else 0
    left_out = len(manifest.unanswered) if manifest else 0
    more = f"; images skipped: {left_out}, see {folder / 'manifest.json'}" if left_out else ""
    if absent := getattr(detector, "num_unanswered", 0):
        total = len(dataset.images() if detector.levels == ("image",) else dataset.samples)
        what = "images" if detector.levels == ("image",) else "expressions"
        more += f"; its file names {total - absent:,} of {total:,} {what}, and the others count as without detections"
    return "\n".join([f"{folder}: {count} answers for {len(dataset.samples)} expressions{more}", *dataset.notes()])


def _engine(name: Literal["local", "ray"], workers: int | None, build: Callable[[], Detector]) -> Engine:
    """Return the engine that a user names; `build` makes a worker's detector."""
    if name == "local":
        if workers is not None:
            raise RecipeError(f"--workers {workers} is for --engine ray; the local engine is one process.")
        return answer_locally
    from llm_wrapper.detections.ray_engine import RayEngine

    return RayEngine(build, workers)


def info(folders: Sequence[Path], console: Console, *, identity: bool = False, as_json: bool = False) -> None:
    """Print what cache folders hold, a column for each; with `identity` all that decided the answers, too."""
    found = [maintain.summarize_cache(folder) for folder in folders]
    if as_json:
        say(console, json.dumps([asdict(each) for each in found], indent=2))
        return
    table = Table("")
    for each in found:
        table.add_column(as_cell(each.folder), justify="right")
    for cells in zip(*map(_facts, found), strict=True):
        table.add_row(cells[0][0], *(as_cell(value) for _, value in cells))
    console.print(table)
    for each in found if identity else ():
        say(console, f"{each.folder}: {json.dumps(each.identity, indent=2)}")


def _facts(found: CacheSummary) -> list[tuple[str, str]]:
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
        ("computed with", describe_recorded(found.recorded) or NO_DATA),
        ("state", found.state),
    ]


def verify(folders: Sequence[Path], console: Console) -> bool:
    """Print every problem of cache folders with its remedy; return whether there is none."""
    found = {folder: maintain.verify_cache(folder) for folder in folders}
    for folder, problems in found.items():
        for problem in problems:
            say(console, f"{problem.text}\n  {problem.remedy}")
        if not problems:
            say(console, f"{folder}: complete and undamaged")
    return not any(found.values())


def merge(out: Path, folders: Sequence[Path], console: Console) -> None:
    """Join caches in a folder, and print what came of it."""
    merged = maintain.merge_caches(out, folders)
    say(console, f"{out}: {merged.num_added} answers added, {merged.num_repeated} given more than once")
    if not merged.is_complete:
        say(console, f"To ask what may still be missing, and to finish it: {merged.command}")


def export(folder: Path, out: Path, console: Console) -> None:
    """Write the detections of a cache as a file, and print how it is read back."""
    *categories, results = maintain.export_cache(folder, out)
    settings = [("path", results), *(("categories", path) for path in categories)]
    # In quotes of JSON: a `#` or `: ` in a path would mean something in YAML.
    overrides = [f"detector.settings.{key}={json.dumps(str(path), ensure_ascii=False)}" for key, path in settings]
    identity = storage.read_json(folder / MANIFEST)["identity"]
    words = ["--vlm", "import", *dataset_options(identity, folder), *overrides]
    say(
        console,
        f"{out} is written. Add --data-root to the next command if the data lies elsewhere than its recipe says.",
    )
    say(console, f"It is read back by: llm-wrapper cache-detections {shlex.join(words)}")


def measure_headroom(recipe: Recipe, name: str, console: Console, *, split: str, limit: int | None = None) -> None:
    """Print what a selector can gain on a split's cached detections, and keep it in runs/headroom/<name>-<split>.json.

    Results of another question, such as another file of boxes, are not touched, see `results`.

    Raises:
        CacheError: If the detections are not cached completely; the message names the command.
    """
    found = load_prepared_split(recipe, recipe.data, split, limit=limit)
    result = compare_headroom(_uncapped(found, recipe), found.samples)
    console.print(_headroom_table(result, recipe.candidates.cap))
    for line in [*_headroom_lines(result, recipe.candidates.cap), *found.notes()]:
        say(console, line)
    split = folder_name(split, "the split")
    out = runs.RUNS / "headroom" / f"{storage.plain_name(name)}-{split}{f'-first-{limit}' if limit else ''}.json"
    asked = {"candidates": recipe.candidates, "ensemble": recipe.ensemble}
    question = {
        **{key: section.model_dump(mode="json") for key, section in asked.items()},
        "data": recipe.data.name,
        "detections": found.identity,
        "split": split,
        "limit": limit,
        "seed": recipe.train.seed,
    }
    out = results.free_file(out, question)
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


def _uncapped(found: PreparedSplit, recipe: Recipe) -> list[PreparedSample]:
    """Build the candidates again as if there were no cap, where it took any."""
    everything = recipe.without_cap()
    names = [cache.identity["detector"] for cache in found.caches]
    samples = []
    for prepared in found.samples:
        if prepared.built.counts["over_cap"]:
            answers = [cache.lookup(prepared.sample) for cache in found.caches]
            prepared = PreparedSample(prepared.sample, prepare_candidates(everything, prepared.sample, answers, names))  # noqa: PLW2901 (the same sample, with more candidates)
        samples.append(prepared)
    return samples


def _headroom_table(result: Headroom, cap: int) -> Table:
    """Lay out one row a measure: before the cap, after it, and over how many; shares in percent (95 % CI)."""
    table = Table("in percent (95 % CI)")
    for name in ("all candidates", f"cap of {cap}", "n"):
        table.add_column(name, justify="right", no_wrap=name != "n")  # no interval breaks over two lines
    columns = [_shares(offer) for offer in (result.before, result.after)]
    for (name, before), (_, after) in zip(*columns, strict=True):
        numbers = [f"{share.n:,}" for share in (before, after)]
        table.add_row(name, percent(before), percent(after), " / ".join(dict.fromkeys(numbers)))
    for name in ("mean", "median", "max"):
        spreads = (offer.per_sample for offer in (result.before, result.after))
        values = [f"{getattr(spread, name):.1f}".removesuffix(".0") for spread in spreads]
        table.add_row(f"candidates per expression, {name}", *values, f"{result.num_samples:,}")
    return table


def _shares(offer: Offer) -> list[tuple[str, Estimate]]:
    return [
        ("detector's own P@1", offer.own),
        ("oracle P@1", offer.oracle),
        ("headroom: oracle - own", offer.gain),
        *((f"recall@{rank}", share) for rank, share in offer.recall.items()),
        ("expressions without a candidate", offer.no_candidate),
        ("expressions with one candidate", offer.one_candidate),
        ("candidates that repeat another", offer.duplicates),
    ]


def _headroom_lines(result: Headroom, cap: int) -> list[str]:
    without = result.num_samples - result.before.own.n
    more = f"; {without} without a target are not scored" if without else ""
    return [
        f"{result.num_samples} expressions of {result.num_images} images{more}",
        f"the cap of {cap} takes {result.num_candidates_lost} candidates from {result.num_capped} expressions; "
        f"points of oracle P@1 lost by that: {percent(result.lost)}",
    ]
