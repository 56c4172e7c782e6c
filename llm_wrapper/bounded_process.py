"""A process that renders templates of strangers, where a hostile one can take neither memory nor time from this one."""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

__all__ = ["BoundedProcess"]

_READ = 1 << 16


class BoundedProcess:
    """A process that renders, started on first use, and again after it had to be ended.

    Args:
        script: Reads lines of JSON from its standard input and answers each with one; it may import Jinja alone, and
            bounds its own memory.
        seconds: The most that one answer may take.
    """

    def __init__(self, script: str, *, seconds: float) -> None:
        self._script = script
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        atexit.register(self.end)

    def ask(self, request: Mapping[str, Any]) -> dict[str, str]:
        """Return the process's reply.

        Raises:
            OSError, ValueError: If none comes in time; the process is ended.
        """
        with self._lock:
            process = self._running()
            try:
                return self._exchange(process, request)
            except (OSError, ValueError):
                self.end()
                raise

    def end(self) -> None:
        """End the process, if this one started it."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()

    def _running(self) -> subprocess.Popen[bytes]:
        # After a fork two processes would read from one pipe.
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            folders = {str(Path(str(module.__file__)).parents[1]) for module in (jinja2, markupsafe)}
            self._process = subprocess.Popen(
                [sys.executable, "-I", self._script, *sorted(folders)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
            self._owner = os.getpid()
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], request: Mapping[str, Any]) -> dict[str, str]:
        assert process.stdin is not None
        assert process.stdout is not None
        unsent = memoryview(json.dumps(request).encode() + b"\n")
        while unsent:
            unsent = unsent[process.stdin.write(unsent) or 0 :]
        end, reply = time.monotonic() + self._seconds, bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not reply.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise ValueError(f"it takes longer than {self._seconds:g} seconds")
                piece = os.read(process.stdout.fileno(), _READ)
                if not piece:
                    raise ValueError("it ends the process that renders it")
                reply += piece
        answer: dict[str, str] = json.loads(reply)
        return answer
