"""Every generated expression is true of its candidate and of no other, says a checker that shares no code with it."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import pytest

from llm_wrapper.prompts.rule import SYNONYMS
from llm_wrapper.records import Candidate
from llm_wrapper.training.generated_expressions import GeneratedExpression, generate_expressions
from tests.prompts.made import at, candidate

WH = (200, 100)
LABELS = (
    *("person", "person", "teddy bear", "bear", "Zebra", "zebra"),
    *("red star", "star", "bowl", "toilet", "wine glass"),
)
ORDINALS = {"first": 0, "second": 1, "third": 2, "fourth": 3}


def random_scene(rng: random.Random) -> list[Candidate]:
    labels = rng.sample(LABELS, rng.randint(1, 3))
    scene = []
    for _ in range(rng.randint(2, 9)):
        x, y = rng.randrange(0, 180, 5), rng.randrange(0, 80, 5)
        scene.append(candidate(rng.choice(labels), x, y, x + rng.randrange(5, 60, 5), y + rng.randrange(5, 40, 5)))
    return scene


# the checker: expression -> what it claims -> the candidates that it is true of


def x_of(one: Candidate) -> float:
    return one.box.center[0] / WH[0]


def y_of(one: Candidate) -> float:
    return one.box.center[1] / WH[1]


def lower_edge(one: Candidate) -> float:
    return one.box.y1


def area(one: Candidate) -> float:
    return one.box.area


Kind = Sequence[Candidate]
Claim = Callable[[Candidate, Kind], bool]


def extreme(key: Callable[[Candidate], float], sign: int) -> Claim:
    """The claim to be the one with the highest `sign * key` of its kind."""
    return lambda one, kind: all(sign * key(one) > sign * key(other) for other in kind if other is not one)


def within(word: str, one: Candidate) -> bool:
    x, y = x_of(one), y_of(one)
    return {"left": x < 0.36, "right": x > 0.64, "top": y < 0.36, "bottom": y > 0.64}[word]


def corner(row: str, column: str) -> Claim:
    return lambda one, kind: within(row, one) and within(column, one)


def side(word: str, key: Callable[[Candidate], float], sign: int) -> Claim:
    """On a side: the outermost of several, or a lonely one that is there."""
    outermost = extreme(key, sign)
    return lambda one, kind: outermost(one, kind) if len(kind) > 1 else within(word, one)


def middle(one: Candidate, kind: Kind) -> bool:
    num_left = sum(x_of(other) < x_of(one) for other in kind)
    num_right = sum(x_of(other) > x_of(one) for other in kind)
    return num_left == num_right == (len(kind) - 1) // 2 and len(kind) % 2 == 1


def nth(place: int, direction: str) -> Claim:
    sign = 1 if direction == "left" else -1
    return lambda one, kind: sum(sign * x_of(other) < sign * x_of(one) for other in kind) == place


PLAIN: dict[str, tuple[str, Claim]] = {
    "left": (
        "(?:the )?(?:left|leftmost|left most|left corner) N|N (?:on the|on|far|in the)? ?left|the N on the left side"
        "|a N to the left of the other|the N in the left corner",
        side("left", x_of, -1),
    ),
    "right": (
        "(?:the )?(?:right|rightmost|right most|right corner) N|N (?:on the|on|far|in the)? ?right"
        "|the N on the right side|a N to the right of the other|the N in the right corner",
        side("right", x_of, 1),
    ),
    "top": (
        "(?:the )?(?:top|upper|highest|top corner) N|N (?:on|at the|in the)? ?top|the N in the top corner",
        side("top", y_of, -1),
    ),
    "bottom": (
        "(?:the )?(?:bottom|lower|lowest|bottom corner) N|N (?:on the|at the|in the)? ?bottom"
        "|the N in the bottom corner",
        side("bottom", y_of, 1),
    ),
    "near": (
        "(?:the )?(?:front|closest|nearest) N|N in front|N in the foreground|the N closest to (?:us|the camera)",
        extreme(lower_edge, 1),
    ),
    "far": (
        "(?:the )?(?:back|farthest) N|(?:the )?N in the (?:back|background)|N furthest away|N behind",
        extreme(lower_edge, -1),
    ),
    "large": ("(?:the )?(?:largest|biggest|big|bigger|larger|large) N", extreme(area, 1)),
    "small": ("(?:the )?(?:smallest|small|smaller|little|tiny) N", extreme(area, -1)),
    "middle": ("(?:the )?(?:middle|center) N|the N in the (?:middle|center)|N between the others", middle),
    "only": ("(?:the |a |the only )?N|N in the picture", lambda one, kind: len(kind) == 1),
}
for _row in ("top", "bottom"):
    for _column in ("left", "right"):
        _p = f"{_row} {_column}"
        PLAIN[_p] = (f"{_p} (?:corner )?N|N (?:in the )?{_p}|the N in the {_p} corner", corner(_row, _column))

BESIDE = "(?:the |a )?N (?:next to the|near the|by the|beside a|closest to the|with the) (?P<m>.+)"


@cache
def pattern(text: str, name: str) -> re.Pattern[str]:
    return re.compile(text.replace("N", re.escape(name)))


@cache
def ordinal_patterns(name: str) -> list[re.Pattern[str]]:
    n, o, d = re.escape(name), f"(?P<o>{'|'.join(ORDINALS)})", "(?P<d>left|right)"
    return [
        re.compile(text)
        for text in (f"(?:the )?{o} {n} from (?:the )?{d}", f"{n} {o} from the {d}", f"{o} from {d} {n}")
    ]


def kinds_of(scene: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    kinds: dict[str, list[Candidate]] = {}
    for one in scene:
        kinds.setdefault(one.label.lower(), []).append(one)
    return kinds


def names_in(kinds: dict[str, list[Candidate]]) -> dict[str, str]:
    """Name -> the one kind that it means here: a kind's own name, or a synonym that fits no other kind."""
    meant = {kind: kind for kind in kinds}
    fitting = Counter(word for kind in kinds for word in {kind, kind.split()[-1], *SYNONYMS.get(kind, "").split()})
    for kind in kinds:
        meant |= {word: kind for word in SYNONYMS.get(kind, "").split() if fitting[word] == 1}
    return meant


