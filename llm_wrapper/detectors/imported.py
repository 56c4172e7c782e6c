"""Boxes that another program has written: a closed model, a paid service, or a published file of detections.

Told apart by the file's ending and content, these are read:

- `.jsonl`: one image or one expression a line, named by image_id, file_name or sample_id, with
  `detections`: a list of {box (xyxy) or bbox_xywh, label, score (a number in 0..1, or null)}; `box` may be an object
  {xmin, ymin, xmax, ymax} as the pipelines of transformers write it. Or one box a line, with the image's name.
- `.json`, COCO results: a list of {image_id, category_id, bbox (xywh), score}, such as ultralytics' predictions.json.
  The setting `categories` names a file with the categories' names, see `category_names`.
- `.json` of the field: MAttNet's list, ReCLIP's {image id: [[x, y, w, h], ..]}, REFER's {"dets": ..}, a response of
  Roboflow ({"predictions": ..}).
- `.json` and `.csv` of supervision's `JSONSink` and `CSVSink`, see `supervision_files`.

A file may cover more images than the data set has: they are counted and ignored. Boxes that are of another format than
declared, by their images and targets, are refused with the setting that declares the right one, `box_format`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from llm_wrapper import readers
from llm_wrapper.box_formats import BoxFormat
from llm_wrapper.datasets.base import Dataset, digest_files, require_file
from llm_wrapper.datasets.rows import validate_row
from llm_wrapper.detectors import imported_files, supervision_files
from llm_wrapper.detectors.base import Level, Question, UnboundDetector
from llm_wrapper.detectors.category_names import read_category_names
from llm_wrapper.detectors.imported_answers import Answers, answers_of, place_of
from llm_wrapper.detectors.imported_files import Entry, Notes
from llm_wrapper.errors import DataError, RecipeError, listed
from llm_wrapper.records import Detections, Sample

__all__ = ["ImportedDetector", "create_imported"]

_log = logging.getLogger(__name__)

_NO_NAME = r"[^\w.+-]+"
"""What the name of a cache's folder must not hold."""

_REMEDY = "Correct the settings 'path' and 'categories' of the detector 'imported', or write the file."


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: Path
    categories: Path | None = None
    name: str | None = Field(None, pattern=r"^[\w.+-]*\w[\w.+-]*$")
    box_format: BoxFormat | None = None


class ImportedDetector:
    """Gives what a file says. An image or expression that the file does not name has no detections.

    Attributes:
        name: The setting `name`, or `import-` and the file's name without its ending: each file has a cache of its own,
            and none of them that of a detector by the same name.
        levels: `expression` if the rows name samples, else `image`.
        num_unanswered: How many images (or expressions) of the data set the file does not name.
        remarks: What was ignored, absent or read otherwise than written, one sentence each.
    """

    reads_images = False

    def __init__(self, name: str, answers: Answers, *, identity: Mapping[str, Any], dataset: Dataset) -> None:
        self.name = name
        self.levels: tuple[Level, ...] = (answers.level,)
        self.remarks = answers.remarks
        self._detections = answers.detections
        self._identity = {**identity, **answers.deciding}
        self._has_logged = False
        known = {self._key(Question(sample, answers.level)) for sample in dataset.samples}
        self.num_unanswered = len(known - self._detections.keys())

    def identity(self) -> dict[str, Any]:
        """Return what decides the answers: the settings, and a digest of the files' content."""
        return dict(self._identity)

    def recorded(self) -> dict[str, Any]:
        """Return what is worth knowing of the file beside its answers; see `RecordingDetector`."""
        return {"remarks": "; ".join(self.remarks)} if self.remarks else {}

    def prepare(self, sample: Sample) -> None:
        """Do nothing: no pixel is read."""

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        """Return the file's detections for each question, in the file's order; none where it has no row."""
        if not self._has_logged:
            self._has_logged = True
            for remark in self.remarks:
                _log.warning("%s: %s", self.name, remark)
        return [self._detections.get(self._key(question), Detections(())) for question in questions]

    @staticmethod
    def _key(question: Question) -> str:
        image_id, sample_id = question.key
        return image_id if sample_id is None else sample_id


def create_imported(settings: Mapping[str, Any]) -> UnboundDetector:
    """Build the detector of a file of boxes; the file is read for the images or samples of one data set.

    Args:
        settings: `path`; `categories`, for labels that are numbers; `name`, by default the file's; and `box_format`,
            how `bbox` (COCO results, by default xywh) or `box` (JSONL, by default xyxy) is to be read.

    Raises:
        RecipeError: If a setting is unknown, missing, of the wrong type or not for this file. When it is bound, also
            DataError: if a file is missing or for other data, or with every row that cannot be used. A box that is
            reversed, not finite or without area is counted in the detections instead.
    """
    chosen = _settings(settings)

    def bind(dataset: Dataset) -> ImportedDetector:
        files = [require_file(chosen.path, _REMEDY)]
        if chosen.categories is not None:
            files.append(require_file(chosen.categories, _REMEDY))
        name = chosen.name or f"import-{re.sub(_NO_NAME, '-', chosen.path.stem)}"
        facts = {"detector": "imported", "name": name, "box_format": chosen.box_format, "digest": digest_files(files)}
        return ImportedDetector(name, _answers(chosen, dataset), identity=facts, dataset=dataset)

    return UnboundDetector(bind)


def _answers(chosen: _Settings, dataset: Dataset) -> Answers:
    notes = Notes()
    names = None if chosen.categories is None else read_category_names(chosen.categories)
    entries = _entries(chosen, notes)
    answers = answers_of(entries, dataset, notes, stem=chosen.path.stem, names=names, box_format=chosen.box_format)
    if notes.problems:
        raise DataError(listed(f"{chosen.path} cannot be used with {place_of(dataset)}", notes.problems))
    return answers


def _entries(chosen: _Settings, notes: Notes) -> list[Entry]:
    path = chosen.path
    if path.suffix == ".jsonl":
        return imported_files.entries_of_lines(path, notes)
    if path.suffix == ".csv":
        return _entries_of_sink(supervision_files.csv_rows(path, notes.problems), chosen, notes)
    content = readers.read_json(path, nan=True)
    if isinstance(content, list) and supervision_files.is_json_sink(content):
        return _entries_of_sink(supervision_files.json_rows(content), chosen, notes)
    return imported_files.entries_of_json(content, path, notes)


def _entries_of_sink(rows: supervision_files.PlacedRows, chosen: _Settings, notes: Notes) -> list[Entry]:
    if chosen.box_format not in (None, "xyxy"):
        raise _unusable([f"box_format: {chosen.path} is of supervision, whose boxes are xyxy: leave the setting out"])
    return supervision_files.entries(rows, notes, has_names=chosen.categories is not None)


def _settings(settings: Mapping[str, Any]) -> _Settings:
    problems: list[str] = []
    chosen = validate_row(_Settings, dict(settings), where="settings", problems=problems)
    if chosen is not None and chosen.path.suffix not in (".json", ".jsonl", ".csv"):
        problems.append(
            f"path: {chosen.path} ends neither in .json (COCO results, JSONSink) nor in .jsonl nor in .csv (CSVSink): "
            "rename or convert it"
        )
    if chosen is None or problems:
        raise _unusable(problems)
    return chosen


def _unusable(problems: list[str]) -> RecipeError:
    return RecipeError(listed("the detector 'imported' cannot be built", problems))
