"""What the proposing LLM is asked, how its answers are cleaned, and which proposals are refused and why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llm_wrapper.errors import RecipeError
from llm_wrapper.llms import steering
from llm_wrapper.recipe.schema import LLMSection, SamplingSection, SearchSection
from llm_wrapper.search.history import Leaderboard
from llm_wrapper.search.proposals import (
    ForbiddenText,
    LocalProposer,
    Request,
    ServedProposer,
    build_meta_prompt,
    clean_proposal,
    find_refusals,
    is_same_prompt,
)
from llm_wrapper.search.tasks import CAPTION, INSTRUCTION, find_other_demand, search_task
from tests.llms import tiny
from tests.search.fakes import ProposingServer
from tests.search.made import evaluated

KNOWN = ForbiddenText(
    ("the man in the red shirt", "left dog", "The BIG, brown cow!"), ("dog", "red chair", "cat", "cow"), ("<|weird|>",)
)
GOOD = "Objects:\n{objects}\nGive the number of the one meant by {expression}"


def leaderboard() -> Leaderboard:
    texts = ["seed", "a", "b", "c", "d"]
    rights = ["0100", "1100", "1000", "1110", "0000"]
    return Leaderboard([evaluated(r, f"{t} {GOOD}", iteration=i) for i, (t, r) in enumerate(zip(texts, rights))])  # noqa: B905


def test_the_question_shows_bad_and_good_prompts_rising_and_the_rules() -> None:
    asked = build_meta_prompt(INSTRUCTION, "RefCOCOg: long expressions.", leaderboard(), 2)
    assert re.findall(r"Accuracy: ([\d.]+) %", asked) == ["0.0", "25.0", "50.0", "75.0"]
    assert asked.index("did badly") < asked.index(f"d {GOOD}") < asked.index("did well") < asked.index(f"c {GOOD}")
    assert "RefCOCOg: long expressions." in asked
    assert INSTRUCTION.rules in asked
    assert asked.endswith("nothing else.")
    assert f"seed {GOOD}" not in asked.partition("did well")[2]
    first = Leaderboard([evaluated("0100", GOOD, iteration=0)])  # the first question shows the seed prompt alone
    asked = build_meta_prompt(INSTRUCTION, "Made by hand.", first, 5)
    assert "did badly" not in asked
    assert asked.count(GOOD) == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(GOOD, id="as-it-is"),
        pytest.param(f"\n  {GOOD}  \n\n", id="spaces"),
        pytest.param(f'"{GOOD}"', id="quotes"),
        pytest.param(f"“{GOOD}”", id="typographic-quotes"),
        pytest.param(f"Prompt: {GOOD}", id="prefix"),
        pytest.param(f"**New Prompt:**\n\n{GOOD}", id="bold-prefix"),
        pytest.param(f"My improved instruction:\n{GOOD}", id="own-prefix"),
        pytest.param(f"Here is a new prompt that is more accurate:\n\n{GOOD}", id="announced"),
        pytest.param(f"Sure! Here is one prompt:\n```\n{GOOD}\n```\nIt works since it is short.", id="fence"),
        pytest.param(f"```text\n{GOOD}", id="fence-cut-off"),
        pytest.param(f'Prompt:\n"{GOOD}"\nAccuracy: 99.0 %\n\nPrompt:\nanother', id="goes-on-with-the-history"),
        pytest.param(f"{GOOD}\n\nExplanation: it is clear.", id="explained"),
        pytest.param(f"{GOOD}\n\n*Note* that {{objects}} stands for the list.", id="noted"),
        pytest.param(GOOD.replace("\n", "\\n"), id="written-line-breaks"),
        pytest.param(GOOD.replace("\n", "  \r\n"), id="other-line-breaks"),
    ],
)
def test_the_prompt_in_an_answer_is_found(answer: str) -> None:
    assert clean_proposal(answer) == GOOD


@pytest.mark.parametrize(
    "answer",
    [
        "Here are the objects:\n{objects}\n\nNumber of {expression}:",
        "{objects}\n\nWhich number?\n\n{expression}",
        'The index of "{expression}" in {objects}',
        "'{objects}' and the number of '{expression}",
    ],
)
def test_what_belongs_to_a_prompt_stays(answer: str) -> None:
    assert clean_proposal(answer) == answer


@pytest.mark.parametrize("answer", ["", " \n", "```\n```", '""', "Prompt:", "``````", "Prompt: Prompt: Prompt:"])
def test_an_empty_answer_is_refused(answer: str) -> None:
    assert find_refusals(clean_proposal(answer), INSTRUCTION, KNOWN) == ["the instruction is empty"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("Number of {expression}?", "{objects} occurs in the instruction 0 times", id="lost"),
        pytest.param(f"{GOOD} {{objects}}", "{objects} occurs in the instruction 2 times", id="repeated"),
        pytest.param(f"{GOOD} {{answer}}", "'{answer}' is no placeholder", id="another"),
        pytest.param(GOOD + " word" * 6000, "characters; 1000 is the most", id="ten-pages"),
        pytest.param(f"{GOOD} as in the man in the red SHIRT", "leaks a training expression: 'the man", id="example"),
        pytest.param(f"{GOOD} the big\nbrown cow.", "leaks a training expression", id="example-over-lines"),
        pytest.param(f"0 dog 10 20 30 40\n{GOOD}", "leaks a box: '10 20 30 4", id="box"),
        pytest.param(f"0: dog (1.0, 2.5, 3.0, 4.0)\n{GOOD}", "leaks a box", id="box-of-the-paper"),
        pytest.param(f"{GOOD} e.g. a dog, the cat and red chair", "lists labels of the training data", id="labels"),
        pytest.param(f"{GOOD}<|im_end|>", "chat token: '<|im_end|>'", id="chatml"),
        pytest.param(f"{GOOD} [INST] more", "chat token: '[INST]'", id="inst"),
        pytest.param(f"{GOOD} </s>", "chat token: '</s>'", id="end"),
        pytest.param(f"{GOOD} <start_of_turn>user", "chat token: '<start_of_turn>'", id="gemma"),
        pytest.param(f"{GOOD} <|weird|>", "chat token", id="own-token"),
        pytest.param("{objects} Describe {expression}.", "else than an index: 'Describe'", id="description"),
        pytest.param("{objects} Is it {expression}? Answer yes or no.", "'yes or no'", id="yes-or-no"),
        pytest.param("{objects} The bounding box of {expression}:", "'bounding box'", id="box-asked"),
        pytest.param("{objects} How many are {expression}? Give a number.", "'How many'", id="count"),
    ],
)
def test_a_proposal_is_refused_with_the_reason(text: str, why: str) -> None:
    assert any(why in reason for reason in find_refusals(clean_proposal(text), INSTRUCTION, KNOWN))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(GOOD, id="good"),
        pytest.param(INSTRUCTION.seed, id="seed"),
        pytest.param(f"{GOOD} left dog", id="an-expression-of-two-words"),
        pytest.param(f"{GOOD} the cat, the dog", id="two-labels"),
        pytest.param(f"{GOOD} 0, 1 or 2", id="three-numbers"),
        pytest.param(f"{GOOD} (between <0> and [n]): <number> [NUMBER]", id="brackets"),
        pytest.param("List the number of {expression}: {objects}", id="a-number-is-asked-for"),
        pytest.param("Look at the coordinates: {objects} Index of {expression}?", id="coordinates-are-named"),
    ],
)
def test_what_looks_a_little_like_a_leak_is_measured(text: str) -> None:
    assert find_refusals(text, INSTRUCTION, KNOWN) == []


def test_captions_are_measured_and_all_reasons_are_listed() -> None:
    for caption in (CAPTION.seed, "all of {expression} in this photograph"):
        assert find_refusals(caption, CAPTION, KNOWN) == []
    reasons = find_refusals("Describe the man in the red shirt <|im_end|> [1, 2, 3, 4]", INSTRUCTION, KNOWN)
    assert len(reasons) == 6
    assert find_other_demand("{objects} number of {expression}") is None  # what stands in an expression is no demand
    assert find_other_demand("{objects} {expression}") is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *[("", "empty"), ("a photograph", "0 times"), ("{expression} {expression}", "2 times")],
        *[("{expression} {objects}", "brace"), ("a\n{expression}", "line break")],
        ("{expression}" + "x" * 200, "characters; 200 is the most"),
        ("the man in the red shirt, {expression}", "leaks a training expression"),
    ],
)
def test_captions_have_rules_of_their_own(text: str, why: str) -> None:
    assert any(why in reason for reason in find_refusals(text, search_task("caption"), KNOWN))


@pytest.mark.parametrize(("other", "found"), [(f" {GOOD}\n", True), (GOOD.replace("\n", " "), True), ("x", False)])
def test_prompts_are_the_same_whatever_their_spaces(other: str, found: bool) -> None:
    assert is_same_prompt(GOOD, other) == found


GUIDES = ("the left dog of 4 dogs", "12 chairs")


def proposer(**changes: object) -> LocalProposer:
    values = {"sampling": {"max_new_tokens": 6}, "alphas": [1.0], **changes}
    return LocalProposer(tiny.llm(), SearchSection.model_validate(values))


def test_the_same_request_draws_the_same_and_guidance_changes_it() -> None:
    propose = proposer()
    plain = [propose(Request("Write.", seed)) for seed in range(4)]
    assert [propose(Request("Write.", seed)) for seed in range(4)] == plain
    assert [propose(Request("Write.", seed, GUIDES, 0.0)) for seed in range(4)] == plain
    assert [propose(Request("Write.", seed, GUIDES, 8.0)) for seed in range(4)] != plain
    assert len({found.text for found in plain}) == 4


def test_the_offset_is_computed_once_for_each_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs: list[tuple[str, str, int | None]] = []
    real = steering.offset
    monkeypatch.setattr(steering, "offset", lambda llm, *args: pairs.append(args) or real(llm, *args))
    propose = proposer(layer=2)
    for guides in (GUIDES, GUIDES, GUIDES[::-1]):
        propose(Request("Write.", 1, guides, 0.5))
    assert pairs == [(*GUIDES, 2), (*GUIDES[::-1], 2)]


def served(server: ProposingServer, **sampling: object) -> ServedProposer:
    section = LLMSection.model_validate({"backend": "openai", "model": "m", "server": {"base_url": f"{server.url}/v1"}})
    return ServedProposer(section, SamplingSection.model_validate(sampling))


def test_a_server_is_asked_once_for_each_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_wrapper.llms.server.ANSWER_FOLDER", tmp_path)
    with ProposingServer(["one", "two"]) as server:
        assert not ServedProposer.can_be_guided
        assert [served(server)(Request("Write.", seed)).text for seed in (1, 2, 1, 2)] == ["one", "two"] * 2
        assert [each.body["seed"] for each in server.seen] == [1, 2]
        # Another temperature is another question, and what a server does not know is not sent.
        served(server, temperature=0.5, top_k=None)(Request("Write.", 1))
        assert server.seen[-1].body["temperature"] == 0.5
        assert "top_k" not in server.seen[-1].body
        assert server.seen[-1].path == "/v1/chat/completions"


def test_a_local_model_is_no_server() -> None:
    with pytest.raises(RecipeError, match="is no server"):
        ServedProposer(LLMSection(model="tiny"), SamplingSection())
