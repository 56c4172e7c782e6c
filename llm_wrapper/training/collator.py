"""Groups -> what goes through the model at a time: packs, positions that restart, who sees whom, labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.packing import Pack, by_budget, collate, pack_tree
from llm_wrapper.llms.sharing import attention_mask, can_share_prefixes, takes_blocks
from llm_wrapper.llms.soft_prompts import num_virtual
from llm_wrapper.recipe import Recipe
from llm_wrapper.training import processes
from llm_wrapper.training.examples import Group, TrainingExample, make_examples

__all__ = ["FILLER", "IGNORED", "Collator", "encode_example"]

IGNORED = -100
"""The label of a token that is not trained on."""
FILLER = -1
"""The group of a row without labels, which fills the last step up where processes share it."""
_MULTIPLE = 16


def encode_example(llm: LoadedLLM, example: TrainingExample) -> tuple[list[int], int]:
    """Return the token ids of a prompt and its completion, and how many of them are the completion's."""
    completion = llm.encoder.completion(example.index)
    return [*llm.encoder.encode(example.prompt), *completion], len(completion)


@dataclass(frozen=True, slots=True)
class _Packed:
    """A pack of some expressions of a row (`place`); the last `spans[i]` tokens of path i are its completion."""

    place: int
    pack: Pack
    spans: Sequence[int]


@dataclass
class Collator:
    """Turns rows {"epoch", "group"}, those of a step, into parts of at most `train.tokens_per_batch` tokens."""

    llm: LoadedLLM
    groups: Sequence[Group]
    recipe: Recipe

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        """Return `parts`, and the `labels` of all of them in a row behind one that is ignored, to be counted.

        A part has `input_ids`, `position_ids`, `labels` (b, t) and the `attention_mask` that the model takes; for flex
        attention `ends` (b, t) instead: the trainer moves tensors alone to the device, and no mask of blocks. Its
        `rows` (n, 2) say what it was made of, see `told`. One expression that is longer than allowed is a part alone.
        """
        model, packed = self.llm.model, self._step(rows, share=can_share_prefixes(self.llm.model, 1))
        if not can_share_prefixes(model, max(len(one.pack) for one in packed) + num_virtual(model)):
            packed = self._step(rows, share=False)  # one mask for all of a step: with it no layer has its window
        parts = [self._part([packed[place] for place in places], rows) for places in self._parts(packed)]
        labels = [part["labels"][:, 1:].flatten() for part in parts]
        return {"parts": parts, "labels": torch.cat([torch.tensor([IGNORED]), *labels])}

    def _parts(self, packed: Sequence[_Packed]) -> Iterator[list[int]]:
        """Yield places in `packed` that go through the model together.

        Processes that have a part of the model each must go through it equally often: their share of a step is one.
        """
        if processes.is_sharded():
            yield list(range(len(packed)))
        else:
            yield from by_budget([one.pack for one in packed], self.recipe.train.tokens_per_batch)

    def _step(self, rows: Sequence[dict[str, int]], *, share: bool) -> list[_Packed]:
        numbered = enumerate(rows)
        return [one for n, row in numbered for one in self._packed(n, row["epoch"], row["group"], share=share)]

    def _packed(self, place: int, epoch: int, group: int, *, share: bool) -> Iterator[_Packed]:
        """Yield the packs of a row: one, if it is no longer than allowed and its expressions may share a prefix."""
        sequences, spans = zip(
            *(encode_example(self.llm, example) for example in self._examples(epoch, group)), strict=True
        )
        if group == FILLER:
            spans = tuple(0 for _ in spans)
        if share:
            yield from self._halved(place, sequences, spans)
        else:
            for one, span in zip(sequences, spans, strict=True):
                yield _Packed(place, pack_tree([one], merge=False), [span])

    def _halved(self, place: int, sequences: Sequence[list[int]], spans: Sequence[int]) -> Iterator[_Packed]:
        # Equal prompts would share all: each completion needs a token of its own branch to stand behind.
        shortest = min(len(one) - span for one, span in zip(sequences, spans, strict=True))
        pack, half = pack_tree(sequences, merge=False, most_shared=shortest - 1), len(sequences) // 2
        if half == 0 or len(pack) <= self.recipe.train.tokens_per_batch:
            yield _Packed(place, pack, spans)
        else:
            yield from self._halved(place, sequences[:half], spans[:half])
            yield from self._halved(place, sequences[half:], spans[half:])

    def _part(self, packed: Sequence[_Packed], rows: Sequence[dict[str, int]]) -> dict[str, torch.Tensor]:
        packs, dense = [one.pack for one in packed], not takes_blocks(self.llm.model)
        part = collate(packs, self.llm.tokenizer.pad_token_id, multiple=_MULTIPLE, dense=dense)
        part["labels"] = _labels(packed, part["input_ids"])
        places = dict.fromkeys(one.place for one in packed)
        part["rows"] = torch.tensor([[rows[place]["epoch"], rows[place]["group"]] for place in places])
        if dense:
            part["attention_mask"] = attention_mask(self.llm.model, packs, part["attention_mask"])
        return part

    def _examples(self, epoch: int, group: int) -> list[TrainingExample]:
        words, section = self.recipe.prompt, self.recipe.train
        return make_examples(self.groups[group], words.format, section, epoch=epoch, instruction=words.instruction)

    def told(self, epoch: int, group: int) -> list[dict[str, str]]:
        """Return the samples of a row in words: id, and prompt and answer as the model reads them."""
        return [
            {
                "sample_id": example.prompt.sample_id,
                "text": self.llm.tokenizer.decode(encode_example(self.llm, example)[0]),
                "labels": "none: it fills the step up" if group == FILLER else "the completion",
            }
            for example in self._examples(epoch, group)
        ]


def _labels(packed: Sequence[_Packed], input_ids: torch.Tensor) -> torch.Tensor:
    """Label the completions' tokens; each stands right behind its parent, so the usual shift by one is right."""
    labels = torch.full_like(input_ids, IGNORED)
    for row, one in enumerate(packed):
        for path, span in zip(one.pack.paths, one.spans, strict=True):
            for place in path[len(path) - span :]:
                labels[row, place] = one.pack.input_ids[place]
    return labels
