"""In-context examples: drawn once, spread over the indices, never of the picture that is asked about."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_wrapper.errors import PromptError
from llm_wrapper.llms.base import answer_now, reason_first
from llm_wrapper.prompts.examples import FixedExamples, NearestExamples, draw_examples, fit_tfidf
from llm_wrapper.prompts.render import ExampleSelector, Exemplar, PromptBuilder
from llm_wrapper.recipe import PromptSection
from llm_wrapper.records import Box, Candidate, Message, Prompt, Sample
from tests.prompts.golden_files import conversation, golden
from tests.prompts.test_render import CANDIDATES, HOSTILE

LABELS = ("dog", "cat", "chair", "cup")
EXPRESSIONS = (
    "left dog", "the big dog", "a cat on the right", "chair next to the cup", "cup behind the chair",
    "second zebra from the left", "small cat", "the cup in front", "zebra on the right", "brown chair in the middle",
)  # fmt: skip


def candidates(count: int, *, labels: Sequence[str] = LABELS) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(Box(10 * i, 5, 10 * i + 9, 20 + i), labels[i % len(labels)], None, "toy", "od") for i in range(count)
    )


def exemplar(number: int, *, image: str | None = None, count: int = 4, expression: str | None = None) -> Exemplar:
    text = EXPRESSIONS[number % len(EXPRESSIONS)] if expression is None else expression
    sample = Sample(f"t{number:03}", "r", image or f"image-{number}", None, (200, 100), text, None)
    return Exemplar(sample, candidates(count), number % count)


POOL = [exemplar(number) for number in range(40)]


def question(image: str = "zebras", expression: str = "left zebra") -> tuple[Sample, tuple[Candidate, ...]]:
    return Sample("q", "q", image, None, (640, 480), expression, None), CANDIDATES


# drawing


@pytest.mark.parametrize("count", [1, 4, 7, 12, 40])
def test_no_index_is_favoured(count: int) -> None:
    drawn = draw_examples(POOL, count, seed=0)
    used = Counter(each.index for each in drawn)
    assert len(drawn) == count
    assert max(used.values()) - min(used[index] for index in range(4)) <= 1
    skewed = [*[exemplar(4 * number) for number in range(1, 60)], exemplar(1), exemplar(2), exemplar(3)]
    assert {each.index for each in draw_examples(skewed, 4, seed=3)} == {0, 1, 2, 3}


def test_a_draw_hangs_on_seed_and_samples_and_not_on_their_order() -> None:
    shuffled = random.Random(1).sample(POOL, len(POOL))
    assert draw_examples(shuffled, 5, seed=0) == draw_examples(POOL, 5, seed=0)
    assert len({tuple(each.sample.sample_id for each in draw_examples(POOL, 5, seed=seed)) for seed in range(10)}) > 5


def test_examples_are_of_different_images_and_fewer_where_there_are_fewer() -> None:
    crowded = [exemplar(number, image=f"image-{number % 3}") for number in range(30)]
    drawn = draw_examples(crowded, 10, seed=0)
    assert sorted(each.sample.image_id for each in drawn) == ["image-0", "image-1", "image-2"]


def test_every_question_gets_the_same_but_for_those_of_its_own_picture() -> None:
    choose = FixedExamples(POOL, 4, seed=0)
    images = ["elsewhere", "nowhere", *(each.sample.image_id for each in POOL)]
    usual, other, *rest = choose.select([question(image) for image in images])
    assert usual == other
    assert len(usual) == 4
    for image, shown in zip(images[2:], rest, strict=True):
        assert len(shown) == 4
        assert image not in {each.sample.image_id for each in shown}
    assert [shown == usual for shown in rest].count(False) == 4


# prompts with examples


def built(section: PromptSection, *, pool: Sequence[Exemplar] = POOL, expression: str = "left zebra") -> Prompt:
    count = section.examples
    selector: ExampleSelector = FixedExamples(pool, count, seed=0)
    if section.retrieve:
        selector = NearestExamples(pool, count, fit_tfidf([each.sample.expression for each in pool]))
    (prompt,) = PromptBuilder(section, selector).build([question(expression=expression)])
    return prompt


@pytest.mark.parametrize("format_name", ["coords", "compact", "relations", "hints"])
def test_examples_are_turns_and_the_question_comes_last(format_name: str) -> None:
    prompt = built(PromptSection(format=format_name, examples=4))
    assert [message.role for message in prompt.messages] == ["user", "assistant"] * 4 + ["user"]
    answers = [int(message.content) for message in prompt.messages[1::2]]
    assert sorted(answers) == [0, 1, 2, 3]
    (bare,) = PromptBuilder(PromptSection(format=format_name)).build([question()])
    assert prompt.messages[-1:] == bare.messages
    assert (prompt.candidates, prompt.sample_id, prompt.format) == (bare.candidates, bare.sample_id, bare.format)


def test_examples_are_asked_with_the_instruction_too() -> None:
    prompt = built(PromptSection(examples=2, instruction="Say which.\n{objects}\n{expression}"))
    assert [message.content.startswith("Say which.") for message in prompt.messages] == [True, False] * 2 + [True]


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_in_an_example_stays_in_its_turn(hostile: str) -> None:
    bad = exemplar(0, expression=hostile)
    labels = (hostile, "dog")
    pool = [Exemplar(bad.sample, candidates(4, labels=labels), 1)]
    tame = [Exemplar(exemplar(0).sample, candidates(4, labels=("cat", "dog")), 1)]
    prompt, plain_one = built(PromptSection(examples=1), pool=pool), built(PromptSection(examples=1), pool=tame)
    assert len(prompt.messages) == 3
    shown = prompt.messages[0].content
    assert len(shown.splitlines()) == len(plain_one.messages[0].content.splitlines())
    assert not set("<>[]{}|｜\0") & set(shown)  # noqa: RUF001
    shown.encode()


def test_without_training_expressions_examples_are_refused() -> None:
    with pytest.raises(PromptError, match=r"prompt\.examples=3"):
        PromptBuilder(PromptSection(examples=3))


# golden conversations


def test_golden_conversations() -> None:
    reasons = "There are two zebras. <|im_end|>The one on the left is 1."
    golden("in-context", conversation(built(PromptSection(format="compact", examples=2))))
    golden("retrieved", conversation(built(PromptSection(format="compact", examples=2, retrieve=True))))
    (bare,) = PromptBuilder(PromptSection(format="coords")).build([question()])
    golden("chain-of-thought", conversation(answer_now(bare, reasons)))
    everything = PromptSection(
        format="relations", instruction="{objects}\nWhich is {expression}?", examples=1, retrieve=True
    )
    golden("all-together", conversation(answer_now(built(everything), reasons)))


def test_reasons_are_asked_for_before_the_answer() -> None:
    (bare,) = PromptBuilder(PromptSection(format="coords")).build([question()])
    first, then = reason_first(bare), answer_now(bare, "because")
    assert then.messages[:1] == first.messages
    assert [message.role for message in then.messages] == ["user", "assistant", "user"]
    assert then.messages[1] == Message("assistant", "because")
    assert all(answer_now(bare, nothing) == bare for nothing in ("", " \n", "\u200b"))


# the same picture


@pytest.mark.parametrize("retrieve", [False, True], ids=["fixed", "retrieved"])
def test_a_copy_of_a_picture_under_another_name_is_the_same_picture(tmp_path: Path, retrieve: bool) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 100)  # all of one size, so that the contents have to tell
    pool = [
        Exemplar(Sample(f"s{i}", "r", f"id-{i}", str(path), (9, 9), "left dog", None), candidates(2), i % 2)
        for i, path in enumerate(paths)
    ]
    choose = NearestExamples(pool, 5, fit_tfidf(["left dog"])) if retrieve else FixedExamples(pool, 5, seed=0)
    for number, path in enumerate(paths):
        copy = tmp_path / "upload.png"  # another picture under the same name each time
        copy.write_bytes(path.read_bytes())
        for asked in (copy, path, tmp_path / "." / path.name):
            query = Sample("q", "q", "upload", str(asked), (9, 9), "left dog", None)
            (shown,) = choose.select([(query, candidates(2))])
            assert sorted(each.sample.sample_id for each in shown) == [f"s{i}" for i in range(6) if i != number]
    absent = Sample("q", "q", "upload", str(tmp_path / "no"), (9, 9), "left dog", None)
    assert [len(shown) for shown in choose.select([(absent, candidates(2))])] == [5]


# retrieval


def brute_force(pool: Sequence[Exemplar], asked: tuple[Sample, Sequence[Candidate]], count: int) -> list[str]:
    """Rank by hand: like candidates first, then nearness, then the pool's order; the own picture is left out."""
    texts = fit_tfidf([each.sample.expression for each in pool])
    sample, shown = asked
    near = (texts([sample.expression]) @ texts([each.sample.expression for each in pool]).T).toarray()[0]

    def key(place: int) -> tuple[bool, float, int]:
        each = pool[place]
        small, large = sorted([len(shown), len(each.candidates)])
        labels = {each.label for each in shown} & {each.label for each in each.candidates}
        return not (large <= 2 * small and labels), -near[place], place

    places = [place for place, each in enumerate(pool) if each.sample.image_id != sample.image_id]
    return [pool[place].sample.sample_id for place in sorted(places, key=key)[:count]][::-1]


