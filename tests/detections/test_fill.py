import errno
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detections import fill as module
from llm_wrapper.detections.cache import DetectionCache, read_folder
from llm_wrapper.detections.contents import identity_of
from llm_wrapper.detections.fill import fill_cache
from llm_wrapper.detectors import Level, PaidDetector, Question
from llm_wrapper.detectors.paid_calls import CostEstimate, PaidTerms
from llm_wrapper.errors import CacheError, DataError, ImageError, LLMWrapperError, RecipeError
from llm_wrapper.readers import read_parquet_table
from llm_wrapper.records import Box, Detection, Detections, Sample


class CountingDetector:
    """Answers from the question alone, and remembers what it was asked."""

    name = "counting"
    reads_images = False

    def __init__(self, *levels: Level, seconds: float = 0.0, fail_at: int | None = None) -> None:
        self.levels: tuple[Level, ...] = levels or ("expression",)
        self.asked: list[str] = []
        self.batches: list[int] = []
        self.error: BaseException = KeyboardInterrupt()
        self._seconds = seconds
        self._fail_at = fail_at

    def identity(self) -> dict[str, Any]:
        return {"revision": "1"}

    def prepare(self, sample: Sample) -> str:
        return f"pixels of {sample.image_id}"

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        time.sleep(self._seconds)
        if self._fail_at is not None and len(self.asked) >= self._fail_at:
            raise self.error
        self.asked += [question.key[1] or question.key[0] for question in questions]
        self.batches.append(len(questions))
        assert all(prepared[each.sample.image_id] == f"pixels of {each.sample.image_id}" for each in questions)
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> Detections:
        label = question.sample.image_id if question.level == "image" else question.sample.expression
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
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in read_parquet_table(path).to_pylist()]


def test_every_expression_is_asked_once_in_batches(tmp_path: Path) -> None:
    detector = CountingDetector()
    cache = fill_cache(detector, dataset(20), tmp_path, images_per_batch=8, rows_per_part=10, progress=False)
    assert detector.asked == [f"s{number}" for number in range(20)]
    assert detector.batches == [8, 8, 4]
    assert [part.num_rows for part in cache.manifest.parts] == [10, 10]
    assert [row["sample_id"] for row in rows(tmp_path)] == detector.asked
    assert cache.lookup(dataset().samples[3]).items[0].label == "expression\n3"
    assert table(tmp_path, dataset(20)) == [cache.lookup(sample) for sample in dataset(20).samples]


def test_an_image_is_asked_and_stored_once(tmp_path: Path) -> None:
    detector = CountingDetector("image")
    cache = fill_cache(detector, dataset(20, per_image=4), tmp_path, progress=False)
    assert detector.asked == [f"image{number}" for number in range(5)]
    stored = rows(tmp_path)
    assert [row["image_id"] for row in stored] == [f"image{number}" for number in range(5)]
    assert all(row["sample_id"] is None for row in stored)
    assert (cache.manifest.levels, cache.manifest.num_rows) == (("image",), 5)
    assert cache.lookup(dataset(20, per_image=4).samples[7]).items[0].label == "image1"


def test_a_complete_cache_is_never_asked_about_again(tmp_path: Path, caplog) -> None:
    fill_cache(CountingDetector(), dataset(), tmp_path, progress=False)
    before = (tmp_path / "manifest.json").read_bytes()
    again = CountingDetector()
    with caplog.at_level(logging.INFO):
        cache = fill_cache(again, dataset(), tmp_path, progress=False)
    assert again.asked == []
    assert "is complete: 20 answers, nothing to ask" in caplog.text
    assert cache.lookup(dataset().samples[0]).items[0].label == "expression\n0"
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_cache_that_lacks_only_its_manifest_costs_no_call(tmp_path: Path) -> None:
    fill_cache(CountingDetector(), dataset(), tmp_path, progress=False)
    (tmp_path / "manifest.json").unlink()
    again = CountingDetector()
    fill_cache(again, dataset(), tmp_path, progress=False)
    assert again.asked == []
    assert len(table(tmp_path, dataset())) == 20


