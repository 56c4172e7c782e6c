"""Foreign text made harmless: labels and expressions cannot forge chat tokens or box lines."""

from __future__ import annotations

import unicodedata

__all__ = ["MAX_LABEL_WORDS", "clean", "clean_label"]

MAX_LABEL_WORDS = 12
"""A detector's label is cut to this many words; a dense caption stays readable, a novel does not."""

_BRACKETS = str.maketrans("<>[]{}|｜‹›«»", "()()()//()()")  # noqa: RUF001 (the lookalikes are the point)


def clean(text: str) -> str:
    r"""Return a text as one line without brackets of any chat template.

    Every chat token of every model known to us is written with ``<``, ``[``, ``{`` or ``|``
    (``<|im_end|>``, ``[INST]``, ``<start_of_turn>``), so without these characters none can be formed. Control and
    format characters (categories C and Z) become spaces, so a text cannot start a box line of its own.
    """
    normal = unicodedata.normalize("NFKC", text).translate(_BRACKETS)
    spaced = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in normal)
    return " ".join(spaced.split())


def clean_label(label: str) -> str:
    """Return a label as a clean, lower-case line of at most `MAX_LABEL_WORDS` words; `object` where nothing is left."""
    return " ".join(clean(label).lower().split()[:MAX_LABEL_WORDS]) or "object"
