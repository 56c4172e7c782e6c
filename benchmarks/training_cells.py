"""Columns of training for `llm_families.py`: one step of a shipped recipe, its loss compared with plain passes.

A fresh adapter changes nothing yet, so the loss of the first step is that of the model alone, computed here by one
plain pass for each prompt: no mask, no positions, nothing packed.
"""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml
from torch import nn

from llm_wrapper.errors import ModelError
from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.recipe import DataSection, DetectorSection, PromptSection, Recipe, TrainSection
from llm_wrapper.recipe.files import find_recipe
from llm_wrapper.records import Box, Candidate, Sample
from llm_wrapper.training import trainer
from llm_wrapper.training.collator import encode_example
from llm_wrapper.training.examples import Group, make_examples

__all__ = ["training_cell"]

TOLERANCE = 1e-3
"""Of a loss in float32."""


def training_cell(name: str) -> Callable[[LoadedLLM], tuple[str, bool]]:
    """Return the column of a recipe of `recipes/train`: "trains" or why it is refused, and whether that is right."""

    def cell(llm: LoadedLLM) -> tuple[str, bool]:
        recipe, groups = _recipe(name, llm), _groups()
        expected = _plain_loss(llm, groups, recipe)
        own = LoadedLLM(copy.deepcopy(llm.model), llm.tokenizer, llm.section)
        with tempfile.TemporaryDirectory() as run:
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # what Trainer prints where there is no bar
                    loss = trainer.train_adapter(own, groups, recipe, Path(run))["loss"]
            except ModelError as error:
                return f"refused: {_short(str(error))}", True
        if _has_dropout(llm.model):
            return "trains", True
        is_right = abs(loss - expected) <= TOLERANCE * max(1.0, expected)
        return "trains" + ("" if is_right else f", WRONG: loss {loss:.4f}, plain {expected:.4f}"), is_right

    return cell


def _short(message: str) -> str:
    """Return the first reason of a refusal, without what it was about."""
    text = " ".join(message.split()).partition(": - ")[2] or message.partition(": ")[2] or message
    return text.replace("train.lora.target_modules names ", "no ").replace(", which match nothing", " in it;")[:110]


def _recipe(name: str, llm: LoadedLLM) -> Recipe:
    values = yaml.safe_load(find_recipe("train", name).read_text(encoding="utf-8"))["train"]
    small = {"rank": 4, "alpha": 8}
    cut = {"max_steps": 1, "groups_per_step": 2, "expressions_per_group": 8, "max_tokens": 100_000}
    return Recipe(
        detector=DetectorSection(name="tiny"),
        data=DataSection(name="tiny", reader="tiny", root=Path()),
        prompt=PromptSection(format="compact"),
        llm=llm.section,
        train=TrainSection.model_validate({**values, **cut, "lora": {**values["lora"], **small}}),
    )


def _groups() -> list[Group]:
    """Return two expressions of one image, which share their prefix, and one of another, whose answer is 11."""
    rows = [(("the left dog", "the dog at the right"), (0, 2), 3, 0), (("a cat",), (11,), 12, 50)]
    return [
        Group(
            tuple(Sample(f"i{n}/{j}", f"r{n}", f"i{n}", None, (640, 480), text, None) for j, text in enumerate(texts)),
            targets,
            tuple(
                Candidate(Box(10 * i + first, 5 + i, 10 * i + 9 + first, 40 + 2 * i), "dog", 0.5, "tiny", "detect")
                for i in range(count)
            ),
        )
        for n, (texts, targets, count, first) in enumerate(rows)
    ]


@torch.no_grad()
def _plain_loss(llm: LoadedLLM, groups: Sequence[Group], recipe: Recipe) -> float:
    total, count = 0.0, 0
    for group in groups:
        for example in make_examples(group, recipe.prompt.format, recipe.train, epoch=0):
            tokens, span = encode_example(llm, example)
            logits = llm.model(torch.tensor([tokens])).logits[0].double().log_softmax(dim=-1)
            total -= sum(float(logits[place - 1, tokens[place]]) for place in range(len(tokens) - span, len(tokens)))
            count += span
    return total / count


def _has_dropout(model: nn.Module) -> bool:
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()) or any(
        value > 0 for key, value in vars(model.config).items() if "drop" in key and isinstance(value, float)
    )
