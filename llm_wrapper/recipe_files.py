"""The files that recipes are made of: where they lie, what they hold, and at which line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from llm_wrapper.errors import RecipeError, nearest

__all__ = ["Places", "available", "folder", "named_file", "read"]

Places = dict[tuple[str | int, ...], str]
"""Path of a value in a file's tree -> `file:line`."""


def folder() -> Path:
    """Return the recipes of the working folder, else those beside the package."""
    local = Path("recipes")
    return local if local.is_dir() else Path(__file__).parents[1] / "recipes"


def available(root: Path, kind: str) -> list[str]:
    """Return the names of all recipes of a kind, sorted."""
    return sorted(path.stem for path in (root / kind).glob("*.yaml"))


def _places(node: yaml.Node, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """Yield (path of a value, its line from 1) of a YAML tree."""
    yield path, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value), key.start_mark.line + 1
            yield from _places(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            yield from _places(value, (*path, place))


def read(path: Path) -> tuple[dict[str, Any], Places]:
    """Read one YAML mapping; return it and where (file:line) each of its values stands.

    Raises:
        RecipeError: If it cannot be read, or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node, value = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
        places = {} if node is None else {place: f"{path}:{line}" for place, line in _places(node)}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: expected a mapping of sections, found {type(value).__name__}")
    return value, places


def named_file(root: Path, kind: str, name: str) -> Path:
    """Return the file of a recipe; a prompt may also be named by the path of its file.

    Raises:
        RecipeError: If there is none; the message says which there are.
    """
    if kind == "prompt" and name.endswith(".yaml"):
        return Path(name)
    path = root / kind / f"{name}.yaml"
    if path.is_file() and path.parent == root / kind:
        return path
    names = available(root, kind)
    raise RecipeError(
        f"no {kind} recipe is named {name!r}{nearest(name, names)} (there are: {', '.join(names) or 'none'}; "
        f"files in {root / kind})"
    )
