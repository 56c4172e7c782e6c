"""Info, verify and merge: what they tell of a cache, and what they leave as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.detections import maintain
from llm_wrapper.detections.cache import DetectionCache, read_folder
from llm_wrapper.detections.contents import Key
from llm_wrapper.detectors import Level
from llm_wrapper.errors import CacheError
from llm_wrapper.records import Detections
from tests.detections.test_cache import COMMAND, HOSTILE, IDENTITY, found, key, make, sample


def fill(folder: Path, answers: dict[Key, Detections], *levels: Level, **identity: Any) -> Path:
    """Make a cache of some answers; it is finished where levels are given."""
    with DetectionCache.resume(folder, {**IDENTITY, **identity}) as cache:
        if answers:
            cache.append(list(answers.items()))
        if levels:
            cache.finish(levels, {})
    return folder


def numbered(*numbers: int) -> dict[Key, Detections]:
    return {key(number): found(number) for number in numbers}


def snapshot(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Return content and time of every file below a folder."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def unlocked(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Return a snapshot without locks, which every writer touches."""
    return {path: seen for path, seen in snapshot(folder).items() if path.name != ".lock"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# info


def test_info_of_a_complete_cache(tmp_path: Path) -> None:
    make(tmp_path, parts=2, rows=2)
    told = maintain.summarize_cache(tmp_path)
    assert (told.folder, told.state, told.identity) == (str(tmp_path), "complete", IDENTITY)
    assert told.levels == ("expression",)
    assert (told.num_rows, told.num_images, told.num_detections, told.num_dropped) == (4, 4, 4, 0 + 1 + 2 + 3)
    assert (told.num_unanswered, told.num_parts) == (0, 2)
    assert told.num_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.parquet"))
    assert told.created is not None


def test_info_counts_images_once_and_what_was_left_out(tmp_path: Path) -> None:
    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        cache.append([(("i", None), HOSTILE), (("i", "s1"), Detections(())), (("i", "s2"), found(1))])
        cache.finish(["image", "expression"], {"j": "j.jpg is truncated", "k": "k.jpg is truncated"})
    told = maintain.summarize_cache(tmp_path)
    assert (told.num_rows, told.num_images, told.num_detections, told.num_dropped) == (3, 1, 3 + 0 + 1, 7 + 0 + 1)
    assert (told.levels, told.num_unanswered) == (("expression", "image"), 2)


def test_info_says_what_it_cannot_know_of_an_unfinished_cache(tmp_path: Path) -> None:
    fill(tmp_path, numbered(0, 1))
    told = maintain.summarize_cache(tmp_path)
    assert (told.state, told.num_rows, told.identity) == ("incomplete", 2, IDENTITY)
    assert (told.num_unanswered, told.created) == (None, None)


def test_info_counts_only_what_can_be_used(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "part-00001.parquet").write_bytes(b"")
    told = maintain.summarize_cache(tmp_path)
    assert (told.state, told.num_rows, told.num_parts) == ("damaged", 4, 2)


def test_info_of_a_finished_cache_without_answers(tmp_path: Path) -> None:
    fill(tmp_path, {}, "image")
    told = maintain.summarize_cache(tmp_path)
    assert (told.state, told.num_rows, told.num_detections, told.num_dropped, told.levels) == ("complete", 0, 0, 0, ())


# verify


def test_verify_is_content_with_a_complete_cache_and_what_was_set_aside(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "part-00009.parquet.damaged").write_bytes(b"")
    assert maintain.verify_cache(tmp_path) == []


def test_verify_takes_an_unfinished_cache_for_a_problem(tmp_path: Path) -> None:
    fill(tmp_path, numbered(0))
    (problem,) = maintain.verify_cache(tmp_path)
    assert problem.text == f"{tmp_path} is incomplete: it has no manifest.json"
    assert problem.remedy == f"Run `{COMMAND}`: it computes only what is missing."


def test_verify_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "part-00001.parquet").write_bytes(b"")
    (tmp_path / ".part-00003.parquet.0a1b2c3d.tmp").write_bytes(b"half")
    before = snapshot(tmp_path)
    (problem,) = maintain.verify_cache(tmp_path)
    assert "part-00001.parquet is damaged" in problem.text
    assert snapshot(tmp_path) == before


# merge


