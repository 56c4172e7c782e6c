"""The line of the answer "none of these"."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_wrapper.errors import PromptError
from llm_wrapper.prompts.render import PROMPT_FORMATS, PromptBuilder, render_prompt
from llm_wrapper.recipe import PromptSection
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
