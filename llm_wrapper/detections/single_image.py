"""One image that is in no data set: detect in it, and build the candidates of each expression about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from llm_wrapper import detectors, images
from llm_wrapper.datasets import Dataset
from llm_wrapper.detections.samples import PreparedSample, prepare_candidates
from llm_wrapper.detectors import Detector
from llm_wrapper.detectors.base import detect_samples
from llm_wrapper.errors import DataError, PromptError
from llm_wrapper.images import ImageSource
from llm_wrapper.prompts.text import require_expression
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Sample
from llm_wrapper.terminal import loading_bars_shown

__all__ = ["Preparer", "image_samples", "require_expressions"]


class Preparer:
    """Turns an image and expressions into candidates, by the detectors of a recipe.

    The detectors' weights are loaded at the first image and kept.
    """

    def __init__(self, recipe: Recipe, *, progress: bool = False) -> None:
        self._recipe, self._progress = recipe, progress
        self._detectors: list[Detector] = []

    def prepare(self, image: ImageSource, expressions: Sequence[str]) -> list[PreparedSample]:
        """Detect once in an image, and build the candidates of each expression.

        Raises:
            ImageError: If the image cannot be read.
            DataError: If an expression is empty, or a file of boxes cannot be used.
            RecipeError: If the recipe has no detector.
        """
        require_expressions(expressions)
        with _as_file(image) as path:
            wh = images.read_image(path).size
            samples = image_samples(path.stem, wh, expressions, image_path=str(path))
            with loading_bars_shown(self._progress):
                created = self._create(samples)
                answers = [detect_samples(detector, samples) for detector in created]
        if not isinstance(image, (str, Path)):  # the temporary file is gone
            samples = [replace(sample, image_path=None) for sample in samples]
        names = [detector.name for detector in created]
        return [
            PreparedSample(sample, prepare_candidates(self._recipe, sample, each, names))
            for sample, each in zip(samples, zip(*answers, strict=True), strict=True)
        ]

    def _create(self, samples: Sequence[Sample]) -> Sequence[Detector]:
        """Return the detectors; those that read no image are made for this one, as they look it up in a file."""
        dataset = Dataset("predict", "predict", samples, "")
        if not self._detectors:
            self._detectors = list(detectors.create_detectors(self._recipe, dataset))
            return self._detectors
        for place, section in enumerate(self._recipe.detectors()):
            if not self._detectors[place].reads_images:
                self._detectors[place] = detectors.create_detector(section.detector, dataset)
        return self._detectors


def require_expressions(expressions: Sequence[str]) -> None:
    """Refuse no expressions, and any that says nothing."""
    if not expressions:
        raise DataError("there is no expression: say what to find")
    for expression in expressions:
        if not isinstance(expression, str):
            raise DataError(f"the expression {expression!r} is not a text")
        try:
            require_expression(expression)
        except PromptError as error:
            raise DataError(str(error)) from error


def image_samples(
    name: str, wh: tuple[int, int], expressions: Sequence[str], *, image_path: str | None = None
) -> list[Sample]:
    """Return a sample for each expression about one image; a single one is named after the image, as files name it."""
    ids = [name] if len(expressions) == 1 else [f"{name}#{number}" for number in range(len(expressions))]
    return [
        Sample(sample_id, name, name, image_path, wh, expression, None)
        for sample_id, expression in zip(ids, expressions, strict=True)
    ]


@contextmanager
def _as_file(image: ImageSource) -> Iterator[Path]:
    """Give the path of an image: detectors read files, so pixels are written to a temporary one."""
    if isinstance(image, (str, Path)):
        yield Path(image)
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "image.bmp"  # uncompressed, as it is read once
        images.read_image(image).save(path)
        yield path
