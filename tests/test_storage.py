""""""

from __future__ import annotations

import errno
import json
import os
import platform
import stat
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_wrapper import readers, storage
from llm_wrapper.errors import DataError, LLMWrapperError, RecipeError
from llm_wrapper.readers import read_parquet_table

SCHEMA = pa.schema([("name", pa.string()), ("score", pa.float64())], metadata={"who": "test"})
ROWS = [
    {"name": "zebra\nsecond line", "score": 0.1},
    {"name": "Hündin 🐕", "score": None},
    {"name": "", "score": 1e-300},
]


def fail_with(code: int):
    def fail(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    return fail


def test_write_atomic_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text"
    storage.write_atomic(path, "grün")
    assert path.read_bytes() == "grün".encode()
    storage.write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["text"]


def test_write_atomic_gives_the_permissions_of_an_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_text("")
    storage.write_atomic(tmp_path / "ours", "")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "ours")}
    assert len(modes) == 1


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_full_disk_names_the_path_and_keeps_the_old_file(call: str, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    owner = Path if call == "open" else os
    monkeypatch.setattr(owner, call, fail_with(errno.ENOSPC))
    with pytest.raises(
        LLMWrapperError, match=r"result\.json was not written \(3 bytes\).*No space.*Free space"
    ) as caught:
        storage.write_atomic(path, "new")
    assert isinstance(caught.value.__cause__, OSError)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_full_disk_leaves_no_new_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", fail_with(errno.ENOSPC))
    with pytest.raises(LLMWrapperError):
        storage.write_parquet(tmp_path / "new.parquet", ROWS, SCHEMA)
    assert os.listdir(tmp_path) == []


def test_an_interrupt_while_writing_leaves_no_temporary_file(tmp_path: Path, monkeypatch) -> None:
    def interrupt(_descriptor: int) -> None:
        assert [path.name for path in tmp_path.glob(storage.TEMPORARY)] == os.listdir(tmp_path) != []
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        storage.write_atomic(tmp_path / "x", "x")
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LLMWrapperError, match=r"file/x was not written.*choose another"):
        storage.write_atomic(tmp_path / "file" / "x", "x")


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": "Hündin\n🐕"}
    storage.write_json(tmp_path / "x.json", value)
    assert readers.read_json(tmp_path / "x.json") == value
    assert "Hündin" in (tmp_path / "x.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "error"), [(float("nan"), ValueError), ({"x": Path("x")}, TypeError)], ids=["nan", "not json"]
)
def test_json_refuses_what_it_cannot_say(value: object, error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error):
        storage.write_json(tmp_path / "x.json", value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("read", [readers.read_json, storage.digest])
def test_a_missing_file_is_named(read, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert storage.digest(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(DataError, match=r"absent cannot be read: No such file"):
        read(tmp_path / "absent")


def test_digest_value_ignores_the_order_of_keys_and_nothing_else() -> None:
    base = storage.digest_value({"a": 1, "b": [1, 2]})
    assert storage.digest_value({"b": (1, 2), "a": 1}) == base
    assert storage.digest_value({"a": 1, "b": [2, 1]}) != base
    assert storage.digest_value({"a": "1", "b": [1, 2]}) != base
    assert storage.canonical({"b": "ü", "a": None}) == '{"a":null,"b":"\\u00fc"}'
    with pytest.raises(ValueError, match="JSON"):
        storage.digest_value(float("inf"))


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        pytest.param({}, True, id="nothing"),
        pytest.param({"model.safetensors": b"longer"}, False, id="weights"),
        pytest.param({"config.json": b"[]"}, False, id="settings"),
        pytest.param({"README.md": b"x"}, True, id="a-page"),
    ],
)
def test_a_model_is_known_again_by_its_settings_and_weights(
    tmp_path: Path, change: dict[str, bytes], is_same: bool
) -> None:
    for name, content in {"config.json": b"{}", "model.safetensors": b"abc"}.items():
        (tmp_path / name).write_bytes(content)
    before = storage.digest_model(str(tmp_path))
    for name, content in change.items():
        (tmp_path / name).write_bytes(content)
    assert (storage.digest_model(str(tmp_path)) == before) == is_same


def test_weights_of_the_same_size_count_by_their_time(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"abc")
    before = storage.digest_model(f"gguf:{path}")
    os.utime(path, (1, 1))
    assert storage.digest_model(f"gguf:{path}") not in (before, None)


@pytest.mark.parametrize("name", [None, "", "owner/no-such-model", "a" * 5000, "a\0b"])
def test_what_is_no_local_model_has_no_digest(name: str | None) -> None:
    assert storage.digest_model(name) is None


def test_versions_are_those_installed(monkeypatch) -> None:
    monkeypatch.setattr(storage, "_PACKAGES", ("pyarrow", "no-such-package-here"))
    found = storage.versions()
    assert sorted(found) == ["llm-wrapper", "pyarrow", "python"]
    assert (found["python"], found["pyarrow"]) == (platform.python_version(), pa.__version__)
    json.dumps(found)


def git(folder: Path, *words: str) -> str:
    names = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *names, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_git_revision_of_a_clean_and_a_dirty_tree(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    git(tmp_path, "init")
    (tmp_path / "x.py").write_text("1")
    assert storage.git_revision(tmp_path) is None
    git(tmp_path, "add", "x.py")
    git(tmp_path, "commit", "-m", "first")
    git(tmp_path, "tag", "v1")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert storage.git_revision(tmp_path) == head
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "y.py").write_text("")
    assert storage.git_revision(tmp_path / "installed") is None
    (tmp_path / "x.py").write_text("2")
    assert storage.git_revision(tmp_path) == f"{head}-dirty"


@pytest.mark.parametrize("case", ["no repository", "no folder", "no git"])
def test_git_revision_never_raises(case: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if case == "no git":
        git(tmp_path, "init")
        monkeypatch.setenv("PATH", "")
    assert storage.git_revision(tmp_path / "absent" if case == "no folder" else tmp_path) is None


def test_parquet_round_trip(tmp_path: Path) -> None:
    storage.write_parquet(tmp_path / "empty.parquet", [], SCHEMA)
    assert read_parquet_table(tmp_path / "empty.parquet").schema.names == ["name", "score"]
    storage.write_parquet(tmp_path / "x.parquet", iter(ROWS), SCHEMA)
    assert read_parquet_table(tmp_path / "x.parquet").to_pylist() == ROWS
    assert pq.read_schema(tmp_path / "x.parquet").metadata[b"who"] == b"test"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"name": "x", "score": 0.5, "colour": "red"}, "no column for colour; its columns are name, score"),
        ({"name": "x", "score": "high"}, "does not fit"),
        ({"name": 3, "score": 0.5}, "does not fit"),
        ({"name": "\ud800", "score": 0.5}, "does not fit"),
    ],
    ids=["unknown column", "text for number", "number for text", "lone surrogate"],
)
def test_parquet_refuses_rows_that_do_not_fit(row: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        storage.write_parquet(tmp_path / "x.parquet", [row], SCHEMA)
    assert os.listdir(tmp_path) == []


def test_parquet_refuses_null_where_it_is_not_allowed(tmp_path: Path) -> None:
    schema = pa.schema([pa.field("name", pa.string(), nullable=False)])
    with pytest.raises(DataError, match="does not fit"):
        storage.write_parquet(tmp_path / "x.parquet", [{"name": None}], schema)


@pytest.mark.parametrize("keep", [0, 3, 40, -1], ids=["empty", "magic", "head", "last byte"])
def test_a_cut_off_parquet_file_is_named(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    storage.write_parquet(path, ROWS, SCHEMA)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"x\.parquet is damaged or cut off"):
        read_parquet_table(path)


def test_a_flipped_byte_in_the_data_is_found_by_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    storage.write_parquet(path, [{"name": "unique words", "score": 0.5}], SCHEMA)
    content = bytearray(path.read_bytes())
    place = content.index(b"unique")
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.parquet is damaged"):
        read_parquet_table(path)


# names that become paths


@pytest.mark.parametrize("name", ["refcocog", "flo2+gdrec", "import-mine.v2", "testA", "+", "-x", "a..b", "données"])
def test_plain_names_are_taken(name: str) -> None:
    assert storage.folder_name(name, "data.name") == name


ELSEWHERE = ["", ".", "..", "../a", "a/b", "/etc", "a\\b", "~", "a b", "a\n", "a\0b", ".a", "a\ud800", "nul"]


@pytest.mark.parametrize("name", [*ELSEWHERE, "é" * 76, "x" * 151])
def test_what_could_lead_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"data\.name"):
        storage.folder_name(name, "data.name")


@pytest.mark.parametrize("path", ["../b", "/etc/passwd", "link/b", "a/../../b", "a\0b"])
def test_paths_do_not_leave_their_root(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match="root"):
        storage.inside(root, path)


@pytest.mark.parametrize("path", ["b.txt", "a/../b.txt", "a/b.txt", "."])
def test_paths_under_their_root_are_taken(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    assert storage.inside(root, path) == (root / path).resolve()
    assert storage.inside(root, root / "a") == (root / "a").resolve()


@pytest.mark.parametrize("root", ["runs/a", ".", "./runs"], ids=["relative", "here", "dotted"])
def test_a_path_that_begins_with_a_relative_root_is_under_it(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.inside(Path(root), Path(root) / "x.json") == tmp_path / root / "x.json"
    assert storage.inside(Path(root), "x.json") == tmp_path / root / "x.json"
    with pytest.raises(DataError, match="lies outside"):
        storage.inside(Path(root), Path(root) / ".." / ".." / ".." / "x.json")
