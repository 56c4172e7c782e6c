"""Text that people and models wrote, made safe for prompts: labels, expressions, and instructions.

Labels and expressions cannot forge chat tokens or box lines. An instruction is the text around the candidates:
`{objects}` is where their lines go, `{expression}` where the expression goes.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import chain

from llm_wrapper.errors import PromptError, listed
from llm_wrapper.records import MAX_EXPRESSION

MAX_LABEL_WORDS = 12
"""A detector's label is cut to this many words; a dense caption stays readable."""

_MAX_LABEL = 1_000
"""Characters of a label that are read."""

_MAX_MARKS = 4
"""Combining marks on one letter; Vietnamese has two, pointed Hebrew three. Sorting a million of them takes hours."""

_BRACKETS = str.maketrans("<>[]{}|｜‹›«»", "()()()//()()")  # noqa: RUF001 (the lookalikes are the point)

_INVISIBLE = dict.fromkeys(
    chain(
        range(0xFE00, 0xFE10),  # variation selectors
        range(0xE0100, 0xE01F0),
        (0x034F, 0x115F, 0x1160, 0x3164, 0xFFA0, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x2800),
        (0x16FE4, 0x1D159),
    )
)
"""Invisible characters that are neither space nor control: fillers, selectors, and the blank of Braille."""


def clean_text(text: str) -> str:
    r"""Return a text as one line without brackets of any chat template.

    Every chat token of every known model is written with ``<``, ``[``, ``{`` or ``|``. Control and format characters
    (categories C and Z) become spaces, so that a text cannot start a new box line. Brackets are searched in the
    decomposed text: a tokenizer that decomposes would find one in ``\u226e`` (not less than).
    """
    if text.isascii():
        normal = text.translate(_BRACKETS)
    else:
        parts = unicodedata.normalize("NFKD", _few_marks(text)).translate(_BRACKETS).translate(_INVISIBLE)
        normal = unicodedata.normalize("NFC", _few_marks(parts))
    spaced = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in normal)
    return " ".join(spaced.split())


def _few_marks(text: str) -> str:
    kept, run = [], 0
    for char in text:
        run = run + 1 if unicodedata.category(char)[0] == "M" else 0
        if run <= _MAX_MARKS:
            kept.append(char)
    return "".join(kept)


def clean_label(label: str) -> str:
    """Return a label as a clean, lower-case line of at most `MAX_LABEL_WORDS` words; `object` where nothing is left."""
    return " ".join(clean_text(label[:_MAX_LABEL]).lower().split()[:MAX_LABEL_WORDS]) or "object"


def require_expression(expression: str) -> str:
    """Return an expression cleaned for an LLM; refuse one that is invisible or too long (PromptError)."""
    if len(expression) > MAX_EXPRESSION:
        raise PromptError(
            f"the expression {expression[:40]!r}.. has {len(expression)} characters; {MAX_EXPRESSION} is the most"
        )
    text = clean_text(expression)
    if all(unicodedata.category(char)[0] in "MZ" for char in text):  # nothing, spaces, or accents alone
        raise PromptError(f"the expression {expression[:40]!r} is empty: say what to find")
    return text


PLACEHOLDERS = ("{objects}", "{expression}")
"""An instruction holds each exactly once."""

MAX_INSTRUCTION = 1000
"""Longest instruction; each question repeats it."""

_BRACED = re.compile(r"\{[^{}]*\}")


def check_instruction(text: str) -> list[str]:
    """Return the problems of an instruction, one sentence each; unlike labels it may hold brackets."""
    if not text.strip():
        return ["the instruction is empty"]
    problems = [
        f"{name} occurs in the instruction {count} times; it is needed exactly once"
        for name in PLACEHOLDERS
        if (count := text.count(name)) != 1
    ]
    unknown = dict.fromkeys(found for found in _BRACED.findall(text) if found not in PLACEHOLDERS)
    problems += [f"{each[:40]!r} is no placeholder; there are {' and '.join(PLACEHOLDERS)}" for each in unknown]
    if re.search(r"[{}]", _BRACED.sub("", text)):
        problems.append("the instruction has a brace that is not closed, or not opened")
    if controls := sorted({char for char in text if char != "\n" and unicodedata.category(char)[0] == "C"}):
        problems.append(
            f"control characters in the instruction: {', '.join(f'U+{ord(char):04X}' for char in controls)}"
        )
    if len(text) > MAX_INSTRUCTION:
        problems.append(f"the instruction has {len(text)} characters; {MAX_INSTRUCTION} is the most")
    return problems


@cache
def require_instruction(text: str) -> None:
    """Refuse an instruction with all its problems (PromptError)."""
    if problems := check_instruction(text):
        raise PromptError(listed("prompt.instruction cannot be used", problems))


def fill_instruction(text: str, *, objects: str, expression: str) -> str:
    """Fill in the candidates' lines and the expression at once, so that an expression cannot hold a placeholder."""
    parts = {"{objects}": objects.strip("\n"), "{expression}": expression}
    return re.sub("|".join(map(re.escape, PLACEHOLDERS)), lambda found: parts[found[0]], text)
