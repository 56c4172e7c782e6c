"""Results by slices, and recall of the detector's own order: where a system is weak, from stored predictions alone.

Within a family the slices are fixed, whatever the data, so that reports can be laid side by side; an empty one says so.
Slices of one family do not overlap, except the kinds of expression, of which one expression can have several.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from llm_wrapper import metrics
from llm_wrapper.boxes import BoolArray, FloatArray
from llm_wrapper.candidates import BuiltCandidates, detector_order
from llm_wrapper.metrics import IOU_THRESHOLD, RANKS, ious, recall_at
from llm_wrapper.prompts.rule import SYNONYMS, singularize, split_words
from llm_wrapper.records import Prediction
from llm_wrapper.statistics import Estimate, difference, estimate

UNKNOWN = "unknown"
"""The slice of samples for which a family's number is not known."""

_DISTRACTORS = {"none": 0, "1": 1, "2 to 3": 2, "4 or more": 4}
_WORDS = {"1 to 2 words": 1, "3 to 5 words": 3, "6 to 10 words": 6, "11 to 20 words": 11, "over 20 words": 21}
_SHARES = {"tiny (< 1 %)": 0.0, "small (< 5 %)": 0.01, "medium (< 20 %)": 0.05, "big": 0.2}
_CANDIDATES = {"none": 0, "1": 1, "2 to 4": 2, "5 to 9": 5, "10 or more": 10}


def masks(predictions: Sequence[Prediction]) -> dict[str, dict[str, BoolArray]]:
    """Return family -> slice -> whether each prediction belongs to it, shape (n,).

    Families: `kind` of expression, same-class `distractors`, `length` in words, `size` of the target as a share of the
    image, number of `candidates`. The bounds of size are those of the words in the prompt (`prompts.relations`); COCO's
    in pixels would call nearly every object that people refer to large. Each family also has `unknown`.
    """
    kinds = [kinds_of(prediction.expression) for prediction in predictions]
    # A box without candidates is somebody else's: how many it was chosen from is not known.
    numbers = [len(p.candidates) or (np.nan if p.box else 0) for p in predictions]
    return {
        "kind": {name: np.array([name in each for each in kinds], dtype=np.bool_) for name in (*KINDS, OTHER)},
        "distractors": _between(distractors(predictions), _DISTRACTORS),
        "length": _between([len(split_words(p.expression)) or np.nan for p in predictions], _WORDS),
        "size": _between(target_shares(predictions), _SHARES),
        "candidates": _between(numbers, _CANDIDATES),
    }


def by_slice(predictions: Sequence[Prediction], *, seed: int = 0) -> dict[str, dict[str, Estimate]]:
    """Return family -> slice -> P@1 (> 0.5) of one system over the samples with a target; an empty one has no value."""
    scored = [prediction for prediction in predictions if prediction.target is not None]
    right, images = ious(scored) > IOU_THRESHOLD, metrics.codes(prediction.image_id for prediction in scored)
    return {
        family: {name: estimate(right[mask], images[mask], seed=seed) for name, mask in slices.items()}
        for family, slices in masks(scored).items()
    }


def differences_by_slice(
    pairs: Sequence[tuple[Prediction, Prediction]], *, seed: int = 0
) -> dict[str, dict[str, Estimate]]:
    """Return family -> slice -> P@1 of the first system minus that of the second, over pairs of `pair_predictions`.

    The slices are those of the first, whose candidates may differ from the second's.
    """
    scored = [pair for pair in pairs if pair[0].target is not None]
    a, b = (ious([pair[place] for pair in scored]) > IOU_THRESHOLD for place in (0, 1))
    images = metrics.codes(first.image_id for first, _ in scored)
    return {
        family: {name: difference(a[mask], b[mask], images[mask], seed=seed) for name, mask in slices.items()}
        for family, slices in masks([first for first, _ in scored]).items()
    }


