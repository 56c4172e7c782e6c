"""Fills a detections cache: asks only what is missing, and never loses an answer it has written.

An engine asks, this process writes, on another thread.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detections.cache import DetectionCache
from llm_wrapper.detections.identity import Recorded, describe_recorded, identity_of
from llm_wrapper.detections.local_engine import Answered, Engine, answer_locally
from llm_wrapper.detections.parts import ROWS_PER_PART, Key
from llm_wrapper.detections.progress import Money, progress_bar
from llm_wrapper.detectors.base import Detector, PaidDetector, Question, questions_about
from llm_wrapper.errors import DataError, ImageError, RecipeError, listed
from llm_wrapper.records import Detections
from llm_wrapper.terminal import as_description

__all__ = ["fill"]

_log = logging.getLogger(__name__)
_FLUSH_SECONDS = 60.0


def fill(  # noqa: PLR0913 (each is an option of the verb)
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

    A question of level `image` is asked once per image, one of level `expression` once per expression; all about one
    image stand in one batch. Ctrl-C and errors of the detector keep all answers so far; a killed process loses at most
    its last minute and one batch, one of a paid detector at most one answer. The same call resumes, and the parts of
    the complete cache are the same bytes then. A complete cache is returned without a call.

    Args:
        detector: What to ask.
        dataset: The samples to ask it about.
        folder: The cache, `data/detections/<detector>/<dataset>/<split>`; made where it does not exist.
        engine: Who asks: this process, or a `RayEngine`.
        images_per_batch: How many images the detector gets in one call. Batches do not depend on what is cached, so a
            resumed run asks what an uninterrupted one would have asked.
        rows_per_part: How many answers a Parquet part of the complete cache has. While it is filled, parts end with a
            batch, so that no batch is ever asked about in two halves; a minute writes one, too.
        overwrite: Throw away what the cache holds and ask everything again.
        skip_unreadable: Finish without the images that are missing or broken; the manifest names them.
        progress: Show a progress bar on standard error.

    Raises:
        RecipeError: If a size is below one, or the engine cannot be used.
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
        images = _by_image(detector, dataset)
        batches = list(_lacking(images, cache, images_per_batch))
        if cache.manifest is not None and not batches:
            _log.info("%s is complete: %d answers, nothing to ask", folder, cache.manifest.num_rows)
            return cache
        left_out = cache.manifest.unanswered.keys() if cache.manifest else set()
        if detector.reads_images and not skip_unreadable:
            _require_files(batches, left_out)
        with closing(engine(detector, batches)) as answers:
            total = sum(map(len, batches))
            money = _agreed(detector, total)
            with progress_bar(money, shown=progress) as bar, _Writer(cache, 1 if money else rows_per_part) as writer:
                task = bar.add_task(as_description(f"{detector.name} on {dataset.name} {dataset.split}"), total=total)
                unreadable = _keep(answers, writer, lambda number: bar.advance(task, number))
        if unreadable and not skip_unreadable:
            text = f"{len(unreadable)} images cannot be read. {_remedy(unreadable, left_out)}"
            raise ImageError(listed(text, unreadable.values()))
        order = [question.key for image in images for question in image]
        cache.finish(detector.levels, unreadable, order=order, rows_per_part=rows_per_part)
        if len(cache.recorded) > 1:
            _log.warning("%s: its answers were computed in several ways: %s", folder, describe_recorded(cache.recorded))
    return cache


def _agreed(detector: Detector, num_questions: int) -> Money | None:
    """Make sure that the user agrees to what is to be paid, if anything; a RecipeError tells that not."""
    if not isinstance(detector, PaidDetector) or num_questions == 0:
        return None
    return Money(lambda: detector.spent, detector.begin(num_questions).cost)


def _keep(answers: Iterable[Answered], writer: _Writer, advance: Callable[[int], None]) -> dict[str, str]:
    """Write down what an engine gives; return why images could not be read, by image id."""
    unreadable: dict[str, str] = {}
    for answered in answers:
        writer.add(answered.answers, answered.recorded)
        unreadable.update(answered.unreadable)
        advance(len(answered.answers))
    return dict(sorted(unreadable.items()))


def _remedy(images: Collection[str], left_out: Collection[str]) -> str:
    """Say what helps where images are missing or broken, and whether this was so before."""
    if set(images) <= set(left_out):
        return (
            "The cache was finished without them by --skip-unreadable, and nothing has changed that: restore the "
            "files, or give --skip-unreadable again."
        )
    return "Restore the files, or leave their samples without detections: --skip-unreadable."


def _check(dataset: Dataset) -> None:
    """Refuse a split that cannot be cached."""
    place = f"{dataset.name} {dataset.split}"
    if not dataset.samples:
        raise DataError(f"{place} has no samples, so there is nothing to detect. Check the split's name and files.")
    counts = Counter(sample.sample_id for sample in dataset.samples)
    repeated = [f"sample {name!r} stands there {count} times" for name, count in counts.items() if count > 1]
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
    """Yield what the cache lacks: the same batches whatever is cached, without what is there."""
    for start in range(0, len(images), images_per_batch):
        batch = [question for image in images[start : start + images_per_batch] for question in image]
        lacking = [question for question in batch if question.key not in cache]
        if lacking:
            yield lacking


def _require_files(batches: Sequence[Sequence[Question]], left_out: Collection[str]) -> None:
    """Refuse to start where image files are missing: hours later is too late."""
    paths = {each.sample.image_id: each.sample.image_path for batch in batches for each in batch}
    missing = {
        image_id: f"image {image_id}: {'no file is named' if path is None else f'{path} does not exist'}"
        for image_id, path in paths.items()
        if path is None or not Path(path).is_file()
    }
    if missing:
        text = f"{len(missing)} of {len(paths)} images are missing. {_remedy(missing, left_out)}"
        raise DataError(listed(text, missing.values()))


class _Writer:
    """Collects answers and writes them as parts on a thread; what it holds is written however the block ends."""

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
        """Keep answers, and write a part where enough of them or enough time has come together."""
        self._answers += answers
        self._recorded += [each for each in recorded if each not in self._recorded]
        if len(self._answers) >= self._rows_per_part or time.monotonic() - self._written >= _FLUSH_SECONDS:
            self._flush()
            if self._rows_per_part == 1:
                self._wait()

    def _flush(self) -> None:
        """Start to write what is there, after what is being written."""
        self._wait()
        if self._answers:
            self._pending = self._thread.submit(self._cache.append, self._answers, tuple(self._recorded))
            self._answers, self._recorded = [], []
        self._written = time.monotonic()

    def _wait(self) -> None:
        """Wait for the part that is being written, and raise what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
