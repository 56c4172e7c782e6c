import errno
import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas
import pytest

from llm_wrapper import readers, storage
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detections.cache import DetectionCache, read_folder
from llm_wrapper.detections.contents import PART_SCHEMA, Key, identity_of, write_rows
from llm_wrapper.errors import CacheError, LLMWrapperError
from llm_wrapper.readers import read_parquet_table
from llm_wrapper.records import Box, Detection, Detections, Sample, to_dict

IDENTITY: dict[str, Any] = {
    "detector": "toy",
    "settings": {"tasks": ["od", "dense"], "threshold": 0.25, "revision": None},
    "dataset": "zebras",
    "split": "val",
    "annotations": "aa11",
}
COMMAND = "llm-wrapper cache-detections --vlm toy --data <recipe of zebras> --split val"

HOSTILE = Detections(
    (
        Detection(Box(-3.5, 0.1 + 0.2, 1e-300, 1e300), "", None, "od"),
        Detection(Box(0.0, 0.0, 5e-324, 1.0), "two\nlines\r\n\ttab", 0.0, "dense"),
        Detection(Box(1.0, 2.0, 3.0, 4.0), "犬 🐕‍🦺 e\u0301 \x00 end", 0.1, 'task "x"'),
    ),
    num_dropped=7,
)


def sample(number: int, image: int | None = None) -> Sample:
    image_id = f"image{number if image is None else image}"
    return Sample(f"s{number}", f"r{number}", image_id, None, (640, 480), f"zebra {number}", None)


def refuse_parts(opening: Callable[..., int]) -> Callable[..., int]:
    """Return an `os.open` that may not read parts; tests may run as a user who may read everything."""

    def refuse(path: Any, *args: Any, **kwargs: Any) -> int:
        if Path(path).name.startswith("part-"):
            raise PermissionError(13, "Permission denied")
        return opening(path, *args, **kwargs)

    return refuse


def key(number: int) -> tuple[str, str]:
    return (f"image{number}", f"s{number}")


def found(number: int) -> Detections:
    return Detections((Detection(Box(0.0, 0.0, 1.0 + number, 2.0), f"zebra {number}", 0.5, "od"),), number)


def make(folder: Path, parts: int = 3, rows: int = 2) -> None:
    """Make a complete cache of samples 0, 1, 2, ..."""
    with DetectionCache.resume(folder, IDENTITY) as cache:
        for part in range(parts):
            numbers = range(part * rows, (part + 1) * rows)
            cache.append([(key(number), found(number)) for number in numbers])
        cache.finish(["expression"], {}, rows_per_part=rows)


def write_part(path: Path, answers: Sequence[tuple[Key, Detections]], identity: dict[str, Any]) -> None:
    rows = [{"image_id": image_id, "sample_id": sample_id, **to_dict(each)} for (image_id, sample_id), each in answers]
    write_rows(path, rows, identity)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_every_field_survives(tmp_path: Path) -> None:
    answers = [HOSTILE, Detections(()), found(2)]
    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        assert cache.append([(key(n), answers[n]) for n in range(3)]) == tmp_path / "part-00000.parquet"
        cache.finish(["expression"], {})
        assert [cache.lookup(sample(number)) for number in range(3)] == answers
    opened = DetectionCache.open_complete(tmp_path, IDENTITY)
    assert [opened.lookup(sample(number)) for number in range(3)] == answers


def test_an_image_answer_serves_all_expressions_and_stands_behind_their_own(tmp_path: Path) -> None:
    first, second = sample(1, image=5), sample(2, image=5)
    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        cache.append([(("image5", None), found(1)), (("image5", "s1"), Detections(())), (("image5", "s2"), found(2))])
        cache.finish(["expression", "image"], {})
        assert cache.lookup(first) == found(1)
        assert cache.lookup(second) == Detections(found(2).items + found(1).items, 3)


