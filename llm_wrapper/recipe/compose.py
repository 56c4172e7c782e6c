"""Compose a recipe: one short YAML file per choice, a file to start from, `section.key=value`; validated at once.

    recipes/vlm/flo2.yaml         detector, candidates     `--vlm a+b`: b goes to `ensemble`
    recipes/llm/llama3.yaml       llm
    recipes/data/refcocog.yaml    data
    recipes/train/default.yaml    train, and the name of its prompt
    recipes/prompt/hints.yaml     prompt                   `--prompt a+b`: both hold together
    recipes/search/glov.yaml      search

No file inherits from another.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from llm_wrapper.candidates import CandidatePolicy
from llm_wrapper.errors import DataError, RecipeError, listed, nearest
from llm_wrapper.readers import parse_yaml
from llm_wrapper.recipe.files import (
    RECIPE_KINDS,
    Places,
    RecipeFile,
    find_recipe,
    has_file,
    read_recipe_file,
    read_sections,
    recipe_folders,
    template_beside,
)
from llm_wrapper.recipe.schema import (
    DataSection,
    DetectorSection,
    EnsembleSection,
    LLMSection,
    OtherDetector,
    PromptSection,
    SearchSection,
    Section,
    TrainSection,
)

_MAX_SHOWN = 300  # characters of a value that a message shows

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
        changes = {"detector": first.detector, "candidates": first.candidates, "ensemble": ensemble}
        return self.model_copy(update=changes)

    def without_cap(self) -> Recipe:
        """Return a recipe without the cap on candidates."""
        uncapped = []
        for each in self.detectors():
            policy = each.candidates.model_copy(update={"cap": sys.maxsize})
            uncapped.append(each.model_copy(update={"candidates": policy}))
        return self.with_detectors(uncapped)

    def training_data(self) -> list[DataSection]:
        """Return the data set and those that are trained on beside it."""
        return [self.data, *(self.data.model_copy(update=other.model_dump()) for other in self.train.also)]

    def in_folder(self, folder: Path) -> Recipe:
        """Return the recipe as it reads back from a folder that keeps it and a copy of its template."""
        template = template_beside(folder / "recipe.yaml", self.prompt.format)
        if template is None:
            return self
        return self.model_copy(update={"prompt": self.prompt.model_copy(update={"format": str(template)})})

    def to_yaml(self) -> str:
        """Return the resolved recipe as YAML that `load_resolved` reads back."""
        # In ASCII: of the line breaks of Unicode PyYAML reads back only those that are escaped.
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class _Reader:
    """Reads the files that names stand for, and collects every problem."""

    def __init__(self, folders: Sequence[Path] | None) -> None:
        self.folders = recipe_folders() if folders is None else folders
        self.problems: list[str] = []

    def sections(self, kind: str, name: str) -> tuple[dict[str, Any], Places] | None:
        """Read the sections of one file, and their places; None, and a problem, where it cannot be read."""
        try:
            path = find_recipe(kind, name, self.folders)
            values, lines = read_sections(path)
        except RecipeError as error:
            self.problems.append(str(error))
            return None
        for section in values.keys() - set(RECIPE_KINDS[kind]):
            near = nearest(str(section), RECIPE_KINDS[kind])
            where = lines.get((section,), str(path))
            self.problems.append(f"{where}: a {kind} recipe has no section {section!r}{near}")
        values = {key: value for key, value in values.items() if key in RECIPE_KINDS[kind]}
        if kind == "train" and "prompt" in values:
            name, values["prompt"] = values["prompt"], {}
            prompt_lines: Places = {}
            if isinstance(name, str):
                values["prompt"], prompt_lines = self.prompt(name)
            else:
                self.problems.append(
                    f"{lines['prompt',]}: a train recipe names its prompt (prompt: hints, a file of recipes/prompt): "
                    "move these keys to recipes/prompt/NAME.yaml, and name that here"
                )
            lines = {place: line for place, line in lines.items() if place[:1] != ("prompt",)} | prompt_lines
        return values, lines

    def members(self, kind: str, name: str) -> list[str]:
        """Return the files that a name stands for: `a+b` is two detectors or prompts, unless a file is called so."""
        exists = any(has_file(folder / kind / f"{name}.yaml") for folder in self.folders)
        if kind not in _JOINED or exists or (kind == "prompt" and has_file(Path(name))):
            return [name]
        names = name.split("+")
        repeated = [each for each in dict.fromkeys(names) if names.count(each) > 1]
        self.problems += [f"{_short(name)} names the {_JOINED[kind]} {_short(each)} twice" for each in repeated]
        return list(dict.fromkeys(names))

    def prompt(self, name: str) -> tuple[dict[str, Any], Places]:
        """Return the keys that the files of `recipes/prompt` set, and their places; two may not set one differently."""
        joined: dict[str, Any] = {}
        lines: Places = {}
        for member in self.members("prompt", name):
            values, places = self.sections("prompt", member) or ({}, {})
            section = values.get("prompt") or {}
            if not isinstance(section, dict):
                self.problems.append(f"{places['prompt',]}: prompt is not a mapping (value: {section!r})")
                continue
            for key, value in section.items():
                here = places.get(("prompt", key), member)
                if key in joined and joined[key] != value:
                    other = f"{joined[key]!r} in {lines['prompt', key]}"
                    self.problems.append(f"{here}: prompt.{key} is {value!r} here and {other}: name one of the two")
                joined.setdefault(key, value)
                lines.setdefault(("prompt", key), here)
        return joined, lines


def prompt_of(name: str, folders: Sequence[Path] | None = None) -> dict[str, Any]:
    """Return the keys of the section `prompt` that files of `recipes/prompt` set: `a+b` is two, `x.yaml` a path."""
    reader = _Reader(folders)
    section, _ = reader.prompt(name)
    if reader.problems:
        raise RecipeError(listed("the prompt recipes cannot be used", reader.problems))
    return section


def _label(sections: Mapping[str, Any], name: str) -> None:
    """Name a detector after its file, where the file does not say otherwise."""
    if isinstance(sections.get("detector"), dict):
        sections["detector"].setdefault("label", name)


def _apply(sections: dict[str, Any], places: Places, override: str) -> str | None:
    """Set one `section.key=value`, whose place is then the command line; return the problem, if there is one."""
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


def _short(value: Any) -> str:
    """Return a value as messages show it; a file may hold any."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}.. ({len(text)} characters)"