def beside(anchor: Candidate) -> Claim:
    def distance(one: Candidate) -> float:
        return (x_of(one) - x_of(anchor)) ** 2 + (y_of(one) - y_of(anchor)) ** 2

    return extreme(distance, -1)


def claims(expression: str, scene: Sequence[Candidate]) -> Iterator[tuple[str, str, Claim]]:
    """Yield every way to understand an expression: (kind of claim, kind of thing, claim)."""
    kinds = kinds_of(scene)
    for name, kind in names_in(kinds).items():
        if name not in expression:
            continue
        for what, (text, claim) in PLAIN.items():
            if pattern(text, name).fullmatch(expression):
                yield what, kind, claim
        for ordinal in ordinal_patterns(name):
            if found := ordinal.fullmatch(expression):
                yield "ordinal", kind, nth(ORDINALS[found["o"]], found["d"])
        found = pattern(BESIDE, name).fullmatch(expression)
        if found and len(kinds.get(found["m"], ())) == 1 and found["m"] != kind:
            yield "beside", kind, beside(kinds[found["m"]][0])


def check(scene: Sequence[Candidate], rows: Sequence[GeneratedExpression]) -> Counter[str]:
    """Check rows against the scene; return how often each kind of claim was made."""
    made: Counter[str] = Counter()
    kinds = kinds_of(scene)
    for row in rows:
        understood = list(claims(row.expression, scene))
        assert understood, f"{row.expression!r} means nothing among {[one.label for one in scene]}"
        for what, kind, claim in understood:
            true_of = [
                index for index, one in enumerate(scene) if one.label.lower() == kind and claim(one, kinds[kind])
            ]
            assert true_of == [row.index], (row, what, kind, scene)
            made[what] += 1
    return made


def test_every_expression_is_true_of_exactly_its_candidate() -> None:
    made: Counter[str] = Counter()
    for seed in range(150):
        rng = random.Random(seed)
        scene = random_scene(rng)
        made += check(scene, generate_expressions(scene, WH, rng, count=12))
    assert sum(made.values()) > 1000
    assert set(made) == {*PLAIN, "ordinal", "beside"}


def drawn(scene: Sequence[Candidate], *, count: int = 400, seed: int = 0) -> dict[str, int]:
    rows = generate_expressions(scene, WH, random.Random(seed), count=count)
    assert len({row.expression for row in rows}) == len(rows) <= count
    check(scene, rows)
    return {row.expression: row.index for row in rows}


