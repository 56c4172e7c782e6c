"""Fills a detections cache: asks only what is missing, and loses no answer that it has written.

questions, image by image -> batches -> engine (this process, or Ray's workers) -> answers -> parts, on a thread
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import ProgressColumn, Task
from rich.table import Column
from rich.text import Text

from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detections.cache import ROWS_PER_PART, DetectionCache
from llm_wrapper.detections.contents import Key, Recorded, describe_recorded, identity_of, split_recorded
from llm_wrapper.detectors import Detector, PaidDetector, Question, RecordingDetector, questions_about
from llm_wrapper.errors import CacheError, DataError, ImageError, RecipeError, listed
from llm_wrapper.records import Detections
from llm_wrapper.terminal import ProgressBar, as_description

_log = logging.getLogger(__name__)
_FLUSH_SECONDS = 60.0

NUM_READERS = 4
"""Threads that read images, in each process."""
AHEAD = 2
"""Batches whose images are read while the model works on another."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Some answers, the reason for each image that could not be read (by image id), and how they were computed."""

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
            yield Answered(answer_questions(detector, asked, prepared), {}, recorded_of(detector))


class ReadingBatch:
    """The images of a batch while they are being read and preprocessed on other threads."""

    def __init__(self, pool: Executor, detector: Detector, batch: Sequence[Question]) -> None:
        samples = {question.sample.image_id: question.sample for question in batch}
        self._batch = batch
        self._images = {image_id: pool.submit(detector.prepare, sample) for image_id, sample in samples.items()}

    def result(self) -> tuple[list[Question], dict[str, Any], dict[str, str]]:
        """Return the questions about readable images, their prepared images, and why others could not be read."""
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
    pool = ThreadPoolExecutor(NUM_READERS)
    waiting: deque[ReadingBatch] = deque()
    try:
        for batch in batches:
            waiting.append(ReadingBatch(pool, detector, batch))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def recorded_of(detector: Detector) -> Recorded:
    """Return how a detector computes, as far as it records that."""
    if isinstance(detector, RecordingDetector):
        return (detector.recorded(),)
    return split_recorded({"settings": detector.identity()})[1]


def answer_questions(
    detector: Detector, questions: Sequence[Question], prepared: Mapping[str, Any]
) -> list[tuple[Key, Detections]]:
    """Ask a detector some questions at once, and refuse it where it does not answer each of them."""
    answers = detector.detect(questions, prepared) if questions else []
    if len(answers) != len(questions) or not all(isinstance(answer, Detections) for answer in answers):
        raise CacheError(
            f"Detector {detector.name!r} was asked {len(questions)} questions (sample "
            f"{questions[0].sample.sample_id!r} first) and gave {len(answers)} answers; its detect() must return one "
            "Detections per question, in their order."
        )
    return [(question.key, answer) for question, answer in zip(questions, answers, strict=True)]


def fill_cache(  # noqa: PLR0913 (each is an option of the verb)
    detector: Detector,
    dataset: Dataset,
    folder: Path,
    *,
    engine: Engine = answer_locally,
    images_per_batch: int = 8,
    rows_per_part: int = ROWS_PER_PART,
    overwrite: bool = False,
    skip_unreadable: bool = False,
    progress: bool = True,
) -> DetectionCache:
    """Ask a detector all that a split's cache lacks, and return the complete cache.

    Ctrl-C and errors of the detector keep all answers so far; a killed process loses at most its last minute and one
    batch, one of a paid detector at most one answer. The same call resumes, with the same rows in the end.

    `engine` asks the detector, in this process or as a `RayEngine`, about `images_per_batch` images in one call, each
    with all questions about it. `rows_per_part` is of the complete cache; while it is filled, parts end with a batch.
    `overwrite` asks everything again; `skip_unreadable` finishes without missing or broken images, which the manifest
    names.
    """
    _check(dataset, images_per_batch=images_per_batch, rows_per_part=rows_per_part)
    images = _by_image(detector, dataset)
    with DetectionCache.resume(folder, identity_of(detector, dataset), overwrite=overwrite) as cache:
        batches = list(_lacking(images, cache, images_per_batch))
        if cache.manifest is not None and not batches:
            _log.info("%s is complete: %d answers, nothing to ask", folder, cache.manifest.num_rows)
            return cache
        skipped = list(cache.manifest.unanswered) if cache.manifest else []
        if detector.reads_images and not skip_unreadable:
            _require_files(batches, skipped)
        num_questions = sum(map(len, batches))
        unreadable: dict[str, str] = {}
        cost = None
        with closing(engine(detector, batches)) as answers:
            if isinstance(detector, PaidDetector) and num_questions:
                cost = _Cost(detector, detector.begin(num_questions).cost)  # asks the user, who may refuse
            with (
                ProgressBar(*([cost] if cost else []), shown=progress, transient=False) as bar,
                _Writer(cache, 1 if cost else rows_per_part) as writer,
            ):
                title = as_description(f"{detector.name} on {dataset.name} {dataset.split}")
                task = bar.add_task(title, total=num_questions)
                for answered in answers:
                    writer.add(answered.answers, answered.recorded)
                    unreadable.update(answered.unreadable)
                    bar.advance(task, len(answered.answers))
        unreadable = dict(sorted(unreadable.items()))
        if unreadable and not skip_unreadable:
            problem = f"{len(unreadable)} images cannot be read. {_remedy(unreadable, skipped)}"
            raise ImageError(listed(problem, unreadable.values()))
        order = [question.key for image in images for question in image]
        cache.finish(detector.levels, unreadable, order=order, rows_per_part=rows_per_part)
    if len(cache.recorded) > 1:
        _log.warning("%s was computed in several ways: %s", folder, describe_recorded(cache.recorded))
    return cache


