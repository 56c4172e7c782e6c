"""The answer "none of these": its line, and how it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_wrapper.errors import PromptError
from llm_wrapper.prompts.render import NONE_OF_THESE, PROMPT_FORMATS, PromptBuilder, choose, render_prompt
from llm_wrapper.recipe import PromptSection
from llm_wrapper.records import Answer, Choice
from tests.prompts.test_render import CANDIDATES, SAMPLE, text

LINES = {"coords": "3: none of these", "coords_scores": "3: none of these"}
INSTRUCTION = "Pick one.\n{objects}\nWhich is {expression}?"


@pytest.mark.parametrize("instruction", [None, INSTRUCTION], ids=["own words", "instruction"])
@pytest.mark.parametrize("prompt_format", PROMPT_FORMATS)
def test_the_line_stands_behind_the_candidates_and_changes_nothing_else(
    prompt_format: str, instruction: str | None
) -> None:
    without = render_prompt(SAMPLE, CANDIDATES, prompt_format, instruction=instruction)
    prompt = render_prompt(SAMPLE, CANDIDATES, prompt_format, instruction=instruction, none=True)
    line = LINES.get(prompt_format, "3 none of these")
    before, after = text(prompt).split(line + "\n")
    assert before + after == text(without)
    assert "zebra" not in after.replace("left zebra", ""), "behind all candidates"
    assert (prompt.none, prompt.num_answers, without.num_answers) == (True, 4, 3)


def test_a_recipe_says_whether_none_is_an_answer() -> None:
    (prompt,) = PromptBuilder(PromptSection(format="compact", none=True)).build([(SAMPLE, CANDIDATES[:1])])
    assert "1 none of these\n" in text(prompt)
    assert PromptSection(format="compact", none=True, none_below=0.25).summary == "compact, or none, none below 0.25"


OWN = "{% block objects %}{% for c in candidates %}{{ c.index }} {{ c.label }}\n{% endfor %}{% endblock %}"
LINE = "{% if none_index is not none %}{{ none_index }} nothing{% endif %}"


@pytest.mark.parametrize(
    ("template", "instruction", "ok"),
    [
        pytest.param(OWN + "{{ expression }}", None, False, id="no-line"),
        pytest.param(OWN + LINE + "{{ expression }}", None, True, id="line"),
        pytest.param(OWN + LINE + "{{ expression }}", INSTRUCTION, False, id="line-outside-the-block"),
        pytest.param(OWN.replace("{% endblock", LINE + "{% endblock"), INSTRUCTION, True, id="line-in-the-block"),
        pytest.param("{% set none_index = 7 %}" + OWN, None, False, id="named-and-not-shown"),
    ],
)
def test_a_template_of_ones_own_must_have_the_line(
    tmp_path: Path, template: str, instruction: str | None, ok: bool
) -> None:
    path = tmp_path / "own.j2"
    path.write_text(template, encoding="utf-8")
    assert "nothing" not in text(render_prompt(SAMPLE, CANDIDATES, str(path), instruction=instruction))
    if ok:
        assert "3 nothing" in text(render_prompt(SAMPLE, CANDIDATES, str(path), instruction=instruction, none=True))
        return
    with pytest.raises(PromptError, match=r"prompt\.none=true .* none_index"):
        render_prompt(SAMPLE, CANDIDATES, str(path), instruction=instruction, none=True)


@pytest.mark.parametrize(
    ("answer", "none", "below", "expected"),
    [
        pytest.param(Answer((0.2, 0.3, 0.5)), True, None, Choice(None, 0.5, NONE_OF_THESE), id="most-probable"),
        pytest.param(Answer((0.2, 0.4, 0.4)), True, None, Choice(1, 0.4), id="a-candidate-wins-a-tie"),
        pytest.param(Answer((0.3, 0.7)), False, 0.8, Choice(None, None, NONE_OF_THESE), id="below"),
        pytest.param(Answer((0.3, 0.7)), False, 0.7, Choice(1, 0.7), id="the-bound-is-not-below"),
        pytest.param(Answer((0.2, 0.5, 0.3)), True, 0.6, Choice(None, 0.3, NONE_OF_THESE), id="below-with-its-own"),
        pytest.param(Answer(text="2"), True, None, Choice(None, None, NONE_OF_THESE), id="text"),
        pytest.param(Answer(text="2"), False, None, Choice(None, None, "index_out_of_range"), id="text-not-offered"),
        pytest.param(Answer(text="3"), True, None, Choice(None, None, "index_out_of_range"), id="text-behind"),
        pytest.param(Answer(text="1"), True, 0.9, Choice(1), id="text-has-no-probability"),
        pytest.param(Answer(text="none"), True, None, Choice(None, None, "no_number"), id="word"),
    ],
)
def test_how_it_is_read(answer: Answer, none: bool, below: float | None, expected: Choice) -> None:
    assert choose(answer, 2, none=none, none_below=below) == expected


@pytest.mark.parametrize(("shares", "none"), [((0.5, 0.5), True), ((0.2, 0.3, 0.5), False), ((), True)])
def test_as_many_probabilities_as_answers(shares: tuple[float, ...], none: bool) -> None:
    with pytest.raises(ValueError, match=f"{len(shares)} probabilities for 2 candidates"):
        choose(Answer(shares), 2, none=none)
