"""Find the box that an expression describes, among the boxes of a detector or among your own.

    from llm_wrapper import Wrapper

    wrapper = Wrapper.from_run("runs/demo")
    wrapper.predict("photo.jpg", "the man on the left").box
    wrapper.choose(boxes, labels, "the man on the left", image_size=(640, 480)).box

Both share all but the first step:

    predict   image -> Preparer ---------+
                                         +-> PreparedSample -> prompt -> LLM -> Prediction -> Result
    choose    boxes -> read_given_boxes -+
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, overload

from PIL import Image

from llm_wrapper import runs
from llm_wrapper.adapter_files import find_adapter
from llm_wrapper.box_formats import BoxFormat
from llm_wrapper.detections.samples import (
    PreparedSample,
    Preparer,
    image_samples,
    prepare_candidates,
    require_expressions,
)
from llm_wrapper.detectors.given import GIVEN, parse_image_size, read_given_boxes
from llm_wrapper.evaluation import systems
from llm_wrapper.evaluation.jobs import require_probabilities
from llm_wrapper.images import ImageSource
from llm_wrapper.llms.base import LLM
from llm_wrapper.prompts.render import PromptBuilder
from llm_wrapper.recipe import Recipe, load_recipe
from llm_wrapper.records import Answer, Box, Detections, Prediction, Prompt
from llm_wrapper.report import pictures
from llm_wrapper.terminal import loading_bars_shown
from llm_wrapper.training.examples import load_prompt_builder

_log = logging.getLogger(__name__)

Expressions: TypeAlias = list[str] | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RankedBox:
    """A candidate with its probability; `index` is its number in the prompt and in a drawn picture.

    `row` is its place among the boxes that were given, or among the outputs of the detector.
    """

    index: int
    box: Box
    label: str
    score: float | None
    probability: float | None
    row: int


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """The answer to one expression about one image.

    Attributes:
        prediction: The record that `eval` keeps, with all candidates in the order of the prompt.
        prompts: What the LLM was asked: one prompt for each order of the candidates; none where it was not asked.
        dropped: How many boxes did not become candidates, by reason.
        image: What `draw` draws on; None for boxes without an image.
    """

    prediction: Prediction
    prompts: tuple[Prompt, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    image: ImageSource | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        """Say what was chosen, in one line."""
        if self.box is None:
            return f"Result({self.expression!r}: no box, decided_by={self.prediction.decided_by!r})"
        first = self.ranked[0]
        return f"Result({self.expression!r}: {first.label!r} at {first.box.xyxy}, probability={self.probability})"

    @property
    def expression(self) -> str:
        """The expression that was asked about."""
        return self.prediction.expression

    @property
    def box(self) -> Box | None:
        """The chosen box; None where the detector found nothing, or the LLM says that none is meant."""
        return self.prediction.box

    @property
    def probability(self) -> float | None:
        """Probability of the answer among the candidates and, where it is offered, "none of these"; None for a rule."""
        return self.prediction.probability

    @property
    def ranked(self) -> tuple[RankedBox, ...]:
        """All candidates, the chosen one first, then by falling probability."""
        found, shares = self.prediction, self.prediction.probabilities
        rows = found.origins or range(len(found.candidates))
        entries = [
            RankedBox(index, each.box, each.label, each.score, shares[index] if shares else None, row)
            for index, (each, row) in enumerate(zip(found.candidates, rows, strict=True))
        ]
        return tuple(sorted(entries, key=lambda each: (each.box != self.box, -(each.probability or 0.0))))

    @property
    def index(self) -> int | None:
        """Number of the chosen box in the prompt and in a drawn picture; None without a box."""
        return None if self.box is None else self.ranked[0].index

    @property
    def row(self) -> int | None:
        """Place of the chosen box among those that were given or detected; None without a box."""
        return None if self.box is None else self.ranked[0].row

    @property
    def prompt(self) -> str | None:
        """The text that the LLM was sent, before its chat template; None where it was not asked."""
        if not self.prompts:
            return None
        messages = self.prompts[0].messages
        if len(messages) == 1:
            return messages[0].content
        return "\n\n".join(f"{each.role}: {each.content}" for each in messages)

    def draw(self, path: str | Path | None = None, image: ImageSource | None = None) -> Image.Image:
        """Draw the numbered candidates and the choice under the expression.

        Args:
            path: Where to write the picture; its suffix decides the format.
            image: What to draw on, where the boxes were given without an image; white by default.

        Raises:
            ImageError: If the image cannot be read, or is of another size.
            DataError: If the picture cannot be written in the format of the suffix.
        """
        source = self.image if image is None else image
        blank = Image.new("RGB", self.prediction.image_wh or (1, 1), "white")
        drawn = pictures.draw_prediction(self.prediction, blank if source is None else source)
        if path is not None:
            pictures.save_picture(drawn, Path(path))
        return drawn


class Wrapper:
    """A detector and the LLM that chooses among its boxes, each loaded once.

    Args:
        recipe: All settings; `eval` obeys the same ones.
        llm: Answers prompts; None for the rule.
        builder: Builds the prompts; None: by the recipe's format and instruction alone.
    """

    def __init__(self, recipe: Recipe, llm: LLM | None, builder: PromptBuilder | None = None) -> None:
        self.recipe = recipe
        self._llm, self._builder = llm, builder
        self._preparer = Preparer(recipe)

    @classmethod
    def from_run(cls, folder: str | Path, *, progress: bool = False) -> Wrapper:
        """Load the LLM and adapter of a finished training run; its detector is loaded at the first image.

        Raises:
            RunError: If the folder is no run.
            ModelError: If it has no adapter yet.
        """
        return cls.from_recipe(runs.recipe_of(Path(folder)), Path(folder) / runs.ADAPTER, progress=progress)

    @classmethod
    def from_recipe(
        cls,
        recipe: Recipe | Mapping[str, str] | str | Path,
        adapter: Path | str | None = None,
        *,
        progress: bool = False,
    ) -> Wrapper:
        """Load the LLM of a recipe, with an adapter where one is given.

        Args:
            recipe: A recipe, the path of one, or names such as {"vlm": "flo2", "llm": "llama3"}; without a detector
                `choose` works alone. Its `prompt` must be what the adapter was trained with. Examples come from its
                training split.
            adapter: A folder; as text also a repository of the hub, see `adapter_files.find_adapter`.
            progress: Whether to show a progress bar, on standard error.

        Raises:
            RecipeError: If the recipe cannot be used.
            ModelError: If the LLM or the adapter cannot be loaded, or do not fit each other.
            CacheError: If there are to be examples, and the training split's detections are not cached.
        """
        if isinstance(recipe, Mapping):
            recipe = load_recipe(**recipe)
        elif not isinstance(recipe, Recipe):
            recipe = load_recipe(recipe)
        require_probabilities(recipe)
        if recipe.llm.backend == "rule":
            return cls(recipe, None)
        from llm_wrapper.llms.base import load_llm

        if adapter is None and recipe.llm.backend == "transformers":
            _log.warning(
                "%s was not trained to choose boxes: train it (llm-wrapper train), name a run, or take LLM=rule",
                recipe.llm.model,
            )
        builder = load_prompt_builder(recipe)
        folder = find_adapter(adapter).folder if isinstance(adapter, str) else adapter
        num_tokens = recipe.prompt.reasoning_tokens
        with loading_bars_shown(progress):
            llm = load_llm(recipe.llm, folder, reasoning_tokens=num_tokens, progress=progress)
        return cls(recipe, llm, builder)

    @overload
    def predict(self, image: ImageSource, expression: str) -> Result: ...
    @overload
    def predict(self, image: ImageSource, expression: Expressions) -> list[Result]: ...
    def predict(self, image: ImageSource, expression: str | Expressions) -> Result | list[Result]:
        """Find the box that an expression describes.

        Args:
            image: Path of an image, a PIL image, or RGB pixels of shape (height, width, 3), uint8.
            expression: One, or a list of them: they share the detections and the beginning of the LLM's prompt.

        Returns:
            One result, or a list of them, in order.

        Raises:
            ImageError: If the image cannot be read.
            DataError: If an expression is empty.
            RecipeError: If the recipe has no detector.
        """
        expressions = [expression] if isinstance(expression, str) else [*expression]
        results = self.answer(self._preparer.prepare(image, expressions), image)
        return results[0] if isinstance(expression, str) else results

    @overload
    def choose(
        self, boxes: Any, labels: Sequence[str] | None, expression: str, *,
        image_size: Sequence[int], scores: Sequence[float] | None = None, box_format: BoxFormat = "xyxy",
    ) -> Result: ...  # fmt: skip
    @overload
    def choose(
        self, boxes: Any, labels: Sequence[str] | None, expression: Expressions, *,
        image_size: Sequence[int], scores: Sequence[float] | None = None, box_format: BoxFormat = "xyxy",
    ) -> list[Result]: ...  # fmt: skip
    def choose(
        self,
        boxes: Any,
        labels: Sequence[str] | None,
        expression: str | Expressions,
        *,
        image_size: Sequence[int],
        scores: Sequence[float] | None = None,
        box_format: BoxFormat = "xyxy",
    ) -> Result | list[Result]:
        """Find which of your boxes an expression describes; no detector is needed, and no pixel.

        Candidates are built as for `predict`: cap, order and overlaps are those of the recipe, and `Result.dropped`
        counts boxes that were dropped.

        Args:
            boxes: Shape (n, 4), xyxy pixels; or `supervision.Detections`.
            labels: One per box; None: those of `supervision.Detections.data["class_name"]`.
            expression: One, or a list of them.
            image_size: (width, height) in pixels.
            scores: One per box, if there are any.
            box_format: Another format of the boxes, such as "xywh" or "xyxy_norm".

        Returns:
            One result, or a list of them, in order; `Result.row` is the row of the chosen box.

        Raises:
            DataError: If a box, a label, a score or an expression cannot be used.
        """
        expressions = [expression] if isinstance(expression, str) else [*expression]
        require_expressions(expressions)
        wh = parse_image_size(image_size)
        found = read_given_boxes(boxes, labels, image_wh=wh, scores=scores, box_format=box_format)
        results = self.answer(
            [
                PreparedSample(sample, prepare_candidates(self._for_given(found), sample, [found], [GIVEN]))
                for sample in image_samples("image", wh, expressions)
            ]
        )
        return results[0] if isinstance(expression, str) else results

    def _for_given(self, found: Detections) -> Recipe:
        """Return the recipe without the sources of its detector, and without a threshold of scores that are absent."""
        update: dict[str, Any] = {"sources": None}
        if any(item.score is None for item in found.items):
            update["min_score"] = None
        policy = self.recipe.candidates.model_copy(update=update)
        return self.recipe.with_detectors(self.recipe.detectors()[:1]).model_copy(update={"candidates": policy})

    def answer(self, prepared: Sequence[PreparedSample], image: ImageSource | None = None) -> list[Result]:
        """Choose among the candidates of prepared samples.

        Those of one image share the beginning of their prompts; results are drawn on `image`.
        """
        prompts: list[Prompt] = []
        if self._llm is None:
            predictions = systems.by_rule(prepared)
        else:
            builder, llm = self._builder or PromptBuilder(self.recipe.prompt), _RecordingLLM(self._llm, prompts)
            predictions = systems.by_llm(prepared, "llm", builder, llm, orders=self.recipe.llm.orders)
        return [
            Result(
                prediction,
                tuple(prompt for prompt in prompts if prompt.sample_id == prediction.sample_id),
                each.built.counts,
                image,
            )
            for prediction, each in zip(predictions, prepared, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _RecordingLLM:
    """An LLM whose prompts are kept."""

    llm: LLM
    prompts: list[Prompt]

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Return the answer to each prompt, in order."""
        self.prompts.extend(prompts)
        return self.llm.answer(prompts)
