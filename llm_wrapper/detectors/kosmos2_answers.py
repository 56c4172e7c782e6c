"""Kosmos-2's tasks, and its answers (words and location tokens) read as detections.

An answer goes on where its prompt ends, and is read together with it, such as
`<grounding><phrase> a snowman</phrase><object><patch_index_0044><patch_index_0863></object> by<phrase> a fire...`:
a phrase, then its boxes with `</delimiter_of_multi_objects/>` between them. A location token names a cell of a grid of
32 x 32 over the whole image, row by row; the first of a box holds its upper left corner, the second its lower right.
Both stand for the middle of their cell. Only where they share a row or a column, in which the box would have no area,
it reaches over its cells from edge to edge, on both axes. That is the convention of the authors
(microsoft/unilm, kosmos-2/demo/decode_string.py) and of the processor of transformers.

The processor reads the same format (`post_process_generation`), and a test holds both readings together. Answers are
read here because the processor loses the whole boxes of a phrase whose last box was cut short, labels a box without a
phrase with its location tokens, and does not count what it leaves out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llm_wrapper.detectors.base import Level, detections_from_raw, joined
from llm_wrapper.records import Detections

__all__ = ["MENTIONED", "NUM_CELLS", "TASKS", "Task", "detections"]

NUM_CELLS = 32
"""Cells of the grid along each side of the image."""

MENTIONED = "phrase"
"""The source of boxes of phrases that an answer to an expression adds to it, such as "and a fire"."""


@dataclass(frozen=True, slots=True)
class Task:
    """What follows the image in a prompt, and whether it needs an expression."""

    prompt: str
    level: Level


TASKS = {
    "rec": Task("<grounding><phrase> {expression}</phrase>", "expression"),
    "caption": Task("<grounding> An image of", "image"),
}
"""Short name (the source of its detections) -> task; the prompts are those of the authors' evaluation and demo."""

_ITEM = re.compile(
    r"(?:<phrase>((?:(?!</?phrase>).)*)</phrase>)?"
    r"<object>((?:<patch_index_\d{1,6}>|</delimiter_of_multi_objects/>)*)",
    re.DOTALL,
)
_CELL = re.compile(r"<patch_index_(\d+)>")


def detections(answer: str, task: str, image_wh: tuple[int, int], *, expression: str = "") -> Detections:
    """Read the detections of one answer, in its order; labels as they are, scores `None`.

    The source is the task. But where an expression was asked, only boxes of that very phrase answer it, as in the
    authors' evaluation (kosmos-2/evaluation/refcoco/refexp_evaluate.py); those of others have the source `MENTIONED`.

    A box of other than two location tokens (the answer was cut short) is counted as dropped, as are reversed ones; all
    others are given, also those outside the image.

    Args:
        answer: The prompt without the image, and what the model said to it.
        task: A key of `TASKS`.
        image_wh: Width and height of the image in pixels.
        expression: What the prompt asks for, as it stands in it.
    """
    answers = []
    for phrase, places in _ITEM.findall(answer):
        label = phrase.strip()
        source = MENTIONED if TASKS[task].level == "expression" and label != expression else task
        boxes = (_pixels(part, image_wh) for part in places.split("</delimiter_of_multi_objects/>"))
        answers.append(detections_from_raw([(box, label, None) for box in boxes], source))
    return joined(answers)


def _pixels(places: str, image_wh: tuple[int, int]) -> Sequence[float]:
    """Return the box between two location tokens as xyxy; nothing where there are not two."""
    corners = [divmod(int(cell), NUM_CELLS) for cell in _CELL.findall(places)]
    if len(corners) != 2:
        return ()
    (top, left), (bottom, right) = corners
    start, end = (0.0, 1.0) if top == bottom or left == right else (0.5, 0.5)
    width, height = (side / NUM_CELLS for side in image_wh)
    return ((left + start) * width, (top + start) * height, (right + end) * width, (bottom + end) * height)
