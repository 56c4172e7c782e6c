"""Florence-2 (arXiv 2311.06242) as a detector: native transformers classes, one pass of the image, batched prompts.

The plain way, `model.generate(**processor(text, images))`, encodes the image again for every expression and task, and
decodes one answer at a time. Here the image is encoded once, and the prompts of all images of a call go through the
language model together. The answers are the same: the encoder counts positions from the left and prompts are padded
on the right, so no token moves; padding is masked in the encoder and in the decoder's view of it; and beam search
treats the rows of a batch independently. Only rounding differs, as it does between any two batch sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
import transformers
from pydantic import Field

from llm_wrapper.datasets.base import Dataset
from llm_wrapper.datasets.rows import validated
from llm_wrapper.detectors import checkpoints, florence2_answers
from llm_wrapper.detectors.checkpoints import Architecture, Loaded, PreparedImage
from llm_wrapper.detectors.florence2_answers import TASKS
from llm_wrapper.detectors.prompted import Prompt, PromptedDetector, PromptedSettings
from llm_wrapper.errors import RecipeError, listed
from llm_wrapper.records import Detections

__all__ = ["Florence2Detector", "Florence2Settings", "create"]

_ARCHITECTURE = Architecture(
    "florence2",
    transformers.Florence2ForConditionalGeneration,
    transformers.Florence2Processor,
    "Checkpoints in transformers' own format are florence-community/Florence-2-large, -large-ft, -base and -base-ft "
    "(those of microsoft/ are not); without a network, give a folder or fetch one before with: hf download",
)


class Florence2Settings(PromptedSettings):
    """What a recipe sets.

    `dtype` auto is float16 on a GPU, because the checkpoints are stored in it and bfloat16 would round them, and
    float32 on the CPU. `attention` auto is what transformers chooses.
    """

    tasks: tuple[Literal["rec", "grounding", "dense_caption", "od"], ...] = Field(("rec", "grounding"), min_length=1)
    num_beams: int = Field(3, ge=1)
    max_new_tokens: int = Field(1024, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "eager", "sdpa"] = "auto"


class _BeamCache(transformers.EncoderDecoderCache):  # type: ignore[misc]
    """Keys and values of beam search; those of the encoder stay where they are.

    All beams of a prompt see the same encoder states, so moving these from beam to beam after every token, as
    transformers does, changes nothing. It is dear: they are 600 positions long, and an answer is some dozens.
    """

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Follow the beams that go on; `beam_idx` never leads from one prompt to another."""
        self.self_attention_cache.reorder_cache(beam_idx)


