"""Chat templates of models: programs of strangers, rendered in a process that is bounded in memory, time and output.

messages -> template_worker (a process that lives as long as this one) -> text, or a ModelError
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_wrapper.bounded_process import BoundedProcess
from llm_wrapper.errors import ModelError
from llm_wrapper.llms import template_worker
from llm_wrapper.terminal import printable

__all__ = ["ChatTemplate", "template_of"]

_SECONDS = 20.0
"""For one rendering, which takes a fraction of a millisecond; a process starts in a tenth of a second."""
_MAX_TEMPLATE = 1_000_000


_WORKER = BoundedProcess(template_worker.__file__, seconds=_SECONDS)


def template_of(tokenizer: Any, chat_template: str | None = None) -> str:
    """Return the text of the chat template to use: the recipe's own, else the tokenizer's.

    Raises:
        ModelError: If there is none, or several and none of them is the default.
    """
    name = tokenizer.name_or_path
    found: Any = chat_template or getattr(tokenizer, "chat_template", None)
    if isinstance(found, Mapping) and found:
        if "default" not in found:
            names = printable(", ".join(sorted(map(str, found))))[:200]
            raise ModelError(
                f"the tokenizer {name!r} has several chat templates and none is called default ({names}); put the text "
                "of one into llm.chat_template"
            )
        found = found["default"]
    if not found:
        raise ModelError(
            f"the tokenizer {name!r} has no chat template; "
            "set llm.chat_template in the recipe (recipes/llm/gpt-neo.yaml shows how)"
        )
    if not isinstance(found, str) or len(found) > _MAX_TEMPLATE:
        raise ModelError(f"the chat template of {name!r} is not a text of at most {_MAX_TEMPLATE:,} characters")
    return found


class ChatTemplate:
    """A chat template with what it knows besides the messages.

    Args:
        text: In Jinja.
        variables: Such as `bos_token` and `enable_thinking`.
        day: What `strftime_now` tells the template, as `2024-07-26`.
        name: Whose it is, for messages.
    """

    def __init__(self, text: str, variables: Mapping[str, Any], *, day: str, name: str) -> None:
        self._text = text
        self._variables = {"tools": None, "documents": None, **variables}
        self._day = day
        self._name = name

    def render(self, rows: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """Return the chat of rows {"role", "content"} as text.

        Raises:
            ModelError: If the template fails, or takes too long or too much.
        """
        variables = {**self._variables, "messages": rows, "add_generation_prompt": add_generation_prompt}
        try:
            reply = _WORKER.ask({"template": self._text, "date": self._day, "variables": variables})
        except (OSError, ValueError) as error:
            reply = {"error": str(error)}
        if "text" in reply:
            return reply["text"]
        raise ModelError(
            f"the chat template of {self._name!r} fails: {printable(reply['error'])}. Put another one into "
            "llm.chat_template (recipes/llm/gpt-neo.yaml shows how)"
        )
