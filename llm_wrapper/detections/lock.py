"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llm_wrapper.errors import CacheError

__all__ = ["locked"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made where it does not exist, for this process alone.

    The operating system releases the lock when the process ends, however it ends: no lock is ever stale, and the file
    `.lock` may stay.

    Raises:
        CacheError: If another process holds the folder, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("a+b", buffering=0)
    except OSError as error:
        raise CacheError(f"{folder} cannot be used: {error.strerror}. Choose another folder.") from error
    with stream:
        _acquire(stream, folder)
        yield


def _acquire(stream: BinaryIO, folder: Path) -> None:
    """Take the lock and write down who has it."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stream.truncate(0)
        stream.write(str(os.getpid()).encode())
    except BlockingIOError as error:
        stream.seek(0)
        holder = stream.read().decode() or "unknown"
        raise CacheError(f"{folder} is in use by process {holder}. Wait until it has ended, or end it.") from error
    except OSError as error:
        raise CacheError(f"{folder} cannot be locked: {error.strerror}. Choose another folder.") from error
