"""Detectors: image and expression -> detections."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detectors.base import (
    Detector,
    ImageDetector,
    Level,
    PaidDetector,
    Question,
    UnboundDetector,
    detect_sample,
    detections_from_raw,
)
from llm_wrapper.errors import RecipeError, nearest
from llm_wrapper.recipe import DetectorSection, Recipe
from llm_wrapper.storage import folder_name

__all__ = [
    "PLUGIN_GROUP",
    "REGISTRY",
    "Detector",
    "Factory",
    "ImageDetector",
    "Level",
    "PaidDetector",
    "Question",
    "UnboundDetector",
    "bind_detectors",
    "create_detector",
    "create_detectors",
    "detect_sample",
    "detections_from_raw",
    "load_plugin",
    "loaded_plugins",
    "open_detector",
    "register_detector",
]

Factory: TypeAlias = Callable[[Mapping[str, Any]], Any]
"""Settings of a recipe -> `Detector`, or `UnboundDetector`."""

REGISTRY: dict[str, str | Factory] = {
    "toy": "llm_wrapper.detectors.toy:create_toy",
    "toy-gray": "llm_wrapper.detectors.toy:create_toy_gray",
    "coco": "llm_wrapper.detectors.coco:create_coco",
    "coco-degraded": "llm_wrapper.detectors.coco:create_coco_degraded",
    "import": "llm_wrapper.detectors.imported:create_imported",
    "florence2": "llm_wrapper.detectors.florence2:create_florence2",
    "grounding-dino": "llm_wrapper.detectors.grounding_dino:create_grounding_dino",
    "groundingdino-py": "llm_wrapper.detectors.groundingdino_py:create_groundingdino_py",
    "kosmos2": "llm_wrapper.detectors.kosmos2:create_kosmos2",
    "dds": "llm_wrapper.detectors.dds:create_dds",
    "given": "llm_wrapper.detectors.given:create_given",
}
"""Short name -> factory, or "module:factory", which is imported on first use."""


PLUGIN_GROUP = "llm_wrapper.detectors"
"""Entry points of this group of installed packages are detectors: name -> factory."""

_plugins: list[str] = []


def register_detector(name: str, factory: Factory | None = None) -> Any:
    """Register a detector under a name that recipes may use; with the name alone it is a decorator of the factory.

    Args:
        name: Letters, digits, `_`, `.`, `+` and `-`; it must be new.
        factory: Takes the settings of a recipe, and returns a `Detector` or an `UnboundDetector`.

    Raises:
        RecipeError: If the name is taken or cannot be a folder.
    """
    if factory is None:
        return partial(register_detector, name)
    if REGISTRY.setdefault(folder_name(name, "the detector's name"), factory) is not factory:
        raise RecipeError(f"a detector is named {name!r} already: register yours under another name")
    return factory


def load_plugin(name: str) -> None:
    """Import a module that registers detectors: by `register_detector`, or in its dictionary `DETECTORS`.

    Only the command line and Python code name modules; a recipe or a run folder never does.

    Args:
        name: `package.module`, also one of the working folder, or the path of a file that ends in `.py`.

    Raises:
        RecipeError: If it cannot be imported.
    """
    if name in _plugins:
        return
    try:
        loaded = _import_file(Path(name)) if name.endswith(".py") else _import_from_here(name)
    except Exception as error:  # a module of the user may raise anything
        raise RecipeError(f"--plugin {name} cannot be imported: {type(error).__name__}: {error}") from error
    for each, factory in getattr(loaded, "DETECTORS", {}).items():
        register_detector(each, factory)
    _plugins.append(name)


def _import_file(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError("there is no such file")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _import_from_here(name: str) -> ModuleType:
    """Import a module, also one of the working folder, which is on the path for this import alone."""
    here = os.getcwd()
    is_new = here not in sys.path
    if is_new:
        sys.path.append(here)
    try:
        return import_module(name)
    finally:
        if is_new:
            sys.path.remove(here)


def loaded_plugins() -> tuple[str, ...]:
    """Return the plugins of this process, for one that it starts."""
    return tuple(_plugins)


def _factory(name: str) -> Factory:
    """Return the factory of a registered name; entry points of installed packages are looked at last."""
    factory = REGISTRY.get(name)
    if isinstance(factory, str):
        module, _, attribute = factory.partition(":")
        loaded: Factory = getattr(import_module(module), attribute)
        return loaded
    if factory is not None:
        return factory
    installed = {each.name: each for each in entry_points(group=PLUGIN_GROUP)}
    if name not in installed:
        names = [*REGISTRY, *installed]
        raise RecipeError(
            f"no detector is named {name!r}{nearest(name, names)} ({', '.join(names)}). A detector of a "
            "module of yours is found with --plugin MODULE before the verb"
        )
    found: Factory = installed[name].load()
    return found


def create_detector(section: DetectorSection, dataset: Dataset, plugins: Sequence[str] = ()) -> Detector:
    """Create the detector that a recipe names, for one split of a data set.

    Args:
        section: Its name and settings.
        dataset: What a detector that answers from a file or from annotations is bound to.
        plugins: Modules to load first, in another process than that of the command line.

    Raises:
        RecipeError: If the name is unknown, or the detector does not take one of the settings.
    """
    for plugin in plugins:
        load_plugin(plugin)
    return open_detector(section)(dataset)


def open_detector(section: DetectorSection) -> Callable[[Dataset], Detector]:
    """Create the detector that a recipe names; return what binds it to a split, of which it may read a file once."""
    created = _factory(section.name)(section.settings)

    def bind(dataset: Dataset) -> Detector:
        detector: Detector = created.bind(dataset) if isinstance(created, UnboundDetector) else created
        detector.name = section.label or detector.name
        return detector

    return bind


def create_detectors(recipe: Recipe, dataset: Dataset) -> Sequence[Detector]:
    """Create the detectors of a recipe, its own first; of an ensemble there are several."""
    return bind_detectors([open_detector(each.detector) for each in recipe.detectors()], dataset)


def bind_detectors(opened: Sequence[Callable[[Dataset], Detector]], dataset: Dataset) -> list[Detector]:
    """Return the detectors of a recipe for a split.

    Raises:
        RecipeError: If two have one name: their candidates would look alike.
    """
    created = [bind(dataset) for bind in opened]
    names = [detector.name for detector in created]
    if len(set(names)) < len(names):
        raise RecipeError(f"two detectors of an ensemble have one name ({', '.join(names)}): set a label for each")
    return created
