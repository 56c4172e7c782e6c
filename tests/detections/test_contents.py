"""Every damage of a cache folder is found, named, and repaired by the command in the message."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper import readers, storage
from llm_wrapper.detections.cache import DetectionCache, read_folder
from llm_wrapper.detections.contents import count_answers, fill_command
from llm_wrapper.detections.maintain import merge_caches
from llm_wrapper.errors import CacheError
from tests.detections.test_cache import COMMAND, DAMAGES, IDENTITY, found, key, make, write_part

NUM_ANSWERS = 6
AGAIN = f"Run `{COMMAND}`: it computes again only what is lost."


def told(folder: Path) -> list[str]:
    return [problem.text for problem in read_folder(folder).problems]


def edit_manifest(folder: Path, **changes: Any) -> None:
    manifest = readers.read_json(folder / "manifest.json")
    storage.write_json(folder / "manifest.json", {**manifest, **changes})


def test_a_whole_cache_has_no_problem(tmp_path: Path) -> None:
    make(tmp_path)
    contents = read_folder(tmp_path)
    assert (contents.problems, contents.identity, contents.has_manifest) == ((), IDENTITY, True)
    assert contents.keys == {key(number) for number in range(NUM_ANSWERS)}
    assert contents.command == COMMAND
    assert count_answers(contents.parts) == {
        "num_rows": NUM_ANSWERS,
        "num_images": NUM_ANSWERS,
        "num_detections": NUM_ANSWERS,
        "num_dropped": sum(range(NUM_ANSWERS)),
    }


def test_a_cache_without_manifest_is_begun_not_damaged(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "manifest.json").unlink()
    contents = read_folder(tmp_path)
    assert (contents.problems, contents.manifest, contents.has_manifest) == ((), None, False)
    assert contents.identity == IDENTITY


@pytest.mark.parametrize(
    ("damage", "has_manifest"),
    [*((damage, has_manifest) for damage in DAMAGES for has_manifest in (True, False)), (Path.unlink, True)],
)
def test_each_damage_is_named(damage: Callable[[Path], None], has_manifest: bool, tmp_path: Path) -> None:
    make(tmp_path)
    damage(tmp_path / "part-00001.parquet")
    if not has_manifest:
        (tmp_path / "manifest.json").unlink()
    (problem,) = read_folder(tmp_path).problems
    assert str(tmp_path / "part-00001.parquet") in problem.text
    assert problem.remedy == AGAIN


def test_a_part_that_the_manifest_does_not_know_is_named(tmp_path: Path) -> None:
    make(tmp_path)
    write_part(tmp_path / "part-00009.parquet", [(key(50), found(50))], IDENTITY)
    assert told(tmp_path) == [f"{tmp_path / 'part-00009.parquet'} is not in the manifest"]


def test_a_part_that_was_written_again_is_not_what_the_manifest_knows(tmp_path: Path) -> None:
    make(tmp_path)
    path = tmp_path / "part-00002.parquet"
    write_part(path, [(key(4), found(5)), (key(5), found(4))], IDENTITY)
    (text,) = told(tmp_path)
    assert text.startswith(f"{path} is damaged: its sha256 is ")


def test_repeated_answers_are_counted(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "manifest.json").unlink()
    path = tmp_path / "part-00003.parquet"
    answers = [(key(number), found(number)) for number in (4, 50, 51, 51)]
    write_part(path, [(key(1), found(2)), *answers], IDENTITY)
    expected = "has a second answer to what is answered already: sample 's1' of image 'image1' and 1 more"
    assert told(tmp_path) == [f"{path} {expected}"]


def test_an_image_answer_is_told_by_its_image(tmp_path: Path) -> None:
    for number in (0, 1):
        write_part(tmp_path / f"part-0000{number}.parquet", [(("image5", None), found(number))], IDENTITY)
    assert told(tmp_path)[0].endswith("answered already: image 'image5'")


def test_a_part_of_another_cache_is_told_with_all_differences(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "manifest.json").unlink()
    path = tmp_path / "part-00003.parquet"
    settings = {**IDENTITY["settings"], "threshold": 0.5}
    write_part(path, [(key(50), found(50))], {**IDENTITY, "split": "test", "settings": settings})
    (problem,) = read_folder(tmp_path).problems
    assert problem.text.startswith(f"{path} is not of the same detector and data as the others: ")
    assert 'settings.threshold: 0.5 in this part, 0.25 in the others; split: "test" in this' in problem.text
    assert problem.remedy == f"Move it to another folder and run `{COMMAND}`."
    assert read_folder(tmp_path).keys == {key(number) for number in range(NUM_ANSWERS)}


@pytest.mark.parametrize("name", ["num_rows", "num_images", "num_detections", "num_dropped"])
def test_counts_of_the_manifest_are_checked(name: str, tmp_path: Path) -> None:
    make(tmp_path)
    number = readers.read_json(tmp_path / "manifest.json")[name]
    edit_manifest(tmp_path, **{name: 77})
    (problem,) = read_folder(tmp_path).problems
    assert problem.text == f"{tmp_path / 'manifest.json'} says {name}=77, but its parts hold {number}"
    assert problem.remedy == AGAIN
    with DetectionCache.resume(tmp_path, IDENTITY) as cache:
        assert all(key(answer) in cache for answer in range(NUM_ANSWERS))
        cache.finish(["expression"], {})
    assert read_folder(tmp_path).problems == ()


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    make(tmp_path / "a", parts=4)
    (tmp_path / "a" / "part-00000.parquet").write_bytes(b"")
    (tmp_path / "a" / "part-00002.parquet").unlink()
    make(tmp_path / "b")
    (tmp_path / "b" / "part-00001.parquet").unlink()
    assert len(told(tmp_path / "a")) == 2
    with pytest.raises(CacheError) as caught:
        merge_caches(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    message = str(caught.value)
    assert message.startswith("not all of these detections can be used (3 problems):")
    for name in ("a/part-00000", "a/part-00002", "b/part-00001"):
        assert str(tmp_path / name) in message
    assert message.count(AGAIN) == 3


@pytest.mark.parametrize("name", ["absent", "empty", "file"])
def test_a_folder_without_a_cache_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=rf"{name} holds no detections. Name a folder like data/detections/"):
        read_folder(tmp_path / name)


@pytest.mark.parametrize(
    ("folder", "data"),
    [
        ("detections/toy/stripes/val", "stripes"),
        ("detections/toy/stripes/test", "<recipe of zebras>"),
        ("detections/mine/stripes/val", "<recipe of zebras>"),
        ("val", "<recipe of zebras>"),
    ],
    ids=["usual place", "another split", "another detector", "anywhere"],
)
def test_the_recipe_of_a_data_set_is_known_from_the_place_of_its_cache(
    folder: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"llm-wrapper cache-detections --vlm toy --data {data} --split val"
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / folder, Path(folder)):
        assert fill_command(IDENTITY, place) == command
    with pytest.raises(CacheError, match=re.escape(f"Run `{command}`")):
        DetectionCache.open_complete(tmp_path / folder, IDENTITY)


def test_what_is_not_known_of_a_command_is_left_blank(tmp_path: Path) -> None:
    unknown = "llm-wrapper cache-detections --vlm <detector> --data <recipe of dataset> --split <split>"
    assert fill_command(None, tmp_path) == unknown
    (tmp_path / "part-00000.parquet").write_bytes(b"")
    (problem,) = read_folder(tmp_path).problems
    assert "--vlm <detector>" in problem.remedy
