"""What a reply of DeepDataSpace's service means: fine, worth another try, refused, or of a form that is not known.

The service wraps everything as `{"code": 0, "msg": ..., "data": {...}}`. Its codes are not published, so a quota that
is used up ("Token out of Quota") and too many requests ("Token exceeds Rate Limit") are known by their words, too.
"""

from __future__ import annotations

import json
import textwrap
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from llm_wrapper.calls import CallError, seconds_to_wait
from llm_wrapper.datasets.rows import Number, validated

__all__ = ["KEY_VARIABLE", "SITE", "FoundObject", "Result", "TaskLostError", "judge"]

KEY_VARIABLE = "DDS_API_KEY"
SITE = "https://cloud.deepdataspace.com"

_IN_PROGRESS = 202001
"""The code of "submit it again": a submission with the same idempotency key is being taken in."""
_Code = Annotated[int, Field(strict=True)]


class TaskLostError(CallError):
    """A submitted task that the service could not do, or no longer knows; only a new one can give an answer."""


class FoundObject(BaseModel):
    """One detected object: `bbox` is xyxy in pixels of the image that was sent, `score` is in 0..1."""

    bbox: list[Number]
    category: str
    score: Number | None


class Result(BaseModel):
    """The answer to a question."""

    objects: list[FoundObject]


class _Submitted(BaseModel):
    task_uuid: Annotated[str, Field(min_length=1)]


class _State(BaseModel):
    status: Literal["triggering", "waiting", "running", "success", "failed"]


class _Finished(BaseModel):
    result: Result


class _SubmittedReply(BaseModel):
    code: _Code
    data: _Submitted


class _PolledReply(BaseModel):
    code: _Code
    data: _State


class _FinishedReply(BaseModel):
    data: _Finished


def judge(status: int, content: bytes, *, polled: bool, retry_after: str | None = None) -> None:
    """Let a good reply pass.

    Args:
        status: The HTTP status.
        content: The body, without anything secret: parts of it stand in error messages.
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
    if validated(form, body, where="reply", problems=problems) is None:
        told = "; ".join(problems[:5])
        raise CallError(f"the service replies in a form that this version does not know: {told}", charged=True)


def _short(message: Any) -> str:
    return textwrap.shorten(str(message or "no message"), 300)
