"""Ranks and position words are geometry: they do not depend on the order in which candidates are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_wrapper.prompts.relations import Rank, Relations, compute_relations, spell_cardinal, spell_ordinal
from llm_wrapper.records import Candidate
from tests.prompts.made import ZEBRAS, at, boxes, candidate

WH = (100, 100)


def test_walk_through_sample() -> None:
    right, left, grass = compute_relations(ZEBRAS, (640, 480))
    assert right == Relations(Rank(2, 2), Rank(1, 2), Rank(2, 2), Rank(1, 2), Rank(3, 3), Rank(2, 3), "right", "big")
    assert left == Relations(Rank(1, 2), Rank(2, 2), Rank(1, 2), Rank(2, 2), Rank(1, 3), Rank(3, 3), "left", "big")
    assert grass == Relations(Rank(1, 1), Rank(1, 1), Rank(1, 1), Rank(1, 1), Rank(2, 3), Rank(1, 3), "bottom", "big")


def test_one_candidate_is_the_only_one_of_everything_and_none_is_none() -> None:
    assert compute_relations([at("cat", 50, 50)], WH) == [Relations(*[Rank(1, 1)] * 6, "center", "small")]
    assert compute_relations([], WH) == []


@pytest.mark.parametrize(
    ("side", "extent"), [(9.9, "tiny"), (10, "small"), (22, "small"), (23, "medium"), (44, "medium"), (45, "big")]
)
def test_extent_is_the_share_of_the_image(side: float, extent: str) -> None:
    (only,) = compute_relations([candidate("cat", 0, 0, side, side)], (100, 100))
    assert only.extent == extent


def test_a_row_counts_from_the_left() -> None:
    places = [70, 10, 90, 30, 50]
    found = compute_relations([at("cat", x, 50) for x in places], WH)
    assert [each.left.rank for each in found] == [4, 1, 5, 2, 3]
    assert [each.left for each in found] == [each.left_of_all for each in found]


def test_a_column_counts_from_the_top_by_center_and_from_the_lowest_edge() -> None:
    found = compute_relations([at("cat", 50, 20), at("cat", 50, 80), at("cat", 50, 50)], WH)
    assert [each.top.rank for each in found] == [1, 3, 2]
    assert [each.near.rank for each in found] == [3, 1, 2]
    tall, short = candidate("cat", 0, 0, 10, 90), candidate("cat", 20, 50, 30, 80)
    found = compute_relations([tall, short], WH)
    assert (found[0].near.rank, found[0].top.rank) == (1, 1)


def test_size_counts_from_the_largest_area() -> None:
    found = compute_relations([at("cat", 50, 50, side) for side in (10, 40, 20)], WH)
    assert [each.size.rank for each in found] == [3, 1, 2]


@pytest.mark.parametrize("label", ["ZEBRA", "Zebra", " zebra ", "zebra\n"])
def test_labels_that_differ_only_in_case_are_one_kind(label: str) -> None:
    found = compute_relations([at("zebra", 20, 50), at(label, 80, 50)], WH)
    assert [each.left for each in found] == [Rank(1, 2), Rank(2, 2)]


def test_other_labels_count_among_all_but_not_among_their_kind() -> None:
    found = compute_relations([at("cat", 80, 50), at("dog", 20, 50, 30)], WH)
    assert [each.left for each in found] == [Rank(1, 1), Rank(1, 1)]
    assert [each.left_of_all.rank for each in found] == [2, 1]
    assert [each.size_of_all.rank for each in found] == [2, 1]


def test_position_words() -> None:
    places = [(x, y) for y in (10, 50, 90) for x in (10, 50, 90)] + [(35.9, 50), (36, 64), (64.1, 50)]
    assert [compute_relations([at("cat", x, y)], WH)[0].position for x, y in places] == [
        *("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"),
        *("left", "center", "right"),
    ]


def test_equal_positions_are_told_apart_by_place_not_by_order() -> None:
    upper, lower = at("cat", 50, 20), at("cat", 50, 80)
    assert [each.left.rank for each in compute_relations([upper, lower], WH)] == [1, 2]
    assert [each.left.rank for each in compute_relations([lower, upper], WH)] == [2, 1]
    assert [each.size.rank for each in compute_relations([lower, upper], WH)] == [2, 1]


def test_identical_boxes_of_one_label_share_out_the_ranks() -> None:
    found = compute_relations([at("cat", 50, 50), at("cat", 50, 50)], WH)
    assert sorted(each.left.rank for each in found) == [1, 2]


CANDIDATES = st.lists(
    st.builds(Candidate, boxes(6, 4), st.sampled_from(["cat", "Cat", "dog"]), st.none(), st.just("d"), st.just("od")),
    max_size=8,
    unique_by=lambda each: (each.box.xyxy, each.label),
)


@given(st.data(), CANDIDATES)
def test_relations_do_not_depend_on_the_order(data: st.DataObject, candidates: list[Candidate]) -> None:
    order = data.draw(st.permutations(range(len(candidates))))
    shuffled = compute_relations([candidates[place] for place in order], (10, 10))
    expected = compute_relations(candidates, (10, 10))
    assert shuffled == [expected[place] for place in order]


@given(CANDIDATES)
def test_ranks_are_a_permutation(candidates: list[Candidate]) -> None:
    found = compute_relations(candidates, (10, 10))
    everyone = list(range(1, len(candidates) + 1))
    assert sorted(each.left_of_all.rank for each in found) == everyone
    assert sorted(each.size_of_all.rank for each in found) == everyone
    cats = [each for each, one in zip(found, candidates, strict=True) if one.label != "dog"]
    for name in ("left", "size", "top", "near"):
        ranks = [getattr(each, name) for each in cats]
        assert sorted(rank.rank for rank in ranks) == list(range(1, len(cats) + 1))
        assert {rank.count for rank in ranks} <= {len(cats)}


@pytest.mark.parametrize(
    ("rank", "count", "first", "last"),
    [(1, 1, False, False), (1, 2, True, False), (2, 2, False, True), (2, 3, False, False)],
)
def test_first_and_last_need_company(rank: int, count: int, first: bool, last: bool) -> None:
    assert (Rank(rank, count).is_first, Rank(rank, count).is_last) == (first, last)


def test_numbers_are_spelled_to_ten() -> None:
    assert [spell_cardinal(count) for count in (1, 2, 10, 11)] == ["one", "two", "ten", "11"]
    assert [spell_ordinal(rank) for rank in (1, 2, 10, 11, 20)] == ["first", "second", "tenth", "11th", "20th"]
