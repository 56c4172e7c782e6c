"""Data sets of the Hugging Face hub as folders of Parquet files: fetched once, then read row by row.

A folder is a copy of the repository, as `hf download <repo> --repo-type dataset --local-dir <folder>` leaves it; where
it has no Parquet file, just that is done here. The files are read as they are and not through `datasets.load_dataset`:
that keeps a second copy of everything in a cache that knows a local file by its time and not by its content, so the
rows could be of another file than the digest. No code of a repository is ever run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from llm_wrapper import readers
from llm_wrapper.datasets.rows import Skipped
from llm_wrapper.errors import DataError, RecipeError, listed, shell_word

__all__ = ["HubRow", "find_split_files", "is_fetched", "read_hub_rows", "repo_name"]

_FILE = re.compile(
    r"(?:^|[-_/])(train|validation|val|testA|testB|test)(?:-(\d{5})-of-(\d{5})(?:-[0-9a-f]{16})?)?\.parquet$"
)
"""A split's name at the end of a file's name, then which of how many files of the split it is."""

_USUAL_NAMES = {"validation": "val"}
_TOGETHER = {"test": ("testA", "testB"), "all": ("val", "test")}
"""Names for several splits at once: `test` as in the REFER toolbox, `all` as in HC-RefLoCo and Ref-L4."""

_ROWS_AT_ONCE = 128
"""Rows with embedded images hold some 200 kB each."""


_MAX_GROUP = 4 * readers.GIB
"""Bytes of a row group once it is unpacked; the largest published repository has 2.3 GB in all."""


class HubRow(BaseModel):
    """One row of a Parquet file; fields with a default are columns that a file may lack."""

    split: str | None = None


_Row = TypeVar("_Row", bound=HubRow)


def repo_name(repo: str) -> str:
    """Return the name of a repository `<owner>/<name>` or `<owner>/<name>@<revision>`."""
    return repo.partition("@")[0].rpartition("/")[2]


def find_split_files(root: Path, split: str, repo: str) -> dict[Path, str]:
    """Return the Parquet files of a split in their order, each with the split's own name.

    `validation` is called `val`. Beside a `testB` and no `testA`, the files called `test` are testA (`jxu124/refcoco`).

    Args:
        root: The folder; fetched from the hub if it has no Parquet file of any split.
        split: A split's name, or `test` for testA and testB together, or `all` for val and test together.
        repo: `<owner>/<name>@<revision>`; without a revision the newest.

    Raises:
        DataError: If the split does not exist (those that do are named), if one of its files is missing or there
            twice, or if the repository cannot be fetched.
        RecipeError: If `repo` is no text.
    """
    if not isinstance(repo, str):
        raise RecipeError(f"data.settings.repo={repo!r}: give <owner>/<name>@<revision>.")
    found = _find_by_split(root)
    if not found:
        _fetch(root, repo)
        found = _find_by_split(root)
    members = _members(split, found)
    if not members:
        existing = ", ".join(found) or "none"
        raise DataError(
            f"{root} has no split '{split}'. Its splits are: {existing}. "
            f"Ask for one of them, or fetch what is missing: {_command(root, repo)}"
        )
    problems = [problem for member in members for problem in _file_problems(found[member])]
    if problems:
        raise DataError(listed(f"{root} is no whole copy of {repo}; fetch it: {_command(root, repo)}", problems))
    return {path: member for member in members for path in found[member]}


def read_hub_rows(files: Mapping[Path, str], kind: type[_Row], skipped: Skipped) -> Iterator[tuple[str, _Row]]:
    """Yield (place, row) for each usable row, and count the others.

    Only the columns that `kind` has are read. A row that names another split than its file is none of them.

    Raises:
        DataError: If a file is damaged or lacks a column.
    """
    for path, split in files.items():
        for number, raw in enumerate(_records(path, kind)):
            where = f"{path.name} row {number}"
            row = skipped.validate_row(kind, raw, where)
            if row is None:
                continue
            if not _is_of(row.split, split):
                detail = f"the row is of split '{row.split}', the file of '{split}'"
                skipped.add("row of another split than its file", where, detail)
                continue
            yield where, row


def is_fetched(root: Path) -> bool:
    """Tell whether a folder holds a Parquet file of any split, so that `find_split_files` fetches nothing."""
    return bool(_find_by_split(root))


def _find_by_split(root: Path) -> dict[str, list[Path]]:
    """Return the Parquet files whose names end with a split's name, by split."""
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.parquet")):
        name = path.relative_to(root).as_posix()
        match = _FILE.search(name)
        if match is not None and not name.startswith(".") and path.is_file():
            found.setdefault(_USUAL_NAMES.get(match[1], match[1]), []).append(path)
    if {"test", "testB"} <= found.keys() and "testA" not in found:
        found["testA"] = found.pop("test")
    return found