def _keys(location: tuple[str | int, ...]) -> list[str]:
    """Return the keys that a section knows."""
    model: Any = Recipe
    for key in location:
        field = getattr(model, "model_fields", {}).get(str(key))
        model = field.annotation if field else None
    return list(getattr(model, "model_fields", {}))


def _validated(sections: Mapping[str, Any], places: Places, more: Sequence[str], unread: set[str]) -> Recipe:
    """Validate all sections; of those whose file could not be read only what is there."""
    problems = list(more)
    try:
        recipe = Recipe.model_validate(dict(sections))
    except ValidationError as error:
        for row in error.errors():
            location = tuple(row["loc"])
            if row["type"] == "missing" and location[0] in unread:
                continue
            known = next((places[location[:n]] for n in range(len(location), 0, -1) if location[:n] in places), None)
            name = ".".join(map(str, location))
            text = f"{name[:200]}: {row['msg']} (value: {_short(row.get('input'))})"
            if row["type"] == "extra_forbidden":
                text = f"unknown key {_short(name)}{nearest(str(location[-1])[:100], _keys(location[:-1]))}"
            problems.append(f"{known or 'recipe'}: {text}")
        raise RecipeError(listed("the recipe cannot be used", problems)) from error
    if problems:
        raise RecipeError(listed("the recipe cannot be used", problems))
    return recipe


