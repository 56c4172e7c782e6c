"""Detectors of full size with random weights: an answer costs the same as with trained ones, and no hub is needed.

The sizes are those of the published checkpoints: Florence-2-large (DaViT-large and BART-large), Grounding-DINO with
Swin-T and BERT-base. The tokenizers have the true special tokens; their words are learned from the expressions.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

_GAINS = {"q_proj": 5.0, "k_proj": 5.0, "encoder_attn": 1.2, "v_proj": 0.3, "out_proj": 0.3, "fc": 2.0}
"""Part of a weight's name -> its scale; the first that fits counts."""


def florence2(texts: Sequence[str], *, small: bool = False) -> tuple[Any, Any]:
    """Build a Florence-2-large and its processor.

    Args:
        texts: What the tokenizer learns its words from.
        small: A toy of the same architecture, for tests.
    """
    tokenizer = _bart_tokenizer(texts)
    side = 64 if small else 768
    images = transformers.CLIPImageProcessorPil(
        size={"height": side, "width": side}, crop_size={"height": side, "width": side}, do_center_crop=False
    )
    images.image_seq_length = (side // 32) ** 2 + 1
    readings = ("phrase_grounding", "pure_text", "description_with_bboxes", "description_with_bboxes_or_polygons")
    processor = transformers.Florence2Processor(
        images, tokenizer, post_processor_config={name: {} for name in readings}
    )
    width = {"embed_dim": (16, 32, 64, 128), "num_heads": (1, 2, 4, 8), "num_groups": (1, 2, 4, 8)}
    vision = {name: tuple(8 * each for each in sizes) for name, sizes in width.items()} | {"embed_dim": _DAVIT_LARGE}
    sizes = transformers.Florence2Config(
        vision_config={**width, "depths": (1, 1, 1, 1), "projection_dim": 32} if small else vision,
        text_config=_bart(len(tokenizer), small=True) if small else _bart(_VOCABULARY, small=False),
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = transformers.Florence2ForConditionalGeneration._from_config(sizes).eval()
    _randomize(model, tokenizer.convert_tokens_to_ids([f"<loc_{number}>" for number in range(1000)]))
    # Tokens that the small tokenizer does not have cannot be read.
    model.generation_config.update(
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_bos_token_id=0,
        forced_eos_token_id=2,
        no_repeat_ngram_size=3,
        early_stopping=True,
        suppress_tokens=list(range(len(tokenizer), sizes.text_config.vocab_size)),
    )
    return model, processor


_DAVIT_LARGE = (256, 512, 1024, 2048)


_VOCABULARY = 51290
"""That of the checkpoints; the tokenizer here is smaller."""


def _bart(vocab_size: int, *, small: bool) -> dict[str, Any]:
    layers, width, heads = (1, 32, 2) if small else (12, 1024, 16)
    sizes = {f"{part}_layers": layers for part in ("encoder", "decoder")}
    sizes |= {f"{part}_attention_heads": heads for part in ("encoder", "decoder")}
    sizes |= {f"{part}_ffn_dim": 4 * width for part in ("encoder", "decoder")}
    return {
        "model_type": "bart",
        "vocab_size": vocab_size,
        "max_position_embeddings": 4096,
        "d_model": width,
        "tie_word_embeddings": False,
        **sizes,
    }


def grounding_dino(texts: Sequence[str], *, small: bool = False) -> tuple[Any, Any]:
    """Build a Grounding-DINO with Swin-T and its processor; see `florence2` for the arguments."""
    words = dict.fromkeys(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower()))
    vocabulary = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    vocabulary |= {word: 2000 + number for number, word in enumerate(words) if word not in vocabulary}
    size = {"shortest_edge": 64, "longest_edge": 107} if small else {"shortest_edge": 800, "longest_edge": 1333}
    processor = transformers.GroundingDinoProcessor(
        transformers.GroundingDinoImageProcessorPil(size=size), transformers.BertTokenizer(vocab=vocabulary)
    )
    sizes: dict[str, Any] = {}
    swin = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
    if small:
        swin = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
        sizes = {"num_queries": 20, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2}
        sizes |= {f"{part}_attention_heads": 4 for part in ("encoder", "decoder")}
    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(**swin, image_size=224, out_indices=[2, 3, 4]), **sizes
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForZeroShotObjectDetection.from_config(config, trust_remote_code=False).eval()
    with torch.no_grad():
        for weight in model.parameters():
            # Layers that start as zero (box offsets, the fusion of text and image) would hide every difference.
            weight.add_(torch.randn_like(weight) * 0.01)
    return model, processor


def _randomize(model: Any, locations: Sequence[int]) -> None:
    """Draw weights under which answers depend on the position and on the question.

    With equal scales everywhere the same three tokens lead at every place: the attention of many layers makes all
    places alike. Beams that only permute these tokens are as good as equal then, and rounding decides between them.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                gain = next((each for part, each in _GAINS.items() if part in name), 1.2)
                weight.normal_(std=gain / math.sqrt(weight[0].numel()))
        model.model.language_model.decoder.embed_positions.weight *= 8.0
        model.lm_head.weight[list(locations)] *= 1.3  # or few of the answers would hold a box


def _bart_tokenizer(texts: Sequence[str]) -> Any:
    """Train a byte-level BPE as BART's, with Florence-2's location tokens."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([*texts, "Locate the objects with category name in the image."], trainer)
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in _merges(trained)]
    tokenizer = transformers.BartTokenizer(vocab=trained.get_vocab(), merges=merges, image_token="<image>")
    special = ["<od>", "</od>", "<poly>", "</poly>", "<sep>", *(f"<loc_{number}>" for number in range(1000))]
    tokenizer.add_special_tokens({"extra_special_tokens": special})
    return tokenizer


def _merges(trained: Tokenizer) -> list[Any]:
    merges: list[Any] = json.loads(trained.to_str())["model"]["merges"]
    return merges
