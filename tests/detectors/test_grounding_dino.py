from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llm_wrapper.detectors import Question, grounding_dino, noun_groups, questions_about
from llm_wrapper.detectors.grounding_dino import GroundingDinoDetector, GroundingDinoSettings
from llm_wrapper.detectors.grounding_dino_base import decode_answer, fit_expression, read_caption, score_answer
from llm_wrapper.errors import ImageError, ModelError
from llm_wrapper.images import read_sample
from llm_wrapper.records import Detections, Sample
from tests.detectors import tiny_grounding_dino as tiny

pytestmark = pytest.mark.slow  # minutes together; CI runs them

_REAL = os.environ.get("LLM_WRAPPER_REAL_DATA", "")

# So low that the random models' boxes are kept.
_GD: dict[str, Any] = {"model": "tiny/DINO", "box_threshold": 1e-4, "text_threshold": 1e-4}
_GDREC: dict[str, Any] = {
    "model": "tiny/DINO",
    "mode": "gdrec",
    **dict.fromkeys(("subject_threshold", "noun_group_threshold", "sentence_threshold", "text_threshold"), 1e-4),
}

_EXPRESSIONS = ("dog", "the man left of the dog with no hat", "two giraffe", "left", "a photograph of a café")


def _detector(architecture: str = "grounding-dino", **settings: Any) -> GroundingDinoDetector:
    return GroundingDinoDetector(*tiny.pair(architecture), GroundingDinoSettings(**{**_GD, **settings}))


def _detect(detector: GroundingDinoDetector, samples: Sequence[Sample]) -> list[Detections]:
    questions = [question for sample in samples for question in questions_about(sample, detector.levels)]
    images = {sample.image_id: detector.prepare(sample) for sample in reversed(samples)}
    return detector.detect(questions, images)


def _plain(architecture: str, sample: Sample, settings: GroundingDinoSettings) -> tuple[Detections, Any]:
    """Ask as transformers' documentation does: one expression, one call; return its answer and the model's."""
    model, processor = tiny.pair(architecture)
    text, _ = fit_expression(sample.expression, processor.tokenizer, model.config.max_text_len)
    inputs = processor(images=read_sample(sample), text=f"{text}.", return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs)
    tokens = processor.tokenizer(f"{text}.", return_offsets_mapping=True)
    read = read_caption(text, tokens["offset_mapping"], tokens.word_ids())
    answer = decode_answer(out.logits[0].numpy(), out.pred_boxes[0].numpy(), sample.image_wh)
    groups = tiny.two_words(text) if settings.mode == "gdrec" else None
    return score_answer(answer, read, groups, settings), out


def _assert_same(found: Detections, expected: Detections) -> None:
    assert found.num_dropped == expected.num_dropped
    assert len(found.items) == len(expected.items) > 0
    for one, other in zip(found.items, expected.items, strict=True):
        assert (one.label, one.source) == (other.label, other.source)
        assert one.score == pytest.approx(other.score, rel=1e-5)
        assert one.box.xyxy == pytest.approx(other.box.xyxy, abs=1e-3)


# The model


