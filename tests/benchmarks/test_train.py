"""The bench compares like with like: both ways take the same steps, so their losses are equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import train

from llm_wrapper.errors import DataError
from llm_wrapper.recipe import Recipe
from llm_wrapper.training.examples import Group
from tests.llms import tiny


def group(number: int, size: int) -> Group:
    samples = tuple(tiny.sample(f"the {number} {i}", image=f"image-{number}", number=i) for i in range(size))
    return Group(samples, tuple(i % 3 for i in range(size)), tiny.candidates(3, first=number))


@pytest.mark.slow
def test_steps_are_the_same_on_both_sides(tiny_recipe: Recipe, tmp_path: Path) -> None:
    found = train.compare([group(i, 4) for i in range(8)], tiny_recipe, tmp_path, num_steps=3)
    assert found.num_expressions == 24
    assert len(found.losses) == 4
    assert found.max_loss_difference < 1e-4
    assert max(found.losses) - min(found.losses) > 0.05  # the steps differ, so equal losses mean equal steps
    assert found.ratio == found.baseline_seconds / found.seconds > 0


def test_groups_that_are_not_full_are_not_taken(tiny_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 usable groups of 4 expressions, 4 are needed"):
        train.compare([group(i, 4) for i in range(3)] + [group(9, 2)], tiny_recipe, tmp_path, num_steps=1)
