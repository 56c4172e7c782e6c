"""Renders chat templates in a process of its own, where a hostile one can take neither memory nor time from us.

    a line of JSON {template, date, variables}  ->  a line of JSON {text} or {error}

It is run as a script by `llms/chat_template.py`, without the package and without transformers, whose import takes
seconds; the environment is the one that transformers renders chat templates in, and a test holds them against each
other. It ends when its standard input does.
"""

from __future__ import annotations

import json
import sys
from datetime import date
from functools import lru_cache
from typing import Any

sys.path[:0] = sys.argv[1:]  # where jinja2 is: an isolated interpreter does not look everywhere

import jinja2  # noqa: E402
import jinja2.ext  # noqa: E402
import jinja2.sandbox  # noqa: E402

_MAX_BYTES = 512 * 1024**2
"""Address space of this process."""
_MAX_CHARACTERS = 4_000_000
_MAX_ERROR = 300


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


def _json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON without the escapes of HTML that jinja2's own filter has."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=16)
def _compiled(template: str, day: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _json
    environment.globals.update(
        raise_exception=_refuse,
        strftime_now=date.fromisoformat(day).strftime,
        dict=_Dict(),
        namespace=_Namespace,
    )
    return environment.from_string(template)


def _rendered(template: str, day: str, variables: dict[str, Any]) -> str:
    pieces, length = [], 0
    for piece in _compiled(template, day).generate(variables):
        length += len(piece)
        if length > _MAX_CHARACTERS:
            raise ValueError(f"it writes more than {_MAX_CHARACTERS:,} characters")
        pieces.append(piece)
    return "".join(pieces)


def _reply(line: str) -> dict[str, str]:
    asked = json.loads(line)
    try:
        return {"text": _rendered(asked["template"], asked["date"], asked["variables"])}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"[:_MAX_ERROR]}
    except Exception as error:  # a template may do anything, and what it raises is its own
        return {"error": f"{type(error).__name__}: {error}"[:_MAX_ERROR]}


def main() -> None:
    """Answer line by line."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    except (ImportError, ValueError, OSError):  # where there is no such limit, time and length are bounded still
        pass
    for line in sys.stdin:
        print(json.dumps(_reply(line)), flush=True)


if __name__ == "__main__":
    main()
