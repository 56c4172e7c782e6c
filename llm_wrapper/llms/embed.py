"""Sentences to vectors by a small BERT: the mean of its last hidden states, of length 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from llm_wrapper.boxes import FloatArray
from llm_wrapper.devices import choose_device
from llm_wrapper.errors import ModelError
from llm_wrapper.llms.load import find_in_package, require_sane
from llm_wrapper.prompts.text import clean_text

_PACKAGE = "package:"
_BATCH = 64
_MAX_TOKENS = 128
"""Of an expression; longer ones are cut, as the models for sentences were trained."""


class SentenceEmbedder:
    """Embeds texts by mean pooling, as the models of sentence-transformers do that pool so.

    Weights are safetensors alone: unpickling runs code.

    `name` is a hub id, a folder, or `package:NAME` for a folder with a model inside an installed Python package.
    """

    def __init__(self, name: str) -> None:
        source = name
        if name.startswith(_PACKAGE):
            package = name.removeprefix(_PACKAGE)
            source = str(find_in_package(package, "model.safetensors", f"prompt.embedder={name}").parent)
        try:
            config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
            require_sane(config, name, setting="prompt.embedder")
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            self._model: Any = transformers.AutoModel.from_pretrained(
                source, use_safetensors=True, dtype=torch.float32, trust_remote_code=False
            )
        except ModelError:
            raise
        except Exception as error:  # files of strangers: what their readers may raise is open
            raise ModelError(
                f"prompt.embedder={name} cannot be loaded: {error}. It is a BERT with safetensors (hub id or folder), "
                f"{_PACKAGE}NAME for one inside a Python package, or lexical, which needs no model"
            ) from error
        self._model.to(choose_device()).eval()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """Return shape (n, d), in order."""
        rows = [clean_text(text) for text in texts]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        vectors = np.zeros((len(rows), self._model.config.hidden_size))
        options = {"padding": True, "truncation": True, "max_length": _MAX_TOKENS, "return_tensors": "pt"}
        for start in range(0, len(order), _BATCH):
            indices = order[start : start + _BATCH]
            batch = self._tokenizer([rows[index] for index in indices], **options).to(self._model.device)
            hidden = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None].to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            vectors[indices] = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return vectors
