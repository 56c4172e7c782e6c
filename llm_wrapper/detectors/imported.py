"""Boxes that another program has written: a closed model, a paid service, or a published file of detections.

Two formats are read, told apart by the file's ending:

- `.json`, COCO results: a list of {image_id, category_id, bbox (xywh), score}. The setting `categories` names a file
  with the categories' names: a COCO instances file, or an object {"1": "person"}.
- `.jsonl`: one image or one expression a line, named by exactly one of image_id, file_name or sample_id, with
  `detections`: a list of {box (xyxy) or bbox_xywh, label, score (a number in 0..1, or null)}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from llm_wrapper.datasets.base import Dataset, digest_files, require_file
from llm_wrapper.datasets.rows import validated
from llm_wrapper.detectors import imported_files
from llm_wrapper.detectors.base import Level, Question
from llm_wrapper.detectors.imported_files import Answers, KnownIds
from llm_wrapper.errors import DataError, RecipeError, listed
from llm_wrapper.records import Detections, Sample

__all__ = ["ImportedDetector", "create"]


_REMEDY = "Correct the settings 'path' and 'categories' of the detector 'imported', or write the file."


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: Path
    categories: Path | None = None
    name: str | None = None
    box_format: Literal["xyxy", "xywh"] | None = None


class ImportedDetector:
    """Gives what a file says. An image or expression that the file does not name has no detections.

    Attributes:
        name: The setting `name`, or the file's name without its ending.
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
        settings: `path`; `categories`, for COCO results; `name`, by default the file's; and `box_format`, how `bbox`
            (COCO results, by default xywh) or `box` (JSONL, by default xyxy) is to be read.
        dataset: The data set whose image or sample ids the rows name; an image of another split is known too if the
            data set has its annotated objects.

    Raises:
        RecipeError: If a setting is unknown, missing or of the wrong type, or the file is of neither format.
        DataError: If a file is missing, or with every row that cannot be used. A box that is reversed, not finite or
            without area is counted in the detections instead.
    """
    chosen = _settings(settings)
    files = [require_file(chosen.path, _REMEDY)]
    if chosen.categories is not None:
        files.append(require_file(chosen.categories, _REMEDY))
    name = chosen.name or chosen.path.stem
    identity = {"detector": "imported", "name": name, "box_format": chosen.box_format, "digest": digest_files(files)}
    return ImportedDetector(name, _answers(chosen, dataset), identity=identity, dataset=dataset)


def _answers(chosen: _Settings, dataset: Dataset) -> Answers:
    path, categories, ids = chosen.path, chosen.categories, KnownIds.of(dataset)
    problems: list[str] = []
    if categories is not None:
        box_format = chosen.box_format or "xywh"
        answers = imported_files.coco_results(path, categories, box_format=box_format, ids=ids, problems=problems)
    else:
        answers = imported_files.json_lines(path, box_format=chosen.box_format or "xyxy", ids=ids, problems=problems)
    if problems:
        raise DataError(listed(f"{path} cannot be used with {dataset.name} {dataset.split}", problems))
    return answers


def _settings(settings: Mapping[str, Any]) -> _Settings:
    problems: list[str] = []
    chosen = validated(_Settings, dict(settings), where="settings", problems=problems)
    if chosen is not None and chosen.path.suffix not in (".json", ".jsonl"):
        problems.append(f"path: {chosen.path} ends neither in .json (COCO results) nor in .jsonl: rename or convert it")
    elif chosen is not None and (chosen.path.suffix == ".json") != (chosen.categories is not None):
        problems.append("categories: give a file with the names, such as the instances.json, for a .json and only then")
    if chosen is None or problems:
        raise RecipeError(listed("the detector 'imported' cannot be built", problems))
    return chosen
