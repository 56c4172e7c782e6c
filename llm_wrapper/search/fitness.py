"""Measure a prompt: on which expressions (slices), how many of them (successive halving), and what it has right.

training split --cut--> search slice, confirmation slice       no image in both
search slice --rungs--> first, 2 x first, 4 x first, ..        a prompt that is surely worse stops early
prompt --SelectorFitness / CaptionFitness--> predictions --right--> 1 or 0 for each expression
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

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
        builder = PromptBuilder(self._section.model_copy(update={"instruction": prompt}))
        prepared_samples = [self._prepared_samples[place] for place in places]
        return systems.by_llm(prepared_samples, name, builder, self._llm, orders=self._orders)

    def identity(self, places: Sequence[int]) -> Any:
        """Return the samples and their candidates, in the order shown."""
        prepared_samples = [self._prepared_samples[place] for place in places]
        return [[to_dict(each.sample), list(map(to_dict, each.built.candidates))] for each in prepared_samples]


class CaptionFitness:
    """Measures a caption by a detector's answers, which are cached under the caption's digest.

    Raises:
        RecipeError: If the recipe has several detectors, or one that takes no caption.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset) -> None:
        detector = detectors.create_detector(recipe.detector, dataset)
        with_caption: Callable[[str], Detector] | None = getattr(detector, "with_caption", None)
        if len(recipe.detectors()) > 1 or with_caption is None:
            raise RecipeError(
                "search.target=caption is for one detector that takes a caption (VLM=gd, mmgd, llmdet), not for "
                f"{recipe.vlm}"
            )
        self.samples = dataset.samples
        self._recipe, self._dataset = recipe, dataset
        self._detector, self._with_caption = detector, with_caption

    def predictions(self, prompt: str, places: Sequence[int], name: str = "prompt") -> list[Prediction]:
        """Predict with the detector's own top-1 box, given a caption."""
        samples = [self.samples[place] for place in places]
        digest = digest_value([sample.sample_id for sample in samples])[:12]
        part = replace(self._dataset, samples=samples, split=f"{self._dataset.split}-part-{digest}")
        detector = self._with_caption(prompt)
        detector.name = f"{self._detector.name}-caption-{digest_value(prompt)[:12]}"
        cache = fill_cache(detector, part, cache_folder(detector.name, self._recipe.data, part.split))
        names, prepared_samples = [self._detector.name], []
        for sample in samples:
            built = prepare_candidates(self._recipe, sample, [cache.lookup(sample)], names)
            prepared_samples.append(PreparedSample(sample, built))
        return [replace(each, system=name) for each in systems.by_detector(prepared_samples)]

    def identity(self, places: Sequence[int]) -> Any:
        """Return the detector and the samples."""
        return [self._detector.identity(), [to_dict(self.samples[place]) for place in places]]


def halving_sizes(first: int, total: int) -> list[int]:
    """Return the numbers of expressions after which a prompt is judged: `first`, twice as many, .., `total`.

    A rest smaller than `first` joins the rung before it.
    """
    found = [first]
    while 2 * found[-1] + first <= total:
        found.append(2 * found[-1])
    return [*found, total] if found[-1] < total else found


def judge_prompt(right: Sequence[bool], best: Sequence[bool] | None, images: Sequence[str]) -> Verdict:
    """Judge a prompt so far: it stops where the paired 95 % interval of its gain over the best one lies below zero.

    `right` holds the first expressions, `best` (None for the seed prompt) these at least, `images` the whole slice.
    """
    n = len(right)
    if n == len(images):
        return "complete"
    interval = None if best is None else difference([*right], [*best[:n]], list(images[:n])).ci
    return "stopped" if interval is not None and interval.high < 0 else "open"


@dataclass(frozen=True, slots=True)
class SearchSlices:
    """Places of the expressions among the samples that were cut, in the order in which they are asked about."""

    search: Sequence[int]
    confirm: Sequence[int]


def cut_slices(samples: Sequence[Sample], sizes: tuple[int, int], *, without: Iterable[str], seed: int) -> SearchSlices:
    """Cut two slices of a training split, to search on and to confirm on, that share no image.

    The order of images depends on the seed and their ids alone, so that any beginning of a slice represents it. Samples
    without a target, and images that are evaluated on (`without`), are skipped; DataError if too few are left.
    """
    forbidden = set(without)
    of_image: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        if sample.target is not None and sample.image_id not in forbidden:
            of_image.setdefault(sample.image_id, []).append(place)
    images = sorted(of_image, key=lambda image: hashlib.sha256(f"{seed}/{image}".encode()).digest())
    slices: list[list[int]] = []
    rest = iter(images)
    for size in sizes:
        places: list[int] = []
        while len(places) < size and (image := next(rest, None)) is not None:
            places += of_image[image][: size - len(places)]
        slices.append(places)
    if [len(places) for places in slices] != [*sizes]:
        num = sum(map(len, of_image.values()))
        third = max(2, num // 3)
        raise DataError(
            f"search.slice={sizes[0]} and search.confirm={sizes[1]} need {sum(sizes)} expressions of separate images, "
            f"and the training split has {num} with a target, of {len(of_image)} images that are not evaluated on "
            f"(they give {len(slices[0])} and {len(slices[1])}). Ask for less: search.slice={third} "
            f"search.confirm={third}"
        )
    return SearchSlices(*slices)
