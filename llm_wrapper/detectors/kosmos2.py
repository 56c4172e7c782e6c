"""Kosmos-2 (arXiv 2306.14824) as a detector: native transformers classes, one pass of the image, batched prompts.

The plain way, `model.generate(**processor(text, images))`, encodes the image again for every expression and task, and
decodes one answer at a time. Here the image is encoded once, and prompts of equal length go through the language model
together. The answers are the same but for rounding: no row is padded, and beam search treats the rows independently.

Prompts of different lengths are not batched, because transformers counts the positions of what is generated from the
padded length (`Kosmos2TextSinusoidalPositionalEmbedding` knows the padding of the prompt, but not that of the past).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from types import MappingProxyType
from typing import Any, Literal

import torch
import transformers
from pydantic import Field
from torch import nn

from llm_wrapper.datasets.base import Dataset
from llm_wrapper.datasets.rows import validated
from llm_wrapper.detectors import checkpoints, kosmos2_answers
from llm_wrapper.detectors.checkpoints import Architecture, Loaded, PreparedImage
from llm_wrapper.detectors.florence2_answers import harmless
from llm_wrapper.detectors.kosmos2_answers import TASKS
from llm_wrapper.detectors.prompted import Prompt, PromptedDetector, PromptedSettings
from llm_wrapper.errors import RecipeError, listed
from llm_wrapper.records import Detections

__all__ = ["Kosmos2Detector", "Kosmos2Settings", "create"]

_NO_REPEAT = 3
"""No three tokens may follow each other twice, as in the authors' evaluation and demo.

