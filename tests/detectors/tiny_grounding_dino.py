"""Grounding-DINOs small enough to build in a test: true architecture, processor and special tokens, random weights."""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from llm_wrapper.detectors.noun_groups import NounGroups, Span
from llm_wrapper.records import Sample

torch.set_num_threads(1)

_SPOKEN = """
the a an man woman guy dog dogs cat chair zebra left right far one of on in with no hat red blue and holding racket
back top cafe two next to piece cake who which is
"""

PIECES = ("gir", "##aff", "##e")
"""A word in three pieces: "giraffe"."""

ARCHITECTURES = ("grounding-dino", "mm-grounding-dino")

NUM_QUERIES = 40


def vocabulary() -> dict[str, int]:
    """BERT's special tokens in their true places, which the model knows by number; words and letters elsewhere."""
    found = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    others = [*_SPOKEN.split(), *PIECES, *string.ascii_lowercase, *"0123456789,'-#![]", "犬"]
    return found | {token: 200 + number for number, token in enumerate(others)}


def processor() -> Any:
    """The true processor, with small images."""
    return transformers.GroundingDinoProcessor(
        transformers.GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128}),
        transformers.BertTokenizer(vocab=vocabulary()),
    )


def config(architecture: str) -> Any:
    """Everything of the full-size configuration, in small."""
    sizes: dict[str, Any] = {
        "backbone_config": transformers.SwinConfig(
            embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_indices=[2, 3, 4]
        ),
        "text_config": transformers.BertConfig(
            vocab_size=1030, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        ),
        "d_model": 64,
        "num_queries": NUM_QUERIES,
        "encoder_layers": 2,
        "encoder_ffn_dim": 64,
        "encoder_attention_heads": 4,
        "decoder_layers": 2,
        "decoder_ffn_dim": 64,
        "decoder_attention_heads": 4,
    }
    if architecture == "grounding-dino":
        return transformers.GroundingDinoConfig(**sizes)
    # As published: every layer of the decoder has heads of its own.
    return transformers.MMGroundingDinoConfig(**sizes, decoder_bbox_embed_share=False, decoder_cls_embed_share=False)


@cache
def _model(architecture: str) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForZeroShotObjectDetection.from_config(config(architecture)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Layers that start as zero (box offsets, the fusion of text and image) would hide every mistake.
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def two_words(text: str) -> NounGroups:
    """Stand in for the parser: the first word is the subject, the last of several another group."""
    words = text.split()
    others = (Span(len(text) - len(words[-1]), len(text)),) if len(words) > 1 else ()
    return NounGroups(Span(0, len(words[0])), others)


def pair(architecture: str = "grounding-dino") -> tuple[Any, Any]:
    """Return a model, always the same one, and a fresh processor."""
    return _model(architecture), processor()


def sample(folder: Path, expression: str, *, number: int = 0, image: int = 0, wh: tuple[int, int] = (96, 64)) -> Sample:
    """Return a sample on an image of noise, which is written where it does not exist."""
    path = folder / f"{image}.png"
    if not path.exists():
        noise = np.random.default_rng(image).integers(0, 256, (wh[1], wh[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return Sample(f"{image}/{number}", f"ref-{number}", f"image-{image}", str(path), wh, expression, None)
