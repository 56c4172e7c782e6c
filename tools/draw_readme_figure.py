"""Draw the README's figure: a picture with numbered boxes, the text that the LLM reads, and its answer.

    llm-wrapper demo
    python tools/draw_readme_figure.py runs/demo docs/assets/table.jpg docs/assets/how-it-works.png

The picture comes from paint_table_scene.py, with its objects beside it; the answer comes from the run's LLM.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from textwrap import wrap

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from PIL import Image

from llm_wrapper import Result, Wrapper

EXPRESSION = "the orange on the right"


def draw(result: Result, image: Image.Image, out: Path) -> None:
    """Draw picture, text and answer side by side."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(15, 5.4), gridspec_kw={"width_ratios": [1.25, 1], "wspace": 0.03}, facecolor="white"
    )
    left.imshow(image)
    for candidate in result.ranked:
        is_chosen = candidate.index == result.index
        x0, y0, x1, y1 = candidate.box.xyxy
        color = "#1b7f3b" if is_chosen else "#33383d"
        style = {"fill": False, "edgecolor": color, "linewidth": 4 if is_chosen else 2}
        left.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **style))
        left.text(
            x0, y0 - 6, f" {candidate.index} {candidate.label} ", color="white", fontsize=13, va="bottom",
            bbox={"facecolor": color, "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    left.set_title(f"“{result.expression}”", fontsize=20, pad=12)
    left.axis("off")
    right.axis("off")
    lines = [
        part for line in (result.prompt or "").splitlines() for part in wrap(line, 62, subsequent_indent="   ") or [""]
    ]
    right.text(0.02, 0.985, "The LLM reads", fontsize=14, color="#555555", verticalalignment="top")
    right.text(
        0.02, 0.91, "\n".join(lines), fontsize=11.2, family="monospace", verticalalignment="top", linespacing=1.35
    )
    answer = f"and answers  {result.index}   (probability {result.probability or 0:.2f})"
    right.text(0.02, 0.02, answer, fontsize=19, color="#1b7f3b")
    figure.savefig(out, dpi=110, bbox_inches="tight", pad_inches=0.15)


def main(run: str, picture: str, out: str) -> None:
    """Ask the run's LLM about the picture's boxes, and draw."""
    scene = json.loads(Path(picture).with_suffix(".json").read_text(encoding="utf-8"))
    boxes = [each["box_xyxy"] for each in scene["objects"]]
    labels = [each["label"] for each in scene["objects"]]
    size = (scene["width"], scene["height"])
    result = Wrapper.from_run(run).choose(boxes, labels, EXPRESSION, image_size=size)
    draw(result, Image.open(picture), Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
