"""Measure a prompt: on which expressions (slices), how many of them (successive halving), and what it has right.

training split --cut--> search slice, confirmation slice       no image in both
search slice --rungs--> first, 2 x first, 4 x first, ..        a prompt that is surely worse stops early
prompt --SelectorFitness / CaptionFitness--> predictions --right--> 1 or 0 for each expression
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

from llm_wrapper import detectors
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detections.fill import fill_cache
from llm_wrapper.detections.samples import PreparedSample, cache_folder, prepare_candidates
from llm_wrapper.detectors import Detector
from llm_wrapper.errors import DataError, RecipeError
from llm_wrapper.evaluation import systems
from llm_wrapper.llms.base import LLM
from llm_wrapper.metrics import IOU_THRESHOLD, ious, oracle_ious
from llm_wrapper.prompts.render import PromptBuilder
from llm_wrapper.recipe import PromptSection, Recipe
from llm_wrapper.records import Prediction, Sample, to_dict
from llm_wrapper.search.history import Verdict
from llm_wrapper.statistics import difference
from llm_wrapper.storage import digest_value

__all__ = [
    "CaptionFitness",
    "Fitness",
    "SearchSlices",
    "SelectorFitness",
    "cut_slices",
    "halving_sizes",
    "is_surely_worse",
    "judge_prompt",
    "mark_right",
]


class Fitness(Protocol):
    """Measures a prompt on samples, the rows of `samples` that indices choose."""

    samples: Sequence[Sample]

    def predictions(self, prompt: str, places: Sequence[int], name: str = "prompt") -> list[Prediction]:
        """Return a prediction for the sample at each index; `name` is the system's."""
        ...

    def identity(self, places: Sequence[int]) -> Any:
        """Return the questions at these indices as a JSON value."""
        ...


def mark_right(predictions: Sequence[Prediction], fitness: Literal["p_at_1", "oracle"]) -> list[bool]:
    """Tell of each prediction whether its box is right, or (`oracle`) whether one of its candidates is."""
    found = ious(predictions) if fitness == "p_at_1" else oracle_ious(predictions)
    return [bool(each) for each in found > IOU_THRESHOLD]


class SelectorFitness:
    """Measures an instruction by the selector LLM's answers over cached detections."""

    def __init__(
        self, prepared_samples: Sequence[PreparedSample], section: PromptSection, llm: LLM, *, orders: int = 1
    ) -> None:
        self.samples: Sequence[Sample] = [prepared.sample for prepared in prepared_samples]
        self._prepared_samples, self._section, self._llm, self._orders = prepared_samples, section, llm, orders

    def predictions(self, prompt: str, places: Sequence[int], name: str = "prompt") -> list[Prediction]:
        """Predict with the LLM and an instruction."""
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
    """A detector that takes a caption."""

    @property
    def with_caption(self) -> Callable[[str], Detector]: ...


class CaptionFitness:
    """Measures a caption by a detector's answers, which are cached under the caption's digest.

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
        """Predict with the detector's own top-1 box, given a caption."""
        part = self._part(places)
        detector = self._with_caption(prompt)
        detector.name = f"{self._detector.name}-caption-{digest_value(prompt)[:12]}"
        cache = fill_cache(detector, part, cache_folder(detector.name, self._recipe.data, part.split))
        prepared_samples = [
            PreparedSample(
                sample, prepare_candidates(self._recipe, sample, [cache.lookup(sample)], [self._detector.name])
            )
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


def halving_sizes(first: int, total: int) -> list[int]:
    """Return the numbers of expressions after which a prompt is judged: `first`, twice as many, .., `total`.

    A rest smaller than `first` joins the rung before it.
    """
    found = [first]
    while 2 * found[-1] + first <= total:
        found.append(2 * found[-1])
    return [*found, total] if found[-1] < total else found


def is_surely_worse(right: Sequence[bool], best: Sequence[bool], images: Sequence[str]) -> bool:
    """Tell whether the paired 95 % interval of a prompt's gain over the best one lies below zero.

    Args:
        right: Whether the prompt was right, for the first expressions.
        best: The same of the best prompt, for these expressions at least.
        images: The image of each expression; whole images are resampled.
    """
    n = len(right)
    interval = difference([*right], [*best[:n]], list(images[:n])).ci
    return interval is not None and interval.high < 0


def judge_prompt(right: Sequence[bool], best: Sequence[bool] | None, images: Sequence[str]) -> Verdict:
    """Judge a prompt so far; `best` is None for the seed prompt, `images` are those of the whole slice."""
    if len(right) == len(images):
        return "complete"
    return "stopped" if best is not None and is_surely_worse(right, best, images) else "open"


@dataclass(frozen=True, slots=True)
class SearchSlices:
    """Places of the expressions among the samples that were cut, in the order in which they are asked about."""

    search: Sequence[int]
    confirm: Sequence[int]


def cut_slices(samples: Sequence[Sample], sizes: tuple[int, int], *, without: Iterable[str], seed: int) -> SearchSlices:
    """Cut two slices of a training split that share no image.

    The order of images depends on the seed and their ids alone, so that any beginning of a slice represents it.

    Args:
        samples: Of a training split; those without a target are skipped.
        sizes: Expressions to search on, and to confirm on.
        without: Ids of images that are evaluated on.
        seed: Of the order.

    Raises:
        DataError: If there are too few expressions; the message has the numbers.
    """
    forbidden = set(without)
    of_image: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        if sample.target is not None and sample.image_id not in forbidden:
            of_image.setdefault(sample.image_id, []).append(place)
    images = sorted(of_image, key=lambda image: hashlib.sha256(f"{seed}/{image}".encode()).digest())
    found: list[list[int]] = []
    rest = iter(images)
    for size in sizes:
        places: list[int] = []
        while len(places) < size and (image := next(rest, None)) is not None:
            places += of_image[image][: size - len(places)]
        found.append(places)
    if [len(places) for places in found] != [*sizes]:
        raise DataError(_too_few(sizes, [len(places) for places in found], of_image))
    return SearchSlices(*found)


def _too_few(sizes: tuple[int, int], found: Sequence[int], of_image: dict[str, list[int]]) -> str:
    num = sum(map(len, of_image.values()))
    return (
        f"search.slice={sizes[0]} and search.confirm={sizes[1]} need {sum(sizes)} expressions of separate images, and "
        f"the training split has {num} with a target, of {len(of_image)} images that are not evaluated on (they give "
        f"{found[0]} and {found[1]}). Ask for less: search.slice={max(2, num // 3)} search.confirm={max(2, num // 3)}"
    )
