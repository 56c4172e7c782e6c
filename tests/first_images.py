"""A small part of the toy data, for tests that go the whole road by the verbs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

__all__ = ["copy_first_images"]

TOY = Path(__file__).parents[1] / "data" / "toy"


def copy_first_images(root: Path, *, count: int, splits: Sequence[str] = ("train", "val")) -> Path:
    """Copy the first images of some splits of the toy, with all their expressions; return the folder."""
    (root / "images").mkdir(parents=True)
    for split in splits:
        lines = (TOY / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        names = list(dict.fromkeys(json.loads(line)["image"] for line in lines))[:count]
        kept = [line for line in lines if json.loads(line)["image"] in names]
        (root / f"{split}.jsonl").write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        for name in names:
            shutil.copy(TOY / name, root / name)
    return root
