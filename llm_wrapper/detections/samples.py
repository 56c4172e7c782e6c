"""Sample + detections -> prepared sample: the start of training, evaluation and prediction.

    a split of a data set -> cached detections ---+
                                                  +-> candidates -> PreparedSample
an image of no data set -> Preparer: detectors ---+
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llm_wrapper import candidates, datasets, detectors, images, storage
from llm_wrapper.candidates import BuiltCandidates
from llm_wrapper.datasets import Dataset
from llm_wrapper.detections.cache import DetectionCache
from llm_wrapper.detections.contents import describe_recorded, identity_of
from llm_wrapper.detectors import Detector, detect_samples
from llm_wrapper.errors import DataError, PromptError, RecipeError
from llm_wrapper.images import ImageSource
from llm_wrapper.prompts.text import require_expression
from llm_wrapper.recipe import DataSection, DetectorSection, Recipe, files
from llm_wrapper.records import Detections, Sample
from llm_wrapper.storage import folder_name
from llm_wrapper.terminal import loading_bars_shown

_log = logging.getLogger(__name__)

CACHE_ROOT = Path("data/detections")


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """A sample with the candidates that may be chosen for it, in shown order."""

    sample: Sample
    built: BuiltCandidates


@dataclass(frozen=True)
class PreparedSplit:
    """All samples of a split with their candidates, and where they came from.

    `caches` has one for each detector of the recipe. `dropped` counts detections that did not become candidates, by
    reason, over all samples.
    """

    samples: Sequence[PreparedSample]
    dataset: Dataset
    caches: Sequence[DetectionCache]
    dropped: dict[str, int]

    @property
    def identity(self) -> Any:
        """Identity of the cache, a list of them for an ensemble."""
        found = [cache.identity for cache in self.caches]
        return found if len(found) > 1 else found[0]

    def facts(self) -> dict[str, Any]:
        """Return the record of the split for a run or a report: digests and counts."""
        return {
            "name": self.dataset.name,
            "split": self.dataset.split,
            "annotations": self.dataset.digest,
            "detections": storage.digest_value(self.identity),
            "dropped": self.dropped,
        }

    def notes(self) -> list[str]:
        """Return notes on annotations and detections that belong beside any result on the split."""
        has_candidates: dict[str, bool] = {}
        for prepared in self.samples:
            image = prepared.sample.image_id
            has_candidates[image] = has_candidates.get(image, False) or bool(prepared.built.candidates)
        num_empty = sum(not each for each in has_candidates.values())
        where = f"{self.dataset.name} {self.dataset.split}"
        notes = self.dataset.notes()
        if num_empty:
            notes.append(f"{where}: {num_empty:,} of {len(has_candidates):,} images have no candidate at all")
        for cache in self.caches:
            if cache.manifest and (skipped := len(cache.manifest.unanswered)):
                notes.append(
                    f"{where}: {skipped:,} images could not be read when {cache.identity['detector']} was asked"
                )
        return notes


def cache_folder(detector: str, data: DataSection, split: str) -> Path:
    """Return the folder of the cached detections of a detector on a split."""
    detector = folder_name(detector, "detector.label")
    return CACHE_ROOT / detector / folder_name(data.name, "data.name") / folder_name(split, "the split")


def prepare_candidates(
    recipe: Recipe, sample: Sample, answers: Sequence[Detections], names: Sequence[str]
) -> BuiltCandidates:
    """Build the candidates of a sample from the answers of all detectors of a recipe, which bear these `names`."""
    rng = candidates.order_rng(recipe.train.seed, sample.sample_id)
    if len(answers) == 1:
        return candidates.build_candidates(answers[0], sample.image_wh, recipe.candidates, detector=names[0], rng=rng)
    policies = [each.candidates.model_copy(update={"order": "detector"}) for each in recipe.detectors()]
    parts = [
        candidates.build_candidates(answer, sample.image_wh, policy, detector=name)
        for answer, policy, name in zip(answers, policies, names, strict=True)
    ]
    return candidates.merge_candidates(parts, recipe.candidates, nms_iou=recipe.ensemble.nms_iou, rng=rng)


def _command_options(data: DataSection, detector: DetectorSection) -> list[str]:
    """Return the options that a command needs where data and boxes differ from their recipes."""
    try:
        known = files.read_sections(files.find_recipe("data", data.name))[0].get("data")
    except RecipeError:
        known = None
    known = known if isinstance(known, dict) else {}
    words = [] if str(known.get("root")) == str(data.root) else ["--data-root", str(data.root)]
    usual = known.get("settings") or {}
    changed = {f"data.settings.{key}": value for key, value in data.settings.items() if usual.get(key) != value}
    if detector.name == "import":
        changed |= {f"detector.settings.{key}": value for key, value in detector.settings.items()}
    return [*words, *(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changed.items())]


def load_prepared_split(
    recipe: Recipe, data: DataSection, split: str, *, limit: int | None = None, dataset: Dataset | None = None
) -> PreparedSplit:
    """Read a split and its cached detections, and build the candidates of each sample.

    No detector's weights are loaded, and how the detections were computed is logged.

    `data` is one of `recipe.training_data()`. Only the first `limit` samples are used. `dataset` is the split, where it
    is read already: most of the time goes into reading.
    """
    dataset = dataset or datasets.load_dataset(data, split)
    caches = [
        DetectionCache.open_complete(
            cache_folder(detector.name, data, split),
            identity_of(detector, dataset),
            options=_command_options(data, section.detector),
        )
        for section, detector in zip(recipe.detectors(), detectors.create_detectors(recipe, dataset), strict=True)
    ]
    for section, cache in zip(recipe.detectors(), caches, strict=True):
        if cache.recorded:
            _log.info("%s: recorded with the detections: %s", cache.folder, describe_recorded(cache.recorded))
        model = section.detector.settings.get("model")
        now = storage.digest_model(model) if isinstance(model, str) else None
        known = {each["files"] for each in cache.recorded if "files" in each}
        if now and known and now not in known:
            _log.warning(
                "%s: the files of %s have changed since it detected; to detect again: cache-detections --overwrite",
                *(cache.folder, model),
            )
    names = [cache.identity["detector"] for cache in caches]
    dropped: Counter[str] = Counter()
    samples = []
    for sample in dataset.samples[:limit]:
        built = prepare_candidates(recipe, sample, [cache.lookup(sample) for cache in caches], names)
        dropped.update(built.counts)
        samples.append(PreparedSample(sample, built))
    return PreparedSplit(samples, dataset, caches, dict(dropped))


class Preparer:
    """Turns an image and expressions into candidates, by the detectors of a recipe.

    The detectors' weights are loaded at the first image and kept.
    """

    def __init__(self, recipe: Recipe, *, progress: bool = False) -> None:
        self._recipe, self._progress = recipe, progress
        self._opened: list[Callable[[Dataset], Detector]] = []

    def prepare(self, image: ImageSource, expressions: Sequence[str]) -> list[PreparedSample]:
        """Detect once in an image, and build the candidates of each expression."""
        require_expressions(expressions)
        with _as_file(image) as path:
            wh = images.read_image(path).size
            samples = image_samples(path.stem, wh, expressions, image_path=str(path))
            with loading_bars_shown(self._progress):
                # A detector that answers from a file is bound to each image, and reads the file once.
                self._opened = self._opened or [
                    detectors.open_detector(each.detector) for each in self._recipe.detectors()
                ]
                created = detectors.bind_detectors(self._opened, Dataset("predict", "predict", samples, ""))
                answers = [detect_samples(detector, samples) for detector in created]
        if not isinstance(image, (str, Path)):  # the temporary file is gone
            samples = [replace(sample, image_path=None) for sample in samples]
        names = [detector.name for detector in created]
        return [
            PreparedSample(sample, prepare_candidates(self._recipe, sample, each, names))
            for sample, each in zip(samples, zip(*answers, strict=True), strict=True)
        ]


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
