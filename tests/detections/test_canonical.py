"""The one form of a complete cache: which row stands where, and what a full disk leaves behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.detections.cache import DetectionCache
from llm_wrapper.detections.canonical import FINAL, layout
from llm_wrapper.detections.parts import Key
from llm_wrapper.errors import LLMWrapperError
from tests.detections.test_cache import HOSTILE, IDENTITY, found, key, make, sample

A, B, C = ("a", None), ("a", "s1"), ("b", "s2")


@pytest.mark.parametrize(
    ("keys", "order", "rows", "wanted"),
    [
        ([], [A], 2, []),
        ([C, A, B], [A, B, C], 2, [(A, B), (C,)]),
        ([C, A], [A, B, C], 2, [(A, C)]),
        ([C, B, A], [C], 5, [(C, A, B)]),
        ([("a", ""), A, ("A", "z")], [], 1, [(("A", "z"),), (A,), (("a", ""),)]),
        ([A, B], [B, A, B], 3, [(B, A)]),
    ],
    ids=["nothing", "order", "unanswered", "unknown ones last", "sorted", "named twice"],
)
def test_layout(keys: list[Key], order: list[Key], rows: int, wanted: list[tuple[Key, ...]]) -> None:
    named = {f"part-{number:05d}.parquet": part for number, part in enumerate(wanted)}
    for given in (keys, keys[::-1]):
        assert layout(dict.fromkeys(given).keys(), order, rows) == named


def test_a_rewritten_answer_is_the_same_to_the_last_digit(tmp_path: Path) -> None:
    answers = [found(0), HOSTILE, found(2)]
    for name, numbers in {"one": [0, 1, 2], "other": [2, 1, 0]}.items():
        with DetectionCache.resume(tmp_path / name, IDENTITY) as cache:
            for number in numbers:
                cache.append([(key(number), answers[number])])
            cache.finish(["expression"], {}, order=map(key, range(3)))
            assert [cache.lookup(sample(number)) for number in range(3)] == answers
        assert DetectionCache.open_complete(tmp_path / name, IDENTITY).lookup(sample(1)) == HOSTILE
    one, other = (tmp_path / name / "part-00000.parquet" for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def test_a_finished_cache_can_be_added_to_at_once(tmp_path: Path) -> None:
    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        for number in (3, 1):
            cache.append([(key(number), found(number))])
        cache.finish(["expression"], {})
        assert cache.append([(key(2), found(2))]) == tmp_path / "part-00001.parquet"
        assert cache.manifest is None
        cache.finish(["expression"], {})
    make(tmp_path / "whole", parts=1, rows=4)
    opened = DetectionCache.open_complete(tmp_path, IDENTITY)
    assert [opened.lookup(sample(number)) for number in (1, 2, 3)] == [found(1), found(2), found(3)]


@pytest.mark.parametrize("num_written", range(5))
def test_a_disk_that_is_full_at_the_end_loses_nothing(
    num_written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "whole", parts=2, rows=3)
    folder, right, calls = tmp_path / "cache", os.replace, []

    def full(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) > num_written:
            raise OSError(errno.ENOSPC, "No space left on device")
        right(source, target)

    with DetectionCache.resume(folder, IDENTITY) as cache:
        for number in range(6):
            cache.append([(key(number), found(number))])
        monkeypatch.setattr(os, "replace", full)
        with pytest.raises((LLMWrapperError, OSError), match="No space left"):
            cache.finish(["expression"], {}, rows_per_part=3)
        assert cache.manifest is None
    monkeypatch.undo()
    with DetectionCache.resume(folder, IDENTITY) as cache:
        assert all(key(number) in cache for number in range(6))
        cache.finish(["expression"], {}, rows_per_part=3)
    for path in (tmp_path / "whole").glob("part-*"):
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert not (folder / FINAL).exists()
