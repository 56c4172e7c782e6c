"""Toy scenes with as many things as wished: several are placed side by side, and nothing is painted.

For measuring how time grows with candidates and expressions. The expressions are those of the toy grammar, each true of
one thing of the whole crowd.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import count, islice
from pathlib import Path

from llm_wrapper.errors import DataError
from llm_wrapper.records import Box

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))  # the painter of the toy scenes
from toy_grammar import Thing, all_facts
from toy_scenes import IMAGE_WH, make_scene

_POOL = 24
"""Scenes that crowds are put together from; most of the time of a scene goes into its picture."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """Things on one image, and pairs of an expression and the index of the thing that it is true of."""

    image_id: str
    image_wh: tuple[int, int]
    things: tuple[Thing, ...]
    expressions: tuple[tuple[str, int], ...]


@cache
def _things(number: int) -> tuple[Thing, ...]:
    return make_scene("crowd", number).things


def _beside(number: int) -> Iterator[Thing]:
    """Yield the things of random scenes, one scene to the right of the other, without end."""
    rng = random.Random(f"toy crowds 1/{number}")
    for place in count():
        shift = place * IMAGE_WH[0]
        for thing in _things(rng.randrange(_POOL)):
            x0, y0, x1, y1 = thing.box.xyxy
            yield replace(thing, box=Box(x0 + shift, y0, x1 + shift, y1))


def make_crowd(number: int, num_things: int, num_expressions: int) -> Crowd:
    """Make crowd `number`; the same arguments give the same crowd.

    Raises:
        DataError: If too few different expressions are true of one thing alone.
    """
    things = tuple(islice(_beside(number), num_things))
    width = (int(max(thing.box.x1 for thing in things)) // IMAGE_WH[0] + 1) * IMAGE_WH[0]
    facts = all_facts(things, (width, IMAGE_WH[1]))
    texts = {text: index for found in facts.values() for index, wordings in found for text in wordings}
    if len(texts) < num_expressions:
        raise DataError(
            f"of {num_things} things in crowd {number} only {len(texts)} expressions are true, {num_expressions} are "
            "wanted; take fewer expressions an image or more things"
        )
    chosen = random.Random(number).sample(sorted(texts), num_expressions)
    return Crowd(
        f"crowd-{num_things}-{number}", (width, IMAGE_WH[1]), things, tuple((text, texts[text]) for text in chosen)
    )


def write(path: Path, crowds: Iterator[Crowd], *, limit: int) -> None:
    """Write the first `limit` expressions as the JSONL file that `datasets.jsonl` reads; pictures are not made."""
    rows = (
        {
            "image": f"{crowd.image_id}.png",
            "image_id": crowd.image_id,
            "sample_id": f"{crowd.image_id}-{place}",
            "width": crowd.image_wh[0],
            "height": crowd.image_wh[1],
            "expression": text,
            "box": crowd.things[index].box.xyxy,
        }
        for crowd in crowds
        for place, (text, index) in enumerate(crowd.expressions)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in islice(rows, limit)), encoding="utf-8")
