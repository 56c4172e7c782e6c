"""Pack sequences that share a prefix behind one copy of it, and send the packs through a model.

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

import re
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask

_BLOCK = 128
"""Tokens along one side of a block: the default of flex attention."""
FLEX = "flex_attention"
TAKE_MASKS = {"eager", "sdpa", FLEX}
_GLOBAL = {"full_attention", "global"}
_LOCAL = {"sliding_attention", "chunked_attention", "local"}
_WINDOW = re.compile(r"(?:^|_)(?:window|window_size|attention_chunk_size|local_attention)$")


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


def common_prefix_length(*sequences: Any) -> int:
    """Return how many leading elements lists, tuples or texts share."""
    first, last = min(sequences), max(sequences)  # what these two share, all share
    pairs = enumerate(zip(first, last, strict=False))
    return next((length for length, (one, other) in pairs if one != other), min(len(first), len(last)))


def pack_tree(sequences: Sequence[Sequence[int]], *, merge: bool, most_shared: int | None = None) -> Pack:
    """Pack token sequences behind their longest common prefix.

    Args:
        sequences: At least one, none empty.
        merge: Whether later tokens that agree are shared too (a trie, for scoring), or each sequence keeps its whole
            branch (for training, where next-token labels must be neighbours). No branch is empty: where a sequence is
            the whole common prefix, one token less is shared.
        most_shared: Most tokens of the common prefix to share; None: as many as there are.
    """
    shared = min(common_prefix_length(*sequences), min(map(len, sequences)) - 1)
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


# --- batches and masks -----------------------------------------------------------------------------------------------


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
        depths, last = [0] * len(pack), list(range(1, len(pack) + 1))
        for column, parent in enumerate(pack.parents):
            depths[column] = depths[parent] + 1 if parent >= 0 else 0
        for column in range(len(pack) - 1, 0, -1):
            if (parent := pack.parents[column]) >= 0:
                last[parent] = max(last[parent], last[column])
        for tensor, values in ((input_ids, pack.input_ids), (position_ids, depths), (ends, last)):
            tensor[row, : len(pack)] = torch.tensor(values)
    batch = {"input_ids": input_ids, "position_ids": position_ids}
    if not dense:
        return {**batch, "ends": ends}
    columns = torch.arange(length)
    visible = (columns <= columns[:, None]) & (columns[:, None] < ends[:, None, None, :])
    return {**batch, "attention_mask": visible}


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn a boolean mask (True: may look) into what eager and SDPA attention add to their logits."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)


def collate_for(
    model: Any, packs: Sequence[Pack], pad_token_id: int, *, multiple: int = 1, device: Any = "cpu"
) -> dict[str, torch.Tensor]:
    """Pad packs to one batch, with the `attention_mask` that a model takes.

    A mask of four dimensions is made on `device`: there it is quick, and as booleans it is a quarter to move.

    plain packs      (b, t) of zeros and ones: the model adds its own window, which it would not put on four
                     dimensions, and SDPA may take its fast kernels
    other packs      (b, 1, t, t), added to the logits: 0 where q sees k, else the lowest number
    flex attention   none, but the `ends` (b, t) from which `block_mask` makes one
    """
    takes, is_plain = takes_blocks(model), all(pack.is_plain for pack in packs)
    batch = collate(packs, pad_token_id, multiple=multiple, dense=not takes and not is_plain)
    if takes:
        return batch
    if is_plain:
        columns, lengths = torch.arange(batch.pop("ends").shape[1]), torch.tensor([len(pack) for pack in packs])
        return {**batch, "attention_mask": (columns < lengths[:, None]).long()}
    return {**batch, "attention_mask": additive_mask(batch["attention_mask"].to(device), model.dtype)}


def model_batch(model: Any, packs: Sequence[Pack], pad_token_id: int, *, multiple: int = 1) -> dict[str, Any]:
    """Return a model's arguments for packs, on its device."""
    collated = collate_for(model, packs, pad_token_id, multiple=multiple, device=model.device)
    batch: dict[str, Any] = {key: value.to(model.device) for key, value in collated.items()}
    if "ends" in batch:
        batch["attention_mask"] = block_mask(batch.pop("ends"))
    return batch


