"""Render templates of strangers in a process that is bounded in memory, time and output.

    chat template of a model      TemplateRenderer --a line of JSON--> this file, run as a script
    prompt template of a user                      <--a line of JSON-- {text} | {missing} | {error, kind, line}

The script runs isolated, with Jinja alone: neither the package nor transformers, whose import takes seconds. Chat
templates are rendered in the environment that transformers gives them; a test compares the two.
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
from collections.abc import Mapping
from datetime import date
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = sys.argv[1:]  # where Jinja is: an isolated interpreter does not look everywhere

import jinja2
import jinja2.ext
import jinja2.sandbox
import markupsafe

_READ = 1 << 16
_MAX_BYTES = 512 * 1024**2
"""Address space of the process."""
_MAX_ERROR = 300


class TemplateRenderer:
    """The process that renders, started on first use, and again after it had to be ended."""

    seconds = 10.0
    """Limit of one rendering, which needs a fraction of a millisecond; a start needs a tenth of a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        atexit.register(self.end)

    def render_chat(self, template: str, variables: Mapping[str, Any], *, day: str) -> dict[str, Any]:
        """Render a chat template as transformers does; `strftime_now` gives it the day, as `2024-07-26`."""
        return self._ask({"template": template, "day": day, "variables": variables, "most": 4_000_000})

    def render_prompt(self, template: str, variables: Mapping[str, Any], block: str | None) -> dict[str, Any]:
        """Render a prompt template, or one of its blocks; dictionaries become objects, so `c.box.x0` is a value."""
        return self._ask({"template": template, "block": block, "variables": variables, "most": 1_000_000})

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the process's reply.

        Raises:
            OSError, ValueError: If none comes in time; the process is ended.
        """
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
                [sys.executable, "-I", __file__, *sorted(folders)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
            self._owner = os.getpid()
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], request: Mapping[str, Any]) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        unsent = memoryview(json.dumps(request).encode() + b"\n")
        while unsent:
            unsent = unsent[process.stdin.write(unsent) or 0 :]
        end, reply = time.monotonic() + self.seconds, bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not reply.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise ValueError(f"it runs longer than {self.seconds:g} seconds")
                piece = os.read(process.stdout.fileno(), _READ)
                if not piece:
                    raise ValueError("it ends the process that renders it")
                reply += piece
        answer: dict[str, Any] = json.loads(reply)
        return answer


TEMPLATES = TemplateRenderer()
"""The renderer of this process."""


# --- in the process that renders -------------------------------------------------------------------------------------


class _Namespace(jinja2.utils.Namespace):
    """A namespace without underscored attributes, as transformers has it."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args  # so that a template may set an attribute `self`
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _Namespace._check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace takes no attribute {name!r}")


class _Dict:
    """`dict` without the attributes of a type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Return a new one."""
        return dict(*args, **kwargs)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant writes; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Any) -> Any:
        """Return the block's content."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: object) -> None:
    raise jinja2.exceptions.TemplateError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON without the escapes of HTML that jinja2's own filter has."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=16)
def _compile_chat(template: str, day: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_refuse,
        strftime_now=date.fromisoformat(day).strftime,
        dict=_Dict(),
        namespace=_Namespace,
    )
    return environment.from_string(template)


@lru_cache(maxsize=4)
def _compile_prompt(template: str) -> jinja2.Template:
    return jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined).from_string(template)


def _objects(value: Any) -> Any:
    if isinstance(value, dict):
        return SimpleNamespace(**{name: _objects(item) for name, item in value.items()})
    return tuple(map(_objects, value)) if isinstance(value, list) else value


def _prompt_variables(values: dict[str, Any]) -> dict[str, Any]:
    """Return the variables of the package's own templates, under the names of `render.ShownCandidate`."""
    company = {int(index): labels for index, labels in values.pop("company").items()}
    shown = {name: list(map(_objects, values.pop(name))) for name in ("candidates", "likely")}
    return {**values, "company": company, **shown}


def _render(request: dict[str, Any]) -> dict[str, Any]:
    variables = request["variables"]
    if "day" in request:
        pieces = _compile_chat(request["template"], request["day"]).generate(variables)
    else:
        template, known, block = _compile_prompt(request["template"]), _prompt_variables(variables), request["block"]
        if block is not None and block not in template.blocks:
            return {"missing": block}
        pieces = template.generate(known) if block is None else template.blocks[block](template.new_context(known))
    text, length = [], 0
    for piece in pieces:
        length += len(piece)
        if length > request["most"]:
            raise ValueError(f"it writes more than {request['most']:,} characters")
        text.append(piece)
    return {"text": "".join(text)}


def _reply(line: str) -> dict[str, Any]:
    try:
        return _render(json.loads(line))
    except jinja2.TemplateSyntaxError as error:
        return {"error": str(error.message)[:_MAX_ERROR], "kind": type(error).__name__, "line": error.lineno}
    except Exception as error:  # a template may do anything, and what it raises is its own
        return {"error": str(error)[:_MAX_ERROR], "kind": type(error).__name__}


def _main() -> None:
    """Answer line by line, until standard input ends."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    except (ImportError, ValueError, OSError):  # where there is no such limit, time and length are bounded still
        pass
    for line in sys.stdin:
        print(json.dumps(_reply(line)), flush=True)


if __name__ == "__main__":
    _main()
