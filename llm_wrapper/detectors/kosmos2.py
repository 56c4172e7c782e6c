"""Kosmos-2 (arXiv 2306.14824) as a detector: native transformers classes, one pass of the image, batched prompts.

As in `florence2`, the image is encoded once, and prompts of equal length go through the language model together. The
answers are the same but for rounding: no row is padded, and beam search treats the rows independently.

Prompts of different lengths are not batched, because transformers counts the positions of what is generated from the
padded length (`Kosmos2TextSinusoidalPositionalEmbedding` knows the padding of the prompt, but not that of the past).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from llm_wrapper.detectors import detections_from_raw, joined, parse_settings
from llm_wrapper.detectors.checkpoints import Architecture, Loaded, PreparedImage, load_checkpoint
from llm_wrapper.detectors.prompted import PromptedDetector, PromptedSettings, PromptTask, TaskPrompt, clean_expression
from llm_wrapper.errors import RecipeError
from llm_wrapper.records import Detections

if TYPE_CHECKING:
    import torch

NUM_CELLS = 32
"""Cells of the grid along each side of the image."""

MENTIONED = "phrase"
"""The source of boxes of phrases that an answer to an expression adds to it, such as "and a fire"."""

KOSMOS2_TASKS = {
    "rec": PromptTask("<grounding><phrase> {expression}</phrase>", "expression"),
    "caption": PromptTask("<grounding> An image of", "image"),
}
"""Short name (the source of its detections) -> the prompt of the authors' evaluation or demo, and its level."""

_ITEM = re.compile(
    r"(?:<phrase>((?:(?!</?phrase>).)*)</phrase>)?"
    r"<object>((?:<patch_index_\d{1,6}>|</delimiter_of_multi_objects/>)*)",
    re.DOTALL,
)
_CELL = re.compile(r"<patch_index_(\d+)>")

_NO_REPEAT = 3
"""No three tokens may follow each other twice, as in the authors' evaluation and demo.

The checkpoint says so too, but in its config.json, where transformers 5 drops such settings silently.
"""

_LEAST_ROOM = 32
"""Tokens that a question about an image can always have."""

_ARCHITECTURE = Architecture(
    ("kosmos-2",),
    "Kosmos2ForConditionalGeneration",
    "Kosmos2Processor",
    "The checkpoint is microsoft/kosmos-2-patch14-224; without a network, give a folder or fetch it before with: "
    "hf download",
)


