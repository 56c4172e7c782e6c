"""The files that recipes are made of: where they lie, what they hold, and at which line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm_wrapper.errors import DataError, RecipeError, listed, nearest
from llm_wrapper.names import inside
from llm_wrapper.readers import MIB, compose_yaml, read_text

__all__ = [
    "PaperRow",
    "Places",
    "available",
    "folder",
    "is_file",
    "named_file",
    "own_template",
    "read",
    "read_paper_row",
]

_MOST_SHOWN = 200
"""Characters of a name that a message shows."""

Places = dict[tuple[str | int, ...], str]
"""Path of a value in a file's tree -> `file:line`."""


def folder() -> Path:
    """Return the recipes of the working folder, else those beside the package."""
    local = Path("recipes")
    return local if local.is_dir() else Path(__file__).parents[2] / "recipes"


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
        node, value = compose_yaml(read_text(path, most=MIB), str(path))
    except DataError as error:
        raise RecipeError(str(error)) from error
    places = {} if node is None else {place: f"{path}:{line}" for place, line in _places(node)}
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: expected a mapping of sections, found {type(value).__name__}")
    _place_template(value, path)
    return value, places


def _place_template(sections: dict[str, Any], path: Path) -> None:
    section = sections.get("prompt")
    if isinstance(section, dict) and isinstance(name := section.get("format"), str):
        try:
            section["format"] = str(own_template(path, name) or name)
        except DataError as error:
            raise RecipeError(f"{path}: prompt.format: {error}") from error


def is_file(path: Path) -> bool:
    """Tell whether there is a file of that name; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def own_template(recipe: Path, name: str) -> Path | None:
    """Return the template beside a recipe that its `prompt.format` names, `None` where that is no template's name.

    Of a path only the last part counts: a recipe may be somebody else's, and what a template holds is sent to a server.

    Raises:
        DataError: If it is a link to a file elsewhere.
    """
    if not name.endswith(".j2"):
        return None
    inside(recipe.parent, Path(name).name)
    return recipe.parent / Path(name).name


def named_file(root: Path, kind: str, name: str) -> Path:
    """Return the file of a recipe; a prompt may also be named by the path of its file.

    Raises:
        RecipeError: If there is none; the message says which there are.
    """
    if kind == "prompt" and name.endswith(".yaml"):
        return Path(name)
    path = root / kind / f"{name}.yaml"
    if is_file(path) and path.parent == root / kind:
        return path
    names, name = available(root, kind), name[:_MOST_SHOWN]
    raise RecipeError(
        f"no {kind} recipe is named {name!r}{nearest(name, names)} (there are: {', '.join(names) or 'none'}; "
        f"files in {root / kind})"
    )


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A row of the paper's tables: the names of its recipes by kind (vlm, llm, data, train), and its overrides."""

    names: dict[str, str]
    overrides: tuple[str, ...]


_CHOICES = ("vlm", "llm", "data", "train")


def read_paper_row(root: Path, name: str) -> PaperRow:
    """Read a file of `recipes/paper`.

    Raises:
        RecipeError: If there is none, a choice is no word, or an override is one that only a user may type.
    """
    path = named_file(root, "paper", name)
    values, places = read(path)
    names = {kind: values[kind] for kind in _CHOICES if kind in values}
    overrides = values.get("overrides", "")
    problems = [
        f"{places[kind,]}: {kind} is the name of a recipe (value: {value!r})"
        for kind, value in names.items()
        if not isinstance(value, str)
    ]
    if not isinstance(overrides, str):
        problems.append(f"{places['overrides',]}: overrides are words, section.key=value (value: {overrides!r})")
    problems += [
        f"{places[key,]}: unknown key {key!r}{nearest(str(key), (*_CHOICES, 'overrides', 'published'))}"
        for key in values
        if key not in (*_CHOICES, "overrides", "published")
    ]
    problems += [
        f"{places['overrides',]}: {word}: a template outside the package is named by the one who types the command"
        for word in str(overrides).split()
        if word.startswith("prompt.format=") and word.endswith(".j2")
    ]
    if problems:
        raise RecipeError(listed(f"the row {name!r} cannot be used", problems))
    return PaperRow(names, tuple(overrides.split()))