def _remedy(images: Collection[str], skipped: Collection[str]) -> str:
    """Return the remedy for images that are missing or broken, and whether this was so before."""
    if set(images) <= set(skipped):
        return (
            "The cache was finished without them by --skip-unreadable, and nothing has changed that: restore the "
            "files, or give --skip-unreadable again."
        )
    return "Restore the files, or leave their samples without detections: --skip-unreadable."


def _check(dataset: Dataset, **sizes: int) -> None:
    """Refuse sizes below 1, and a split that cannot be cached."""
    if min(sizes.values()) < 1:
        raise RecipeError(f"{' and '.join(f'{name}={size}' for name, size in sizes.items())}: both must be 1 or more.")
    place = f"{dataset.name} {dataset.split}"
    if not dataset.samples:
        raise DataError(f"{place} has no samples, so there is nothing to detect. Check the split's name and files.")
    counts = Counter(sample.sample_id for sample in dataset.samples)
    repeated = [f"sample {name!r} occurs {count} times" for name, count in counts.items() if count > 1]
    if repeated:
        raise DataError(listed(f"{place} needs one id for each sample", repeated))


def _by_image(detector: Detector, dataset: Dataset) -> list[list[Question]]:
    """Return all questions, image by image: this is the order of a complete cache."""
    of_image: dict[str, dict[Key, Question]] = {}
    for sample in dataset.samples:
        for question in questions_about(sample, detector.levels):
            of_image.setdefault(sample.image_id, {}).setdefault(question.key, question)
    return [list(image.values()) for image in of_image.values()]


def _lacking(
    images: Sequence[Sequence[Question]], cache: DetectionCache, images_per_batch: int
) -> Iterator[list[Question]]:
    """Yield the batches, which do not depend on the cache, without the questions that it answers already."""
    for start in range(0, len(images), images_per_batch):
        batch = [question for image in images[start : start + images_per_batch] for question in image]
        lacking = [question for question in batch if question.key not in cache]
        if lacking:
            yield lacking


def _require_files(batches: Sequence[Sequence[Question]], skipped: Collection[str]) -> None:
    """Refuse to start where image files are missing: hours later is too late."""
    paths = {each.sample.image_id: each.sample.image_path for batch in batches for each in batch}
    missing = {
        image_id: f"image {image_id}: {'no file is named' if path is None else f'{path} does not exist'}"
        for image_id, path in paths.items()
        if path is None or not Path(path).is_file()
    }
    if missing:
        text = f"{len(missing)} of {len(paths)} images are missing. {_remedy(missing, skipped)}"
        raise DataError(listed(text, missing.values()))


class _Writer:
    """Collects answers and writes them as parts on a thread; the rest is written however the block ends."""

    def __init__(self, cache: DetectionCache, rows_per_part: int) -> None:
        self._cache = cache
        self._rows_per_part = rows_per_part
        self._answers: list[tuple[Key, Detections]] = []
        self._recorded: list[Mapping[str, Any]] = []
        self._written = time.monotonic()
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[Path] | None = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *reason: object) -> None:
        try:
            self._flush()
            self._wait()
        finally:
            self._thread.shutdown()

    def add(self, answers: Sequence[tuple[Key, Detections]], recorded: Recorded) -> None:
        """Collect answers, and write a part when there are enough of them or the last one is a minute old."""
        self._answers += answers
        self._recorded += [each for each in recorded if each not in self._recorded]
        if len(self._answers) >= self._rows_per_part or time.monotonic() - self._written >= _FLUSH_SECONDS:
            self._flush()
            if self._rows_per_part == 1:
                self._wait()

    def _flush(self) -> None:
        """Start to write the collected answers, after those that are being written."""
        self._wait()
        if self._answers:
            self._pending = self._thread.submit(self._cache.append, self._answers, tuple(self._recorded))
            self._answers, self._recorded = [], []
        self._written = time.monotonic()

    def _wait(self) -> None:
        """Wait for the part that is being written, and raise its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


class _Cost(ProgressColumn):
    """Dollars that this run may have cost so far, and the estimate of all of it: $0.25 of about $3.00."""

    def __init__(self, detector: PaidDetector, estimate: float) -> None:
        super().__init__(Column(no_wrap=True))
        self._detector = detector
        self._estimate = estimate

    def render(self, task: Task) -> Text:
        return Text(f"${self._detector.spent:.2f} of about ${self._estimate:.2f}")
