"""Writes cached detections for other programs, in the formats that the detector `import` reads back.

The parts themselves are Parquet, which other programs read in one line:

    pandas.read_parquet(list(folder.glob("part-*.parquet")))
    datasets.load_dataset("parquet", data_files=f"{folder}/part-*.parquet")
    duckdb.sql(f"SELECT * FROM '{folder}/part-*.parquet'")
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_wrapper import boxes, storage
from llm_wrapper.detections.cache import Manifest
from llm_wrapper.detections.contents import Contents, read_sound, told
from llm_wrapper.detections.parts import Key, row_detections
from llm_wrapper.detectors.base import joined
from llm_wrapper.errors import CacheError, DataError, RecipeError, listed
from llm_wrapper.records import Detection, Detections

__all__ = ["export"]

_ROUNDING = 1e-4
"""How far outside 0..1 a score may lie: sums of float16 do, and `import` reads them as 0 and 1."""
_INTEGER = re.compile(r"0|[1-9][0-9]{0,17}")
"""An id that is the same as a number and as text: "7", but not "007"."""


def export(folder: Path, out: Path) -> list[Path]:
    """Write the detections of a finished cache as one file; return the files written.

    `.json` becomes COCO results (image_id, category_id, bbox as xywh, score), with the categories' names in
    `<out>.categories.json`; their ids are numbers given here, and image ids are numbers where all of them are. COCO
    knows neither answers about expressions nor detections without a score. `.jsonl` holds both: one sample a line, or
    one image where no answer depends on an expression, with boxes as xyxy to the last digit.

    A detection's `source`, the counts of dropped outputs and, in COCO results, images without detections are not
    written. Read back, an image or sample that the file does not name has no detections, as it has in the cache.

    Raises:
        CacheError: If the cache is damaged or not finished.
        RecipeError: If the file's ending is of neither format, or COCO results cannot hold what the cache does.
        DataError: If the file exists, or with every detection that `import` would refuse.
    """
    writers = {".json": _coco_results, ".jsonl": _json_lines}
    if out.suffix not in writers:
        raise RecipeError(f"{out} ends neither in .json (COCO results) nor in .jsonl: name it so.")
    [found] = read_sound([folder])
    if found.manifest is None:
        raise CacheError(f"{folder} is incomplete: it has no manifest.json. Run `{found.command}`.")
    answers = _answers(found, found.manifest)
    _refuse_unreadable(answers)
    files = writers[out.suffix](answers, out)
    for path in files:
        if path.exists():
            raise DataError(f"{path} exists. Name another file, or remove it: rm {shlex.quote(str(path))}")
    for path, text in files.items():
        storage.write_atomic(path, text)
    return list(files)


def _answers(found: Contents, manifest: Manifest) -> dict[Key, Detections]:
    """Return what a lookup gives for each sample, or for each image where no answer depends on an expression."""
    rows = {key: row_detections(part.table, row) for part in found.parts for row, key in enumerate(part.keys)}
    if "expression" not in manifest.levels:
        return rows
    of_image = {image_id: answer for (image_id, sample_id), answer in rows.items() if sample_id is None}
    return {
        key: joined([answer, *([of_image[key[0]]] if key[0] in of_image else [])])
        for key, answer in rows.items()
        if key[1] is not None and (key[0] in of_image or "image" not in manifest.levels)
    }


def _refuse_unreadable(answers: Mapping[Key, Detections]) -> None:
    """Refuse what the detector `import` would refuse, before somebody relies on the file."""
    problems = []
    for key, answer in answers.items():
        for item in answer.items:
            if item.score is not None and not -_ROUNDING <= item.score <= 1.0 + _ROUNDING:
                problems.append(f"{told(key)}: score {item.score} of {item.label!r} is not in 0..1")
    if problems:
        raise DataError(listed("the detector `import` could not read these detections back", problems))


def _coco_results(answers: Mapping[Key, Detections], out: Path) -> dict[Path, str]:
    """Return the files of COCO results: names first, so that results never stand without them."""
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
    results = [_result(int(image_id) if has_numbers else image_id, item, ids[item.label]) for image_id, item in items]
    categories = {"categories": [{"id": number, "name": label} for label, number in ids.items()]}
    return {out.with_suffix(".categories.json"): _json(categories), out: _json(results)}


def _result(image_id: int | str, item: Detection, category_id: int) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": boxes.to_xywh(item.box),
        "score": item.score,
    }


def _json_lines(answers: Mapping[Key, Detections], out: Path) -> dict[Path, str]:
    """Return the one file of JSONL."""
    return {out: "".join(_json(_line(key, answer)) for key, answer in answers.items())}


def _line(key: Key, answer: Detections) -> dict[str, Any]:
    image_id, sample_id = key
    about = {"image_id": image_id} if sample_id is None else {"sample_id": sample_id}
    items = [{"box": item.box.xyxy, "label": item.label, "score": item.score} for item in answer.items]
    return {**about, "detections": items}


def _json(value: Any) -> str:
    # In ASCII: some readers of lines take the line breaks of Unicode for ends of lines.
    return json.dumps(value, allow_nan=False) + "\n"