def test_merged_halves_are_the_whole(tmp_path: Path) -> None:
    halves = [fill(tmp_path / "a", numbered(0, 2)), fill(tmp_path / "b", {key(1): HOSTILE, **numbered(3)})]
    before = snapshot(tmp_path)
    out = tmp_path / "out"
    merged = maintain.merge_caches(out, halves)
    assert merged == maintain.MergeResult(num_added=4, num_repeated=0, is_complete=False, command=COMMAND)
    assert {path: seen for path, seen in snapshot(tmp_path).items() if path.parent != out} == before
    assert names(out) == [".lock", "part-00000.parquet"]
    with DetectionCache.resume(out, IDENTITY) as cache:
        cache.finish(["expression"], {})
        assert [cache.lookup(sample(number)) for number in range(4)] == [found(0), HOSTILE, found(2), found(3)]


def test_equal_answers_are_taken_once(tmp_path: Path) -> None:
    contents = {"a": numbered(0, 1), "b": numbered(1, 2), "c": numbered(1)}
    sources = [fill(tmp_path / name, answers) for name, answers in contents.items()]
    merged = maintain.merge_caches(tmp_path / "out", sources)
    assert (merged.num_added, merged.num_repeated) == (3, 2)


def test_contradicting_answers_are_all_told_and_nothing_is_made(tmp_path: Path) -> None:
    first = fill(tmp_path / "a", {**numbered(0, 1, 2), ("image9", None): found(1)})
    second = fill(tmp_path / "b", {key(0): found(0), key(1): HOSTILE, key(2): found(9), ("image9", None): found(2)})
    with pytest.raises(CacheError) as caught:
        maintain.merge_caches(tmp_path / "out", [first, second])
    message = str(caught.value)
    assert message.startswith("answers contradict each other: merge without one of the folders (3 problems):")
    assert f"sample 's1' of image 'image1': {first} and {second} answer differently" in message
    assert f"image 'image9': {first} and {second} answer differently" in message
    assert not (tmp_path / "out").exists()


def test_an_answer_that_contradicts_the_result_is_refused(tmp_path: Path) -> None:
    out = fill(tmp_path / "out", numbered(0), "expression")
    source = fill(tmp_path / "a", {key(0): HOSTILE, **numbered(1)})
    before = unlocked(tmp_path)
    with pytest.raises(CacheError, match=f"{out} and {source} answer differently"):
        maintain.merge_caches(out, [source])
    assert unlocked(tmp_path) == before


def test_other_identities_are_refused_with_all_fields(tmp_path: Path) -> None:
    first = fill(tmp_path / "a", numbered(0))
    second = fill(tmp_path / "b", numbered(1), annotations="bb22", split="test")
    with pytest.raises(CacheError) as caught:
        maintain.merge_caches(tmp_path / "out", [first, second])
    message = str(caught.value)
    assert "(2 problems)" in message
    assert f'annotations: "bb22" in {second}, "aa11" in {first}' in message
    assert f'split: "test" in {second}, "val" in {first}' in message
    assert not (tmp_path / "out").exists()


def test_a_result_of_another_identity_is_refused(tmp_path: Path) -> None:
    out = fill(tmp_path / "out", numbered(0), split="test")
    with pytest.raises(CacheError, match='split: "test" in the cache, "val" now'):
        maintain.merge_caches(out, [fill(tmp_path / "a", numbered(1))])


@pytest.mark.parametrize("also_damaged", [1, 2])
def test_damaged_sources_are_refused_together(also_damaged: int, tmp_path: Path) -> None:
    sources = [fill(tmp_path / name, numbered(number)) for number, name in enumerate("abc")]
    for source in (sources[0], sources[also_damaged]):
        (source / "part-00000.parquet").write_bytes(b"")
    with pytest.raises(CacheError, match=r"not all of these detections can be used \(2 problems\)"):
        maintain.merge_caches(tmp_path / "out", sources)
    assert not (tmp_path / "out").exists()


def test_a_cache_is_not_merged_into_itself(tmp_path: Path) -> None:
    source = fill(tmp_path / "a", numbered(0))
    with pytest.raises(CacheError, match="is to be merged into itself"):
        maintain.merge_caches(tmp_path / "b" / ".." / "a", [source])


