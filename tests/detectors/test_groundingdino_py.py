from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from llm_wrapper.detectors import noun_groups
from llm_wrapper.detectors.grounding_dino import GroundingDinoDetector
from llm_wrapper.detectors.grounding_dino import GroundingDinoSettings as TheirSettings
from llm_wrapper.images import read_image
from llm_wrapper.records import Detections, Sample
from tests.detectors import tiny_grounding_dino as tiny
from tests.detectors import tiny_groundingdino_py as tiny_py

_ROOT = Path(__file__).parents[2]
_REAL = os.environ.get("LLM_WRAPPER_REAL_DATA", "")

pytestmark = [tiny_py.needs_package, *tiny_py.AS_IT_WARNS]

_EXPRESSIONS = ("dog", "the man left of the dog with no hat", "two giraffe. the one who is holding a racket?")


def _photographs() -> list[Path]:
    """Real photographs, upright and lying, where there are some; else drawn images."""
    folder = Path(_REAL) / "coco_images" / "images" if _REAL else _ROOT / "data" / "toy" / "images"
    paths = sorted(folder.glob("*.jpg")) + sorted(folder.glob("*val*.png"))
    return paths[:3]


def _samples(paths: Sequence[Path], expressions: Sequence[str]) -> list[Sample]:
    return [
        Sample(f"{path.stem}/{number}", f"ref-{number}", path.stem, str(path), read_image(path).size, expression, None)
        for path in paths
        for number, expression in enumerate(expressions)
    ]


_Raw = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Probabilities (queries, places), and boxes in shares of the image."""


def _raw(model: Any, path: Path, text: str, *, edges: tuple[int, int] = tiny_py.EDGES) -> _Raw:
    """Ask either model about equal pixels and equal text."""
    inputs = tiny_py.processor(edges)(images=read_image(path), text=text, return_tensors="pt")
    with torch.inference_mode():
        if hasattr(model, "specical_tokens"):  # the authors' spelling
            answer = model(inputs["pixel_values"], captions=[text])
            logits, boxes = answer["pred_logits"], answer["pred_boxes"]
        else:
            answer = model(**inputs)
            logits, boxes = answer.logits, answer.pred_boxes
    return logits[0].sigmoid().numpy(), boxes[0].numpy()


# The two models


_TEXTS = (
    *(f"{expression.rstrip('?')}." for expression in _EXPRESSIONS),
    "a dog. the man in red? two zebra . cat.",
    "left zebra..",
    "dog . cat",
)


def _differences(one: _Raw, other: _Raw) -> list[float]:
    """The largest difference of the probabilities, and that of the boxes."""
    return [float(np.abs(ours - theirs).max()) for ours, theirs in zip(one, other, strict=True)]


@pytest.mark.parametrize("text", _TEXTS)
def test_the_models_answer_alike(text: str) -> None:
    answers = []
    for path in _photographs():
        answers.append(_raw(tiny_py.original(), path, text))
        assert max(_differences(answers[-1], _raw(tiny_py.transformers_model(), path, text))) <= 1e-4
    # Answers that do not depend on the image would be alike whatever is wrong.
    assert len(answers) >= 3
    assert min(_differences(answers[0], answers[1])) > 1e-2
    assert np.std(answers[0][0].max(axis=1)) > 1e-2


def test_the_models_answer_alike_at_full_size() -> None:
    path, text = _photographs()[0], _TEXTS[1]
    answers = [
        _raw(model, path, text, edges=(800, 1333)) for model in (tiny_py.original(), tiny_py.transformers_model())
    ]
    assert max(_differences(*answers)) <= 1e-4


@pytest.mark.parametrize("text", _TEXTS)
def test_an_eager_text_encoder_is_wrong(text: str) -> None:
    path = _photographs()[0]
    eager = _raw(tiny_py.transformers_model("eager"), path, text)
    assert min(_differences(_raw(tiny_py.original(), path, text), eager)) > 1e-2


def test_boxes_as_wide_as_the_image_differ_by_their_clamp(monkeypatch: pytest.MonkeyPatch) -> None:
    """The authors take a box's side to be 0.999 of the image at most before they refine it, transformers 0.99999."""
    path, text = _photographs()[0], _TEXTS[1]
    models = (tiny_py.original(), tiny_py.transformers_model())
    for head in (models[0].transformer.enc_out_bbox_embed, models[1].model.encoder_output_bbox_embed):
        bias = head.layers[-1].bias
        monkeypatch.setattr(bias, "data", torch.tensor([0.0, 0.0, 12.0, 12.0]))
    answers = [_raw(model, path, text) for model in models]
    assert _differences(*answers)[1] > 1e-4
    for module in ("groundingdino", "transformer"):
        name = f"groundingdino.models.GroundingDINO.{module}.inverse_sigmoid"
        monkeypatch.setattr(name, lambda share: torch.special.logit(share, eps=1e-5))
    assert max(_differences(_raw(models[0], path, text), answers[1])) <= 1e-4


