"""A filling that kills itself or is killed: what the fault tests run in processes of their own.

It is imported once by a server that forks for each run, so a run costs milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pandas  # noqa: F401 (Arrow imports it when it first reads: once for all runs is enough)
import pyarrow.dataset  # noqa: F401 (this, too)

from llm_wrapper import storage
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detections.fill import fill_cache
from llm_wrapper.detectors import Level, Question
from llm_wrapper.detectors.paid_calls import CostEstimate, PaidTerms
from llm_wrapper.readers import read_parquet_table
from llm_wrapper.records import Box, Detection, Detections, Sample

__all__ = ["Faulty", "Job", "Paying", "parts", "run", "split"]

# What moves, makes or removes a name. What is written into a file before it has its name counts for nothing.
_STEPS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}


class Faulty:
    """Answers from the question and from all that stand in its batch, as a real model does in the last digits."""

    name = "faulty"
    reads_images = False
    levels: tuple[Level, ...] = ("expression", "image")

    def __init__(self, seconds: float = 0.0, diary: Path | None = None) -> None:
        self._seconds = seconds
        self._diary = diary

    def identity(self) -> dict[str, Any]:
        return {"revision": "1"}

    def prepare(self, sample: Sample) -> int:
        return len(sample.image_id)

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        time.sleep(self._seconds)
        if self._diary is not None:
            note = " ".join(str(question.key) for question in questions)
            with self._diary.open("a") as stream:
                stream.write(f"{os.getpid()} {note}\n")
        noise = sum(len(question.sample.expression) for question in questions) / 7
        return [self._answer(question, noise) for question in questions]

    def _answer(self, question: Question, noise: float) -> Detections:
        label = question.sample.expression if question.level == "expression" else question.sample.image_id
        item = Detection(Box(-noise, 0.1 + 0.2, 1.0, 9.0), label, 1 / (1 + noise), question.level)
        return Detections((item,) * (len(label) % 3), len(label) % 2)


class Paying(Faulty):
    """Costs a dollar a question."""

    confirm = None
    spent = 0.0

    def begin(self, num_questions: int) -> CostEstimate:
        return CostEstimate(self.name, num_questions, PaidTerms(price_per_call=1.0))


def split(num_samples: int = 60) -> Dataset:
    """Three expressions an image, in an order that is not that of their images."""
    samples = [
        Sample(f"s{number}", "r", f"image{number % (num_samples // 3)}", None, (9, 9), "x" * (number % 11), None)
        for number in range(num_samples)
    ]
    return Dataset("faults", "val", samples, "digest")


@dataclass(frozen=True)
class Job:
    """One filling, and at which of its steps in the folder it is killed, if at any."""

    folder: Path
    kill_at: int | None = None
    kind: type[Faulty] = Faulty
    num_samples: int = 60
    seconds: float = 0.0
    diary: Path | None = None

    def work(self) -> None:
        # Both take most of the time here. A kill forgets nothing that the kernel was given: only a power cut does.
        storage.versions = dict
        os.fsync = int
        if self.kill_at is not None:
            _kill_at(self.folder, self.kill_at)
        fill_cache(
            self.kind(self.seconds, self.diary),
            split(self.num_samples),
            self.folder,
            images_per_batch=2,
            rows_per_part=self.num_samples // 2,
            progress=False,
        )


def run(job: Job, kill_after: float | None = None) -> int:
    """Do a job in a process of its own, killed after some seconds if it still runs; return how it ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    process = context.Process(target=job.work)
    # The server is not told where this module lies, and says nothing of a module that it does not find.
    with mock.patch.dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2])):
        process.start()
    process.join(kill_after)
    if kill_after is not None:
        process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode


def parts(folder: Path) -> list[list[dict[str, Any]]]:
    """Return the rows of each part, in the order of the parts."""
    return [read_parquet_table(path).to_pylist() for path in sorted(folder.glob("part-*.parquet"))]


def phase(folder: Path) -> str:
    """Tell how far a filling has come, by what lies in its folder."""
    if (folder / "manifest.json").exists():
        return "finished"
    keys = [{(row["image_id"], row["sample_id"]) for row in rows} for rows in parts(folder)]
    if len(set().union(*keys)) < sum(map(len, keys)):
        return "rewriting"
    return "between parts" if keys else "before the first part"


def _kill_at(folder: Path, number: int) -> None:
    """Kill this process just before its step of that number in a folder."""
    steps = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal steps
        if event not in _STEPS or not str(args[0]).startswith(f"{folder}{os.sep}"):
            return
        if event == "open" and not (args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        steps += 1
        if steps == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
