"""`train.limit`: nested subsets of whole images, drawn by the seed."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from llm_wrapper.candidates import BuiltCandidates
from llm_wrapper.detections.samples import PreparedSample
from llm_wrapper.records import Sample
from llm_wrapper.training.examples import draw_samples

SAMPLES = [
    PreparedSample(
        Sample(f"{image}/{n}", "r", f"image-{image}", None, (10, 10), "it", None), BuiltCandidates((), (), {})
    )
    for n in range(3)
    for image in range(20)
]
"""Three expressions of each of twenty images, those of one image far apart."""


def ids(limit: int | None, seed: int = 0) -> list[str]:
    return [prepared.sample.sample_id for prepared in draw_samples(SAMPLES, limit, seed=seed)]


@pytest.mark.parametrize("limit", [1, 3, 7, 30, 59, 60, 1000])
def test_as_many_are_taken_as_asked_for_in_their_own_order(limit: int) -> None:
    everything = [prepared.sample.sample_id for prepared in SAMPLES]
    taken = ids(limit)
    assert len(taken) == min(limit, len(SAMPLES))
    assert taken == [sample_id for sample_id in everything if sample_id in set(taken)]


@pytest.mark.parametrize("limit", [3, 7, 31])
def test_images_are_whole_but_for_the_last(limit: int) -> None:
    counts = Counter(sample_id.partition("/")[0] for sample_id in ids(limit))
    assert sorted(counts.values(), reverse=True)[: limit // 3] == [3] * (limit // 3)
    assert len(counts) == -(-limit // 3)


def test_a_smaller_subset_is_part_of_a_larger_one_and_no_limit_is_all() -> None:
    sizes = [ids(limit) for limit in (1, 2, 5, 20, 21, 60)]
    assert all(set(small) < set(large) for small, large in itertools.pairwise(sizes))
    assert ids(None) == ids(60) == [prepared.sample.sample_id for prepared in SAMPLES]


def test_the_seed_draws_and_the_place_in_the_file_does_not() -> None:
    assert ids(12) == ids(12)
    assert set(ids(12)) != set(ids(12, seed=1))
    turned = draw_samples(SAMPLES[::-1], 12, seed=0)
    assert {prepared.sample.sample_id for prepared in turned} == set(ids(12))
    assert set(ids(12)) != {prepared.sample.sample_id for prepared in SAMPLES[:12]}
