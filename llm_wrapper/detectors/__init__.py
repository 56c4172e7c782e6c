"""Detectors: image and expression -> detections. Their protocol, what they share, and their registry of names."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

from PIL import Image
from pydantic import BaseModel, ConfigDict

from llm_wrapper import images
from llm_wrapper.datasets.base import Dataset, validate_row
from llm_wrapper.errors import RecipeError, listed, nearest
from llm_wrapper.recipe import DetectorSection, Recipe
from llm_wrapper.records import Box, Detection, Detections, Sample
from llm_wrapper.storage import folder_name

if TYPE_CHECKING:
    from llm_wrapper.detectors.paid_calls import CostEstimate

__all__ = [
    "LEVELS",
    "PLUGIN_GROUP",
    "REGISTRY",
    "Detector",
    "Factory",
    "ImageDetector",
    "Level",
    "NoSettings",
    "PaidDetector",
    "Question",
    "RawRow",
    "RecordingDetector",
    "UnboundDetector",
    "bind_detectors",
    "create_detector",
    "create_detectors",
    "detect_sample",
    "detect_samples",
    "detections_from_raw",
    "joined",
    "load_plugin",
    "loaded_plugins",
    "open_detector",
    "parse_settings",
    "questions_about",
    "register_detector",
]

_log = logging.getLogger(__name__)

Level = Literal["image", "expression"]
"""Whether an answer depends on the image alone (stored once per image) or on the expression too."""

LEVELS: tuple[Level, ...] = ("expression", "image")
"""All levels, in the order in which a sample's answers are joined."""

RawRow: TypeAlias = tuple[Sequence[float], str, float | None]
"""A box in xyxy pixels, its label and its score."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question to a detector: about one sample's image alone, or about its expression in that image."""

    sample: Sample
    level: Level

    @property
    def key(self) -> tuple[str, str | None]:
        """The key of the stored answer: (image_id, sample_id), or (image_id, None) for the whole image."""
        return (self.sample.image_id, None if self.level == "image" else self.sample.sample_id)


class Detector(Protocol):
    """A detector or VLM that can be called but not trained.

    Attributes:
        name: Short name; also the folder name of its cached detections.
        levels: The questions that it answers. One of both levels gives different detections to each, such as boxes for
            the expression and all objects of the image.
        reads_images: Whether it needs image files.
    """

    name: str
    levels: tuple[Level, ...]
    reads_images: bool

    def identity(self) -> dict[str, Any]:
        """Return all that decides the answers (JSON values), from the settings alone: no weights are loaded for it."""
        ...

    def prepare(self, sample: Sample) -> Any:
        """Read and preprocess the image of a sample, for `detect`; called ahead of it, on several threads.

        Raises:
            ImageError: If the image cannot be read.
        """
        ...

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        """Answer each question, in order; an answer of level `image` must not depend on the expression.

        Args:
            questions: Those about one image are neighbours.
            prepared: Image id -> result of `prepare`.
        """
        ...


@dataclass(frozen=True, slots=True)
class UnboundDetector:
    """A detector that answers from a file or annotations, for one split; `bind` may raise a DataError."""

    bind: Callable[[Dataset], Detector]


@runtime_checkable
class RecordingDetector(Detector, Protocol):
    """A detector that says how it computes: its number format, device, attention and the commit of its weights."""

    def recorded(self) -> dict[str, Any]:
        """Return JSON values that are kept beside the answers, printed and never compared; empty before any answer."""
        ...


@runtime_checkable
class PaidDetector(Detector, Protocol):
    """A detector whose answers cost money: it is asked one question at a time, and each answer is on disk first.

    Attributes:
        confirm: Shown the cost of a run before the first question; False stops it. None agrees.
    """

    confirm: Callable[[CostEstimate], bool] | None

    @property
    def spent(self) -> float:
        """Dollars that may have been charged in this run."""
        ...

    def begin(self, num_questions: int) -> CostEstimate:
        """Make sure that the user agrees to the cost of a run; called once, before the first question.

        Raises:
            RecipeError: If not.
        """
        ...


def questions_about(sample: Sample, levels: Iterable[Level]) -> list[Question]:
    """Return the questions about a sample for a detector of these levels, in the order of `LEVELS`."""
    wanted = set(levels)
    return [Question(sample, level) for level in LEVELS if level in wanted]


def joined(answers: Sequence[Detections]) -> Detections:
    """Join the answers about one sample, in the order of `LEVELS`."""
    items = tuple(item for answer in answers for item in answer.items)
    return Detections(items, sum(answer.num_dropped for answer in answers))


def detect_samples(detector: Detector, samples: Sequence[Sample]) -> list[Detections]:
    """Return all detections of each sample; all samples are of one image, which is read and prepared once."""
    first = samples[0]
    questions = [Question(first, level) for level in detector.levels if level == "image"]
    questions += [Question(sample, "expression") for sample in samples if "expression" in detector.levels]
    answers = detector.detect(questions, {first.image_id: detector.prepare(first)})
    by_key = dict(zip((question.key for question in questions), answers, strict=True))
    return [joined([by_key[each.key] for each in questions_about(sample, detector.levels)]) for sample in samples]


def detect_sample(detector: Detector, sample: Sample) -> Detections:
    """Return all detections of one sample."""
    return detect_samples(detector, [sample])[0]


