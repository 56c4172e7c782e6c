import errno
import logging
import multiprocessing
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper import artifacts
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detections import fill as module
from llm_wrapper.detections.cache import DetectionCache, identity_of
from llm_wrapper.detections.fill import fill
from llm_wrapper.detectors.base import Level
from llm_wrapper.errors import CacheError, DataError, LLMWrapperError, RecipeError
from llm_wrapper.records import Box, Detection, Detections, Sample


class CountingDetector:
    """Answers from the question alone, and remembers what it was asked."""

    name = "counting"

    def __init__(self, level: Level = "expression", *, seconds: float = 0.0, fail_at: int | None = None) -> None:
        self.level: Level = level
        self.asked: list[str] = []
        self.batches: list[int] = []
        self.error: BaseException = KeyboardInterrupt()
        self._seconds = seconds
        self._fail_at = fail_at

    def identity(self) -> dict[str, Any]:
        return {"revision": "1"}

    def detect(self, samples: Sequence[Sample]) -> list[Detections]:
        time.sleep(self._seconds)
        if self._fail_at is not None and len(self.asked) >= self._fail_at:
            raise self.error
        self.asked += [sample.sample_id for sample in samples]
        self.batches.append(len(samples))
        return [self._answer(sample) for sample in samples]

    def _answer(self, sample: Sample) -> Detections:
        label = sample.image_id if self.level == "image" else sample.expression
        return Detections((Detection(Box(0.0, 0.0, 1.0 + len(label), 9.0), label, None, "count"),), len(label) % 3)


def dataset(num_samples: int = 20, per_image: int = 1) -> Dataset:
    samples = [
        Sample(f"s{number}", "r", f"image{number // per_image}", None, (9, 9), f"expression\n{number}", None)
        for number in range(num_samples)
    ]
    return Dataset("counted", "val", samples, "digest")


def table(folder: Path, samples: Dataset) -> list[Detections]:
    cache = DetectionCache.open_complete(folder, identity_of(CountingDetector(), samples))
    return [cache.lookup(sample) for sample in samples.samples]


def rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of a cache in the order of its parts."""
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in artifacts.read_parquet(path)]


def test_every_expression_is_asked_once_in_batches(tmp_path: Path) -> None:
    detector = CountingDetector()
    cache = fill(detector, dataset(20), tmp_path, batch_size=8, rows_per_part=10, progress=False)
    assert detector.asked == [f"s{number}" for number in range(20)]
    assert detector.batches == [8, 8, 4]
    assert [part.num_rows for part in cache.manifest.parts] == [16, 4]
    assert cache.lookup(dataset().samples[3]).items[0].label == "expression\n3"
    assert table(tmp_path, dataset(20)) == [cache.lookup(sample) for sample in dataset(20).samples]


def test_an_image_is_asked_and_stored_once(tmp_path: Path) -> None:
    detector = CountingDetector("image")
    cache = fill(detector, dataset(20, per_image=4), tmp_path, progress=False)
    assert detector.asked == ["s0", "s4", "s8", "s12", "s16"]
    stored = rows(tmp_path)
    assert [row["image_id"] for row in stored] == [f"image{number}" for number in range(5)]
    assert all(row["sample_id"] is None for row in stored)
    assert (cache.manifest.level, cache.manifest.num_rows) == ("image", 5)
    assert cache.lookup(dataset(20, per_image=4).samples[7]).items[0].label == "image1"


def test_a_complete_cache_is_never_asked_about_again(tmp_path: Path, caplog) -> None:
    fill(CountingDetector(), dataset(), tmp_path, progress=False)
    before = (tmp_path / "manifest.json").read_bytes()
    again = CountingDetector()
    with caplog.at_level(logging.INFO):
        cache = fill(again, dataset(), tmp_path, progress=False)
    assert again.asked == []
    assert "is complete: 20 answers, nothing to ask" in caplog.text
    assert cache.lookup(dataset().samples[0]).items[0].label == "expression\n0"
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_cache_that_lacks_only_its_manifest_costs_no_call(tmp_path: Path) -> None:
    fill(CountingDetector(), dataset(), tmp_path, progress=False)
    (tmp_path / "manifest.json").unlink()
    again = CountingDetector()
    fill(again, dataset(), tmp_path, progress=False)
    assert again.asked == []
    assert len(table(tmp_path, dataset())) == 20


def test_more_samples_of_the_same_annotations_are_added(tmp_path: Path) -> None:
    fill(CountingDetector(), dataset(5), tmp_path, progress=False)
    again = CountingDetector()
    cache = fill(again, dataset(8), tmp_path, progress=False)
    assert again.asked == ["s5", "s6", "s7"]
    assert cache.manifest.num_rows == 8
    assert len(table(tmp_path, dataset(8))) == 8


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")], ids=["ctrl-c", "error"])
def test_an_interrupt_keeps_the_answers_and_a_second_call_resumes(error: BaseException, tmp_path: Path) -> None:
    detector = CountingDetector(fail_at=9)
    detector.error = error
    with pytest.raises(type(error)):
        fill(detector, dataset(), tmp_path, batch_size=3, progress=False)
    assert len(detector.asked) == 9
    assert not (tmp_path / "manifest.json").exists()
    again = CountingDetector()
    fill(again, dataset(), tmp_path, batch_size=3, progress=False)
    assert again.asked == [f"s{number}" for number in range(9, 20)]


def test_a_slow_detector_is_written_down_by_time(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_FLUSH_SECONDS", 0.0)
    cache = fill(CountingDetector(), dataset(6), tmp_path, batch_size=2, progress=False)
    assert [part.num_rows for part in cache.manifest.parts] == [2, 2, 2]


def test_overwrite_asks_everything_again(tmp_path: Path) -> None:
    fill(CountingDetector(), dataset(), tmp_path, rows_per_part=5, batch_size=5, progress=False)
    again = CountingDetector()
    fill(again, dataset(), tmp_path, overwrite=True, progress=False)
    assert len(again.asked) == 20
    assert [path.name for path in tmp_path.glob("part-*")] == ["part-00000.parquet"]


def test_another_detector_is_refused_before_it_is_asked(tmp_path: Path) -> None:
    fill(CountingDetector(), dataset(), tmp_path, progress=False)
    other = CountingDetector()
    other.identity = lambda: {"revision": "2"}  # type: ignore[method-assign]
    with pytest.raises(CacheError, match=r'settings\.revision: "1" in the cache, "2" now'):
        fill(other, dataset(), tmp_path, progress=False)
    assert other.asked == []


@pytest.mark.parametrize(
    "wrong", [lambda answers: answers[:-1], lambda answers: [*answers, answers[0]], lambda answers: [None] * 4]
)
def test_a_detector_that_does_not_answer_each_sample_is_named(wrong, tmp_path: Path, monkeypatch) -> None:
    detector = CountingDetector()
    right = detector.detect

    def detect(samples: Sequence[Sample]) -> list[Detections]:
        return wrong(right(samples)) if samples[0].sample_id == "s4" else right(samples)

    monkeypatch.setattr(detector, "detect", detect)
    with pytest.raises(CacheError, match=r"'counting' was asked about 4 samples \('s4' first\) and gave \d answers"):
        fill(detector, dataset(), tmp_path, batch_size=4, progress=False)
    with DetectionCache.resume(tmp_path, identity_of(detector, dataset())) as cache:
        assert len(cache.missing(dataset().samples, "expression")) == 16


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="counted val has no samples"):
        fill(CountingDetector(), dataset(0), tmp_path / "cache", progress=False)
    assert not (tmp_path / "cache").exists()


def test_repeated_sample_ids_are_all_named(tmp_path: Path) -> None:
    samples = [*dataset(4).samples, *dataset(2).samples]
    with pytest.raises(DataError, match=r"\(2 problems\)(.|\n)*'s0' stands there 2 times(.|\n)*'s1'"):
        fill(CountingDetector(), Dataset("counted", "val", samples, "digest"), tmp_path, progress=False)


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"batch_size": -1}, {"rows_per_part": 0}], ids=str)
def test_sizes_below_one_are_refused(sizes: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="must be 1 or more"):
        fill(CountingDetector(), dataset(), tmp_path, progress=False, **sizes)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_stops_with_a_clear_word_and_no_damage(call: str, tmp_path: Path, monkeypatch) -> None:
    right, calls = getattr(os, call), []

    def full(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return right(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(LLMWrapperError, match=r"part-00002\.parquet was not written.*No space.*Free space"):
            fill(CountingDetector(), dataset(), tmp_path, batch_size=4, rows_per_part=4, progress=False)
    assert sorted(os.listdir(tmp_path)) == [".lock", "part-00000.parquet", "part-00001.parquet"]
    again = CountingDetector()
    fill(again, dataset(), tmp_path, progress=False)
    assert len(again.asked) == 12


def test_the_progress_bar_goes_to_standard_error(tmp_path: Path, capsys) -> None:
    fill(CountingDetector(), dataset(), tmp_path, batch_size=2)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "counting on counted val" in shown.err
    assert "20/20" in shown.err


def fill_slowly(folder: Path) -> None:
    fill(CountingDetector(seconds=0.004), dataset(120), folder, batch_size=2, rows_per_part=4, progress=False)


def test_a_killed_fill_resumes_to_the_same_cache(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fill(CountingDetector(), dataset(120), whole, batch_size=2, rows_per_part=4, progress=False)
    context, moments = multiprocessing.get_context("spawn"), random.Random(4)
    for _ in range(3):
        num_before = len(list(killed.glob("part-*.parquet")))
        process = context.Process(target=fill_slowly, args=(killed,))
        process.start()
        while len(list(killed.glob("part-*.parquet"))) == num_before and process.is_alive():
            time.sleep(0.002)
        time.sleep(moments.uniform(0.0, 0.03))
        process.kill()
        process.join()
    assert not (killed / "manifest.json").exists()
    rest = CountingDetector()
    fill(rest, dataset(120), killed, batch_size=2, rows_per_part=4, progress=False)
    assert 0 < len(rest.asked) < 120
    assert rows(killed) == rows(whole)
    assert not list(killed.glob(".*.tmp"))
    assert table(killed, dataset(120)) == table(whole, dataset(120))