@pytest.mark.parametrize("max_prompts", [1, 2, 8, None])
@pytest.mark.parametrize("mode", ["gd", "gdrec"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_answers_are_those_of_plain_calls(
    architecture: str, mode: str, max_prompts: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noun_groups, "find_noun_groups", tiny.two_words)
    settings = GroundingDinoSettings(**(_GD if mode == "gd" else _GDREC), max_prompts=max_prompts)
    samples = [
        tiny.sample(tmp_path, expression, number=number, image=number % 2, wh=((96, 64), (50, 90))[number % 2])
        for number, expression in enumerate(_EXPRESSIONS * 2)
    ]
    found = _detect(GroundingDinoDetector(*tiny.pair(architecture), settings), samples)
    for sample, answer in zip(samples, found, strict=True):
        _assert_same(answer, _plain(architecture, sample, settings)[0])
    assert len({answer.items for answer in found}) == len(samples)


@pytest.mark.parametrize(("rows", "error"), [(7, 1e-4), (64, 1e-4), (10_000, 0.0)], ids=["many", "few", "one-part"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_sharing_and_parts_change_nothing(
    architecture: str, rows: int, error: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grounding_dino, "_ROWS", rows)
    model, processor = tiny.pair(architecture)
    samples = [tiny.sample(tmp_path, each, number=number) for number, each in enumerate(_EXPRESSIONS)]
    asked = [processor(images=read_sample(each), text=f"{each.expression}.", return_tensors="pt") for each in samples]
    with torch.inference_mode():
        plain = [model(**each) for each in asked]
        with grounding_dino.share_image(model):
            ours = [model(**each) for each in asked]
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one.logits, other.logits, atol=error, rtol=0)
        torch.testing.assert_close(one.pred_boxes, other.pred_boxes, atol=error / 10, rtol=0)


@pytest.mark.skipif(not _REAL, reason="LLM_WRAPPER_REAL_DATA is not set: no real photographs here")
@pytest.mark.parametrize("max_prompts", [None, 3])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_answers_about_photographs_of_mixed_sizes_are_those_of_plain_calls(
    architecture: str, max_prompts: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grounding_dino, "_ROWS", 50)
    folder = Path(_REAL) / "coco_images"
    lines = (folder / "expressions.jsonl").read_text(encoding="utf-8").splitlines()
    expressions = [json.loads(line)["expression"] for line in lines[:4]]
    photographs = json.loads((folder / "instances.json").read_text(encoding="utf-8"))["images"][::5]
    samples = [
        Sample(f"{name}/{expression}", "ref", name, str(folder / "images" / name), wh, expression, None)
        for name, wh in ((each["file_name"], (each["width"], each["height"])) for each in photographs)
        for expression in expressions
    ]
    assert len({sample.image_wh for sample in samples}) > 3
    settings = GroundingDinoSettings(**_GD, max_prompts=max_prompts)
    found = _detect(GroundingDinoDetector(*tiny.pair(architecture), settings), samples)
    for sample, answer in zip(samples, found, strict=True):
        _assert_same(answer, _plain(architecture, sample, settings)[0])


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_mode_gd_is_what_transformers_makes_of_the_answer(architecture: str, tmp_path: Path) -> None:
    settings = GroundingDinoSettings(model="tiny/DINO", box_threshold=0.008, text_threshold=0.005)
    _, processor = tiny.pair(architecture)
    kept = []
    for number, expression in enumerate(("dog", "the man left of the dog with no hat", "two dogs")):
        sample = tiny.sample(tmp_path, expression, number=number)
        (found,) = _detect(_detector(architecture, box_threshold=0.008, text_threshold=0.005), [sample])
        _, out = _plain(architecture, sample, settings)
        (theirs,) = processor.post_process_grounded_object_detection(
            out, threshold=0.008, text_threshold=0.005, target_sizes=[(64, 96)]
        )
        order = torch.argsort(theirs["scores"], descending=True, stable=True).tolist()
        assert [item.score for item in found.items] == pytest.approx([theirs["scores"][i].item() for i in order])
        for item, i in zip(found.items, order, strict=True):
            assert item.box.xyxy == pytest.approx(theirs["boxes"][i].tolist(), abs=1e-3)
            words = theirs["text_labels"][i].replace("[SEP]", " ").replace(".", " ").split()
            assert not words or item.label.split() == words
        kept.append(len(found.items))
    assert any(kept)


def test_padding_of_the_text_changes_nothing(tmp_path: Path) -> None:
    short, long = tiny.sample(tmp_path, "dog"), tiny.sample(tmp_path, "the man with no hat " * 40, number=1)
    (alone,) = _detect(_detector(max_prompts=8), [short])
    _assert_same(_detect(_detector(max_prompts=8), [short, long])[0], alone)
    _assert_same(_detect(_detector(max_prompts=8), [long, short])[1], alone)


def test_the_backbone_sees_each_image_once_and_equal_texts_are_asked_once(tmp_path: Path) -> None:
    detector = _detector(max_prompts=2)
    model, _ = tiny.pair()
    seen: list[int] = []
    asked: list[int] = []
    backbone = model.model.backbone.conv_encoder.model
    hooks = [
        backbone.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0]))),
        model.register_forward_pre_hook(
            lambda _module, _inputs, named: asked.append(len(named["input_ids"])), with_kwargs=True
        ),
    ]
    modules = list(model.named_modules())
    expressions = ("dog", "cat", "Dog", "dog.", "left zebra")
    samples = [tiny.sample(tmp_path, each, number=n, image=i) for n, each in enumerate(expressions) for i in (0, 1)]
    found = _detect(detector, samples)
    for hook in hooks:
        hook.remove()
    assert (seen, asked) == ([1, 1], [2, 1, 2, 1])
    assert found[0] == found[4] == found[6]
    assert [(name, id(module)) for name, module in model.named_modules()] == [(n, id(module)) for n, module in modules]


