"""Files on disk: written whole or not at all, with digests and versions; folders held by one process; safe names.

A reader never sees a half-written file: everything goes to a temporary name in the same folder first and is renamed
when it is on disk. A path that a file gives is used only under the folder that the user named, with all links resolved.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from llm_wrapper import __version__
from llm_wrapper.errors import CacheError, DataError, LLMWrapperError, RecipeError, RunError
from llm_wrapper.readers import MIB, open_regular, read_bytes

TEMPORARY = ".*.tmp"
"""Glob of the temporary files that a killed process may leave beside its results."""

MAX_NAME = 150
"""Bytes of a name in UTF-8; file systems take 255, and names are joined to others."""

_PACKAGES = (
    "accelerate", "bitsandbytes", "datasets", "gguf", "jinja2", "numpy", "peft", "pillow", "pyarrow", "pydantic",
    "scipy", "supervision", "tokenizers", "torch", "transformers", "trl",
)  # fmt: skip
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("inline_container", "No space left", "os error 28", "os error 122", "os error 27")
"""In the messages of torch, safetensors and tokenizers about a full disk; their errors have no number."""
_PLAIN = re.compile(r"[\w+-][\w.+-]*")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
"""Names that are devices on Windows whatever their ending."""


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file, with its folders, so that `path` is either as it was before or complete; text becomes UTF-8."""
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
        remedy = f"Make {path.parent} a folder that you may write to, or choose another one."
        if error.errno in _FULL:
            remedy = f"Free space on the disk of {path.parent} and run the same command again."
        reason = error.strerror or error
        raise LLMWrapperError(f"{path} was not written ({len(content)} bytes): {reason}. {remedy}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def explaining_full_disk(folder: Path, remedy: str) -> Iterator[None]:
    """Raise a RunError with the remedy where the disk of a folder is full, whatever library meets it."""
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
    """Write a value as indented UTF-8 JSON, atomically; NaN and infinity raise ValueError."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def canonical(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, ASCII; NaN raises ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(path: Path) -> str:
    """SHA-256 of a regular file's content as hex; raises DataError where it cannot be read."""
    with open_regular(path) as stream:
        try:
            sha256 = hashlib.sha256()
            while block := stream.read(MIB):
                sha256.update(block)
            return sha256.hexdigest()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def digest_value(value: Any) -> str:
    """SHA-256 of a JSON value as hex, the same for any order of keys."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results, as far as they are installed."""
    installed = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return {"python": platform.python_version(), "llm-wrapper": __version__, **installed}


def git_revision(folder: Path = Path(__file__).parent) -> str | None:
    """Return the commit that `folder` has checked out, with `-dirty` where tracked files were changed.

    `None` where git does not track the folder's files (as in an installed package), or has no answer. Never raises.
    """
    revision = None
    for words in ("ls-files --error-unmatch -- .", "describe --always --dirty --abbrev=40 --exclude=*"):
        command = ["git", "-C", str(folder), *words.split()]
        try:
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
        except (OSError, ValueError, subprocess.SubprocessError):
            return None
        revision = done.stdout.strip()
    return revision


def write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write rows as one Parquet file, atomically, with checksums in its pages and the schema's metadata.

    Raises:
        DataError: If a row does not fit the schema, or has a key that is no column.
    """
    content = list(rows)
    known = set(schema.names)
    if unknown := sorted({str(key) for row in content for key in row if key not in known}):
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
    with other times counts as other weights. `name` is a folder, `gguf:FILE`, or an id of the hub.
    """
    path = Path((name or "").removeprefix("gguf:"))
    if not name or not os.path.exists(path):
        return None
    weights = [path]
    if path.is_dir():
        endings = (".safetensors", ".gguf", ".bin", ".pth")
        weights = sorted(each for each in path.iterdir() if each.suffix in endings and each.is_file())
    texts = [path / each for each in ("config.json", "model.safetensors.index.json") if (path / each).is_file()]
    stats = [(each.name, each.stat()) for each in weights]
    parts = [[(each.name, digest(each)) for each in texts], [(key, one.st_size, one.st_mtime_ns) for key, one in stats]]
    return digest_value(parts)[:16]


def describe_differences(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], *,
    places: tuple[str, str] = ("in the cache", "now"), prefix: str = "",
) -> list[str]:  # fmt: skip
    """List the fields in which two identities from two `places` differ; nested fields are joined by dots."""
    rows: list[str] = []
    for name in sorted(stored.keys() | wanted.keys()):
        there, here = stored.get(name), wanted.get(name)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            rows += describe_differences(there, here, places=places, prefix=f"{prefix}{name}.")
        elif there != here or (name in stored) != (name in wanted):
            sides = zip((stored, wanted), places, strict=True)
            texts = (f"{canonical(side[name]) if name in side else 'absent'} {place}" for side, place in sides)
            rows.append(f"{prefix}{name}: {', '.join(texts)}")
    return rows


@contextlib.contextmanager
def locked(folder: Path, kind: type[LLMWrapperError] = CacheError) -> Iterator[None]:
    """Hold a folder, which is made where it does not exist, for this process alone; else raise an error of that kind.

    The operating system releases the lock when the process ends, however it ends: no lock is ever stale, and the file
    `.lock` may stay.
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
        content = b""
        with contextlib.suppress(DataError):
            content = read_bytes(path, most=100)
        # Another program may have written anything.
        holder = content.decode() if re.fullmatch(rb"[0-9]{1,10}", content) else "unknown"
        raise kind(f"{folder} is in use by process {holder}. Wait until it has ended, or end it.") from error
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


def folder_name(name: str, source: str) -> str:
    """Return a name that is safe as one part of a path; RecipeError, which names its source (`--split`), if not."""
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

    It is relative to the root, or under it: absolute, or beginning with a relative root.

    Raises:
        DataError: If it lies elsewhere.
    """
    try:
        home = root.resolve()
        start = Path.cwd() if Path(path).is_relative_to(root) else home
        target = (start / path).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{str(path)[:200]!r} is no path under {root}: {error}") from error
    if not target.is_relative_to(home):
        raise DataError(f"{str(path)[:200]!r} lies outside {root}: only files under it are used.")
    return target