# The two detectors


def _theirs(**settings: Any) -> GroundingDinoDetector:
    chosen = TheirSettings(**{"model": "here", "max_prompts": 2, **settings})
    return GroundingDinoDetector(tiny_py.transformers_model(), tiny_py.processor(), chosen)


def _assert_same(one: Detections, other: Detections, sample: Sample) -> None:
    assert one.num_dropped == other.num_dropped
    assert len(one.items) == len(other.items)
    for ours, theirs in zip(one.items, other.items, strict=True):
        assert (ours.label, ours.source) == (theirs.label, theirs.source)
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)
        assert ours.box.xyxy == pytest.approx(theirs.box.xyxy, abs=1e-4 * min(sample.image_wh))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"mode": "gd", "box_threshold": 0.3, "text_threshold": 0.25}, id="gd"),
        pytest.param({"mode": "gdrec", "reduction": "min", "subject_threshold": 0.1}, id="gdrec-min"),
        pytest.param({"mode": "gdrec", "reduction": "mean", "sentence_threshold": 0.4}, id="gdrec-mean"),
    ],
)
def test_the_detectors_answer_alike(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noun_groups, "find_noun_groups", tiny.two_words)
    samples = _samples(_photographs(), _EXPRESSIONS)
    ours, theirs = (
        tiny_py.detect(tiny_py.authors_detector(**settings), samples),
        tiny_py.detect(_theirs(**settings), samples),
    )
    for sample, one, other in zip(samples, ours, theirs, strict=True):
        _assert_same(one, other, sample)
    # Thresholds that keep nothing, or answers that hang on nothing, would be alike whatever is wrong.
    assert len(samples) >= 9
    found = {answer.items for answer in ours if answer.items}
    assert len(found) == sum(bool(answer.items) for answer in ours) >= 6


@pytest.mark.parametrize("wh", [(640, 480), (427, 640), (240, 180), (333, 500), (500, 500), (160, 160)], ids=str)
def test_pixels_are_alike(wh: tuple[int, int], tmp_path: Path) -> None:
    sample = tiny.sample(tmp_path, "dog", wh=wh)
    ours, theirs = (detector.prepare(sample) for detector in (tiny_py.authors_detector(), _theirs()))
    assert ours.pixels.shape == theirs.pixels.shape
    assert torch.equal(ours.mask, theirs.mask)
    assert torch.allclose(ours.pixels, theirs.pixels, rtol=0, atol=1e-5)


@pytest.mark.parametrize("wh", [(640, 300), (375, 1000), (1, 1), (3, 400), (20_000, 1), (2, 9000), (500, 7)], ids=str)
def test_an_oblong_image_has_the_same_size_but_for_a_few_pixels(wh: tuple[int, int], tmp_path: Path) -> None:
    sample = tiny.sample(tmp_path, "dog", wh=wh)
    ours, theirs = (detector.prepare(sample) for detector in (tiny_py.authors_detector(), _theirs()))
    for one, other in zip(ours.pixels.shape[-2:], theirs.pixels.shape[-2:], strict=True):
        assert one == pytest.approx(other, rel=0.5, abs=2)
    (found,) = tiny_py.detect(tiny_py.authors_detector(box_threshold=1e-4), [sample])
    assert len(found.items) + found.num_dropped == tiny_py.NUM_QUERIES


@pytest.mark.parametrize("expression", ["giraffe " * 5000, "x" * 5000, "犬" * 300], ids=["words", "word", "chinese"])
def test_an_endless_expression_is_cut_alike(expression: str, tmp_path: Path) -> None:
    sample = tiny.sample(tmp_path, expression)
    (ours,) = tiny_py.detect(tiny_py.authors_detector(box_threshold=1e-4), [sample])
    (theirs,) = tiny_py.detect(_theirs(box_threshold=1e-4), [sample])
    _assert_same(ours, theirs, sample)
    assert ours.items
