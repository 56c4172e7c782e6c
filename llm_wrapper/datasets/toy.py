"""Loads the toy data set: painted scenes and expressions that are true of exactly one thing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from llm_wrapper import readers
from llm_wrapper.boxes import is_inside
from llm_wrapper.datasets import rows
from llm_wrapper.datasets.base import Dataset, digest_files, image_file, require_file
from llm_wrapper.datasets.toy_grammar import KINDS
from llm_wrapper.datasets.toy_scenes import SPLIT_SIZES
from llm_wrapper.errors import DataError, listed
from llm_wrapper.records import Box, Sample

__all__ = ["load_toy"]


class _Row(BaseModel):
    """One line of an annotation file; `box` is xyxy pixels, `image` is relative to the data set's folder."""

    model_config = ConfigDict(extra="forbid", strict=True)

    sample_id: str = Field(min_length=1)
    ref_id: str = Field(min_length=1)
    image_id: str = Field(min_length=1)
    image: str = Field(min_length=1)
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    expression: str = Field(pattern=r"\S")
    box: list[float] = Field(min_length=4, max_length=4)
    kind: str


def load_toy(root: Path, split: str) -> Dataset:
    """Load one split from the folder that holds `<split>.jsonl` and `images/`.

    Raises:
        DataError: If the split is unknown, or anything is missing or malformed; all problems are listed.
    """
    remedy = f"Paint the data again: python -m llm_wrapper.datasets.toy_scenes {root}"
    if split not in SPLIT_SIZES:
        raise DataError(f"The toy data has no split {split!r}. It has {', '.join(SPLIT_SIZES)}.")
    path = require_file(root / f"{split}.jsonl", remedy)
    samples: dict[str, Sample] = {}
    try:
        lines, found = readers.read_json_lines(path)
    except DataError as error:
        raise DataError(f"{error} {remedy}") from error
    for number, value in lines:
        where = f"line {number}"
        row = rows.validate_row(_Row, value, where=where, problems=found)
        sample = None if row is None else _sample(row, root, where, found)
        if sample is None:
            continue
        if sample.sample_id in samples:
            found.append(f"{where}: sample_id {sample.sample_id!r} stands on an earlier line too")
        samples[sample.sample_id] = sample
    problems = [f"{path}: {problem}" for problem in found]
    if not samples and not problems:
        problems.append(f"{path} has no line")
    if problems:
        raise DataError(listed(f"The toy split {split!r} cannot be used. {remedy}", problems))
    return Dataset("toy", split, tuple(samples.values()), digest_files([path]))


def _sample(row: _Row, root: Path, where: str, problems: list[str]) -> Sample | None:
    """Return the sample of one line, or `None`; what is wrong with it becomes problems."""
    try:
        box, path = Box(*row.box), image_file(root, row.image)
    except (ValueError, DataError) as error:
        problems.append(f"{where}: {row.sample_id}: {error}")
        return None
    sample = Sample(
        sample_id=row.sample_id,
        ref_id=row.ref_id,
        image_id=row.image_id,
        image_path=str(path),
        image_wh=(row.width, row.height),
        expression=row.expression,
        target=box,
        kind=row.kind,
    )
    problems.extend(f"{where}: {problem}" for problem in _problems(sample, path))
    return sample


def _problems(sample: Sample, image: Path) -> Iterator[str]:
    if sample.target is not None and not is_inside(sample.target, sample.image_wh, tolerance=0.0):
        yield f"{sample.sample_id}: box {sample.target.xyxy} reaches out of the image of size {sample.image_wh}"
    if sample.kind not in KINDS:
        yield f"{sample.sample_id}: kind {sample.kind!r} is none of {', '.join(KINDS)}"
    if not os.path.isfile(image):
        yield f"{sample.sample_id}: image {image} does not exist"
