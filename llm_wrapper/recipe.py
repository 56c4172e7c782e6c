"""Recipes: one short YAML file per choice, composed by name, overridden by `section.key=value`, validated at once.

A recipe has seven sections. `recipes/vlm` gives `detector` and `candidates`, `recipes/llm` gives `llm`, `recipes/data`
gives `data`, `recipes/train` gives `prompt` and `train`. No file inherits from another. `a+b` names two files of
`recipes/vlm`: the second detector and its candidates stand in `ensemble`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llm_wrapper.candidates import CandidatePolicy
from llm_wrapper.errors import RecipeError, listed, nearest
from llm_wrapper.sections import (
    DataSection,
    DetectorSection,
    EnsembleSection,
    LLMSection,
    LoraSection,
    OtherData,
    OtherDetector,
    PromptSection,
    Section,
    ServerSection,
    TrainSection,
)

__all__ = [
    "DataSection",
    "DetectorSection",
    "EnsembleSection",
    "LLMSection",
    "LoraSection",
    "OtherData",
    "OtherDetector",
    "PromptSection",
    "Recipe",
    "ServerSection",
    "TrainSection",
    "available",
    "compose",
    "load_resolved",
]

KINDS: dict[str, tuple[str, ...]] = {
    "vlm": ("detector", "candidates"),
    "llm": ("llm",),
    "data": ("data",),
    "train": ("prompt", "train"),
}
"""Folder under `recipes/` -> the sections its files may hold."""


class Recipe(Section):
    """All choices of one run, resolved."""

    detector: DetectorSection
    candidates: CandidatePolicy = CandidatePolicy()
    ensemble: EnsembleSection = EnsembleSection()
    data: DataSection
    prompt: PromptSection = PromptSection()
    llm: LLMSection
    train: TrainSection = TrainSection()

    @property
    def vlm(self) -> str:
        """The labels of the detectors, joined by `+`."""
        return "+".join(each.detector.label or each.detector.name for each in self.detectors())

    def detectors(self) -> list[OtherDetector]:
        """Return all detectors with their candidates, the recipe's own first."""
        return [OtherDetector(detector=self.detector, candidates=self.candidates), *self.ensemble.also.values()]

    def with_detectors(self, kept: Sequence[OtherDetector]) -> Recipe:
        """Return a recipe of some detectors only, the first of them as its own."""
        first, *others = kept
        also = {each.detector.label or each.detector.name: each for each in others}
        ensemble = self.ensemble.model_copy(update={"also": also})
        return self.model_copy(
            update={"detector": first.detector, "candidates": first.candidates, "ensemble": ensemble}
        )

    def without_cap(self) -> Recipe:
        """Return a recipe by which every detection may become a candidate that this one leaves out for number alone."""
        also = {
            label: each.model_copy(update={"candidates": each.candidates.model_copy(update={"cap": sys.maxsize})})
            for label, each in self.ensemble.also.items()
        }
        whole = {"candidates": self.candidates.model_copy(update={"cap": sys.maxsize})}
        return self.model_copy(update={**whole, "ensemble": self.ensemble.model_copy(update={"also": also})})

    def training_data(self) -> list[DataSection]:
        """Return the data set and those that are trained on beside it."""
        others = [self.data.model_copy(update=other.model_dump()) for other in self.train.also]
        return [self.data, *others]

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML that `load_resolved` reads back."""
        # In ASCII: of the line breaks of Unicode PyYAML reads back only those that are escaped.
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


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


def _read(path: Path) -> tuple[dict[str, Any], dict[tuple[str | int, ...], str]]:
    """Read one YAML mapping; return it and where (file:line) each of its values stands."""
    try:
        text = path.read_text(encoding="utf-8")
        node, value = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
        places = {} if node is None else {place: f"{path}:{line}" for place, line in _places(node)}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: expected a mapping of sections, found {type(value).__name__}")
    return value, places


def _named_file(root: Path, kind: str, name: str) -> Path:
    path = root / kind / f"{name}.yaml"
    if path.is_file() and path.parent == root / kind:
        return path
    names = available(root, kind)
    raise RecipeError(
        f"no {kind} recipe is named {name!r}{nearest(name, names)} (there are: {', '.join(names) or 'none'}; "
        f"files in {root / kind})"
    )


def _sections_of(
    root: Path, kind: str, name: str, problems: list[str]
) -> tuple[dict[str, Any], dict[tuple[str | int, ...], str]] | None:
    """Read the sections that a kind of file may hold, and their places; None, and why, where it cannot be read."""
    try:
        values, lines = _read(_named_file(root, kind, name))
    except RecipeError as error:
        problems.append(str(error))
        return None
    for section in values.keys() - set(KINDS[kind]):
        near = nearest(str(section), KINDS[kind])
        where = lines.get((section,), f"{root / kind / name}.yaml")
        problems.append(f"{where}: a {kind} recipe has no section {section!r}{near}")
    return {key: value for key, value in values.items() if key in KINDS[kind]}, lines


def _members(root: Path, kind: str, name: str, problems: list[str]) -> list[str]:
    """Return the files that a name stands for: `a+b` is two detectors, unless a file is called so."""
    if kind != "vlm" or (root / kind / f"{name}.yaml").is_file():
        return [name]
    names = name.split("+")
    twice = [each for each in dict.fromkeys(names) if names.count(each) > 1]
    problems += [f"{name!r} names the detector {each!r} twice" for each in twice]
    return list(dict.fromkeys(names))


def _label(sections: Mapping[str, Any], name: str) -> None:
    """Name a detector after its file, where the file does not say otherwise."""
    if isinstance(sections.get("detector"), dict):
        sections["detector"].setdefault("label", name)


def _apply(sections: dict[str, Any], places: dict[tuple[str | int, ...], str], override: str) -> str | None:
    """Set one `section.key=value`, and that its place is the command line; return the problem, if there is one."""
    name, sign, text = override.partition("=")
    path = name.split(".")
    if not sign or len(path) < 2 or not all(path):
        return f"override {override!r} is not of the form section.key=value"
    try:
        value = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        return f"override {override!r}: the value is not valid YAML"
    target = sections
    for key in path[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            return f"override {override!r}: {key} is not a section"
    target[path[-1]] = value
    for place in [place for place in places if place[: len(path)] == tuple(path)]:
        del places[place]
    for length in range(1, len(path) + 1):
        places.setdefault(tuple(path[:length]), f"override {override!r}")
    return None


def _explain(rows: Sequence[ErrorDetails], places: Mapping[tuple[str | int, ...], str]) -> list[str]:
    problems = []
    for row in rows:
        location = tuple(row["loc"])
        known = next((places[location[:n]] for n in range(len(location), 0, -1) if location[:n] in places), None)
        name = ".".join(map(str, location))
        if row["type"] == "extra_forbidden":
            text = f"unknown key {name!r}{nearest(str(location[-1]), _keys(location[:-1]))}"
        else:
            text = f"{name}: {row['msg']} (value: {row.get('input')!r})"
        problems.append(f"{known or 'recipe'}: {text}")
    return problems


def _keys(location: tuple[str | int, ...]) -> list[str]:
    """Return the keys that a section knows."""
    model: Any = Recipe
    for key in location:
        field = model.model_fields.get(str(key)) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = field.annotation if field else None
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _validated(
    sections: Mapping[str, Any], places: Mapping[tuple[str | int, ...], str], more: list[str], unread: set[str]
) -> Recipe:
    """Validate all sections; of those whose file could not be read only what is there."""
    try:
        recipe = Recipe.model_validate(dict(sections))
    except ValidationError as error:
        rows = [row for row in error.errors() if row["type"] != "missing" or row["loc"][0] not in unread]
        raise RecipeError(listed("the recipe cannot be used", more + _explain(rows, places))) from error
    if more:
        raise RecipeError(listed("the recipe cannot be used", more))
    return recipe


def compose(root: Path, names: Mapping[str, str], overrides: Sequence[str] = ()) -> Recipe:
    """Compose a recipe from one file per kind, then overrides, and validate it.

    Args:
        root: The `recipes` folder.
        names: Kind (vlm, llm, data, train) -> name of the file without `.yaml`.
        overrides: `section.key=value`, the value in YAML; later ones win.

    Raises:
        RecipeError: With every problem of every file at once, each with its file and line.
    """
    sections: dict[str, Any] = {}
    places: dict[tuple[str | int, ...], str] = {}
    problems: list[str] = []
    unread: set[str] = set()
    members = {kind: _members(root, kind, name, problems) for kind, name in names.items()}
    for kind, (name, *others) in members.items():
        if found := _sections_of(root, kind, name, problems):
            sections.update(found[0])
            places.update(found[1])
        else:
            unread.update(KINDS[kind])
        for other in others:
            if found := _sections_of(root, kind, other, problems):
                _label(found[0], other)
                sections.setdefault("ensemble", {"also": {}})["also"][other] = found[0]
                places.update({("ensemble", "also", other, *place): line for place, line in found[1].items()})
    problems += [problem for override in overrides if (problem := _apply(sections, places, override))]
    if "vlm" in names:
        _label(sections, members["vlm"][0])
    return _validated(sections, places, problems, unread)


def load_resolved(path: Path) -> Recipe:
    """Read a resolved recipe, as a run folder keeps it."""
    values, places = _read(path)
    return _validated(values, places, [], set())
