"""Ask an OpenAI-compatible server: several requests at a time, retries where they help, every answer kept at once.

    prompt -> server_formats: request -> Poster -> reply -> server_formats: answer -> AnswerFile: a line on disk

A reply is read as it arrives, never unpacked: packed, a few kilobytes may stand for gigabytes. The limit in seconds is
for the whole exchange, since a server that sends one byte a minute never meets the timeout of a single read.

The openai client (3.57) is not used, as it keeps none of these bounds: its timeout of 1 s let a server drip headers for
16 s, it follows redirects, it asks for packed replies, it sleeps through Retry-After in every thread, and it sends
OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS of the environment to any address.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import ssl
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from llm_wrapper.errors import DataError, LLMWrapperError, ModelError
from llm_wrapper.llms.base import writing_section
from llm_wrapper.llms.server_formats import RequestFormat, request_format
from llm_wrapper.readers import MIB, parse_json, read_bytes
from llm_wrapper.recipe import LLMSection, ServerSection
from llm_wrapper.records import Answer, Prompt, from_dict, to_dict
from llm_wrapper.services import CallError, delay_after, hide_key, key_for, seconds_to_wait
from llm_wrapper.storage import MAX_NAME, digest_value
from llm_wrapper.terminal import ProgressBar, as_description, printable

_log = logging.getLogger(__name__)

ANSWER_FOLDER = Path("data/answers")
_MAX_TRIES = 6
_MOST = 64 * MIB
"""Bytes of a reply. The longest good ones echo log-probabilities of 1,000 tokens for 20 candidates: 4 MB."""
_MOST_REFUSED = MIB // 16
"""Bytes that are read of an error page."""
_MOST_SHOWN = 1 << 12
"""Characters of it that may be shown."""

_REFUSED = {
    "max_tokens": "it is asked with max_completion_tokens. A model that reasons first needs more of them than "
    "llm.max_new_tokens=8: try 2000",
    "temperature": "it is asked without, so that the same question may get another answer another time",
}
"""Parameters that OpenAI's models that reason refuse, and what follows."""
_KEPT = "Answers so far are kept; the same command asks only for those that are missing"