_EXEMPLARS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(2, 9), st.text("abc dog cat left {<é", max_size=12), st.integers(0, 2)),
    min_size=1,
    max_size=25,
)


@settings(max_examples=30, deadline=None)
@given(_EXEMPLARS, st.integers(0, 6), st.integers(2, 9), st.text("abc dog cat left", max_size=12), st.integers(1, 6))
def test_retrieval_equals_a_ranking_by_hand_and_never_shows_the_own_picture(
    rows: list[tuple[int, int, str, int]], image: int, size: int, expression: str, count: int
) -> None:
    pool = []
    for place, (of, num, text, kind) in enumerate(rows):
        sample = Sample(f"s{place}", "r", f"i{of}", None, (99, 99), text, None)
        pool.append(Exemplar(sample, candidates(num, labels=LABELS[kind:]), 0))
    asked = (Sample("q", "q", f"i{image}", None, (99, 99), expression, None), candidates(size, labels=("dog", "cup")))
    (shown,) = NearestExamples(pool, count, fit_tfidf([each.sample.expression for each in pool])).select([asked])
    assert f"i{image}" not in {each.sample.image_id for each in shown}
    assert [each.sample.sample_id for each in shown] == brute_force(pool, asked, count)


def test_many_questions_give_what_each_gives_alone() -> None:
    pool = [exemplar(number, image=f"image-{number % 50}", count=2 + number % 8) for number in range(150)]
    asked = [question(f"image-{number % 60}", EXPRESSIONS[number % 7]) for number in range(150)]
    asked = [(sample, candidates(2 + number % 9)) for number, (sample, _) in enumerate(asked)]
    choose = NearestExamples(pool, 3, fit_tfidf([each.sample.expression for each in pool]))
    together = choose.select(asked)
    assert together == [choose.select([one])[0] for one in asked]
    for (sample, _), shown in zip(asked, together, strict=True):
        assert len(shown) == 3
        assert sample.image_id not in {each.sample.image_id for each in shown}


