"""Names that become paths: the one place where a word of a recipe, a manifest or a command line turns into a folder.

A name is one plain part of a path. A path that a file gives is used only where it stays under the folder that the user
named, with all links resolved.
"""

from __future__ import annotations

import re
from pathlib import Path

from llm_wrapper.errors import DataError, RecipeError

__all__ = ["MAX_NAME", "folder_name", "inside"]

MAX_NAME = 150
"""Bytes of a name in UTF-8; file systems take 255, and names are joined to others."""

_PLAIN = re.compile(r"[\w+-][\w.+-]*")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
"""Names that are devices on Windows whatever their ending."""


def folder_name(name: str, what: str) -> str:
    """Return a name that is safe as one part of a path.

    Args:
        name: Letters, digits, `_`, `.`, `+` and `-`; it does not begin with a dot.
        what: Where it was given, as the message names it (`data.name`, `--split`).

    Raises:
        RecipeError: If it is anything else, such as `..` or an absolute path.
    """
    if len(name) > MAX_NAME or len(name.encode("utf-8", "replace")) > MAX_NAME:
        raise RecipeError(f"{what}: a name of {len(name)} characters; a folder's has at most {MAX_NAME} bytes.")
    if not _PLAIN.fullmatch(name) or _RESERVED.fullmatch(name):
        raise RecipeError(
            f"{what}={name!r} becomes a folder's name: use letters, digits, '_', '.', '+' and '-', "
            "and no dot at the beginning."
        )
    return name


def inside(root: Path, path: str | Path) -> Path:
    """Return `path` under `root`, which it must not leave, neither by `..` nor by an absolute path nor by a link.

    Args:
        root: A folder that the user named.
        path: Relative to it, or under it: absolute, or beginning with a relative root.

    Raises:
        DataError: If it lies elsewhere.
    """
    try:
        home = root.resolve()
        place = Path(path)
        found = (Path.cwd() / place if place.is_relative_to(root) else home / place).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{str(path)[:200]!r} is no path under {root}: {error}") from error
    if not found.is_relative_to(home):
        raise DataError(f"{str(path)[:200]!r} lies outside {root}: only files under it are used.")
    return found
