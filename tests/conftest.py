"""What must hold before any test module is imported: no network, no screen; and a source that many tests read."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import pytest
from hypothesis import settings

# Half a minute of the fast suite were examples; `pytest --hypothesis-profile=default` draws them all.
settings.register_profile("fast", max_examples=25, deadline=None)
settings.load_profile("fast")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first images of two toy splits (`toy`), and a tiny LLM (`tiny`)."""
    from tests.first_images import copy_first_images
    from tests.llms import tiny  # it imports torch

    folder = tmp_path_factory.mktemp("source")
    copy_first_images(folder / "toy", count=4)
    llm = tiny.llm()
    llm.model.save_pretrained(folder / "tiny")
    llm.tokenizer.save_pretrained(folder / "tiny")
    return folder
