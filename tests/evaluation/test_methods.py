"""Methods at equal budgets: which there are, what a budget leaves of them, and how the rows are held side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_wrapper.errors import RecipeError
from llm_wrapper.evaluation.methods import (
    DEFAULT,
    METHODS,
    Cost,
    Done,
    Measured,
    Methods,
    capped,
    chosen,
    measure,
    shares,
)
from llm_wrapper.recipe import RECIPE_KINDS, Recipe, compose
from llm_wrapper.records import Prediction
from llm_wrapper.report import methods as shown
from tests.evaluation.made import TARGET, WRONG, made

NUM = 10


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
    assert [each.name for each in chosen([])] == [*DEFAULT]
    assert [each.name for each in chosen(["lora", "in-context", "dora"])] == ["untrained", "in-context", "lora", "dora"]
    assert set(METHODS) - set(DEFAULT) == {"ia3", "dora"}


@pytest.mark.parametrize(("labelled", "parts"), [(6, (4, 2)), (7, (5, 2)), (200, (134, 66))])
def test_both_slices_together_are_the_budget(labelled: int, parts: tuple[int, int]) -> None:
    assert shares(labelled) == parts


def test_what_there_is_not_is_told_with_what_there_is() -> None:
    with pytest.raises(RecipeError, match=r"'lore'; did you mean 'lora'\?; no method is named 'x' \(there are: un"):
        chosen(["lore", "x", "glov"])


FOUND = Measured(100, 50.0, 20.0, 600.0)
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
    found = capped(whole, METHODS[name], budget, FOUND)
    part, key = section
    assert getattr(getattr(found, part), key) == left
    changed = getattr(whole, part).model_copy(update={key: left})
    assert found == whole.model_copy(update={part: changed})


def test_a_training_of_unknown_length_is_left_as_it_is() -> None:
    assert capped(recipe("lora"), METHODS["lora"], 1, Measured(100, 50.0, 20.0)) == recipe("lora")


def test_the_untrained_llm_has_no_knob() -> None:
    assert capped(recipe("untrained"), METHODS["untrained"], 1, FOUND) == recipe("untrained")


# side by side


def rows(system: str, num_right: int) -> list[Prediction]:
    return [made(f"s{i}", TARGET if i < num_right else WRONG, system=system) for i in range(NUM)]


def done(name: str, num_right: int, *, tokens: int | None = 100, notes: tuple[str, ...] = ()) -> Done:
    per_answer = None if tokens is None else 12.5
    costs = (Cost(3_000, 61.0), Cost(tokens, 5.0))
    return Done(Path("x") / name, rows(name, num_right), 8, *costs, NUM, per_answer, notes)


OTHERS = [rows("detector", 3), rows("rule", 4), rows("oracle", 10)]


def measured() -> Methods:
    made_of: dict[str, Done | str] = {
        "untrained": done("untrained", 4),
        "glov": done("glov", 9, notes=("found <in> round 3",)),
        "retrieved": done("retrieved", 4),
        "ia3": done("ia3", 0),
        "dora": done("dora", 5, tokens=None),
        "lora": "ModelError: no | room",
    }
    return measure("toy / toy val", OTHERS, made_of)


def test_gains_are_over_the_untrained_llm() -> None:
    found = {row.name: row for row in measured().rows}
    assert found["untrained"].over_untrained is None
    assert found["lora"].summary is None
    gains = {name: row.over_untrained.p_at_1.value for name, row in found.items() if row.over_untrained}
    assert gains == pytest.approx({"glov": 0.5, "retrieved": 0.0, "ia3": -0.4, "dora": 0.1})
    made_of = found["glov"].done
    assert made_of is not None
    assert made_of.tokens == 3_100
    unknown = found["dora"].done
    assert unknown is not None
    assert unknown.tokens is None


def test_what_is_kept_of_a_row_is_the_row() -> None:
    found = done("glov", 9, notes=("a", "b"))
    assert Done.of_facts(found.folder, found.rows, json.loads(json.dumps(found.facts()))).facts() == found.facts()


def test_the_table_is_honest() -> None:
    text = shown.markdown(measured(), ["the first 10 only"])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows_of = [[each.strip() for each in line.strip("|").split("|")] for line in lines]
    gives = {row[0]: row[1:] for row in rows_of if len(row) == 4}
    takes = {row[0]: row[1:] for row in rows_of if len(row) == 6}
    assert len(gives) + len(takes) == len(rows_of) == 2 * 2 + 2 * 6 + 3
    assert gives["glov"][0].startswith("90.0 (")
    assert gives["glov"][1].startswith("+50.0 (")
    assert gives["glov"][2] == "8"
    assert gives["oracle"][0].startswith("100.0")
    assert takes["glov"] == ["3,000", "100", "12", "61", "0.500"]
    assert takes["dora"] == ["3,000", "no data", "no data", "61", "0.500"]
    assert (gives["lora"], takes["lora"]) == (["failed", "", ""], ["failed", "", "", "", ""])
    said = [line for line in text.splitlines() if line.startswith("- ")]
    assert said == [
        "- glov: found &lt;in> round 3",
        "- retrieved: not surely better than the untrained LLM",
        "- ia3: worse than the untrained LLM",
        "- dora: not surely better than the untrained LLM",
        "- lora failed: ModelError: no \\| room; the same command tries it again",
        "- the first 10 only",
    ]


def test_the_plot_has_both_panels_and_is_the_same_again(tmp_path: Path) -> None:
    shown.plot(measured(), tmp_path / "a")
    shown.plot(measured(), tmp_path / "b")
    drawn = (tmp_path / "a" / "methods.svg").read_text(encoding="utf-8")
    for text in ("lora (failed)", "ia3", "tokens through the LLM", "P@1 in percent"):
        assert text in drawn
    assert "mathdefault" not in drawn
    for name in ("methods.svg", "methods.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_nothing_measured_is_drawn_too(tmp_path: Path) -> None:
    found = measure("\u00e4 / $x$", OTHERS, {"untrained": "ModelError: no LLM"})
    assert "nothing can be said of gains" in shown.markdown(found, [])
    shown.plot(found, tmp_path)
    assert (tmp_path / "methods.png").stat().st_size > 5_000
    assert shown.plain(found)["rows"][0] == {
        "name": "untrained", "problem": "ModelError: no LLM", "result": None, "over_untrained": None, "tokens": None,
        "took": None, "run": None,
    }  # fmt: skip
