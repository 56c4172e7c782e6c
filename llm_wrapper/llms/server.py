"""Ask an OpenAI-compatible server: several requests at a time, retries where they help, every answer kept at once.

    prompt -> server_formats: request -> Poster -> reply -> server_formats: answer -> answers: a line on disk

A reply is read as it arrives, never unpacked: packed, a few kilobytes may stand for gigabytes. The limit in seconds is
for the whole exchange, since a server that sends one byte a minute never meets the timeout of a single read.

The openai client (3.57) is not used, as it keeps none of these bounds: its timeout of 1 s let a server drip headers for
16 s, it follows redirects, it asks for packed replies, it sleeps through Retry-After in every thread, and it sends
OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS of the environment to any address.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import textwrap
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from llm_wrapper.errors import DataError, ModelError
from llm_wrapper.llms import answers
from llm_wrapper.llms.answers import AnswerFile
from llm_wrapper.llms.base import writing_section
from llm_wrapper.llms.server_formats import RequestFormat, request_format
from llm_wrapper.readers import MIB, parse_json
from llm_wrapper.recipe import LLMSection, ServerSection
from llm_wrapper.records import Answer, Prompt
from llm_wrapper.services import CallError, delay_after, hide_key, key_for, seconds_to_wait
from llm_wrapper.storage import MAX_NAME, digest_value
from llm_wrapper.terminal import ProgressBar, as_description, printable

__all__ = ["Poster", "Reply", "Server", "ServerLLM", "answers_path"]

_log = logging.getLogger(__name__)

_MAX_TRIES = 6
_MOST_READ, _MOST_SHOWN = 1 << 16, 1 << 12
"""Bytes of a reply that are looked at for a message, and characters of them that may be shown."""

_REFUSED = {
    "max_tokens": "it is asked with max_completion_tokens. A model that reasons first needs more of them than "
    "llm.max_new_tokens=8: try 2000",
    "temperature": "it is asked without, so that the same question may get another answer another time",
}
"""Parameters that OpenAI's models that reason refuse, and what follows."""
_MOST = 64 * MIB
"""Bytes of a reply. The longest good ones echo log-probabilities of 1,000 tokens for 20 candidates: 4 MB."""
_MOST_REFUSED = MIB // 16
"""Bytes that are read of an error page."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's reply as it came."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Poster:
    """Sends JSON to one server.

    Args:
        key: Sent as a bearer token, where there is one.
        seconds: The most that one exchange may take, from connecting to the last byte.
    """

    def __init__(self, key: str | None, *, seconds: float) -> None:
        self._headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._seconds = seconds
        self._ssl: ssl.SSLContext = httpx2.create_ssl_context()

    def post(self, url: str, body: Mapping[str, Any]) -> Reply:
        """Send a request and read its reply; for threads, each with its own connection.

        Raises:
            CallError: If there is no server, no whole reply in time, or one that is too large or packed.
        """
        try:
            return asyncio.run(asyncio.wait_for(self._posted(url, body), self._seconds))
        except asyncio.TimeoutError:
            raise CallError(
                f"no whole answer in {self._seconds:g} seconds (llm.server.request_seconds)", again=True
            ) from None
        except httpx2.TransportError as error:
            name = type(error).__name__
            raise CallError(f"no answer ({name}: {error}): is the server running there?", again=True) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise CallError(f"{type(error).__name__}: {error}") from None

    async def _posted(self, url: str, body: Mapping[str, Any]) -> Reply:
        async with (
            httpx2.AsyncClient(headers=self._headers, timeout=self._seconds, verify=self._ssl) as client,
            client.stream("POST", url, json=body) as response,
        ):
            return Reply(response.status_code, response.headers, await _content(response))


async def _content(response: httpx2.Response) -> bytes:
    good = 200 <= response.status_code < 300
    packed = response.headers.get("Content-Encoding", "identity").strip().lower()
    if packed not in ("", "identity"):
        if not good:
            return f"a page packed by {packed}".encode()
        raise CallError(f"the reply is packed ({packed}), and it was asked for plain: switch that off on the server")
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if not good and len(content) >= _MOST_REFUSED:
            break
        if len(content) > _MOST:
            raise CallError(f"the reply has more than {_MOST // MIB} MiB, which no answer needs")
    return bytes(content)


class Server:
    """A server and the format it is asked in, from as many threads as it may have requests.

    Args:
        section: The recipe's section.
        wait: Sleeps for a number of seconds, and tells whether to give up; an event's `wait` does.

    Raises:
        RecipeError: If the recipe names a key that this user has not allowed to go there.
    """

    def __init__(self, section: LLMSection, *, wait: Callable[[float], bool] | None = None) -> None:
        self.settings: ServerSection = section.server
        self.format: RequestFormat = request_format(section)
        self.stop = threading.Event()
        self._decode = section.decode
        self._wait = self.stop.wait if wait is None else wait
        name = self.settings.key_variable
        self._key = key_for(name, self.settings.base_url) if name else None
        self._poster = Poster(self._key, seconds=self.settings.request_seconds)
        self._refused: set[str] = set()

    def key_of(self, prompt: Prompt) -> str:
        """Return the digest of a question: the whole request, how it is asked, and how many indices are valid."""
        question = [self.url, self._decode, len(prompt.candidates), self.format.body(prompt)]
        return digest_value(question)

    def ask(self, prompt: Prompt) -> Answer:
        """Ask one question, again after a pause where that may help.

        Raises:
            ModelError: If the server refuses, is not there, or does not answer in the form that was asked for.
        """
        num_tries = 0
        while True:
            num_tries += 1
            try:
                return self.format.answer(prompt, self._reply(self.format.body(prompt)))
            except CallError as error:
                self._pause(error, num_tries, about=f"{self.url}, sample {prompt.sample_id}")

    @property
    def url(self) -> str:
        """The address that questions are sent to."""
        return self.settings.base_url.rstrip("/") + self.format.path

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
        sent = _without(body, self._refused)
        try:
            reply = self._poster.post(self.url, sent)
        except CallError as error:
            raise CallError(self._excerpt(str(error)), again=error.again) from None
        if (name := _refused_parameter(reply)) and name in sent:
            if name not in self._refused:
                self._refused.add(name)
                _log.warning("%s refuses %s: %s", self.url, name, _REFUSED[name])
            return self._reply(body)
        return self._judged(reply)

    def _judged(self, reply: Reply) -> Any:
        status = reply.status
        said = f"HTTP {status}: {self._excerpt(reply.content[:_MOST_READ].decode('utf-8', 'replace'))}"
        if status in (408, 425, 429) or status >= 500:
            wait = seconds_to_wait(reply.headers.get("Retry-After"))
            raise CallError(f"the server is busy or in trouble ({said})", again=True, wait=wait)
        if status in (400, 403, 422) and "logprobs" in said:
            raise CallError(f"the server gives no logprobs of this model ({said}). Set llm.decode=generate")
        if status in (401, 403):
            raise CallError(f"the server wants another key ({said}); {self._about_key()}")
        if not 200 <= status < 300:
            raise CallError(f"the server refuses the request ({said}){_hint(status)}")
        try:
            return hide_key(parse_json(reply.content, "the reply", nan=True), self._key)
        except DataError:
            raise CallError(f"the reply is not valid JSON ({said})", again=True) from None

    def _about_key(self) -> str:
        name = self.settings.key_variable
        if name is None:
            return "llm.server.key_variable names the environment variable whose value is sent as the key; none is"
        return f"the environment variable {name} {'holds another' if self._key else 'is not set'}"

    def _excerpt(self, text: str) -> str:
        """Return the beginning of a text in one line; a server may send the key back."""
        return textwrap.shorten(printable(str(hide_key(text, self._key))[:_MOST_SHOWN]), 300) or "nothing"


def _without(body: Mapping[str, Any], refused: Collection[str]) -> dict[str, Any]:
    """Return a request without the parameters that a server refuses; a limit of tokens goes by its newer name."""
    sent = {name: value for name, value in body.items() if name not in refused}
    return sent | {"max_completion_tokens": body["max_tokens"]} if "max_tokens" in refused else sent


def _refused_parameter(reply: Reply) -> str | None:
    """Return the parameter that an error names, where a request can do without it."""
    if reply.status not in (400, 422):
        return None
    try:
        error = parse_json(reply.content, "the reply")["error"]
        message, name = str(error["message"]), error.get("param")
    except (DataError, LookupError, TypeError, AttributeError):
        return None
    if name in _REFUSED and "nsupported" in f"{error.get('code')} {message}":
        return str(name)
    match = re.search(r"nsupported (?:parameter|value): '(\w+)'", message)
    return match[1] if match and match[1] in _REFUSED else None


def _hint(status: int) -> str:
    if 300 <= status < 400:
        return "; redirects are not followed: give the address it names as llm.server.base_url"
    if status == 404:
        return (
            "; llm.server.base_url ends in /v1 as a rule, and llm.model is a name that the server lists under /models"
        )
    return ""


class ServerLLM:
    """An LLM on a server; `llm.decode` names the format it is asked in. Answers on disk are not asked for again.

    Args:
        section: The recipe's section.
        title: Shown beside the progress bar.
        progress: Whether to show one, on standard error.
    """

    def __init__(self, section: LLMSection, *, title: str = "server", progress: bool = True) -> None:
        self._section, self._title, self._progress = section, title, progress

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return the answer to each prompt, in order; equal prompts are asked once.

        Raises:
            ModelError: If the server cannot answer one of them; the answers of the others are kept.
        """
        server, kept = Server(self._section), AnswerFile(answers_path(self._section))
        keys = [server.key_of(prompt) for prompt in prompts]
        missing = {
            key: prompt
            for key, prompt in dict(zip(keys, prompts, strict=True)).items()
            if not kept.fits(key, prompt.num_answers)
        }
        kept.warn_of_damage()
        if missing:
            _log.info("%d questions go to %s", len(missing), server.url)
        with ProgressBar(shown=self._progress) as bar:
            task = bar.add_task(as_description(self._title), total=len(missing))
            _ask_all(server, missing, kept, advance=lambda: bar.advance(task))
        answers = [kept[key] for key in keys]
        if unusable := sum(answer.probabilities is None and answer.text is None for answer in answers):
            _log.warning("%s: %d of %d questions have no usable log-probability", server.url, unusable, len(answers))
        return answers

    def writer(self, num_tokens: int) -> ServerLLM:
        """Return the same LLM, writing a text of at most `num_tokens` tokens."""
        section = writing_section(self._section, num_tokens)
        return ServerLLM(section, title=f"{self._title}: reasons", progress=self._progress)


def answers_path(section: LLMSection) -> Path:
    """Return the file that keeps the answers of a model, asked in one format."""
    name = re.sub(r"[^\w.-]+", "-", f"{section.model}-{section.decode}")
    if len(name.encode()) > MAX_NAME:
        name = f"{name[:40]}-{digest_value([section.model, section.decode])[:16]}"
    return answers.ROOT / f"{name}.jsonl"


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
