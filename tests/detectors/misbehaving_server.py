"""A local stand-in for DeepDataSpace's service: it misbehaves by a script, and counts what it would charge for."""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal


@dataclass(frozen=True)
class Step:
    """One scripted reply.

    `body` is sent as it is (bytes) or as JSON; `None` is the good answer. `how` much of it arrives: all, the first half
    of what is announced, nothing (the connection is closed), or nothing ever. A submission with `taken` becomes a task,
    and is charged, whatever is replied.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    how: Literal["all", "half", "nothing", "never"] = "all"
    taken: bool = False

    @property
    def refuses(self) -> bool:
        """Whether the client can be sure that nothing was charged."""
        code = self.body.get("code") if isinstance(self.body, dict) else None
        refused = 300 <= self.status < 500 and self.status != 408
        return self.how == "all" and (refused or (self.status < 500 and isinstance(code, int) and code != 0))

    @property
    def good(self) -> bool:
        return self.status == 200 and self.body is None and self.how == "all"


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


GOOD = Step()
OBJECTS = [{"bbox": [1, 2, 6.5, 5], "category": "left zebra", "score": 0.75}]


class MisbehavingServer:
    """Serves scripted replies, then good ones; use it in a `with` block.

    Attributes:
        submits: What to reply to submissions.
        polls: What to reply to questions about a task.
        seen: All requests.
        tasks: Idempotency key -> task; each is charged once.
        num_maybe_charged: Submissions that were not clearly refused: what an honest budget counts.
        objects: What a good answer finds.
        on_submit: Called at each submission.
        hanging: Released once for each request that is never answered, when it has been counted.
    """

    def __init__(self) -> None:
        self.submits: deque[Step] = deque()
        self.polls: deque[Step] = deque()
        self.seen: list[Seen] = []
        self.tasks: dict[str, str] = {}
        self.num_maybe_charged = 0
        self.objects: Any = OBJECTS
        self.on_submit: Callable[[], None] = lambda: None
        self.hanging = threading.Semaphore(0)
        self.released = threading.Event()
        self._http = _Quiet(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def count(self, method: str) -> int:
        return sum(each.method == method for each in self.seen)

    def hangs_next(self, method: str) -> bool:
        script = self.submits if method == "POST" else self.polls
        return bool(script) and script[0].how == "never"

    def submit(self, seen: Seen) -> tuple[Step, Any]:
        """Take in a submission; return the step to follow and the good answer."""
        self.on_submit()
        step = self.submits.popleft() if self.submits else GOOD
        self.num_maybe_charged += not step.refuses
        key = seen.headers["Idempotency-Key"]
        if step.good or step.taken:
            self.tasks.setdefault(key, f"task-{len(self.tasks)}")
        return step, {"code": 0, "msg": "ok", "data": {"task_uuid": self.tasks.get(key)}}

    def poll(self, seen: Seen) -> tuple[Step, Any]:
        step = self.polls.popleft() if self.polls else GOOD
        if seen.path.rpartition("/")[2] not in self.tasks.values():
            return Step(404, {"code": 4, "msg": "no such task"}), None
        return step, {"code": 0, "msg": "ok", "data": {"status": "success", "result": {"objects": self.objects}}}

    def __enter__(self) -> MisbehavingServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is what the tests are about."""


def _handler(server: MisbehavingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            seen = Seen("POST", self.path, dict(self.headers), json.loads(content))
            server.seen.append(seen)
            self._reply(*server.submit(seen))

        def do_GET(self) -> None:
            seen = Seen("GET", self.path, dict(self.headers), None)
            server.seen.append(seen)
            self._reply(*server.poll(seen))

        def _reply(self, step: Step, good: Any) -> None:
            if step.how in ("nothing", "never"):
                if step.how == "never":
                    server.hanging.release()
                    server.released.wait(60)
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            body = good if step.body is None else step.body
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(step.status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in step.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if step.how == "half" else content)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler
