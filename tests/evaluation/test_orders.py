"""An answer that is averaged over orders does not hang on the order of the candidates."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from llm_wrapper.errors import RecipeError
from llm_wrapper.evaluation.orders import ask_in_orders, averaged, orders_of
from llm_wrapper.prompts.builder import PromptBuilder
from llm_wrapper.prompts.choose import choose
from llm_wrapper.recipe import PromptSection
from llm_wrapper.records import Answer, Box, Candidate, Prompt, Sample

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


def test_an_average_is_given_in_the_candidates_own_order() -> None:
    answers = [Answer(probabilities=(0.7, 0.3), mass=0.5), Answer(probabilities=(0.6, 0.4), mass=0.7)]
    found = averaged(answers, [(0, 1), (1, 0)])
    assert found.probabilities == pytest.approx((0.55, 0.45))
    assert found.mass == pytest.approx(0.6)


@pytest.mark.parametrize("seed", range(5))
def test_permuting_the_candidates_does_not_change_the_chosen_box(seed: int) -> None:
    candidates = tuple(candidate(number) for number in range(8))
    shuffled = tuple(random.Random(seed).sample(candidates, 8))
    chosen = []
    for given in (candidates, shuffled):
        (answer,) = ask_in_orders([(SAMPLE, given)], COMPACT, likes_the_first, count=5)
        assert sum(answer.probabilities or ()) == pytest.approx(1.0)
        index = choose(answer, 8).index
        assert index is not None
        chosen.append(given[index])
    assert chosen[0] == chosen[1]


def test_one_order_is_that_of_the_candidates() -> None:
    (answer,) = ask_in_orders([(SAMPLE, (candidate(3), candidate(1)))], COMPACT, likes_the_first, count=1)
    assert choose(answer, 2).index == 0


def test_a_generated_text_cannot_be_averaged() -> None:
    def generate(prompts: Sequence[Prompt]) -> list[Answer]:
        return [Answer(text="0", finish_reason="stop") for _ in prompts]

    with pytest.raises(RecipeError, match="use score"):
        ask_in_orders([(SAMPLE, (candidate(3), candidate(1)))], COMPACT, generate, count=2)
