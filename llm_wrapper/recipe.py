"""Recipes: one short YAML file per choice, composed by name, overridden by `section.key=value`, validated at once.

A recipe has six sections. `recipes/vlm` gives `detector` and `candidates`, `recipes/llm` gives `llm`, `recipes/data`
gives `data`, `recipes/train` gives `prompt` and `train`. No file inherits from another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from llm_wrapper.candidates import CandidatePolicy
from llm_wrapper.errors import RecipeError, listed, nearest

__all__ = [
    "DataSection",
    "DetectorSection",
    "LLMSection",
    "LoraSection",
    "OtherData",
    "PromptSection",
    "Recipe",
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


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DetectorSection(_Section):
    """Which detector, and the settings that decide its answers.

    `label` names its cached detections' folder and, where several are mixed, its candidates; it is the name of the
    recipe's file unless it is set, so that two sets of settings can be kept beside each other.
    """

    name: str = Field(description="name in the registry of detectors")
    label: str | None = Field(None, pattern=r"^[\w.+-]+$")
    settings: dict[str, Any] = {}


class DataSection(_Section):
    """Which data set, where it lies, and which splits are trained on and evaluated."""

    name: str = Field(description="name of the data set, also the folder name of its cached detections")
    reader: str = Field(description="name in the registry of data sets")
    root: Path
    settings: dict[str, Any] = {}
    train_split: str = "train"
    eval_split: str = "val"


class OtherData(_Section):
    """A further data set to train on, read as `data` is, from the same root."""

    name: str
    settings: dict[str, Any] = {}
    train_split: str = "train"


class PromptSection(_Section):
    """How candidates are worded; a shipped format or the path of a `.j2` template."""

    format: str = "relations"


class LLMSection(_Section):
    """Which LLM, and how it is loaded and asked.

    `model` is a hub id, a local folder, or `gguf:PACKAGE` for a GGUF file inside an installed Python package.
    """

    backend: Literal["transformers", "rule"] = "transformers"
    model: str | None = None
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    quantization: Literal["auto", "none", "nf4"] = "auto"
    chat_template: str | None = None
    decode: Literal["score", "generate"] = "score"
    max_new_tokens: int = Field(8, ge=1)
    tokens_per_batch: int = Field(4096, ge=64)


class LoraSection(_Section):
    """Low-rank adapters; `alpha` is the scale before division by `rank`."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class TrainSection(_Section):
    """Supervised fine-tuning. A group is one image with some of its expressions behind one shared prefix."""

    lora: LoraSection = LoraSection()
    learning_rate: float = Field(5e-4, gt=0)
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(20, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    epochs: int = Field(1, ge=1)
    max_steps: int | None = Field(None, ge=1)
    groups_per_step: int = Field(4, ge=1)
    accumulation: int = Field(1, ge=1)
    expressions_per_group: int = Field(8, ge=1)
    generated_per_group: int = Field(0, ge=0)
    shuffle_candidates: bool = False
    max_tokens: int = Field(1024, ge=32)
    min_candidates: int = Field(2, ge=2)
    limit: int | None = Field(None, ge=1)
    gradient_checkpointing: bool = False
    save_steps: int = Field(100, ge=1)
    seed: int = 0
    also: list[OtherData] = []


class Recipe(_Section):
    """All choices of one run, resolved."""

    detector: DetectorSection
    candidates: CandidatePolicy = CandidatePolicy()
    data: DataSection
    prompt: PromptSection = PromptSection()
    llm: LLMSection
    train: TrainSection = TrainSection()

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
    for kind, name in names.items():
        try:
            values, lines = _read(_named_file(root, kind, name))
        except RecipeError as error:
            problems.append(str(error))
            unread.update(KINDS[kind])
            continue
        for section in values.keys() - set(KINDS[kind]):
            near = nearest(str(section), KINDS[kind])
            where = lines.get((section,), f"{root / kind / name}.yaml")
            problems.append(f"{where}: a {kind} recipe has no section {section!r}{near}")
        sections.update({key: value for key, value in values.items() if key in KINDS[kind]})
        places.update(lines)
    problems += [problem for override in overrides if (problem := _apply(sections, places, override))]
    if "vlm" in names and isinstance(sections.get("detector"), dict):
        sections["detector"].setdefault("label", names["vlm"])
    return _validated(sections, places, problems, unread)


def load_resolved(path: Path) -> Recipe:
    """Read a resolved recipe, as a run folder keeps it."""
    values, places = _read(path)
    return _validated(values, places, [], set())
