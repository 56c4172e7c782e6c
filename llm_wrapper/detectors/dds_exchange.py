"""One question to DeepDataSpace and its answer, through the published SDK (extra `dds`).

A question is submitted, which is charged, and then polled until it is answered. What the SDK (0.5.3) does, and how it
is dealt with:

- On import it starts crash reports to its maker, and its `run` attaches the key to them. Reports are switched off
  before the import, and only `trigger` and `check` are used.
- It looks neither at the HTTP status nor at `Retry-After`, and a redirect would carry the key to another host. A hook
  of its session judges each reply before the SDK reads or follows it.
- Each task has an idempotency key, so that a submission repeated after a lost reply gives the same task. The SDK's is
  random; ours is a digest of the question, so that a later run, too, finds the task that an earlier one has paid for.
  No file is needed for that.
- Its own downscaling cuts boxes to whole pixels; it is not used.
- It needs flask and pycocotools without saying so. DDS_CLOUDAPI_ENDPOINT sends it to another server.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import Field

from llm_wrapper.calls import CallError
from llm_wrapper.detectors.dds_replies import KEY_VARIABLE, SITE, FoundObject, Result, TaskLostError, judge
from llm_wrapper.detectors.paid_calls import PaidCalls, Terms
from llm_wrapper.errors import RecipeError
from llm_wrapper.keys import hide_key, read_key
from llm_wrapper.readers import MIB

__all__ = ["DDSSettings", "Exchange", "api_key", "load_sdk"]

_POLL_SECONDS = 0.5
_MAX_LOST = 2
"""How often a task that the service lost is submitted anew; each time is charged."""
_MOST, _CHUNK = 16 * MIB, MIB // 16
"""Bytes of a reply, unpacked, and of what is unpacked at a time."""
_NO_CONNECTION = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError", "SSLError")
"""What urllib3 names as the cause where a request did not reach the service."""


class DDSSettings(Terms):
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
    """One question on its way to its answer; a further try goes on where the last one stopped."""

    def __init__(self, calls: PaidCalls, settings: DDSSettings, *, body: Mapping[str, Any], sample_id: str) -> None:
        self._calls = calls
        self._settings = settings
        self._body = body
        self._num_lost = 0
        question = json.dumps([settings.api_path, sample_id, body], sort_keys=True)
        self._task = self._new_task(hashlib.sha256(question.encode()).hexdigest()[:32])

    def attempt(self) -> list[FoundObject]:
        """Submit the task unless that is done, and poll it until it is finished."""
        try:
            if self._task.task_uuid is None:
                with self._calls.charged():
                    _send(lambda: self._task.trigger(load_sdk().config(api_key())))
            return self._polled()
        except TaskLostError as lost:
            self._num_lost += 1
            if self._num_lost > _MAX_LOST:
                raise
            # With the old idempotency key the service would give the same task again.
            self._task = self._new_task(uuid.uuid4().hex)
            raise CallError(f"{lost}; it is submitted anew", again=True) from lost

    def _polled(self) -> list[FoundObject]:
        deadline = self._calls.clock() + self._settings.task_seconds
        while True:
            self._calls.pace()
            _send(self._task.check)
            if self._task.status.value == "success":
                return Result.model_validate(hide_key(self._task.result, api_key())).objects
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
    """What is used of the SDK: the classes of a task and of its configuration, and the errors of its requests."""

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
    response._content = content = _bounded(response)  # the SDK reads what is here
    wait = response.headers.get("Retry-After")
    polled = response.request.method == "GET"
    # In Latin-1 every byte is a character, so that what is no UTF-8 is judged as it came.
    shown = hide_key(content.decode("latin-1"), api_key()).encode("latin-1")
    judge(response.status_code, shown, polled=polled, retry_after=wait)


def _bounded(response: Any) -> bytes:
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
