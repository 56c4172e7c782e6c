"""A pack is as good as its sequences alone: same hidden states, each token once, no NaN."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_wrapper.llms.packing import Pack, additive_mask, by_budget, collate, common_prefix_length, pack_tree
from tests.llms import tiny

ALL_ALIKE = [[5, 6, 7], [5, 6, 7], [5, 6, 7]]
PREFIX_OF_ANOTHER = [[5, 6], [5, 6, 7, 8], [5, 6, 7]]
ONE = [[9, 8, 7, 6]]
ONE_TOKEN = [[9], [9], [8]]
NOTHING_SHARED = [[1, 2, 3], [4, 5], [6]]
TREES = {
    "alike": ALL_ALIKE,
    "prefix": PREFIX_OF_ANOTHER,
    "one": ONE,
    "one token": ONE_TOKEN,
    "nothing shared": NOTHING_SHARED,
    "shared twice": [[1, 2, 3, 4, 9], [1, 2, 3, 5, 9], [1, 2, 7, 5]],
}
merging = pytest.mark.parametrize("merge", [True, False], ids=["merge", "branches"])


@st.composite
def sequences(draw: st.DrawFn) -> list[list[int]]:
    """Sequences over few tokens, so that they share prefixes, repeat each other, or do neither."""
    head = draw(st.lists(st.integers(1, 3), max_size=5))
    tails = draw(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=5), min_size=1, max_size=5))
    return [[*head, *tail] for tail in tails]


@cache
def model(attention: str) -> Any:
    return tiny.model("llama", attention=attention)


def hidden(attention: str, packs: Sequence[Pack]) -> torch.Tensor:
    batch = collate(packs, pad_token_id=0)
    batch["attention_mask"] = additive_mask(batch["attention_mask"], torch.float32)
    with torch.inference_mode():
        states: torch.Tensor = model(attention).base_model(**batch, use_cache=False).last_hidden_state
    return states


def alone(attention: str, tokens: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        states: torch.Tensor = model(attention).base_model(torch.tensor([list(tokens)])).last_hidden_state[0]
    return states


def assert_as_alone(attention: str, trees: Sequence[Sequence[Sequence[int]]], *, merge: bool) -> None:
    packs = [pack_tree(tree, merge=merge) for tree in trees]
    states = hidden(attention, packs)
    assert torch.isfinite(states).all()
    for row, (tree, pack) in enumerate(zip(trees, packs, strict=True)):
        for tokens, path in zip(tree, pack.paths, strict=True):
            torch.testing.assert_close(states[row, path], alone(attention, tokens), atol=1e-5, rtol=1e-5)


@merging
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_packed_tokens_see_what_they_see_alone(tree: list[list[int]], attention: str, merge: bool) -> None:
    assert_as_alone(attention, [tree], merge=merge)


@merging
def test_packs_of_any_length_make_one_batch(merge: bool) -> None:
    assert_as_alone("eager", list(TREES.values()), merge=merge)


@settings(max_examples=20, deadline=None)
@given(st.lists(sequences(), min_size=1, max_size=3), st.booleans())
def test_random_trees_see_what_they_see_alone(trees: list[list[list[int]]], merge: bool) -> None:
    assert_as_alone("eager", trees, merge=merge)


@settings(max_examples=60, deadline=None)
@given(sequences(), st.booleans())
def test_paths_spell_the_sequences_and_parents_come_first(tree: list[list[int]], merge: bool) -> None:
    pack = pack_tree(tree, merge=merge)
    assert [[pack.input_ids[place] for place in path] for path in pack.paths] == tree
    assert [[pack.parents[place] for place in path] for path in pack.paths] == [[-1, *path[:-1]] for path in pack.paths]
    assert all(parent < place for place, parent in enumerate(pack.parents))
    assert set().union(*pack.paths) == set(range(len(pack)))


@settings(max_examples=60, deadline=None)
@given(sequences())
def test_merged_packs_hold_no_token_twice(tree: list[list[int]]) -> None:
    pack = pack_tree(tree, merge=True)
    assert len(pack) == len({tuple(tokens[:end]) for tokens in tree for end in range(1, len(tokens) + 1)})


@settings(max_examples=60, deadline=None)
@given(sequences())
def test_branches_stand_side_by_side(tree: list[list[int]]) -> None:
    pack = pack_tree(tree, merge=False)
    shared = min(common_prefix_length(*tree), min(map(len, tree)) - 1)
    assert len(pack) == shared + sum(len(tokens) - shared for tokens in tree)
    for path in pack.paths:
        assert path[:shared] == list(range(shared))
        assert path[shared:] == list(range(path[shared], path[shared] + len(path) - shared))


@pytest.mark.parametrize(
    ("tree", "merged", "branches"),
    [
        pytest.param(ALL_ALIKE, 3, 5, id="alike"),
        pytest.param(PREFIX_OF_ANOTHER, 4, 7, id="prefix"),
        pytest.param(ONE, 4, 4, id="one"),
        pytest.param(ONE_TOKEN, 2, 3, id="one token"),
        pytest.param(NOTHING_SHARED, 6, 6, id="nothing shared"),
    ],
)
def test_how_many_tokens_a_pack_has(tree: list[list[int]], merged: int, branches: int) -> None:
    assert (len(pack_tree(tree, merge=True)), len(pack_tree(tree, merge=False))) == (merged, branches)


@pytest.mark.parametrize(("most_shared", "expected"), [(0, 9), (1, 7), (2, 5), (3, 5), (None, 5)])
def test_less_can_be_shared(most_shared: int | None, expected: int) -> None:
    pack = pack_tree(ALL_ALIKE, merge=False, most_shared=most_shared)
    assert len(pack) == expected
    assert [[pack.input_ids[place] for place in path] for path in pack.paths] == ALL_ALIKE


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        pytest.param([[1, 2, 3], [1, 2, 4], [1, 2, 3, 9]], 2, id="some"),
        pytest.param([[10, 1], [9, 1]], 0, id="none"),
        pytest.param([[1, 2], [1, 2, 3]], 2, id="whole of the shorter"),
        pytest.param([[4, 4, 4]], 3, id="one"),
        pytest.param([[], [1]], 0, id="empty"),
    ],
)
def test_common_prefix(tree: list[list[int]], expected: int) -> None:
    assert common_prefix_length(*tree) == expected


def test_collated_shapes_positions_and_mask() -> None:
    batch = collate([pack_tree([[5, 6, 7], [5, 6, 8]], merge=True), pack_tree([[5, 9]], merge=True)], pad_token_id=3)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [5, 9, 3, 3]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 2], [0, 1, 0, 0]]
    tree, padded = batch["attention_mask"][:, 0].int().tolist()
    assert tree == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
    assert padded == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_every_row_of_the_additive_mask_has_a_key() -> None:
    visible = collate([pack_tree([[1]], merge=True), pack_tree([[1, 2, 3]], merge=True)], 0)["attention_mask"]
    mask = additive_mask(visible, torch.float32)
    assert torch.isfinite(mask.softmax(dim=-1)).all()
    assert torch.equal(mask == 0, visible)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 64))
def test_batches_hold_each_pack_once_and_respect_the_budget(lengths: list[int], budget: int) -> None:
    packs = [pack_tree([list(range(length))], merge=True) for length in lengths]
    batches = list(by_budget(packs, budget))
    assert sorted(place for batch in batches for place in batch) == list(range(len(packs)))
    for batch in batches:
        padded = len(batch) * max(lengths[place] for place in batch)
        assert padded <= budget or len(batch) == 1
    assert all(batches)


def test_batches_hold_packs_of_similar_length_and_are_filled() -> None:
    packs = [pack_tree([list(range(length))], merge=True) for length in (9, 2, 9, 2, 3, 3)]
    assert list(by_budget(packs, 12)) == [[1, 3, 4, 5], [0], [2]]


def test_a_pack_larger_than_the_budget_is_a_batch_of_its_own() -> None:
    packs = [pack_tree([list(range(length))], merge=True) for length in (50, 3, 70)]
    assert list(by_budget(packs, 16)) == [[1], [0], [2]]


@pytest.mark.parametrize(("multiple", "length"), [(1, 5), (4, 8), (5, 5), (16, 16)])
def test_a_batch_can_be_rounded_up_without_changing_what_tokens_see(multiple: int, length: int) -> None:
    packs = [pack_tree([[1, 2, 3, 1, 2]], merge=False), pack_tree([[3, 1]], merge=False)]
    exact, rounded = collate(packs, pad_token_id=0), collate(packs, pad_token_id=0, multiple=multiple)
    assert rounded["input_ids"].shape == rounded["position_ids"].shape == (2, length)
    assert rounded["input_ids"][:, 5:].eq(0).all()
    assert torch.equal(rounded["input_ids"][:, :5], exact["input_ids"])
    assert torch.equal(rounded["attention_mask"][:, :, :5, :5], exact["attention_mask"])
    assert not rounded["attention_mask"][:, :, :5, 5:].any()
    assert rounded["attention_mask"].any(dim=-1).all()
