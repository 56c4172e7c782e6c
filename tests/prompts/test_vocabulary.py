"""Names of things: what people say for a category."""

from __future__ import annotations

import pytest

from llm_wrapper.prompts.vocabulary import SYNONYMS, names_of, singular, words_of


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("zebras", "zebra"),
        ("men", "man"),
        ("women", "woman"),
        ("people", "person"),
        ("children", "child"),
        ("ladies", "lady"),
        ("puppies", "puppy"),
        ("benches", "bench"),
        ("toothbrushes", "toothbrush"),
        ("boxes", "box"),
        ("glasses", "glass"),
        ("dresses", "dress"),
        ("buses", "bus"),
        ("horses", "horse"),
        ("vases", "vase"),
        ("knives", "knife"),
        ("pies", "pie"),
        ("geese", "goose"),
        ("bus", "bus"),
        ("grass", "grass"),
        ("octopus", "octopus"),
        ("skis", "skis"),
        ("scissors", "scissors"),
        ("broccoli", "broccoli"),
        ("zebra", "zebra"),
        ("sheep", "sheep"),
        ("is", "is"),
        ("", ""),
    ],
)
def test_singular(word: str, expected: str) -> None:
    assert singular(word) == expected


@pytest.mark.parametrize("label", SYNONYMS)
def test_head_nouns_of_categories_are_no_plurals(label: str) -> None:
    """The rule makes expressions singular, so a category must be found by its own last word."""
    assert singular(words_of(label)[-1]) == words_of(label)[-1]


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
    assert words_of(text) == expected


def test_a_label_names_itself_best() -> None:
    names = names_of("Zebra")
    assert names["zebra",] == 0
    assert set(names.values()) <= {0, 1}


def test_the_last_word_and_the_synonyms_name_a_label_too() -> None:
    names = names_of("teddy bear")
    assert (names["teddy", "bear"], names["bear",], names["doll",]) == (0, 1, 1)


def test_an_unknown_label_stands_for_itself() -> None:
    assert names_of("garden gnome") == {("garden", "gnome"): 0, ("gnome",): 1}
    assert names_of("gnome") == {("gnome",): 0}


@pytest.mark.parametrize("label", ["", "斑马", "🦓", "--"])
def test_a_label_without_words_has_no_name(label: str) -> None:
    assert names_of(label) == {}


@pytest.mark.parametrize("label", SYNONYMS)
def test_vocabulary_is_lower_case_words_without_repeats_of_the_label(label: str) -> None:
    words = SYNONYMS[label].split()
    assert " ".join(words_of(label)) == label
    assert all(words_of(word) == (word,) for word in words)
    assert len(words) == len(set(words))
    assert label not in words
