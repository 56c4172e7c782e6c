"""Families that were scored wrongly or not at all: the rows of `make families` are right, or refused on purpose."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # a folder of scripts, not of the package

from llm_families import ASKING, FAMILIES, row_of

torch.set_num_threads(1)

SHARED, ALONE = "yes", "no"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what transformers says of its own code
        yield


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        pytest.param("gpt-oss", ALONE, marks=pytest.mark.slow),
        pytest.param("falcon-h1", ALONE, marks=pytest.mark.slow),
        ("hyperclovax", SHARED),
        pytest.param("modernbert decoder", ALONE, marks=pytest.mark.slow),
        pytest.param("mpt (alibi)", ALONE, marks=pytest.mark.slow),
        ("bloom (alibi)", ALONE),
        pytest.param("falcon (alibi)", ALONE, marks=pytest.mark.slow),
        pytest.param("rwkv", ALONE, marks=pytest.mark.slow),
        pytest.param("llama-4 text", ALONE, marks=pytest.mark.slow),
        pytest.param("minimax", ALONE, marks=pytest.mark.slow),
        pytest.param("gemma-4 text", ALONE, marks=pytest.mark.slow),
        ("mistral-v0.1 (wide window)", SHARED),
    ],
)
def test_scores_are_those_of_a_plain_pass(name: str, shared: str) -> None:
    cells, is_right = row_of(FAMILIES[name], ASKING)
    assert is_right, cells
    assert cells[2] == shared


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("t5", "is an encoder-decoder (t5)"),
        ("bart", "is an encoder-decoder (bart)"),
        ("bert", "tokens see those behind them"),
        ("deepseek-r1-distill", "words the question differently"),
        ("smolvlm template", "for the answer 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(name: str, said: str) -> None:
    cells, is_right = row_of(FAMILIES[name], ASKING)
    assert is_right, cells
    assert said in cells[0]