def _add(found: tuple[dict[str, Any], Places], sections: dict[str, Any], places: Places) -> None:
    """Add the sections of a file that a start does not have; a start's own prompt adds to the training's."""
    values, lines = found
    own = sections.get("prompt")
    places.update({place: line for place, line in lines.items() if place[:1] and place[0] not in sections})
    sections.update({key: value for key, value in values.items() if key not in sections})
    if "prompt" in values and isinstance(own, dict):
        sections["prompt"] = {**values["prompt"], **own}


def compose(
    names: Mapping[str, str],
    overrides: Sequence[str] = (),
    *,
    start: Recipe | RecipeFile | None = None,
    folders: Sequence[Path] | None = None,
) -> Recipe:
    """Compose a recipe from one file per kind, then overrides, and validate it; RecipeError names every problem.

    Args:
        names: Kind (vlm, llm, data, train, prompt, ..) -> name of the file without `.yaml`. A file of
            `recipes/prompt` adds to the prompt that the training names, and wins.
        overrides: `section.key=value`, the value in YAML; later ones win.
        start: Gives what `names` does not: the recipe of a run, or a file whose overrides come before those given here.
        folders: Folders that hold recipes, the first that has a file wins; by default those of `recipe_folders`.
    """
    if not isinstance(start, RecipeFile):
        start = RecipeFile(sections=start.model_dump(mode="json") if start else {})
    reader = _Reader(folders)
    replaced = {section for kind in names if kind != "prompt" for section in RECIPE_KINDS[kind]}
    replaced |= {"ensemble"} if "vlm" in names else set()
    sections = {key: value for key, value in start.sections.items() if key not in replaced and value is not None}
    places: Places = {place: line for place, line in start.places.items() if place[:1] and place[0] in sections}
    unread: set[str] = set()
    given = {kind: reader.members(kind, name) for kind, name in {**start.names, **names}.items() if kind != "prompt"}
    for kind, (name, *others) in given.items():
        if found := reader.sections(kind, name):
            _add(found, sections, places)
        else:
            unread.update(RECIPE_KINDS[kind])
        for other in others:
            if found := reader.sections(kind, other):
                _label(found[0], other)
                sections.setdefault("ensemble", {"also": {}})["also"][other] = found[0]
                places.update({("ensemble", "also", other, *place): line for place, line in found[1].items()})
    for name in (each["prompt"] for each in (start.names, names) if "prompt" in each):
        prompt, lines = reader.prompt(name)
        if prompt and isinstance(sections.setdefault("prompt", {}), dict):
            sections["prompt"] |= prompt
            places.update(lines)
    if "vlm" in given:
        _label(sections, given["vlm"][0])
    changes = [*start.overrides, *overrides]
    reader.problems += [problem for override in changes if (problem := _apply(sections, places, override))]
    return _validated(sections, places, reader.problems, unread)


def load_resolved(path: Path) -> Recipe:
    """Read a resolved recipe, as a run folder keeps it."""
    values, places = read_sections(path)
    return _validated(values, places, [], set())


def load_recipe(path: str | Path | None = None, overrides: Sequence[str] = (), **names: str) -> Recipe:
    """Return the recipe of a file, or that of names: `load_recipe(vlm="flo2", llm="llama3")`.

    Args:
        path: A file to start from, see `RecipeFile`, or a run folder.
        overrides: `section.key=value`, the value in YAML; later ones win.
        **names: Kind (vlm, llm, data, train, prompt) -> name of a file in `recipes`. Without `vlm` there is no
            detector, and boxes are given (`Wrapper.choose`); `data` is needed for examples alone.
    """
    if unknown := [kind for kind in names if kind not in RECIPE_KINDS]:
        raise RecipeError(f"no kind of recipe is named {unknown[0]!r}{nearest(unknown[0], [*RECIPE_KINDS])}")
    file = Path(path) / "recipe.yaml" if path and Path(path).is_dir() else path
    start = read_recipe_file(str(file)) if file else RecipeFile()
    if "data" not in names and not start.gives("data"):
        names = {"data": "mine", **names}
    given = [] if "vlm" in names or start.gives("vlm") else ["detector.name=given"]
    return compose(names, [*given, *overrides], start=start)
