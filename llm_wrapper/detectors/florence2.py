"""Florence-2 (arXiv 2311.06242) as a detector: native transformers classes, one pass of the image, batched prompts.

`model.generate(**processor(text, images))` encodes the image again for every expression and task, and decodes one
answer at a time. Here the image is encoded once, and the prompts of all images of a call go through the language model
together. The answers are the same but for rounding: the encoder counts positions from the left and prompts are padded
on the right, so no token moves; padding is masked; and beam search treats the rows of a batch independently.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from llm_wrapper.detectors import RawRow, detections_from_raw, parse_settings
from llm_wrapper.detectors.checkpoints import Architecture, Loaded, PreparedImage, load_checkpoint
from llm_wrapper.detectors.prompted import PromptedDetector, PromptedSettings, PromptTask, TaskPrompt
from llm_wrapper.errors import RecipeError
from llm_wrapper.records import Detections

if TYPE_CHECKING:
    import torch

LOCATION_BINS = 1000
"""Location tokens per axis; a token is the middle of its bin."""

FLORENCE2_TASKS = {
    "rec": PromptTask("<OPEN_VOCABULARY_DETECTION>", "expression"),
    "grounding": PromptTask("<CAPTION_TO_PHRASE_GROUNDING>", "expression"),
    "dense_caption": PromptTask("<DENSE_REGION_CAPTION>", "image"),
    "od": PromptTask("<OD>", "image"),
}
"""Short name (the source of its detections) -> the processor's task token, and its level."""

_ENDS = re.compile(r"<(?:/?s|pad)>")
_ITEM = re.compile(r"(?:^|(?<=>))([^<>]*)((?:<loc_\d{1,6}>|</?poly>|<sep>)+)")
_POLYGON = re.compile(r"<poly>(.*?)</poly>")
_LOCATION = re.compile(r"<loc_(\d+)>")

_ARCHITECTURE = Architecture(
    ("florence2",),
    "Florence2ForConditionalGeneration",
    "Florence2Processor",
    "Checkpoints in transformers' own format are florence-community/Florence-2-large, -large-ft, -base and -base-ft "
    "(those of microsoft/ are not); without a network, give a folder or fetch one before with: hf download",
)


class Florence2Settings(PromptedSettings):
    """Settings of Florence-2 in a recipe.

    `dtype` auto is float16 on a GPU, because the checkpoints are stored in it and bfloat16 would round them, and
    float32 on the CPU. `attention` auto is what transformers chooses.
    """

    tasks: tuple[Literal["rec", "grounding", "dense_caption", "od"], ...] = Field(("rec", "grounding"), min_length=1)
    num_beams: int = Field(3, ge=1)
    max_new_tokens: int = Field(1024, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "eager", "sdpa"] = "auto"


