"""Fills a detections cache with one process: asks only what is missing, and never loses an answer it has written."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

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
from llm_wrapper.detectors.base import Detector
from llm_wrapper.errors import CacheError, DataError, RecipeError, listed
from llm_wrapper.records import Detections, Sample

__all__ = ["fill"]

_log = logging.getLogger(__name__)
_FLUSH_SECONDS = 60.0


def fill(
    detector: Detector,
    dataset: Dataset,
    folder: Path,
    *,
    batch_size: int = 32,
    rows_per_part: int = 2000,
    overwrite: bool = False,
    progress: bool = True,
) -> DetectionCache:
    """Ask a detector all that a split's cache lacks, and return the complete cache.

    A detector of level `image` is asked once per image, another one once per expression. Ctrl-C and errors of the
    detector keep all answers so far; a killed process loses at most its last minute and one batch. The same call
    resumes. A complete cache is returned without a call.

    Args:
        detector: What to ask.
        dataset: The samples to ask it about.
        folder: The cache, `data/detections/<detector>/<dataset>/<split>`; made where it does not exist.
        batch_size: How many samples the detector gets in one call.
        rows_per_part: After how many answers a Parquet part is written; a minute writes one too.
        overwrite: Throw away what the cache holds and ask everything again.
        progress: Show a progress bar on standard error.

    Raises:
        RecipeError: If a size is below one.
        DataError: If the split is empty or has two samples of one id.
        CacheError: If the folder is of another identity or in use, or the detector does not answer each sample.
        LLMWrapperError: If a part cannot be written, for instance because the disk is full.
    """
    if min(batch_size, rows_per_part) < 1:
        raise RecipeError(f"batch_size={batch_size} and rows_per_part={rows_per_part}: both must be 1 or more.")
    _check(dataset)
    with DetectionCache.resume(folder, identity_of(detector, dataset), overwrite=overwrite) as cache:
        missing = cache.missing(dataset.samples, detector.level)
        if cache.manifest is not None and not missing:
            _log.info("%s is complete: %d answers, nothing to ask", folder, cache.manifest.num_rows)
            return cache
        with _progress_bar(shown=progress) as bar:
            task = bar.add_task(f"{detector.name} on {dataset.name} {dataset.split}", total=len(missing))
            with _Writer(cache, detector, rows_per_part) as writer:
                for start in range(0, len(missing), batch_size):
                    batch = missing[start : start + batch_size]
                    writer.add(_ask(detector, batch))
                    bar.advance(task, len(batch))
        cache.finish(detector.level)
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


def _ask(detector: Detector, batch: Sequence[Sample]) -> list[tuple[Sample, Detections]]:
    """Ask about one batch; a CacheError tells where the detector did not answer each sample."""
    answers = detector.detect(batch)
    if len(answers) != len(batch) or not all(isinstance(answer, Detections) for answer in answers):
        raise CacheError(
            f"Detector {detector.name!r} was asked about {len(batch)} samples ({batch[0].sample_id!r} first) and gave "
            f"{len(answers)} answers; its detect() must return one Detections per sample, in their order."
        )
    return list(zip(batch, answers, strict=True))


class _Writer:
    """Collects answers and writes them as parts; what it holds is written however the block ends."""

    def __init__(self, cache: DetectionCache, detector: Detector, rows_per_part: int) -> None:
        self._cache = cache
        self._level = detector.level
        self._rows_per_part = rows_per_part
        self._answers: list[tuple[Sample, Detections]] = []
        self._written = time.monotonic()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *reason: object) -> None:
        self._flush()

    def add(self, answers: Sequence[tuple[Sample, Detections]]) -> None:
        """Keep answers, and write a part where enough of them or enough time has come together."""
        self._answers += answers
        if len(self._answers) >= self._rows_per_part or time.monotonic() - self._written >= _FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        if self._answers:
            self._cache.append(self._answers, self._level)
            self._answers = []
        self._written = time.monotonic()


class _Rate(ProgressColumn):
    """Answers per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "-/s")


def _progress_bar(*, shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not shown)
