"""Grounding-DINO is asked with a caption; without one nothing changes, old caches included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.detectors import Question
from llm_wrapper.detectors.checkpoints import Loaded
from llm_wrapper.detectors.grounding_dino import GroundingDinoDetector, GroundingDinoSettings, create_grounding_dino
from llm_wrapper.errors import RecipeError
from llm_wrapper.records import Detections, Sample
from tests.detectors import tiny_grounding_dino as tiny

SETTINGS: dict[str, Any] = {"model": "tiny/DINO", "box_threshold": 1e-4, "text_threshold": 1e-4}


@pytest.fixture(scope="module")
def plain() -> GroundingDinoDetector:
    return GroundingDinoDetector(*tiny.pair(), GroundingDinoSettings(**SETTINGS))


def detect(detector: GroundingDinoDetector, sample: Sample) -> Detections:
    (found,) = detector.detect([Question(sample, "expression")], {sample.image_id: detector.prepare(sample)})
    return found


def test_a_caption_is_what_the_model_reads(plain: GroundingDinoDetector, tmp_path: Path) -> None:
    captioned = plain.with_caption("the {expression} in the back")
    found = detect(captioned, tiny.sample(tmp_path, "Red chair."))
    assert found == detect(plain, tiny.sample(tmp_path, "the red chair in the back"))
    assert found != detect(plain, tiny.sample(tmp_path, "red chair"))


@pytest.mark.parametrize("expression", ["", " . ", "?"])
def test_without_a_word_nothing_is_asked_whatever_the_caption(
    plain: GroundingDinoDetector, tmp_path: Path, expression: str
) -> None:
    assert detect(plain.with_caption("a dog {expression}"), tiny.sample(tmp_path, expression)) == Detections(())


def test_an_expression_that_looks_like_a_place_is_not_filled_again(
    plain: GroundingDinoDetector, tmp_path: Path
) -> None:
    found = detect(plain.with_caption("dog {expression}"), tiny.sample(tmp_path, "{expression} cat"))
    assert found == detect(plain, tiny.sample(tmp_path, "dog {expression} cat"))


def test_the_identity_tells_a_caption_and_only_a_caption(plain: GroundingDinoDetector) -> None:
    assert "caption" not in plain.identity()
    assert plain.with_caption("{expression}").identity() == plain.identity()
    assert plain.with_caption("one {expression}").identity() == {**plain.identity(), "caption": "one {expression}"}


def test_weights_are_loaded_once_for_all_captions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from llm_wrapper.detectors import grounding_dino

    loads = []
    monkeypatch.setattr(grounding_dino, "load_checkpoint", lambda *_, **__: loads.append(1) or Loaded(*tiny.pair()))
    first = grounding_dino.create_grounding_dino(SETTINGS)
    second = first.with_caption("one {expression}")
    for detector in (second, first, first.with_caption("two {expression}")):
        detector.prepare(tiny.sample(tmp_path, "dog"))
    assert loads == [1]


@pytest.mark.parametrize("caption", ["", "a dog", "{expression} {expression}"])
def test_a_caption_without_its_place_is_refused(plain: GroundingDinoDetector, caption: str) -> None:
    with pytest.raises(RecipeError, match=r"needs \{expression\} exactly once"):
        plain.with_caption(caption)
    with pytest.raises(RecipeError, match=r"needs \{expression\} exactly once"):
        create_grounding_dino({**SETTINGS, "caption": caption})
