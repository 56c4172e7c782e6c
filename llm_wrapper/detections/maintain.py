"""Cares for cache folders by their contents alone: summary, verification, merging, and export for other programs.

Neither the data set nor the detector is needed. Exports are in the formats that the detector `import` reads back; the
parts themselves are Parquet, which other programs read in one line:

    pandas.read_parquet(list(folder.glob("part-*.parquet")))
    datasets.load_dataset("parquet", data_files=f"{folder}/part-*.parquet")
    duckdb.sql(f"SELECT * FROM '{folder}/part-*.parquet'")
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from llm_wrapper import boxes, storage
from llm_wrapper.detections.cache import ROWS_PER_PART, DetectionCache, read_folder
from llm_wrapper.detections.contents import (
    Contents,
    Key,
    Manifest,
    Problem,
    Recorded,
    commits_of,
    count_answers,
    describe_key,
    distinct,
    fill_command,
    row_detections,
)
from llm_wrapper.detectors import LEVELS, Level, joined
from llm_wrapper.errors import CacheError, DataError, RecipeError, listed
from llm_wrapper.records import Detections

_ROUNDING = 1e-4
"""How far outside 0..1 a score may lie: sums of float16 do, and `import` reads them as 0 and 1."""
_INTEGER = re.compile(r"0|[1-9][0-9]{0,17}")
"""An id that is the same as a number and as text: "7", but not "007"."""

_Row = tuple[Path, pa.Table, int]
"""The place of an answer: its cache folder, table and row."""


@dataclass(frozen=True, slots=True)
class CacheSummary:
    """The counts of a cache folder, over the parts that can be used.

    `num_unanswered` (images) and `created` are known of a finished cache only. A `damaged` cache has problems, see
    `verify_cache`; an `incomplete` one has no manifest yet.
    """

    folder: str
    state: Literal["complete", "incomplete", "damaged"]
    identity: Mapping[str, Any] | None
    levels: tuple[Level, ...]
    num_rows: int
    num_images: int
    num_detections: int
    num_dropped: int
    num_unanswered: int | None
    num_parts: int
    num_bytes: int
    created: str | None
    recorded: Recorded


@dataclass(frozen=True, slots=True)
class MergeResult:
    """The answers added, those found more than once, and the `command` that computes the missing ones."""

    num_added: int
    num_repeated: int
    is_complete: bool
    command: str


def summarize_cache(folder: Path) -> CacheSummary:
    """Count the contents of a cache folder."""
    found = read_folder(folder)
    manifest = found.manifest
    asked: set[Level] = {"image" if sample_id is None else "expression" for _, sample_id in found.keys}
    return CacheSummary(
        folder=str(folder),
        state="damaged" if found.problems else "incomplete" if manifest is None else "complete",
        identity=found.identity,
        levels=tuple(level for level in LEVELS if level in asked),
        **count_answers(found.parts),
        num_unanswered=None if manifest is None else len(manifest.unanswered),
        num_parts=len(found.parts),
        num_bytes=sum((folder / part.entry.name).stat().st_size for part in found.parts),
        created=None if manifest is None else manifest.created,
        recorded=found.recorded,
    )


def verify_cache(folder: Path) -> list[Problem]:
    """Return all problems of a cache; that it is not finished is one."""
    found = read_folder(folder)
    if found.has_manifest:
        return list(found.problems)
    unfinished = Problem(
        f"{folder} is incomplete: it has no manifest.json", f"Run `{found.command}`: it computes only what is missing."
    )
    return [*found.problems, unfinished]


def merge_caches(out: Path, folders: Sequence[Path]) -> MergeResult:
    """Join caches of one identity, such as those of several machines, in `out`; the sources are only read.

    Answers that are already in `out` are kept, so the same call resumes a killed merge. Only a data set can tell which
    answers are missing; therefore the result has no manifest, and `cache-detections` adds the missing answers and the
    manifest. The exception is a result with exactly the answers of a finished source: it is finished too.
    """
    if out.resolve() in {folder.resolve() for folder in folders}:
        raise CacheError(f"{out} is to be merged into itself. Name another folder for the result.")
    sources = _read_undamaged(folders)
    identity = _common_identity(sources)
    # Before anything is made. Whether `out` contradicts is known only when it is locked.
    _gather(sources)
    with DetectionCache.resume(out, identity) as cache:
        answers, num_repeated = _gather([read_folder(out, may_be_empty=True), *sources])
        recorded = distinct(each for source in sources for each in source.recorded)
        missing = [key for key in answers if key not in cache]
        for start in range(0, len(missing), ROWS_PER_PART):
            keys = missing[start : start + ROWS_PER_PART]
            cache.append([(key, row_detections(*answers[key][1:])) for key in keys], recorded)
        for source in sources:
            if cache.manifest is None and source.manifest is not None and source.keys == answers.keys():
                order = [key for part in source.parts for key in part.keys]
                cache.finish(source.manifest.levels, source.manifest.unanswered, order=order)
        return MergeResult(len(missing), num_repeated, cache.manifest is not None, fill_command(identity, out))


def _read_undamaged(folders: Iterable[Path]) -> list[Contents]:
    """Read caches that must be without a problem, though they need not be finished."""
    found = [read_folder(folder) for folder in folders]
    problems = [f"{problem.text}. {problem.remedy}" for each in found for problem in each.problems]
    if problems:
        raise CacheError(listed("not all of these detections can be used", problems))
    return found


def _common_identity(sources: Sequence[Contents]) -> Mapping[str, Any]:
    """Return the identity that all sources share."""
    first = sources[0]
    problems = [
        difference
        for other in sources[1:]
        for difference in storage.describe_differences(
            other.identity or {}, first.identity or {}, places=(f"in {other.folder}", f"in {first.folder}")
        )
    ]
    commits = {each.folder: commits_of(each.recorded) for each in sources}
    if len(set().union(*commits.values())) > 1:
        problems += [f"{folder} is of commit {', '.join(sorted(found))}" for folder, found in commits.items() if found]
    if problems:
        raise CacheError(listed("only detections of the same detector, settings and data can be merged", problems))
    return first.identity or {}


def _gather(caches: Iterable[Contents]) -> tuple[dict[Key, _Row], int]:
    """Return the place of the answer to each question, the first of equals, and the number of the other equals."""
    answers: dict[Key, _Row] = {}
    problems: list[str] = []
    num_repeated = 0
    for found in caches:
        for part in found.parts:
            for row, key in enumerate(part.keys):
                here = (found.folder, part.table, row)
                first = answers.setdefault(key, here)
                if first is here:
                    continue
                num_repeated += 1
                if row_detections(*first[1:]) != row_detections(part.table, row):
                    problems.append(f"{describe_key(key)}: {first[0]} and {found.folder} answer differently")
    if problems:
        headline = "answers contradict each other: merge without one of the folders"
        raise CacheError(listed(headline, problems))
    return answers, num_repeated


def export_cache(folder: Path, out: Path) -> list[Path]:
    """Write the detections of a finished cache as one file; return the files written.

    `.json` becomes COCO results (image_id, category_id, bbox as xywh, score), with the categories' names in
    `<out>.categories.json`; their ids are numbers given here, and image ids are numbers where all of them are. COCO
    knows neither answers about expressions nor detections without a score. `.jsonl` holds both: one sample a line, or
    one image where no answer depends on an expression, with boxes as xyxy to the last digit.

    A detection's `source`, the counts of dropped outputs and, in COCO results, images without detections are not
    written. Read back, an image or sample that the file does not name has no detections, as it has in the cache.
    """
    writers = {".json": _coco_results, ".jsonl": _json_lines}
    if out.suffix not in writers:
        raise RecipeError(f"{out} ends neither in .json (COCO results) nor in .jsonl: name it so.")
    [found] = _read_undamaged([folder])
    if found.manifest is None:
        raise CacheError(f"{folder} is incomplete: it has no manifest.json. Run `{found.command}`.")
    answers = _answers(found, found.manifest)
    problems = [
        f"{describe_key(key)}: score {item.score} of {item.label!r} is not in 0..1"
        for key, answer in answers.items()
        for item in answer.items
        if item.score is not None and not -_ROUNDING <= item.score <= 1.0 + _ROUNDING
    ]
    if problems:
        raise DataError(listed("the detector `import` could not read these detections back", problems))
    files = writers[out.suffix](answers, out)
    for path in files:
        if path.exists():
            raise DataError(f"{path} exists. Name another file, or remove it: rm {shlex.quote(str(path))}")
    for path, text in files.items():
        storage.write_atomic(path, text)
    return list(files)


def _answers(found: Contents, manifest: Manifest) -> dict[Key, Detections]:
    """Return the detections of each sample, or of each image where no answer depends on an expression."""
    rows = {key: row_detections(part.table, row) for part in found.parts for row, key in enumerate(part.keys)}
    if "expression" not in manifest.levels:
        return rows
    of_image = {image_id: answer for (image_id, sample_id), answer in rows.items() if sample_id is None}
    return {
        key: joined([answer, *([of_image[key[0]]] if key[0] in of_image else [])])
        for key, answer in rows.items()
        if key[1] is not None and (key[0] in of_image or "image" not in manifest.levels)
    }


def _coco_results(answers: Mapping[Key, Detections], out: Path) -> dict[Path, str]:
    """Return the files of COCO results: names first, so that results are never without them."""
    items = [(image_id, item) for (image_id, _), answer in answers.items() for item in answer.items]
    problems = []
    if any(sample_id is not None for _, sample_id in answers):
        problems.append("the answers are about expressions, and COCO results know images only")
    num_unscored = sum(item.score is None for _, item in items)
    if num_unscored:
        problems.append(f"{num_unscored} of {len(items)} detections have no score, and COCO results need one")
    if problems:
        raise RecipeError(listed(f"name {out.with_suffix('.jsonl')} instead, COCO results cannot hold these", problems))
    ids = {label: number for number, label in enumerate(sorted({item.label for _, item in items}), start=1)}
    has_numbers = all(_INTEGER.fullmatch(image_id) for image_id, _ in items)
    results = [
        {
            "image_id": int(image_id) if has_numbers else image_id,
            "category_id": ids[item.label],
            "bbox": boxes.to_xywh(item.box),
            "score": item.score,
        }
        for image_id, item in items
    ]
    categories = {"categories": [{"id": number, "name": label} for label, number in ids.items()]}
    return {out.with_suffix(".categories.json"): _json(categories), out: _json(results)}


def _json_lines(answers: Mapping[Key, Detections], out: Path) -> dict[Path, str]:
    """Return the one file of JSONL."""
    lines = []
    for (image_id, sample_id), answer in answers.items():
        about = {"image_id": image_id} if sample_id is None else {"sample_id": sample_id}
        items = [{"box": item.box.xyxy, "label": item.label, "score": item.score} for item in answer.items]
        lines.append(_json({**about, "detections": items}))
    return {out: "".join(lines)}


def _json(value: Any) -> str:
    # In ASCII: some readers of lines take the line breaks of Unicode for ends of lines.
    return json.dumps(value, allow_nan=False) + "\n"
