"""Chat templates of models: programs of strangers, rendered in a process that is bounded in memory, time and output.

messages -> template_worker (a process that lives as long as this one) -> text, or a ModelError
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from llm_wrapper.errors import ModelError
from llm_wrapper.llms import template_worker
from llm_wrapper.terminal import printable

__all__ = ["ChatTemplate", "template_of"]

_SECONDS = 20.0
"""For one rendering, which takes a fraction of a millisecond; a process starts in a tenth of a second."""
_MAX_TEMPLATE = 1_000_000
_READ = 1 << 16


class _Worker:
    """The process that renders, started on first use, and again after it had to be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        atexit.register(self.end)

    def ask(self, request: Mapping[str, Any]) -> dict[str, str]:
        """Return the worker's reply; ValueError if none comes."""
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
                [sys.executable, "-I", template_worker.__file__, *sorted(folders)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
            self._owner = os.getpid()
        return self._process

    @staticmethod
    def _exchange(process: subprocess.Popen[bytes], request: Mapping[str, Any]) -> dict[str, str]:
        assert process.stdin is not None
        assert process.stdout is not None
        unsent = memoryview(json.dumps(request).encode() + b"\n")
        while unsent:
            unsent = unsent[process.stdin.write(unsent) or 0 :]
        end, reply = time.monotonic() + _SECONDS, bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not reply.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise ValueError(f"it takes longer than {_SECONDS:g} seconds")
                piece = os.read(process.stdout.fileno(), _READ)
                if not piece:
                    raise ValueError("it ends the process that renders it")
                reply += piece
        answer: dict[str, str] = json.loads(reply)
        return answer


_WORKER = _Worker()


def template_of(tokenizer: Any, chat_template: str | None = None) -> str:
    """Return the text of the chat template to use: the recipe's own, else the tokenizer's.

    Raises:
        ModelError: If there is none, or several and none of them is the default.
    """
    name = tokenizer.name_or_path
    found: Any = chat_template or getattr(tokenizer, "chat_template", None)
    if isinstance(found, Mapping) and found:
        if "default" not in found:
            names = printable(", ".join(sorted(map(str, found))))[:200]
            raise ModelError(
                f"the tokenizer {name!r} has several chat templates and none is called default ({names}); put the text "
                "of one into llm.chat_template"
            )
        found = found["default"]
    if not found:
        raise ModelError(
            f"the tokenizer {name!r} has no chat template; "
            "set llm.chat_template in the recipe (recipes/llm/gpt-neo.yaml shows how)"
        )
    if not isinstance(found, str) or len(found) > _MAX_TEMPLATE:
        raise ModelError(f"the chat template of {name!r} is not a text of at most {_MAX_TEMPLATE:,} characters")
    return found


class ChatTemplate:
    """A chat template with what it knows besides the messages.

    Args:
        text: In Jinja.
        variables: Such as `bos_token` and `enable_thinking`.
        day: What `strftime_now` tells the template, as `2024-07-26`.
        name: Whose it is, for messages.
    """

    def __init__(self, text: str, variables: Mapping[str, Any], *, day: str, name: str) -> None:
        self._text = text
        self._variables = {"tools": None, "documents": None, **variables}
        self._day = day
        self._name = name

    def render(self, rows: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """Return the chat of rows {"role", "content"} as text.

        Raises:
            ModelError: If the template fails, or takes too long or too much.
        """
        variables = {**self._variables, "messages": rows, "add_generation_prompt": add_generation_prompt}
        try:
            reply = _WORKER.ask({"template": self._text, "date": self._day, "variables": variables})
        except (OSError, ValueError) as error:
            reply = {"error": str(error)}
        if "text" in reply:
            return reply["text"]
        raise ModelError(
            f"the chat template of {self._name!r} fails: {printable(reply['error'])}. Put another one into "
            "llm.chat_template (recipes/llm/gpt-neo.yaml shows how)"
        )
