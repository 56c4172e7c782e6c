"""Folders of saved models as a hub's cache holds them, and spoiled in every way that happens."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import transformers
from safetensors.torch import load_file, save_file

__all__ = ["COMMIT", "cut_short", "in_a_hub", "of_another_kind", "without_a_weight", "without_tokenizer"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def in_a_hub(saved: Path, root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make the hub's local cache one that holds a saved model called `owner/name`; return its commit."""
    folder = root / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(saved, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root / "hub"))
    return COMMIT


def without_a_weight(*ends: str) -> Callable[[Path], None]:
    """Return what takes the first weight away whose name has one of these ends."""

    def lose(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        del weights[next(name for name in weights if name.endswith(ends))]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return lose


def of_another_kind(folder: Path) -> None:
    transformers.BertConfig().save_pretrained(folder)


def cut_short(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()
