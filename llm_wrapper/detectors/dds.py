"""Grounding DINO 1.5 and 1.6 and DINO-X: the paid service of DeepDataSpace, through its SDK (extra `paid-api`).

The whole expression is one phrase of the prompt. The image is sent upright and without loss, so that the service sees
what local detectors see. The service names no revision of a model: the answers of one name may change with time, and
only the cache keeps them.

    DDSDetector.detect -> PaidCalls.answer (budget, pace, retries) -> Exchange.attempt -> SDK -> judge_reply

A question is submitted, which is charged, and then polled until it is answered. Hazards of the SDK (0.5.3):

- On import it starts crash reports to its maker, and its `run` attaches the key to them. Reports are switched off
  before the import, and only `trigger` and `check` are used.
- It ignores the HTTP status and `Retry-After`, and a redirect would carry the key to another host. A hook of its
  session judges each reply before the SDK reads or follows it.
- Each task has an idempotency key, so that a submission repeated after a lost reply gives the same task. The SDK's is
  random; ours is a digest of the question, so that a later run, too, finds the task that an earlier one has paid for.
- It needs flask and pycocotools but does not declare them. DDS_CLOUDAPI_ENDPOINT sends it to another server.

The service wraps every reply as `{"code": 0, "msg": ..., "data": {...}}`. Its codes are not published, so a quota that
is used up ("Token out of Quota") and too many requests ("Token exceeds Rate Limit") are known by their words, too.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import json
import logging
import textwrap
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import cycle
from types import SimpleNamespace
from typing import Annotated, Any, Generic, Literal, TypeVar

from PIL import Image
from pydantic import BaseModel, Field

from llm_wrapper.datasets.base import Number, validate_row
from llm_wrapper.detectors import Level, Question, RawRow, detections_from_raw, parse_settings
from llm_wrapper.detectors.paid_calls import CostEstimate, PaidCalls, PaidTerms
from llm_wrapper.errors import ModelError, RecipeError
from llm_wrapper.images import read_sample
from llm_wrapper.readers import MIB
from llm_wrapper.records import Detections, Sample
from llm_wrapper.services import CallError, hide_key, read_key, seconds_to_wait

_log = logging.getLogger(__name__)

KEY_VARIABLE = "DDS_API_KEY"
SITE = "https://cloud.deepdataspace.com"

_IN_PROGRESS = 202001
"""The code of "submit it again": a submission with the same idempotency key is being taken in."""
_POLL_SECONDS = 0.5
_MAX_LOST = 2
"""How often a task that the service lost is submitted again; each time is charged."""
_MOST, _CHUNK = 16 * MIB, MIB // 16
"""Bytes of a reply, unpacked, and of what is unpacked at a time."""
_NO_CONNECTION = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError", "SSLError")
"""Causes in urllib3's errors of a request that did not reach the service."""


class DDSSettings(PaidTerms):
    """The terms and the questions.

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


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image as it is sent: a `data:` URL, and the factors (x, y) from its pixels to the original's."""

    url: str = field(repr=False)
    scale: tuple[float, float]


class DDSDetector:
    """Asks for each expression, one at a time, and pays for it.

    Attributes:
        name: The model's name in small letters.
        confirm: Asked before the first call, if set; a budget (`max_cost`) is needed all the same.
        calls: The budget, and the counts of this run.
    """

    levels: tuple[Level, ...] = ("expression",)
    reads_images = True

    def __init__(self, settings: DDSSettings, calls: PaidCalls | None = None) -> None:
        self.name = settings.model.lower()
        self.confirm: Callable[[CostEstimate], bool] | None = None
        self.calls = calls or PaidCalls(self.name, settings)
        self._settings = settings
        self._begun = False

    def identity(self) -> dict[str, Any]:
        """Return all that decides the answers; neither key nor price, budget or pace."""
        decided = self._settings.model_dump(include={"max_edge", "bbox_threshold", "iou_threshold"})
        chosen = {"id": self._settings.model, "api": self._settings.api_path, **decided}
        return {**chosen, "prompt": "text", "image": "png"}

    @property
    def spent(self) -> float:
        """Dollars that may have been charged in this run."""
        return self.calls.spent

    def begin(self, num_questions: int) -> CostEstimate:
        """Estimate the cost, and raise a RecipeError without SDK, key, budget or the user's consent."""
        load_sdk()
        api_key()
        estimate = self.calls.agree(num_questions, self.confirm)
        self._begun = True
        return estimate

    def prepare(self, sample: Sample) -> EncodedImage:
        """Read an image, upright, and encode it without loss."""
        image = read_sample(sample)
        width, height = image.size
        ratio = min(1.0, self._settings.max_edge / max(image.size))
        if ratio < 1.0:
            smaller = (max(1, round(width * ratio)), max(1, round(height * ratio)))
            image = image.resize(smaller, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        return EncodedImage(url, (width / image.width, height / image.height))

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, EncodedImage]) -> list[Detections]:
        """Answer one question; several are refused: a paid answer is to be kept before the next is asked."""
        if len(questions) > 1:
            raise ModelError(f"{self.name} was asked {len(questions)} questions at once; a paid detector is asked one")
        if questions and not self._begun:
            self.begin(len(questions))
        return [self._answer(question.sample, prepared[question.sample.image_id]) for question in questions]

    def _answer(self, sample: Sample, photo: EncodedImage) -> Detections:
        # A full stop would divide the expression into several phrases.
        caption = " ".join(sample.expression.replace(".", " ").split())
        if not caption:
            _log.warning("sample %r has no words: not asked, no detections", sample.sample_id)
            return Detections(())
        body = {
            "model": self._settings.model,
            "image": photo.url,
            "prompt": {"type": "text", "text": caption},
            "targets": ["bbox"],
            "bbox_threshold": self._settings.bbox_threshold,
            "iou_threshold": self._settings.iou_threshold,
        }
        exchange = Exchange(self.calls, self._settings, body=body, sample_id=sample.sample_id)
        rows: list[RawRow] = []
        for each in self.calls.answer(exchange.attempt, about=f"sample {sample.sample_id!r}"):
            box = [value * factor for value, factor in zip(each.bbox, cycle(photo.scale), strict=False)]
            rows.append((box, each.category, each.score))
        return detections_from_raw(rows, "api")


