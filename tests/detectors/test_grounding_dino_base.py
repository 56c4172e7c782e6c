from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import pytest

from llm_wrapper.detectors.grounding_dino_base import (
    RawAnswer,
    ReadText,
    Scoring,
    Word,
    decode_answer,
    fit_expression,
    read_text,
    score_answer,
)
from llm_wrapper.detectors.noun_groups import NounGroups, Span
from llm_wrapper.errors import ModelError
from llm_wrapper.records import Detection, Detections
from tests.detectors import tiny_grounding_dino as tiny

# The text


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        pytest.param("The Man", "the man", id="upper-case"),
        pytest.param(" a\tman\n\nleft ", "a man left", id="white-space"),
        pytest.param("dog. left. U.S. 3.5", "dog left u s 3 5", id="periods"),
        pytest.param("which dog?", "which dog", id="question-mark"),
        pytest.param("##ing dog", "##ing dog", id="number-signs"),
        pytest.param("[SEP] dog [PAD]", "[sep] dog [pad]", id="special-tokens"),
        pytest.param("dog \ud83d left", "dog left", id="half-a-surrogate-pair"),
        pytest.param("...?!", "!", id="punctuation"),
        pytest.param("", "", id="empty"),
        pytest.param("Un CAFÉ", "un café", id="accents"),
        pytest.param("İstanbul", "i̇stanbul", id="longer-in-lower-case"),
    ],
)
def test_text_as_the_model_reads_it(expression: str, text: str) -> None:
    assert fit_expression(expression, tiny.processor().tokenizer, 256) == (text, False)


@pytest.mark.parametrize(
    "expression", ["dog " * 5000, "giraffe " * 5000, "犬" * 5000], ids=["words", "pieces", "signs"]
)
def test_long_texts_lose_whole_words_at_the_end(expression: str) -> None:
    tokenizer = tiny.processor().tokenizer
    text, is_cut = fit_expression(expression, tokenizer, 256)
    num_tokens = len(tokenizer(f"{text}.")["input_ids"])
    assert is_cut
    assert 253 < num_tokens <= 256
    assert set(text.split()) <= {"dog", "giraffe", text}
    assert fit_expression(text, tokenizer, 256) == (text, False)


@pytest.mark.parametrize(
    "text",
    ["un café noir à gauche", "giraffe's hat, two-giraffe", "左犬 dog", "photograph of a photograph", "i̇ dog ﬁ"],
)
def test_words_are_found_by_their_characters(text: str) -> None:
    tokens = tiny.processor().tokenizer(f"{text}.", return_offsets_mapping=True)
    read = read_text(text, tokens["offset_mapping"], tokens.word_ids())
    places = [place for word in read.words for place in word.places]
    assert places == list(range(1, len(tokens["input_ids"]) - 2))
    said = "".join(text[word.start : word.end] for word in read.words)
    assert said == "".join(each for each in text if each != " " and not unicodedata.combining(each))


# Scores: "man left of the dog" as [CLS] man left of the dog . [SEP]

_ENDS = [(0, 3), (4, 8), (9, 11), (12, 15), (16, 19)]
_TEXT = ReadText("man left of the dog", tuple(Word(*ends, (place,)) for place, ends in enumerate(_ENDS, start=1)))
_MAN, _THE_DOG = Span(0, 3), Span(12, 19)
_GROUPS = NounGroups(_MAN, (_THE_DOG,))
_PROBABILITIES = np.array(
    [
        # cls  man   left  of    the   dog   .     sep
        [0.01, 0.40, 0.10, 0.01, 0.06, 0.02, 0.01, 0.01],  # a man
        [0.01, 0.16, 0.04, 0.01, 0.50, 0.30, 0.01, 0.01],  # a dog, a little like a man
        [0.01, 0.70, 0.04, 0.01, 0.02, 0.01, 0.01, 0.01],  # a better man
        [0.01, 0.03, 0.04, 0.01, 0.02, 0.01, 0.01, 0.25],  # nothing but the last token
        [0.01, 0.15, 0.04, 0.01, 0.20, 0.90, 0.01, 0.01],  # at the thresholds, not above
    ]
)


def _answer(probabilities: Any = _PROBABILITIES) -> RawAnswer:
    boxes = np.array([[10 * i, 0, 10 * i + 9, 20] for i in range(len(probabilities))], dtype=float)
    return RawAnswer(np.asarray(probabilities, dtype=float), boxes)


def _shown(found: Detections) -> list[tuple[str, int, str, float | None]]:
    """(source, number of the box, label, score) of each item."""
    return [(item.source, round(item.box.x0 / 10), item.label, item.score) for item in found.items]


def test_mode_gd_scores_by_the_best_token() -> None:
    assert _shown(score_answer(_answer(), _TEXT, None, Scoring())) == [
        ("gd", 4, "man the dog", 0.9),
        ("gd", 2, "man", 0.7),
        ("gd", 1, "man the dog", 0.5),
        ("gd", 0, "man left the", 0.4),
        ("gd", 3, "left", 0.25),
    ]
    assert [box for _, box, _, _ in _shown(score_answer(_answer(), _TEXT, None, Scoring(box_threshold=0.5)))] == [4, 2]


def test_mode_gdrec_scores_by_the_subject() -> None:
    assert _shown(score_answer(_answer(), _TEXT, _GROUPS, Scoring(mode="gdrec"))) == [
        ("subject", 2, "man", 0.7),
        ("subject", 0, "man", 0.4),
        ("subject", 1, "man", 0.16),
        ("noun_group", 1, "the dog", 0.3),
        ("sentence", 4, "man the dog", 0.9),
        ("sentence", 2, "man", 0.7),
        ("sentence", 1, "man the dog", 0.5),
        ("sentence", 0, "man left the", 0.4),
    ]


