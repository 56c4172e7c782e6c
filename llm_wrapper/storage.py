"""Files on disk: written whole or not at all, with digests and versions; folders held by one process; safe names.

A reader never sees a half-written file: everything goes to a temporary name in the same folder first and is renamed
when it is on disk. Temporary names match `TEMPORARY`; only a killed process leaves one behind. A name is one plain part
of a path, and a path that a file gives is used only under the folder that the user named, with all links resolved.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import platform
import re
import secrets
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from llm_wrapper import __version__
from llm_wrapper.errors import CacheError, DataError, LLMWrapperError, RecipeError, RunError
from llm_wrapper.readers import MIB, open_regular, read_bytes, read_json

__all__ = [
    "MAX_NAME",
    "TEMPORARY",
    "canonical",
    "describe_differences",
    "digest",
    "digest_model",
    "digest_value",
    "explaining_full_disk",
    "folder_name",
    "git_revision",
    "inside",
    "locked",
    "plain_name",
    "read_json",
    "versions",
    "write_atomic",
    "write_json",
    "write_parquet",
]

TEMPORARY = ".*.tmp"
"""Glob of the temporary files that a killed process may leave beside its results."""

_PACKAGES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "gguf",
    "jinja2",
    "numpy",
    "peft",
    "pillow",
    "pyarrow",
    "pydantic",
    "scipy",
    "supervision",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
)
_GIT_SECONDS = 10

_MODEL_TEXTS = ("config.json", "model.safetensors.index.json")
_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pth")

_PID = re.compile(rb"[0-9]{1,10}")

MAX_NAME = 150
"""Bytes of a name in UTF-8; file systems take 255, and names are joined to others."""

_PLAIN = re.compile(r"[\w+-][\w.+-]*")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
"""Names that are devices on Windows whatever their ending."""


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that `path` is either as it was before or complete; text becomes UTF-8.

    Folders that do not exist are made.

    Raises:
        LLMWrapperError: If the disk is full or the file cannot be written; `path` is then as it was.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise LLMWrapperError(_write_problem(path, error, len(content))) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _write_problem(path: Path, error: OSError, num_bytes: int) -> str:
    """Say why `path` was not written and what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = f"Free space on the disk of {path.parent} and run the same command again."
    else:
        remedy = f"Make {path.parent} a folder that you may write to, or choose another one."
    return f"{path} was not written ({num_bytes} bytes): {error.strerror or error}. {remedy}"


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("inline_container", "No space left", "os error 28", "os error 122", "os error 27")
"""In the messages of torch, safetensors and tokenizers about a full disk; their errors have no number."""


@contextlib.contextmanager
def explaining_full_disk(folder: Path, remedy: str) -> Iterator[None]:
    """Explain that the disk of a folder is full, whatever library meets it.

    Raises:
        RunError: In place of the library's error, with the remedy.
    """
    try:
        yield
    except LLMWrapperError:
        raise
    except Exception as error:  # tokenizers raises a plain Exception
        if getattr(error, "errno", None) not in _FULL and not any(words in str(error) for words in _FULL_WORDS):
            raise
        reason = str(error).splitlines()[0]
        raise RunError(f"{folder} cannot be written ({reason}). Is its disk full? {remedy}") from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented UTF-8 JSON, atomically.

    Raises:
        ValueError: If the value holds NaN or infinity, which JSON does not know.
        TypeError: If the value holds something that is no JSON value.
        LLMWrapperError: If the file cannot be written.
    """
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def canonical(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, ASCII; NaN raises ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(path: Path) -> str:
    """SHA-256 of a regular file's content as hex; raises DataError where it cannot be read."""
    with open_regular(path) as stream:
        try:
            found = hashlib.sha256()
            while block := stream.read(MIB):
                found.update(block)
            return found.hexdigest()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def digest_value(value: Any) -> str:
    """SHA-256 of a JSON value as hex, the same for any order of keys."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results, as far as they are installed."""
    found = {name: version for name in _PACKAGES if (version := _installed_version(name)) is not None}
    return {"python": platform.python_version(), "llm-wrapper": __version__, **found}


@functools.cache
def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def git_revision(folder: Path = Path(__file__).parent) -> str | None:
    """Return the commit that `folder` has checked out, with `-dirty` where tracked files were changed.

    `None` where git does not track the folder's files (as in an installed package), or has no answer. Never raises.
    """
    try:
        _git(folder, "ls-files", "--error-unmatch", "--", ".")
        return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    """Run git in a folder and return what it printed."""
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_GIT_SECONDS).stdout.strip()


