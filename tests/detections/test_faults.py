"""Whatever is killed, and whenever: the same command resumes, asks nothing twice, and ends with the same rows."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.detections.contents import PART_NAME
from llm_wrapper.detections.fill import fill_cache
from llm_wrapper.detections.maintain import verify_cache
from llm_wrapper.errors import CacheError
from llm_wrapper.readers import read_parquet_table
from tests.detections.faulty import Faulty, Job, Paying, parts, phase, run, split

FREE = {"kind": Faulty, "num_samples": 60}
PAID = {"kind": Paying, "num_samples": 12}
Parts = list[list[dict[str, Any]]]
NUM_QUESTIONS = {Faulty: 60 + 20, Paying: 12 + 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """The parts of a cache that was filled without a fault."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(Job(folder)) == 0
    assert [len(rows) for rows in parts(folder)] == [30, 30, 20]
    return parts(folder)


@pytest.fixture(scope="module")
def paid(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    folder = tmp_path_factory.mktemp("paid")
    assert run(Job(folder, **PAID)) == 0
    assert [len(rows) for rows in parts(folder)] == [6, 6, 4]
    return parts(folder)


def asked(diary: Path) -> Counter[str]:
    """How often each question was asked."""
    lines = diary.read_text().splitlines() if diary.exists() else []
    return Counter(key for line in lines for key in line.split(" ", 1)[1].replace(") (", ")\n(").split("\n"))


def is_sound(folder: Path) -> bool:
    others = {path.name for path in folder.iterdir() if not PART_NAME.fullmatch(path.name)}
    return not verify_cache(folder) and others == {".lock", "manifest.json"}


def test_the_order_of_a_complete_cache_is_that_of_the_questions(whole: Parts) -> None:
    rows = [row for part in whole for row in part]
    assert [(row["image_id"], row["sample_id"]) for row in rows[:5]] == [
        ("image0", "s0"),
        ("image0", None),
        ("image0", "s20"),
        ("image0", "s40"),
        ("image1", "s1"),
    ]
    assert len(rows) == NUM_QUESTIONS[Faulty]


def test_parts_that_have_their_form_are_not_written_again(tmp_path: Path) -> None:
    fill_cache(Faulty(), split(), tmp_path, images_per_batch=5, rows_per_part=20, progress=False)
    made = {path.name: path.stat().st_ino for path in tmp_path.glob("part-*")}
    assert len(made) == 4
    (tmp_path / "manifest.json").unlink()
    fill_cache(Faulty(), split(), tmp_path, images_per_batch=5, rows_per_part=20, progress=False)
    assert {path.name: path.stat().st_ino for path in tmp_path.glob("part-*")} == made


def kill_everywhere(folder: Path, whole: Parts, job: dict[str, Any]) -> Counter[str]:
    """Kill a filling at each of its steps, resume it, and compare; return where the kills hit."""
    hits: Counter[str] = Counter()
    num_questions = NUM_QUESTIONS[job["kind"]]
    for number in range(1, 1000):
        cache, diary = folder / str(number), folder / f"{number}.txt"
        if run(Job(cache, kill_at=number, diary=diary, **job)) == 0:
            assert parts(cache) == whole
            return hits
        where = phase(cache)
        hits[where] += 1
        assert run(Job(cache, diary=diary, **job)) == 0
        assert parts(cache) == whole, number
        assert is_sound(cache), number
        assert len(asked(diary)) == num_questions
        num_twice = asked(diary).total() - num_questions
        assert num_twice == 0 or where not in ("rewriting", "finished"), number
        assert num_twice <= 1 or job["kind"] is not Paying, number
    raise AssertionError("the filling never ended")


@pytest.mark.slow
def test_a_kill_at_any_step_loses_nothing(whole: Parts, tmp_path: Path) -> None:
    hits = kill_everywhere(tmp_path, whole, FREE)
    print(dict(hits))
    assert set(hits) == {"before the first part", "between parts", "rewriting", "finished"}
    assert hits["rewriting"] >= 5


@pytest.mark.slow
def test_a_kill_at_any_step_loses_at_most_one_paid_answer(paid: Parts, tmp_path: Path) -> None:
    hits = kill_everywhere(tmp_path, paid, PAID)
    print(dict(hits))
    assert hits["between parts"] >= 2 * NUM_QUESTIONS[Paying] - 3
    assert hits["rewriting"] >= NUM_QUESTIONS[Paying] / 2


@pytest.mark.slow
def test_a_kill_of_a_resumed_filling_loses_nothing(whole: Parts, tmp_path: Path) -> None:
    """Resume, and be killed at each step of that, again and again in one folder."""
    seen: Counter[str] = Counter()
    number = 1
    while run(Job(tmp_path, kill_at=number)) != 0:
        seen[phase(tmp_path)] += 1
        # The same step again, unless that leads nowhere.
        number += seen.total() % 3 == 0
    assert parts(tmp_path) == whole
    assert is_sound(tmp_path)
    assert seen.total() > 10


def kill_at_random(folder: Path, whole: Parts, num_kills: int, job: dict[str, Any]) -> Counter[str]:
    """Kill fillings at random moments, resume each, and compare those that end; return where the kills hit."""
    moments, hits, number = random.Random(num_kills), Counter[str](), 0
    started = time.monotonic()
    assert run(Job(folder / "uninterrupted", seconds=0.002, **job)) == 0
    longest = 1.2 * (time.monotonic() - started)
    while hits.total() < num_kills:
        cache = folder / str(number)
        if run(Job(cache, seconds=0.002, **job), kill_after=moments.uniform(0.0, longest)):
            hits[phase(cache)] += 1
        else:
            assert parts(cache) == whole
            assert is_sound(cache)
            number += 1
    assert run(Job(folder / str(number), **job)) == 0
    assert parts(folder / str(number)) == whole
    assert is_sound(folder / str(number))
    return hits


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(whole: Parts, tmp_path: Path) -> None:
    print(dict(kill_at_random(tmp_path, whole, 5, FREE)))


@pytest.mark.slow
@pytest.mark.parametrize("job", [FREE, PAID], ids=["batches", "one paid answer at a time"])
def test_fifty_kills_at_random_moments_lose_nothing(
    job: dict[str, Any], whole: Parts, paid: Parts, tmp_path: Path
) -> None:
    print(dict(kill_at_random(tmp_path, paid if job is PAID else whole, 50, job)))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "is_finished"),
    [(flip, True), (cut, False), (Path.unlink, True)],
    ids=["flipped-finished", "cut-begun", "lost-finished"],
)
def test_a_part_that_is_damaged_on_disk_is_made_again(
    damage: Callable[[Path], None], is_finished: bool, paid: Parts, tmp_path: Path
) -> None:
    diary = tmp_path / "diary.txt"
    folder = tmp_path / "cache"
    run(Job(folder, kill_at=None if is_finished else 20, diary=diary, **PAID))
    damaged = sorted(folder.glob("part-*.parquet"))[1]
    num_rows = read_parquet_table(damaged).num_rows
    damage(damaged)
    num_asked = asked(diary).total()
    assert run(Job(folder, diary=diary, **PAID)) == 0
    assert parts(folder) == paid
    assert not verify_cache(folder)
    num_lost = num_rows + (not is_finished)
    assert asked(diary).total() == NUM_QUESTIONS[Paying] + num_lost
    assert asked(diary).total() - num_asked == num_rows if is_finished else num_asked < NUM_QUESTIONS[Paying]
    assert folder.joinpath(f"{damaged.name}.damaged").exists() == (damage is not Path.unlink)


