"""One question to DeepDataSpace and its answer, through the published SDK (extra `dds`).

A question is submitted, which is charged, and then polled until it is answered. How the SDK (0.5.3) behaves, and how it
is handled:

- On import it starts crash reports to its maker, and its `run` attaches the key to them. Reports are switched off
  before the import, and only `trigger` and `check` are used.
- It looks neither at the HTTP status nor at `Retry-After`, and a redirect would carry the key to another host. A hook
  of its session judges each reply before the SDK reads or follows it.
- Each task has an idempotency key, so that a submission repeated after a lost reply gives the same task. The SDK's is
  random; ours is a digest of the question, so that a later run, too, finds the task that an earlier one has paid for.
- Its own downscaling cuts boxes to whole pixels; it is not used.
- It needs flask and pycocotools but does not declare them. DDS_CLOUDAPI_ENDPOINT sends it to another server.

The service wraps every reply as `{"code": 0, "msg": ..., "data": {...}}`. Its codes are not published, so a quota that
is used up ("Token out of Quota") and too many requests ("Token exceeds Rate Limit") are known by their words, too.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import textwrap
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from llm_wrapper.datasets.base import Number, validate_row
from llm_wrapper.detectors.paid_calls import PaidCalls, PaidTerms
from llm_wrapper.errors import RecipeError
from llm_wrapper.readers import MIB
from llm_wrapper.services import CallError, hide_key, read_key, seconds_to_wait

__all__ = ["DDSSettings", "Exchange", "TaskLostError", "api_key", "judge_reply", "load_sdk"]

KEY_VARIABLE = "DDS_API_KEY"
SITE = "https://cloud.deepdataspace.com"

_IN_PROGRESS = 202001
"""The code of "submit it again": a submission with the same idempotency key is being taken in."""
_Code = Annotated[int, Field(strict=True)]
_POLL_SECONDS = 0.5
_MAX_LOST = 2
"""How often a task that the service lost is submitted again; each time is charged."""
_MOST, _CHUNK = 16 * MIB, MIB // 16
"""Bytes of a reply, unpacked, and of what is unpacked at a time."""
_NO_CONNECTION = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError", "SSLError")
"""Causes in urllib3's errors of a request that did not reach the service."""


class DDSSettings(PaidTerms):
    """The terms, and what is asked of the service.

    `iou_threshold` is that of the service's own suppression of overlapping boxes. An image whose longer edge has more
    than `max_edge` pixels is sent smaller. `request_seconds` is the time-out of one request, `task_seconds` that of an
    answer.
    """

    model: str = Field(pattern=r"^(GroundingDino|DINO-X)-[\w.-]+$")
    bbox_threshold: float = Field(0.25, ge=0, le=1)
    iou_threshold: float = Field(0.8, ge=0, le=1)
    max_edge: int = Field(1536, ge=32)
    request_seconds: float = Field(30.0, gt=0, allow_inf_nan=False)
    task_seconds: float = Field(300.0, gt=0, allow_inf_nan=False)

    @property
    def api_path(self) -> str:
        """The place of the model on the server."""
        return f"/v2/task/{'dinox' if self.model.startswith('DINO-X') else 'grounding_dino'}/detection"


class Exchange:
    """One question on its way to its answer; a retry continues where the last attempt stopped."""

    def __init__(self, calls: PaidCalls, settings: DDSSettings, *, body: Mapping[str, Any], sample_id: str) -> None:
        self._calls = calls
        self._settings = settings
        self._body = body
        self._num_lost = 0
        question = json.dumps([settings.api_path, sample_id, body], sort_keys=True)
        self._task = self._new_task(hashlib.sha256(question.encode()).hexdigest()[:32])

    def attempt(self) -> list[DDSObject]:
        """Submit the task unless that is done, and poll it until it is finished."""
        try:
            if self._task.task_uuid is None:
                with self._calls.charged():
                    _send(lambda: self._task.trigger(load_sdk().config(api_key())))
            return self._poll()
        except TaskLostError as lost:
            self._num_lost += 1
            if self._num_lost > _MAX_LOST:
                raise
            # With the old idempotency key the service would give the same task again.
            self._task = self._new_task(uuid.uuid4().hex)
            raise CallError(f"{lost}; it is submitted again", again=True) from lost

    def _poll(self) -> list[DDSObject]:
        deadline = self._calls.clock() + self._settings.task_seconds
        while True:
            self._calls.pace()
            _send(self._task.check)
            if self._task.status.value == "success":
                return DDSResult.model_validate(hide_key(self._task.result, api_key())).objects
            if self._calls.clock() >= deadline:
                waited = f"{self._settings.task_seconds:g} seconds"
                raise CallError(f"task {self._task.task_uuid} is not finished after {waited}; later runs ask for it")
            self._calls.sleep(_POLL_SECONDS)

    def _new_task(self, idempotency_key: str) -> Any:
        task = load_sdk().task(self._settings.api_path, self._body)
        task.set_request_timeout(self._settings.request_seconds)
        task.trigger_idempotency_key = idempotency_key
        return task


@dataclass(frozen=True, slots=True)
class _Sdk:
    """The used parts of the SDK: the classes of a task and its configuration, and the errors of requests."""

    task: Any
    config: Any
    errors: Any


