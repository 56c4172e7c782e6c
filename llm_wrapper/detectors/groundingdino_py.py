"""Grounding-DINO by its authors' code, as the package rf-groundingdino republishes it: the second implementation.

It reads checkpoints in their first form (`.pth`), and shares nothing with transformers' model but BERT's layers. Its
answers are scored by the same functions as those of `grounding_dino`. With equal weights both detectors give the same
boxes and scores, which `make test-groundingdino` shows: so the other one, which is faster, reads its model rightly.

The package groundingdino-py has the same model, but pins supervision 0.6.0, which excludes this project's. It was made
for transformers 4: BERT's methods that transformers 5 lacks are added to the one BERT that becomes a part of the model.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import patch

from llm_wrapper import images
from llm_wrapper.detectors import Level, Question, parse_settings
from llm_wrapper.detectors.checkpoints import CheckpointSettings, Loaded, Weights
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

_READING = 1
"""Raise it with every change of the text that the model is given, or of how its answer is read."""

_MEAN, _DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

_SOURCES = ("model", "revision", "file", "config", "text_encoder", "text_encoder_revision")
"""The settings that decide which model is loaded."""

_UNUSED = {"label_enc.weight", "bert.embeddings.position_ids"}
"""Parts of the published checkpoints that are not the model: a table of the training, and the numbers from 0 to 511."""

_FAILURES = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, pickle.UnpicklingError)


class GroundingDinoPySettings(CheckpointSettings, Scoring):
    """The detector's settings in a recipe; see `Scoring` for the mode and its thresholds.

    Attributes:
        model: Hub id, or local folder, that holds the checkpoint.
        file: Name of the checkpoint.
        config: Name of the package's configuration that the checkpoint was trained with.
        text_encoder: Hub id or local folder of the BERT whose tokenizer and sizes are used; its weights are not read.
    """

    revision: str = "main"
    file: str
    config: Literal["SwinT_OGC", "SwinB_cfg"]
    text_encoder: str = "google-bert/bert-base-uncased"
    text_encoder_revision: str = "86b5e0934494bd15c9632b12f734a8a67f723594"


class GroundingDinoPyDetector:
    """Finds what an expression names, one expression at a time; see `grounding_dino` for what it answers.

    Attributes:
        name: The checkpoint's file without its ending, with the mode: each has its own cache.
    """

    levels: tuple[Level, ...] = ("expression",)
    reads_images = True

    def __init__(self, model: Any, settings: GroundingDinoPySettings, *, edges: tuple[int, int] = (800, 1333)) -> None:
        """Take a built model, or `None`: it is loaded when the first image is read.

        Args:
            model: The result of `build_groundingdino`.
            settings: See `GroundingDinoPySettings`.
            edges: Pixels of the shorter edge of a resized image, and the most that its longer one may have.
        """
        self.name = f"{Path(settings.file).stem.lower()}-{settings.mode}"
        self._settings = settings
        self._edges = edges
        self._weights = Weights(lambda: load_groundingdino(settings), None if model is None else Loaded(model, None))

    def identity(self) -> dict[str, Any]:
        """Return all that decides the answers."""
        sources = self._settings.model_dump(include=set(_SOURCES))
        return {"detector": "groundingdino_py", "reading": _READING, **self._settings.identity(), **sources}

    def prepare(self, sample: Sample) -> PreparedPixels:
        """Read the image of a sample, resize and normalize it as the authors do."""
        import torch

        model, transforms = self._weights.loaded().model, import_groundingdino("datasets.transforms")
        image = widen(images.read_sample(sample), self._edges[1])
        image, _ = transforms.resize(image, None, *self._edges)
        pixels, _ = transforms.Compose([transforms.ToTensor(), transforms.Normalize(_MEAN, _DEVIATION)])(image, None)
        whole = PreparedPixels(pixels[None], torch.ones(1, *pixels.shape[-2:], dtype=torch.int64))
        return pad_to_queries(whole, model.num_queries)

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        """Answer each question; an empty expression has no detections."""
        return [self._about(question.sample, prepared[question.sample.image_id]) for question in questions]

    def _about(self, sample: Sample, image: PreparedPixels) -> Detections:
        import torch

        model = self._weights.loaded().model
        text, _ = fit_expression(sample.expression, model.tokenizer, model.max_text_len)
        if not text:
            return Detections(())
        masked = import_groundingdino("util.misc").NestedTensor(image.pixels, image.mask == 0)
        try:
            with torch.inference_mode():
                answer = model(masked.to(next(model.parameters()).device), captions=[f"{text}."])
        finally:
            model.unset_image_tensor()  # What an error leaves there would be taken for the next image's features.
        logits, boxes = (answer[name][0].cpu().numpy() for name in ("pred_logits", "pred_boxes"))
        tokens = model.tokenizer(f"{text}.", return_offsets_mapping=True)
        read = read_caption(text, tokens["offset_mapping"], tokens.word_ids())
        return score_output(logits, boxes, read, image_wh=sample.image_wh, scoring=self._settings)


def create_groundingdino_py(settings: Mapping[str, Any]) -> GroundingDinoPyDetector:
    """Build the detector; the weights are loaded when the first image is read."""
    return GroundingDinoPyDetector(None, parse_settings(GroundingDinoPySettings, settings, "groundingdino-py"))


def import_groundingdino(name: str) -> Any:
    """Return a module of the package.

    Raises:
        ModelError: If it is not installed, or torchvision is not made for the installed torch.
    """
    try:
        return importlib.import_module(f"groundingdino.{name}")
    except (ImportError, RuntimeError) as error:
        raise ModelError(
            f"the detector 'groundingdino-py' cannot be used: {error}. It needs: pip install "
            "'llm-wrapper-rec[groundingdino]', and a torchvision that is made for the installed torch"
        ) from error


def load_configuration(config: str) -> SimpleNamespace:
    """Return a configuration of the package, without the recomputing of layers, which only a training needs."""
    found = vars(import_groundingdino(f"config.GroundingDINO_{config}"))
    chosen = {name: value for name, value in found.items() if not name.startswith("__")}
    return SimpleNamespace(**{**chosen, "use_checkpoint": False, "use_transformer_ckpt": False})


def build_groundingdino(sizes: SimpleNamespace, tokenizer: Any, bert: Any) -> Any:
    """Build the model with random weights.

    Args:
        sizes: The result of `load_configuration`.
        tokenizer: BERT's.
        bert: A transformers BertModel; it becomes a part of the model.

    Raises:
        ModelError: If the package is not installed, or the tokenizer lacks the ends of a phrase.
    """
    _adapt_bert(bert)
    named: dict[str, Any] = {"get_tokenlizer": lambda _: tokenizer, "get_pretrained_language_model": lambda _: bert}
    with patch.multiple(import_groundingdino("util.get_tokenlizer"), **named):
        model = import_groundingdino("models").build_model(sizes).eval()
    if tokenizer.unk_token_id in model.specical_tokens:
        raise ModelError("the tokenizer of text_encoder does not know '.' or '?', and the model ends its phrases there")
    return model


def _adapt_bert(bert: Any) -> None:
    """Add the methods that transformers 4 had."""
    import torch

    def additive(mask: torch.Tensor, _shape: Any, _device: Any) -> torch.Tensor:
        """Turn the mask (batch, from, to) into the bias of the attention's logits.

              [CLS] a  b  .              [CLS]  a    b    .
        [CLS]   1   0  0  0                0   min  min  min
        a       0   1  1  1      ->       min   0    0    0
        b       0   1  1  1               min   0    0    0
        .       0   1  1  1               min   0    0    0
        """
        return (1.0 - mask[:, None].to(bert.dtype)) * torch.finfo(bert.dtype).min

    bert.get_extended_attention_mask = additive
    bert.invert_attention_mask = None  # for decoders
    bert.get_head_mask = lambda head_mask, num_layers: head_mask


def load_groundingdino(settings: GroundingDinoPySettings) -> Loaded:
    """Load a model; of the text encoder only the sizes and the tokenizer, its weights are in the checkpoint.

    Raises:
        ModelError: If anything is missing, damaged, or of another configuration.
        RecipeError: If the device is not there.
    """
    import torch
    import transformers
    from transformers.utils import cached_file

    from llm_wrapper.devices import choose_device

    encoder, revision = settings.text_encoder, settings.text_encoder_revision
    sizes, device = load_configuration(settings.config), choose_device(settings.device)
    try:
        path = cached_file(settings.model, settings.file, revision=settings.revision)
        weights = torch.load(path, map_location="cpu", weights_only=True)["model"]
        config = transformers.BertConfig.from_pretrained(encoder, revision=revision, trust_remote_code=False)
        words = transformers.AutoTokenizer.from_pretrained(encoder, revision=revision, trust_remote_code=False)
        model = build_groundingdino(sizes, words, transformers.BertModel(config))
        left = model.load_state_dict({name.removeprefix("module."): weights[name] for name in weights}, strict=False)
        if wrong := left.missing_keys + sorted(set(left.unexpected_keys) - _UNUSED):
            problem = f"{len(wrong)} weights are missing or too many: {wrong[0]}"
            raise ValueError(f"it is of another configuration: {problem}")
        return Loaded(model.to(device), None)
    except _FAILURES as error:
        given = ", ".join(f"{name}={getattr(settings, name)}" for name in _SOURCES)
        unsafe = "it holds more than weights, and to load that would run a program"
        reason = unsafe if isinstance(error, pickle.UnpicklingError) else f"{type(error).__name__}: {error}"
        raise ModelError(
            f"detector.settings: {given} cannot be loaded: {reason}. Give a checkpoint of the authors' Grounding-DINO; "
            "without a network it and the text encoder must have been downloaded before."
        ) from error