def detections_from_raw(rows: Iterable[RawRow], source: str) -> Detections:
    """Turn raw (xyxy pixels, label, score) rows into `Detections`, counting those that are no box.

    Args:
        rows: Reversed, empty and non-finite boxes are dropped and counted. A box with a non-finite score stays without
            one; how many is logged.
        source: The detector's task that produced them.
    """
    items: list[Detection] = []
    num_dropped = num_unscored = 0
    for xyxy, label, score in rows:
        box = [float(value) for value in xyxy]
        if len(box) != 4 or not all(map(math.isfinite, box)) or box[0] >= box[2] or box[1] >= box[3]:
            num_dropped += 1
            continue
        is_number = score is None or math.isfinite(score)
        num_unscored += not is_number
        items.append(Detection(Box(*box), label, score if is_number else None, source))
    if num_unscored:
        _log.warning("%s: scores that are not finite: %d; their boxes stay without a score", source, num_unscored)
    return Detections(tuple(items), num_dropped)


class ImageDetector:
    """A detector that is a function of an image: the short way to register one.

        @register_detector("mine")
        def create(settings):
            return ImageDetector("mine", lambda image: [((12, 30, 80, 96), "mug", 0.9)], settings)

    Args:
        name: Short name; also the folder name of its cached detections.
        function: RGB image -> rows of (xyxy pixels, label, score or None), the best first; load weights when it is
            first called, so that cached detections are read without them.
        settings: All that decides the answers, as JSON values.
    """

    levels: tuple[Level, ...] = ("image",)
    reads_images = True

    def __init__(
        self, name: str, function: Callable[[Image.Image], Iterable[RawRow]], settings: Mapping[str, Any]
    ) -> None:
        self.name, self._function, self._identity = name, function, {"id": name, **settings}

    def identity(self) -> dict[str, Any]:
        """Return the name and the settings."""
        return dict(self._identity)

    def prepare(self, sample: Sample) -> Image.Image:
        """Read the image of a sample."""
        return images.read_sample(sample)

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        """Call the function for the image of each question."""
        answers = (self._function(prepared[question.sample.image_id]) for question in questions)
        return [detections_from_raw(rows, self._identity["id"]) for rows in answers]


class NoSettings(BaseModel):
    """Settings of a detector that has none."""

    model_config = ConfigDict(extra="forbid")


_Settings = TypeVar("_Settings", bound=BaseModel)


def parse_settings(kind: type[_Settings], settings: Mapping[str, Any], detector: str) -> _Settings:
    """Return the settings of a recipe as their model.

    Raises:
        RecipeError: With every setting that is unknown, missing or out of range.
    """
    problems: list[str] = []
    parsed = validate_row(kind, dict(settings), where="settings", problems=problems)
    if parsed is None:
        raise RecipeError(listed(f"the detector {detector!r} cannot be built", problems))
    return parsed


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
    here = os.getcwd()
    try:
        if name.endswith(".py"):
            spec = spec_from_file_location(Path(name).stem, name)
            if spec is None or spec.loader is None or not Path(name).is_file():
                raise ImportError("there is no such file")
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
        elif here in sys.path:
            module = import_module(name)
        else:
            sys.path.append(here)  # for this import alone
            try:
                module = import_module(name)
            finally:
                sys.path.remove(here)
    except Exception as error:  # a module of the user may raise anything
        raise RecipeError(f"--plugin {name} cannot be imported: {type(error).__name__}: {error}") from error
    for registered, factory in getattr(module, "DETECTORS", {}).items():
        register_detector(registered, factory)
    _plugins.append(name)


def loaded_plugins() -> tuple[str, ...]:
    """Return the plugins of this process, for one that it starts."""
    return tuple(_plugins)


def create_detector(section: DetectorSection, dataset: Dataset, plugins: Sequence[str] = ()) -> Detector:
    """Create the detector of a recipe for one split; `plugins` are loaded first, as in another process than this."""
    for plugin in plugins:
        load_plugin(plugin)
    return open_detector(section)(dataset)


def open_detector(section: DetectorSection) -> Callable[[Dataset], Detector]:
    """Create the detector that a recipe names; return what binds it to a split, of which it may read a file once."""
    factory = REGISTRY.get(section.name)
    if isinstance(factory, str):
        module, _, attribute = factory.partition(":")
        factory = getattr(import_module(module), attribute)
    if factory is None:
        installed = {each.name: each for each in entry_points(group=PLUGIN_GROUP)}
        if section.name not in installed:
            names = [*REGISTRY, *installed]
            raise RecipeError(
                f"no detector is named {section.name!r}{nearest(section.name, names)} ({', '.join(names)}). A detector "
                "of a module of yours is found with --plugin MODULE before the verb"
            )
        factory = installed[section.name].load()
    created = factory(section.settings)

    def bind(dataset: Dataset) -> Detector:
        detector: Detector = created.bind(dataset) if isinstance(created, UnboundDetector) else created
        detector.name = section.label or detector.name
        return detector

    return bind


def create_detectors(recipe: Recipe, dataset: Dataset) -> Sequence[Detector]:
    """Create the detectors of a recipe, its own first; of an ensemble there are several."""
    return bind_detectors([open_detector(each.detector) for each in recipe.detectors()], dataset)


def bind_detectors(opened: Sequence[Callable[[Dataset], Detector]], dataset: Dataset) -> list[Detector]:
    """Return the detectors of a recipe for a split; refuse two of one name, as their candidates would look alike."""
    created = [bind(dataset) for bind in opened]
    names = [detector.name for detector in created]
    if len(set(names)) < len(names):
        raise RecipeError(f"two detectors of an ensemble have one name ({', '.join(names)}): set a label for each")
    return created
