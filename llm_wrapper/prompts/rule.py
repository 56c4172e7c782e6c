"""Choose without a model: by the names in the expression, direction and size words, else the largest box.

The baseline that every LLM must beat, a fast chooser for tests (`LLM=rule`), and the ranking that the prompt format
`hints` shows to an LLM that is too small to read a long list. The synonyms of COCO categories were written for this
project by reading category names and training expressions; generated expressions use them too. A label that is not
listed has no synonyms, so detectors with an open vocabulary work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from llm_wrapper.boxes import FloatArray, array
from llm_wrapper.prompts.text import MAX_LABEL_WORDS
from llm_wrapper.records import Candidate, Choice

SYNONYMS: dict[str, str] = {
    "person": "man woman guy girl boy lady kid child player baby people men women dude gentleman male female batter "
    "catcher umpire skier surfer skateboarder rider toddler bride groom chef cook waiter referee ref pitcher hitter "
    "snowboarder someone human adult teenager father mother mom dad son daughter couple children kids ladies guys "
    "boys girls passenger pedestrian worker soldier officer policeman cop biker cyclist crowd spectator goalie "
    "himself herself him her he she blonde brunette jockey driver tennis-player skater hand arm",
    "bicycle": "bike cycle",
    "car": "vehicle sedan taxi cab suv automobile van minivan jeep",
    "motorcycle": "motorbike bike cycle scooter moped motor",
    "airplane": "plane jet aircraft",
    "bus": "busses coach trolley",
    "train": "locomotive engine tram subway caboose",
    "truck": "lorry pickup van semi trailer firetruck",
    "boat": "ship canoe kayak sailboat ferry yacht raft",
    "traffic light": "stoplight signal light",
    "fire hydrant": "hydrant",
    "stop sign": "sign",
    "parking meter": "meter",
    "bench": "seat",
    "bird": "duck goose pigeon seagull parrot swan pelican crow owl flamingo chicken gull geese heron ostrich",
    "cat": "kitten kitty",
    "dog": "puppy pup poodle hound",
    "horse": "pony stallion mare colt",
    "sheep": "lamb ram goat ewe",
    "cow": "bull calf cattle ox steer bovine",
    "elephant": "calf",
    "bear": "cub grizzly panda",
    "zebra": "zebras",
    "giraffe": "giraffes",
    "backpack": "bag pack knapsack",
    "umbrella": "parasol",
    "handbag": "purse bag",
    "tie": "necktie bowtie",
    "suitcase": "luggage bag case trunk",
    "frisbee": "disc disk",
    "skis": "ski",
    "snowboard": "board",
    "sports ball": "ball baseball football",
    "kite": "parasail",
    "baseball bat": "bat",
    "baseball glove": "glove mitt",
    "skateboard": "board",
    "surfboard": "board",
    "tennis racket": "racket racquet",
    "bottle": "container jar bottles",
    "wine glass": "glass wineglass goblet",
    "cup": "mug glass drink coffee beverage",
    "fork": "forks",
    "knife": "blade",
    "spoon": "ladle",
    "bowl": "dish plate container soup salad",
    "banana": "bananas fruit",
    "apple": "fruit",
    "sandwich": "sub burger toast bread wrap panini hamburger",
    "orange": "fruit tangerine",
    "broccoli": "vegetable veggie broc greens",
    "carrot": "vegetable carrots",
    "hot dog": "hotdog sausage bun frank",
    "pizza": "slice pie",
    "donut": "doughnut pastry bagel",
    "cake": "dessert cupcake pastry slice pie",
    "chair": "seat armchair recliner stool",
    "couch": "sofa loveseat seat futon",
    "potted plant": "plant pot flower flowers tree vase",
    "bed": "mattress bunk cot",
    "dining table": "table desk counter",
    "toilet": "commode urinal bowl",
    "tv": "television monitor screen",
    "laptop": "computer notebook screen",
    "mouse": "computer-mouse",
    "remote": "controller wii wiimote",
    "keyboard": "keys",
    "cell phone": "phone cellphone smartphone mobile iphone",
    "microwave": "oven",
    "oven": "stove range",
    "toaster": "oven",
    "sink": "basin faucet",
    "refrigerator": "fridge freezer",
    "book": "magazine novel books notebook",
    "clock": "watch timepiece",
    "vase": "pot jar urn",
    "scissors": "shears",
    "teddy bear": "bear teddy doll toy stuffed",
    "hair drier": "dryer blowdryer hairdryer",
    "toothbrush": "brush",
}
"""COCO category -> other words for it, best first."""

_IRREGULAR = {"people": "person", "men": "man", "women": "woman", "children": "child", "ladies": "lady",
              "knives": "knife", "skis": "skis", "scissors": "scissors", "bus": "bus", "glasses": "glass",
              "broccoli": "broccoli", "geese": "goose"}  # fmt: skip


def singularize(word: str) -> str:
    """Return the singular of an English noun by a few rules; words that are no plural come back unchanged."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith(("ches", "shes", "xes", "sses", "buses")):
        return word[:-2]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us")) and len(word) > 3 else word


