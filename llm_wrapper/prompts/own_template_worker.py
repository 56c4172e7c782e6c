"""Renders prompt templates of users in a process of its own, see `bounded_process`.

    a line of JSON {template, block, known}  ->  a line of JSON {text}, {missing} or {error, line}

It is run as a script, without the package. What a template is given are plain values under the names of those of
`render.ShownCandidate`, so that `c.box.x0` is what it is in the package's own templates.
"""

from __future__ import annotations

import json
import sys
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

sys.path[:0] = sys.argv[1:]  # where jinja2 is: an isolated interpreter does not look everywhere

import jinja2  # noqa: E402
import jinja2.sandbox  # noqa: E402

_MAX_BYTES = 512 * 1024**2
"""Address space of this process."""
_MAX_CHARACTERS = 1_000_000
_MAX_ERROR = 300


@lru_cache(maxsize=4)
def _compiled(template: str) -> jinja2.Template:
    return jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined).from_string(template)


def _objects(value: Any) -> Any:
    if isinstance(value, dict):
        return SimpleNamespace(**{name: _objects(item) for name, item in value.items()})
    return tuple(map(_objects, value)) if isinstance(value, list) else value


def _known(values: dict[str, Any]) -> dict[str, Any]:
    plain = {"company": {int(index): labels for index, labels in values.pop("company").items()}}
    shown = {name: list(map(_objects, values.pop(name))) for name in ("candidates", "likely")}
    return {**values, **plain, **shown}


def _reply(line: str) -> dict[str, Any]:
    asked = json.loads(line)
    try:
        template = _compiled(asked["template"])
        known, block = _known(asked["known"]), asked["block"]
        if block is not None and block not in template.blocks:
            return {"missing": block}
        pieces = template.generate(known) if block is None else template.blocks[block](template.new_context(known))
        text, length = [], 0
        for piece in pieces:
            length += len(piece)
            if length > _MAX_CHARACTERS:
                raise ValueError(f"it writes more than {_MAX_CHARACTERS:,} characters")
            text.append(piece)
        return {"text": "".join(text)}
    except jinja2.TemplateSyntaxError as error:
        return {"error": str(error.message)[:_MAX_ERROR], "line": error.lineno}
    except Exception as error:  # a template may do anything, and what it raises is its own
        return {"error": (str(error) or type(error).__name__)[:_MAX_ERROR]}


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