@pytest.mark.parametrize(
    ("reduction", "scores"),
    [("min", {1: 0.3}), ("max", {1: 0.5, 4: 0.9}), ("mean", {1: 0.4, 4: 0.55})],
    ids=["min", "max", "mean"],
)
def test_reductions(reduction: Any, scores: dict[int, float]) -> None:
    found = score_answer(_answer(), _TEXT, _GROUPS, Scoring(mode="gdrec", reduction=reduction))
    assert {box: score for source, box, _, score in _shown(found) if source == "noun_group"} == pytest.approx(scores)


def test_without_a_subject_the_sentence_stands_in() -> None:
    groups = NounGroups(None, (_THE_DOG,))
    found = _shown(score_answer(_answer(), _TEXT, groups, Scoring(mode="gdrec", subject_threshold=0.3)))
    assert found == [
        ("subject", 4, "man the dog", 0.9),
        ("subject", 2, "man", 0.7),
        ("subject", 1, "man the dog", 0.5),
        ("subject", 0, "man left the", 0.4),
        ("noun_group", 1, "the dog", 0.3),
    ]


def test_several_groups_stand_in_the_order_of_their_scores() -> None:
    groups = NounGroups(None, (_THE_DOG, _MAN))
    found = _shown(score_answer(_answer(), _TEXT, groups, Scoring(mode="gdrec")))
    assert [row[:3] for row in found if row[0] == "noun_group"] == [
        ("noun_group", 2, "man"),
        ("noun_group", 0, "man"),
        ("noun_group", 1, "the dog"),
    ]


def test_a_word_in_pieces_counts_whole() -> None:
    text = ReadText("giraffe left", (Word(0, 7, (1, 2, 3)), Word(8, 12, (4,))))
    answer = _answer([[0.0, 0.5, 0.6, 0.2, 0.0, 0.0, 0.0]])
    groups = NounGroups(Span(0, 7), ())
    ((_, _, label, score), *_) = _shown(score_answer(answer, text, groups, Scoring(mode="gdrec")))
    assert (label, score) == ("giraffe", 0.2)
    ((_, _, label, score),) = _shown(score_answer(answer, text, None, Scoring(text_threshold=0.55)))
    assert (label, score) == ("giraffe", 0.6)


@pytest.mark.parametrize("groups", [None, _GROUPS, NounGroups(None, ())], ids=["gd", "gdrec", "no-subject"])
def test_thresholds_that_nothing_reaches(groups: NounGroups | None) -> None:
    names = ("box", "sentence", "subject", "noun_group")
    most = {f"{name}_threshold": 0.99 for name in names if (name == "box") == (groups is None)}
    scoring = Scoring(mode="gd" if groups is None else "gdrec", **most)
    assert score_answer(_answer(), _TEXT, groups, scoring) == Detections(())


def test_numbers_become_probabilities_and_pixels() -> None:
    logits = np.array([[0.0, np.log(3.0), -np.inf]], dtype=np.float32)
    answer = decode_answer(logits, np.array([[0.5, 0.25, 0.2, 0.5]], dtype=np.float32), (640, 480))
    assert answer.probabilities.tolist() == [pytest.approx([0.5, 0.75, 0.0])]
    assert answer.boxes.tolist() == [pytest.approx([256.0, 0.0, 384.0, 240.0], abs=1e-4)]


def test_boxes_that_are_none_are_counted_and_others_kept_as_they_are() -> None:
    boxes = np.array([[0.5, 0.5, -0.2, 0.2], [0.5, 0.5, 0.0, 0.2], [np.inf, 0.5, 0.2, 0.2], [0.95, 0.1, 0.4, 0.6]])
    answer = decode_answer(np.full((4, 8), 1.0), boxes, (100, 100))
    found = score_answer(answer, _TEXT, None, Scoring())
    assert found.num_dropped == 3
    (item,) = found.items
    assert item.box.xyxy == pytest.approx((75.0, -20.0, 115.0, 40.0))


def test_hundreds_of_boxes() -> None:
    probabilities = np.random.default_rng(0).uniform(0.3, 1.0, (900, 8))
    found = score_answer(_answer(probabilities), _TEXT, _GROUPS, Scoring(mode="gdrec"))
    by_source: dict[str, list[Detection]] = {}
    for item in found.items:
        by_source.setdefault(item.source, []).append(item)
    assert {source: len(items) for source, items in by_source.items()} == dict.fromkeys(
        ("subject", "noun_group", "sentence"), 900
    )
    for items in by_source.values():
        scores = [item.score or 0.0 for item in items]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("groups", [None, NounGroups(None, ())], ids=["gd", "gdrec"])
def test_a_text_without_a_word_finds_nothing(groups: NounGroups | None) -> None:
    scoring = Scoring(mode="gd" if groups is None else "gdrec")
    assert score_answer(_answer(), ReadText("\x00", ()), groups, scoring) == Detections(())


@pytest.mark.parametrize("where", ["logits", "boxes"])
def test_not_a_number_is_refused(where: str) -> None:
    logits, boxes = np.zeros((2, 8)), np.full((2, 4), 0.5)
    (logits if where == "logits" else boxes)[1, 2] = np.nan
    with pytest.raises(ModelError, match="not a number"):
        decode_answer(logits, boxes, (10, 10))