@pytest.mark.parametrize("num_moved", [0, 2, None], ids=["before", "behind", "half-written"])
def test_a_rewriting_by_an_earlier_version_is_finished_by_the_command(
    num_moved: int | None, paid: Parts, tmp_path: Path
) -> None:
    """It wrote whole parts into `.final/`, a manifest last, and then replaced the old parts one by one."""
    folder, whole, staged = tmp_path / "cache", tmp_path / "whole", tmp_path / "cache" / ".final"
    job: dict[str, Any] = {"images_per_batch": 2, "progress": False}
    fill_cache(Paying(), split(12), whole, rows_per_part=1, **job)
    folder.mkdir()
    for path in sorted(whole.glob("part-*"))[:9]:
        shutil.copy(path, folder / path.name)
    fill_cache(Paying(), split(12), whole, rows_per_part=6, overwrite=True, **job)
    staged.mkdir()
    if num_moved is None:
        (staged / "part-00000.parquet").write_bytes(b"half")
    else:
        for number, path in enumerate(sorted(whole.glob("part-*"))):
            path.replace((folder if number < num_moved else staged) / f"part-{number:05d}.parquet")
        (whole / "manifest.json").rename(staged / "manifest.json")
    detector = Paying(diary=tmp_path / "diary.txt")
    with pytest.raises(CacheError, match="by an earlier version") as caught:
        fill_cache(detector, split(12), folder, rows_per_part=6, **job)
    subprocess.run(str(caught.value).split("`")[1], shell=True, check=True)
    fill_cache(detector, split(12), folder, rows_per_part=6, **job)
    assert parts(folder) == paid
    assert is_sound(folder)
    assert asked(tmp_path / "diary.txt").total() == (NUM_QUESTIONS[Paying] - 9 if num_moved is None else 0)


def test_what_somebody_put_into_the_folder_meanwhile_is_not_removed(tmp_path: Path) -> None:
    """Only parts that the cache has read are ever removed."""
    detector, more = Faulty(), tmp_path / "part-00099.parquet"
    answer = detector.detect

    def watched(*args, **options):
        more.write_bytes(b"mine")
        return answer(*args, **options)

    detector.detect = watched  # type: ignore[method-assign]
    fill_cache(detector, split(), tmp_path, images_per_batch=2, rows_per_part=30, progress=False)
    assert more.read_bytes() == b"mine"
