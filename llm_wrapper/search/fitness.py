"""What a prompt makes of expressions: predictions by the selector LLM, or by a detector with a caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, runtime_checkable

from llm_wrapper import detectors
from llm_wrapper.artifacts import digest_value
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detections.fill import fill
from llm_wrapper.detections.samples import PreparedSample, build, cache_folder
from llm_wrapper.detectors.base import Detector
from llm_wrapper.errors import RecipeError
from llm_wrapper.evaluation import systems
from llm_wrapper.llms.base import LLM
from llm_wrapper.metrics import IOU_THRESHOLD, ious, oracle_ious
from llm_wrapper.prompts.builder import PromptBuilder
from llm_wrapper.recipe import PromptSection, Recipe
from llm_wrapper.records import Prediction, Sample, to_dict

__all__ = ["CaptionFitness", "Fitness", "SelectorFitness", "right"]


class Fitness(Protocol):
    """Asks a prompt about samples.

    Attributes:
        samples: All that can be asked about.
    """

    samples: Sequence[Sample]

    def predictions(self, prompt: str, places: Sequence[int], name: str = "prompt") -> list[Prediction]:
        """Return a prediction for the sample at each place; `name` is the system's."""
        ...

    def identity(self, places: Sequence[int]) -> Any:
        """Return, as a JSON value, what is asked about at these places."""
        ...


def right(predictions: Sequence[Prediction], fitness: Literal["p_at_1", "oracle"]) -> list[bool]:
    """Tell of each prediction whether its box is right, or (`oracle`) whether one of its candidates is."""
    found = ious(predictions) if fitness == "p_at_1" else oracle_ious(predictions)
    return [bool(each) for each in found > IOU_THRESHOLD]


class SelectorFitness:
    """The selector LLM with an instruction, over cached detections.

    Args:
        prepared_samples: Of the training split.
        section: Format of the candidates' lines.
        llm: Answers the prompts.
        orders: See `systems.by_llm`.
    """

    def __init__(
        self, prepared_samples: Sequence[PreparedSample], section: PromptSection, llm: LLM, *, orders: int = 1
    ) -> None:
        self.samples: Sequence[Sample] = [prepared.sample for prepared in prepared_samples]
        self._prepared_samples, self._section, self._llm, self._orders = prepared_samples, section, llm, orders

    def predictions(self, prompt: str, places: Sequence[int], name: str = "prompt") -> list[Prediction]:
        """Predict with the LLM, asked with an instruction."""
        section = self._section.model_copy(update={"instruction": prompt})
        prepared_samples = [self._prepared_samples[place] for place in places]
        return systems.by_llm(prepared_samples, name, PromptBuilder(section), self._llm, orders=self._orders)

    def identity(self, places: Sequence[int]) -> Any:
        """Return the samples and their candidates, in the order shown."""
        return [
            [
                to_dict(self._prepared_samples[place].sample),
                [to_dict(each) for each in self._prepared_samples[place].built.candidates],
            ]
            for place in places
        ]


@runtime_checkable
class _CaptionedDetector(Protocol):
    """A detector that can be asked with another caption."""

    @property
    def with_caption(self) -> Callable[[str], Detector]: ...


class CaptionFitness:
    """A detector with a caption; what it answers is cached under the caption's digest, part of the split by part.

    Args:
        recipe: Of one detector, which can be asked with another caption.
        dataset: The training split.

    Raises:
        RecipeError: If the recipe has several detectors, or one that takes no caption.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset) -> None:
        detector = detectors.create_detector(recipe.detector, dataset)
        if len(recipe.detectors()) > 1 or not isinstance(detector, _CaptionedDetector):
            raise RecipeError(
                "search.target=caption is for one detector that takes a caption (VLM=gd, mmgd, llmdet), not for "
                f"{recipe.vlm}"
            )
        self.samples = dataset.samples
        self._recipe, self._dataset, self._detector, self._with_caption = (
            recipe,
            dataset,
            detector,
            detector.with_caption,
        )

    def predictions(self, prompt: str, places: Sequence[int], name: str = "prompt") -> list[Prediction]:
        """Predict with the detector's own choice, asked with a caption."""
        part = self._part(places)
        detector = self._with_caption(prompt)
        detector.name = f"{self._detector.name}-caption-{digest_value(prompt)[:12]}"
        cache = fill(detector, part, cache_folder(detector.name, self._recipe.data, part.split))
        prepared_samples = [
            PreparedSample(sample, build(self._recipe, sample, [cache.lookup(sample)], [self._detector.name]))
            for sample in part.samples
        ]
        return [replace(each, system=name) for each in systems.by_detector(prepared_samples)]

    def identity(self, places: Sequence[int]) -> Any:
        """Return the detector and the samples."""
        return [self._detector.identity(), [to_dict(self.samples[place]) for place in places]]

    def _part(self, places: Sequence[int]) -> Dataset:
        samples = [self.samples[place] for place in places]
        digest = digest_value([sample.sample_id for sample in samples])[:12]
        return replace(self._dataset, samples=samples, split=f"{self._dataset.split}-part-{digest}")
