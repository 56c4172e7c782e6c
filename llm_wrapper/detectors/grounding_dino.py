"""Grounding-DINO, MM-Grounding-DINO and LLMDet through transformers' own classes.

The part that depends on the image alone is computed once per image, however many expressions it has (`share_image`).
Every answer is the one of a call for one expression alone: to the bit where expressions are asked one at a time, to
rounding where several are asked at once.

    image -> backbone -> projections -> first encoder layer, before it meets the text      once per image
    expressions -> text encoder -> all other layers -> logits, boxes                        once per batch

Only expressions of one image share a batch. Images of different sizes would be padded to one size, and padding changes
the shares of the feature maps that are valid, by which the deformable attention places its points. Padding of the text
changes nothing, as long as every text ends with a period (see `fit_expression`).

Four fifths of a pass are the encoder, and on a CPU much of that is memory: for an image of 800 x 1066 pixels its
tensors have up to 300 MB, are written and read once, and freed. The core of its deformable attention treats each place
of the image separately, so it runs on some hundred places at a time. Its feed-forward network does so too, but is left
alone: on several threads a matrix product is rounded by its number of rows.

Both keep every number to the last bit. That matters more than it seems: the model ranks about 18,000 places and gives
its queries to the first 900, so that an error of rounding can swap two of them and move boxes by several pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import patch

from pydantic import Field, field_validator

from llm_wrapper import images
from llm_wrapper.detectors import Level, Question, parse_settings
from llm_wrapper.detectors.checkpoints import Architecture, CheckpointSettings, Loaded, Weights, load_checkpoint
from llm_wrapper.detectors.grounding_dino_base import (
    PreparedPixels,
    Scoring,
    fit_expression,
    pad_to_queries,
    read_caption,
    score_output,
    widen,
)
from llm_wrapper.errors import ModelError
from llm_wrapper.records import Detections, Sample

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

_READING = 1
"""Raise it with every change of the text that the model is given, or of how its answer is read."""

_ATTENTION = "sdpa"
"""Of text encoder and backbone. Eager would be wrong: BERT's adds 1 where the mask allows, and hides nothing."""

_PERIOD = [101, 1012, 102]
"""An empty text, as the model's code expects it: [CLS], the period that ends a phrase, [SEP]."""

_ROWS = 512
"""Places of the image at a time, at most: the largest tensor of the attention then has 8 MB instead of 300."""

_PLAIN_CAPTION = "{expression}"


def _load_processor(name: str, revision: str) -> Any:
    import transformers

    return transformers.GroundingDinoProcessor(
        # Always PIL's pixels: torchvision's differ a little, and it may or may not be installed.
        transformers.AutoImageProcessor.from_pretrained(
            name, revision=revision, backend="pil", trust_remote_code=False
        ),
        transformers.AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False),
    )


_ARCHITECTURE = Architecture(
    ("grounding-dino", "mm-grounding-dino"),
    "AutoModelForZeroShotObjectDetection",
    _load_processor,
    "Give the id of a Grounding-DINO on the Hugging Face hub, or a folder that `save_pretrained` wrote; without a "
    "network fetch it before with: hf download",
)


class GroundingDinoSettings(CheckpointSettings, Scoring):
    """The detector's settings in a recipe; see `Scoring` for the mode and its thresholds.

    Attributes:
        max_prompts: How many expressions of an image are asked at once. By default 8 on a GPU, and 1 on a CPU, where
            more save no time. The answers are the same but for rounding, so caches do not tell it apart.
        caption: The text that is asked, with the expression in the place of `{expression}`; in mode `gdrec` its subject
            may be the caption's. `make search-prompts SEARCH=glov-detector` looks for a better one.
    """

    revision: str = "main"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_prompts: int | None = Field(None, ge=1)
    caption: str = _PLAIN_CAPTION

    @field_validator("caption")
    @classmethod
    def _holds_the_expression(cls, caption: str) -> str:
        if caption.count("{expression}") != 1:
            raise ValueError(f"caption: {caption!r} needs {{expression}} exactly once")
        return caption


