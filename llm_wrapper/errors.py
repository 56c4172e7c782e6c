"""Every exception that the package raises on purpose.

    LLMWrapperError
    ├── RecipeError      a recipe, or a name or value given on the command line
    ├── DataError        annotations, images and files of expressions
    │   └── ImageError   one image that cannot be read
    ├── CacheError       detections on disk: missing, damaged, or made by another recipe
    ├── PromptError      a prompt that cannot be rendered, or is longer than the model's limit
    ├── ModelError       an LLM, tokenizer or adapter that cannot be used as asked
    └── RunError         a run folder: exists already, incomplete, or of another recipe

A message says what was wrong, the value, where, and the command or edit that fixes it.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Sequence


class LLMWrapperError(Exception):
    """Base of all errors that a user can act on."""


class RecipeError(LLMWrapperError):
    """A recipe cannot be composed or validated."""


class DataError(LLMWrapperError):
    """Annotations or expressions cannot be used."""


class ImageError(DataError):
    """One image cannot be read."""


class CacheError(LLMWrapperError):
    """Cached detections are missing, damaged, or belong to another recipe."""


class PromptError(LLMWrapperError):
    """A prompt cannot be rendered or does not fit."""


class ModelError(LLMWrapperError):
    """An LLM, its tokenizer or its adapter cannot be used as asked."""


class RunError(LLMWrapperError):
    """A run folder cannot be used."""


def listed(headline: str, problems: Iterable[str], *, most: int = 20) -> str:
    """Format a headline and its problems, one a line, so that all are seen at once; beyond `most` they are counted."""
    rows = list(problems)
    shown = [f"  - {row}" for row in rows[:most]]
    if len(rows) > most:
        shown.append(f"  - and {len(rows) - most} more")
    return "\n".join([f"{headline} ({len(rows)} problem{'s' if len(rows) != 1 else ''}):", *shown])


def nearest(word: str, known: Sequence[str]) -> str:
    """Return `; did you mean X?` where a known word is close, else nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def shell_word(value: object) -> str:
    """Return a value as one word of a command that a message suggests: pasted into a shell, it runs nothing else."""
    return shlex.quote(str(value))
