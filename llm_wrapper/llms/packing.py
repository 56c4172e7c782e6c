"""Pack sequences that share a prefix behind one copy of it.

A pack is a tree: the longest common prefix of token sequences, then one branch each. A token attends to its
ancestors only, and positions restart after the prefix, so every sequence sees exactly what it would see alone.

    sequences  A B 0 .     column     0  1  2  3  4  5            k  A B 0 . 1 .
               A B 1 .     token      A  B  0  .  1  .         q  A  x
                           parent    -1  0  1  2  1  4            B  x x
                           position   0  1  2  3  2  3            0  x x x
                           end        6  6  4  4  6  6            .  x x x x
                                                                  1  x x     x
                                                                  .  x x     x x

Tokens are in depth-first order, so a token's descendants are the stretch behind it. `end` is the column behind the last
of them, and the whole mask is: token q sees token k if k <= q < end[k].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.attention.flex_attention import BlockMask

__all__ = ["Pack", "block_mask", "by_budget", "collate", "common_prefix_length", "pack_tree"]

_BLOCK = 128
"""Tokens along one side of a block: the default of flex attention."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Tokens in depth-first order.

    `parents[i]` is the column of the token before token i in its sequence (-1 for the first). `paths` holds, for each
    packed sequence, the columns of its tokens.
    """

    input_ids: list[int]
    parents: list[int]
    paths: list[list[int]]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def is_plain(self) -> bool:
        """Whether every token follows the one before it: nothing branches."""
        return self.parents == list(range(-1, len(self) - 1))


def common_prefix_length(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many leading tokens all sequences share."""
    first, last = min(map(list, sequences)), max(map(list, sequences))
    return next(
        (count for count, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
    )


def pack_tree(sequences: Sequence[Sequence[int]], *, merge: bool, most_shared: int | None = None) -> Pack:
    """Pack token sequences behind their longest common prefix.

    Args:
        sequences: At least one, none empty.
        merge: Whether later tokens that agree are shared too (a trie, for scoring), or each sequence keeps its whole
            branch (for training, where next-token labels must be neighbours). Without merging, one token less than
            the common prefix is shared where a sequence would otherwise have an empty branch.
        most_shared: Most tokens of the common prefix to share; None: as many as there are.
    """
    shared = min(common_prefix_length(sequences), min(map(len, sequences)) - 1)
    if most_shared is not None:
        shared = min(shared, most_shared)
    input_ids = list(sequences[0][:shared])
    parents = list(range(-1, shared - 1))
    children: dict[tuple[int, int], int] = {}
    paths: list[list[int]] = [[] for _ in sequences]
    # Sorted, those that share most follow each other; otherwise a branch could grow on behind a later one.
    for number in sorted(range(len(sequences)), key=lambda n: tuple(sequences[n])) if merge else range(len(sequences)):
        path, parent = list(range(shared)), shared - 1
        for token in sequences[number][shared:]:
            column = children.get((parent, token)) if merge else None
            if column is None:
                column = len(input_ids)
                input_ids.append(token)
                parents.append(parent)
                children[parent, token] = column
            path.append(column)
            parent = column
        paths[number] = path
    return Pack(input_ids, parents, paths)


def _depths_and_ends(pack: Pack) -> tuple[list[int], list[int]]:
    """Return, for each token, how many ancestors it has, and the column behind its last descendant."""
    depths: list[int] = []
    for parent in pack.parents:
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    ends = list(range(1, len(pack) + 1))
    for column in range(len(pack) - 1, 0, -1):
        parent = pack.parents[column]
        if parent >= 0:
            ends[parent] = max(ends[parent], ends[column])
    return depths, ends


def _visible(ends: torch.Tensor) -> torch.Tensor:
    """Return the ancestor mask (b, 1, t, t) of `ends` (b, t): True where a token may look, itself included."""
    columns = torch.arange(ends.shape[1], device=ends.device)
    return (columns <= columns[:, None]) & (columns[:, None] < ends[:, None, None, :])


def collate(
    packs: Sequence[Pack], pad_token_id: int, *, multiple: int = 1, dense: bool = True
) -> dict[str, torch.Tensor]:
    """Pad packs on the right to one batch.

    Args:
        packs: At least one.
        pad_token_id: Fills the rest of each row.
        multiple: The length of the batch is rounded up to a multiple of this. Batches of a hundred different lengths
            fragment the memory of a long training: the allocator took a quarter of the time after 400 steps.
        dense: Whether the batch gets a mask, or the `ends` that `block_mask` takes, which are t times smaller.

    Returns:
        `input_ids` and `position_ids` of shape (b, t), and either `attention_mask` of shape (b, 1, t, t), boolean,
        True where a token may look, or `ends` (b, t). A padded token looks at itself alone, since a row without any
        key gives NaN.
    """
    length = -(-max(map(len, packs)) // multiple) * multiple
    input_ids = torch.full((len(packs), length), pad_token_id)
    position_ids = torch.zeros(len(packs), length, dtype=torch.long)
    ends = torch.arange(1, length + 1, dtype=torch.int32).repeat(len(packs), 1)
    for row, pack in enumerate(packs):
        n = len(pack)
        rows = (pack.input_ids, *_depths_and_ends(pack))
        input_ids[row, :n], position_ids[row, :n], ends[row, :n] = map(torch.tensor, rows)
    batch = {"input_ids": input_ids, "position_ids": position_ids}
    return {**batch, "attention_mask": _visible(ends)} if dense else {**batch, "ends": ends}


def block_mask(ends: torch.Tensor) -> BlockMask:
    """Return the mask of a batch for flex attention: the blocks that it reads, and the rule inside them.

    A block of keys is known by its largest and its smallest end, so neither the mask of t x t is built, as torch's
    `create_block_mask` would, nor is anything compiled. The result is the same.

    Args:
        ends: Those of `collate`, of shape (b, t), on the device of the model.
    """
    # Block of queries Q and block of keys K < Q (128 x 128 entries of the mask above):
    #   full  all queries see all keys     smallest end in K >= first column behind Q
    #   read  some query sees some key     largest end in K > first column of Q
    rows, length = ends.shape
    starts = torch.arange(0, length, _BLOCK, device=ends.device)
    padding = len(starts) * _BLOCK - length
    blocks = torch.nn.functional.pad(ends, (0, padding)).view(rows, 1, len(starts), _BLOCK)
    earlier = starts < starts[:, None]
    full = earlier & (blocks.amin(-1)[..., None, :] >= starts[:, None] + _BLOCK)
    read = (starts == starts[:, None]) | earlier & (blocks.amax(-1)[..., None, :] > starts[:, None])

    def sees(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & (query < ends[row, key])

    return BlockMask.from_kv_blocks(
        *_ordered(read & ~full), *_ordered(full), BLOCK_SIZE=_BLOCK, mask_mod=sees, seq_lengths=(length, length)
    )


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how many blocks (b, 1, n, n) are set in each row, and all columns of the row, these first."""
    columns = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(dim=-1, dtype=torch.int32), columns.int()


def by_budget(packs: Sequence[Pack], max_tokens: int) -> Iterator[list[int]]:
    """Yield batches of indices of packs of similar length, each of at most `max_tokens` tokens with padding."""
    batch: list[int] = []
    for index in sorted(range(len(packs)), key=lambda index: len(packs[index])):
        if batch and (len(batch) + 1) * len(packs[index]) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