class ServerLLM:
    """An LLM on a server; `llm.decode` names the format it is asked in. Answers on disk are not asked for again."""

    def __init__(self, section: LLMSection, *, title: str = "server", progress: bool = True) -> None:
        self._section, self._title, self._progress = section, title, progress

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return the answer to each prompt, in order; equal prompts are asked once."""
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
            self._ask_all(server, missing, kept, advance=lambda: bar.advance(task))
        answers = [kept[key] for key in keys]
        if unusable := sum(answer.probabilities is None and answer.text is None for answer in answers):
            _log.warning("%s: %d of %d questions have no usable log-probability", server.url, unusable, len(answers))
        return answers

    def writer(self, num_tokens: int) -> ServerLLM:
        """Return the same LLM, writing a text of at most `num_tokens` tokens."""
        section = writing_section(self._section, num_tokens)
        return ServerLLM(section, title=f"{self._title}: reasons", progress=self._progress)

    def _ask_all(
        self, server: Server, missing: Mapping[str, Prompt], kept: AnswerFile, *, advance: Callable[[], None]
    ) -> None:
        def ask(key: str, prompt: Prompt) -> None:
            if server.stop.is_set():
                return
            try:
                kept.keep(key, server.ask(prompt), sample_id=prompt.sample_id)
            except BaseException:
                server.stop.set()
                raise

        with ThreadPoolExecutor(server.settings.concurrency) as pool:
            tasks = [pool.submit(ask, key, prompt) for key, prompt in missing.items()]
            try:
                for task in as_completed(tasks):
                    task.result()
                    advance()
            finally:
                # After a failure or Ctrl-C no request begins; those under way are waited for and kept: they are paid.
                server.stop.set()


class Server:
    """A server and the format it is asked in, from as many threads as it may have requests.

    `wait` sleeps for a number of seconds, and tells whether to give up.
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

    @property
    def url(self) -> str:
        """The address that questions are sent to."""
        return self.settings.base_url.rstrip("/") + self.format.path

    def key_of(self, prompt: Prompt) -> str:
        """Return the digest of a question: the whole request, how it is asked, and how many indices are valid."""
        return digest_value([self.url, self._decode, len(prompt.candidates), self.format.body(prompt)])

    def ask(self, prompt: Prompt) -> Answer:
        """Ask one question, again after a pause where that may help."""
        about = f"{self.url}, sample {prompt.sample_id}"
        num_tries = 0
        while True:
            num_tries += 1
            try:
                return self.format.answer(prompt, self._reply(self.format.body(prompt)))
            except CallError as error:
                failure = error
            try:
                delay = delay_after(failure, num_tries, max_tries=_MAX_TRIES)
            except CallError as final:
                raise ModelError(f"{about}: {final}. {_KEPT}") from None
            _log.warning("%s: %s; try %d of %d follows in %.1f s", about, failure, num_tries + 1, _MAX_TRIES, delay)
            if self._wait(delay):
                raise ModelError(f"{about}: stopped. {_KEPT}")

    def _reply(self, body: Mapping[str, Any]) -> Any:
        """Return the server's JSON to a request, sent without the parameters that the server refuses."""
        sent = {name: value for name, value in body.items() if name not in self._refused}
        if "max_tokens" in self._refused:
            sent["max_completion_tokens"] = body["max_tokens"]
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
        """Return a reply's JSON, or raise what its status means."""
        status = reply.status
        said = f"HTTP {status}: {self._excerpt(reply.content[:_MOST_REFUSED].decode('utf-8', 'replace'))}"
        if status in (408, 425, 429) or status >= 500:
            wait = seconds_to_wait(reply.headers.get("Retry-After"))
            raise CallError(f"the server is busy or in trouble ({said})", again=True, wait=wait)
        if status in (400, 403, 422) and "logprobs" in said:
            raise CallError(f"the server gives no logprobs of this model ({said}). Set llm.decode=generate")
        if status in (401, 403):
            name = self.settings.key_variable
            variable = f"the environment variable {name} {'holds another' if self._key else 'is not set'}"
            none = "llm.server.key_variable names the environment variable whose value is sent as the key; none is"
            raise CallError(f"the server wants another key ({said}); {variable if name else none}")
        if not 200 <= status < 300:
            hint = ""
            if 300 <= status < 400:
                hint = "; redirects are not followed: give the address it names as llm.server.base_url"
            if status == 404:
                hint = "; llm.server.base_url ends in /v1 as a rule, and llm.model is a name listed under /models"
            raise CallError(f"the server refuses the request ({said}){hint}")
        try:
            return hide_key(parse_json(reply.content, "the reply", nan=True), self._key)
        except DataError:
            raise CallError(f"the reply is not valid JSON ({said})", again=True) from None

    def _excerpt(self, text: str) -> str:
        """Return the beginning of a text in one line; a server may send the key back."""
        return textwrap.shorten(printable(str(hide_key(text, self._key))[:_MOST_SHOWN]), 300) or "nothing"


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's reply as it came."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Poster:
    """Sends JSON to one server.

    One exchange may take `seconds`, from connecting to the last byte.
    """

    def __init__(self, key: str | None, *, seconds: float) -> None:
        self._headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._seconds = seconds
        self._ssl: ssl.SSLContext = httpx2.create_ssl_context()

    def post(self, url: str, body: Mapping[str, Any]) -> Reply:
        """Send a request and read its reply; for threads, each with its own connection."""
        try:
            return asyncio.run(asyncio.wait_for(self._exchange(url, body), self._seconds))
        except asyncio.TimeoutError:
            said = f"no whole answer in {self._seconds:g} seconds (llm.server.request_seconds)"
            raise CallError(said, again=True) from None
        except httpx2.TransportError as error:
            name = type(error).__name__
            raise CallError(f"no answer ({name}: {error}): is the server running there?", again=True) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise CallError(f"{type(error).__name__}: {error}") from None

    async def _exchange(self, url: str, body: Mapping[str, Any]) -> Reply:
        async with (
            httpx2.AsyncClient(headers=self._headers, timeout=self._seconds, verify=self._ssl) as client,
            client.stream("POST", url, json=body) as response,
        ):
            status, headers, content = response.status_code, response.headers, bytearray()
            good = 200 <= status < 300
            packed = headers.get("Content-Encoding", "identity").strip().lower()
            if packed not in ("", "identity"):
                if not good:
                    return Reply(status, headers, f"a page packed by {packed}".encode())
                raise CallError(f"the reply is packed ({packed}), and it was asked for plain: switch that off there")
            async for chunk in response.aiter_raw():
                content += chunk
                if not good and len(content) >= _MOST_REFUSED:
                    break
                if len(content) > _MOST:
                    raise CallError(f"the reply has more than {_MOST // MIB} MiB, which no answer needs")
            return Reply(status, headers, bytes(content))


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