def test_more_samples_of_the_same_annotations_are_added(tmp_path: Path) -> None:
    fill_cache(CountingDetector(), dataset(5), tmp_path, progress=False)
    again = CountingDetector()
    cache = fill_cache(again, dataset(8), tmp_path, progress=False)
    assert again.asked == ["s5", "s6", "s7"]
    assert cache.manifest.num_rows == 8
    assert len(table(tmp_path, dataset(8))) == 8


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")], ids=["ctrl-c", "error"])
def test_an_interrupt_keeps_the_answers_and_a_second_call_resumes(error: BaseException, tmp_path: Path) -> None:
    detector = CountingDetector(fail_at=9)
    detector.error = error
    with pytest.raises(type(error)):
        fill_cache(detector, dataset(), tmp_path, images_per_batch=3, progress=False)
    assert len(detector.asked) == 9
    assert not (tmp_path / "manifest.json").exists()
    again = CountingDetector()
    fill_cache(again, dataset(), tmp_path, images_per_batch=3, progress=False)
    assert again.asked == [f"s{number}" for number in range(9, 20)]


def test_a_slow_detector_is_written_down_by_time(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_FLUSH_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        fill_cache(CountingDetector(fail_at=4), dataset(6), tmp_path, images_per_batch=2, progress=False)
    assert sorted(os.listdir(tmp_path)) == [".lock", "part-00000.parquet", "part-00001.parquet"]


def test_overwrite_asks_everything_again(tmp_path: Path) -> None:
    fill_cache(CountingDetector(), dataset(), tmp_path, rows_per_part=5, images_per_batch=5, progress=False)
    again = CountingDetector()
    fill_cache(again, dataset(), tmp_path, overwrite=True, progress=False)
    assert len(again.asked) == 20
    assert [path.name for path in tmp_path.glob("part-*")] == ["part-00000.parquet"]


def test_another_detector_is_refused_before_it_is_asked(tmp_path: Path) -> None:
    fill_cache(CountingDetector(), dataset(), tmp_path, progress=False)
    other = CountingDetector()
    other.identity = lambda: {"revision": "2"}  # type: ignore[method-assign]
    with pytest.raises(CacheError, match=r'settings\.revision: "1" in the cache, "2" now'):
        fill_cache(other, dataset(), tmp_path, progress=False)
    assert other.asked == []


@pytest.mark.parametrize(
    "wrong", [lambda answers: answers[:-1], lambda answers: [*answers, answers[0]], lambda answers: [None] * 4]
)
def test_a_detector_that_does_not_answer_each_sample_is_named(wrong, tmp_path: Path, monkeypatch) -> None:
    detector = CountingDetector()
    right = detector.detect

    def detect(questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        answers = right(questions, prepared)
        return wrong(answers) if questions[0].sample.sample_id == "s4" else answers

    monkeypatch.setattr(detector, "detect", detect)
    with pytest.raises(CacheError, match=r"'counting' was asked 4 questions \(sample 's4' first\) and gave \d answers"):
        fill_cache(detector, dataset(), tmp_path, images_per_batch=4, progress=False)
    with DetectionCache.resume(tmp_path, identity_of(detector, dataset())) as cache:
        assert [(f"image{number}", f"s{number}") in cache for number in range(20)] == [True] * 4 + [False] * 16


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="counted val has no samples"):
        fill_cache(CountingDetector(), dataset(0), tmp_path / "cache", progress=False)
    assert not (tmp_path / "cache").exists()


def test_repeated_sample_ids_are_all_named(tmp_path: Path) -> None:
    samples = [*dataset(4).samples, *dataset(2).samples]
    with pytest.raises(DataError, match=r"\(2 problems\)(.|\n)*'s0' occurs 2 times(.|\n)*'s1'"):
        fill_cache(CountingDetector(), Dataset("counted", "val", samples, "digest"), tmp_path, progress=False)


@pytest.mark.parametrize("sizes", [{"images_per_batch": 0}, {"images_per_batch": -1}, {"rows_per_part": 0}], ids=str)
def test_sizes_below_one_are_refused(sizes: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="must be 1 or more"):
        fill_cache(CountingDetector(), dataset(), tmp_path, progress=False, **sizes)


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
            fill_cache(CountingDetector(), dataset(), tmp_path, images_per_batch=4, rows_per_part=4, progress=False)
    assert sorted(os.listdir(tmp_path)) == [".lock", "part-00000.parquet", "part-00001.parquet"]
    again = CountingDetector()
    fill_cache(again, dataset(), tmp_path, progress=False)
    assert len(again.asked) == 12


def test_the_progress_bar_goes_to_standard_error(tmp_path: Path, capsys) -> None:
    fill_cache(CountingDetector(), dataset(), tmp_path, images_per_batch=2)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "counting on counted val" in shown.err
    assert "20/20" in shown.err


def test_levels_are_asked_together_and_each_stored_under_its_own_key(tmp_path: Path) -> None:
    detector = CountingDetector("image", "expression")
    split = dataset(6, per_image=3)
    cache = fill_cache(detector, split, tmp_path, progress=False)
    assert detector.asked == ["s0", "image0", "s1", "s2", "s3", "image1", "s4", "s5"]
    labels = [[item.label for item in cache.lookup(sample).items] for sample in split.samples]
    assert labels == [[f"expression\n{number}", f"image{number // 3}"] for number in range(6)]


def test_all_questions_about_an_image_stand_in_one_batch_however_samples_are_mixed(tmp_path: Path) -> None:
    samples = [dataset(12, per_image=3).samples[place] for place in (0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11)]
    detector = CountingDetector()
    fill_cache(detector, Dataset("counted", "val", samples, "digest"), tmp_path, images_per_batch=2, progress=False)
    assert detector.asked == [f"s{number}" for number in range(12)]
    assert detector.batches == [6, 6]


def test_a_resumed_fill_asks_in_the_batches_of_an_uninterrupted_one(tmp_path: Path) -> None:
    fill_cache(CountingDetector(), dataset(5), tmp_path, images_per_batch=5, progress=False)
    again = CountingDetector()
    fill_cache(again, dataset(12), tmp_path, images_per_batch=4, progress=False)
    assert again.batches == [3, 4]


class Paid(CountingDetector):
    """Costs money, and is told before how much is wanted."""

    announced: int | None = None
    confirm = None

    @property
    def spent(self) -> float:
        return 0.25 * len(self.asked)

    def begin(self, num_questions: int) -> CostEstimate:
        assert self.asked == []
        self.announced = num_questions
        return CostEstimate(self.name, num_questions, PaidTerms(price_per_call=0.25))


def test_a_paid_detector_is_asked_one_question_at_a_time_and_each_answer_is_kept(tmp_path: Path) -> None:
    detector = Paid(fail_at=3)
    assert isinstance(detector, PaidDetector)
    with pytest.raises(KeyboardInterrupt):
        fill_cache(detector, dataset(5), tmp_path, progress=False)
    assert (detector.announced, detector.batches) == (5, [1, 1, 1])
    assert [row["sample_id"] for row in rows(tmp_path)] == ["s0", "s1", "s2"]
    again = Paid()
    fill_cache(again, dataset(5), tmp_path, progress=False)
    assert (again.announced, again.asked) == (2, ["s3", "s4"])
    assert [len(part.keys) for part in read_folder(tmp_path).parts] == [5]


def test_what_a_paid_detector_costs_is_seen(tmp_path: Path, capsys) -> None:
    fill_cache(Paid(), dataset(3), tmp_path)
    assert "$0.75 of about $0.75" in capsys.readouterr().err
    fill_cache(CountingDetector(), dataset(3), tmp_path / "free")
    assert "$" not in capsys.readouterr().err


def test_nothing_is_agreed_to_where_all_answers_are_paid_already(tmp_path: Path) -> None:
    fill_cache(Paid(), dataset(3), tmp_path, progress=False)
    (tmp_path / "manifest.json").unlink()
    again = Paid()
    fill_cache(again, dataset(3), tmp_path, progress=False)
    assert (again.announced, again.asked) == (None, [])


def test_a_paid_detector_that_is_not_agreed_to_is_not_asked(tmp_path: Path, monkeypatch) -> None:
    def refuse(num_questions: int) -> CostEstimate:
        raise RecipeError(f"{num_questions} calls are not agreed to")

    detector = Paid()
    monkeypatch.setattr(detector, "begin", refuse)
    with pytest.raises(RecipeError, match="5 calls are not agreed to"):
        fill_cache(detector, dataset(5), tmp_path, progress=False)
    assert detector.asked == []


class Reading(CountingDetector):
    """Reads image files; one that is called `broken` cannot be read."""

    reads_images = True

    def prepare(self, sample: Sample) -> str:
        if sample.image_path is None or Path(sample.image_path).name.startswith("broken"):
            raise ImageError(f"{sample.image_path} cannot be read")
        return super().prepare(sample)


def with_files(folder: Path, *names: str) -> Dataset:
    samples = [
        Sample(f"s{number}", "r", f"image{number}", str(folder / name), (9, 9), f"expression {number}", None)
        for number, name in enumerate(names)
    ]
    return Dataset("counted", "val", samples, "digest")


def test_missing_images_are_all_named_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    split = with_files(tmp_path, "a.png", "gone.png", "lost.png")
    nameless = Sample("s3", "r", "image3", None, (9, 9), "x", None)
    detector = Reading()
    with pytest.raises(
        DataError, match=r"(?s)3 of 4 images are missing.*gone\.png.*lost\.png.*image3: no file is named"
    ):
        fill_cache(detector, Dataset("counted", "val", [*split.samples, nameless], "digest"), tmp_path, progress=False)
    assert detector.asked == []


def test_broken_images_are_all_named_after_the_others_are_answered(tmp_path: Path) -> None:
    for name in ("a.png", "broken1.png", "b.png", "broken2.png"):
        (tmp_path / name).touch()
    split = with_files(tmp_path, "a.png", "broken1.png", "b.png", "broken2.png")
    with pytest.raises(ImageError, match=r"(?s)2 images cannot be read.*--skip-unreadable.*broken1\.png.*broken2\.png"):
        fill_cache(Reading(), split, tmp_path / "cache", progress=False)
    assert not (tmp_path / "cache" / "manifest.json").exists()
    again = Reading()
    cache = fill_cache(again, split, tmp_path / "cache", skip_unreadable=True, progress=False)
    assert again.asked == []
    assert set(cache.manifest.unanswered) == {"image1", "image3"}
    assert [len(cache.lookup(sample).items) for sample in split.samples] == [1, 0, 1, 0]


@pytest.mark.parametrize("name", ["broken.png", "broken and gone.png"], ids=["broken", "missing"])
def test_a_cache_that_was_finished_without_images_says_so_when_they_are_wanted(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "broken.png").touch()
    split, folder = with_files(tmp_path, "a.png", name), tmp_path / "cache"
    fill_cache(Reading(), split, folder, skip_unreadable=True, progress=False)
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(DataError, match=r"finished without them by --skip-unreadable.*or give --skip-unreadable again"):
        fill_cache(Reading(), split, folder, progress=False)
    assert (folder / "manifest.json").read_bytes() == before


def test_an_image_that_was_lost_since_is_no_old_acquaintance(tmp_path: Path) -> None:
    for name in ("a.png", "broken.png", "broken2.png"):
        (tmp_path / name).touch()
    fill_cache(Reading(), with_files(tmp_path, "a.png", "broken.png"), tmp_path / "cache", skip_unreadable=True)
    with pytest.raises(ImageError, match="or leave their samples without detections: --skip-unreadable"):
        fill_cache(Reading(), with_files(tmp_path, "a.png", "broken.png", "broken2.png"), tmp_path / "cache")


def test_a_restored_image_is_asked_about_later(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    split = with_files(tmp_path, "a.png", "broken.png")
    fill_cache(Reading(), split, tmp_path / "cache", skip_unreadable=True, progress=False)
    restored = CountingDetector()
    cache = fill_cache(restored, split, tmp_path / "cache", progress=False)
    assert restored.asked == ["s1"]
    assert cache.manifest.unanswered == {}
