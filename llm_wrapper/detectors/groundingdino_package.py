"""The package rf-groundingdino: Grounding-DINO's model as its authors wrote it, for transformers 4.

It is imported by name, because it is an extra. Two things stand between it and transformers 5: methods of BERT that are
gone, which are given back to the one BERT that becomes a part of the model, and BERT's weights, which it would fetch by
name though every checkpoint holds them again.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import transformers
from transformers.utils import cached_file

from llm_wrapper.errors import ModelError

__all__ = ["arguments", "build", "load", "part"]

_UNUSED = {"label_enc.weight", "bert.embeddings.position_ids"}
"""What the published checkpoints hold besides the model: a table of the training, and the numbers from 0 to 511."""

_FAILURES = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, pickle.UnpicklingError)


def part(name: str) -> Any:
    """Return a module of the package.

    Raises:
        ModelError: If it is not installed, or torchvision is not made for the installed torch.
    """
    try:
        return importlib.import_module(f"groundingdino.{name}")
    except (ImportError, RuntimeError) as error:
        raise ModelError(
            f"the detector 'groundingdino-py' cannot be used: {error}. It needs: pip install "
            "'llm-wrapper-rec[groundingdino]', and a torchvision that is made for the installed torch"
        ) from error


def arguments(config: str) -> SimpleNamespace:
    """Return a configuration of the package, without the recomputing of layers, which only a training needs."""
    found = vars(part(f"config.GroundingDINO_{config}"))
    chosen = {name: value for name, value in found.items() if not name.startswith("__")}
    return SimpleNamespace(**{**chosen, "use_checkpoint": False, "use_transformer_ckpt": False})


def build(sizes: SimpleNamespace, tokenizer: Any, bert: Any) -> Any:
    """Build the model with random weights.

    Args:
        sizes: What `arguments` gives.
        tokenizer: BERT's.
        bert: A transformers BertModel; it becomes a part of the model.

    Raises:
        ModelError: If the package is not installed, or the tokenizer lacks what ends a phrase.
    """
    _as_in_transformers_4(bert)
    named: dict[str, Any] = {"get_tokenlizer": lambda _: tokenizer, "get_pretrained_language_model": lambda _: bert}
    with patch.multiple(part("util.get_tokenlizer"), **named):
        model = part("models").build_model(sizes).eval()
    if tokenizer.unk_token_id in model.specical_tokens:
        raise ModelError("the tokenizer of text_encoder does not know '.' or '?', and the model ends its phrases there")
    return model


def _as_in_transformers_4(bert: Any) -> None:
    def additive(mask: torch.Tensor, _shape: Any, _device: Any) -> torch.Tensor:
        """Turn (batch, from, to), true where a token may look, into what is added to the attention's logits."""
        return (1.0 - mask[:, None].to(bert.dtype)) * torch.finfo(bert.dtype).min

    bert.get_extended_attention_mask = additive
    bert.invert_attention_mask = None  # for decoders
    bert.get_head_mask = lambda head_mask, num_layers: head_mask


def load(where: Mapping[str, str], device: torch.device) -> Any:
    """Load a model; of the text encoder only the sizes and the tokenizer, its weights are in the checkpoint.

    Args:
        where: model, revision, file, config, text_encoder and text_encoder_revision, as in the detector's settings.
        device: Where to.

    Raises:
        ModelError: If anything is missing, damaged, or of another configuration.
    """
    source, revision = where["text_encoder"], where["text_encoder_revision"]
    sizes = arguments(where["config"])
    try:
        path = cached_file(where["model"], where["file"], revision=where["revision"])
        weights = torch.load(path, map_location="cpu", weights_only=True)["model"]
        config = transformers.BertConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        words = transformers.AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        model = build(sizes, words, transformers.BertModel(config))
        left = model.load_state_dict({name.removeprefix("module."): weights[name] for name in weights}, strict=False)
        if wrong := left.missing_keys + sorted(set(left.unexpected_keys) - _UNUSED):
            raise ValueError(
                f"it is of another configuration: {len(wrong)} weights are missing or too many: {wrong[0]}"
            )
        return model.to(device)
    except _FAILURES as error:
        told = ", ".join(f"{name}={value}" for name, value in where.items())
        unsafe = "it holds more than weights, and to load that would run a program"
        reason = unsafe if isinstance(error, pickle.UnpicklingError) else f"{type(error).__name__}: {error}"
        raise ModelError(
            f"detector.settings: {told} cannot be loaded: {reason}. Give a checkpoint of the authors' Grounding-DINO; "
            "without a network it and the text encoder must have been downloaded before."
        ) from error