def weakest_slices(
    predictions: Sequence[Prediction], *, fewest: int = 50, most: int = 3
) -> list[tuple[str, str, Estimate]]:
    """Return family, slice and P@1 of the slices with the lowest P@1, lowest first.

    A slice of fewer than `fewest` expressions is not called weak: its P@1 is mostly chance.
    """
    found = [
        (family, name, share)
        for family, shares in by_slice(predictions).items()
        for name, share in shares.items()
        if share.value is not None and share.n >= fewest and name != UNKNOWN
    ]
    return sorted(found, key=lambda each: each[2].value or 0.0)[:most]


def distractors(predictions: Sequence[Prediction]) -> FloatArray:
    """Count the candidates that share the target's label but are another object, shape (n,).

    The target's label is that of the best candidate, where it has IoU > 0.5; a distractor has the same label, without
    regard to case, and IoU <= 0.5 with the target. NaN where no candidate is right: then the label is not known.
    """
    table = metrics.to_columns(predictions)
    found = metrics.candidate_overlaps(table)
    best = metrics.best_overlaps(table, found)
    rows = table.owners
    place = metrics.first_right(table, (found == best[rows]) & (found > IOU_THRESHOLD))
    labels = metrics.codes(candidate.label.strip().lower() for each in predictions for candidate in each.candidates)
    own = np.full(len(predictions), -1)
    known = place >= 0
    own[known] = labels[(table.starts + place)[known]]
    others = (labels == own[rows]) & (found <= IOU_THRESHOLD)
    counts = np.bincount(rows[others], minlength=len(predictions))
    return np.where(known, counts, np.nan)


def target_shares(predictions: Sequence[Prediction]) -> FloatArray:
    """Return the target's share of the image's area, shape (n,); NaN where one of the two is not known."""
    return np.array(
        [
            np.nan if p.target is None or p.image_wh is None else p.target.area / (p.image_wh[0] * p.image_wh[1])
            for p in predictions
        ],
        dtype=np.float64,
    )


def _between(values: npt.ArrayLike, bounds: dict[str, int] | dict[str, float]) -> dict[str, BoolArray]:
    """Divide values by slice -> its lower bound; each slice ends where the next begins."""
    numbers = np.asarray(values, dtype=np.float64)
    ends = [*list(bounds.values())[1:], np.inf]
    slices = {name: (numbers >= low) & (numbers < high) for (name, low), high in zip(bounds.items(), ends, strict=True)}
    return {**slices, UNKNOWN: np.isnan(numbers)}


def recall(
    predictions: Sequence[Prediction], *, ranks: Sequence[int] = RANKS, seed: int = 0
) -> dict[int, Estimate] | None:
    """Return rank k -> share of samples for which one of the detector's first k candidates has IoU > 0.5.

    Its first is its own choice, as in `headroom`. `None` where the detector's order was not stored with the
    candidates, since the shown order would be an invented answer, and where no candidate is known.
    """
    orders = []
    for prediction in predictions:
        if prediction.candidates and prediction.origins is None:
            return None
        orders.append(detector_order(BuiltCandidates(prediction.candidates, prediction.origins or (), {})))
    table = metrics.to_columns(predictions)
    if not metrics.knows_candidates(table):
        return None
    places = [start + place for start, order in zip(table.starts, orders, strict=True) for place in order]
    ordered = replace(table, candidates=table.candidates[np.array(places, dtype=np.intp)])
    return recall_at(ordered, ranks=ranks, seed=seed)


# Kinds of expression: rules over words, no parser, so that they need no model and give the same everywhere. How often
# they agree with a human reader is tested on 200 real expressions labelled by hand, half of them drawn after the rules
# were done; the labelling guide is beside the labels in the tests.

KINDS = (
    "left_right", "ordinal", "position", "size", "colour", "relation", "negation", "action", "plain_class"
)  # fmt: skip
"""`position` is any place in the picture or its depth but left and right; `plain_class` is a name and nothing else."""

OTHER = "other"
"""An expression of none of the kinds: "the man with glasses", "a wooden chair"."""


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_COLOURS = _set(
    "red green blue yellow white black brown gray grey pink purple violet tan beige gold golden silver teal turquoise "
    "maroon navy khaki burgundy aqua blk blond blonde brunette dark redhead reddish colorful colourful multicolored "
    "multicoloured"
)
_NUMBERS = "one|two|three|four|five|six|seven|eight|nine|ten|[0-9]+"
_OF_A_THING = r"(?! of(?!(?: (?:the|this|your))? (?:picture|pic|photo|image|screen|frame|shot|view)\b))"
_PREPOSITIONS = "on|in|at|with|from|to|by|of|near|next|that|is|and|or|which|who|behind|under|closest|between|cut"