class GroundingDinoDetector:
    """Finds what an expression names; scores are probabilities, labels are words of the expression.

    Attributes:
        name: The last part of the model's id, in lower case, with the mode: each has its own cache.
    """

    levels: tuple[Level, ...] = ("expression",)
    reads_images = True

    def __init__(self, model: Any, processor: Any, settings: GroundingDinoSettings) -> None:
        """Take a built model with its processor, or `None` for both: they are loaded when the first image is read.

        Raises:
            ModelError: If the model would not read a text as it was made to.
        """
        self.name = f"{settings.model.rstrip('/').rsplit('/', 1)[-1].lower()}-{settings.mode}"
        self._settings = settings
        built = None if model is None else _check(Loaded(model.eval(), processor))
        self._weights = Weights(self._load, built)
        self._has_warned = False

    def identity(self) -> dict[str, Any]:
        """Return all that decides the answers."""
        chosen = self._settings
        facts: dict[str, Any] = {"detector": "grounding_dino", "reading": _READING, "attention": _ATTENTION}
        facts |= {**chosen.identity(), "model": chosen.model, "revision": chosen.revision, "dtype": chosen.dtype}
        # Only where it is set, so that older caches stay valid.
        return facts if chosen.caption == _PLAIN_CAPTION else facts | {"caption": chosen.caption}

    def recorded(self) -> dict[str, Any]:
        """Return how the answers are computed, once the model is loaded."""
        built = self._weights.built
        return {} if built is None else built.recorded(built.model.config.text_config)

    def with_caption(self, caption: str) -> GroundingDinoDetector:
        """Return a detector that asks with another caption, and shares the weights of this one."""
        other = create_grounding_dino({**self._settings.model_dump(exclude_unset=True), "caption": caption})
        other._weights = self._weights
        return other

    def prepare(self, sample: Sample) -> PreparedPixels:
        """Read the image of a sample, resize and normalize it; this loads the model where it is not there yet."""
        model, processor = self._loaded()
        image = widen(images.read_sample(sample), processor.image_processor.size["longest_edge"])
        inputs = processor.image_processor(images=image, return_tensors="pt")
        return pad_to_queries(PreparedPixels(inputs["pixel_values"], inputs["pixel_mask"]), model.config.num_queries)

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        """Answer each question; an empty expression has no detections."""
        by_image: dict[str, list[Sample]] = {}
        for question in questions:
            by_image.setdefault(question.sample.image_id, []).append(question.sample)
        answers = {
            (image_id, sample.sample_id): answer
            for image_id, samples in by_image.items()
            for sample, answer in zip(samples, self._about(samples, prepared[image_id]), strict=True)
        }
        return [answers[question.sample.image_id, question.sample.sample_id] for question in questions]

    def _about(self, samples: Sequence[Sample], image: PreparedPixels) -> list[Detections]:
        """Answer the expressions of one image; equal texts are asked once."""
        import torch

        model, _ = self._loaded()
        texts = [self._text(sample) for sample in samples]
        unique = list(dict.fromkeys(text for text in texts if text))
        size = self._settings.max_prompts or (1 if model.device.type == "cpu" else 8)
        answers: dict[str, Detections] = {}
        with torch.inference_mode(), share_image(model):
            for start in range(0, len(unique), size):
                chunk = unique[start : start + size]
                answers.update(zip(chunk, self._ask(chunk, image, samples[0].image_wh), strict=True))
        return [answers.get(text, Detections(())) for text in texts]

    def _text(self, sample: Sample) -> str:
        """Return the text that the model reads of an expression, and warn once if the expression is cut."""
        model, processor = self._loaded()
        most = model.config.max_text_len
        text, is_cut = fit_expression(sample.expression, processor.tokenizer, most)
        if text:  # an empty expression is never asked, whatever the caption
            caption = self._settings.caption.replace("{expression}", sample.expression)
            text, is_cut = fit_expression(caption, processor.tokenizer, most)
        if is_cut and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "%s reads the first %d tokens of an expression: that of sample %r is longer, others may be (said once)",
                self.name,
                most,
                sample.sample_id,
            )
        return text

    def _ask(self, texts: Sequence[str], image: PreparedPixels, image_wh: tuple[int, int]) -> list[Detections]:
        model, processor = self._loaded()
        tokens = processor.tokenizer(
            [f"{text}." for text in texts],
            padding=True,
            return_tensors="pt",
            return_token_type_ids=True,
            return_offsets_mapping=True,
        )
        offsets = tokens.pop("offset_mapping").tolist()
        output = model(
            pixel_values=image.pixels.to(model.device, model.dtype).expand(len(texts), -1, -1, -1),
            pixel_mask=image.mask.to(model.device).expand(len(texts), -1, -1),
            **{name: tokens[name].to(model.device) for name in ("input_ids", "token_type_ids", "attention_mask")},
        )
        logits, boxes = output.logits.float().cpu().numpy(), output.pred_boxes.float().cpu().numpy()
        answers = []
        for i, text in enumerate(texts):
            read = read_caption(text, offsets[i], tokens.word_ids(i))
            answers.append(score_output(logits[i], boxes[i], read, image_wh=image_wh, scoring=self._settings))
        return answers

    def _load(self) -> Loaded:
        attention = {"text_config": _ATTENTION, "backbone_config": _ATTENTION}
        return _check(
            load_checkpoint(self._settings, _ARCHITECTURE, dtype=self._settings.dtype, attn_implementation=attention)
        )

    def _loaded(self) -> tuple[Any, Any]:
        loaded = self._weights.loaded()
        return loaded.model, loaded.processor