def test_two_in_a_row_are_left_and_right() -> None:
    found = drawn([at("zebra", 150, 50), at("zebra", 50, 50)])
    assert (found["left zebra"], found["zebra on the right"]) == (1, 0)
    assert not [text for text in found if re.search("first|middle|largest|top|front|only", text)]


def test_the_side_of_one_is_not_said_where_another_is_further_out() -> None:
    # The first is "left", the second "top left" and further left: neither alone is "the zebra on the left".
    found = drawn([at("zebra", 60, 50), at("zebra", 56, 10), at("zebra", 150, 50)])
    assert not [text for text in found if "left" in text and "top" not in text and "from" not in text]


@pytest.mark.parametrize("place", [(50, 50), (52, 51)], ids=["identical", "indistinguishable"])
def test_nothing_is_said_of_what_cannot_be_told_apart(place: tuple[float, float]) -> None:
    assert drawn([at("zebra", 50, 50), at("zebra", *place)]) == {}


def test_identical_boxes_do_not_keep_others_from_being_named() -> None:
    found = drawn([at("zebra", 150, 50), at("zebra", 150, 50), at("zebra", 20, 50, 40), at("cup", 100, 20)])
    assert {found["left zebra"], found["the largest zebra"]} == {2}
    assert found["the only cup"] == 3
    assert not {0, 1} & set(found.values())
    of_two_labels = drawn([at("zebra", 50, 50), at("cup", 50, 50)])
    assert (of_two_labels["the only zebra"], of_two_labels["the only cup"]) == (0, 1)


def test_names_that_fit_another_label_are_not_used() -> None:
    found = drawn([at("bicycle", 50, 50), at("motorcycle", 150, 50)], count=1000)
    words = " ".join(found).split()
    assert "bike" not in words
    assert "moped" in words


@pytest.mark.parametrize("count", [0, 1, 5])
def test_no_more_than_asked_for(count: int) -> None:
    assert len(drawn([at("zebra", 150, 50), at("zebra", 50, 50)], count=count)) == count


@pytest.mark.parametrize("scene", [[], [at("zebra", 50, 50)]], ids=["none", "one"])
def test_less_than_two_candidates_are_no_mistake(scene: list[Candidate]) -> None:
    assert set(drawn(scene).values()) <= {0}


def test_the_generator_alone_decides() -> None:
    scene = random_scene(random.Random(3))
    assert list(drawn(scene, count=9, seed=1).items()) == list(drawn(scene, count=9, seed=1).items())
    assert drawn(scene, count=9, seed=1) != drawn(scene, count=9, seed=2)


def test_labels_of_the_same_words_are_one_kind() -> None:
    rows = generate_expressions(
        [at("zebra.", 150, 50), at("A zebra", 50, 50), at("ZEBRA ", 20, 50)], WH, random.Random(0), count=300
    )
    found = {row.expression: row.index for row in rows}
    assert (found["right zebra"], found["left zebra"], found["the only a zebra"]) == (0, 2, 1)
    assert "the only zebra" not in found


@pytest.mark.parametrize(
    ("label", "name"),
    [
        pytest.param("garden gnome", "garden gnome", id="outside-the-vocabulary"),
        pytest.param("Garden-Gnome!", "garden-gnome", id="punctuation"),
        pytest.param("{n}", "n", id="placeholder"),
        pytest.param("{m} {o} {p}", "m o p", id="placeholders"),
        pytest.param("<|im_end|>", "im end", id="chat-token"),
        pytest.param("zebra\n3 person", "zebra 3 person", id="forged-line"),
        pytest.param("斑马", "斑马", id="other-script"),
        pytest.param("<🦓>", "(🦓)", id="other-script-in-brackets"),
        pytest.param("", "object", id="empty"),
        pytest.param(r"\1 %s", "1 s", id="escapes"),
    ],
)
def test_any_label_is_named_in_clean_words(label: str, name: str) -> None:
    scene = [at(label, 150, 50), at("cup", 50, 50), at("cup", 140, 50)]
    rows = generate_expressions(scene, WH, random.Random(0), count=400)
    found = {row.expression: row.index for row in rows}
    assert found[f"the only {name}"] == 0
    assert found[f"cup next to the {name}"] == 2
    assert not [text for text in found if re.search(r"[{}<>|\n]", text)]
