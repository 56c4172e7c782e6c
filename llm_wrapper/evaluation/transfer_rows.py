"""The rows of a transfer matrix: detector, LLMs before and after training, several adapters together, oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llm_wrapper import storage
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.errors import PromptError
from llm_wrapper.evaluation import ensemble, systems
from llm_wrapper.evaluation.transfer import Column, Filled, Predict, System
from llm_wrapper.prompts.builder import PromptBuilder
from llm_wrapper.recipe import LLMSection, PromptSection, Recipe, ServerSection
from llm_wrapper.records import Prediction

__all__ = ["DETECTOR", "asked", "combinations", "free", "rows"]

DETECTOR = "detector"
"""Name of the row of the detector's own choice."""


def rows(
    trained: Mapping[Path, Recipe],
    untrained: Recipe | None = None,
    *,
    builder_of: Callable[[Recipe], PromptBuilder] = lambda recipe: PromptBuilder(recipe.prompt),
) -> list[System]:
    """Return all rows that do not need others: detector, untrained LLMs, adapters, and last the oracle.

    Args:
        trained: Run folder -> its recipe.
        untrained: A recipe whose LLM (or rule) is asked as it is, beside those of the runs before training.
        builder_of: Gives the prompt builder of a recipe; for equal prompts an equal one.
    """
    before: dict[str, System] = {}
    for recipe in [*([untrained] if untrained else []), *trained.values()]:
        name = "rule" if recipe.llm.backend == "rule" else f"untrained {_short(recipe.llm)}, {recipe.prompt.summary}"
        row = free(name, systems.by_rule) if name == "rule" else asked(name, recipe, builder=builder_of(recipe))
        before.setdefault(_key(row), row)
    names = _told_apart([row.name for row in before.values()], [key[:8] for key in before])
    before = {key: replace(row, name=name) for (key, row), name in zip(before.items(), names, strict=True)}
    labels = _told_apart([_trained_for(each) for each in trained.values()], [folder.name for folder in trained])
    tuned = [
        replace(
            asked(label, recipe, folder / "adapter", builder=builder_of(recipe)),
            baseline=before[storage.digest_value(_identity(recipe, None))].name,
            home=frozenset(f"{recipe.vlm} / {data.name}" for data in recipe.training_data()),
        )
        for label, (folder, recipe) in zip(labels, trained.items(), strict=True)
    ]
    return [free(DETECTOR, systems.by_detector), *before.values(), *tuned, free("oracle", systems.by_oracle)]


def free(name: str, by: Callable[[Sequence[PreparedSample]], list[Prediction]]) -> System:
    """Return a row that asks no LLM."""
    return System(name, {"system": name}, lambda: lambda column: by(column.samples))


def asked(name: str, recipe: Recipe, adapter: Path | None = None, *, builder: PromptBuilder | None = None) -> System:
    """Return a row of the LLM of a recipe, with an adapter where there is one.

    Args:
        name: Of the row.
        recipe: Gives LLM and prompt.
        adapter: Its folder.
        builder: Builds the prompts; by format and instruction alone if not given.
    """
    builder = builder or PromptBuilder(recipe.prompt)
    return System(name, _identity(recipe, adapter), partial(_load, name, recipe, adapter, builder), builder)


def _load(name: str, recipe: Recipe, adapter: Path | None, builder: PromptBuilder) -> Predict:
    from llm_wrapper.llms.base import load_llm

    llm = load_llm(recipe.llm, adapter, title=name, reasoning_tokens=recipe.prompt.reasoning_tokens)
    orders = recipe.llm.orders
    return lambda column: systems.by_llm(column.samples, name, builder, llm, orders=orders)


def _identity(recipe: Recipe, adapter: Path | None) -> dict[str, Any]:
    """Return what decides an LLM's answers; how many it is asked at once is not of it."""
    llm = recipe.llm.model_dump(mode="json", exclude={"tokens_per_batch", "server"})
    files = [] if adapter is None else sorted(adapter.glob("adapter_*"))
    weights = {path.name: storage.digest(path) for path in files}
    default = PromptSection(format=recipe.prompt.format).model_dump(mode="json")
    more = {key: value for key, value in recipe.prompt.model_dump(mode="json").items() if value != default[key]}
    # Only what is not as it always was: predictions that were kept before there was more than a format stay valid.
    found: dict[str, Any] = {"llm": llm, "format": recipe.prompt.format, "adapter": weights}
    if more:
        found["prompt"] = more
    if recipe.llm.orders > 1:  # predictions of an earlier version say so of what was asked in one order
        found["averaged_over"] = recipe.llm.orders
    if recipe.llm.backend == "openai":
        server = recipe.llm.server.model_dump(mode="json", include={"base_url", "tokenizer"})
        usual = ServerSection().model_dump(mode="json")
        found |= {key: value for key, value in server.items() if value != usual[key]}
    return found


def _short(llm: LLMSection) -> str:
    return (llm.model or llm.backend).rstrip("/").split("/")[-1].removeprefix("gguf:")


def _trained_for(recipe: Recipe) -> str:
    return f"tuned on {recipe.vlm} / {'+'.join(data.name for data in recipe.training_data())}"


def _key(row: System) -> str:
    return storage.digest_value(dict(row.identity))


def _told_apart(names: Sequence[str], more: Sequence[str]) -> list[str]:
    """Add to names that occur twice what tells them apart."""
    return [f"{name} ({extra})" if names.count(name) > 1 else name for name, extra in zip(names, more, strict=True)]


def combinations(tuned: Sequence[System], filled: Filled) -> list[System]:
    """Return the rows for what two adapters and more say together; they take what is in the filled cells."""
    if len(tuned) < 2:
        return []
    names, of = [row.name for row in tuned], [dict(row.identity) for row in tuned]
    together = []
    for way, combine in (("mean", ensemble.average), ("vote", ensemble.vote)):
        name = f"{way} of {len(tuned)} adapters"
        together.append(System(name, {"way": way, "of": of}, partial(_together, name, combine, (names, filled))))
    return together


def _together(
    name: str, combine: Callable[[list[list[Prediction]], str], list[Prediction]], known: tuple[list[str], Filled]
) -> Predict:
    names, filled = known

    def predict(column: Column) -> list[Prediction]:
        cells = [filled[each, column.name] for each in names]
        parts = [cell[1] for cell in cells if not isinstance(cell, str)]
        if len(parts) < len(cells):
            raise PromptError("not every adapter can be asked about this column")
        return combine(parts, name)

    return predict
