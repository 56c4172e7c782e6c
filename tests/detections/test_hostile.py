"""Caches that somebody else made: named and refused, and nothing outside their folder is touched."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_wrapper import readers, storage
from llm_wrapper.detections import maintain
from llm_wrapper.detections.cache import DetectionCache
from llm_wrapper.detections.contents import PART_SCHEMA, DamagedPartError, read_part, write_rows
from llm_wrapper.detections.samples import cache_folder
from llm_wrapper.errors import CacheError, RecipeError
from llm_wrapper.recipe import DataSection
from llm_wrapper.records import Box, Detection, Detections
from llm_wrapper.storage import locked
from tests.detections.test_cache import IDENTITY, key, sample

BOX = {"x0": 0.0, "y0": 0.0, "x1": 5.0, "y1": 5.0}
PART = "part-00000.parquet"


def make(folder: Path) -> Path:
    """Make a complete cache of three answers."""
    answer = Detections((Detection(Box(*BOX.values()), "cat", 0.5, "od"),))
    with DetectionCache.resume(folder, IDENTITY) as cache:
        cache.append([(key(number), answer) for number in range(3)])
        cache.finish(["expression"], {})
    return folder


def row(number: int, *items: dict[str, Any], **values: Any) -> dict[str, Any]:
    image_id, sample_id = key(number)
    return {"image_id": image_id, "sample_id": sample_id, "items": list(items), "num_dropped": 0, **values}


def item(box: dict[str, float] | None = None, **values: Any) -> dict[str, Any]:
    return {"box": {**BOX, **(box or {})}, "label": "cat", "score": 0.5, "source": "od", **values}


def forge(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Replace the part of a cache, so that the manifest's digest and counts fit it."""
    write_rows(folder / PART, rows, IDENTITY)
    manifest = readers.read_json(folder / "manifest.json")
    digest = hashlib.sha256((folder / PART).read_bytes()).hexdigest()
    manifest["parts"] = [{"name": PART, "sha256": digest, "num_rows": len(rows)}]
    manifest |= {"num_rows": len(rows), "num_images": len(rows)}
    manifest |= {"num_detections": sum(len(each["items"]) for each in rows)}
    manifest |= {"num_dropped": sum(each["num_dropped"] for each in rows)}
    storage.write_json(folder / "manifest.json", manifest)


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        pytest.param([row(0), row(1, item({"x0": math.nan}))], "row 1: box", id="nan"),
        pytest.param([row(0, item(), item({"x1": -9.0}))], "row 0: box", id="reversed"),
        pytest.param([row(0), row(1), row(2, item(), item({"y1": 0.0}))], "row 2: box", id="no-area"),
        pytest.param([row(0, item({"x1": math.inf}))], "row 0: box", id="infinite"),
        pytest.param([row(0, item({"x0": -math.inf}))], "row 0: box", id="infinite-left"),
        pytest.param([row(0, item()), row(1, item(score=math.nan))], "row 1: score nan", id="score-nan"),
        pytest.param([row(0, item(score=math.inf))], "row 0: score inf", id="score-infinite"),
        pytest.param([row(0), row(1, num_dropped=-3)], "row 1: -3", id="dropped-negative"),
        pytest.param([row(0, num_dropped=2**62), row(1, num_dropped=2**62)], "row 0: ", id="dropped-overflow"),
    ],
)
def test_rows_that_no_detector_gives_are_named(rows: list[dict[str, Any]], named: str, tmp_path: Path) -> None:
    forge(make(tmp_path), rows)
    (problem,) = maintain.verify_cache(tmp_path)
    assert problem.text.startswith(f"{tmp_path / PART} is damaged: {named}")
    with pytest.raises(CacheError, match=PART):
        DetectionCache.open_complete(tmp_path, IDENTITY)
    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        assert cache.damaged == [tmp_path / f"{PART}.damaged"]
        assert key(0) not in cache


def test_rows_that_a_detector_gives_pass(tmp_path: Path) -> None:
    rows = [
        row(0),
        row(1, item(score=None), item({"x0": -1e300, "x1": 1e300})),
        row(2, item(label="", score=1.0000001)),
    ]
    forge(make(tmp_path), rows)
    assert maintain.verify_cache(tmp_path) == []
    assert len(DetectionCache.open_complete(tmp_path, IDENTITY).lookup(sample(1)).items) == 2


