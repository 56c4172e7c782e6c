"""Sequences that share a prefix, packed behind one copy of it.

A pack is a tree: the longest common prefix of token sequences, then one branch each. A token attends to its
ancestors only, and positions restart after the prefix, so every sequence sees exactly what it would see alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

__all__ = ["Pack", "by_budget", "collate", "common_prefix_length", "pack_tree"]


@dataclass(frozen=True, slots=True)
class Pack:
    """Tokens in depth-first order.

    `parents[i]` is the place of the token before token i in its sequence (-1 for the first). `paths` holds, for each
    packed sequence, the places of its tokens.
    """

    input_ids: list[int]
    parents: list[int]
    paths: list[list[int]]

    def __len__(self) -> int:
        return len(self.input_ids)


def common_prefix_length(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many leading tokens all sequences share."""
    first, last = min(map(list, sequences)), max(map(list, sequences))
    return next(
        (place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
    )


def pack_tree(sequences: Sequence[Sequence[int]], *, merge: bool, most_shared: int | None = None) -> Pack:
    """Pack token sequences behind their longest common prefix.

    Args:
        sequences: At least one, none empty.
        merge: Whether later tokens that agree are shared too (a trie, for scoring), or each sequence keeps a branch
            of its own (for training, where next-token labels must stand side by side). Without merging, one token
            less than the common prefix is shared where a sequence would otherwise have an empty branch.
        most_shared: Most tokens of the common prefix to share; None: as many as there are.
    """
    shared = min(common_prefix_length(sequences), min(map(len, sequences)) - 1)
    if most_shared is not None:
        shared = min(shared, most_shared)
    input_ids = list(sequences[0][:shared])
    parents = list(range(-1, shared - 1))
    children: dict[tuple[int, int], int] = {}
    paths = []
    for sequence in sequences:
        path, parent = list(range(shared)), shared - 1
        for token in sequence[shared:]:
            place = children.get((parent, token)) if merge else None
            if place is None:
                place = len(input_ids)
                input_ids.append(token)
                parents.append(parent)
                children[parent, token] = place
            path.append(place)
            parent = place
        paths.append(path)
    return Pack(input_ids, parents, paths)


def _is_chain(pack: Pack) -> bool:
    return all(parent == place - 1 for place, parent in enumerate(pack.parents))


def _visible(pack: Pack) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ancestor mask (n, n), a token being its own ancestor, and the depth (n,) of each token."""
    n = len(pack)
    if _is_chain(pack):
        return torch.ones(n, n, dtype=torch.bool).tril(), torch.arange(n)
    visible = torch.zeros(n, n, dtype=torch.bool)
    for place, parent in enumerate(pack.parents):
        if parent >= 0:
            visible[place] = visible[parent]
        visible[place, place] = True
    return visible, visible.sum(dim=1) - 1


def collate(packs: Sequence[Pack], pad_token_id: int, *, multiple: int = 1) -> dict[str, torch.Tensor]:
    """Pad packs on the right to one batch.

    Args:
        packs: At least one.
        pad_token_id: Fills the rest of each row.
        multiple: The length of the batch is rounded up to a multiple of this. Batches of a hundred different lengths
            fragment the memory of a long training: the allocator took a quarter of the time after 400 steps.

    Returns:
        `input_ids` and `position_ids` of shape (b, t) and `attention_mask` of shape (b, 1, t, t), boolean, True where
        a token may look. A padded token looks at itself alone, since a row without any key gives NaN.
    """
    length = -(-max(map(len, packs)) // multiple) * multiple
    input_ids = torch.full((len(packs), length), pad_token_id)
    position_ids = torch.zeros(len(packs), length, dtype=torch.long)
    mask = torch.eye(length, dtype=torch.bool).repeat(len(packs), 1, 1, 1)
    for row, pack in enumerate(packs):
        n = len(pack)
        visible, depth = _visible(pack)
        input_ids[row, :n] = torch.tensor(pack.input_ids)
        position_ids[row, :n] = depth
        mask[row, 0, :n, :n] = visible
    return {"input_ids": input_ids, "position_ids": position_ids, "attention_mask": mask}


def by_budget(packs: Sequence[Pack], max_tokens: int) -> Iterator[list[int]]:
    """Yield batches of places in `packs`, of similar length, each of at most `max_tokens` tokens with padding."""
    batch: list[int] = []
    for place in sorted(range(len(packs)), key=lambda place: len(packs[place])):
        if batch and (len(batch) + 1) * len(packs[place]) > max_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