@cache
def load_sdk() -> _Sdk:
    """Import the SDK, without its crash reports, and let each of its replies be judged; a RecipeError without it."""
    try:
        sentry = importlib.import_module("sentry_sdk")
        if not sentry.get_client().is_active():
            # The SDK leaves a client alone that is there; with an empty address this one sends nothing.
            sentry.init(dsn="", default_integrations=False, auto_enabling_integrations=False, spotlight=False)
        base = importlib.import_module("dds_cloudapi_sdk.tasks.base")
        task = importlib.import_module("dds_cloudapi_sdk.tasks.v2_task").V2Task
        config = importlib.import_module("dds_cloudapi_sdk.config").Config
        errors = importlib.import_module("requests.exceptions")
    except ImportError as error:
        raise RecipeError(
            f"the SDK of DeepDataSpace cannot be used: {error}. Install it: pip install 'llm-wrapper-rec[paid-api]'"
        ) from error
    base.http_session.hooks["response"].append(_judge_reply)
    return _Sdk(task, config, errors)


def api_key() -> str:
    """Read the key, which is kept nowhere else and shown in no message; a RecipeError if there is none."""
    key = read_key(KEY_VARIABLE)
    if key is None:
        raise RecipeError(f"the environment variable {KEY_VARIABLE} is not set: get a key at {SITE} and export it")
    return key


def _judge_reply(response: Any, *_: Any, **__: Any) -> None:
    response._content = content = _read_bounded(response)  # the SDK reads what is here
    wait = response.headers.get("Retry-After")
    polled = response.request.method == "GET"
    # In Latin-1 every byte is a character, so that what is no UTF-8 is judged as it came.
    shown = hide_key(content.decode("latin-1"), api_key()).encode("latin-1")
    judge_reply(response.status_code, shown, polled=polled, retry_after=wait)


def _read_bounded(response: Any) -> bytes:
    """Read a reply piece by piece: a short one may unpack to gigabytes."""
    content = bytearray()
    for chunk in response.iter_content(_CHUNK):
        content += chunk
        if len(content) > _MOST:
            raise CallError(
                f"the service's reply has more than {_MOST // MIB} MiB, which no answer needs", charged=True
            )
    return bytes(content)


def _send(request: Callable[[], None]) -> None:
    """Make one request; a CallError tells what its failure means."""
    try:
        request()
    except load_sdk().errors.RequestException as error:
        # Those of wrong values, such as an address that is none, are ValueErrors, too.
        wrong = isinstance(error, ValueError)
        unsent = wrong or any(f"Caused by {cause}" in str(error) for cause in _NO_CONNECTION)
        raise CallError(
            f"{type(error).__name__}: {hide_key(str(error), api_key())}", again=not wrong, charged=not unsent
        ) from error


class TaskLostError(CallError):
    """A submitted task that the service could not do, or no longer knows; only a new one can give an answer."""


class DDSObject(BaseModel):
    """One detected object: `bbox` is xyxy in pixels of the image that was sent, `score` is in 0..1."""

    bbox: list[Number]
    category: str
    score: Number | None


class DDSResult(BaseModel):
    """The answer to a question."""

    objects: list[DDSObject]


class _Submitted(BaseModel):
    task_uuid: Annotated[str, Field(min_length=1)]


class _State(BaseModel):
    status: Literal["triggering", "waiting", "running", "success", "failed"]


class _Finished(BaseModel):
    result: DDSResult


class _SubmittedReply(BaseModel):
    code: _Code
    data: _Submitted


class _PolledReply(BaseModel):
    code: _Code
    data: _State


class _FinishedReply(BaseModel):
    data: _Finished


def judge_reply(status: int, content: bytes, *, polled: bool, retry_after: str | None = None) -> None:
    """Let a good reply pass.

    Args:
        status: The HTTP status.
        content: The body, without secrets: parts of it are shown in error messages.
        polled: Whether it answers a question about a task, which costs nothing, or a submission.
        retry_after: The header of that name.

    Raises:
        CallError: With what follows from the reply; one that names the field where the form is not the known one.
        TaskLostError: If the task has failed or is not known.
    """
    body = _parsed(content)
    reply = body if isinstance(body, dict) else {}
    code = reply.get("code")
    if not 200 <= status < 300 or (isinstance(code, int) and code != 0):
        said = f"HTTP {status}, code {code}, {_short(reply.get('msg'))}"
        raise _refusal(status, said, code=code, polled=polled, wait=seconds_to_wait(retry_after))
    if body is None:
        raise CallError("the reply is not valid JSON; it may be cut off", again=True, charged=True)
    if not polled:
        _require(_SubmittedReply, body)
        return
    _require(_PolledReply, body)
    if body["data"]["status"] == "failed":
        raise TaskLostError(f"the service could not do the task: {_short(body['data'].get('error'))}")
    if body["data"]["status"] == "success":
        _require(_FinishedReply, body)


def _refusal(status: int, said: str, *, code: Any, polled: bool, wait: float | None) -> CallError:
    words = said.lower()
    if status >= 500 or status == 408:
        return CallError(f"the service is in trouble ({said})", again=True, charged=True, wait=wait)
    if status == 402 or "quota" in words or "balance" in words:
        return CallError(f"the account's quota or balance is used up ({said}); add to it at {SITE}")
    if status == 429 or code == _IN_PROGRESS or "rate limit" in words:
        return CallError(f"too many requests ({said})", again=True, wait=wait)
    if status in (401, 403):
        return CallError(f"the key is refused ({said}); set {KEY_VARIABLE} to a valid key of {SITE}")
    if polled and not 300 <= status < 400:
        return TaskLostError(f"the service does not know the task ({said})")
    return CallError(f"the service refuses the request ({said})")


def _parsed(content: bytes) -> Any:
    """Return the JSON value, or `None` where there is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _require(form: type[BaseModel], body: Any) -> None:
    problems: list[str] = []
    if validate_row(form, body, where="reply", problems=problems) is None:
        details = "; ".join(problems[:5])
        raise CallError(f"the service replies in a form that this version does not know: {details}", charged=True)


def _short(message: Any) -> str:
    return textwrap.shorten(str(message or "no message"), 300)