_PATTERNS = {
    "left_right": re.compile(
        r"\b(?:(?:on|far|top|bottom|lower|upper|front|back|middle)?(?:left|right)(?:most|est|side|ish|hand)?|lft)\b"
        r"(?! (?:arm|foot|leg|ear|eye|shoulder|knee|paw|wrist)s?\b)(?! hands?\b(?! (?:side|corner|pic|picture|image)))"
        r"(?:(?<=on right)|(?<=on the right)|(?<=to the right)|(?<=left)|"
        r"(?! (?:behind|next|above|below|beside|in front|under|at|there|before|after|now|near|up)\b))"
    ),
    "ordinal": re.compile(
        r"\b(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last|[0-9]+ ?(?:st|nd|rd|th))\b"
        rf"|\b(?:{_NUMBERS}) (?:over )?from\b"
    ),
    "size": re.compile(
        r"\b(?:(?:small|tall|short|long|thick|narrow)(?:er|est)?|(?:larg|wid|littl|hug)e(?:r|st)?|(?:big|fat|thin)"
        r"(?:[gtn]er|[gtn]est)?|(?:tin|skinn|chubb)(?:y|ier|iest)|giant|mini|massive)\b"
        r"(?! (?:sleeves?|sleeved|hair|haired|pants|dress|shirt|beard|blonde?|brown|black|dark|curly)\b)"
    ),
    "colour": re.compile(
        rf"\b(?:{'|'.join(sorted(_COLOURS))})(?:ish)?\b"
        # Without one of these around it, an orange is a fruit.
        rf"|\b(?:in|and|wearing|bright|dark) orange\b|\borange (?!(?:{_PREPOSITIONS}|left|right|top|bottom)\b)[a-z]"
    ),
    "negation": re.compile(
        r"\b(?:no|not|without|except|excluding|non|nothing|nobody|none|never|neither|nor|cannot|other than|"
        r"(?:all|any|anything|everything) but|(?:is|does|do|did|are|was|were|has|have|ca|wo)n ?'? ?t)\b"
    ),
    "position": re.compile(
        rf"(?<!tank )(?<!on )(?<!{' )(?<!'.join(sorted(_COLOURS))} )\btop\b{_OF_A_THING}"
        rf"|\b(?:on|at) (?:the )?(?:very )?top\b{_OF_A_THING}"
        rf"|\b(?:upper|topmost|bottom|lower|middle|center|centre|mid|central)\b{_OF_A_THING}"
        r"|\b(?:background|foreground|rear|corner|highest|lowest|farthest|furthest|frontmost)\b(?! (?:left|right)\b)"
        rf"|\bfront\b(?! (?:leg|paw|wheel|feet|foot|light)s?\b){_OF_A_THING}"
        rf"|(?<!his )(?<!her )(?<!its )(?<!their )\bback\b(?! (?:to|turned|pack|legs?|facing)\b){_OF_A_THING}"
        r"|\bfar\b(?! (?:left|right|side)\b)|\b(?:behind|closest|nearest|closer|nearer)$"
        r"|\b(?:close|closer|closest|near|nearer|nearest) (?:to )?(?:the )?(?:camera|us|viewer|you|me|front|screen)\b"
    ),
}  # fmt: skip

_NO_ACTION = _set(
    "wearing building thing something anything everything nothing during parking living dining dinning wing swing ring "
    "string king icing frosting topping stuffing clothing ceiling railing painting drawing writing lettering wedding "
    "awning evening morning spring including containing missing having boeing balding matching marking shading "
    "duckling dressing seating lighting bedding sibling showing pudding bring sling"
)
_ACTIONS = _set(
    "sit sits sat stand stands stood hold holds held looks walks ride rides plays eat eats throw throws reaches rests "
    "lies lays jumps runs drives carries swings hit hits catches kicks drinks feeds lean leans leaned bent kneel "
    "kneels squat squats seated parked crouched perched raised crossed touches points talks smiles watches pulls pushes"
)
"""Verb forms without "-ing"; a bare form that is also a noun (a drink, a watch) is not in it."""

