"""The protocol of detectors: an identity for the cache, and answers to questions about images and expressions."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from PIL import Image
from pydantic import BaseModel, ConfigDict

from llm_wrapper import images
from llm_wrapper.datasets.base import Dataset, validate_row
from llm_wrapper.detectors.paid_calls import CostEstimate
from llm_wrapper.errors import RecipeError, listed
from llm_wrapper.records import Box, Detection, Detections, Sample

__all__ = [
    "LEVELS",
    "Detector",
    "ImageDetector",
    "Level",
    "NoSettings",
    "PaidDetector",
    "Question",
    "RecordingDetector",
    "UnboundDetector",
    "detect_sample",
    "detect_samples",
    "detections_from_raw",
    "joined",
    "parse_settings",
    "questions_about",
]

_log = logging.getLogger(__name__)

Level = Literal["image", "expression"]
"""Whether an answer depends on the image alone (stored once per image) or on the expression too."""

LEVELS: tuple[Level, ...] = ("expression", "image")
"""All levels, in the order in which a sample's answers are joined: what was asked with its own words leads."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question to a detector: about one sample's image alone, or about its expression in that image."""

    sample: Sample
    level: Level

    @property
    def key(self) -> tuple[str, str | None]:
        """The key of the stored answer: (image_id, sample_id), or (image_id, None) for the whole image."""
        return (self.sample.image_id, None if self.level == "image" else self.sample.sample_id)


class Detector(Protocol):
    """A detector or VLM that can be called but not trained.

    Attributes:
        name: Short name; also the folder name of its cached detections.
        levels: Which questions it answers. One that answers both gives different detections to each, such as its
            own answer to the expression, and the objects that it sees in the image whatever is asked.
        reads_images: Whether it needs image files.
    """

    name: str
    levels: tuple[Level, ...]
    reads_images: bool

    def identity(self) -> dict[str, Any]:
        """Return all that decides the answers (JSON values): id, revision, tasks, thresholds.

        It comes from the settings alone: a cache must be readable without the weights, and on another machine. How the
        answers are computed belongs to `RecordingDetector.recorded`.
        """
        ...

    def prepare(self, sample: Sample) -> Any:
        """Read and preprocess the image of a sample, for `detect`; called ahead of it, on several threads.

        Raises:
            ImageError: If the image cannot be read.
        """
        ...

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        """Answer each question, in order; an answer of level `image` must not depend on the expression.

        Args:
            questions: Those about one image are neighbours.
            prepared: Image id -> what `prepare` gave for it.
        """
        ...


@dataclass(frozen=True, slots=True)
class UnboundDetector:
    """A detector that answers from a file or from annotations, and so for one split of a data set at a time.

    Attributes:
        bind: Returns the detector of a split; raises DataError where the file or the annotations do not fit it.
    """

    bind: Callable[[Dataset], Detector]


@runtime_checkable
class RecordingDetector(Detector, Protocol):
    """A detector that says how it computes: its number format, device, attention and the commit of its weights."""

    def recorded(self) -> dict[str, Any]:
        """Return JSON values that are kept beside the answers, printed and never compared; empty before any answer."""
        ...


@runtime_checkable
class PaidDetector(Detector, Protocol):
    """A detector whose answers cost money: it is asked one question at a time, and each answer is on disk first.

    Attributes:
        confirm: Shown what a run will cost, before the first question; False stops it. None agrees.
    """

    confirm: Callable[[CostEstimate], bool] | None

    @property
    def spent(self) -> float:
        """Dollars that may have been charged in this run."""
        ...

    def begin(self, num_questions: int) -> CostEstimate:
        """Make sure that the user agrees to what the questions of a run cost; called once, before the first.

        Raises:
            RecipeError: If not.
        """
        ...


def questions_about(sample: Sample, levels: Iterable[Level]) -> list[Question]:
    """Return the questions about a sample for a detector of these levels, in the order of `LEVELS`."""
    wanted = set(levels)
    return [Question(sample, level) for level in LEVELS if level in wanted]


def joined(answers: Sequence[Detections]) -> Detections:
    """Join the answers about one sample, in the order of `LEVELS`."""
    items = tuple(item for answer in answers for item in answer.items)
    return Detections(items, sum(answer.num_dropped for answer in answers))


def detect_samples(detector: Detector, samples: Sequence[Sample]) -> list[Detections]:
    """Return all detections of each sample; all samples are of one image, which is read and prepared once."""
    first = samples[0]
    questions = [Question(first, level) for level in detector.levels if level == "image"]
    questions += [Question(sample, "expression") for sample in samples if "expression" in detector.levels]
    answers = detector.detect(questions, {first.image_id: detector.prepare(first)})
    by_key = dict(zip((question.key for question in questions), answers, strict=True))
    return [joined([by_key[each.key] for each in questions_about(sample, detector.levels)]) for sample in samples]


def detect_sample(detector: Detector, sample: Sample) -> Detections:
    """Return all detections of one sample."""
    return detect_samples(detector, [sample])[0]


def detections_from_raw(rows: Iterable[tuple[Sequence[float], str, float | None]], source: str) -> Detections:
    """Turn raw (xyxy pixels, label, score) rows into `Detections`, counting those that are no box.

    A score that is not finite says nothing of its box, which stays without one; how many is logged.

    Args:
        rows: Boxes as the detector gave them; reversed, empty and not finite ones are dropped and counted.
        source: The detector's task that produced them.
    """
    items: list[Detection] = []
    num_dropped = num_unscored = 0
    for xyxy, label, score in rows:
        values = [float(value) for value in xyxy]
        usable = (
            len(values) == 4 and all(map(math.isfinite, values)) and values[0] < values[2] and values[1] < values[3]
        )
        if not usable:
            num_dropped += 1
            continue
        is_number = score is None or math.isfinite(score)
        num_unscored += not is_number
        items.append(Detection(Box(*values), label, score if is_number else None, source))
    if num_unscored:
        _log.warning("%s: scores that are not finite: %d; their boxes stay without a score", source, num_unscored)
    return Detections(tuple(items), num_dropped)


class ImageDetector:
    """A detector that is a function of an image: the short way to register one.

        @register_detector("mine")
        def create(settings):
            return ImageDetector("mine", lambda image: [((12, 30, 80, 96), "mug", 0.9)], settings)

    Args:
        name: Short name; also the folder name of its cached detections.
        function: RGB image -> rows of (xyxy pixels, label, score or None), the best first; load weights when it is
            first called, so that cached detections are read without them.
        settings: All that decides the answers, as JSON values.
    """

    levels: tuple[Level, ...] = ("image",)
    reads_images = True

    def __init__(
        self,
        name: str,
        function: Callable[[Image.Image], Iterable[tuple[Sequence[float], str, float | None]]],
        settings: Mapping[str, Any],
    ) -> None:
        self.name, self._function, self._identity = name, function, {"id": name, **settings}

    def identity(self) -> dict[str, Any]:
        """Return the name and the settings."""
        return dict(self._identity)

    def prepare(self, sample: Sample) -> Image.Image:
        """Read the image of a sample."""
        return images.read_sample(sample)

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        """Call the function for the image of each question."""
        return [
            detections_from_raw(self._function(prepared[each.sample.image_id]), self._identity["id"])
            for each in questions
        ]


class NoSettings(BaseModel):
    """Settings of a detector that has none."""

    model_config = ConfigDict(extra="forbid")


_Settings = TypeVar("_Settings", bound=BaseModel)


def parse_settings(kind: type[_Settings], settings: Mapping[str, Any], detector: str) -> _Settings:
    """Return the settings of a recipe as their model.

    Raises:
        RecipeError: With every setting that is unknown, missing or out of range.
    """
    problems: list[str] = []
    parsed = validate_row(kind, dict(settings), where="settings", problems=problems)
    if parsed is None:
        raise RecipeError(listed(f"the detector {detector!r} cannot be built", problems))
    return parsed