def test_a_killed_merge_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = fill(tmp_path / "a", numbered(*range(5)), "expression"), tmp_path / "out"
    monkeypatch.setattr(maintain, "ROWS_PER_PART", 2)
    append = DetectionCache.append

    def append_once(cache: DetectionCache, answers: Any, recorded: Any) -> Path:
        if any(cache.folder.glob("part-*")):
            raise KeyboardInterrupt
        return append(cache, answers, recorded)

    with monkeypatch.context() as patch:
        patch.setattr(DetectionCache, "append", append_once)
        with pytest.raises(KeyboardInterrupt):
            maintain.merge_caches(out, [source])
    assert names(out) == [".lock", "part-00000.parquet"]
    merged = maintain.merge_caches(out, [source])
    assert (merged.num_added, merged.num_repeated, merged.is_complete) == (3, 2, True)
    assert [name for name in names(out) if not name.startswith("part-")] == [".lock", "manifest.json"]
    merged_parts, source_parts = (read_folder(folder).parts for folder in (out, source))
    assert [part.keys for part in merged_parts] == [part.keys for part in source_parts]
    assert maintain.verify_cache(out) == []


def test_a_result_with_the_answers_of_a_finished_source_is_finished(tmp_path: Path) -> None:
    with DetectionCache.resume(tmp_path / "a", IDENTITY) as cache:
        cache.append(list(numbered(0, 1).items()))
        cache.finish(["expression"], {"image7": "broken.jpg is truncated"})
    merged = maintain.merge_caches(tmp_path / "out", [fill(tmp_path / "b", numbered(1)), tmp_path / "a"])
    assert merged.is_complete
    opened = DetectionCache.open_complete(tmp_path / "out", IDENTITY)
    assert opened.manifest is not None
    assert opened.manifest.levels == ("expression",)
    assert opened.manifest.unanswered == {"image7": "broken.jpg is truncated"}


def test_a_finished_source_does_not_finish_a_result_that_knows_more(tmp_path: Path) -> None:
    """Where another source knows an image that this one left out, some of its questions may still be open."""
    with DetectionCache.resume(tmp_path / "a", IDENTITY) as cache:
        cache.append(list(numbered(0).items()))
        cache.finish(["expression"], {"image1": "broken.jpg is truncated"})
    merged = maintain.merge_caches(tmp_path / "out", [tmp_path / "a", fill(tmp_path / "b", numbered(1))])
    assert not merged.is_complete
    assert "manifest.json" not in names(tmp_path / "out")


@pytest.mark.parametrize("numbers", [[1], [0, 1, 2]], ids=["less", "the same"])
def test_a_finished_result_is_left_alone_where_nothing_is_new(numbers: list[int], tmp_path: Path) -> None:
    out = fill(tmp_path / "out", numbered(0, 1, 2), "expression")
    source = fill(tmp_path / "a", numbered(*numbers), "expression")
    before = unlocked(out)
    assert maintain.merge_caches(out, [source]) == maintain.MergeResult(0, len(numbers), True, COMMAND)
    assert unlocked(out) == before


def test_a_finished_source_gives_its_order(tmp_path: Path) -> None:
    source = tmp_path / "a"
    with DetectionCache.resume(source, IDENTITY) as cache:
        cache.append(list(numbered(2, 0, 1).items()))
        cache.finish(["expression"], {}, order=numbered(2, 0, 1))
    assert maintain.merge_caches(tmp_path / "out", [fill(tmp_path / "b", numbered(0, 1, 2)), source]).is_complete
    merged, given = (read_folder(folder).parts for folder in (tmp_path / "out", source))
    assert [part.keys for part in merged] == [part.keys for part in given]


def test_many_small_parts_become_few(tmp_path: Path) -> None:
    make(tmp_path / "a", parts=7, rows=1)
    assert maintain.merge_caches(tmp_path / "out", [tmp_path / "a"]).is_complete
    assert names(tmp_path / "out") == [".lock", "manifest.json", "part-00000.parquet"]


def test_answers_of_two_commits_are_not_merged(tmp_path: Path) -> None:
    identity = {"detector": "d", "settings": {"revision": None}, "dataset": "x", "split": "val", "annotations": "a"}
    folders = [tmp_path / commit for commit in "ab"]
    for folder in folders:
        with DetectionCache.resume(folder, identity) as cache:
            cache.append([((folder.name, None), Detections(()))], ({"commit": folder.name * 40},))
    with pytest.raises(CacheError, match=f"is of commit {'a' * 40}(.|\n)*is of commit {'b' * 40}"):
        maintain.merge_caches(tmp_path / "out", folders)
    assert not (tmp_path / "out").exists()
