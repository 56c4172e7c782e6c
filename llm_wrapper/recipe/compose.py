"""Recipes: one short YAML file per choice, composed by name, overridden by `section.key=value`, validated at once.

`recipes/vlm` gives the sections `detector` and `candidates`, `recipes/llm` gives `llm`, `recipes/data` gives `data`,
`recipes/train` gives `prompt` and `train`, `recipes/prompt` adds to `prompt`, `recipes/search` gives `search`. No file
inherits from another. `a+b` names two files of `recipes/vlm`: the second detector and its candidates stand in
`ensemble`; or two of `recipes/prompt`, which hold together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llm_wrapper.candidates import CandidatePolicy
from llm_wrapper.errors import DataError, RecipeError, listed, nearest
from llm_wrapper.readers import parse_yaml
from llm_wrapper.recipe.files import Places, available, folder, is_file, named_file, own_template, read
from llm_wrapper.recipe.sections import (
    DataSection,
    DetectorSection,
    EnsembleSection,
    LLMSection,
    LoraSection,
    OtherData,
    OtherDetector,
    PromptSection,
    SearchSection,
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
    "SearchSection",
    "ServerSection",
    "TrainSection",
    "available",
    "compose",
    "load_recipe",
    "load_resolved",
    "prompt_of",
]

KINDS: dict[str, tuple[str, ...]] = {
    "vlm": ("detector", "candidates"),
    "llm": ("llm",),
    "data": ("data",),
    "train": ("prompt", "train"),
    "prompt": ("prompt",),
    "search": ("search",),
}
"""Folder under `recipes/` -> the sections its files may hold."""

_MOST_SHOWN = 300

_JOINED = {"vlm": "detector", "prompt": "prompt"}
"""Kinds of which several files may be named, and what one of them is called."""


class Recipe(Section):
    """All choices of one run, resolved."""

    detector: DetectorSection
    candidates: CandidatePolicy = CandidatePolicy()
    ensemble: EnsembleSection = EnsembleSection()
    data: DataSection
    prompt: PromptSection = PromptSection()
    llm: LLMSection
    train: TrainSection = TrainSection()
    search: SearchSection | None = None

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

    def in_folder(self, folder: Path) -> Recipe:
        """Return the recipe as it reads back from a folder that keeps it: a template of its own lies there, too."""
        template = own_template(folder / "recipe.yaml", self.prompt.format)
        if template is None:
            return self
        return self.model_copy(update={"prompt": self.prompt.model_copy(update={"format": str(template)})})

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML that `load_resolved` reads back."""
        # In ASCII: of the line breaks of Unicode PyYAML reads back only those that are escaped.
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _sections_of(root: Path, kind: str, name: str, problems: list[str]) -> tuple[dict[str, Any], Places] | None:
    """Read the sections that a kind of file may hold, and their places; None, and why, where it cannot be read."""
    try:
        values, lines = read(named_file(root, kind, name))
    except RecipeError as error:
        problems.append(str(error))
        return None
    for section in values.keys() - set(KINDS[kind]):
        near = nearest(str(section), KINDS[kind])
        where = lines.get((section,), f"{root / kind / name}.yaml")
        problems.append(f"{where}: a {kind} recipe has no section {section!r}{near}")
    return {key: value for key, value in values.items() if key in KINDS[kind]}, lines


def _members(root: Path, kind: str, name: str, problems: list[str]) -> list[str]:
    """Return the files that a name stands for: `a+b` is two detectors or prompts, unless a file is called so."""
    if kind not in _JOINED or is_file(root / kind / f"{name}.yaml") or (kind == "prompt" and is_file(Path(name))):
        return [name]
    names = name.split("+")
    twice = [each for each in dict.fromkeys(names) if names.count(each) > 1]
    problems += [f"{_short(name)} names the {_JOINED[kind]} {_short(each)} twice" for each in twice]
    return list(dict.fromkeys(names))


def prompt_of(root: Path, name: str) -> dict[str, Any]:
    """Return what the files of `recipes/prompt` that a name stands for set of the section `prompt`.

    Args:
        root: The `recipes` folder.
        name: `a+b` joins two; a name that ends in `.yaml` is the path of a file.

    Raises:
        RecipeError: If one cannot be read, or two set the same key differently.
    """
    problems: list[str] = []
    found, _ = _joined_prompts(root, _members(root, "prompt", name, problems), problems)
    if problems:
        raise RecipeError(listed("the prompt recipes cannot be used", problems))
    return found


def _joined_prompts(root: Path, names: Sequence[str], problems: list[str]) -> tuple[dict[str, Any], Places]:
    joined: dict[str, Any] = {}
    lines: Places = {}
    for name in names:
        values, places = _sections_of(root, "prompt", name, problems) or ({}, {})
        section = values.get("prompt") or {}
        if not isinstance(section, dict):
            problems.append(f"{places.get(('prompt',), name)}: prompt is not a mapping (value: {section!r})")
            continue
        for key, value in section.items():
            here = places.get(("prompt", key), name)
            if key in joined and joined[key] != value:
                other = f"{joined[key]!r} in {lines['prompt', key]}"
                problems.append(f"{here}: prompt.{key} is {value!r} here and {other}: name one of the two")
            joined.setdefault(key, value)
            lines.setdefault(("prompt", key), here)
    return joined, lines


