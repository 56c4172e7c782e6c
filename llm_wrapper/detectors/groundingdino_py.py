"""Grounding-DINO by its authors' code, as the package rf-groundingdino republishes it: the second implementation.

It reads checkpoints in their first form (`.pth`), and its model, its masks and its way of resizing an image share
nothing with transformers' but BERT's layers. Its answers are scored by the same functions as those of `grounding_dino`.
With equal weights both detectors give the same boxes and scores, which `make test-groundingdino` shows: so the other
one, which is faster, reads its model rightly.

The package groundingdino-py has the same model, but pins supervision 0.6.0, which excludes this project's.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from llm_wrapper import images
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.datasets.rows import validated
from llm_wrapper.detectors import checkpoints, grounding_dino, groundingdino_package, noun_groups
from llm_wrapper.detectors.base import Level, Question
from llm_wrapper.detectors.grounding_dino import Prepared
from llm_wrapper.detectors.grounding_dino_scores import Scoring, detections, fitted, raw_answer, read_text
from llm_wrapper.errors import RecipeError, listed
from llm_wrapper.records import Detections, Sample

__all__ = ["GroundingDinoPyDetector", "Settings", "create"]

_READING = 1
"""Raise it with every change of the text that the model is given, or of how its answer is read."""

_MEAN, _DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

_WHERE = ("model", "revision", "file", "config", "text_encoder", "text_encoder_revision")
"""The settings that say what is loaded."""


class Settings(Scoring):
    """The detector's settings in a recipe; see `Scoring` for the mode and its thresholds.

    Attributes:
        model: Hub id, or local folder, that holds the checkpoint.
        revision: Commit, tag or branch on the hub; pin a commit, because a cache cannot notice that a branch moved.
        file: Name of the checkpoint.
        config: Name of the package's configuration that the checkpoint was trained with.
        text_encoder: Hub id or local folder of the BERT whose tokenizer and sizes are used; its weights are not read.
        device: `auto` takes a GPU where there is one.
    """

    model: str
    revision: str = "main"
    file: str
    config: Literal["SwinT_OGC", "SwinB_cfg"]
    text_encoder: str = "google-bert/bert-base-uncased"
    text_encoder_revision: str = "86b5e0934494bd15c9632b12f734a8a67f723594"
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")


class GroundingDinoPyDetector:
    """Finds what an expression names, one expression at a time; see `grounding_dino` for what it answers.

    Attributes:
        name: The checkpoint's file without its ending, with the mode: each keeps a cache of its own.
    """

    levels: tuple[Level, ...] = ("expression",)
    reads_images = True

    def __init__(self, model: Any, settings: Settings, *, edges: tuple[int, int] = (800, 1333)) -> None:
        """Take a built model, or `None`: it is loaded when the first image is read.

        Args:
            model: What `groundingdino_package.build` gives.
            settings: See `Settings`.
            edges: Pixels of the shorter edge of a resized image, and the most that its longer one may have.
        """
        self.name = f"{Path(settings.file).stem.lower()}-{settings.mode}"
        self._settings = settings
        self._edges = edges
        self._lock = threading.Lock()
        self._model = model

    def identity(self) -> dict[str, Any]:
        """Return all that decides the answers."""
        chosen = self._settings
        facts: dict[str, Any] = {"detector": "groundingdino_py", "reading": _READING, **chosen.identity()}
        facts |= {name: getattr(chosen, name) for name in _WHERE}
        return facts | ({"noun_groups": noun_groups.identity()} if chosen.mode == "gdrec" else {})

    def prepare(self, sample: Sample) -> Prepared:
        """Read the image of a sample, resize and normalize it as the authors do.

        Raises:
            ImageError: If the image cannot be read.
            ModelError: If the model cannot be loaded.
        """
        model, transforms = self._loaded(), groundingdino_package.part("datasets.transforms")
        image = grounding_dino.widened(images.read_sample(sample), self._edges[1])
        image, _ = transforms.resize(image, None, *self._edges)
        pixels, _ = transforms.Compose([transforms.ToTensor(), transforms.Normalize(_MEAN, _DEVIATION)])(image, None)
        whole = Prepared(pixels[None], torch.ones(1, *pixels.shape[-2:], dtype=torch.int64))
        return grounding_dino.with_enough_cells(whole, model.num_queries)

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        """Answer each question; an expression without a word names nothing, and nothing is found.

        Raises:
            ModelError: If the model's answer is not a number, or there is no parser for mode `gdrec`.
        """
        return [self._about(question.sample, prepared[question.sample.image_id]) for question in questions]

    def _about(self, sample: Sample, image: Prepared) -> Detections:
        model = self._loaded()
        text, _ = fitted(sample.expression, model.tokenizer, model.max_text_len)
        if not text:
            return Detections(())
        masked = groundingdino_package.part("util.misc").NestedTensor(image.pixels, image.mask == 0)
        try:
            with torch.inference_mode():
                answer = model(masked.to(next(model.parameters()).device), captions=[f"{text}."])
        finally:
            model.unset_image_tensor()  # What an error leaves there would be taken for the next image's features.
        logits, boxes = (answer[name][0].cpu().numpy() for name in ("pred_logits", "pred_boxes"))
        tokens = model.tokenizer(f"{text}.", return_offsets_mapping=True)
        groups = noun_groups.subject_and_groups(text) if self._settings.mode == "gdrec" else None
        read = read_text(text, tokens["offset_mapping"], tokens.word_ids())
        return detections(raw_answer(logits, boxes, sample.image_wh), read, groups, self._settings)

    def _loaded(self) -> Any:
        with self._lock:
            if self._model is None:
                where = {name: getattr(self._settings, name) for name in _WHERE}
                self._model = groundingdino_package.load(where, checkpoints.device(self._settings.device))
            return self._model


def create(settings: Mapping[str, Any], dataset: Dataset) -> GroundingDinoPyDetector:
    """Build the detector; the weights are loaded when the first image is read.

    Args:
        settings: See `Settings`.
        dataset: Not looked at: the model answers for any image.

    Raises:
        RecipeError: With every setting that is unknown, missing or wrong.
    """
    problems: list[str] = []
    chosen = validated(Settings, dict(settings), where="settings", problems=problems)
    if chosen is None or problems:
        raise RecipeError(listed("the detector 'groundingdino-py' cannot be built", problems))
    return GroundingDinoPyDetector(None, chosen)