def create_grounding_dino(settings: Mapping[str, Any]) -> GroundingDinoDetector:
    """Build the detector; the weights are loaded when the first image is read."""
    return GroundingDinoDetector(None, None, parse_settings(GroundingDinoSettings, settings, "grounding-dino"))


def _check(loaded: Loaded) -> Loaded:
    """Refuse a model that would run and silently answer wrongly."""
    period = loaded.processor.tokenizer(".")["input_ids"]
    if period != _PERIOD:
        raise ModelError(
            f"the detector's tokenizer reads '.' as {period}, but the model knows the border of a phrase as {_PERIOD}: "
            "the checkpoint's tokenizer files (tokenizer.json or vocab.txt) are missing or not BERT's"
        )
    if (used := loaded.model.config.text_config._attn_implementation) != _ATTENTION:
        raise ModelError(f"the detector's text encoder uses {used} attention: load it with {_ATTENTION!r}")
    return loaded


@contextmanager
def share_image(model: Any) -> Iterator[None]:
    """Share among all calls of a model inside the block; they must be about one and the same image.

    Args:
        model: A GroundingDinoForObjectDetection or MMGroundingDinoForObjectDetection. Not for two threads at a time.
    """
    core, fusion = model.model, model.model.encoder.layers[0].fusion_layer
    shared = [core.backbone, *core.input_proj_vision, fusion.layer_norm_vision]
    shared += [fusion.attn.vision_proj, fusion.attn.values_vision_proj]
    forwards = [(module, _once(module.forward)) for module in shared]
    if model.device.type == "cpu":
        attentions = [layer.deformable_layer.self_attn.attn for layer in core.encoder.layers]
        forwards += [(attention, _in_parts(attention.forward)) for attention in attentions]
    with ExitStack() as stack:
        for module, forward in forwards:
            stack.enter_context(patch.object(module, "forward", forward))
        yield


def _once(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Run a module on the first row of the first batch and give that answer for every row of every batch."""
    answers: list[Any] = []

    def share(*inputs: torch.Tensor) -> Any:
        if not answers:
            answers.append(forward(*(each[:1] for each in inputs)))
        return _repeat(answers[0], len(inputs[0]))

    return share


def _repeat(answer: Any, num_rows: int) -> Any:
    """Repeat one row of tensors, in any nesting of lists and tuples; lists are new: the model appends to them."""
    if isinstance(answer, list | tuple):
        return type(answer)(_repeat(each, num_rows) for each in answer)
    return answer.expand(num_rows, *answer.shape[1:])


def _in_parts(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Run the core of a deformable attention on some places of the image at a time.

    Inputs 4 and 5, points and weights of each place, are split; the others are the same for all places.
    """
    import torch

    def split(*inputs: Any) -> torch.Tensor:
        num_parts = -(-inputs[4].shape[1] // _ROWS)
        parts = zip(*(each.tensor_split(num_parts, dim=1) for each in inputs[4:6]), strict=True)
        return torch.cat([forward(*inputs[:4], points, weights, *inputs[6:]) for points, weights in parts], dim=1)

    return split