def _members(split: str, found: Mapping[str, Sequence[Path]]) -> tuple[str, ...]:
    """Return the splits that a name stands for; none where one of them is missing."""
    if split in found:
        return (split,)
    members = _TOGETHER.get(split, ())
    return members if members and set(members) <= found.keys() else ()


def _file_problems(paths: Sequence[Path]) -> Iterator[str]:
    """Yield what keeps the files from being one whole split, each part there once."""
    matches = [match for path in paths if (match := _FILE.search(path.name)) is not None]
    parts = Counter((int(match[2] or 0), int(match[3] or 1)) for match in matches)
    names = ", ".join(map(str, paths))
    if len({total for _, total in parts}) > 1 or max(parts.values()) > 1:
        # Some revisions of jxu124/refcoco have a split's old file beside the new one.
        yield f"a split is there more than once, remove what is old: {names}"
        return
    total = next(iter(parts))[1]
    missing = [str(number) for number in range(total) if (number, total) not in parts]
    if missing:
        yield f"of the {total} files of a split, number {', '.join(missing)} is missing (counted from 0) beside {names}"


def _is_of(named: str | None, split: str) -> bool:
    """Tell whether a row's own split agrees with its file's; a file that is called testA here may say `test`."""
    return named is None or _USUAL_NAMES.get(named, named) == split or (named, split) == ("test", "testA")


def _records(path: Path, kind: type[HubRow]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file as plain data."""
    try:
        with readers.open_regular(path) as stream, pq.ParquetFile(stream) as parquet:
            groups = (parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups))
            largest = max((group.total_byte_size for group in groups), default=0)
            if largest > _MAX_GROUP:
                raise DataError(f"{path} has a row group of {largest} bytes, more than the {_MAX_GROUP} that are read.")
            existing = parquet.schema_arrow.names
            _require_columns(path, existing, kind)
            columns = [name for name in kind.model_fields if name in existing]
            for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is no Parquet file, damaged or cut off: {error}. Fetch it again; a git clone without git-lfs "
            "leaves short text files in place of the data."
        ) from error


def _require_columns(path: Path, existing: Sequence[str], kind: type[HubRow]) -> None:
    missing = [name for name, field in kind.model_fields.items() if field.is_required() and name not in existing]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)}; its columns are {', '.join(existing)}. "
            "Check that data.reader and data.settings.repo belong together."
        )


def _command(root: Path, repo: str) -> str:
    repo_id, _, revision = repo.partition("@")
    words = ("--repo-type", "dataset", "--revision", revision or "main", "--local-dir", root)
    return f"hf download {' '.join(map(shell_word, (repo_id, *words)))}"


def _fetch(root: Path, repo: str) -> None:
    """Copy the Parquet files of a repository to a folder, with a progress bar."""
    from huggingface_hub import snapshot_download

    repo_id, _, revision = repo.partition("@")
    try:
        snapshot_download(
            repo_id, repo_type="dataset", revision=revision or None, local_dir=root, allow_patterns=["*.parquet"]
        )
    # Whatever went wrong (no network, no such repository, a proxy, a full disk), the remedy is the same.
    except Exception as error:
        raise DataError(
            f"{root} has no Parquet files, and {repo} cannot be fetched: {error}. "
            f"Fetch it where there is a network: {_command(root, repo)}"
        ) from error