def write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write rows as one Parquet file, atomically, with checksums in its pages.

    Args:
        path: The file.
        rows: Plain data, one mapping a row; keys that the schema does not have are refused.
        schema: Arrow types; its metadata is stored too.

    Raises:
        DataError: If a row does not fit the schema.
        LLMWrapperError: If the file cannot be written.
    """
    content = list(rows)
    known = set(schema.names)
    unknown = sorted({str(key) for row in content for key in row if key not in known})
    if unknown:
        raise DataError(f"{path} has no column for {', '.join(unknown)}; its columns are {', '.join(schema.names)}.")
    try:
        sink = pa.BufferOutputStream()
        table = pa.Table.from_pylist(content, schema=schema)
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path} was not written, a row does not fit its columns: {error}.") from error
    write_atomic(path, sink.getvalue().to_pybytes())


def digest_model(name: str | None) -> str | None:
    """Return a digest of a local model's settings and of the sizes and times of its weights; None for any other.

    Weights that are replaced in their folder change it. Their content is not read, as it may be gigabytes; so a copy
    with other times counts as other weights.

    Args:
        name: As in a recipe: a folder, `gguf:FILE`, or an id of the hub.
    """
    path = Path((name or "").removeprefix("gguf:"))
    if not name or not os.path.exists(path):
        return None
    files = (
        sorted(each for each in path.iterdir() if each.suffix in _WEIGHTS and each.is_file())
        if path.is_dir()
        else [path]
    )
    texts = [path / each for each in _MODEL_TEXTS if (path / each).is_file()]
    stats = [(each.name, each.stat()) for each in files]
    parts = [[(each.name, digest(each)) for each in texts], [(key, one.st_size, one.st_mtime_ns) for key, one in stats]]
    return digest_value(parts)[:16]


def describe_differences(
    found: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    places: tuple[str, str] = ("in the cache", "now"),
    prefix: str = "",
) -> list[str]:
    """List the fields in which two identities differ; nested fields are joined by dots.

    Args:
        found: One identity.
        wanted: The other.
        places: Where each of the two comes from, as the message says it.
        prefix: Path of the fields that are compared.
    """
    rows: list[str] = []
    for name in sorted(found.keys() | wanted.keys()):
        there, here = found.get(name), wanted.get(name)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            rows += describe_differences(there, here, places=places, prefix=f"{prefix}{name}.")
        elif there != here or (name in found) != (name in wanted):
            sides = zip((found, wanted), places, strict=True)
            texts = (f"{canonical(side[name]) if name in side else 'absent'} {place}" for side, place in sides)
            rows.append(f"{prefix}{name}: {', '.join(texts)}")
    return rows


@contextmanager
def locked(folder: Path, kind: type[LLMWrapperError] = CacheError) -> Iterator[None]:
    """Hold a folder, which is made where it does not exist, for this process alone.

    The operating system releases the lock when the process ends, however it ends: no lock is ever stale, and the file
    `.lock` may stay.

    Args:
        folder: A cache, or a run.
        kind: The error to raise.

    Raises:
        LLMWrapperError: Of that kind, if another process holds the folder, it cannot be written to, or its `.lock` is
            a link.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise kind(f"{folder} cannot be used: {error.strerror}. Choose another folder.") from error
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise kind(f"{path} is a link or a folder, not a lock. Remove it, if no other program needs it.")
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise kind(f"{folder} is in use by process {_holder(path)}. Wait until it has ended, or end it.") from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise kind(f"{folder} cannot be locked: {reason}. Choose another folder.") from error
    try:
        # Who holds it is only for the message above, and Windows lets no process write to a locked file.
        with contextlib.suppress(OSError):
            path.write_bytes(str(os.getpid()).encode())
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    """Return the process id that the holder wrote down; another program may have written anything."""
    try:
        content = read_bytes(path, most=100)
    except DataError:
        return "unknown"
    return content.decode() if _PID.fullmatch(content) else "unknown"


def folder_name(name: str, source: str) -> str:
    """Return a name that is safe as one part of a path.

    Args:
        name: Letters, digits, `_`, `.`, `+` and `-`; it does not begin with a dot.
        source: Where it was given, as the message names it (`data.name`, `--split`).

    Raises:
        RecipeError: If it is anything else, such as `..` or an absolute path.
    """
    if len(name) > MAX_NAME or len(name.encode("utf-8", "replace")) > MAX_NAME:
        raise RecipeError(f"{source}: a name of {len(name)} characters; a folder's has at most {MAX_NAME} bytes.")
    if not _PLAIN.fullmatch(name) or _RESERVED.fullmatch(name):
        raise RecipeError(
            f"{source}={name!r} becomes a folder's name: use letters, digits, '_', '.', '+' and '-', "
            "and no dot at the beginning."
        )
    return name


def plain_name(name: str) -> str:
    """Return a name as a part of a file's name."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "other"


def inside(root: Path, path: str | Path) -> Path:
    """Return `path` under `root`, which it must not leave, neither by `..` nor by an absolute path nor by a link.

    Args:
        root: A folder that the user named.
        path: Relative to it, or under it: absolute, or beginning with a relative root.

    Raises:
        DataError: If it lies elsewhere.
    """
    try:
        home = root.resolve()
        place = Path(path)
        found = (Path.cwd() / place if place.is_relative_to(root) else home / place).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{str(path)[:200]!r} is no path under {root}: {error}") from error
    if not found.is_relative_to(home):
        raise DataError(f"{str(path)[:200]!r} lies outside {root}: only files under it are used.")
    return found
