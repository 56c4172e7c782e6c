"""Grounding DINO 1.5 and 1.6 and DINO-X: the paid service of DeepDataSpace.

The whole expression is one phrase of the prompt. The image is sent upright and without loss, so that the service sees
what local detectors see. The service names no revision of a model: the answers of one name may change with time, and
only the cache keeps them.

    DDSDetector.detect -> PaidCalls.answer (budget, pace, retries) -> Exchange.attempt -> SDK -> judge_reply
"""

from __future__ import annotations

import base64
import io
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

from PIL import Image

from llm_wrapper.detectors import Level, Question, detections_from_raw, parse_settings
from llm_wrapper.detectors.dds_client import DDSSettings, Exchange, api_key, load_sdk
from llm_wrapper.detectors.paid_calls import CostEstimate, PaidCalls
from llm_wrapper.errors import ModelError
from llm_wrapper.images import read_sample
from llm_wrapper.records import Detections, Sample

__all__ = ["DDSDetector", "EncodedImage", "create_dds"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image as it is sent: a `data:` URL, and the factors (x, y) from its pixels to those of the original."""

    url: str = field(repr=False)
    scale: tuple[float, float]


class DDSDetector:
    """Asks for each expression, one at a time, and pays for it.

    Attributes:
        name: The model's name in small letters.
        confirm: Asked before the first call, if set; a budget (`max_cost`) is needed all the same.
        calls: The budget, and what has been charged and answered in this run.
    """

    levels: tuple[Level, ...] = ("expression",)
    reads_images = True

    def __init__(
        self,
        settings: DDSSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.name = settings.model.lower()
        self.confirm: Callable[[CostEstimate], bool] | None = None
        self.calls = PaidCalls(self.name, settings, clock=clock, sleep=sleep, chance=chance)
        self._settings = settings
        self._begun = False

    def identity(self) -> dict[str, Any]:
        """Return all that decides the answers; neither key nor price, budget or pace."""
        chosen = self._settings
        return {
            "id": chosen.model,
            "api": chosen.api_path,
            "prompt": "text",
            "image": "png",
            "max_edge": chosen.max_edge,
            "bbox_threshold": chosen.bbox_threshold,
            "iou_threshold": chosen.iou_threshold,
        }

    @property
    def spent(self) -> float:
        """Dollars that may have been charged in this run."""
        return self.calls.spent

    def begin(self, num_questions: int) -> CostEstimate:
        """Estimate the cost of all that is to be asked, and refuse to start unless it can be and is agreed to.

        Raises:
            RecipeError: If the SDK, the key or a budget is missing, or the user does not confirm.
        """
        load_sdk()
        api_key()
        estimate = self.calls.agree(num_questions, self.confirm)
        self._begun = True
        return estimate

    def prepare(self, sample: Sample) -> EncodedImage:
        """Read an image, upright, and encode it without loss, so that the service sees what local detectors see.

        Raises:
            ImageError: If the image cannot be read.
        """
        image = read_sample(sample)
        width, height = image.size
        ratio = min(1.0, self._settings.max_edge / max(image.size))
        if ratio < 1.0:
            smaller = (max(1, round(width * ratio)), max(1, round(height * ratio)))
            image = image.resize(smaller, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        return EncodedImage(url, (width / image.width, height / image.height))

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, EncodedImage]) -> list[Detections]:
        """Answer one question.

        Raises:
            RecipeError: If there is no key, no budget, or it ends.
            ModelError: If there is more than one question: an answer that is paid is to be kept before the next is
                asked. If the service refuses or does not answer.
        """
        if len(questions) > 1:
            raise ModelError(f"{self.name} was asked {len(questions)} questions at once; a paid detector is asked one")
        if questions and not self._begun:
            self.begin(len(questions))
        return [self._answer(question.sample, prepared[question.sample.image_id]) for question in questions]

    def _answer(self, sample: Sample, photo: EncodedImage) -> Detections:
        # A full stop would divide the expression into several phrases.
        caption = " ".join(sample.expression.replace(".", " ").split())
        if not caption:
            _log.warning("sample %r has no words: not asked, no detections", sample.sample_id)
            return Detections(())
        exchange = Exchange(self.calls, self._settings, body=self._body(caption, photo), sample_id=sample.sample_id)
        found = self.calls.answer(exchange.attempt, about=f"sample {sample.sample_id!r}")
        rows = [
            (
                [value * factor for value, factor in zip(each.bbox, cycle(photo.scale), strict=False)],
                each.category,
                each.score,
            )
            for each in found
        ]
        return detections_from_raw(rows, "api")

    def _body(self, caption: str, photo: EncodedImage) -> dict[str, Any]:
        return {
            "model": self._settings.model,
            "image": photo.url,
            "prompt": {"type": "text", "text": caption},
            "targets": ["bbox"],
            "bbox_threshold": self._settings.bbox_threshold,
            "iou_threshold": self._settings.iou_threshold,
        }


def create_dds(settings: Mapping[str, Any]) -> DDSDetector:
    """Build the detector; neither SDK nor key is needed until the first question."""
    return DDSDetector(parse_settings(DDSSettings, settings, "dds"))
