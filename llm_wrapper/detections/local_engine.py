"""Asks a detector in this process: images are read ahead on a few threads while the model works on this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from llm_wrapper.detections.identity import Recorded, split_recorded
from llm_wrapper.detections.parts import Key
from llm_wrapper.detectors.base import Detector, PaidDetector, Question, RecordingDetector
from llm_wrapper.errors import CacheError, ImageError
from llm_wrapper.records import Detections

__all__ = ["AHEAD", "READERS", "Answered", "Engine", "Reading", "answer_locally", "ask", "recorded_of"]

READERS = 4
"""Threads that read images, in each process."""
AHEAD = 2
"""Batches whose images are read while the model works on another."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Some answers, by image id why images could not be read, and how the answers were computed."""

    answers: list[tuple[Key, Detections]]
    unreadable: dict[str, str]
    recorded: Recorded = ()


Engine = Callable[[Detector, Sequence[Sequence[Question]]], Generator[Answered, None, None]]
"""Asks batches of questions, in any order; each batch holds all that is asked about its images.

An engine refuses at once what it cannot do, and asks nothing before the first answer is taken from it.
"""


def answer_locally(detector: Detector, batches: Sequence[Sequence[Question]]) -> Generator[Answered, None, None]:
    """Yield the answers to batches, in order; those of a paid detector one by one."""
    for questions, prepared, unreadable in _read_ahead(detector, batches):
        if unreadable:
            yield Answered([], unreadable)
        for asked in [[each] for each in questions] if isinstance(detector, PaidDetector) else [questions]:
            yield Answered(ask(detector, asked, prepared), {}, recorded_of(detector))


class Reading:
    """The images of a batch while they are being read and preprocessed on other threads."""

    def __init__(self, pool: Executor, detector: Detector, batch: Sequence[Question]) -> None:
        samples = {question.sample.image_id: question.sample for question in batch}
        self._batch = batch
        self._images = {image_id: pool.submit(detector.prepare, sample) for image_id, sample in samples.items()}

    def result(self) -> tuple[list[Question], dict[str, Any], dict[str, str]]:
        """Return what can be asked, what `prepare` gave for each image, and why the others could not be read."""
        prepared: dict[str, Any] = {}
        unreadable: dict[str, str] = {}
        for image_id, image in self._images.items():
            try:
                prepared[image_id] = image.result()
            except ImageError as error:
                unreadable[image_id] = str(error)
        return [question for question in self._batch if question.sample.image_id in prepared], prepared, unreadable


def _read_ahead(
    detector: Detector, batches: Sequence[Sequence[Question]]
) -> Iterator[tuple[list[Question], dict[str, Any], dict[str, str]]]:
    pool = ThreadPoolExecutor(READERS)
    waiting: deque[Reading] = deque()
    try:
        for batch in batches:
            waiting.append(Reading(pool, detector, batch))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def recorded_of(detector: Detector) -> Recorded:
    """Return how a detector computes, as far as it says so."""
    if isinstance(detector, RecordingDetector):
        return (detector.recorded(),)
    return split_recorded({"settings": detector.identity()})[1]


def ask(detector: Detector, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[tuple[Key, Detections]]:
    """Ask some questions at once.

    Raises:
        CacheError: If the detector does not answer each of them.
    """
    answers = detector.detect(questions, prepared) if questions else []
    if len(answers) != len(questions) or not all(isinstance(answer, Detections) for answer in answers):
        raise CacheError(
            f"Detector {detector.name!r} was asked {len(questions)} questions (sample "
            f"{questions[0].sample.sample_id!r} first) and gave {len(answers)} answers; its detect() must return one "
            "Detections per question, in their order."
        )
    return [(question.key, answer) for question, answer in zip(questions, answers, strict=True)]
