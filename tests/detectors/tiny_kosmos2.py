"""A Kosmos-2 small enough to build in a test: the true architecture, processor and special tokens, random weights."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, normalizers

from llm_wrapper.detectors.kosmos2 import KOSMOS2_TASKS, Kosmos2Detector, Kosmos2Settings
from llm_wrapper.records import Sample
from tests.detectors import tiny_florence2
from tests.detectors.tiny_florence2 import HOSTILE, SIZES, Spy, all_questions, detect, record_answers, sample

__all__ = ["HOSTILE", "SIZES", "Spy", "all_questions", "detect", "record_answers", "sample"]

_SPOKEN = "the and with on a an of image dog red shirt man left old lady hat next to no zebra"
_WORDS = _SPOKEN.split()

POSITIONS, SIDE = 192, 32
"""Positions of the language model; side of the square that images become."""


def processor() -> Any:
    """Return a fresh processor with CLIP's image processor, as the checkpoint has it, for small images."""
    pieces = [("▁", -4.0), *((f"▁{word}", -3.0) for word in _WORDS)]
    pieces += [(chr(code), -9.0) for code in range(33, 127)]
    tokenizer = transformers.XLMRobertaTokenizer(
        vocab=[(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")] + pieces,
        # As in the checkpoint: found in the text after the tokenizer has made wide brackets narrow.
        mask_token=AddedToken("<mask>", lstrip=True, normalized=True),
    )
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    sides = {"height": SIDE, "width": SIDE}
    return transformers.Kosmos2Processor(transformers.CLIPImageProcessorPil(size=sides, crop_size=sides), tokenizer)


def model(tokenizer: Any, *, dtype: torch.dtype = torch.float32, seed: int = 3) -> Any:
    """Return a random model in evaluation mode; what it says hangs on the image and the prompt."""
    torch.manual_seed(seed)
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": POSITIONS,
        "embed_dim": 32,
        "layers": 2,
        "ffn_dim": 48,
        "attention_heads": 4,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 8,
    }
    config = transformers.Kosmos2Config(text_config=text, vision_config=vision)
    made = transformers.Kosmos2ForConditionalGeneration._from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.dim() > 1:
                gain = 5.0 if "q_proj" in name or "k_proj" in name else 1.2
                weight.normal_(std=gain / math.sqrt(weight[0].numel()))
        # Its rows are also what the next token is read from: large ones would say the last token again.
        made.text_model.model.embed_tokens.weight *= 0.2
    return made


def speaking_in_format(made: Any, tokenizer: Any) -> Any:
    """Let a random model say only what a trained one might: phrases, boxes of two location tokens, words, an end.

    Which of them is its own choice, in whatever way it is asked.
    """
    ids = tokenizer.convert_tokens_to_ids
    phrase, phrase_end, start, end, delimiter = ids(
        ["<phrase>", "</phrase>", "<object>", "</object>", "</delimiter_of_multi_objects/>"]
    )
    cells = ids([f"<patch_index_{cell:04}>" for cell in range(1024)])
    words = ids([f"▁{word}" for word in _WORDS])
    after = {
        phrase: [words, [*words, phrase_end], [phrase_end]],
        phrase_end: [[start]],
        start: [cells, cells, [end, delimiter]],
        delimiter: [cells, cells, [end, delimiter]],
        end: [[phrase, *words[:4], tokenizer.eos_token_id], [phrase, *words[:4]], [phrase]],
        ids("<grounding>"): [[phrase]],
    }

    def allowed(_: int, said: torch.Tensor) -> list[int]:
        since, mark = next((since, token) for since, token in enumerate(reversed(said.tolist())) if token in after)
        return after[mark][min(since, len(after[mark]) - 1)]

    made.text_model.generate = partial(made.text_model.generate, prefix_allowed_tokens_fn=allowed)
    return made


SETTINGS: dict[str, Any] = {"model": "tiny/Kosmos-2-Tiny", "tasks": list(KOSMOS2_TASKS), "max_new_tokens": 40}

ROOM = POSITIONS - SETTINGS["max_new_tokens"]
"""Tokens that a prompt may have."""

EXPRESSIONS = {
    "a": ("dog", "the red shirt of the man on the left", "the old lady with a hat", "hat"),
    "b": ("zebra", "the old lady next to no man", "red dog"),
    "c": ("hat", "old dog", "the man with a hat on the left"),
}
"""Image id -> expressions about it."""


def samples(folder: Path) -> list[Sample]:
    return tiny_florence2.samples(folder, EXPRESSIONS)


def build(*, dtype: torch.dtype = torch.float32, **settings: Any) -> Kosmos2Detector:
    """Return a detector with a fresh model; further arguments are settings."""
    made = processor()
    chosen = Kosmos2Settings(**{**SETTINGS, **settings})
    return Kosmos2Detector(speaking_in_format(model(made.tokenizer, dtype=dtype), made.tokenizer), made, chosen)