def change(folder: Path, **values: Any) -> None:
    manifest = readers.read_json(folder / "manifest.json")
    (folder / "manifest.json").write_text(json.dumps({**manifest, **values}))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        pytest.param({"levels": []}, "levels", id="no-level"),
        pytest.param({"levels": ["image"]}, "levels", id="levels-without-answers"),
        pytest.param({"levels": ["expression"] * 3}, "levels", id="a-level-again-and-again"),
        pytest.param({"levels": ["video"]}, "levels", id="unknown-level"),
        pytest.param({"parts": [{"name": PART, "sha256": "0", "num_rows": 3}]}, "sha256", id="digest"),
        pytest.param({"parts": []}, "not in the manifest", id="a-part-more"),
        pytest.param({"identity": []}, "identity", id="identity-a-list"),
        pytest.param({"recorded": "float16"}, "recorded", id="recorded-a-text"),
        pytest.param({"num_rows": 10**400}, "digits", id="a-number-of-400-digits"),
        pytest.param({"versions": None}, "versions", id="no-versions"),
    ],
)
def test_a_manifest_that_is_wrong_is_named_by_verify_and_refused(
    values: dict[str, Any], named: str, tmp_path: Path
) -> None:
    change(make(tmp_path), **values)
    problems = maintain.verify_cache(tmp_path)
    assert named in problems[0].text
    assert len(problems[0].text) < 1000
    with pytest.raises(CacheError, match=named):
        DetectionCache.open_complete(tmp_path, IDENTITY)


def test_a_part_with_another_number_of_rows_is_named(tmp_path: Path) -> None:
    make(tmp_path)
    manifest = readers.read_json(tmp_path / "manifest.json")
    change(tmp_path, parts=[{**manifest["parts"][0], "num_rows": 7}])
    assert "has 7 rows, but it has 3" in maintain.verify_cache(tmp_path)[0].text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * 100_000, id="deep"),
        pytest.param('{"identity": ' * 100_000 + "1" + "}" * 100_000, id="deep-objects"),
        pytest.param('{"identity": {}, "identity": {}}', id="repeated-key"),
        pytest.param('{"num_rows": ' + "9" * 5000 + "}", id="digits"),
        pytest.param('{"num_rows": NaN}', id="nan"),
        pytest.param("\ufeff" + "x" * 5000, id="letters"),
    ],
)
def test_a_manifest_that_is_a_bomb_is_a_problem_of_the_cache(text: str, tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CacheError, match=r"manifest\.json"):
        DetectionCache.open_complete(tmp_path, IDENTITY)
    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        assert key(2) in cache
        cache.finish(["expression"], {})


