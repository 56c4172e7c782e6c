"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from llm_wrapper.errors import CacheError, DataError, LLMWrapperError
from llm_wrapper.readers import read_bytes

__all__ = ["locked"]

_PID = re.compile(rb"[0-9]{1,10}")


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