@pytest.mark.parametrize("lost", [("image5", None), ("image5", "s1")], ids=["of the image", "of the expression"])
def test_half_an_answer_is_none(lost: tuple[str, str | None], tmp_path: Path) -> None:
    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        keys: list[tuple[str, str | None]] = [("image5", None), ("image5", "s1")]
        cache.append([(each, found(1)) for each in keys if each != lost])
        cache.finish(["expression", "image"], {})
    with pytest.raises(CacheError, match="has no detections of sample 's1'"):
        DetectionCache.open_complete(tmp_path, IDENTITY).lookup(sample(1, image=5))


def test_an_image_that_was_left_out_has_no_detections_and_a_reason(tmp_path: Path) -> None:
    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        cache.append([(key(0), found(0))])
        cache.finish(["expression"], {"image7": "broken.jpg is truncated"})
    opened = DetectionCache.open_complete(tmp_path, IDENTITY)
    assert opened.lookup(sample(7)) == Detections(())
    assert opened.manifest.unanswered == {"image7": "broken.jpg is truncated"}


def test_what_was_answered_before_an_image_was_lost_is_kept(tmp_path: Path) -> None:
    both = [("image7", None), ("image7", "s1"), ("image8", "s3")]
    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        cache.append([(each, found(number)) for number, each in enumerate(both)])
        cache.finish(["expression", "image"], {"image7": "lost", "image8": "lost"})
    opened = DetectionCache.open_complete(tmp_path, IDENTITY)
    answers = [opened.lookup(sample(number, image=image)) for number, image in ((1, 7), (2, 7), (3, 8))]
    # The first has all of its answers, the others only one of two.
    assert answers == [Detections(found(1).items + found(0).items, 1), Detections(()), Detections(())]


def test_an_unfinished_cache_answers_nothing(tmp_path: Path) -> None:
    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        cache.append([(key(0), found(0))])
        assert key(0) in cache
        assert key(1) not in cache
        with pytest.raises(CacheError, match=f"is incomplete. Run `{COMMAND}`"):
            cache.lookup(sample(0))