@pytest.mark.parametrize("name", [PART, "manifest.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "dangling"])
def test_what_is_no_file_never_blocks(kind: str, name: str, tmp_path: Path) -> None:
    path = make(tmp_path) / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CacheError, match=name):
        DetectionCache.open_complete(tmp_path, IDENTITY)


def test_an_identity_that_is_no_object_is_damage(tmp_path: Path) -> None:
    metadata = {b"llm_wrapper.identity": b"[]", b"llm_wrapper.identity_sha256": storage.digest_value([]).encode()}
    storage.write_parquet(tmp_path / PART, [row(0)], PART_SCHEMA.with_metadata(metadata))
    with pytest.raises(DamagedPartError, match="identity"):
        read_part(tmp_path / PART)


@pytest.mark.parametrize("recorded", [b"[", b"7", b'["x"]', b"[" * 100_000, b"\xff"], ids=repr)
def test_recorded_facts_that_are_none_are_damage(recorded: bytes, tmp_path: Path) -> None:
    text = storage.canonical(IDENTITY).encode()
    digest = storage.digest_value(IDENTITY).encode()
    metadata = {
        b"llm_wrapper.identity": text,
        b"llm_wrapper.identity_sha256": digest,
        b"llm_wrapper.recorded": recorded,
    }
    storage.write_parquet(tmp_path / PART, [row(0)], PART_SCHEMA.with_metadata(metadata))
    with pytest.raises(DamagedPartError, match="how its answers were computed"):
        read_part(tmp_path / PART)


def test_a_label_that_is_not_utf8_is_damage(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([row(0, item(label="ab"))], schema=PART_SCHEMA)
    metadata = {b"llm_wrapper.identity": b"{}", b"llm_wrapper.identity_sha256": storage.digest_value({}).encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="none", use_dictionary=False)
    (tmp_path / PART).write_bytes(sink.getvalue().to_pybytes().replace(b"\x02\0\0\0ab", b"\x02\0\0\0\xff\xfe"))
    with pytest.raises(DamagedPartError, match="UTF"):
        read_part(tmp_path / PART)


def outside(folder: Path) -> Callable[[], bool]:
    """Make a file beside a cache, and return a function that tells whether it is still what it was."""
    precious = folder / "precious.txt"
    precious.parent.mkdir(parents=True, exist_ok=True)
    precious.write_text("keep")
    return lambda: precious.is_file() and precious.read_text() == "keep"


def test_a_link_to_the_parts_of_another_cache_moves_nothing(tmp_path: Path) -> None:
    other, own = make(tmp_path / "other"), make(tmp_path / "own")
    (own / ".final").symlink_to(other)
    before = sorted(path.name for path in other.iterdir())
    with pytest.raises(CacheError, match=rf"by an earlier version\. Nothing was changed; run `rm -rf {own}/\.final`$"):
        make(own)
    assert sorted(path.name for path in other.iterdir()) == before


@pytest.mark.parametrize("kind", ["file", "link", "pipe", "folder"])
def test_what_no_filling_left_behind_moves_nothing(kind: str, tmp_path: Path) -> None:
    """Such as a file in the place of staged parts, or a link, a pipe or a folder in the place of one of them."""
    is_kept, cache = outside(tmp_path), make(tmp_path / "cache")
    staged, part = cache / ".final", cache / ".final" / PART
    if kind == "file":
        staged.write_text("")
    else:
        staged.mkdir()
        if kind == "link":
            part.symlink_to(tmp_path / "precious.txt")
        elif kind == "pipe":
            os.mkfifo(part)
        else:
            part.mkdir()
    before = sorted(cache.rglob("*"))
    with pytest.raises(CacheError, match=rf"by an earlier version\. Nothing was changed; run `rm -rf {staged}`$"):
        make(cache)
    assert sorted(cache.rglob("*")) == before
    assert is_kept()


def test_overwrite_removes_what_an_earlier_version_staged_and_follows_no_link(tmp_path: Path) -> None:
    is_kept, cache = outside(tmp_path), make(tmp_path / "cache")
    (cache / ".final").mkdir()
    (cache / ".final" / PART).symlink_to(tmp_path / "precious.txt")
    with DetectionCache.resume(cache, IDENTITY, overwrite=True):
        pass
    assert not (cache / ".final").exists()
    assert is_kept()


def test_a_lock_that_is_a_link_empties_nothing(tmp_path: Path) -> None:
    is_kept = outside(tmp_path)
    (make(tmp_path / "cache") / ".lock").unlink()
    (tmp_path / "cache" / ".lock").symlink_to(tmp_path / "precious.txt")
    with pytest.raises(CacheError, match=r"\.lock is a link"):
        make(tmp_path / "cache")
    assert is_kept()


@pytest.mark.parametrize("kind", ["dangling", "folder", "pipe"])
def test_a_lock_that_is_no_file_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    if kind == "dangling":
        path.symlink_to(tmp_path / "made")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(CacheError, match=r"\.lock is a link or a folder"), locked(tmp_path):
        pass
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"", b"x" * 5000, b"12 34"], ids=["bytes", "empty", "long", "two"]
)
def test_a_held_lock_with_odd_bytes_is_a_sentence(content: bytes, tmp_path: Path) -> None:
    with locked(tmp_path):
        (tmp_path / ".lock").write_bytes(content)
        with pytest.raises(CacheError, match="in use by process unknown"), locked(tmp_path):
            pass
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


@pytest.mark.parametrize("name", [".x.tmp", "part-00001.parquet"])
def test_a_folder_where_files_are_removed_is_named(name: str, tmp_path: Path) -> None:
    (make(tmp_path) / name).mkdir()
    with (
        pytest.raises(CacheError, match="cannot be removed"),
        DetectionCache.resume(tmp_path, IDENTITY, overwrite=True),
    ):
        pass


@pytest.mark.parametrize("name", ["..", "../../etc", "/etc", ".hidden", "a/b", "a\\b", "x" * 5000, "con", "", "a\0b"])
@pytest.mark.parametrize("place", ["detector", "data", "split"])
def test_no_name_leads_out_of_the_folder_of_caches(place: str, name: str) -> None:
    names = {"detector": "toy", "data": "mine", "split": "val", place: name}
    data = DataSection.model_construct(name=names["data"], reader="jsonl")
    with pytest.raises(RecipeError, match="folder"):
        cache_folder(names["detector"], data, names["split"])


def test_a_command_that_is_suggested_is_one_word_a_name(tmp_path: Path) -> None:
    identity = {**IDENTITY, "detector": "toy; rm -rf ~", "split": "$(reboot)", "dataset": 7}
    with DetectionCache.resume(tmp_path, identity) as cache:
        cache.append([(key(0), Detections(()))])
    (problem,) = maintain.verify_cache(tmp_path)
    assert "--vlm 'toy; rm -rf ~'" in problem.remedy
    assert "--split '$(reboot)'" in problem.remedy