def answers_path(section: LLMSection) -> Path:
    """Return the file that keeps the answers of a model, asked in one format."""
    name = re.sub(r"[^\w.-]+", "-", f"{section.model}-{section.decode}")
    if len(name.encode()) > MAX_NAME:
        name = f"{name[:40]}-{digest_value([section.model, section.decode])[:16]}"
    return ANSWER_FOLDER / f"{name}.jsonl"


class AnswerFile(dict[str, Answer]):
    """A file of answers by the digest of their request, a JSON line each; threads and processes may add to it at once.

    A line that cannot be read, as a killed process or a full disk leaves one, is counted and asked again.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.num_damaged = 0
        self._lock = threading.Lock()
        try:
            content = read_bytes(path) if path.exists() else b""
        except OSError as error:
            raise LLMWrapperError(f"{path} cannot be read: {error.strerror or error}.") from error
        for line in filter(bytes.strip, content.splitlines()):
            try:
                row: Any = parse_json(line, str(path))
                answer = from_dict(Answer, row["answer"])
                shares = answer.probabilities
                if shares is not None and not (all(0 <= each <= 1 for each in shares) and abs(sum(shares) - 1) < 1e-3):
                    raise ValueError(f"no probabilities: {shares}")
                self[str(row["key"])] = answer
            except (DataError, ValueError, TypeError, KeyError):
                self.num_damaged += 1
        # A line that was cut off has no end; the next one must not become part of it.
        self._before = b"" if content.endswith(b"\n") or not content else b"\n"

    def fits(self, key: str, num_answers: int) -> bool:
        """Tell whether there is an answer, with as many probabilities as there are answers; else it is damaged."""
        answer = self.get(key)
        if answer is None:
            return False
        fits = answer.probabilities is None or len(answer.probabilities) == num_answers
        self.num_damaged += not fits
        return fits

    def warn_of_damage(self) -> None:
        """Say how many lines cannot be used, where there are any."""
        if self.num_damaged:
            _log.warning("%s: %d damaged lines; their questions are asked again", self.path, self.num_damaged)

    def keep(self, key: str, answer: Answer, *, sample_id: str) -> None:
        """Write an answer; LLMWrapperError if it cannot be written."""
        known = {name: value for name, value in to_dict(answer).items() if value is not None}
        line = json.dumps({"key": key, "sample_id": sample_id, "answer": known}, allow_nan=False).encode() + b"\n"
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # One write to a file opened for appending: lines of two processes do not mix.
                with self.path.open("ab", buffering=0) as stream:
                    if stream.write(self._before + line) != len(self._before) + len(line):
                        raise OSError("the disk is full")
            except OSError as error:
                raise LLMWrapperError(
                    f"an answer was not written to {self.path}: {error.strerror or error}. Fix that; the same command "
                    "asks only for the rest."
                ) from error
            self._before = b""
            self[key] = answer