def block_mask(ends: torch.Tensor) -> BlockMask:
    """Return the mask of a batch for flex attention: the blocks that it reads, and the rule inside them.

    A block of keys is known by its largest and its smallest end, so neither the mask of t x t is built, as torch's
    `create_block_mask` would, nor is anything compiled. The result is the same.

    `ends` are those of `collate`, (b, t), on the device of the model.
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

    def ordered(set_blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how many blocks (b, 1, n, n) are set in each row, and all columns of the row, these first."""
        columns = set_blocks.int().argsort(dim=-1, descending=True, stable=True)
        return set_blocks.sum(dim=-1, dtype=torch.int32), columns.int()

    return BlockMask.from_kv_blocks(
        *ordered(read & ~full), *ordered(full), BLOCK_SIZE=_BLOCK, mask_mod=sees, seq_lengths=(length, length)
    )


def base_of(model: Any) -> Any:
    """Return the model itself without PEFT's wrapping; adapters of its layers stay in it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def logits_at(model: Any, batch: dict[str, Any], rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return the logits (n, vocabulary) of n (row, column) pairs, by the model's own forward pass.

        hidden (b, t, d) --hook on the output layer--> hidden[rows, columns] (1, n, d) -> logits (1, n, vocabulary)

    Only these go through the output layer: `logits_to_keep` takes the same columns of all rows, which would be several
    times as many, and some models lack it. Everything the model does around that layer (scales, caps) stays as it is.

    Args:
        model: Without PEFT's wrapping.
        batch: Its arguments.
        rows: Of shape (n,), on the model's device.
        columns: Of shape (n,), counted in the outputs: learned tokens in the row come first.
    """
    picked = []

    def pick(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or args[0].ndim != 3:
            return None
        picked.append(True)
        return (args[0][rows, columns][None], *args[1:])

    head = model.get_output_embeddings()
    handle = None if head is None else head.register_forward_pre_hook(pick)
    try:
        logits: torch.Tensor = model(**batch, use_cache=False).logits
    finally:
        if handle:
            handle.remove()
    return logits[0] if picked else logits[rows, columns]


# --- which models may share ------------------------------------------------------------------------------------------


def can_share_prefixes(model: Any, longest: int) -> bool:
    """Tell whether packed sequences see what they would see alone.

    They do not with flash attention, which takes no mask; where attention is local and a pack is longer than the window
    (which counts columns, or is not applied to a mask of packs at all); and where the self-test found another reason:
    positions that are not read from `position_ids`, or a state that runs along the row. Windows are read from the
    model's settings, since they are longer than the test's sequences.

    Args:
        model: With or without an adapter. One without weights (on the meta device) is believed.
        longest: Tokens of the longest pack, 1 if it is not known yet: then windows are thought wide enough.
    """
    base = base_of(model)
    config = base.config.get_text_config()
    window = _window(config)
    if config._attn_implementation not in TAKE_MASKS:
        return False
    if window is not None and (longest >= window or config._attn_implementation == FLEX):
        return False
    return base.device.type == "meta" or not reason_not_to_share(base)


_REASONS: weakref.WeakKeyDictionary[torch.nn.Module, str] = weakref.WeakKeyDictionary()


def reason_not_to_share(base: Any) -> str:
    """Return why packs are not exact, empty if they are; tested once for each model without PEFT's wrapping."""
    if base not in _REASONS:
        from llm_wrapper.llms.self_test import try_out  # it packs its sequences by this module

        _REASONS[base] = try_out(base)
    return _REASONS[base]


def takes_blocks(model: Any) -> bool:
    """Tell whether packs go into the model with the mask of `block_mask`, and none of (b, 1, t, t)."""
    return base_of(model).config.get_text_config()._attn_implementation == FLEX and can_share_prefixes(model, 1)


def _window(config: Any) -> int | None:
    """Return how far back the most local layer of a text model looks; None if all layers see all, 0 if unknown."""
    kinds = {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "attention_layers", None) or ())}
    if kinds and kinds <= _GLOBAL:
        return None
    sizes = [
        value
        for name, value in vars(config).items()
        if _WINDOW.search(name) and isinstance(value, int) and not isinstance(value, bool) and value > 0
    ]
    if kinds - _GLOBAL - _LOCAL or (kinds and not sizes):
        return 0
    return min(sizes, default=None)
