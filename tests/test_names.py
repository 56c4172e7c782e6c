"""Words that become paths stay where they belong."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_wrapper import names
from llm_wrapper.errors import DataError, RecipeError


@pytest.mark.parametrize("name", ["refcocog", "flo2+gdrec", "import-mine.v2", "testA", "+", "-x", "a..b", "données"])
def test_plain_names_are_taken(name: str) -> None:
    assert names.folder_name(name, "data.name") == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a",
        "a/b",
        "/etc",
        "a\\b",
        "~",
        "a b",
        "a\n",
        "a\0b",
        ".a",
        "a\ud800",
        "é" * 76,
        "x" * 151,
        "nul",
    ],
)
def test_what_could_lead_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"data\.name"):
        names.folder_name(name, "data.name")


@pytest.mark.parametrize("path", ["../b", "/etc/passwd", "link/b", "a/../../b", "a\0b"])
def test_paths_do_not_leave_their_root(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match="root"):
        names.inside(root, path)


@pytest.mark.parametrize("path", ["b.txt", "a/../b.txt", "a/b.txt", "."])
def test_paths_under_their_root_are_taken(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    assert names.inside(root, path) == (root / path).resolve()
    assert names.inside(root, root / "a") == (root / "a").resolve()


@pytest.mark.parametrize("root", ["runs/a", ".", "./runs"], ids=["relative", "here", "dotted"])
def test_a_path_that_begins_with_a_relative_root_is_under_it(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert names.inside(Path(root), Path(root) / "x.json") == tmp_path / root / "x.json"
    assert names.inside(Path(root), "x.json") == tmp_path / root / "x.json"
    with pytest.raises(DataError, match="lies outside"):
        names.inside(Path(root), Path(root) / ".." / ".." / ".." / "x.json")