class Kosmos2Settings(PromptedSettings):
    """Settings of Kosmos-2 in a recipe.

    One beam is what the authors' evaluation uses, 128 new tokens what transformers' tests of the checkpoint use, and
    float32 what the checkpoint is stored in.
    """

    tasks: tuple[Literal["rec", "caption"], ...] = Field(("rec", "caption"), min_length=1)
    num_beams: int = Field(1, ge=1)
    max_new_tokens: int = Field(128, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class Kosmos2Detector(PromptedDetector[Kosmos2Settings]):
    """Answers with Kosmos-2's own boxes for an expression, and with those of a caption that it makes of an image."""

    kind = "kosmos2"
    reading = 1
    tasks = MappingProxyType(KOSMOS2_TASKS)

    def _load(self) -> Loaded:
        return load_checkpoint(self._settings, _ARCHITECTURE, dtype=self._settings.dtype)

    def _check(self, loaded: Loaded) -> Loaded:
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

    def _clean(self, expression: str) -> str:
        # The tokenizer does the same, so that a wide bracket would become one that can form a special token.
        return clean_expression(unicodedata.normalize("NFKC", expression))

    def _read(self, prompt: TaskPrompt, answer: str, image_wh: tuple[int, int]) -> Detections:
        text = KOSMOS2_TASKS[prompt.task].prompt.format(expression=prompt.expression) + answer
        return read_kosmos2_answer(text, prompt.task, image_wh, expression=prompt.expression)

    def _ids(self, task: str, expression: str) -> list[int]:
        text = KOSMOS2_TASKS[task].prompt.format(expression=expression)
        ids = self._processor.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [*self._image_ids, *ids]

    def _batches(self, prompts: Sequence[TaskPrompt]) -> Iterator[Sequence[TaskPrompt]]:
        """Yield prompts that are decoded together: of one task and length."""

        def kind(prompt: TaskPrompt) -> tuple[int, int]:
            return self._settings.tasks.index(prompt.task), len(prompt.ids)

        for _, group in groupby(sorted(prompts, key=kind), key=kind):
            alike = list(group)
            for start in range(0, len(alike), self._settings.max_prompts):
                yield alike[start : start + self._settings.max_prompts]

    def _features(self, image: PreparedImage) -> torch.Tensor:
        """Encode an image, as `generate` would: shape (1, image tokens, hidden size)."""
        from torch.nn.functional import normalize

        vision = self._model.vision_model
        pixel_values = image.pixel_values.to(self._model.device, self._model.dtype)
        states = vision.model.post_layernorm(vision(pixel_values=pixel_values).last_hidden_state)
        features: torch.Tensor = self._model.image_to_text_projection(normalize(states, dim=-1))[0]
        return features

    def _generate(self, prompts: Sequence[TaskPrompt], features: Mapping[str, torch.Tensor]) -> list[str]:
        """Return the answer to each prompt, with its location tokens; all prompts have one length."""
        import torch

        ids = torch.tensor([prompt.ids for prompt in prompts], device=self._model.device)
        is_image = torch.zeros_like(ids, dtype=torch.bool)
        is_image[:, 2 : len(self._image_ids) - 1] = True  # after <s> <image>, before </image>
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
        # Location tokens are not special tokens to the tokenizer.
        answers: list[str] = self._processor.batch_decode(generated[:, ids.shape[1] :], skip_special_tokens=True)
        return answers


def _ids_of_an_image(loaded: Loaded) -> list[int]:
    """Return the ids that the processor puts before a text.

        <s> <image> 1 2 3 ... 64 </image>     the features of the image replace 1 to 64

    The ban on repeating three tokens reads the ids that are replaced, so they must be the processor's.
    """
    processor, tokenizer = loaded.processor, loaded.processor.tokenizer
    first = tokenizer.unk_token_id + 1
    start, end = tokenizer.convert_tokens_to_ids([processor.boi_token, processor.eoi_token])
    places = range(first, first + loaded.model.config.latent_query_num)
    return [tokenizer.bos_token_id, start, *places, end]


def read_kosmos2_answer(answer: str, task: str, image_wh: tuple[int, int], *, expression: str = "") -> Detections:
    """Read the detections of one answer, in its order; labels as they are, scores `None`.

    The answer continues its prompt, and both are read together:
    `<grounding><phrase> a snowman</phrase><object><patch_index_0044><patch_index_0863></object> by<phrase> a fire...`:
    a phrase, then its boxes with `</delimiter_of_multi_objects/>` between them.

    The source is the task. But where an expression was asked, only boxes of that very phrase answer it, as in the
    authors' evaluation (kosmos-2/evaluation/refcoco/refexp_evaluate.py); those of others have the source `MENTIONED`.

    A box of other than two location tokens (the answer was cut short) is counted as dropped, as are reversed ones; all
    others are kept, also those outside the image. The processor of transformers reads the same format
    (`post_process_generation`, and a test compares both), but it loses the boxes of a phrase whose last box was cut
    short, and labels a box without a phrase with its location tokens.

    Args:
        answer: The prompt without the image, and what the model said to it.
        task: A key of `KOSMOS2_TASKS`.
        image_wh: Width and height of the image in pixels.
        expression: The expression as it is in the prompt.
    """
    answers = []
    for phrase, places in _ITEM.findall(answer):
        label = phrase.strip()
        source = MENTIONED if KOSMOS2_TASKS[task].level == "expression" and label != expression else task
        boxes = (_pixels(part, image_wh) for part in places.split("</delimiter_of_multi_objects/>"))
        answers.append(detections_from_raw([(box, label, None) for box in boxes], source))
    return joined(answers)


def _pixels(places: str, image_wh: tuple[int, int]) -> Sequence[float]:
    """Return the box between two location tokens as xyxy; nothing where there are not two.

    A token names a cell of a grid of 32 x 32 over the whole image, row by row; the first of a box holds its upper left
    corner, the second its lower right. Both mean the middle of their cell. Only where they share a row or a column, in
    which the box would have no area, it extends over its cells from edge to edge, on both axes. That is the convention
    of the authors (microsoft/unilm, kosmos-2/demo/decode_string.py) and of the processor of transformers.
    """
    corners = [divmod(int(cell), NUM_CELLS) for cell in _CELL.findall(places)]
    if len(corners) != 2:
        return ()
    (top, left), (bottom, right) = corners
    start, end = (0.0, 1.0) if top == bottom or left == right else (0.5, 0.5)
    width, height = (side / NUM_CELLS for side in image_wh)
    return ((left + start) * width, (top + start) * height, (right + end) * width, (bottom + end) * height)


def create_kosmos2(settings: Mapping[str, Any]) -> Kosmos2Detector:
    """Build the detector of `Kosmos2Settings`; the weights are loaded when the first image is read."""
    return Kosmos2Detector(None, None, parse_settings(Kosmos2Settings, settings, "kosmos2"))
