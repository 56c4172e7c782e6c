"""Crowds have what was asked for, are the same each time, and read back as a data set."""

from __future__ import annotations

from pathlib import Path

import crowds
import pytest

from llm_wrapper import boxes
from llm_wrapper.datasets import jsonl
from llm_wrapper.errors import DataError


@pytest.mark.parametrize("num_things", [2, 8, 20])
def test_a_crowd_has_what_was_asked_for(num_things: int) -> None:
    crowd = crowds.make_crowd(3, num_things, 4)
    assert len(crowd.things) == num_things
    assert len({text for text, _ in crowd.expressions}) == 4
    assert all(boxes.is_inside(thing.box, crowd.image_wh, tolerance=0.0) for thing in crowd.things)
    assert crowd.image_wh[0] - max(thing.box.x1 for thing in crowd.things) < 240
    assert crowd == crowds.make_crowd(3, num_things, 4)
    assert crowd.things != crowds.make_crowd(4, num_things, 4).things


def test_expressions_that_do_not_exist_are_not_made_up() -> None:
    with pytest.raises(DataError, match=r"of 2 things in crowd 0 only \d+ expressions are true, 900 are wanted"):
        crowds.make_crowd(0, 2, 900)


def test_written_crowds_read_back(tmp_path: Path) -> None:
    made = [crowds.make_crowd(number, 3, 4) for number in range(2)]
    crowds.write(tmp_path / "crowds.jsonl", iter(made), limit=6)
    samples = jsonl.load_jsonl(tmp_path / "crowds.jsonl", "val").samples
    assert [sample.expression for sample in samples] == [text for crowd in made for text, _ in crowd.expressions][:6]
    text, index = made[1].expressions[1]
    assert (samples[5].expression, samples[5].target) == (text, made[1].things[index].box)
    assert samples[5].image_wh == made[1].image_wh
