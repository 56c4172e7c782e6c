"""Find recipe files, the user's own before the shipped ones, and read them with the line of each value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llm_wrapper.errors import DataError, RecipeError, listed, nearest
from llm_wrapper.readers import MIB, compose_yaml, read_text
from llm_wrapper.storage import inside, plain_name

RECIPE_KINDS: dict[str, tuple[str, ...]] = {
    "vlm": ("detector", "candidates"),
    "llm": ("llm",),
    "data": ("data",),
    "train": ("prompt", "train"),
    "prompt": ("prompt",),
    "search": ("search",),
}
"""Folder under `recipes/` -> the sections that its files give."""

DEFAULT_PROMPT = "hints"
"""The prompt of a training that a file to start from holds without one; a file of `recipes/train` names its own."""

_MAX_SHOWN = 200  # characters of a name that a message shows

Places = dict[tuple[str | int, ...], str]
"""Path of a value in a file's tree -> `file:line`."""


def shipped_folder() -> Path:
    """Return the folder with the `recipes` and the `data` that come with the package: in a wheel, or in a checkout."""
    package = Path(__file__).parents[1]
    return package / "_shipped" if (package / "_shipped").is_dir() else package.parent


def recipe_folders() -> list[Path]:
    """Return the folders that are searched for a recipe, in order: `./recipes`, then the shipped one."""
    return [Path("recipes"), shipped_folder() / "recipes"]


def data_folders() -> list[Path]:
    """Return the folders of data that need no naming: `./data`, and the toy data that come with the package."""
    return [Path("data"), shipped_folder() / "data"]


def available(kind: str, folders: Sequence[Path] | None = None) -> list[str]:
    """Return the names of all recipes of a kind, sorted."""
    folders = recipe_folders() if folders is None else folders
    return sorted({path.stem for folder in folders for path in (folder / kind).glob("*.yaml")})


def has_file(path: Path) -> bool:
    """Tell whether there is a file of that name; False for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def find_recipe(kind: str, name: str, folders: Sequence[Path] | None = None) -> Path:
    """Return the file of a recipe; a prompt may also be named by the path of its file."""
    if kind == "prompt" and name.endswith(".yaml"):
        return Path(name)
    folders = recipe_folders() if folders is None else folders
    for folder in folders:
        path = folder / kind / f"{name}.yaml"
        if has_file(path) and path.parent == folder / kind:
            return path
    names, name = available(kind, folders), name[:_MAX_SHOWN]
    where = dict.fromkeys(str(folder / kind) for folder in folders if (folder / kind).is_dir())
    raise RecipeError(
        f"no {kind} recipe is named {name!r}{nearest(name, names)} (there are: {', '.join(names) or 'none'}; "
        f"files in {' and '.join(where) or folders[0] / kind})"
    )


def _lines(node: yaml.Node, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """Yield (path of a value, its line from 1) of a YAML tree."""
    yield path, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value), key.start_mark.line + 1
            yield from _lines(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*path, index))


def read_sections(path: Path) -> tuple[dict[str, Any], Places]:
    """Read one YAML mapping, and the place (`file:line`) of each of its values."""
    try:
        node, value = compose_yaml(read_text(path, most=MIB), str(path))
    except DataError as error:
        raise RecipeError(str(error)) from error
    places = {} if node is None else {place: f"{path}:{line}" for place, line in _lines(node)}
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: expected a mapping of sections, found {type(value).__name__}")
    prompt = value.get("prompt")
    if isinstance(prompt, dict) and isinstance(name := prompt.get("format"), str):
        try:
            prompt["format"] = str(template_beside(path, name) or name)
        except DataError as error:
            raise RecipeError(f"{path}: prompt.format: {error}") from error
    return value, places


def template_beside(recipe: Path, name: str) -> Path | None:
    """Return the template beside a recipe that its `prompt.format` names, `None` where that is no template's name.

    Of a path only the last part counts, and no link to a file elsewhere: a recipe may be somebody else's, and a
    template's text is sent to a server.
    """
    if not name.endswith(".j2"):
        return None
    inside(recipe.parent, Path(name).name)
    return recipe.parent / Path(name).name


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A file that a recipe starts from: a run's `recipe.yaml`, a row of the paper's tables, or the user's own.

    A word names a recipe of that kind, and a mapping is the section itself:

        vlm: flo2                                  recipes/vlm/flo2.yaml
        llm: {model: google/gemma-2-2b-it}         the section `llm`
        overrides: train.epochs=2 candidates.cap=10
    """

    names: Mapping[str, str] = field(default_factory=dict)
    sections: Mapping[str, Any] = field(default_factory=dict)
    places: Places = field(default_factory=dict)
    overrides: tuple[str, ...] = ()

    def gives(self, kind: str) -> bool:
        """Tell whether the file settles a kind: by the name of a recipe, or by the section that it needs."""
        return kind in self.names or {"vlm": "detector"}.get(kind, kind) in self.sections

    def label(self, kind: str) -> str | None:
        """Return a name for folders of results: that of the recipe of a kind, else one from its section, if any."""
        if kind in self.names:
            return self.names[kind]
        section = self.sections.get("detector" if kind == "vlm" else kind)
        keys = {"vlm": ("label", "name"), "llm": ("model", "backend"), "data": ("name",)}.get(kind, ())
        names = [section[key] for key in keys if section.get(key)] if isinstance(section, Mapping) else []
        return plain_name(str(names[0])) if names else None


def read_recipe_file(name: str, folders: Sequence[Path] | None = None) -> RecipeFile:
    """Read a file to start from, by its path (`.yaml`) or by the name of a row in `recipes/paper`."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else find_recipe("paper", name, folders)
    values, places = read_sections(path)
    known = (*RECIPE_KINDS, "detector", "candidates", "ensemble", "overrides", "published")
    overrides = values.pop("overrides", "")
    values.pop("published", None)
    names = {kind: value for kind, value in values.items() if kind in RECIPE_KINDS and isinstance(value, str)}
    sections = {key: value for key, value in values.items() if key not in names and key != "vlm" and value is not None}
    if "train" in sections and "prompt" not in values:
        names["prompt"] = DEFAULT_PROMPT
    problems = [
        f"{places.get((key,), path)}: unknown key {str(key)[:_MAX_SHOWN]!r}{nearest(str(key), known)}"
        for key in values
        if key not in known
    ]
    if not isinstance(values.get("vlm", ""), str):
        problems.append(f"{places['vlm',]}: vlm is the name of a recipe; settings are in the section detector")
    if not isinstance(overrides, str):
        problems.append(f"{places['overrides',]}: overrides are words, section.key=value (value: {overrides!r})")
    problems += [
        f"{places['overrides',]}: {word}: a template outside the package is named by the one who types the command"
        for word in str(overrides).split()
        if word.startswith("prompt.format=") and word.endswith(".j2")
    ]
    if problems:
        raise RecipeError(listed(f"the recipe {name!r} cannot be used", problems))
    return RecipeFile(names, sections, places, tuple(overrides.split()))