def _label(sections: Mapping[str, Any], name: str) -> None:
    """Name a detector after its file, where the file does not say otherwise."""
    if isinstance(sections.get("detector"), dict):
        sections["detector"].setdefault("label", name)


def _apply(sections: dict[str, Any], places: Places, override: str) -> str | None:
    """Set one `section.key=value`, and that its place is the command line; return the problem, if there is one."""
    name, sign, text = override.partition("=")
    path = name.split(".")
    if not sign or len(path) < 2 or not all(path):
        return f"override {_short(override)} is not of the form section.key=value"
    try:
        value = parse_yaml(text, "the value")
    except DataError:
        return f"override {_short(override)}: the value is not valid YAML"
    target = sections
    for key in path[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            return f"override {_short(override)}: {key} is not a section"
    target[path[-1]] = value
    for place in [place for place in places if place[: len(path)] == tuple(path)]:
        del places[place]
    for length in range(1, len(path) + 1):
        places.setdefault(tuple(path[:length]), f"override {_short(override)}")
    return None


def _explain(rows: Sequence[ErrorDetails], places: Mapping[tuple[str | int, ...], str]) -> list[str]:
    problems = []
    for row in rows:
        location = tuple(row["loc"])
        known = next((places[location[:n]] for n in range(len(location), 0, -1) if location[:n] in places), None)
        name = ".".join(map(str, location))
        if row["type"] == "extra_forbidden":
            text = f"unknown key {_short(name)}{nearest(str(location[-1])[:100], _keys(location[:-1]))}"
        else:
            text = f"{name[:200]}: {row['msg']} (value: {_short(row.get('input'))})"
        problems.append(f"{known or 'recipe'}: {text}")
    return problems


def _short(value: Any) -> str:
    """Return a value as messages show it; a file may hold any."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}.. ({len(text)} characters)"


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


def _sections_but(base: Recipe | None, kinds: Iterable[str]) -> dict[str, Any]:
    """Return the sections of a recipe as plain values, without those that files of these kinds give anew."""
    replaced = {section for kind in kinds if kind != "prompt" for section in KINDS[kind]}
    if "vlm" in kinds:
        replaced.add("ensemble")
    values = base.model_dump(mode="json") if base else {}
    return {name: value for name, value in values.items() if name not in replaced and value is not None}


def compose(
    root: Path, names: Mapping[str, str], overrides: Sequence[str] = (), *, base: Recipe | None = None
) -> Recipe:
    """Compose a recipe from one file per kind, then overrides, and validate it.

    Args:
        root: The `recipes` folder.
        names: Kind (vlm, llm, data, train, prompt, ..) -> name of the file without `.yaml`. What a file of
            `recipes/prompt` says comes before what that of `recipes/train` says of the prompt.
        overrides: `section.key=value`, the value in YAML; later ones win.
        base: Gives the sections that no file is named for, such as the recipe of a run.

    Raises:
        RecipeError: With every problem of every file at once, each with its file and line.
    """
    sections = _sections_but(base, names)
    places: Places = {}
    problems: list[str] = []
    unread: set[str] = set()
    members = {kind: _members(root, kind, name, problems) for kind, name in names.items()}
    prompts = members.pop("prompt", [])
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
    asked, lines = _joined_prompts(root, prompts, problems)
    if asked and isinstance(sections.setdefault("prompt", {}), dict):
        sections["prompt"] |= asked
        places.update(lines)
    problems += [problem for override in overrides if (problem := _apply(sections, places, override))]
    if "vlm" in names:
        _label(sections, members["vlm"][0])
    return _validated(sections, places, problems, unread)


def load_resolved(path: Path) -> Recipe:
    """Read a resolved recipe, as a run folder keeps it."""
    values, places = read(path)
    return _validated(values, places, [], set())


def load_recipe(path: str | Path | None = None, overrides: Sequence[str] = (), **names: str) -> Recipe:
    """Return the recipe of a file, or that of names: `load_recipe(vlm="flo2", llm="llama3")`.

    Args:
        path: A resolved recipe such as `runs/demo/recipe.yaml`, or its run folder.
        overrides: `section.key=value`, the value in YAML; later ones win.
        **names: Kind (vlm, llm, data, train, prompt) -> name of a file in `recipes`. Without `vlm` there is no
            detector, and boxes are given (`Wrapper.choose`); `data` is needed for examples alone.

    Raises:
        RecipeError: With every problem of every file at once, each with its file and line.
    """
    if path is not None:
        file = Path(path) / "recipe.yaml" if Path(path).is_dir() else Path(path)
        return compose(folder(), names, overrides, base=load_resolved(file))
    if unknown := [kind for kind in names if kind not in KINDS]:
        raise RecipeError(f"no kind of recipe is named {unknown[0]!r}{nearest(unknown[0], [*KINDS])}")
    given = [] if "vlm" in names else ["detector.name=given"]
    return compose(folder(), {"data": "mine", **names}, [*given, *overrides])