The checkpoint says so too, but in its config.json, where transformers 5 drops such settings without a word.
"""

_LEAST_ROOM = 32
"""Tokens that a question about an image can always have."""

_ARCHITECTURE = Architecture(
    "kosmos-2",
    transformers.Kosmos2ForConditionalGeneration,
    transformers.Kosmos2Processor,
    "The checkpoint is microsoft/kosmos-2-patch14-224; without a network, give a folder or fetch it before with: "
    "hf download",
)


class Kosmos2Settings(PromptedSettings):
    """What a recipe sets.

    One beam is what the authors' evaluation uses, 128 new tokens what transformers' tests of the checkpoint use, and
    float32 what the checkpoint is stored in.
    """

    tasks: tuple[Literal["rec", "caption"], ...] = Field(("rec", "caption"), min_length=1)
    num_beams: int = Field(1, ge=1)
    max_new_tokens: int = Field(128, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class Kosmos2Detector(PromptedDetector[Kosmos2Settings]):
    """Answers with Kosmos-2's own boxes for an expression, and with those of a caption that it makes of an image.

    Its model is a `Kosmos2ForConditionalGeneration`, its processor a `Kosmos2Processor`. Its levels are `expression`
    for the task rec, `image` for caption.
    """

    kind = "kosmos2"
    reading = 1
    level_of = MappingProxyType({name: task.level for name, task in TASKS.items()})

    def _load(self) -> Loaded:
        return checkpoints.load(
            self._settings.model,
            self._settings.revision,
            _ARCHITECTURE,
            where=checkpoints.device(self._settings.device),
            dtype=getattr(torch, self._settings.dtype),
        )

    def _checked(self, loaded: Loaded) -> Loaded:
        num_positions = loaded.model.config.text_config.max_position_embeddings
        most = num_positions - len(_ids_of_an_image(loaded)) - _LEAST_ROOM
        if self._settings.max_new_tokens > most:
            raise RecipeError(
                f"detector.settings.max_new_tokens={self._settings.max_new_tokens}: {self._settings.model} has "
                f"{num_positions} positions, also for the image and the question; set it to {most} or less"
            )
        return loaded

    @property
    def _room(self) -> int:
        num_positions: int = self._model.config.text_config.max_position_embeddings
        return num_positions - self._settings.max_new_tokens

    @cached_property
    def _image_ids(self) -> list[int]:
        return _ids_of_an_image(self._weights.loaded())

    def _askable(self, expression: str) -> str:
        # The tokenizer does the same, so that a wide bracket would become one that can form a special token.
        return harmless(unicodedata.normalize("NFKC", expression))

    def _read(self, prompt: Prompt, answer: str, image_wh: tuple[int, int]) -> Detections:
        text = _text(prompt.task, prompt.expression) + answer
        return kosmos2_answers.detections(text, prompt.task, image_wh, expression=prompt.expression)

    def _ids(self, task: str, expression: str) -> list[int]:
        text = _text(task, expression)
        return [
            *self._image_ids,
            *self._processor.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"],
        ]

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[Sequence[Prompt]]:
        """Yield prompts that are decoded together: of one task and length."""

        def kind(prompt: Prompt) -> tuple[int, int]:
            return self._settings.tasks.index(prompt.task), len(prompt.ids)

        for _, group in groupby(sorted(prompts, key=kind), key=kind):
            alike = list(group)
            for start in range(0, len(alike), self._settings.max_prompts):
                yield alike[start : start + self._settings.max_prompts]

    def _features(self, image: PreparedImage) -> torch.Tensor:
        """Encode an image, as `generate` would: shape (1, image tokens, hidden size)."""
        vision = self._model.vision_model
        pixel_values = image.pixel_values.to(self._model.device, self._model.dtype)
        states = vision.model.post_layernorm(vision(pixel_values=pixel_values).last_hidden_state)
        features: torch.Tensor = self._model.image_to_text_projection(nn.functional.normalize(states, dim=-1))[0]
        return features

    def _generate(self, prompts: Sequence[Prompt], features: Mapping[str, torch.Tensor]) -> list[str]:
        """Return what the model says after each prompt, with its location tokens; all prompts are of one length."""
        ids = torch.tensor([prompt.ids for prompt in prompts], device=self._model.device)
        is_image = torch.zeros_like(ids, dtype=torch.bool)
        is_image[:, 2 : len(self._image_ids) - 1] = True  # between the marks of start, image, and its end
        generated = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            image_embeds=torch.cat([features[prompt.image_id] for prompt in prompts]),
            image_embeds_position_mask=is_image,
            num_beams=self._settings.num_beams,
            max_new_tokens=self._settings.max_new_tokens,
            no_repeat_ngram_size=_NO_REPEAT,
            do_sample=False,
        )
        # Location tokens are no special tokens to the tokenizer.
        answers: list[str] = self._processor.batch_decode(generated[:, ids.shape[1] :], skip_special_tokens=True)
        return answers


def create(settings: Mapping[str, Any], dataset: Dataset) -> Kosmos2Detector:
    """Build the detector of `Kosmos2Settings`; the weights are loaded when the first image is read.

    Raises:
        RecipeError: With every setting that is unknown, missing or out of range.
    """
    problems: list[str] = []
    chosen = validated(Kosmos2Settings, dict(settings), where="settings", problems=problems)
    if chosen is None:
        raise RecipeError(listed("the detector 'kosmos2' cannot be built", problems))
    return Kosmos2Detector(None, None, chosen)


def _ids_of_an_image(loaded: Loaded) -> list[int]:
    """Return what the processor puts before a text: the places where the features of the image go, and its marks.

    The features replace what stands in their places, but the ban on repeating three tokens reads it: only with the
    processor's own ids are the answers those of the plain way.
    """
    processor, tokenizer = loaded.processor, loaded.processor.tokenizer
    first = tokenizer.unk_token_id + 1
    start, end = tokenizer.convert_tokens_to_ids([processor.boi_token, processor.eoi_token])
    places = range(first, first + loaded.model.config.latent_query_num)
    return [tokenizer.bos_token_id, start, *places, end]


def _text(task: str, expression: str) -> str:
    return TASKS[task].prompt.format(expression=expression)