@cache
def split_words(text: str) -> tuple[str, ...]:
    """Split a text to lower-case words (letters, digits, hyphens)."""
    return tuple(re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", text.lower()))


@cache
def find_names(label: str) -> dict[tuple[str, ...], int]:
    """Return the word sequences that name a label, each with its penalty: 0 the label itself, 1 a synonym."""
    own = split_words(label)
    names = {own: 0} if own else {}
    if len(own) > 1:
        names.setdefault(own[-1:], 1)
    for synonym in SYNONYMS.get(" ".join(own), "").split():
        names.setdefault((synonym,), 1)
    return names


_Key = Callable[[FloatArray], FloatArray]


def _area(boxes: FloatArray) -> FloatArray:
    area: FloatArray = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area


_DIRECTIONS: tuple[tuple[str, _Key], ...] = (
    (r"\b(left|leftmost|left-most)\b(?! (hand|arm|foot|leg))", lambda box: (box[:, 0] + box[:, 2]) / 2),
    (r"\b(right|rightmost|right-most)\b(?! (hand|arm|foot|leg))", lambda box: -(box[:, 0] + box[:, 2]) / 2),
    (r"\b(top|upper|highest|above)\b", lambda box: (box[:, 1] + box[:, 3]) / 2),
    (r"\b(bottom|lower|lowest|below)\b", lambda box: -(box[:, 1] + box[:, 3]) / 2),
    (r"\b(smallest|small|smaller|little|tiny|tiniest|baby|far|farthest|back|background|behind)\b", _area),
    (r"\b(front|closest|nearest|close|closer|foreground)\b", lambda box: -box[:, 3]),
)  # fmt: skip
"""Pattern -> key of shape (n,); the candidate with the smallest key wins. Tried in this order."""

_PROMINENT = 0.15
"""People speak of prominent objects: at least this share of the largest area among those named."""

_SMALL = re.compile(r"\b(small|little|tiny|baby|far|back|behind)")
_MIDDLE = re.compile(r"\b(middle|center|centre|between)\b")
_NUMBER = {"second": 2, "2nd": 2, "third": 3, "3rd": 3, "fourth": 4, "4th": 4}
_ORDINAL = re.compile(rf"\b({'|'.join(_NUMBER)})\b")
_SIDE = re.compile(r"\b(left|right)\b")


def _mentions(label: str, words: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return (start, end, penalty) of every mention of a label, `end` exclusive."""
    return [
        (start, start + len(name), penalty)
        for name, penalty in find_names(label.lower()).items()
        if len(name) <= MAX_LABEL_WORDS
        for start in range(len(words) - len(name) + 1)
        if tuple(words[start : start + len(name)]) == name
    ]


def _find_named(candidates: Sequence[Candidate], expression: str) -> list[int]:
    """Return the candidates whose label heads the first noun group that names any; all where none is named."""
    words = [singularize(word) for word in split_words(expression)]
    found = {label: _mentions(label, words) for label in {candidate.label for candidate in candidates}}
    mentions = sorted(mention for rows in found.values() for mention in rows)
    if not mentions:
        return list(range(len(candidates)))
    end = mentions[0][1]
    for start, stop, _ in mentions:  # "baseball player" is a player: the last noun of a group is its head
        end = max(end, stop) if start <= end else end
    penalties = {label: min((p for _, stop, p in rows if stop == end), default=None) for label, rows in found.items()}
    best = min(penalty for penalty in penalties.values() if penalty is not None)
    return [index for index, candidate in enumerate(candidates) if penalties[candidate.label] == best]


def _keys(text: str, boxes: FloatArray) -> FloatArray:
    """Return a key (n,) for boxes (n, 4), lowest best, by direction and size words; without any the largest is best."""
    centers = boxes[:, [0, 2]].mean(axis=1)
    if ordinal := _ORDINAL.search(text):  # second from the right
        # One pattern for both would look through the rest of the text again at each ordinal.
        sides, number = _SIDE.findall(text, ordinal.end()), _NUMBER[ordinal[1]]
        if sides and number <= len(boxes):
            wanted = len(boxes) - number if sides[-1] == "right" else number - 1  # from the left, from 0
            return np.asarray(np.abs(centers.argsort(kind="stable").argsort() - wanted), dtype=np.float64)
    for pattern, key in _DIRECTIONS:
        if re.search(pattern, text):
            return key(boxes)
    if _MIDDLE.search(text):
        centers = np.abs(centers - (boxes[:, 0].min() + boxes[:, 2].max()) / 2)
        return np.asarray(centers, dtype=np.float64)
    return -_area(boxes)


def rank_by_rule(expression: str, candidates: Sequence[Candidate]) -> list[int]:
    """Return the indices of the likely candidates, the most likely first; their order matters for exact ties alone.

    Those whose label or a synonym is named first (all, where none is); of these the prominent ones, unless the
    expression has a word of smallness or distance.
    """
    if not candidates:
        return []
    text = expression.lower()
    kept = _find_named(candidates, text)
    largest = max(candidates[index].box.area for index in kept)
    if not _SMALL.search(text):
        kept = [index for index in kept if candidates[index].box.area >= _PROMINENT * largest]
    keys = _keys(text, array([candidates[index].box for index in kept]))
    return [kept[place] for place in keys.argsort(kind="stable")]


def find_companions(expression: str, candidates: Sequence[Candidate], likely: Sequence[int]) -> dict[int, list[str]]:
    """Return index of a likely candidate -> labels of other objects that the expression names and it is closest to.

    "a man holding a frisbee" is the man by the frisbee: the one whose box covers most of it, less the distance of their
    centers as a share of the candidates' extent.
    """
    words = [singularize(word) for word in split_words(expression)]
    own = {candidates[index].label for index in likely}
    found: dict[int, list[str]] = {}
    for label in sorted({candidate.label for candidate in candidates} - own):
        if likely and _mentions(label, words):
            things = array([candidate.box for candidate in candidates if candidate.label == label])
            boxes = array([candidates[index].box for index in likely])
            low = np.maximum(boxes[:, None, :2], things[None, :, :2])
            high = np.minimum(boxes[:, None, 2:], things[None, :, 2:])
            covered = np.prod(np.clip(high - low, 0, None), axis=2) / _area(things)[None, :]
            everything = np.concatenate([boxes, things])
            extent = np.linalg.norm(everything[:, 2:].max(axis=0) - everything[:, :2].min(axis=0))
            centers = (boxes[:, None, :2] + boxes[:, None, 2:] - things[None, :, :2] - things[None, :, 2:]) / 2
            closeness = covered - np.linalg.norm(centers, axis=2) / extent  # (likely, things)
            found.setdefault(likely[int(closeness.max(axis=1).argmax())], []).append(label)
    return found


def choose_by_rule(expression: str, candidates: Sequence[Candidate]) -> Choice:
    """Choose the candidate that `rank_by_rule` puts first; the choice carries no probability."""
    ranked = rank_by_rule(expression, candidates)
    return Choice(ranked[0]) if ranked else Choice(None, reason="no_candidate")
