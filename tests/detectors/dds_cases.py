"""Every misbehaviour of the service that the detector must survive or report, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.detectors.misbehaving_server import Step

WAITING = Step(body={"code": 0, "msg": "ok", "data": {"status": "waiting", "result": None}})
RUNNING = Step(body={"code": 0, "msg": "ok", "data": {"status": "running", "result": {}}})
FAILED = Step(body={"code": 0, "msg": "ok", "data": {"status": "failed", "error": "out of memory"}})
HALF_JSON = b'{"code": 0, "msg": "ok", "data": {"task_'


def accepted(data: Any) -> Step:
    """A reply that says that all is well, with data of any form."""
    return Step(body={"code": 0, "msg": "ok", "data": data}, taken=True)


def answered(*objects: Any) -> Step:
    return Step(body={"code": 0, "data": {"status": "success", "result": {"objects": list(objects)}}})


@dataclass(frozen=True)
class Case:
    """A script, and what must come of it. `tasks` is what the service really charges for."""

    submits: tuple[Step, ...] = ()
    polls: tuple[Step, ...] = ()
    error: str | None = None
    num_submits: int = 1
    num_polls: int = 1
    charged: int = 1
    tasks: int = 1
    waited: float = 0.0


REFUSED: dict[str, Any] = {"num_polls": 0, "charged": 0, "tasks": 0}
LOST_REPLY: dict[str, Any] = {"num_submits": 2, "charged": 2}
UNKNOWN_SUBMIT: dict[str, Any] = {"num_polls": 0}

CASES = {
    "good": Case(),
    "good-later": Case(polls=(WAITING, RUNNING, RUNNING), num_polls=4, waited=0.5),
    # Worth another try, and surely not charged.
    "429-with-seconds": Case((Step(429, {"msg": "slow"}, {"Retry-After": "7"}),), num_submits=2, waited=7),
    "429-with-a-past-date": Case(
        (Step(429, b"", {"Retry-After": "Thu, 01 Jan 2015 00:00:00 GMT"}),), num_submits=2, waited=1
    ),
    "429-without": Case((Step(429, b"<html>"), Step(429, b"<html>")), num_submits=3, waited=2),
    "429-for-an-hour": Case((Step(429, {}, {"Retry-After": "3600"}),), error="pause of 3600 seconds", **REFUSED),
    "429-for-ever": Case((Step(429, {}),) * 6, error="too many requests .*6 tries", **{**REFUSED, "num_submits": 6}),
    "rate-limit-as-code": Case((Step(body={"code": 7, "msg": "Token exceeds Rate Limit"}),), num_submits=2, waited=1),
    "rate-limit-as-403": Case((Step(403, {"code": 7, "msg": "Token exceeds Rate Limit"}),), num_submits=2),
    "submit-it-again": Case((Step(body={"code": 202001, "msg": "in progress"}),), num_submits=2, waited=1),
    # Worth another try, and perhaps charged: the same idempotency key keeps it one task.
    "500": Case((Step(500, b"oops"),), **LOST_REPLY, waited=1),
    "500-after-the-task-was-taken": Case((Step(500, b"oops", taken=True),), **LOST_REPLY),
    "503-with-seconds": Case((Step(503, {"msg": "load balancer"}, {"Retry-After": "9"}),), **LOST_REPLY, waited=9),
    "408": Case((Step(408, b""),), **LOST_REPLY),
    "time-out": Case((Step(how="never"),), **LOST_REPLY),
    "time-out-after-the-task-was-taken": Case((Step(how="never", taken=True),), **LOST_REPLY),
    "broken-json": Case((Step(body=HALF_JSON, taken=True),), **LOST_REPLY),
    "not-json": Case((Step(body=b"<html>welcome</html>"),), **LOST_REPLY),
    "nothing-in-the-body": Case((Step(body=b"", taken=True),), **LOST_REPLY),
    "half-an-answer": Case((Step(how="half", taken=True),), **LOST_REPLY),
    "connection-closed": Case((Step(how="nothing", taken=True),), **LOST_REPLY),
    "500-for-ever": Case(
        (Step(500, b""),) * 6,
        error="in trouble .*Given up after 6 tries",
        num_submits=6,
        num_polls=0,
        charged=6,
        tasks=0,
    ),
    # Refused at once.
    "wrong-key": Case((Step(401, {"msg": "bad token"}),), error="key is refused .*bad token.*DDS_API_KEY", **REFUSED),
    "forbidden": Case((Step(403, b"no"),), error="key is refused .*HTTP 403.*DDS_API_KEY", **REFUSED),
    "bad-request": Case(
        (Step(400, {"code": 1, "msg": "text too long"}),), error="refuses the request .*text too long", **REFUSED
    ),
    "bad-request-as-code": Case((Step(body={"code": 1, "msg": "bad prompt"}),), error="bad prompt", **REFUSED),
    "not-found": Case((Step(404, b"<html>"),), error="refuses the request .*HTTP 404", **REFUSED),
    "quota-as-code": Case(
        (Step(body={"code": 9, "msg": "Token out of Quota"}),), error="quota or balance is used up", **REFUSED
    ),
    "quota-as-402": Case((Step(402, {"msg": "pay"}),), error="quota or balance is used up", **REFUSED),
    "quota-as-429": Case((Step(429, {"msg": "monthly quota"}),), error="quota or balance is used up", **REFUSED),
    "redirect": Case((Step(302, b"", {"Location": "/elsewhere"}),), error="refuses .*HTTP 302", **REFUSED),
    # Another form: told by field, at once; the service may have charged.
    "no-code": Case(
        (Step(body={"data": {"task_uuid": "t"}}, taken=True),), error="'code' is missing", **UNKNOWN_SUBMIT
    ),
    "code-as-text": Case(
        (Step(body={"code": "0", "data": {"task_uuid": "t"}}, taken=True),), error="reply: code:", **UNKNOWN_SUBMIT
    ),
    "no-data": Case((Step(body={"code": 0, "msg": "ok"}, taken=True),), error="'data' is missing", **UNKNOWN_SUBMIT),
    "data-is-null": Case((accepted(None),), error="reply: data:", **UNKNOWN_SUBMIT),
    "task-renamed": Case((accepted({"uuid": "t"}),), error=r"'data\.task_uuid' is missing", **UNKNOWN_SUBMIT),
    "task-is-a-number": Case((accepted({"task_uuid": 3}),), error=r"data\.task_uuid: .*got 3", **UNKNOWN_SUBMIT),
    "task-is-empty": Case((accepted({"task_uuid": ""}),), error=r"data\.task_uuid:", **UNKNOWN_SUBMIT),
    "a-list": Case((Step(body=[1, 2], taken=True),), error="form that this version does not know", **UNKNOWN_SUBMIT),
    "status-missing": Case(polls=(accepted({}),), error=r"'data\.status' is missing"),
    "status-unknown": Case(polls=(accepted({"status": "queued"}),), error=r"data\.status: .*'queued'"),
    "result-missing": Case(polls=(accepted({"status": "success"}),), error=r"'data\.result' is missing"),
    "result-is-null": Case(polls=(accepted({"status": "success", "result": None}),), error=r"data\.result:"),
    "objects-renamed": Case(
        polls=(accepted({"status": "success", "result": {"boxes": []}}),), error=r"'data\.result\.objects' is missing"
    ),
    "box-renamed": Case(
        polls=(answered({"box": [0, 0, 1, 1], "category": "a", "score": 1}),),
        error=r"'data\.result\.objects\[0\]\.bbox' is missing",
    ),
    "box-of-texts": Case(
        polls=(answered({"bbox": ["0", "0", "1", "1"], "category": "a", "score": 1}),),
        error=r"objects\[0\]\.bbox\[0\]:",
    ),
    "score-missing": Case(
        polls=(answered({"bbox": [0, 0, 1, 1], "category": "a"}),), error=r"objects\[0\]\.score' is missing"
    ),
    "score-as-text": Case(
        polls=(answered({"bbox": [0, 0, 1, 1], "category": "a", "score": "high"}),), error=r"objects\[0\]\.score:"
    ),
    "label-as-number": Case(
        polls=(answered({"bbox": [0, 0, 1, 1], "category": 5, "score": 1}),), error=r"objects\[0\]\.category:"
    ),
    # Polling fails: the same task is asked again, and nothing more is charged.
    "poll-500": Case(polls=(Step(500, b""), Step(502, b"<html>")), num_polls=3, waited=2),
    "poll-429": Case(polls=(Step(429, {}, {"Retry-After": "5"}),), num_polls=2, waited=5),
    "poll-time-out": Case(polls=(Step(how="never"),), num_polls=2),
    "poll-broken-json": Case(polls=(Step(body=HALF_JSON),), num_polls=2),
    "poll-half-an-answer": Case(polls=(RUNNING, Step(how="half")), num_polls=3),
    "poll-connection-closed": Case(polls=(Step(how="nothing"),), num_polls=2),
    "poll-500-for-ever": Case(polls=(Step(500, b""),) * 6, error="in trouble .*6 tries", num_polls=6),
    "poll-wrong-key": Case(polls=(Step(401, {"msg": "expired"}),), error="key is refused .*expired"),
    "poll-quota": Case(polls=(Step(402, {}),), error="quota or balance is used up"),
    "poll-redirect": Case(polls=(Step(302, b"", {"Location": "/elsewhere"}),), error="refuses .*HTTP 302"),
    "never-finished": Case(polls=(RUNNING,) * 99, error="not finished after 10 seconds", num_polls=20),
    # The task is lost: a new one, which is charged, but not for ever.
    "task-failed": Case(polls=(FAILED,), num_submits=2, num_polls=2, charged=2, tasks=2, waited=1),
    "task-unknown": Case(polls=(Step(404, {"msg": "?"}),), num_submits=2, num_polls=2, charged=2, tasks=2),
    "task-unknown-as-code": Case(
        polls=(Step(body={"code": 8, "msg": "?"}),), num_submits=2, num_polls=2, charged=2, tasks=2
    ),
    "task-fails-always": Case(
        polls=(FAILED,) * 3,
        error="could not do the task: out of memory",
        num_submits=3,
        num_polls=3,
        charged=3,
        tasks=3,
    ),
}
