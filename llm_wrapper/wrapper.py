"""Find the box that an expression describes in one picture.

from llm_wrapper.wrapper import Wrapper
wrapper = Wrapper.from_run("runs/demo")
result = wrapper.predict("photo.jpg", "the man on the left")
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image, ImageOps

from llm_wrapper import detectors, images, runs
from llm_wrapper.adapter_files import find_adapter
from llm_wrapper.candidates import BuiltCandidates
from llm_wrapper.datasets import Dataset
from llm_wrapper.detections import samples
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.detectors import Detector
from llm_wrapper.errors import DataError, PromptError
from llm_wrapper.evaluation import systems
from llm_wrapper.llms.base import LLM
from llm_wrapper.prompts.builder import PromptBuilder
from llm_wrapper.prompts.text import require_expression
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Box, Candidate, Prediction, Sample
from llm_wrapper.training.pool import load_prompt_builder

__all__ = ["Preparer", "Result", "Wrapper"]


@dataclass(frozen=True, slots=True)
class Result:
    """The answer for one picture and expression.

    `ranked` holds every candidate with its probability (None where the system gives none), the chosen one first, and
    `indices` the index that each of them has in the prompt and in a drawn picture.
    """

    prediction: Prediction
    ranked: tuple[tuple[Candidate, float | None], ...]
    indices: tuple[int, ...]

    @property
    def box(self) -> Box | None:
        """The chosen box; None where the detector found nothing, or the LLM says that none is meant."""
        return self.prediction.box

    @property
    def probability(self) -> float | None:
        """Probability of the answer among the candidates, and "none of these" where it could be answered."""
        return self.prediction.probability


class Preparer:
    """Turns a picture and an expression into candidates, by the detectors of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._detectors: Sequence[Detector] | None = None

    def prepare(self, image: str | Path | Image.Image, expression: str) -> PreparedSample:
        """Detect, and build candidates. Models of detectors are loaded at the first picture, and kept.

        Raises:
            ImageError: If the picture cannot be read.
            DataError: If the expression is empty, or a file of boxes cannot be used.
        """
        try:
            require_expression(expression)
        except PromptError as error:
            raise DataError(str(error)) from error
        if not isinstance(image, Image.Image):
            return self._prepared(Path(image), expression)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.tiff"  # keeps every mode as it is
            (ImageOps.exif_transpose(image) or image).save(path)
            prepared = self._prepared(path, expression)
        return replace(prepared, sample=replace(prepared.sample, image_path=None))

    def _prepared(self, path: Path, expression: str) -> PreparedSample:
        sample = Sample(path.stem, path.stem, path.stem, str(path), images.read(path).size, expression, None)
        created = self._created(sample)
        answers = [detectors.detect_sample(detector, sample) for detector in created]
        return PreparedSample(
            sample, samples.build(self._recipe, sample, answers, [detector.name for detector in created])
        )

    def _created(self, sample: Sample) -> Sequence[Detector]:
        """Return the detectors; those that read no image are made for the picture, as they look it up in a file."""
        if self._detectors is None or not all(detector.reads_images for detector in self._detectors):
            dataset = Dataset("predict", "predict", [sample], digest="")
            self._detectors = detectors.create_all(self._recipe, dataset)
        return self._detectors


@dataclass(frozen=True)
class Wrapper:
    """A detector and the LLM that chooses among its boxes.

    `llm` is None for the rule. `builder` builds the prompts; None: by the recipe's format and instruction alone.
    """

    recipe: Recipe
    llm: LLM | None
    builder: PromptBuilder | None = None
    _preparer: Preparer = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_preparer", Preparer(self.recipe))

    @classmethod
    def from_run(cls, folder: str | Path) -> Wrapper:
        """Load the LLM and adapter of a finished training run; its detector is loaded at the first picture.

        Raises:
            RunError: If the folder is no run.
            ModelError: If it has no adapter yet.
        """
        return cls.from_recipe(runs.recipe_of(Path(folder)), Path(folder) / "adapter")

    @classmethod
    def from_recipe(cls, recipe: Recipe, adapter: Path | str | None = None) -> Wrapper:
        """Load the LLM of a recipe, with an adapter where one is given.

        Args:
            recipe: Its `prompt` must be what the adapter was trained with, unless another prompt is tried. Examples
                come from its training split.
            adapter: A folder; as text also a repository of the hub, see `adapter_files.find_adapter`.

        Raises:
            ModelError: If the adapter cannot be found, or does not fit the LLM.
            CacheError: If there are to be examples, and the training split's detections are not cached.
        """
        if recipe.llm.backend == "rule":
            return cls(recipe, None)
        from llm_wrapper.llms.base import load_llm

        builder = load_prompt_builder(recipe)
        folder = find_adapter(adapter).folder if isinstance(adapter, str) else adapter
        return cls(recipe, load_llm(recipe.llm, folder, reasoning_tokens=recipe.prompt.reasoning_tokens), builder)

    def predict(self, image: str | Path | Image.Image, expression: str) -> Result:
        """Detect, build candidates, ask, decide.

        Args:
            image: Path of a picture in any mode that PIL reads, or the picture.
            expression: What to find.

        Raises:
            ImageError: If the picture cannot be read.
            DataError: If the expression is empty.
        """
        return self.choose(self._preparer.prepare(image, expression))

    def choose(self, prepared: PreparedSample) -> Result:
        """Ask which of the candidates of a picture is meant, and decide."""
        if self.llm is None:
            return _result(systems.by_rule([prepared])[0], prepared.built)
        builder, orders = self.builder or PromptBuilder(self.recipe.prompt), self.recipe.llm.orders
        found = systems.by_llm([prepared], "llm", builder, self.llm, orders=orders)
        return _result(found[0], prepared.built)


def _result(prediction: Prediction, built: BuiltCandidates) -> Result:
    shares: tuple[float | None, ...] = prediction.probabilities or (None,) * len(built.candidates)
    candidates = built.candidates
    order = sorted(range(len(candidates)), key=lambda i: (candidates[i].box != prediction.box, -(shares[i] or 0.0)))
    return Result(prediction, tuple((candidates[index], shares[index]) for index in order), tuple(order))
