"""Prompts without hope stop early, and others see everything."""

from __future__ import annotations

import random

import pytest

from llm_wrapper.errors import DataError
from llm_wrapper.records import Box, Sample
from llm_wrapper.search.fitness import cut_slices, halving_sizes, judge_prompt

IMAGES = [f"image-{place // 2}" for place in range(102)]


@pytest.mark.parametrize(
    "sizes", [[50, 100, 200, 300], [50], [50, 51], [50, 149], [50, 100, 150], [1, 2, 4, 8], [1], [75, 200]], ids=str
)
def test_counts_double_up_to_the_whole_slice(sizes: list[int]) -> None:
    assert halving_sizes(sizes[0], sizes[-1]) == sizes


def draw(share: float, n: int, seed: int) -> list[bool]:
    rng = random.Random(seed)
    return [rng.random() < share for _ in range(n)]


BEST = draw(0.8, 100, 1)
NEAR = [not bit if place % 20 == 0 else bit for place, bit in enumerate(BEST)]
EVEN = [place % 2 == 0 for place in range(100)]


@pytest.mark.parametrize(
    ("right", "best", "expected"),
    [
        pytest.param([False] * 40, BEST, "stopped", id="without-hope"),
        pytest.param(NEAR[:40], BEST, "open", id="near"),
        pytest.param(BEST[:40], BEST, "open", id="equal"),
        pytest.param([True] * 40, BEST, "open", id="better"),
        pytest.param([False] * 40, None, "open", id="no-best-yet"),
        pytest.param([False] * 2, [True] * 2, "open", id="one-image-proves-nothing"),
        # Two right less is nothing where prompts disagree often, and much where they hardly ever do.
        pytest.param([False, False, *(not bit for bit in EVEN[2:])], EVEN, "open", id="scattered"),
        pytest.param([bit and place >= 12 for place, bit in enumerate(EVEN)], EVEN, "stopped", id="subset"),
        pytest.param([False] * 102, BEST, "complete", id="all-seen"),
    ],
)
def test_verdicts(right: list[bool], best: list[bool] | None, expected: str) -> None:
    assert judge_prompt(right, best, IMAGES) == expected


BOX = Box(0, 0, 9, 9)


def samples(num_images: int, per_image: int = 3, *, target: Box | None = BOX) -> list[Sample]:
    return [
        Sample(f"s{image}-{number}", "r", f"image-{image}", None, (10, 10), f"thing {number}", target)
        for number in range(per_image)
        for image in range(num_images)
    ]


@pytest.mark.parametrize("sizes", [(20, 30), (2, 2), (19, 10), (45, 45)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_slices_are_as_large_as_asked_and_share_no_image(sizes: tuple[int, int], seed: int) -> None:
    all_of = samples(30)
    found = cut_slices(all_of, sizes, without=[], seed=seed)
    assert (len(found.search), len(found.confirm)) == sizes
    assert len({*found.search, *found.confirm}) == sum(sizes)
    images = [{all_of[place].image_id for place in part} for part in (found.search, found.confirm)]
    assert not images[0] & images[1]


def test_a_slice_hangs_on_the_seed_and_not_on_the_order_of_the_file() -> None:
    all_of = samples(30)
    turned = all_of[::-1]
    ids = [all_of[place].image_id for place in cut_slices(all_of, (20, 20), without=[], seed=1).search]
    assert ids == [turned[place].image_id for place in cut_slices(turned, (20, 20), without=[], seed=1).search]
    assert ids != [all_of[place].image_id for place in cut_slices(all_of, (20, 20), without=[], seed=2).search]
    short, long = (cut_slices(all_of, (size, 5), without=[], seed=0).search for size in (20, 40))
    assert short == long[:20]


def test_evaluated_images_and_expressions_without_a_target_are_out_of_reach() -> None:
    all_of = [*samples(8), *samples(3, target=None)]
    evaluated = {"image-0", "image-5"}
    found = cut_slices(all_of, (9, 9), without=evaluated, seed=0)
    used = [all_of[place] for place in (*found.search, *found.confirm)]
    assert not {sample.image_id for sample in used} & evaluated
    assert all(sample.target for sample in used)


@pytest.mark.parametrize(
    ("num_images", "sizes", "numbers"),
    [
        pytest.param(10, (20, 20), "have|30 with a target, of 10 images", id="not-enough"),
        pytest.param(2, (4, 3), "6 with a target, of 2 images .*they give 4 and 0", id="images-cannot-be-split"),
        pytest.param(0, (2, 2), "0 with a target, of 0 images", id="none"),
    ],
)
def test_too_few_expressions_are_refused_with_numbers(num_images: int, sizes: tuple[int, int], numbers: str) -> None:
    with pytest.raises(DataError, match=numbers) as caught:
        cut_slices(samples(num_images), sizes, without=[], seed=0)
    assert f"search.slice={sizes[0]} and search.confirm={sizes[1]} need {sum(sizes)}" in str(caught.value)
