"""What no section of a recipe takes: infinite numbers, and numbers by which anything would be made without bound."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from llm_wrapper.recipe import schema
from llm_wrapper.recipe.schema import LLMSection, LoraSection, SamplingSection, SearchSection, Section, TrainSection


def float_fields() -> list[Any]:
    """Each field of each section that takes a number with a fraction."""
    return [
        pytest.param(kind, name, id=f"{kind.__name__}.{name}")
        for kind in (getattr(schema, name) for name in schema.__all__)
        if isinstance(kind, type) and issubclass(kind, Section)
        for name, field in kind.model_fields.items()
        if "float" in str(field.annotation)
    ]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan], ids=str)
@pytest.mark.parametrize(("kind", "name"), float_fields())
def test_numbers_are_finite(kind: type[Section], name: str, value: float) -> None:
    given: Any = [value] if name == "alphas" else value
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({name: given})
    assert any(row["loc"][0] == name for row in caught.value.errors())


def test_there_are_such_fields() -> None:
    assert len(float_fields()) >= 8


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (LoraSection, "rank"),
        (TrainSection, "virtual_tokens"),
        (TrainSection, "epochs"),
        (TrainSection, "max_steps"),
        (TrainSection, "groups_per_step"),
        (TrainSection, "expressions_per_group"),
        (TrainSection, "generated_steps"),
        (TrainSection, "generated_per_group"),
        (TrainSection, "max_tokens"),
        (TrainSection, "tokens_per_batch"),
        (TrainSection, "seed"),
        (SamplingSection, "max_new_tokens"),
        (SearchSection, "iterations"),
        (SearchSection, "samples"),
        (SearchSection, "shown"),
        (SearchSection, "seed"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
@pytest.mark.parametrize("value", [10**12, -1])
def test_numbers_that_things_are_made_by_are_bounded(kind: type[Section], name: str, value: int) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate({name: value})


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        pytest.param(LLMSection, "model", "x" * 1001, id="model"),
        pytest.param(LLMSection, "revision", "x" * 1001, id="revision"),
        pytest.param(LoraSection, "target_modules", ["x" * 1001], id="module"),
        pytest.param(LoraSection, "target_modules", ["x"] * 1001, id="modules"),
        pytest.param(SearchSection, "alphas", [0.5] * 1001, id="alphas"),
    ],
)
def test_texts_and_lists_are_bounded(kind: type[Section], name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match="1000"):
        kind(**{name: value})


def test_a_seed_is_what_numpy_takes() -> None:
    seed = TypeAdapter(schema.Seed)
    assert seed.validate_python(2**32 - 1) == 2**32 - 1
    with pytest.raises(ValidationError):
        seed.validate_python(2**32)
