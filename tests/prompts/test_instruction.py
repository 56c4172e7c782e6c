"""The text around the objects: what an instruction must hold, and that no expression is read as a part of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from llm_wrapper.errors import PromptError
from llm_wrapper.prompts.render import FORMATS, render
from llm_wrapper.prompts.text import MAX_INSTRUCTION, check_instruction, fill_instruction
from tests.prompts.golden_files import golden
from tests.prompts.test_render import CANDIDATES, EXPRESSION_LAST, HOSTILE, SAMPLE, text

TEXT = "Look well.\n{objects}\nSaid: {expression}. Its number?"

OWN_WORDS = {
    "coords": "{objects}\nWhich one does the expression describe? Answer with its number alone.\n"
    "Expression: {expression}",
    "coords_scores": "{objects}\nWhich one does the expression describe? Answer with its number alone.\n"
    "Expression: {expression}",
    "compact": "{objects}\nNumber of the object described by\n{expression}",
    "relations": "{objects}\nNumber of the object described by\n{expression}",
    "hints": "Find: {expression}\n{objects}\nNumber:",
}
"""What each shipped template says, as an instruction."""


@pytest.mark.parametrize(
    ("instruction", "problems"),
    [
        pytest.param(TEXT, [], id="good"),
        pytest.param("{objects}{expression}", [], id="shortest"),
        pytest.param("<b>[INST] % $ {expression} \\ {objects}", [], id="brackets-are-the-choosers-business"),
        pytest.param("ü 中 {objects} {expression}", [], id="any-language"),
        pytest.param("", ["is empty"], id="empty"),
        pytest.param(" \n", ["is empty"], id="blank"),
        pytest.param("Which?", ["{objects} stands in", "{expression} stands in"], id="neither"),
        pytest.param("{objects} {objects} {expression}", ["{objects} stands in the instruction 2 times"], id="twice"),
        pytest.param("{objects} {expresion}", ["{expression} stands", "'{expresion}' is no placeholder"], id="typo"),
        pytest.param("{objects} {expression} {0}", ["'{0}' is no placeholder"], id="number"),
        pytest.param("{{objects}} {expression}", ["not closed, or not opened"], id="double-braces"),
        pytest.param("{objects} {expression} {", ["not closed, or not opened"], id="open-brace"),
        pytest.param("{objects} {expression} }", ["not closed, or not opened"], id="closed-brace"),
        pytest.param("{objects} \0{expression}\x1b", ["U+0000, U+001B"], id="control"),
        pytest.param("{objects} {expression}\u202e", ["U+202E"], id="right-to-left-override"),
        pytest.param(
            "{objects} {expression}" + "x" * MAX_INSTRUCTION, ["1022 characters; 1000 is the most"], id="novel"
        ),
        pytest.param("\0" * 1001, ["{objects}", "{expression}", "control", "1001 characters"], id="all-at-once"),
    ],
)
def test_every_problem_is_told(instruction: str, problems: list[str]) -> None:
    found = check_instruction(instruction)
    assert len(found) == len(problems), found
    assert all(problem in line for problem, line in zip(problems, found, strict=True)), found


def test_both_places_are_filled_at_once() -> None:
    assert (
        fill_instruction("{expression}/{objects}", objects="{expression}", expression="{objects}")
        == "{objects}/{expression}"
    )
    assert fill_instruction("{expression}/{objects}", objects=r"\1 \g<0>", expression="\\") == "\\/" + r"\1 \g<0>"


@pytest.mark.parametrize("prompt_format", FORMATS)
def test_golden(prompt_format: str) -> None:
    golden(f"instruction-{prompt_format}", text(render(SAMPLE, CANDIDATES, prompt_format, instruction=TEXT)))


@pytest.mark.parametrize("prompt_format", FORMATS)
def test_a_formats_own_words_are_an_instruction_like_any_other(prompt_format: str) -> None:
    for expression in ("left zebra", "the third one from the right", *HOSTILE.values()):
        sample = dataclasses.replace(SAMPLE, expression=expression)
        own = render(sample, CANDIDATES, prompt_format)
        assert render(sample, CANDIDATES, prompt_format, instruction=OWN_WORDS[prompt_format]) == own


@pytest.mark.parametrize("hostile", [*HOSTILE.values(), "{objects}", "{expression} {objects}"])
def test_a_hostile_expression_stays_in_its_place(hostile: str) -> None:
    sample = dataclasses.replace(SAMPLE, expression=hostile)
    for prompt_format in EXPRESSION_LAST:
        plain = text(render(SAMPLE, CANDIDATES, prompt_format, instruction=TEXT)).splitlines()
        lines = text(render(sample, CANDIDATES, prompt_format, instruction=TEXT)).splitlines()
        assert lines[:-1] == plain[:-1]
        assert not set("<>[]{}|\0") & set(lines[-1])


def test_an_unusable_instruction_is_refused() -> None:
    with pytest.raises(PromptError, match=r"prompt\.instruction cannot be used \(2 problems\)"):
        render(SAMPLE, CANDIDATES, "coords", instruction="Which?")


def test_a_template_of_ones_own_must_say_which_lines_are_the_objects(tmp_path: Path) -> None:
    path = tmp_path / "own.j2"
    path.write_text("{% for c in candidates %}{{ c.label }} {% endfor %}? {{ expression }}", encoding="utf-8")
    assert text(render(SAMPLE, CANDIDATES, str(path))) == "zebra zebra grass ? left zebra"
    with pytest.raises(PromptError, match=r"put {% block objects %} before and {% endblock %} behind those lines"):
        render(SAMPLE, CANDIDATES, str(path), instruction=TEXT)
    other = tmp_path / "other.j2"
    other.write_text("{% block objects %}{{ candidates | length }}{% endblock %} {{ expression }}", encoding="utf-8")
    shown = text(render(SAMPLE, CANDIDATES, str(other), instruction="{objects}: {expression}"))
    assert (text(render(SAMPLE, CANDIDATES, str(other))), shown) == ("3 left zebra", "3: left zebra")


def test_a_block_that_cannot_be_rendered_says_why(tmp_path: Path) -> None:
    path = tmp_path / "own.j2"
    path.write_text("{% block objects %}{{ nothing }}{% endblock %}{{ expression }}", encoding="utf-8")
    with pytest.raises(PromptError, match="'nothing' is undefined"):
        render(SAMPLE, CANDIDATES, str(path), instruction=TEXT)
