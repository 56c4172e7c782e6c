"""Detectors that are asked by a prompt and answer in text: tasks, expressions cut to fit, batches.

The image is encoded once for all its prompts, and prompts of several images and tasks go through the language model
together. How a prompt is built, batched and answered, and how an answer is read, is the model's own.
"""

from __future__ import annotations

import logging
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import Field, field_validator

from llm_wrapper import images
from llm_wrapper.detectors import LEVELS, Level, Question, joined
from llm_wrapper.detectors.checkpoints import CheckpointSettings, Loaded, PreparedImage, Weights
from llm_wrapper.records import Detections, Sample

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)


class PromptedSettings(CheckpointSettings):
    """Settings of every prompted detector.

    The `tasks` of an expression or image are asked in their order, and detections keep that order. `max_prompts` is
    how many prompts go through `generate` at once: a matter of memory and speed, not of the answers.
    """

    tasks: tuple[str, ...]
    num_beams: int = Field(ge=1)
    max_new_tokens: int = Field(ge=1)
    max_prompts: int = Field(16, ge=1)

    @field_validator("tasks")
    @classmethod
    def _once_each(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(tasks)) < len(tasks):
            raise ValueError(f"tasks: {', '.join(tasks)}: name each task once")
        return tasks


_Settings = TypeVar("_Settings", bound=PromptedSettings)


@dataclass(frozen=True, slots=True)
class PromptTask:
    """A task of a model: its prompt, and whether it needs an expression."""

    prompt: str
    level: Level


@dataclass(frozen=True, slots=True)
class TaskPrompt:
    """One task about question number `place`; `ids` are its tokens, `expression` the text in them, which may be cut."""

    place: int
    task: str
    image_id: str
    expression: str
    ids: list[int]


class PromptedDetector(ABC, Generic[_Settings]):
    """Answers questions by prompts.

    An expression is asked without the characters that can form special tokens, cut to what the model reads. One of
    which nothing is left has no detections.

    Attributes:
        name: The last part of the model's id, in lower case: models keep their caches apart.
        levels: Those of the tasks that are asked.
        kind: How the identity names this class.
        reading: Raised whenever the model is asked or read differently, so that old caches are not mixed with new ones.
        tasks: By name, which is the source of its detections.
    """

    reads_images = True
    kind: ClassVar[str]
    reading: ClassVar[int]
    tasks: ClassVar[Mapping[str, PromptTask]]

    def __init__(self, model: Any, processor: Any, settings: _Settings) -> None:
        """Take a model in evaluation mode and its processor, or `None` for both: loaded when the first image is read.

        Raises:
            RecipeError: If the settings ask for more than the given model can do.
        """
        self._settings = settings
        built = None if model is None else self._check(Loaded(model, processor))
        self._weights = Weights(lambda: self._check(self._load()), built)
        self._has_warned = False
        self.name = settings.model.rstrip("/").rsplit("/", 1)[-1].lower()
        levels = {self.tasks[task].level for task in settings.tasks}
        self.levels: tuple[Level, ...] = tuple(level for level in LEVELS if level in levels)

    @abstractmethod
    def _load(self) -> Loaded:
        """Load what the settings name."""

    @abstractmethod
    def _check(self, loaded: Loaded) -> Loaded:
        """Return a model that can do what the settings ask for; raise a RecipeError for another one."""

    @property
    @abstractmethod
    def _room(self) -> int:
        """How many tokens a prompt may have."""

    def _clean(self, expression: str) -> str:
        return clean_expression(expression)

    @abstractmethod
    def _ids(self, task: str, expression: str) -> list[int]:
        """Return the tokens of a prompt."""

    @abstractmethod
    def _batches(self, prompts: Sequence[TaskPrompt]) -> Iterable[Sequence[TaskPrompt]]:
        """Yield prompts that are answered together."""

    @abstractmethod
    def _features(self, image: PreparedImage) -> torch.Tensor:
        """Encode an image."""

    @abstractmethod
    def _generate(self, prompts: Sequence[TaskPrompt], features: Mapping[str, torch.Tensor]) -> list[str]:
        """Return the answer to each prompt of a batch."""

    @abstractmethod
    def _read(self, prompt: TaskPrompt, answer: str, image_wh: tuple[int, int]) -> Detections:
        """Read an answer."""

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the answers."""
        deciding = {"model", "revision", "tasks", "num_beams", "max_new_tokens"}
        chosen = self._settings.model_dump(mode="json", include=deciding)
        return {"detector": self.kind, **chosen, "reading": self.reading}

    def recorded(self) -> dict[str, Any]:
        """Return how the answers are computed, once the model is loaded."""
        built = self._weights.built
        return {} if built is None else built.recorded(built.model.config.text_config, built.model.config.vision_config)

    @property
    def _model(self) -> Any:
        return self._weights.loaded().model

    @property
    def _processor(self) -> Any:
        return self._weights.loaded().processor

    def prepare(self, sample: Sample) -> PreparedImage:
        """Read and preprocess the image of a sample; this loads the model where it is not there yet."""
        image = images.read_sample(sample)
        pixel_values = self._processor.image_processor(images=image, return_tensors="pt")["pixel_values"]
        return PreparedImage(pixel_values, image.size)

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, PreparedImage]) -> list[Detections]:
        """Answer each question with the detections of its level's tasks, in the order of the settings."""
        import torch

        found: list[dict[str, Detections]] = [{} for _ in questions]
        with torch.inference_mode():
            prompts = [prompt for place, question in enumerate(questions) for prompt in self._prompts(place, question)]
            image_ids = dict.fromkeys(prompt.image_id for prompt in prompts)
            features = {image_id: self._features(prepared[image_id]) for image_id in image_ids}
            for batch in self._batches(prompts):
                for prompt, answer in zip(batch, self._generate(batch, features), strict=True):
                    image_wh = prepared[prompt.image_id].image_wh
                    found[prompt.place][prompt.task] = self._read(prompt, answer, image_wh)
        return [joined([answers[task] for task in self._settings.tasks if task in answers]) for answers in found]

    def _prompts(self, place: int, question: Question) -> Iterator[TaskPrompt]:
        expression = self._clean(question.sample.expression) if question.level == "expression" else ""
        if question.level == "image" or expression:
            for task in self._settings.tasks:
                if self.tasks[task].level == question.level:
                    yield TaskPrompt(place, task, question.sample.image_id, *self._fit(task, expression))

    def _fit(self, task: str, expression: str) -> tuple[str, list[int]]:
        """Return the expression, cut at its end to what the model has positions for, and the prompt's token ids."""
        ids = self._ids(task, expression)
        excess = len(ids) - self._room
        if excess <= 0 or not expression:
            return expression, ids
        if not self._has_warned:
            self._has_warned = True
            _log.warning("%s reads %d tokens: longer expressions are cut, as %.60r", self.name, self._room, expression)
        tokenizer = self._processor.tokenizer
        tokens = tokenizer(expression, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts = [start for start, _ in tokens["offset_mapping"]]
        return self._fit(task, expression[: starts[max(0, len(starts) - excess)]].rstrip())


def clean_expression(expression: str) -> str:
    """Return an expression as one line that can form no special token; empty where nothing is left of it.

    Every special token of these tokenizers and every task token of their processors is written with `<` and `>`.
    Control and format characters (categories C and Z) become spaces: among them are lone surrogates, which no
    tokenizer accepts.
    """
    brackets = str.maketrans("<>", "()")
    spaced = (" " if unicodedata.category(char)[0] in "CZ" else char for char in expression.translate(brackets))
    return " ".join("".join(spaced).split())
