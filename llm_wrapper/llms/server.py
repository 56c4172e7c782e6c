"""Asks an OpenAI-compatible server: several requests at a time, again where that helps, every answer kept at once."""

from __future__ import annotations

import json
import logging
import re
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.progress import Progress

from llm_wrapper.artifacts import digest_value
from llm_wrapper.calls import CallError, delay_after, read_key, seconds_to_wait
from llm_wrapper.errors import ModelError
from llm_wrapper.llms import answers
from llm_wrapper.llms.answers import AnswerFile
from llm_wrapper.llms.server_ways import Way, way_of
from llm_wrapper.recipe import LLMSection, ServerSection
from llm_wrapper.records import Answer, Prompt

__all__ = ["Server", "ask_server"]

_log = logging.getLogger(__name__)

_MAX_TRIES = 6


class Server:
    """A server and the way it is asked. Use it in a `with` block, from as many threads as it may have requests.

    Args:
        section: The recipe's section.
        wait: Sleeps for so many seconds, and tells whether to give up; an event's `wait` does.
    """

    def __init__(self, section: LLMSection, *, wait: Callable[[float], bool] | None = None) -> None:
        self.settings: ServerSection = section.server
        self.way: Way = way_of(section)
        self.stop = threading.Event()
        self._decode = section.decode
        self._wait = self.stop.wait if wait is None else wait
        self._key = read_key(self.settings.key_variable) if self.settings.key_variable else None
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=self.settings.request_seconds,
            limits=httpx2.Limits(max_connections=self.settings.concurrency),
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def key_of(self, prompt: Prompt) -> str:
        """Return the digest of a question: the whole request, the way, and how many indices are valid."""
        question = [self._url, self._decode, len(prompt.candidates), self.way.body(prompt)]
        return digest_value(question)

    def ask(self, prompt: Prompt) -> Answer:
        """Ask one question, again after a pause where that may help.

        Raises:
            ModelError: If the server refuses, is not there, or does not answer in the form that the way needs.
        """
        num_tries = 0
        while True:
            num_tries += 1
            try:
                return self.way.answer(prompt, self._reply(self.way.body(prompt)))
            except CallError as error:
                self._pause(error, num_tries, about=f"{self._url}, sample {prompt.sample_id}")

    @property
    def _url(self) -> str:
        return self.settings.base_url.rstrip("/") + self.way.path

    def _pause(self, error: CallError, num_tries: int, *, about: str) -> None:
        kept = "Answers so far are kept; the same command asks only for those that are missing"
        try:
            delay = delay_after(error, num_tries, max_tries=_MAX_TRIES)
        except CallError as final:
            raise ModelError(f"{about}: {final}. {kept}") from None
        _log.warning("%s: %s; try %d of %d follows in %.1f s", about, error, num_tries + 1, _MAX_TRIES, delay)
        if self._wait(delay):
            raise ModelError(f"{about}: stopped. {kept}")

    def _reply(self, body: Mapping[str, Any]) -> Any:
        try:
            response = self._client.post(self._url, json=body)
        except httpx2.TransportError as error:
            name, text = type(error).__name__, self._shown(str(error))
            raise CallError(f"no answer ({name}: {text}): is the server running there?", again=True) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise CallError(f"{type(error).__name__}: {self._shown(str(error))}") from None
        return self._judged(response)

    def _judged(self, response: httpx2.Response) -> Any:
        status, said = response.status_code, f"HTTP {response.status_code}: {self._shown(response.text)}"
        if status in (408, 425, 429) or status >= 500:
            wait = seconds_to_wait(response.headers.get("Retry-After"))
            raise CallError(f"the server is busy or in trouble ({said})", again=True, wait=wait)
        if status in (401, 403):
            raise CallError(f"the server wants another key ({said}); {self._about_key()}")
        if not 200 <= status < 300:
            raise CallError(f"the server refuses the request ({said}){_hint(status)}")
        try:
            return json.loads(response.content)
        except (ValueError, RecursionError):
            raise CallError(f"the reply is not valid JSON ({said})", again=True) from None

    def _about_key(self) -> str:
        name = self.settings.key_variable
        if name is None:
            return "llm.server.key_variable names the environment variable whose value is sent as the key; none is"
        return f"the environment variable {name} {'holds another' if self._key else 'is not set'}"

    def _shown(self, text: str) -> str:
        """Return the beginning of a text in one line; a server may send the key back."""
        hidden = text.replace(self._key, "***") if self._key else text
        return textwrap.shorten(hidden, 300) or "nothing"


def _hint(status: int) -> str:
    if 300 <= status < 400:
        return "; redirects are not followed: give the address it names as llm.server.base_url"
    if status == 404:
        return (
            "; llm.server.base_url ends in /v1 as a rule, and llm.model is a name that the server lists under /models"
        )
    return ""


def ask_server(
    section: LLMSection, prompts: Sequence[Prompt], *, title: str = "server", progress: bool = True
) -> list[Answer]:
    """Return the answer to each prompt, in order; those on disk are not asked for again.

    Args:
        section: The recipe's section; `decode` names the way.
        prompts: Equal ones are asked once.
        title: Shown beside the progress bar.
        progress: Whether to show one, on standard error.

    Raises:
        ModelError: If the server cannot answer one of them; the answers of the others are kept.
    """
    kept = AnswerFile(answers_path(section))
    with Server(section) as server:
        keys = [server.key_of(prompt) for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in kept}
        with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
            task = bar.add_task(title, total=len(missing))
            _ask_all(server, missing, kept, advance=lambda: bar.advance(task))
    return [kept[key] for key in keys]


def answers_path(section: LLMSection) -> Path:
    """Return the file that keeps the answers of a model, asked in one way."""
    return answers.ROOT / (re.sub(r"[^\w.-]+", "-", f"{section.model}-{section.decode}") + ".jsonl")


def _ask_all(server: Server, missing: Mapping[str, Prompt], kept: AnswerFile, *, advance: Callable[[], None]) -> None:
    def one(key: str, prompt: Prompt) -> None:
        if server.stop.is_set():
            return
        try:
            kept.keep(key, server.ask(prompt), sample_id=prompt.sample_id)
        except BaseException:
            server.stop.set()
            raise

    with ThreadPoolExecutor(server.settings.concurrency) as pool:
        tasks: list[Future[None]] = [pool.submit(one, key, prompt) for key, prompt in missing.items()]
        try:
            for task in as_completed(tasks):
                task.result()
                advance()
        finally:
            # After a failure or Ctrl-C no request begins; those under way are waited for and kept: they are paid for.
            server.stop.set()