class Florence2Detector(PromptedDetector[Florence2Settings]):
    """Answers with Florence-2's own boxes for an expression, and with all that it sees in an image.

    Its model is a `Florence2ForConditionalGeneration`, its processor a `Florence2Processor`. Its levels are
    `expression` for the tasks rec and grounding, `image` for dense_caption and od.
    """

    kind = "florence2"
    reading = 1
    level_of = MappingProxyType({name: task.level for name, task in TASKS.items()})

    def _load(self) -> Loaded:
        chosen = self._settings
        where = checkpoints.device(chosen.device)
        default = torch.float16 if where.type == "cuda" else torch.float32
        return checkpoints.load(
            chosen.model,
            chosen.revision,
            _ARCHITECTURE,
            where=where,
            dtype=default if chosen.dtype == "auto" else getattr(torch, chosen.dtype),
            attn_implementation=None if chosen.attention == "auto" else chosen.attention,
        )

    def _checked(self, loaded: Loaded) -> Loaded:
        num_positions = loaded.model.config.text_config.max_position_embeddings
        if self._settings.max_new_tokens > num_positions:
            raise RecipeError(
                f"detector.settings.max_new_tokens={self._settings.max_new_tokens}: {self._settings.model} has "
                f"{num_positions} positions; set it to {num_positions} or less"
            )
        return loaded

    @property
    def _room(self) -> int:
        num_positions: int = self._model.config.text_config.max_position_embeddings
        return num_positions - int(self._processor.num_image_tokens)

    def _askable(self, expression: str) -> str:
        return florence2_answers.harmless(expression)

    def _read(self, prompt: Prompt, answer: str, image_wh: tuple[int, int]) -> Detections:
        banned = self._processor.post_processor.banned_grounding_tokens
        return florence2_answers.detections(answer, prompt.task, image_wh, banned_phrases=banned)

    def _ids(self, task: str, expression: str) -> list[int]:
        """Return what the processor would ask after the image; it would refuse some expressions, and pads images."""
        known, token = self._processor, TASKS[task].token
        template = (known.task_prompts_without_inputs | known.task_prompts_with_input)[token]
        text = template.format(input=expression)
        ids = known.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [known.tokenizer.bos_token_id, *ids, known.tokenizer.eos_token_id]

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[Sequence[Prompt]]:
        """Yield prompts that are decoded together: of one level, and of tasks and lengths as alike as possible.

        The longest answer of a batch keeps all others waiting, and those about a whole image are long.
        """
        order: dict[str, int] = {task: place for place, task in enumerate(self._settings.tasks)}
        for level in self.levels:
            chosen = [prompt for prompt in prompts if TASKS[prompt.task].level == level]
            chosen.sort(key=lambda prompt: (order[prompt.task], len(prompt.ids)))
            for start in range(0, len(chosen), self._settings.max_prompts):
                yield chosen[start : start + self._settings.max_prompts]

    def _features(self, image: PreparedImage) -> torch.Tensor:
        """Encode an image: shape (1, image tokens, hidden size)."""
        pixel_values = image.pixel_values.to(self._model.device, self._model.dtype)
        features: torch.Tensor = self._model.get_image_features(pixel_values=pixel_values).pooler_output
        return features

    def _generate(self, prompts: Sequence[Prompt], features: Mapping[str, torch.Tensor]) -> list[str]:
        """Return the answers as text with special tokens."""
        embeddings, mask = self._padded(prompts, features)
        options: dict[str, Any] = {"num_beams": self._settings.num_beams}
        if self._settings.num_beams > 1:
            config = self._model.config.get_text_config(decoder=True)
            options["past_key_values"] = _BeamCache(*(transformers.DynamicCache(config=config) for _ in range(2)))
        ids = self._model.generate(
            encoder_outputs=self._model.get_encoder()(inputs_embeds=embeddings, attention_mask=mask),
            attention_mask=mask,
            max_new_tokens=self._settings.max_new_tokens,
            do_sample=False,
            **options,
        )
        answers: list[str] = self._processor.batch_decode(ids, skip_special_tokens=False)
        return answers

    def _padded(
        self, prompts: Sequence[Prompt], features: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings (prompts, length, hidden size), image first, and which of them count (prompts, length)."""
        where, pad = self._model.device, self._processor.tokenizer.pad_token_id
        gaps = [max(len(prompt.ids) for prompt in prompts) - len(prompt.ids) for prompt in prompts]
        rows = list(zip(prompts, gaps, strict=True))
        ids = torch.tensor([[*prompt.ids, *[pad] * gap] for prompt, gap in rows], device=where)
        counts = torch.tensor([[1] * len(prompt.ids) + [0] * gap for prompt, gap in rows], device=where)
        text = self._model.get_input_embeddings()(ids)
        image = torch.cat([features[prompt.image_id] for prompt in prompts]).to(text.dtype)
        return torch.cat([image, text], dim=1), torch.cat([counts.new_ones(image.shape[:2]), counts], dim=1)


def create(settings: Mapping[str, Any], dataset: Dataset) -> Florence2Detector:
    """Build the detector of `Florence2Settings`; the weights are loaded when the first image is read.

    Raises:
        RecipeError: With every setting that is unknown, missing or out of range.
    """
    problems: list[str] = []
    chosen = validated(Florence2Settings, dict(settings), where="settings", problems=problems)
    if chosen is None:
        raise RecipeError(listed("the detector 'florence2' cannot be built", problems))
    return Florence2Detector(None, None, chosen)
