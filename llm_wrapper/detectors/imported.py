"""Boxes that another program has written: a closed model, a paid service, or a published file of detections.

Three formats are read, told apart by the file's ending and content:

- `.json`, COCO results: a list of {image_id, category_id, bbox (xywh), score}. The setting `categories` names a file
  with the categories' names: a COCO instances file, or an object {"1": "person"}.
- `.jsonl`: one image or one expression a line, named by exactly one of image_id, file_name or sample_id, with
  `detections`: a list of {box (xyxy) or bbox_xywh, label, score (a number in 0..1, or null)}.
- `.json` and `.csv` of supervision's `JSONSink` and `CSVSink`, see `supervision_files`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llm_wrapper.datasets.base import Dataset, digest_files, require_file
from llm_wrapper.datasets.rows import read_json, validated
from llm_wrapper.detectors import imported_files, supervision_files
from llm_wrapper.detectors.base import Level, Question
from llm_wrapper.detectors.imported_files import Answers, KnownIds
from llm_wrapper.errors import DataError, RecipeError, listed
from llm_wrapper.records import Detections, Sample

__all__ = ["ImportedDetector", "create"]


_NO_NAME = r"[^\w.+-]+"
"""What the name of a cache's folder must not hold."""

_REMEDY = "Correct the settings 'path' and 'categories' of the detector 'imported', or write the file."


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: Path
    categories: Path | None = None
    name: str | None = Field(None, pattern=r"^[\w.+-]*\w[\w.+-]*$")
    box_format: Literal["xyxy", "xywh"] | None = None


class ImportedDetector:
    """Gives what a file says. An image or expression that the file does not name has no detections.

    Attributes:
        name: The setting `name`, or `import-` and the file's name without its ending: each file has a cache of its own,
            and none of them that of a detector by the same name.
        levels: `expression` if the rows name samples, else `image`.
        num_unanswered: How many images (or expressions) of the data set the file does not name.
    """

    reads_images = False

    def __init__(self, name: str, answers: Answers, *, identity: Mapping[str, Any], dataset: Dataset) -> None:
        self.name = name
        self.levels: tuple[Level, ...] = (answers.level,)
        self._found = answers.found
        self._identity = dict(identity)
        asked = {self._key(Question(sample, answers.level)) for sample in dataset.samples}
        self.num_unanswered = len(asked - self._found.keys())

    def identity(self) -> dict[str, Any]:
        """Return what decides the answers: the settings, and a digest of the files' content."""
        return dict(self._identity)

    def prepare(self, sample: Sample) -> None:
        """Do nothing: no pixel is read."""

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        """Return the file's detections for each question, in the file's order; none where it has no row."""
        return [self._found.get(self._key(question), Detections(())) for question in questions]

    @staticmethod
    def _key(question: Question) -> str:
        image_id, sample_id = question.key
        return image_id if sample_id is None else sample_id


def create(settings: Mapping[str, Any], dataset: Dataset) -> ImportedDetector:
    """Read a file of detections for a data set.

    Args:
        settings: `path`; `categories`, for COCO results and for sinks' rows without a class name; `name`, by default
            the file's; and `box_format`, how `bbox` (COCO results, by default xywh) or `box` (JSONL, by default xyxy)
            is to be read.
        dataset: The data set whose image or sample ids the rows name; an image of another split is known too if the
            data set has its annotated objects.

    Raises:
        RecipeError: If a setting is unknown, missing, of the wrong type or not for this file, or the file is of none of
            the formats.
        DataError: If a file is missing, or with every row that cannot be used. A box that is reversed, not finite or
            without area is counted in the detections instead.
    """
    chosen = _settings(settings)
    files = [require_file(chosen.path, _REMEDY)]
    if chosen.categories is not None:
        files.append(require_file(chosen.categories, _REMEDY))
    name = chosen.name or f"import-{re.sub(_NO_NAME, '-', chosen.path.stem)}"
    identity = {"detector": "imported", "name": name, "box_format": chosen.box_format, "digest": digest_files(files)}
    return ImportedDetector(name, _answers(chosen, dataset), identity=identity, dataset=dataset)


def _answers(chosen: _Settings, dataset: Dataset) -> Answers:
    problems: list[str] = []
    answers = _read(chosen, KnownIds.of(dataset), problems)
    if problems:
        raise DataError(listed(f"{chosen.path} cannot be used with {dataset.name} {dataset.split}", problems))
    return answers


def _read(chosen: _Settings, ids: KnownIds, problems: list[str]) -> Answers:
    path, categories = chosen.path, chosen.categories
    if path.suffix == ".jsonl":
        return imported_files.json_lines(path, box_format=chosen.box_format or "xyxy", ids=ids, problems=problems)
    if path.suffix == ".csv":
        return _read_sink(supervision_files.csv_rows(path, problems), chosen, ids, problems)
    content = read_json(path)
    if not isinstance(content, list):
        raise DataError(f"{path} holds a {type(content).__name__}, not the list that COCO tools or a JSONSink write.")
    if supervision_files.is_json_sink(content):
        return _read_sink(supervision_files.json_rows(content), chosen, ids, problems)
    if categories is None:
        raise _unusable([f"categories: {path} holds COCO results: give a file with the names, such as instances.json"])
    box_format = chosen.box_format or "xywh"
    return imported_files.coco_results(content, categories, box_format=box_format, ids=ids, problems=problems)


def _read_sink(found: supervision_files.PlacedRows, chosen: _Settings, ids: KnownIds, problems: list[str]) -> Answers:
    if chosen.box_format == "xywh":
        raise _unusable([f"box_format: {chosen.path} is of supervision, whose boxes are xyxy: leave the setting out"])
    names = {} if chosen.categories is None else imported_files.category_names(chosen.categories)
    return supervision_files.answers(found, names, ids=ids, problems=problems)


def _settings(settings: Mapping[str, Any]) -> _Settings:
    problems: list[str] = []
    chosen = validated(_Settings, dict(settings), where="settings", problems=problems)
    if chosen is not None and chosen.path.suffix not in (".json", ".jsonl", ".csv"):
        problems.append(
            f"path: {chosen.path} ends neither in .json (COCO results, JSONSink) nor in .jsonl nor in .csv (CSVSink): "
            "rename or convert it"
        )
    elif chosen is not None and chosen.path.suffix == ".jsonl" and chosen.categories is not None:
        problems.append("categories: a .jsonl holds the names itself: leave the setting out")
    if chosen is None or problems:
        raise _unusable(problems)
    return chosen


def _unusable(problems: list[str]) -> RecipeError:
    return RecipeError(listed("the detector 'imported' cannot be built", problems))
