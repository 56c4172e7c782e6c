"""Filling on Ray: the same bytes as in one process, though workers die; what it cannot do, it says at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.detections.fill import fill_cache
from llm_wrapper.detections.maintain import verify_cache
from llm_wrapper.detections.ray_engine import RayEngine
from llm_wrapper.detectors import Question
from llm_wrapper.detectors.paid_calls import CostEstimate
from llm_wrapper.errors import ImageError, LLMWrapperError, ModelError, RecipeError
from llm_wrapper.records import Detections, Sample
from tests.detections.faulty import Faulty, Paying, parts, split

SIZES: dict[str, Any] = {"images_per_batch": 2, "rows_per_part": 30, "progress": False}

# Ray's own code leaves sockets and files open.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)


class Unreadable(Faulty):
    """Cannot read some of its images."""

    def prepare(self, sample: Sample) -> int:
        if sample.image_id in ("image3", "image7"):
            raise ImageError(f"{sample.image_id} is truncated")
        return super().prepare(sample)


class Failing(Faulty):
    """Fails as a model does that is too large."""

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        raise ModelError(f"no memory for {len(questions)} questions")


def broken() -> Faulty:
    raise ModelError("the weights are not there")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    found = pytest.importorskip("ray", reason="Ray is not installed: pip install 'llm-wrapper-rec[ray]'")
    found.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield found
    found.shutdown()


def whole(folder: Path, detector: Faulty, **options: Any) -> dict[str, bytes]:
    fill_cache(detector, split(), folder, **SIZES, **options)
    return parts(folder)


def on_ray(folder: Path, detector: Faulty, workers: int | None = None, **options: Any) -> dict[str, bytes]:
    """Fill by workers that are given a detector of the same kind."""
    build = partial(type(detector), detector._seconds, detector._diary)
    return whole(folder, detector, engine=RayEngine(build, workers), **options)


def test_a_cluster_is_started_for_the_while_where_there_is_none(tmp_path: Path) -> None:
    found = pytest.importorskip("ray", reason="Ray is not installed: pip install 'llm-wrapper-rec[ray]'")
    found.shutdown()
    assert on_ray(tmp_path / "ray", Faulty(), workers=1) == whole(tmp_path / "local", Faulty())
    assert not found.is_initialized()


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("workers", [1, None], ids=["one worker", "as many as fit"])
def test_the_bytes_are_those_of_one_process(workers: int | None, tmp_path: Path) -> None:
    diary = tmp_path / "diary.txt"
    made = on_ray(tmp_path / "ray", Faulty(0.01, diary), workers)
    assert made == whole(tmp_path / "local", Faulty())
    pids = {line.split()[0] for line in diary.read_text().splitlines()}
    assert len(pids) == (workers or 2)
    assert str(os.getpid()) not in pids
    assert verify_cache(tmp_path / "ray") == []


@pytest.mark.usefixtures("ray")
def test_images_that_cannot_be_read_are_told_and_left_out_by_choice(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"(?s)2 images cannot be read.*image3 is truncated.*image7 is truncated"):
        on_ray(tmp_path / "ray", Unreadable())
    made = on_ray(tmp_path / "ray", Unreadable(), skip_unreadable=True)
    assert made == whole(tmp_path / "local", Unreadable(), skip_unreadable=True)


@pytest.mark.usefixtures("ray")
def test_the_error_of_a_detector_is_the_users_own(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^no memory for 8 questions$"):
        on_ray(tmp_path, Failing())
    with pytest.raises(ModelError, match=r"^the weights are not there$"):
        fill_cache(Faulty(), split(), tmp_path, engine=RayEngine(broken), **SIZES)


@pytest.mark.usefixtures("ray")
def test_more_workers_than_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no room for 3 workers of one CPU: it has room for 2"):
        on_ray(tmp_path, Faulty(), workers=3)


@pytest.mark.usefixtures("ray")
def test_nothing_is_started_where_nothing_is_asked(tmp_path: Path) -> None:
    made = on_ray(tmp_path, Faulty())
    (tmp_path / "manifest.json").unlink()
    fill_cache(Faulty(), split(), tmp_path, engine=RayEngine(broken), **SIZES)
    assert parts(tmp_path) == made


def kill_workers(diary: Path, killed: list[int], num_kills: int, done: threading.Event) -> None:
    """Kill a worker that has just answered, again and again."""
    while len(killed) < num_kills and not done.is_set():
        lines = diary.read_text().splitlines() if diary.exists() else []
        pid = int(lines[-1].split()[0]) if lines and lines[-1].endswith(")") else 0
        if pid and pid not in killed:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        time.sleep(0.02)


@pytest.mark.usefixtures("ray")
def test_workers_that_are_killed_change_nothing(tmp_path: Path) -> None:
    diary, killed, done = tmp_path / "diary.txt", list[int](), threading.Event()
    killer = threading.Thread(target=kill_workers, args=(diary, killed, 5, done))
    killer.start()
    try:
        made = on_ray(tmp_path / "ray", Faulty(0.3, diary))
    finally:
        done.set()
        killer.join()
    print("killed:", len(killed), "of", len({line.split()[0] for line in diary.read_text().splitlines()}))
    assert len(killed) >= 2
    assert made == whole(tmp_path / "local", Faulty())
    assert verify_cache(tmp_path / "ray") == []


def test_what_costs_money_is_refused_before_it_is_agreed_to(tmp_path: Path) -> None:
    def begin(num_questions: int) -> CostEstimate:
        raise AssertionError(f"{num_questions} questions were spoken of")

    detector = Paying()
    detector.begin = begin  # type: ignore[method-assign]
    with pytest.raises(RecipeError, match="faulty costs money, and a budget cannot be shared: use --engine local"):
        fill_cache(detector, split(), tmp_path, engine=RayEngine(Paying), **SIZES)


def test_without_ray_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RecipeError, match=r"--engine ray needs Ray: pip install 'llm-wrapper-rec\[ray\]'"):
        fill_cache(Faulty(), split(), tmp_path, engine=RayEngine(Faulty), **SIZES)


def test_a_cluster_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCluster:
        def is_initialized(self) -> bool:
            return False

        def init(self, **_options: Any) -> None:
            raise ConnectionError("nobody answers")

    monkeypatch.setitem(sys.modules, "ray", NoCluster())
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(LLMWrapperError, match=r"cannot be reached \(RAY_ADDRESS='10.0.0.1:6379'\): nobody answers"):
        fill_cache(Faulty(), split(), tmp_path, engine=RayEngine(Faulty), **SIZES)
