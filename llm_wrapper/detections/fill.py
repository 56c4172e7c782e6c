"""Fills a detections cache: asks only what is missing, and never loses an answer it has written.

Images are read and preprocessed ahead on a few threads, the model runs on this one, and parts are written on another.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detections.cache import DetectionCache, identity_of
from llm_wrapper.detections.parts import Key
from llm_wrapper.detectors.base import LEVELS, Detector, PaidDetector, Question
from llm_wrapper.errors import CacheError, DataError, ImageError, RecipeError, listed
from llm_wrapper.records import Detections

__all__ = ["fill"]

_log = logging.getLogger(__name__)
_FLUSH_SECONDS = 60.0
_READERS = 4
_AHEAD = 2
"""Batches whose images are read while the model works on another."""
_SKIP = "Restore the files, or leave their samples without detections: --skip-unreadable."


def fill(
    detector: Detector,
    dataset: Dataset,
    folder: Path,
    *,
    images_per_batch: int = 8,
    rows_per_part: int = 2000,
    overwrite: bool = False,
    skip_unreadable: bool = False,
    progress: bool = True,
) -> DetectionCache:
    """Ask a detector all that a split's cache lacks, and return the complete cache.

    A question of level `image` is asked once per image, one of level `expression` once per expression; all about one
    image stand in one batch. Ctrl-C and errors of the detector keep all answers so far; a killed process loses at most
    its last minute and one batch, one of a paid detector at most one answer. The same call resumes. A
    complete cache is returned without a call.

    Args:
        detector: What to ask.
        dataset: The samples to ask it about.
        folder: The cache, `data/detections/<detector>/<dataset>/<split>`; made where it does not exist.
        images_per_batch: How many images the detector gets in one call. Batches do not depend on what is cached, so a
            resumed run asks what an uninterrupted one would have asked.
        rows_per_part: After how many answers a Parquet part is written; a minute writes one too.
        overwrite: Throw away what the cache holds and ask everything again.
        skip_unreadable: Finish without the images that are missing or broken; the manifest names them.
        progress: Show a progress bar on standard error.

    Raises:
        RecipeError: If a size is below one.
        DataError: If the split is empty or has two samples of one id, or with every image file that is missing.
        ImageError: With every image that cannot be read; all others are answered and kept.
        CacheError: If the folder is of another identity or in use, or the detector does not answer each question.
        LLMWrapperError: If a part cannot be written, for instance because the disk is full.
    """
    if min(images_per_batch, rows_per_part) < 1:
        raise RecipeError(
            f"images_per_batch={images_per_batch} and rows_per_part={rows_per_part}: both must be 1 or more."
        )
    _check(dataset)
    with DetectionCache.resume(folder, identity_of(detector, dataset), overwrite=overwrite) as cache:
        batches = list(_batches(detector, dataset, cache, images_per_batch))
        if cache.manifest is not None and not batches:
            _log.info("%s is complete: %d answers, nothing to ask", folder, cache.manifest.num_rows)
            return cache
        if detector.reads_images and not skip_unreadable:
            _require_files(batches)
        is_paid = isinstance(detector, PaidDetector)
        if isinstance(detector, PaidDetector):
            detector.begin(sum(map(len, batches)))
        unreadable: dict[str, str] = {}
        with _progress_bar(shown=progress) as bar, _Writer(cache, 1 if is_paid else rows_per_part) as writer:
            task = bar.add_task(f"{detector.name} on {dataset.name} {dataset.split}", total=sum(map(len, batches)))
            for batch in _prepared(detector, batches):
                unreadable.update(batch.unreadable)
                for questions in [[each] for each in batch.questions] if is_paid else [batch.questions]:
                    writer.add(_ask(detector, questions, batch.prepared))
                    bar.advance(task, len(questions))
        if unreadable and not skip_unreadable:
            raise ImageError(listed(f"{len(unreadable)} images cannot be read. {_SKIP}", unreadable.values()))
        cache.finish(detector.levels, unreadable)
    return cache


def _check(dataset: Dataset) -> None:
    """Refuse a split that cannot be cached."""
    place = f"{dataset.name} {dataset.split}"
    if not dataset.samples:
        raise DataError(f"{place} has no samples, so there is nothing to detect. Check the split's name and files.")
    counts = Counter(sample.sample_id for sample in dataset.samples)
    repeated = [f"sample {name!r} stands there {count} times" for name, count in counts.items() if count > 1]
    if repeated:
        raise DataError(listed(f"{place} needs one id for each sample", repeated))


def _batches(
    detector: Detector, dataset: Dataset, cache: DetectionCache, images_per_batch: int
) -> Iterator[list[Question]]:
    """Yield what the cache lacks, by images: the same batches whatever is cached, without what is there."""
    of_image: dict[str, dict[Key, Question]] = {}
    for sample in dataset.samples:
        for level in (level for level in LEVELS if level in detector.levels):
            question = Question(sample, level)
            of_image.setdefault(sample.image_id, {}).setdefault(question.key, question)
    images = list(of_image.values())
    for start in range(0, len(images), images_per_batch):
        batch = [each for image in images[start : start + images_per_batch] for each in image.values()]
        lacking = [question for question in batch if question.key not in cache]
        if lacking:
            yield lacking


def _require_files(batches: Sequence[Sequence[Question]]) -> None:
    """Refuse to start where image files are missing: hours later is too late."""
    paths = {each.sample.image_id: each.sample.image_path for batch in batches for each in batch}
    missing = [
        f"image {image_id}: {'no file is named' if path is None else f'{path} does not exist'}"
        for image_id, path in paths.items()
        if path is None or not Path(path).is_file()
    ]
    if missing:
        raise DataError(listed(f"{len(missing)} of {len(paths)} images are missing. {_SKIP}", missing))


@dataclass(frozen=True, slots=True)
class _Batch:
    """Questions whose images are read, what `prepare` gave for each image, and why others could not be read."""

    questions: list[Question]
    prepared: dict[str, Any]
    unreadable: dict[str, str]


def _prepared(detector: Detector, batches: Sequence[Sequence[Question]]) -> Iterator[_Batch]:
    """Yield each batch with its images, reading ahead."""
    pool = ThreadPoolExecutor(_READERS)
    waiting: deque[tuple[Sequence[Question], dict[str, Future[Any]]]] = deque()
    try:
        for batch in batches:
            samples = {question.sample.image_id: question.sample for question in batch}
            futures = {image_id: pool.submit(detector.prepare, sample) for image_id, sample in samples.items()}
            waiting.append((batch, futures))
            if len(waiting) > _AHEAD:
                yield _collected(*waiting.popleft())
        while waiting:
            yield _collected(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _collected(batch: Sequence[Question], futures: Mapping[str, Future[Any]]) -> _Batch:
    prepared: dict[str, Any] = {}
    unreadable: dict[str, str] = {}
    for image_id, future in futures.items():
        try:
            prepared[image_id] = future.result()
        except ImageError as error:
            unreadable[image_id] = str(error)
    questions = [question for question in batch if question.sample.image_id in prepared]
    return _Batch(questions, prepared, unreadable)


def _ask(
    detector: Detector, questions: Sequence[Question], prepared: Mapping[str, Any]
) -> list[tuple[Key, Detections]]:
    """Ask some questions; a CacheError tells where the detector did not answer each of them."""
    answers = detector.detect(questions, prepared) if questions else []
    if len(answers) != len(questions) or not all(isinstance(answer, Detections) for answer in answers):
        raise CacheError(
            f"Detector {detector.name!r} was asked {len(questions)} questions (sample "
            f"{questions[0].sample.sample_id!r} first) and gave {len(answers)} answers; its detect() must return one "
            "Detections per question, in their order."
        )
    return [(question.key, answer) for question, answer in zip(questions, answers, strict=True)]


class _Writer:
    """Collects answers and writes them as parts on a thread; what it holds is written however the block ends."""

    def __init__(self, cache: DetectionCache, rows_per_part: int) -> None:
        self._cache = cache
        self._rows_per_part = rows_per_part
        self._answers: list[tuple[Key, Detections]] = []
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

    def add(self, answers: Sequence[tuple[Key, Detections]]) -> None:
        """Keep answers, and write a part where enough of them or enough time has come together."""
        self._answers += answers
        if len(self._answers) >= self._rows_per_part or time.monotonic() - self._written >= _FLUSH_SECONDS:
            self._flush()
            if self._rows_per_part == 1:
                self._wait()

    def _flush(self) -> None:
        """Start to write what is there, after what is being written."""
        self._wait()
        if self._answers:
            self._pending = self._thread.submit(self._cache.append, self._answers)
            self._answers = []
        self._written = time.monotonic()

    def _wait(self) -> None:
        """Wait for the part that is being written, and raise what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


class _Rate(ProgressColumn):
    """Answers per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "-/s")


def _progress_bar(*, shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not shown)
