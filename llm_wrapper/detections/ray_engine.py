"""Asks copies of a detector in the workers of a Ray cluster; only this process writes, so its rules stay the same.

A worker may die at any moment: Ray starts another, which is given the same batches again. Batches are those of the
local engine, so the answers are, too, where the machines compute alike. A worker that reads images while its model
works on other ones is a Ray actor with several threads, of which one at a time may use the model.

Workers on other machines need this package and the images, at the same paths as here.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llm_wrapper.detections.fill import AHEAD, NUM_READERS, Answered, ReadingBatch, answer_questions, recorded_of
from llm_wrapper.detectors import Detector, PaidDetector, Question
from llm_wrapper.errors import DataError, ModelError, RecipeError

_PATIENCE = 10.0
"""Seconds: the workers of the split before may not have ended yet."""
_TRIES = 20
"""How often a batch is given to a new worker: one that needs too much memory kills every worker it is given to."""


@dataclass(frozen=True)
class RayEngine:
    """Asks on a running Ray cluster (`RAY_ADDRESS`, or one of this machine), else on one started here.

    A worker takes one CPU, and one GPU where the cluster has any, and loads the detector by `build`. `workers` are as
    many as fit; where memory is short, use fewer.
    """

    build: Callable[[], Detector]
    workers: int | None = None

    def __call__(self, detector: Detector, batches: Sequence[Sequence[Question]]) -> Generator[Answered, None, None]:
        """Yield the answers to batches as they come."""
        if isinstance(detector, PaidDetector):
            raise RecipeError(f"{detector.name} costs money, and a budget cannot be shared: use --engine local.")
        try:
            import ray
        except ImportError as error:
            raise RecipeError("--engine ray needs Ray: pip install 'llm-wrapper-rec[ray]'") from error
        return self._answer_all(ray, deque(batches))

    def _answer_all(self, ray: Any, waiting: deque[Sequence[Question]]) -> Generator[Answered, None, None]:
        if not waiting:
            return
        with _connected(ray):
            build = ray.put(self.build)  # held until the end: a worker that Ray starts again asks for it
            workers = self._start(ray, build, len(waiting))
            try:
                yield from _hand_out(ray, workers, waiting)
            finally:
                for worker in workers:
                    ray.kill(worker)

    def _start(self, ray: Any, build: Any, num_batches: int) -> list[Any]:
        """Start as many workers as there is room and work for; `build` is a reference that the caller holds."""
        needs = ("CPU", "GPU") if ray.cluster_resources().get("GPU") else ("CPU",)
        room = self._room(ray, needs)
        options = {"max_restarts": -1, "max_task_retries": _TRIES, "max_concurrency": AHEAD + 1}
        actor = ray.remote(num_cpus=1, num_gpus=len(needs) - 1, **options)(_Worker)
        return [actor.remote(build, os.getcwd()) for _ in range(min(room, num_batches))]

    def _room(self, ray: Any, needs: Sequence[str]) -> int:
        """Return how many workers fit; those that have just ended are waited for."""
        total = _fitting(ray.cluster_resources(), needs)
        wanted = self.workers or max(1, total)
        deadline = time.monotonic() + _PATIENCE
        while (free := _fitting(ray.available_resources(), needs)) < wanted <= total and time.monotonic() < deadline:
            time.sleep(0.2)
        if free < (self.workers or 1):
            raise RecipeError(
                f"The Ray cluster has no room for {wanted} workers of one {' and one '.join(needs)}: it has room for "
                f"{total}, of which {free} are free. Use --workers, wait for other jobs, or use --engine local."
            )
        return min(wanted, free)


def _hand_out(ray: Any, workers: Sequence[Any], waiting: deque[Sequence[Question]]) -> Iterator[Answered]:
    """Give each worker as many batches as it can read ahead, and a further one for each that it has answered."""
    running: dict[Any, Any] = {}
    for worker in [*workers] * (AHEAD + 1):
        if waiting:
            running[worker.answer.remote(waiting.popleft())] = worker
    while running:
        [done], _ = ray.wait(list(running), num_returns=1)
        worker = running.pop(done)
        if waiting:
            running[worker.answer.remote(waiting.popleft())] = worker
        yield _result(ray, done)


class _Worker:
    """One copy of the detector; `answer` is called on several threads."""

    def __init__(self, build: Callable[[], Detector], folder: str) -> None:
        self._build = build
        self._folder = folder
        self._detector: Detector | None = None
        self._building, self._asking = threading.Lock(), threading.Lock()
        self._pool = ThreadPoolExecutor(NUM_READERS)

    def answer(self, batch: Sequence[Question]) -> Answered:
        """Answer a batch: its images are read while another thread may use the model."""
        detector = self._built()
        questions, prepared, unreadable = ReadingBatch(self._pool, detector, batch).result()
        with self._asking:
            return Answered(answer_questions(detector, questions, prepared), unreadable, recorded_of(detector))

    def _built(self) -> Detector:
        """Build the detector at the first question: an error in a worker that is starting is lost."""
        with self._building:
            if self._detector is None:
                try:
                    os.chdir(self._folder)
                except OSError as error:
                    raise DataError(f"{self._folder} is not there on a worker: {error.strerror}. Share it.") from error
                self._detector = self._build()
            return self._detector


def _fitting(resources: Mapping[str, float], needs: Sequence[str]) -> int:
    return min(int(resources.get(name, 0)) for name in needs)


@contextmanager
def _connected(ray: Any) -> Iterator[None]:
    """Join a cluster or start one, and leave it again; a connection that is there is used and kept."""
    if ray.is_initialized():
        yield
        return
    # One error is enough: without this those of the batches beside it follow on the terminal.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    try:
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    except ConnectionError as error:
        address = os.environ.get("RAY_ADDRESS")
        raise RecipeError(f"The Ray cluster cannot be reached (RAY_ADDRESS={address!r}): {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _result(ray: Any, done: Any) -> Answered:
    """Return the answers of a worker, or raise its error as if it had happened here."""
    try:
        answered: Answered = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise ModelError(
            f"Ray gave a batch of images up after {_TRIES + 1} tries; where workers die for lack of memory, use a "
            f"smaller --images-per-batch or fewer --workers. {error}"
        ) from error
    return answered
