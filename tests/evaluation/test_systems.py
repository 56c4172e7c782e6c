"""From samples to predictions, with an LLM that follows a script."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from llm_wrapper.candidates import BuiltCandidates
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.errors import PromptError, RecipeError
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation import systems
from llm_wrapper.evaluation.systems import ask_in_orders, orders_of
from llm_wrapper.metrics import summarize
from llm_wrapper.prompts.render import PromptBuilder, choose
from llm_wrapper.recipe import PromptSection
from llm_wrapper.records import Answer, Box, Candidate, Prediction, Prompt, Sample
from tests.fake_llm import FakeLLM

WH = (640, 480)
ZEBRAS = (
    Candidate(Box(310.2, 80.0, 620.5, 420.0), "zebra", None, "d", "od"),
    Candidate(Box(15.0, 90.5, 298.0, 405.0), "zebra", None, "d", "od"),
    Candidate(Box(0.0, 300.0, 640.0, 480.0), "grass", None, "d", "od"),
)
LEFT_ZEBRA = Box(12.0, 88.0, 300.0, 410.0)


def prepared_sample(
    sample_id: str,
    expression: str = "left zebra",
    *,
    image_id: str = "zebras",
    candidates: tuple[Candidate, ...] = ZEBRAS,
    target: Box | None = LEFT_ZEBRA,
) -> PreparedSample:
    sample = Sample(sample_id, sample_id, image_id, None, WH, expression, target)
    return PreparedSample(sample, BuiltCandidates(candidates, tuple(range(len(candidates))), {}))


class Script:
    """Answers each expression as told, and keeps what it was asked."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        self.answers = answers
        self.prompts: list[Prompt] = []

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        self.prompts += prompts
        return [self.answers[prompt.messages[-1].content.splitlines()[-1]] for prompt in prompts]


def builder(prompt_format: str) -> PromptBuilder:
    return PromptBuilder(PromptSection(format=prompt_format))


def by_llm(samples: Sequence[PreparedSample], answers: dict[str, Answer]) -> tuple[list[Prediction], list[Prompt]]:
    ask = Script(answers)
    return systems.by_llm(samples, "llm", builder("relations"), ask), ask.prompts


def test_walk_through_sample() -> None:
    (prediction,), (prompt,) = by_llm(
        [prepared_sample("1")], {"left zebra": Answer(probabilities=(0.1, 0.8, 0.1), mass=0.9)}
    )
    assert prompt.candidates == prediction.candidates == ZEBRAS
    assert (prediction.system, prediction.box, prediction.decided_by) == ("llm", ZEBRAS[1].box, "llm")
    assert (prediction.probability, prediction.probabilities) == (0.8, (0.1, 0.8, 0.1))
    for made, decided_by, right in (
        (systems.by_detector, "detector", 0.0),  # the grass is the largest
        (systems.by_rule, "rule", 1.0),
        (systems.by_oracle, "oracle", 1.0),
    ):
        (other,) = made([prepared_sample("1")])
        assert (other.system, other.decided_by, summarize([other]).p_at_1) == (decided_by, decided_by, right)


def test_generated_answers_are_parsed() -> None:
    (prediction,), _ = by_llm([prepared_sample("1")], {"left zebra": Answer(text="It is 1.", finish_reason="stop")})
    assert (prediction.box, prediction.probability, prediction.probabilities) == (ZEBRAS[1].box, None, None)


@pytest.mark.parametrize(("text", "failure"), [("", "no_number"), ("zebra", "no_number"), ("7", "index_out_of_range")])
def test_an_unusable_answer_falls_back_to_the_detector_and_is_counted(text: str, failure: str) -> None:
    (prediction,), _ = by_llm([prepared_sample("1")], {"left zebra": Answer(text=text)})
    assert (prediction.box, prediction.decided_by, prediction.failure) == (ZEBRAS[2].box, "fallback", failure)
    summary = summarize([prediction])
    assert (summary.decided_by["fallback"], summary.failures) == (1, {failure: 1})


def test_the_llm_is_asked_image_by_image_and_answers_find_their_samples() -> None:
    images = ["b", "a", "b", "c", "a", "b"]
    samples = [prepared_sample(str(place), f"zebra {place}", image_id=image) for place, image in enumerate(images)]
    answers = {f"zebra {place}": Answer(text=str(place % 3)) for place in range(6)}
    rows, prompts = by_llm(samples, answers)
    assert [prompt.sample_id for prompt in prompts] == ["0", "2", "5", "1", "4", "3"]
    assert [row.sample_id for row in rows] == [str(place) for place in range(6)]
    assert [row.box for row in rows] == [ZEBRAS[place % 3].box for place in range(6)]


def test_nobody_is_asked_where_there_is_nothing_to_choose() -> None:
    samples = [
        prepared_sample("one", candidates=ZEBRAS[1:2]),
        prepared_sample("two", "zebra"),
        prepared_sample("none", candidates=()),
    ]
    rows, prompts = by_llm(samples, {"zebra": Answer(text="0")})
    assert [prompt.sample_id for prompt in prompts] == ["two"]
    assert [row.decided_by for row in rows] == ["single_candidate", "llm", "no_candidate"]
    assert [row.box for row in rows] == [ZEBRAS[1].box, ZEBRAS[0].box, None]
    assert [row.failure for row in rows] == [None] * 3


