"""The benchmarks are a folder of scripts, not a package."""

import sys
from pathlib import Path

import pytest

from llm_wrapper.recipe import Recipe
from tests.llms import tiny
from tests.training import test_trainer

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Recipe:
    """A recipe of a tiny LLM on disk."""
    llm = tiny.llm()
    llm.model.save_pretrained(tmp_path / "llm")
    llm.tokenizer.save_pretrained(tmp_path / "llm")
    section = llm.section.model_copy(update={"model": str(tmp_path / "llm"), "dtype": "float32"})
    return test_trainer.recipe(learning_rate=0.05, expressions_per_group=4).model_copy(update={"llm": section})
