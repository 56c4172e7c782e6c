"""Words that people use for COCO categories. Shared by the rule and by generated expressions.

Written for this project by reading category names and training expressions; a label that is not listed stands for
itself, so detectors with an open vocabulary work too.
"""

from __future__ import annotations

import re
from functools import cache

__all__ = ["SYNONYMS", "names_of", "singular", "words_of"]

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


def singular(word: str) -> str:
    """Return the singular of an English noun by a few rules; words that are no plural come back unchanged."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith(("ches", "shes", "xes", "sses", "buses")):
        return word[:-2]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us")) and len(word) > 3 else word


@cache
def words_of(text: str) -> tuple[str, ...]:
    """Split a text to lower-case words (letters, digits, hyphens)."""
    return tuple(re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", text.lower()))


@cache
def names_of(label: str) -> dict[tuple[str, ...], int]:
    """Return the word sequences that name a label, each with its penalty: 0 the label itself, 1 a synonym."""
    own = words_of(label)
    names = {own: 0} if own else {}
    if len(own) > 1:
        names.setdefault(own[-1:], 1)
    for synonym in SYNONYMS.get(" ".join(own), "").split():
        names.setdefault((synonym,), 1)
    return names