_TIES = _set(
    "beside near nearest by behind between under underneath beneath below above over against around among amongst "
    "inside into across alongside on in at with within before atop amid through along outside containing onto"
)
_TIES_AFTER = {
    "to": _set("next close closer closest nearest left right adjacent nearer attached tied"),
    "of": _set("left right side middle center centre edge end top inside outside ahead"),
}
"""Words that tie only behind certain others: "next to the bus", "left of the dog"."""

_AIMS = _set("look looks looking stares staring points pointing")
"""Looking at a thing is an action, not a place."""

_STOPS = _TIES | _set(
    "and or that who is are was has to of from up down out off while as it its them him himself herself itself this no "
    "facing turned open can"
)
_ARTICLES = _set("a an the his her their your my another other two three some all both one each which")
_NO_THING = _set(
    # of the picture
    "left right far side middle center centre front back background foreground top bottom upper lower corner picture "
    "pic photo image camera us you me viewer screen frame view row end edge distance focus air very way mid rear "
    "process full line motion color colour whom what where there here shade sun half action order lefthand "
    # worn
    "shirt tshirt t-shirt jacket coat hat cap dress suit pants jeans shorts short skirt sweater hoodie vest uniform "
    "glasses glass sunglasses goggles helmet tie scarf shoe boot apron outfit clothes clothing gear sweatshirt blouse "
    "tank robe glove sock watch bracelet necklace ring earring headband bandana visor jersey hood costume wetsuit tee "
    "sleeve plaid stripe striped denim khakis overalls polo tux tuxedo beanie "
    # of the body
    "hair head face hand arm leg foot feet eye ear nose mouth beard mustache neck tail smile body horn trunk tusk "
    "mane wing fur spot shoulder knee lap finger belly chest skin ponytail braid pigtail bangs tongue teeth hip bun "
    # marks and parts of things
    "number letter logo writing word handle lid pattern design print name label tag sticker cover trim frosting icing "
    "light dot"
)
_NAMES = _set(" ".join(singularize(word) for name, more in SYNONYMS.items() for word in split_words(f"{name} {more}")))


@lru_cache(maxsize=1 << 17)
def kinds_of(expression: str) -> frozenset[str]:
    """Return the kinds of an expression, never none: `OTHER` where no rule fits."""
    words = split_words(expression.replace("-", " "))
    text = " ".join(re.findall(r"[a-z0-9']+", expression.lower()))
    found = {kind for kind, pattern in _PATTERNS.items() if pattern.search(text)}
    if any(word in _ACTIONS or (word.endswith("ing") and word not in _NO_ACTION) for word in words):
        found.add("action")
    if any(_is_tie(words, place) and _names_thing(words, place + 1) for place in range(len(words))):
        found.add("relation")
    content = [word for word in words if word not in _ARTICLES]
    if not found and content and (len(content) == 1 or all(singularize(word) in _NAMES for word in content)):
        found.add("plain_class")
    return frozenset(found or {OTHER})


def _is_tie(words: Sequence[str], place: int) -> bool:
    word, before = words[place], words[place - 1] if place else ""
    if word in _TIES:
        return not (word == "at" and before in _AIMS)
    return before in _TIES_AFTER.get(word, ()) or tuple(words[max(place - 2, 0) : place + 1]) == ("in", "front", "of")


def _names_thing(words: Sequence[str], start: int) -> bool:
    """Tell whether the noun group from a word on is a thing, not something worn, a part, or a place in the picture."""
    group: list[str] = []
    for place in range(start, len(words)):  # the rest is not copied: an expression may have 100,000 prepositions
        word = words[place]
        if word in _STOPS or (word.endswith("ing") and word not in _NO_ACTION):
            break
        if word not in _ARTICLES:
            group.append(word)
        elif group:
            break
    named = [word for word in group if word not in _COLOURS and word != "orange"]
    return bool(named) and not any(word in _NO_THING or singularize(word) in _NO_THING for word in named)
