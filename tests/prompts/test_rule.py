"""The chooser without a model: what it says of names, directions and sizes, and how often it is right."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_wrapper import candidates as building
from llm_wrapper import metrics
from llm_wrapper.candidates import CandidatePolicy
from llm_wrapper.datasets import refer
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.detectors import coco, detect_sample
from llm_wrapper.evaluation import systems
from llm_wrapper.prompts import rule
from llm_wrapper.prompts.rule import SYNONYMS, find_names, singularize, split_words
from llm_wrapper.records import Candidate, Choice
from tests.prompts import made
from tests.prompts.made import ZEBRAS, boxes

_REAL = os.environ.get("LLM_WRAPPER_REAL_DATA", "")


at = partial(made.at, side=20.0)

# One cat in each direction; the middle one is larger, the one below a little smaller than the others.
LEFT, RIGHT, TOP, BOTTOM, MIDDLE = range(5)
CROSS = (
    *(at("cat", 20, 50), at("cat", 80, 50), at("cat", 45, 15)),
    *(at("cat", 55, 90, side=16), at("cat", 50, 50, side=30)),
)


def chosen(expression: str, candidates: tuple[Candidate, ...] = CROSS) -> int | None:
    return rule.choose_by_rule(expression, candidates).index


def test_walk_through_sample() -> None:
    assert rule.choose_by_rule("left zebra", ZEBRAS) == Choice(1)
    assert [chosen(text, ZEBRAS) for text in ("right zebra", "zebra", "grass")] == [0, 0, 2]


SAID = {
    LEFT: "left cat, LEFT CAT, the leftmost cat, cat on the left-most side",
    RIGHT: "right cat, the cat furthest to the right, rightmost",
    TOP: "top cat, the upper cat, highest cat, second cat from the left",
    BOTTOM: "cat at the bottom, lower cat, smallest cat, the little cat, tiny cat, cat in the back, front cat, "
    "the cat in the background, closest cat, cat in the foreground, 2nd from right",
    MIDDLE: "middle cat, cat in the center, cat between the others, cat, the biggest cat, third from the left, "
    "third cat from the right",
}


@pytest.mark.parametrize(
    ("expression", "expected"), [(text, index) for index, texts in SAID.items() for text in texts.split(", ")]
)
def test_direction_and_size_words(expression: str, expected: int) -> None:
    assert chosen(expression) == expected


@pytest.mark.parametrize(
    "expression",
    ["cat with a raised left hand", "brightly lit cat", "cat on a stopover", "a leftover cat", "cats"],
    ids=["body-part", "right-inside-a-word", "top-inside-a-word", "left-inside-a-word", "plural"],
)
def test_other_words_are_no_directions(expression: str) -> None:
    assert chosen(expression) == MIDDLE


def test_the_candidates_named_first_are_in_question() -> None:
    assert chosen("third cat from the left", (at("cat", 20, 50), at("cat", 80, 50))) == 0  # there are but two
    things = (at("dog", 10, 50), at("cat", 20, 50), at("cat", 80, 50))
    assert chosen("cat next to the dog on the right", things) == 2
    assert chosen("dog next to the right cat", things) == 0
    assert rule.rank_by_rule("left cat", things) == [1, 2]


NAMED = {"woman": "person", "the men": "person", "plane": "airplane", "zebras": "zebra", "glass of wine": "wine glass",
         "bear doll": "teddy bear"}  # fmt: skip


@pytest.mark.parametrize(("expression", "label"), NAMED.items())
def test_synonyms_and_plurals_name_a_label(expression: str, label: str) -> None:
    assert chosen(expression, (at("rug", 50, 50, side=90), at(label, 20, 20))) == 1


@pytest.mark.parametrize("expression", ["", " ", "\n", "the green one", "斑马", "<|im_end|>", "0"])
def test_the_largest_is_chosen_where_nothing_is_said(expression: str) -> None:
    assert chosen(expression) == MIDDLE


@pytest.mark.parametrize("label", ["", "斑马", "🦓", "gnome <|im_end|>", "x" * 5000])
def test_a_label_that_nobody_says_is_not_chosen(label: str) -> None:
    things = (at(label, 50, 50, side=90), at("cat", 20, 50), at("cat", 80, 50))
    assert chosen("right cat", things) == 2
    assert chosen("big thing", things) == 0


def test_small_things_are_overlooked_unless_smallness_is_spoken_of() -> None:
    things = (at("cat", 10, 50, side=4), at("cat", 40, 50), at("cat", 80, 50))
    assert chosen("left cat", things) == 1
    assert chosen("small cat", things) == 0


def test_no_candidate_cannot_be_chosen() -> None:
    assert rule.choose_by_rule("left zebra", ()) == Choice(None, reason="no_candidate")
    assert rule.rank_by_rule("left zebra", ()) == []


WORDS = ["left", "right", "second", "third", "from", "middle", "cat", "dog", "person", "small", "top", "of", "the"]
LABELS = st.sampled_from(["cat", "dog", "person"]) | st.text()
CANDIDATES = st.lists(
    st.builds(Candidate, boxes(90, 9), LABELS, st.none(), st.just("d"), st.just("od")), min_size=1, max_size=6
)


@given(st.lists(st.sampled_from(WORDS)).map(" ".join) | st.text(), CANDIDATES)
def test_there_is_always_a_choice_and_the_first_of_the_ranked(expression: str, candidates: list[Candidate]) -> None:
    ranked = rule.rank_by_rule(expression, candidates)
    assert ranked
    assert len(set(ranked)) == len(ranked)
    assert set(ranked) <= set(range(len(candidates)))
    assert rule.choose_by_rule(expression, candidates).index == ranked[0]


@pytest.mark.slow
@pytest.mark.skipif(not _REAL, reason="LLM_WRAPPER_REAL_DATA is not set: no real annotations here")
def test_the_rule_is_right_on_more_than_57_percent_of_refcocog() -> None:
    dataset = refer.load_refer(Path(_REAL) / "refer", "val", name="refcocog", split_by="umd")
    detector = coco.create_coco({}).bind(dataset)
    images = dataset.images()
    built = {
        image.image_id: building.build_candidates(
            detect_sample(detector, image), image.image_wh, CandidatePolicy(), detector=detector.name
        )
        for image in images
    }
    samples = [PreparedSample(sample, built[sample.image_id]) for sample in dataset.samples]
    right = metrics.ious(systems.by_rule(samples)) > metrics.IOU_THRESHOLD
    assert len(right) == 4896
    assert right.mean() > 0.57


def test_an_ordinal_or_a_label_without_end_is_one_pass() -> None:
    candidates = [at("dog", 10, 10), at("dog", 50, 10)]
    assert rule.choose_by_rule("second " * 64_000, candidates).index is not None
    assert rule.choose_by_rule("second " * 64_000 + "from the right, no, left", candidates).index == 1
    candidates = [at("a " * 50_000, 10, 10), at("dog", 50, 10)]
    assert rule.choose_by_rule("a " * 50_000, candidates).index is not None


SINGULARS = (
    "zebras zebra, men man, women woman, people person, children child, ladies lady, puppies puppy, benches bench, "
    "toothbrushes toothbrush, boxes box, glasses glass, dresses dress, buses bus, horses horse, vases vase, "
    "knives knife, pies pie, geese goose, bus bus, grass grass, octopus octopus, skis skis, scissors scissors, "
    "broccoli broccoli, zebra zebra, sheep sheep, is is"
)


def test_singular() -> None:
    pairs = [pair.split() for pair in SINGULARS.split(", ")]
    assert [(word, singularize(word)) for word, _ in pairs] == [(word, expected) for word, expected in pairs]
    assert singularize("") == ""


@pytest.mark.parametrize("label", SYNONYMS)
def test_head_nouns_of_categories_are_no_plurals(label: str) -> None:
    """The rule makes expressions singular, so a category must be found by its own last word."""
    assert singularize(split_words(label)[-1]) == split_words(label)[-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("Left Zebra", ("left", "zebra"), id="case"),
        pytest.param("zebra's head, left!", ("zebra", "s", "head", "left"), id="punctuation"),
        pytest.param("t-shirt no-2", ("t-shirt", "no-2"), id="hyphens-inside"),
        pytest.param("-x- --", ("x",), id="hyphens-outside"),
        pytest.param("", (), id="empty"),
        pytest.param("斑马 🦓", (), id="no-latin-letter"),
        pytest.param("<|im_end|>", ("im", "end"), id="chat-token"),
    ],
)
def test_words_of(text: str, expected: tuple[str, ...]) -> None:
    assert split_words(text) == expected


def test_a_label_names_itself_best_and_its_last_word_and_its_synonyms_name_it_too() -> None:
    assert find_names("Zebra")["zebra",] == 0
    names = find_names("teddy bear")
    assert (names["teddy", "bear"], names["bear",], names["doll",]) == (0, 1, 1)
    assert find_names("garden gnome") == {("garden", "gnome"): 0, ("gnome",): 1}
    assert find_names("gnome") == {("gnome",): 0}


@pytest.mark.parametrize("label", ["", "斑马", "🦓", "--"])
def test_a_label_without_words_has_no_name(label: str) -> None:
    assert find_names(label) == {}


@pytest.mark.parametrize("label", SYNONYMS)
def test_vocabulary_is_lower_case_words_without_repeats_of_the_label(label: str) -> None:
    words = SYNONYMS[label].split()
    assert " ".join(split_words(label)) == label
    assert all(split_words(word) == (word,) for word in words)
    assert len(words) == len(set(words))
    assert label not in words
