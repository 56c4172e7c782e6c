"""Methods at equal budgets: which there are, what a budget leaves of them, and how the rows are held side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llm_wrapper.errors import RecipeError
from llm_wrapper.evaluation.methods import (
    DEFAULT_METHODS,
    METHODS,
    Cost,
    MethodResult,
    QuestionTokens,
    limit_compute,
    select_methods,
    split_labels,
)
from llm_wrapper.recipe import RECIPE_KINDS, Recipe, compose
from tests.evaluation.made import TARGET, made


def recipe(name: str, *overrides: str) -> Recipe:
    method = METHODS[name]
    more: dict[str, str] = {method.kind: method.file} if method.kind in RECIPE_KINDS else {}
    return compose({"vlm": "toy", "llm": "smollm2", "data": "toy", **more}, overrides)


@pytest.mark.parametrize("name", METHODS)
def test_each_method_has_a_recipe(name: str) -> None:
    assert recipe(name).llm.model
    if METHODS[name].kind == "train":
        assert recipe(name).train.method == name


def test_rows_come_in_one_order_and_the_untrained_always() -> None:
    assert [each.name for each in select_methods([])] == [*DEFAULT_METHODS]
    assert [each.name for each in select_methods(["lora", "in-context", "dora"])] == [
        "untrained",
        "in-context",
        "lora",
        "dora",
    ]
    assert set(METHODS) - set(DEFAULT_METHODS) == {"ia3", "dora"}


@pytest.mark.parametrize(("labelled", "parts"), [(6, (4, 2)), (7, (5, 2)), (200, (134, 66))])
def test_both_slices_together_are_the_budget(labelled: int, parts: tuple[int, int]) -> None:
    assert split_labels(labelled) == parts


def test_what_there_is_not_is_told_with_what_there_is() -> None:
    with pytest.raises(RecipeError, match=r"'lore'; did you mean 'lora'\?; no method is named 'x' \(there are: un"):
        select_methods(["lore", "x", "glov"])


FOUND = QuestionTokens(100, 50.0, 20.0, 600.0)
"""Questions of 50 tokens, of which 20 are not shared: to answer them takes 2,000."""

SEARCH = ("search.slice=20", "search.confirm=10", "search.first=5", "search.samples=2")
"""The seed prompt takes 1,000 tokens, to confirm four prompts 2,000, and a round 2,000."""


@pytest.mark.parametrize(
    ("name", "overrides", "budget", "section", "left"),
    [
        pytest.param("lora", [], 2_000 + 7 * 600, ("train", "max_steps"), 7, id="steps"),
        pytest.param("lora", ["train.max_steps=3"], 10**9, ("train", "max_steps"), 3, id="never-more-steps"),
        pytest.param("ia3", [], 1, ("train", "max_steps"), 1, id="one-step-at-least"),
        pytest.param("glov", SEARCH, 2_000 + 3_000 + 4_100, ("search", "iterations"), 2, id="rounds"),
        pytest.param("glov", SEARCH, 10**9, ("search", "iterations"), 25, id="never-more-rounds"),
        pytest.param("glov-guided", SEARCH, 1, ("search", "iterations"), 1, id="one-round-at-least"),
        pytest.param("in-context", [], 3 * 2_000, ("prompt", "examples"), 2, id="examples"),
        pytest.param("retrieved", [], 3 * 5_000, ("prompt", "examples"), 2, id="own-examples"),
        pytest.param("retrieved", [], 10**9, ("prompt", "examples"), 4, id="never-more-examples"),
        pytest.param(
            "chain-of-thought", [], 2_000 + 5_000 + 100 * 2 * 9, ("prompt", "reasoning_tokens"), 9, id="reasons"
        ),
        pytest.param("chain-of-thought", [], 1, ("prompt", "reasoning_tokens"), 1, id="one-word-at-least"),
    ],
)
def test_a_budget_turns_one_knob(
    name: str, overrides: list[str], budget: int, section: tuple[str, str], left: int
) -> None:
    whole = recipe(name, *overrides)
    found = limit_compute(whole, METHODS[name], budget, FOUND)
    part, key = section
    assert getattr(getattr(found, part), key) == left
    changed = getattr(whole, part).model_copy(update={key: left})
    assert found == whole.model_copy(update={part: changed})


def test_a_training_of_unknown_length_is_left_as_it_is() -> None:
    assert limit_compute(recipe("lora"), METHODS["lora"], 1, QuestionTokens(100, 50.0, 20.0)) == recipe("lora")


def test_the_untrained_llm_has_no_knob() -> None:
    assert limit_compute(recipe("untrained"), METHODS["untrained"], 1, FOUND) == recipe("untrained")


def test_a_stored_result_is_read_back() -> None:
    rows = [made("s0", TARGET, system="glov")]
    found = MethodResult(Path("x/glov"), rows, 8, Cost(3_000, 61.0), Cost(100, 5.0), 10, 12.5, ("a", "b"))
    again = MethodResult.from_facts(found.folder, found.rows, json.loads(json.dumps(found.facts())))
    assert again.facts() == found.facts()
    assert (found.tokens, replace(found, prepared=Cost(None, 1.0)).tokens) == (3_100, None)
