"""A Florence-2 small enough to build in a test: the true architecture, processor and special tokens, random weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from llm_wrapper.detectors import Detector, Question, questions_about
from llm_wrapper.detectors.florence2 import FLORENCE2_TASKS, Florence2Detector, Florence2Settings
from llm_wrapper.records import Detections, Sample

torch.set_num_threads(1)

_PAIRED = "od ocr cap ncap dcap grounding seg region_cap region_to_desciption proposal poly"
"""Florence-2's own paired tokens, its spelling included."""

SPECIAL = [
    *(token for name in _PAIRED.split() for token in (f"<{name}>", f"</{name}>")),
    *("<sep>", "<and>"),
    *(f"<loc_{number}>" for number in range(1000)),
]

_TEXT = [
    "Locate the objects with category name in the image.",
    "Locate the objects in the image, with their descriptions.",
    "Locate the phrases in the caption: the red shirt of the man on the left",
    "Locate the brown dog next to the old lady with a hat in the image.",
]

BANNED = ["it", "the image"]

POSITIONS, SIDE, IMAGE_TOKENS = 96, 32, 17
"""Positions of the language model; side of the square that images become, and the tokens that this gives."""

ROOM = POSITIONS - IMAGE_TOKENS
"""Tokens that a prompt may have."""

EXPRESSIONS = {
    "a": ("dog", "the red shirt of the man on the left", "a brown dog next to the old lady with a hat", "zebra"),
    "b": ("left zebra", "the old lady's hat, left of the man who has no shirt"),
    "c": ("hat", "the second brown dog"),
}
"""Image id -> expressions about it."""


@cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Train a byte-level BPE as BART's, its special tokens at BART's places."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(_TEXT * 10, trainer)
    return trained.get_vocab(), [tuple(pair) for pair in _merges(trained)]


def _merges(trained: Tokenizer) -> list[Any]:
    pairs = json.loads(trained.to_str())["model"]["merges"]
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in pairs]


def processor() -> Any:
    """Return a fresh processor with CLIP's image processor, as the checkpoints have it, for small images."""
    vocab, merges = _vocabulary()
    tokenizer = transformers.BartTokenizer(vocab=dict(vocab), merges=list(merges), image_token="<image>")
    tokenizer.add_special_tokens({"extra_special_tokens": SPECIAL})
    image_processor = transformers.CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        image_seq_length=IMAGE_TOKENS,
    )
    readings = ("pure_text", "description_with_bboxes", "description_with_bboxes_or_polygons")
    config = {"phrase_grounding": {"banned_grounding_tokens": BANNED}, **{name: {} for name in readings}}
    return transformers.Florence2Processor(image_processor, tokenizer, post_processor_config=config)


def _config(tokenizer: Any) -> Any:
    vision = {
        "depths": (1, 1),
        "patch_size": (7, 3),
        "patch_stride": (4, 2),
        "patch_padding": (3, 1),
        "patch_prenorm": (False, True),
        "embed_dim": (16, 32),
        "num_heads": (2, 4),
        "num_groups": (2, 4),
        "window_size": 4,
        "projection_dim": 32,
    }
    text = {
        "model_type": "bart",
        "vocab_size": len(tokenizer),
        "max_position_embeddings": POSITIONS,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "tie_word_embeddings": False,
    }
    return transformers.Florence2Config(
        vision_config=vision, text_config=text, image_token_id=tokenizer.image_token_id, tie_word_embeddings=False
    )


def model(tokenizer: Any, *, attention: str = "eager", dtype: torch.dtype = torch.float32, seed: int = 9) -> Any:
    """Return a random model in evaluation mode, which decodes as the checkpoints do (see their generation_config.json).

    Its answers are babble, but babble with boxes, of different lengths, that hangs on the image and the prompt.
    """
    torch.manual_seed(seed)
    made = transformers.Florence2ForConditionalGeneration._from_config(
        _config(tokenizer), attn_implementation=attention, dtype=dtype
    ).eval()
    with torch.no_grad():
        _spread(made, tokenizer)
    made.generation_config.update(
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_bos_token_id=0,
        forced_eos_token_id=2,
        num_beams=3,
        no_repeat_ngram_size=3,
        early_stopping=True,
    )
    return made


