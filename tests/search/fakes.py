"""A server that proposes what a script says, and a detector that finds the target only when it is asked well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_wrapper.detectors import Question
from llm_wrapper.records import Detection, Detections, Sample
from tests.detectors.misbehaving_server import GOOD, MisbehavingServer, Seen, Step


class ProposingServer(MisbehavingServer):
    """Answers each chat with the next proposal of a script, or with the next step of `submits`."""

    def __init__(self, proposals: Sequence[str]) -> None:
        super().__init__()
        self.proposals = list(proposals)
        self.num_answered = 0

    def submit(self, seen: Seen) -> tuple[Step, Any]:
        step = self.submits.popleft() if self.submits else GOOD
        if not step.good:
            return step, None
        text = self.proposals[self.num_answered % len(self.proposals)]
        self.num_answered += 1
        message = {"role": "assistant", "content": text}
        return step, {
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"completion_tokens": 9},
        }


class CaptionedDetector:
    """Finds the target of a sample where the caption says "precisely", and else something beside it.

    Attributes:
        asked: Caption and sample id of each question that any of them was asked.
    """

    name = "captioned"
    levels = ("expression",)
    reads_images = False
    asked: list[tuple[str, str]] = []  # noqa: RUF012 (one list for all of them)

    def __init__(self, caption: str = "{expression}") -> None:
        self.caption = caption

    def with_caption(self, caption: str) -> CaptionedDetector:
        return CaptionedDetector(caption)

    def identity(self) -> dict[str, Any]:
        return {"id": "captioned", "caption": self.caption}

    def prepare(self, sample: Sample) -> None:
        """There is nothing to read."""

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        self.asked.extend((self.caption, question.sample.sample_id) for question in questions)
        return [self._one(question.sample) for question in questions]

    def _one(self, sample: Sample) -> Detections:
        assert sample.target is not None
        found = [Detection(sample.target, "target", 0.9 if "first" in self.caption else 0.1, "text")]
        width, height = sample.image_wh
        whole = Detection(type(sample.target)(0, 0, width, height), "image", 0.5, "text")
        return Detections((whole, *found) if "precisely" in self.caption else (whole,))


def create(settings: Mapping[str, Any]) -> CaptionedDetector:
    return CaptionedDetector(**settings)