@pytest.mark.parametrize(
    "made", [systems.by_detector, systems.by_rule, systems.by_oracle], ids=lambda made: made.__name__
)
def test_every_system_survives_samples_without_choice_or_target(made: Callable[..., list[Prediction]]) -> None:
    samples = [
        prepared_sample("none", candidates=()),
        prepared_sample("one", candidates=ZEBRAS[:1]),
        prepared_sample("no target", target=None),
    ]
    rows = made(samples)
    assert [row.decided_by for row in rows[:2]] == ["no_candidate", "single_candidate"]
    assert [row.sample_id for row in rows] == ["none", "one", "no target"]
    assert rows[2].failure is None
    assert (rows[2].box is None) == (made is systems.by_oracle), "whose answer is right wherever one can be"


def test_no_sample_gives_no_prediction() -> None:
    assert by_llm([], {}) == ([], [])
    assert systems.by_detector([]) == systems.by_rule([]) == systems.by_oracle([]) == []


@pytest.mark.parametrize("num_answers", [0, 2])
def test_each_prompt_needs_its_answer(num_answers: int) -> None:
    with pytest.raises(ValueError, match="zip"):
        systems.by_llm(
            [prepared_sample("1")], "llm", builder("coords"), FakeLLM(lambda prompts: [Answer(text="0")] * num_answers)
        )


def test_probabilities_must_fit_the_candidates() -> None:
    with pytest.raises(ValueError, match="2 probabilities for 3 candidates"):
        by_llm([prepared_sample("1")], {"left zebra": Answer(probabilities=(0.5, 0.5))})


def test_a_format_that_shows_scores_is_refused_before_anybody_is_asked() -> None:
    def never(prompts: Sequence[Prompt]) -> list[Answer]:
        raise AssertionError(prompts)

    with pytest.raises(PromptError, match="has no score"):
        systems.by_llm([prepared_sample("1")], "llm", builder("coords_scores"), FakeLLM(never))


def test_predictions_explain_themselves_once_they_are_read_back(tmp_path: Path) -> None:
    samples = [
        prepared_sample("1"),
        prepared_sample("2", "grass", target=ZEBRAS[2].box),
        prepared_sample("3", candidates=()),
    ]
    answers = {"left zebra": Answer(probabilities=(0.1, 0.8, 0.1)), "grass": Answer(probabilities=(0.6, 0.2, 0.2))}
    rows = [*systems.by_oracle(samples), *by_llm(samples, answers)[0]]
    files.save_predictions(tmp_path / "predictions.parquet", rows)
    assert files.load_predictions(tmp_path / "predictions.parquet") == rows
    summary = summarize([row for row in rows if row.system == "llm"])
    assert (summary.n, summary.p_at_1, summary.oracle_p_at_1) == (3, pytest.approx(1 / 3), pytest.approx(2 / 3))


COMPACT = PromptBuilder(PromptSection(format="compact"))
SAMPLE = Sample("s", "r", "i", None, (100, 100), "left dog", None)


def candidate(number: int) -> Candidate:
    return Candidate(Box(10 * number, 0, 10 * number + 5, 5 + number), "dog", None, "tiny", "od")


def likes_the_first(prompts: Sequence[Prompt]) -> list[Answer]:
    """An LLM of nothing but order bias, with a little preference for large boxes."""
    answers = []
    for prompt in prompts:
        weights = [
            (5.0 if place == 0 else 1.0) * (1 + each.box.area / 1e6) for place, each in enumerate(prompt.candidates)
        ]
        answers.append(Answer(probabilities=tuple(weight / sum(weights) for weight in weights), mass=0.5))
    return answers


@pytest.mark.parametrize("count", [1, 2, 7])
def test_orders_are_permutations_that_hang_on_the_candidates_alone(count: int) -> None:
    candidates = [candidate(number) for number in range(6)]
    orders = orders_of(candidates, count)
    assert [sorted(order) for order in orders] == [list(range(6))] * count
    shuffled = random.Random(1).sample(candidates, 6)
    seen = [[shuffled[index] for index in order] for order in orders_of(shuffled, count)]
    assert seen == [[candidates[index] for index in order] for order in orders]
    assert count < 7 or len(set(orders)) > 3


def test_one_order_is_that_of_the_candidates() -> None:
    (answer,) = ask_in_orders([(SAMPLE, (candidate(3), candidate(1)))], COMPACT, FakeLLM(likes_the_first), count=1)
    assert choose(answer, 2).index == 0


def test_a_generated_text_cannot_be_averaged() -> None:
    def generate(prompts: Sequence[Prompt]) -> list[Answer]:
        return [Answer(text="0", finish_reason="stop") for _ in prompts]

    with pytest.raises(RecipeError, match="use score"):
        ask_in_orders([(SAMPLE, (candidate(3), candidate(1)))], COMPACT, FakeLLM(generate), count=2)