class Florence2Detector(PromptedDetector[Florence2Settings]):
    """Answers with Florence-2's own boxes for an expression, and with all that it sees in an image."""

    kind = "florence2"
    reading = 1
    tasks = MappingProxyType(FLORENCE2_TASKS)

    def _load(self) -> Loaded:
        attention = None if self._settings.attention == "auto" else self._settings.attention
        return load_checkpoint(self._settings, _ARCHITECTURE, dtype=self._settings.dtype, attn_implementation=attention)

    def _check(self, loaded: Loaded) -> Loaded:
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

    def _read(self, prompt: TaskPrompt, answer: str, image_wh: tuple[int, int]) -> Detections:
        banned = self._processor.post_processor.banned_grounding_tokens
        return read_florence2_answer(answer, prompt.task, image_wh, banned_phrases=banned)

    def _ids(self, task: str, expression: str) -> list[int]:
        """Return the ids that the processor puts after the image; it would refuse some expressions, and pads images."""
        known, token = self._processor, FLORENCE2_TASKS[task].prompt
        template = (known.task_prompts_without_inputs | known.task_prompts_with_input)[token]
        text = template.format(input=expression)
        ids = known.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [known.tokenizer.bos_token_id, *ids, known.tokenizer.eos_token_id]

    def _batches(self, prompts: Sequence[TaskPrompt]) -> Iterator[Sequence[TaskPrompt]]:
        """Yield prompts that are decoded together: of one level, and of tasks and lengths as alike as possible.

        The longest answer of a batch keeps all others waiting, and those about a whole image are long.
        """
        for level in self.levels:
            chosen = [prompt for prompt in prompts if FLORENCE2_TASKS[prompt.task].level == level]
            chosen.sort(key=lambda prompt: (self._settings.tasks.index(prompt.task), len(prompt.ids)))
            for start in range(0, len(chosen), self._settings.max_prompts):
                yield chosen[start : start + self._settings.max_prompts]

    def _features(self, image: PreparedImage) -> torch.Tensor:
        """Encode an image: shape (1, image tokens, hidden size)."""
        pixel_values = image.pixel_values.to(self._model.device, self._model.dtype)
        features: torch.Tensor = self._model.get_image_features(pixel_values=pixel_values).pooler_output
        return features

    def _generate(self, prompts: Sequence[TaskPrompt], features: Mapping[str, torch.Tensor]) -> list[str]:
        """Return the answers as text with special tokens."""
        import transformers

        embeddings, mask = self._pad(prompts, features)
        options: dict[str, Any] = {"num_beams": self._settings.num_beams}
        if self._settings.num_beams > 1:
            config = self._model.config.get_text_config(decoder=True)
            decoder, encoder = (transformers.DynamicCache(config=config) for _ in range(2))
            cache = transformers.EncoderDecoderCache(decoder, encoder)
            # All beams of a prompt see the same encoder states, so moving these from beam to beam after every token
            # changes nothing and costs much: they are 600 positions long, an answer some dozens.
            cache.reorder_cache = decoder.reorder_cache
            options["past_key_values"] = cache
        ids = self._model.generate(
            encoder_outputs=self._model.get_encoder()(inputs_embeds=embeddings, attention_mask=mask),
            attention_mask=mask,
            max_new_tokens=self._settings.max_new_tokens,
            do_sample=False,
            **options,
        )
        answers: list[str] = self._processor.batch_decode(ids, skip_special_tokens=False)
        return answers

    def _pad(
        self, prompts: Sequence[TaskPrompt], features: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings (prompts, length, hidden size) and their mask (prompts, length).

        The image comes first, and text is padded on the right:

            image image image  text text text        mask  1 1 1  1 1 1
            image image image  text  pad  pad              1 1 1  1 0 0
        """
        import torch

        device, pad = self._model.device, self._processor.tokenizer.pad_token_id
        gaps = [max(len(prompt.ids) for prompt in prompts) - len(prompt.ids) for prompt in prompts]
        rows = list(zip(prompts, gaps, strict=True))
        ids = torch.tensor([[*prompt.ids, *[pad] * gap] for prompt, gap in rows], device=device)
        counts = torch.tensor([[1] * len(prompt.ids) + [0] * gap for prompt, gap in rows], device=device)
        text = self._model.get_input_embeddings()(ids)
        image = torch.cat([features[prompt.image_id] for prompt in prompts]).to(text.dtype)
        return torch.cat([image, text], dim=1), torch.cat([counts.new_ones(image.shape[:2]), counts], dim=1)


def read_florence2_answer(
    answer: str, task: str, image_wh: tuple[int, int], *, banned_phrases: Collection[str] = ()
) -> Detections:
    """Read the detections of one answer, in its order; labels as they are, scores `None`, the task as their source.

    An answer is text such as `</s><s>red shirt<loc_52><loc_332><loc_932><loc_774></s>`: a label, then its boxes, four
    bins of a thousandth of the image each, or polygons between `<poly>` and `</poly>`. The processor of transformers
    reads the same format (`post_process_generation`, and a test compares both), but it cuts coordinates to whole
    pixels, drops letters that are not ASCII, loses some boxes, and raises on a polygon of one point.

    A box of fewer than four bins (the answer was cut short), an open polygon and one of fewer than two points are
    counted as dropped, as are boxes without area; all others are kept, also those outside the image.

    Args:
        answer: The decoded answer, with its special tokens.
        task: A key of `FLORENCE2_TASKS`.
        image_wh: Width and height of the image in pixels.
        banned_phrases: Those that the task `grounding` must not ground, such as "it"; not counted as dropped.
    """
    rows: list[RawRow] = []
    for label, places in _ITEM.findall(_ENDS.sub("", answer)):
        phrase = label.strip()
        if task == "grounding" and phrase in banned_phrases:
            continue
        for bins in _boxes(places):
            pixels = [(number + 0.5) * image_wh[axis % 2] / LOCATION_BINS for axis, number in enumerate(bins)]
            rows.append((pixels, phrase, None))
    return detections_from_raw(rows, task)


def _boxes(places: str) -> Iterator[Sequence[int]]:
    """Yield the four bins of each box; fewer for what is no box, which is counted by that later."""
    for number, part in enumerate(_POLYGON.split(places)):
        if number % 2:  # a polygon, which may consist of several parts; with one point or none it has no box
            lines = [_bins(line) for line in part.split("<sep>")]
            points = [point for bins in lines for point in zip(bins[::2], bins[1::2], strict=False)]
            xs, ys = [x for x, _ in points], [y for _, y in points]
            yield (min(xs), min(ys), max(xs), max(ys)) if len(points) > 1 else ()
            continue
        before, opened, _ = part.partition("<poly>")
        bins = _bins(before)
        yield from (bins[start : start + 4] for start in range(0, len(bins), 4))
        if opened:
            yield ()


def _bins(places: str) -> list[int]:
    return [int(number) for number in _LOCATION.findall(places)]


def create_florence2(settings: Mapping[str, Any]) -> Florence2Detector:
    """Build the detector of `Florence2Settings`; the weights are loaded when the first image is read."""
    return Florence2Detector(None, None, parse_settings(Florence2Settings, settings, "florence2"))
