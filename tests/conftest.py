"""What must hold before any test module is imported (no network, no screen), and fixtures of tests that call verbs."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

from pathlib import Path

import pytest
from hypothesis import settings
from rich.console import Console

from tests.first_images import copy_first_images

# Half a minute of the fast suite were examples; `pytest --hypothesis-profile=default` draws them all.
settings.register_profile("fast", max_examples=25, deadline=None)
settings.load_profile("fast")


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and a console on which no line breaks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llm_wrapper.cli.options.CONSOLE", Console(width=400))
    return tmp_path


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first four images of each toy split, in a folder whose name needs quotes."""
    root = tmp_path_factory.mktemp("data # of: mine") / "toy"
    return copy_first_images(root, count=4, splits=("train", "val", "test"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random LLM in a folder."""
    from tests.llms import tiny  # it imports torch

    llm, folder = tiny.llm(), tmp_path_factory.mktemp("model") / "tiny"
    llm.model.save_pretrained(folder)
    llm.tokenizer.save_pretrained(folder)
    return folder