def test_the_nearest_stands_last() -> None:
    pool = [exemplar(0, expression=text, image=text) for text in ("a cup", "the left dog", "left dog there", "chair")]
    choose = NearestExamples(pool, 3, fit_tfidf([each.sample.expression for each in pool]))
    (shown,) = choose.select([(question(expression="the left dog")[0], candidates(4))])
    assert [each.sample.expression for each in shown][1:] == ["left dog there", "the left dog"]


def test_the_pool_is_embedded_once() -> None:
    texts = fit_tfidf(["a"])
    seen: list[int] = []

    def embed(asked: Sequence[str]) -> object:
        seen.append(len(asked))
        return texts(asked)

    choose = NearestExamples(POOL, 2, embed)
    choose.select([question()] * 5)
    choose.select([question()])
    assert seen == [40, 5, 1]


@pytest.mark.parametrize("pool", [[], [exemplar(0, image="zebras")]], ids=["empty", "own-picture-only"])
def test_nothing_to_show_is_no_example(pool: list[Exemplar]) -> None:
    if pool:
        assert NearestExamples(pool, 2, fit_tfidf(["x"])).select([question()]) == [[]]
    assert FixedExamples(pool, 2, seed=0).select([question()]) == [[]]


# nearness without a model


def test_lexical_rows_have_length_one_or_are_empty() -> None:
    texts = fit_tfidf(["left dog", "the right cat", ""])
    rows = texts(["left dog", "LEFT  dog!", "dogs", "qqq", "", "\ud800", "<|im_end|>"]).toarray()
    assert rows[0] == pytest.approx(rows[1])
    assert (rows**2).sum(axis=1) == pytest.approx([1, 1, 1, 0, 0, 0, 0])
    near = rows @ rows[0]
    assert near[0] == pytest.approx(1)
    assert 0 < near[2] < 1


def test_rare_words_count_more() -> None:
    texts = fit_tfidf([*["the dog"] * 9, "the zebra", "a zebra"])
    dog, zebra, query = texts(["the dog", "a zebra", "the zebra"]).toarray()
    assert query @ zebra > query @ dog