def test_a_sample_without_answer_is_named_with_the_remedy(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(CacheError, match=rf"no detections of sample 's99' \(image 'image99'\). Run `{COMMAND}`"):
        DetectionCache.open_complete(tmp_path, IDENTITY).lookup(sample(99))


def test_the_manifest_explains_the_cache(tmp_path: Path) -> None:
    make(tmp_path, parts=2, rows=2)
    manifest = readers.read_json(tmp_path / "manifest.json")
    digests = [storage.digest(tmp_path / f"part-0000{number}.parquet") for number in (0, 1)]
    assert manifest["identity"] == IDENTITY
    assert (manifest["levels"], manifest["unanswered"]) == (["expression"], {})
    assert [part["sha256"] for part in manifest["parts"]] == digests
    assert [part["num_rows"] for part in manifest["parts"]] == [2, 2]
    totals = [manifest[name] for name in ("num_rows", "num_images", "num_detections", "num_dropped")]
    assert totals == [4, 4, 4, 0 + 1 + 2 + 3]
    assert manifest["versions"]["python"]
    assert manifest["created"].endswith("+00:00")


def test_pandas_reads_a_cache_in_one_line(tmp_path: Path) -> None:
    make(tmp_path)
    frame = pandas.read_parquet(list(tmp_path.glob("part-*.parquet")))
    assert list(frame.columns) == PART_SCHEMA.names
    assert sorted(frame["sample_id"]) == [f"s{number}" for number in range(6)]


def test_identity_of_takes_all_that_decides_the_answers() -> None:
    class Toy:
        name = "toy"

        def identity(self) -> dict[str, Any]:
            return IDENTITY["settings"]

    assert identity_of(Toy(), Dataset("zebras", "val", [], "aa11")) == IDENTITY


def test_tuples_in_an_identity_are_lists_on_disk(tmp_path: Path) -> None:
    make(tmp_path)
    DetectionCache.open_complete(tmp_path, {**IDENTITY, "settings": {**IDENTITY["settings"], "tasks": ("od", "dense")}})


@pytest.mark.parametrize("has_manifest", [True, False], ids=["complete", "parts only"])
def test_another_identity_is_refused_with_all_differences(has_manifest: bool, tmp_path: Path) -> None:
    make(tmp_path)
    if not has_manifest:
        (tmp_path / "manifest.json").unlink()
    other = {**IDENTITY, "annotations": "bb22", "settings": {"tasks": ["od"], "threshold": 0.25, "dtype": None}}
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(CacheError) as caught, DetectionCache.resume(tmp_path, other):
        pass
    message = str(caught.value)
    assert "(4 problems)" in message
    assert 'annotations: "aa11" in the cache, "bb22" now' in message
    assert 'settings.tasks: ["od","dense"] in the cache, ["od"] now' in message
    assert "settings.dtype: absent in the cache, null now" in message
    assert "settings.revision: null in the cache, absent now" in message
    assert "threshold" not in message
    assert f"{COMMAND} --overwrite" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    if has_manifest:
        with pytest.raises(CacheError, match="bb22"):
            DetectionCache.open_complete(tmp_path, other)


def test_a_part_of_another_cache_is_refused_though_the_manifest_fits(tmp_path: Path) -> None:
    make(tmp_path, parts=1)
    write_part(tmp_path / "part-00000.parquet", [(("i", "s"), found(1))], {**IDENTITY, "split": "test"})
    manifest = readers.read_json(tmp_path / "manifest.json")
    manifest["parts"][0]["sha256"] = storage.digest(tmp_path / "part-00000.parquet")
    storage.write_json(tmp_path / "manifest.json", manifest)
    with pytest.raises(CacheError, match='split: "test" in the cache, "val" now'):
        DetectionCache.open_complete(tmp_path, IDENTITY)


def test_overwrite_replaces_another_identity(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "part-00007.parquet.damaged").write_text("")
    (tmp_path / "notes.txt").write_text("mine")
    other = {**IDENTITY, "split": "test"}
    with DetectionCache.resume(tmp_path, other, overwrite=True) as cache:
        assert key(0) not in cache
        cache.append([(key(0), HOSTILE)])
        cache.finish(["expression"], {})
    assert DetectionCache.open_complete(tmp_path, other).lookup(sample(0)) == HOSTILE
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "manifest.json",
        "notes.txt",
        "part-00000.parquet",
    ]


