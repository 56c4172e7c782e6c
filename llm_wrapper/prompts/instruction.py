"""The words around the objects: an instruction that a person wrote, or that an LLM found, with two places in it.

`{objects}` is where the lines of the candidates go, `{expression}` where the expression goes.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from llm_wrapper.errors import PromptError, listed

__all__ = ["MAX_CHARACTERS", "PLACEHOLDERS", "check", "fill", "require"]

PLACEHOLDERS = ("{objects}", "{expression}")
"""What an instruction holds, each exactly once."""

MAX_CHARACTERS = 1000
"""Longest instruction; it is paid for with each question."""

_BRACED = re.compile(r"\{[^{}]*\}")


def check(text: str) -> list[str]:
    """Return what is wrong with an instruction, one sentence each; nothing where it can be used.

    It is not cleaned as foreign text is: the one who chose it may write brackets. Special tokens of a model are found
    where the prompt is encoded.
    """
    if not text.strip():
        return ["the instruction is empty"]
    problems = [
        f"{place} stands in the instruction {count} times; it is needed exactly once"
        for place in PLACEHOLDERS
        if (count := text.count(place)) != 1
    ]
    unknown = dict.fromkeys(found for found in _BRACED.findall(text) if found not in PLACEHOLDERS)
    problems += [f"{each[:40]!r} is no placeholder; there are {' and '.join(PLACEHOLDERS)}" for each in unknown]
    if re.search(r"[{}]", _BRACED.sub("", text)):
        problems.append("the instruction has a brace that is not closed, or not opened")
    if controls := sorted({char for char in text if char != "\n" and unicodedata.category(char)[0] == "C"}):
        problems.append(
            f"control characters in the instruction: {', '.join(f'U+{ord(char):04X}' for char in controls)}"
        )
    if len(text) > MAX_CHARACTERS:
        problems.append(f"the instruction has {len(text)} characters; {MAX_CHARACTERS} is the most")
    return problems


@cache
def require(text: str) -> None:
    """Refuse an instruction that cannot be used.

    Raises:
        PromptError: With everything that `check` finds.
    """
    if problems := check(text):
        raise PromptError(listed("prompt.instruction cannot be used", problems))


def fill(text: str, *, objects: str, expression: str) -> str:
    """Put the candidates' lines and the expression into an instruction, both at once.

    A placeholder inside of what is put in stays as it is: an expression cannot ask for the objects again.
    """
    parts = {"{objects}": objects.strip("\n"), "{expression}": expression}
    return re.sub("|".join(map(re.escape, PLACEHOLDERS)), lambda found: parts[found[0]], text)
