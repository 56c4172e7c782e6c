"""Turn groups into packed token rows: one shared prefix per image, and behind it the branches of its expressions.

group  prompt "0 cat .. 1 dog .. left one?" answer "1"      prefix      p p p p
       prompt "0 cat .. 1 dog .. the cat?"  answer "0"      branch 1            a a 1
                                                            branch 2                  b b 0
input_ids     p  p  p  p  a  a  1  b  b  0
position_ids  0  1  2  3  4  5  6  4  5  6                  positions restart with each branch
labels        .  .  .  .  .  .  1  .  .  0                  only answers; each follows its parent in its branch
attention     a, b and answers see the prefix and their own branch, never the other branch
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.packing import Pack, by_budget, can_share_prefixes, collate_for, pack_tree
from llm_wrapper.llms.soft_prompts import num_virtual
from llm_wrapper.recipe import Recipe
from llm_wrapper.training import processes
from llm_wrapper.training.examples import Group, TrainingExample, make_examples

IGNORED = -100
"""The label of a token that is not trained on."""
FILLER = -1
"""The group of a row without labels, which completes the last step where processes share it."""
_MULTIPLE = 16


def encode_example(llm: LoadedLLM, example: TrainingExample) -> tuple[list[int], int]:
    """Return the token ids of a prompt and its completion, and how many of them are the completion's."""
    completion = llm.encoder.completion(example.index)
    return [*llm.encoder.encode(example.prompt), *completion], len(completion)


@dataclass(frozen=True, slots=True)
class _PackedRow:
    """A pack of expressions of row number `row`; the last `spans[i]` tokens of path i are its completion."""

    row: int
    pack: Pack
    spans: Sequence[int]


@dataclass
class Collator:
    """Turns the rows {"epoch", "group"} of a step into parts of at most `train.tokens_per_batch` tokens."""

    llm: LoadedLLM
    groups: Sequence[Group]
    recipe: Recipe

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        """Return `parts`, and the `labels` of all of them in a row after an ignored one, which Trainer counts.

        A part has `input_ids`, `position_ids`, `labels` (b, t), the `attention_mask` that the model takes, and `rows`
        (n, 2), its (epoch, group) pairs. For flex attention it has `ends` (b, t) instead of a mask: the trainer moves
        tensors alone to the device, and no mask of blocks. An expression longer than allowed is a part of one row.
        """
        model, packed = self.llm.model, self._pack_step(rows, share=can_share_prefixes(self.llm.model, 1))
        if not can_share_prefixes(model, max(len(one.pack) for one in packed) + num_virtual(model)):
            packed = self._pack_step(rows, share=False)  # with one mask for all of a step no layer has its window
        if processes.is_sharded():  # all processes must run the model equally often: their share of a step is one part
            batches = [list(range(len(packed)))]
        else:
            batches = list(by_budget([one.pack for one in packed], self.recipe.train.tokens_per_batch))
        parts = [self._collate([packed[i] for i in batch], rows) for batch in batches]
        labels = [part["labels"][:, 1:].flatten() for part in parts]
        return {"parts": parts, "labels": torch.cat([torch.tensor([IGNORED]), *labels])}

    def _pack_step(self, rows: Sequence[dict[str, int]], *, share: bool) -> list[_PackedRow]:
        packed: list[_PackedRow] = []
        for n, row in enumerate(rows):
            examples = self._examples(row["epoch"], row["group"])
            sequences, spans = zip(*(encode_example(self.llm, example) for example in examples), strict=True)
            if row["group"] == FILLER:
                spans = tuple(0 for _ in spans)
            if share:
                packed += self._pack_shared(n, sequences, spans)
            else:
                packed += [
                    _PackedRow(n, pack_tree([one], merge=False), [span])
                    for one, span in zip(sequences, spans, strict=True)
                ]
        return packed

    def _pack_shared(self, row: int, sequences: Sequence[list[int]], spans: Sequence[int]) -> Iterator[_PackedRow]:
        """Yield one pack of all sequences, or those of both halves where it is longer than allowed."""
        # Equal prompts would share everything: each completion needs a token of its branch to follow.
        shortest = min(len(one) - span for one, span in zip(sequences, spans, strict=True))
        pack, half = pack_tree(sequences, merge=False, most_shared=shortest - 1), len(sequences) // 2
        if half == 0 or len(pack) <= self.recipe.train.tokens_per_batch:
            yield _PackedRow(row, pack, spans)
        else:
            yield from self._pack_shared(row, sequences[:half], spans[:half])
            yield from self._pack_shared(row, sequences[half:], spans[half:])

    def _collate(self, packed: Sequence[_PackedRow], rows: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        packs, pad = [one.pack for one in packed], self.llm.tokenizer.pad_token_id
        part = collate_for(self.llm.model, packs, pad, multiple=_MULTIPLE)
        part["labels"] = labels = torch.full_like(part["input_ids"], IGNORED)
        for place, one in enumerate(packed):  # a completion follows its parent directly: the shift by one is right
            for path, span in zip(one.pack.paths, one.spans, strict=True):
                for position in path[len(path) - span :]:
                    labels[place, position] = one.pack.input_ids[position]
        numbers = dict.fromkeys(one.row for one in packed)
        part["rows"] = torch.tensor([[rows[n]["epoch"], rows[n]["group"]] for n in numbers])
        return part

    def _examples(self, epoch: int, group: int) -> list[TrainingExample]:
        prompt, section = self.recipe.prompt, self.recipe.train
        return make_examples(self.groups[group], prompt.format, section, epoch=epoch, instruction=prompt.instruction)

    def describe_row(self, epoch: int, group: int) -> list[dict[str, str]]:
        """Return the samples of a row for people: id, and prompt and answer as the model reads them."""
        return [
            {
                "sample_id": example.prompt.sample_id,
                "text": self.llm.tokenizer.decode(encode_example(self.llm, example)[0]),
                "labels": "none: it completes the step" if group == FILLER else "the completion",
            }
            for example in self._examples(epoch, group)
        ]