@pytest.mark.parametrize("case", ["no folder", "empty folder", "parts only", "appended to"])
def test_an_incomplete_cache_is_not_opened(case: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    if case == "empty folder":
        folder.mkdir()
    if case in ("parts only", "appended to"):
        make(folder)
    if case == "parts only":
        (folder / "manifest.json").unlink()
    if case == "appended to":
        with DetectionCache.resume(folder, IDENTITY) as cache:
            cache.append([(key(50), found(50))])
    with pytest.raises(CacheError, match=f"is incomplete: it has no manifest.json. Run `{COMMAND}`"):
        DetectionCache.open_complete(folder, IDENTITY)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_first_page(path: Path) -> None:
    flip(path, 40)


def foreign(path: Path) -> None:
    pandas.DataFrame({"a": [1]}).to_parquet(path)


DAMAGES = [truncate, empty, flip_first_page, foreign]


@pytest.mark.parametrize("damage", [*DAMAGES, Path.unlink])
def test_damage_is_named_when_opening_to_evaluate(damage, tmp_path: Path) -> None:
    make(tmp_path)
    damage(tmp_path / "part-00001.parquet")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(CacheError, match=r"\(1 problem\)(.|\n)*part-00001\.parquet is (damaged|missing)") as caught:
        DetectionCache.open_complete(tmp_path, IDENTITY)
    assert COMMAND in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("has_manifest", [True, False], ids=["complete", "parts only"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_set_aside_and_missing_again(damage, has_manifest: bool, tmp_path: Path, caplog) -> None:
    make(tmp_path)
    part = tmp_path / "part-00001.parquet"
    damage(part)
    content = part.read_bytes()
    if not has_manifest:
        (tmp_path / "manifest.json").unlink()
    samples = [sample(number) for number in range(6)]
    with caplog.at_level(logging.WARNING), DetectionCache.resume(tmp_path, IDENTITY) as cache:
        aside = tmp_path / "part-00001.parquet.damaged"
        assert cache.damaged == [aside]
        assert aside.read_bytes() == content
        assert str(part) in caplog.text
        assert cache.manifest is None
        missing = [number for number in range(6) if key(number) not in cache]
        assert missing == [2, 3]
        assert cache.append([(key(number), found(9)) for number in missing]).name == "part-00003.parquet"
        cache.finish(["expression"], {})
    opened = DetectionCache.open_complete(tmp_path, IDENTITY)
    assert [opened.lookup(one).num_dropped for one in samples] == [0, 1, 9, 9, 4, 5]


@pytest.mark.parametrize("has_manifest", [True, False], ids=["complete", "parts only"])
def test_a_copy_of_a_part_is_set_aside_and_told(has_manifest: bool, tmp_path: Path, caplog) -> None:
    make(tmp_path)
    copy = tmp_path / "part-00000 (copy).parquet"
    copy.write_bytes((tmp_path / "part-00000.parquet").read_bytes())
    if has_manifest:
        with pytest.raises(CacheError, match=r"\(copy\)\.parquet is not named like a part"):
            DetectionCache.open_complete(tmp_path, IDENTITY)
    else:
        (tmp_path / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING), DetectionCache.resume(tmp_path, IDENTITY) as cache:
        assert cache.damaged == [tmp_path / "part-00000 (copy).parquet.damaged"]
        assert str(copy) in caplog.text
        cache.append([(key(6), found(6))])
        cache.finish(["expression"], {})
    assert [DetectionCache.open_complete(tmp_path, IDENTITY).lookup(sample(6))] == [found(6)]


def test_equal_answers_in_two_parts_are_one(tmp_path: Path) -> None:
    """A process that is killed while it rewrites parts leaves such repeats."""
    make(tmp_path)
    (tmp_path / "manifest.json").unlink()
    write_part(tmp_path / "part-00003.parquet", [(key(number), found(number)) for number in (5, 6, 0)], IDENTITY)
    write_part(tmp_path / "part-00004.parquet", [(key(number), found(number)) for number in (6, 5)], IDENTITY)
    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        assert cache.damaged == []
        assert sorted(path.name for path in tmp_path.glob("part-*")) == [f"part-0000{n}.parquet" for n in range(4)]
        cache.finish(["expression"], {})
    opened = DetectionCache.open_complete(tmp_path, IDENTITY)
    assert [opened.lookup(sample(number)) for number in range(7)] == [found(number) for number in range(7)]
    assert opened.manifest is not None
    assert opened.manifest.num_rows == 7


A, B, C = ("a", None), ("a", "s1"), ("b", "s2")


@pytest.mark.parametrize(
    ("keys", "order", "rows_per_part", "wanted"),
    [
        ([C, A, B], [A, B, C], 2, [[A, B], [C]]),
        ([C, A], [A, B, C], 2, [[A, C]]),
        ([C, B, A], [C], 5, [[C, A, B]]),
        ([("a", ""), A, ("A", "z")], [], 1, [[("A", "z")], [A], [("a", "")]]),
        ([A, B], [B, A, B], 3, [[B, A]]),
    ],
    ids=["order", "unanswered", "unknown ones last", "sorted", "named twice"],
)
def test_a_complete_cache_is_sorted(
    keys: list[Key], order: list[Key], rows_per_part: int, wanted: list[list[Key]], tmp_path: Path
) -> None:
    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        for number, each in enumerate(keys):
            cache.append([(each, found(number))])
        cache.finish(["image", "expression"], {}, order=order, rows_per_part=rows_per_part)
    tables = [read_parquet_table(path).to_pylist() for path in sorted(tmp_path.glob("part-*"))]
    assert [[(row["image_id"], row["sample_id"]) for row in rows] for rows in tables] == wanted


def test_a_rewritten_answer_is_the_same_to_the_last_digit(tmp_path: Path) -> None:
    answers = [found(0), HOSTILE, found(2)]
    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        for number in (2, 1, 0):
            cache.append([(key(number), answers[number])])
        cache.finish(["expression"], {}, order=map(key, range(3)))
        assert [cache.lookup(sample(number)) for number in range(3)] == answers
        cache.append([(key(3), found(3))])
        assert cache.manifest is None
        cache.finish(["expression"], {})
    opened = DetectionCache.open_complete(tmp_path, IDENTITY)
    assert [opened.lookup(sample(number)) for number in range(4)] == [*answers, found(3)]


@pytest.mark.parametrize("num_written", range(3))
def test_a_disk_that_is_full_at_the_end_loses_nothing(
    num_written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) > num_written:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        for number in range(6):
            cache.append([(key(number), found(number))])
        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(LLMWrapperError, match="No space left"):
            cache.finish(["expression"], {}, rows_per_part=3)
        assert cache.manifest is None
    monkeypatch.undo()
    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        assert all(key(number) in cache for number in range(6))
        cache.finish(["expression"], {}, rows_per_part=3)
    opened = DetectionCache.open_complete(tmp_path, IDENTITY)
    assert [opened.lookup(sample(number)) for number in range(6)] == [found(number) for number in range(6)]
    assert [part.num_rows for part in opened.manifest.parts] == [3, 3]


def test_what_was_set_aside_is_never_overwritten(tmp_path: Path) -> None:
    make(tmp_path)
    for content in (b"first", b"second"):
        (tmp_path / "part-00000.parquet").write_bytes(content)
        with DetectionCache.resume(tmp_path, IDENTITY) as cache:
            if key(0) not in cache:
                cache.append([(key(number), found(number)) for number in (0, 1)])
            cache.finish(["expression"], {}, rows_per_part=2)
    aside = [tmp_path / f"part-00000.parquet.damaged{end}" for end in ("", "-1")]
    assert [path.read_bytes() for path in aside] == [b"first", b"second"]


def test_a_lost_part_is_missing_again(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "part-00002.parquet").unlink()
    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        assert cache.damaged == [tmp_path / "part-00002.parquet"]
        assert [key(number) in cache for number in (1, 4, 5)] == [True, False, False]


@pytest.mark.slow
def test_no_flipped_byte_gives_a_wrong_answer_even_without_manifest(tmp_path: Path) -> None:
    make(tmp_path, parts=1, rows=1)
    (tmp_path / "manifest.json").unlink()
    part = tmp_path / "part-00000.parquet"
    content = part.read_bytes()
    num_set_aside = 0
    for place in range(0, len(content), 31):
        part.write_bytes(content)
        flip(part, place)
        with DetectionCache.resume(tmp_path, IDENTITY) as cache:
            if cache.damaged:
                num_set_aside += 1
                cache.damaged[0].unlink()
            else:
                cache.finish(["expression"], {})
                assert cache.lookup(sample(0)) == found(0), place
                (tmp_path / "manifest.json").unlink()
    assert num_set_aside > 0


@pytest.mark.parametrize(
    "content", ['{"identity": ', "{}", "[]", '"text"'], ids=["cut off", "no fields", "a list", "a text"]
)
def test_a_damaged_manifest_is_named_and_made_again(content: str, tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(CacheError, match=r"manifest\.json is damaged(.|\n)*cache-detections"):
        DetectionCache.open_complete(tmp_path, IDENTITY)
    assert read_folder(tmp_path).has_manifest  # it was filled to its end
    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        assert cache.damaged == []
        assert all(key(number) in cache for number in range(6))
        cache.finish(["expression"], {})
    DetectionCache.open_complete(tmp_path, IDENTITY)


def test_a_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    make(tmp_path / "cache", parts=1)
    precious = tmp_path / "part-00009.parquet"
    precious.write_text("keep")
    manifest = readers.read_json(tmp_path / "cache" / "manifest.json")
    manifest["parts"].append({"name": "../part-00009.parquet", "sha256": "0", "num_rows": 1})
    storage.write_json(tmp_path / "cache" / "manifest.json", manifest)
    with pytest.raises(CacheError, match=r"manifest\.json is damaged"):
        DetectionCache.open_complete(tmp_path / "cache", IDENTITY)
    with DetectionCache.resume(tmp_path / "cache", IDENTITY) as cache:
        assert cache.damaged == []
    assert precious.read_text() == "keep"


def test_a_part_that_may_not_be_read_is_not_set_aside(tmp_path: Path, monkeypatch) -> None:
    make(tmp_path)

    (tmp_path / "manifest.json").unlink()
    monkeypatch.setattr(os, "open", refuse_parts(os.open))
    text = r"\(3 problems\)(.|\n)*part-00000\.parquet cannot be read: Permission denied. Make it a file"
    refused = pytest.raises(CacheError, match=text)
    with refused, DetectionCache.resume(tmp_path, IDENTITY):
        pass
    assert not list(tmp_path.glob("*.damaged"))


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    make(tmp_path)
    leftover = tmp_path / ".part-00003.parquet.0a1b2c3d.tmp"
    leftover.write_bytes(b"half")
    DetectionCache.open_complete(tmp_path, IDENTITY)
    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        assert not leftover.exists()
        assert cache.manifest is not None


def test_a_cache_is_not_written_outside_resume(tmp_path: Path) -> None:
    make(tmp_path)
    cache = DetectionCache.open_complete(tmp_path, IDENTITY)
    with pytest.raises(CacheError, match="not open to add"):
        cache.append([(key(9), found(9))])
    with pytest.raises(CacheError, match="not open to add"):
        cache.finish(["expression"], {})


@pytest.mark.parametrize("numbers", [[1], [9, 9]], ids=["there already", "twice at once"])
def test_two_answers_to_one_question_are_refused(numbers: list[int], tmp_path: Path) -> None:
    make(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with DetectionCache.resume(tmp_path, IDENTITY) as cache, pytest.raises(CacheError, match="two answers"):
        cache.append([(key(number), found(number)) for number in numbers])
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_append_interrupted_after_its_rename_can_be_repeated(tmp_path: Path, monkeypatch) -> None:
    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        with monkeypatch.context() as patch:
            patch.setattr(DetectionCache, "_index", interrupt)
            with pytest.raises(KeyboardInterrupt):
                cache.append([(key(0), found(0))])
        cache.append([(key(0), found(0))])
        cache.finish(["expression"], {})
    assert [path.name for path in tmp_path.glob("part-*")] == ["part-00000.parquet"]
    DetectionCache.open_complete(tmp_path, IDENTITY)


def hold(folder: Path, ready: Any) -> None:
    """Hold a cache in another process until killed."""
    with DetectionCache.resume(folder, IDENTITY):
        ready.set()
        multiprocessing.get_context("spawn").Event().wait()


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    try:
        assert ready.wait(60)
        with pytest.raises(CacheError, match=f"{tmp_path} is in use by process {process.pid}. Wait"):
            make(tmp_path)
    finally:
        process.kill()
        process.join()
    make(tmp_path)
    assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_second_writer_in_the_same_process_is_refused(tmp_path: Path) -> None:
    with DetectionCache.resume(tmp_path, IDENTITY), pytest.raises(CacheError, match=str(os.getpid())):
        make(tmp_path)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="file cannot be used: File exists"):
        make(tmp_path / "file")


def test_the_identity_stands_in_every_part(tmp_path: Path) -> None:
    make(tmp_path)
    for path in tmp_path.glob("part-*.parquet"):
        metadata = read_parquet_table(path).schema.metadata
        assert json.loads(metadata[b"llm_wrapper.identity"]) == IDENTITY