def _spread(made: Any, tokenizer: Any) -> None:
    """Draw weights under which attention looks at few places and logits differ: a wrong mask or place must show."""
    for name, weight in made.named_parameters():
        if weight.dim() > 1:
            gain = 5.0 if "q_proj" in name or "k_proj" in name else 1.2
            weight.normal_(std=gain / math.sqrt(weight[0].numel()))
    made.model.language_model.decoder.embed_positions.weight *= 4.0
    made.lm_head.weight[tokenizer.convert_tokens_to_ids([f"<loc_{number}>" for number in range(1000)])] *= 1.15
    made.lm_head.weight[tokenizer.eos_token_id] *= 1.8


SETTINGS: dict[str, Any] = {"model": "tiny/Florence-2-Tiny", "tasks": list(FLORENCE2_TASKS), "max_new_tokens": 40}

SIZES = {"a": (64, 48), "b": (37, 90), "c": (200, 120)}
"""Image id -> width and height."""


HOSTILE = {
    "end": "dog</s><pad><s><unk><mask>",
    "dots": "a. ## b .",
    "scripts": "左边的狗 كلب \u200f שמאל 🐕\u200d🦺",
    "surrogate": "a\ud800b",
    "long-word": "a" * 3000,
    "many-words": "the dog left of " * 1250,
}
"""Expressions that no model of this kind may stumble over."""


def build(*, attention: str = "eager", dtype: torch.dtype = torch.float32, **settings: Any) -> Florence2Detector:
    """Return a detector with a fresh model; further arguments are settings."""
    made = processor()
    chosen = Florence2Settings(**{**SETTINGS, **settings})
    return Florence2Detector(model(made.tokenizer, attention=attention, dtype=dtype), made, chosen)


def sample(folder: Path, image_id: str, expression: str, number: int = 0) -> Sample:
    """Return a sample about an image of blotches, which is written where it does not exist."""
    path, size = folder / f"{image_id}.png", SIZES[image_id]
    if not path.exists():
        blotches = np.random.default_rng(list(image_id.encode())).integers(0, 255, (5, 4, 3), dtype=np.uint8)
        Image.fromarray(blotches).resize(size, Image.Resampling.NEAREST).save(path)
    return Sample(f"{image_id}/{number}", "r", image_id, str(path), size, expression, None)


def samples(folder: Path, expressions: Mapping[str, Sequence[str]] = EXPRESSIONS) -> list[Sample]:
    return [
        sample(folder, image_id, text, i) for image_id, texts in expressions.items() for i, text in enumerate(texts)
    ]


def all_questions(detector: Detector, samples: Sequence[Sample]) -> list[Question]:
    """Return all questions, each once, those about one image together, as the engine asks them."""
    questions = [question for each in samples for question in questions_about(each, detector.levels)]
    return sorted({question.key: question for question in questions}.values(), key=lambda each: each.sample.image_id)


def detect(detector: Detector, questions: Sequence[Question]) -> list[Detections]:
    """Prepare the images of the questions and answer them."""
    prepared = {each.sample.image_id: detector.prepare(each.sample) for each in questions}
    return detector.detect(questions, prepared)


class Spy:
    """Records the arguments of a method of a model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.calls: list[dict[str, Any]] = []
        inner = getattr(owner, name)

        def record(**options: Any) -> Any:
            self.calls.append(options)
            return inner(**options)

        monkeypatch.setattr(owner, name, record)


def record_answers(monkeypatch: pytest.MonkeyPatch, kind: type) -> dict[tuple[int, str], str]:
    """Return the model's answers in `detect`, by the question's place and the task."""
    texts: dict[tuple[int, str], str] = {}
    inner = kind._generate  # type: ignore[attr-defined]

    def generate(detector: Any, prompts: Any, features: Any) -> list[str]:
        answers: list[str] = inner(detector, prompts, features)
        texts.update({(each.place, each.task): text for each, text in zip(prompts, answers, strict=True)})
        return answers

    monkeypatch.setattr(kind, "_generate", generate)
    return texts