def test_the_model_is_whole_again_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny.pair()
    modules = [id(module) for module in model.modules()]
    detector = GroundingDinoDetector(model, processor, GroundingDinoSettings(**_GD))
    image = detector.prepare(tiny.sample(tmp_path, "dog"))
    monkeypatch.setattr(model.model.decoder, "forward", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        detector.detect([Question(tiny.sample(tmp_path, "dog"), "expression")], {"image-0": image})
    assert [id(module) for module in model.modules()] == modules


@pytest.mark.parametrize("wh", [(1, 1), (3, 400), (20_000, 1), (2, 9000), (300, 3), (37, 90)], ids=str)
def test_any_shape_of_image(wh: tuple[int, int], tmp_path: Path) -> None:
    (found,) = _detect(_detector(), [tiny.sample(tmp_path, "dog", wh=wh)])
    assert len(found.items) + found.num_dropped == tiny.NUM_QUERIES
    assert max(item.box.x1 for item in found.items) <= 1.5 * wh[0]
    assert max(item.box.y1 for item in found.items) <= 1.5 * wh[1]


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"0\.png"):
        _detector().prepare(tiny.sample(tmp_path, "dog"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_full_precision(dtype: str, tmp_path: Path) -> None:
    full, processor = tiny.pair()
    half = type(full)(full.config)
    half.load_state_dict(full.state_dict())
    sample = tiny.sample(tmp_path, "the man left of the dog")
    found = _detect(
        GroundingDinoDetector(half.to(getattr(torch, dtype)), processor, GroundingDinoSettings(**_GD)), [sample]
    )
    exact = _detect(_detector(), [sample])
    assert len(found[0].items) == len(exact[0].items)
    best, true_best = found[0].items[0].score, exact[0].items[0].score
    assert best == pytest.approx(true_best, rel=0.2)


def test_answers_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    full, processor = tiny.pair()
    broken = type(full)(full.config)
    with torch.no_grad():
        broken.model.text_projection.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="float32"):
        _detect(GroundingDinoDetector(broken, processor, GroundingDinoSettings(**_GD)), [tiny.sample(tmp_path, "dog")])


def test_boxes_are_in_pixels_of_the_annotated_image(tmp_path: Path) -> None:
    small, large = tiny.sample(tmp_path, "dog", wh=(96, 64)), tiny.sample(tmp_path, "dog", image=1, wh=(960, 640))
    with Image.open(small.image_path or "") as image:
        image.resize((960, 640), Image.Resampling.NEAREST).save(large.image_path or "")
    (ours,), (theirs,) = _detect(_detector(), [small]), _detect(_detector(), [large])
    assert max(item.box.x1 for item in ours.items) <= 150
    assert max(item.box.x1 for item in theirs.items) > 150


# The text


_HOSTILE = [
    pytest.param("a.b?c . left ## dog", id="periods-and-number-signs"),
    pytest.param("[CLS] dog [SEP] [MASK] [PAD] [UNK]", id="special-tokens"),
    pytest.param("左边的犬。", id="chinese"),
    pytest.param("🐶 on left 🏳️‍🌈", id="emoji"),
    pytest.param("كلب على اليسار", id="right-to-left"),
    pytest.param("dog\x00\x1b\u200b\ufeff left", id="control-characters"),
    pytest.param("x" * 5000, id="one-long-word"),
    pytest.param("dog " * 5000, id="5000-words"),
    pytest.param("giraffe " * 5000, id="5000-words-in-pieces"),
    pytest.param("犬" * 5000, id="5000-words-without-spaces"),
    pytest.param("left", id="no-noun"),
]


@pytest.mark.parametrize("expression", _HOSTILE)
def test_any_expression_is_one_phrase_that_fits(expression: str, tmp_path: Path) -> None:
    model, _ = tiny.pair()
    ids: list[list[int]] = []
    hook = model.register_forward_pre_hook(
        lambda _module, _inputs, named: ids.append(named["input_ids"][0].tolist()), with_kwargs=True
    )
    sample = tiny.sample(tmp_path, expression)
    (found,) = _detect(_detector(), [sample])
    hook.remove()
    for tokens in ids:
        assert len(tokens) <= 256
        assert (tokens[0], tokens[-2:]) == (101, [1012, 102])
        assert not {101, 102, 1012, 1029} & set(tokens[1:-2])
    assert bool(ids) == bool(found.items)
    assert all("##" not in item.label or "##" in expression for item in found.items)
    if ids:
        _assert_same(found, _plain("grounding-dino", sample, GroundingDinoSettings(**_GD))[0])


@pytest.mark.parametrize("expression", ["", "  \n", ".", "?..", "\x00\u200b"], ids=repr)
@pytest.mark.parametrize("mode", ["gd", "gdrec"])
def test_an_expression_without_a_word_finds_nothing(mode: str, expression: str, tmp_path: Path) -> None:
    detector = GroundingDinoDetector(*tiny.pair(), GroundingDinoSettings(**(_GD if mode == "gd" else _GDREC)))
    assert _detect(detector, [tiny.sample(tmp_path, expression)]) == [Detections(())]


def test_a_cut_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    detector = _detector()
    samples = [tiny.sample(tmp_path, f"{word} " * 300, number=n) for n, word in enumerate(("dog", "cat"))]
    with caplog.at_level(logging.WARNING):
        _detect(detector, samples)
        _detect(detector, samples)
    (record,) = caplog.records
    assert "256" in record.getMessage()
    assert "0/0" in record.getMessage()