def create_dds(settings: Mapping[str, Any]) -> DDSDetector:
    """Build the detector; neither SDK nor key is needed until the first question."""
    return DDSDetector(parse_settings(DDSSettings, settings, "dds"))


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


@cache
def load_sdk() -> SimpleNamespace:
    """Import the used parts of the SDK, without its crash reports, and let each of its replies be judged.

    Raises:
        RecipeError: If it is not installed.
    """
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
    return SimpleNamespace(task=task, config=config, errors=errors)


def api_key() -> str:
    """Read the key, which is kept nowhere else and shown in no message; a RecipeError if there is none."""
    key = read_key(KEY_VARIABLE)
    if key is None:
        raise RecipeError(f"the environment variable {KEY_VARIABLE} is not set: get a key at {SITE} and export it")
    return key


def _judge_reply(response: Any, *_: Any, **__: Any) -> None:
    content = bytearray()
    for chunk in response.iter_content(_CHUNK):  # piece by piece: a short reply may unpack to gigabytes
        content += chunk
        if len(content) > _MOST:
            reason = f"the service's reply has more than {_MOST // MIB} MiB, which no answer needs"
            raise CallError(reason, charged=True)
    response._content = bytes(content)  # the SDK reads what is here
    # In Latin-1 every byte is a character, so that what is no UTF-8 is judged as it came.
    shown = hide_key(content.decode("latin-1"), api_key()).encode("latin-1")
    polled, wait = response.request.method == "GET", response.headers.get("Retry-After")
    judge_reply(response.status_code, shown, polled=polled, retry_after=wait)


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


_Data = TypeVar("_Data", bound=BaseModel)


class _Reply(BaseModel, Generic[_Data]):
    code: Annotated[int, Field(strict=True)]
    data: _Data


def judge_reply(status: int, content: bytes, *, polled: bool, retry_after: str | None = None) -> None:
    """Let a good reply pass; raise a CallError that says what follows from any other.

    Args:
        status: The HTTP status.
        content: The body, without secrets: parts of it are shown in error messages.
        polled: Whether it answers a question about a task, which costs nothing, or a submission.
        retry_after: The header of that name.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    reply = body if isinstance(body, dict) else {}
    code = reply.get("code")
    if not 200 <= status < 300 or (isinstance(code, int) and code != 0):
        raise _refusal(status, code, _short(reply.get("msg")), polled=polled, wait=seconds_to_wait(retry_after))
    if body is None:
        raise CallError("the reply is not valid JSON; it may be cut off", again=True, charged=True)
    if not polled:
        _require(_Reply[_Submitted], body)
        return
    _require(_Reply[_State], body)
    if body["data"]["status"] == "failed":
        raise TaskLostError(f"the service could not do the task: {_short(body['data'].get('error'))}")
    if body["data"]["status"] == "success":
        _require(_Reply[_Finished], body)


def _refusal(status: int, code: Any, message: str, *, polled: bool, wait: float | None) -> CallError:
    said = f"HTTP {status}, code {code}, {message}"
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


def _require(form: type[BaseModel], body: Any) -> None:
    problems: list[str] = []
    if validate_row(form, body, where="reply", problems=problems) is None:
        details = "; ".join(problems[:5])
        raise CallError(f"the service replies in a form that this version does not know: {details}", charged=True)


def _short(message: Any) -> str:
    return textwrap.shorten(str(message or "no message"), 300)
