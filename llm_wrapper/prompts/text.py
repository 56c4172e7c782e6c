"""Foreign text made harmless: labels and expressions cannot forge chat tokens or box lines."""

from __future__ import annotations

import unicodedata
from itertools import chain

from llm_wrapper.errors import PromptError
from llm_wrapper.records import MAX_EXPRESSION

__all__ = ["MAX_LABEL_WORDS", "clean", "clean_label", "require_expression"]

MAX_LABEL_WORDS = 12
"""A detector's label is cut to this many words; a dense caption stays readable, a novel does not."""

_MAX_LABEL = 1_000
"""Characters of a label that are looked at."""

_MAX_MARKS = 4
"""Combining marks on one letter; Vietnamese has two, pointed Hebrew three. Sorting a million of them takes hours."""

_BRACKETS = str.maketrans("<>[]{}|｜‹›«»", "()()()//()()")  # noqa: RUF001 (the lookalikes are the point)

_INVISIBLE = dict.fromkeys(
    chain(
        range(0xFE00, 0xFE10),  # variation selectors
        range(0xE0100, 0xE01F0),
        (
            0x034F,
            0x115F,
            0x1160,
            0x3164,
            0xFFA0,
            0x17B4,
            0x17B5,
            0x180B,
            0x180C,
            0x180D,
            0x180F,
            0x2800,
            0x16FE4,
            0x1D159,
        ),
    )
)
"""Characters that show nothing, and are neither space nor control: fillers, selectors, and the blank of Braille."""


def clean(text: str) -> str:
    r"""Return a text as one line without brackets of any chat template.

    Every chat token of every model known to us is written with ``<``, ``[``, ``{`` or ``|``
    (``<|im_end|>``, ``[INST]``, ``<start_of_turn>``), so without these characters none can be formed. Control and
    format characters (categories C and Z) become spaces, so a text cannot start a box line of its own; other invisible
    ones go, and of many marks on one letter the first few stay.

    The text is taken apart before brackets are looked for: a tokenizer that takes it apart itself would find one in
    ``\u226e`` (not less than).
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
    return " ".join(clean(label[:_MAX_LABEL]).lower().split()[:MAX_LABEL_WORDS]) or "object"


def require_expression(expression: str) -> str:
    """Return an expression clean, as it is shown to an LLM.

    Raises:
        PromptError: If nothing can be seen of it, so that a prompt would ask for nothing, or it is too long.
    """
    if len(expression) > MAX_EXPRESSION:
        raise PromptError(
            f"the expression {expression[:40]!r}.. has {len(expression)} characters; {MAX_EXPRESSION} is the most"
        )
    text = clean(expression)
    if all(unicodedata.category(char)[0] in "MZ" for char in text):  # an accent alone says nothing
        raise PromptError(f"the expression {expression[:40]!r} is empty: say what to find")
    return text
