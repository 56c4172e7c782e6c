"""Flex attention gives what SDPA gives, without a mask of all pairs of tokens.

Off CUDA torch has only its unfused form, which knows the rule inside the blocks and not the blocks, and no backward
pass: it is let through here. The blocks are compared with torch's own, and a slow test compiles the CPU's kernel,
which reads them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention as flex
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.integrations import flex_attention as integration

from llm_wrapper.errors import ModelError
from llm_wrapper.llms import load, packing
from llm_wrapper.llms.local import score_prompts
from llm_wrapper.llms.packing import Pack, additive_mask, block_mask, collate, pack_tree
from llm_wrapper.recipe import LLMSection
from llm_wrapper.training import memory_estimate, trainer
from tests.llms import tiny
from tests.llms.test_packing import TREES, sequences
from tests.training.test_memory_estimate import BATCH, SETUP, SIZES
from tests.training.test_trainer import examples, gradients, groups, recipe, trainer_for

pytestmark = pytest.mark.slow

merging = pytest.mark.parametrize("merge", [True, False], ids=["merge", "branches"])


@pytest.fixture
def unfused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flex attention without a compiler, and with its backward pass."""
    monkeypatch.setattr(flex, "_validate_device", lambda *states: None)
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(integration, "WrappedFlexAttention", lambda training: lambda: flex.flex_attention)


def long_packs(seed: int, *, merge: bool) -> list[Pack]:
    """Trees of several blocks of 128 tokens: long prefixes and branches, none of them, a chain."""
    draw = random.Random(seed)
    trees = [
        [
            [*range(shared), *(draw.randrange(1, 4) for _ in range(draw.randrange(1, 200)))]
            for _ in range(draw.randrange(1, 6))
        ]
        for shared in (draw.randrange(300), 0, 150)
    ]
    return [pack_tree(tree, merge=merge) for tree in trees]


def ancestors(pack: Pack, place: int) -> set[int]:
    """The places of a token and of those before it in its sequence."""
    found = {place}
    while (place := pack.parents[place]) >= 0:
        found.add(place)
    return found


def seen(mask: torch.Tensor, pack: Pack) -> list[set[int]]:
    return [set(row.nonzero().flatten().tolist()) for row in mask[: len(pack)]]


# --- the mask --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(sequences(), min_size=1, max_size=3), st.booleans())
def test_a_token_sees_its_ancestors(trees: list[list[list[int]]], merge: bool) -> None:
    packs = [pack_tree(tree, merge=merge) for tree in trees]
    masks = collate(packs, 0, multiple=4)["attention_mask"]
    for pack, mask in zip(packs, masks, strict=True):
        assert seen(mask[0], pack) == [ancestors(pack, place) for place in range(len(pack))]
        assert torch.equal(mask[0, len(pack) :], torch.eye(mask.shape[-1], dtype=torch.bool)[len(pack) :])


def test_branches_that_others_stand_between_in_the_input_are_put_together() -> None:
    tree = [[1, 2, 3], [1, 4], [1, 2, 5]]
    pack = pack_tree(tree, merge=True)
    assert [[pack.input_ids[place] for place in path] for path in pack.paths] == tree
    assert seen(collate([pack], 0)["attention_mask"][0, 0], pack) == [ancestors(pack, place) for place in range(5)]


@merging
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("multiple", [1, 16, 128], ids=["odd", "sixteens", "whole blocks"])
def test_blocks_are_those_of_torch(seed: int, multiple: int, merge: bool) -> None:
    ends = collate(long_packs(seed, merge=merge), 0, multiple=multiple, dense=False)["ends"]
    assert_blocks_of_torch(ends)


@pytest.mark.parametrize("length", [1, 127, 128, 129, 256, 385])
def test_blocks_of_a_chain_are_those_of_torch(length: int) -> None:
    ends = collate([pack_tree([list(range(length))], merge=False)], 0, dense=False)["ends"]
    assert_blocks_of_torch(ends)


def assert_blocks_of_torch(ends: torch.Tensor) -> None:
    ours = block_mask(ends)
    rows, length = ends.shape
    theirs = flex.create_block_mask(ours.mask_mod, rows, None, length, length, device="cpu")
    assert ours.shape == theirs.shape == (rows, 1, length, length)
    for name, mine in vars(ours).items():
        other = getattr(theirs, name)
        if isinstance(other, torch.Tensor):
            assert mine.dtype == other.dtype, name
            assert torch.equal(mine, other), name
    assert (ours.BLOCK_SIZE, ours.seq_lengths) == (theirs.BLOCK_SIZE, theirs.seq_lengths)


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the elements of the largest tensor that anything made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))])
        return made


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "blocks"])
def test_no_mask_of_all_pairs_is_made(dense: bool) -> None:
    packs = [pack_tree([[*range(1000), *range(500)], [*range(1000), *range(1, 549)]], merge=False)] * 2
    with _Largest() as largest:  # type: ignore[no-untyped-call]
        batch = collate(packs, 0, multiple=16, dense=dense)
        if not dense:
            block_mask(batch["ends"])
    assert batch["input_ids"].shape == (2, 2048)
    assert largest.numel == (2 * 2048**2 if dense else 2 * 2048)


# --- through a model -------------------------------------------------------------------------------------------------


def loss_and_gradients(attention: str, packs: Sequence[Pack], *, architecture: str) -> dict[str, torch.Tensor]:
    """A loss in which every token that is not padding has its part, and its gradients."""
    model = tiny.model(architecture, attention=attention)
    batch: dict[str, Any] = dict(collate(packs, 0, multiple=16, dense=attention != "flex_attention"))
    ends = batch.pop("ends", None)
    batch["attention_mask"] = (
        additive_mask(batch["attention_mask"], torch.float32) if ends is None else block_mask(ends)
    )
    logits = model(**batch, use_cache=False).logits
    real = torch.stack([torch.arange(logits.shape[1]) < len(pack) for pack in packs])
    loss = logits.logsumexp(-1)[real].mean()
    loss.backward()
    return {"loss": loss.detach(), **gradients(model)}


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    largest = max(float(value.abs().max()) for value in theirs.values())
    assert largest > 1e-3
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5 * max(1.0, largest), rtol=1e-4, msg=name)


@merging
@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
@pytest.mark.usefixtures("unfused")
def test_any_trees_have_the_loss_and_gradients_of_sdpa(architecture: str, merge: bool) -> None:
    packs = [pack_tree(tree, merge=merge) for tree in (*TREES.values(), [[*range(150), 1], [*range(150), 2, 3]])]
    ours, theirs = (
        loss_and_gradients(attention, packs, architecture=architecture) for attention in ("flex_attention", "sdpa")
    )
    assert_close(ours, theirs)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
@pytest.mark.usefixtures("unfused")
def test_packed_training_has_the_loss_and_gradients_of_separate_prompts(checkpointing: bool, tmp_path: Path) -> None:
    llm, chosen = tiny.llm(attention="flex_attention"), recipe(gradient_checkpointing=checkpointing)
    trainer = trainer_for(llm, groups(), chosen, tmp_path)
    if checkpointing:
        trainer.model.enable_input_require_grads()
        trainer.model.activation_checkpointing_enable()
    model = trainer.model.train(checkpointing)
    (batch,) = trainer.data_collator([{"epoch": 0, "group": place} for place in range(4)])["parts"]
    assert "attention_mask" not in batch
    loss = trainer.compute_loss(model, trainer._prepare_inputs(batch))
    loss.backward()
    assert_close({"loss": loss.detach(), **gradients(model)}, separate(trainer, groups(), chosen))


def separate(trainer: trainer.PackedTrainer, which: Sequence[Any], chosen: Any) -> dict[str, torch.Tensor]:
    """The loss and gradients of each prompt alone, by SDPA."""
    model = trainer.model.eval()
    model.get_base_model().set_attn_implementation("sdpa")
    total, count = torch.zeros(()), 0
    for prompt, completion in examples(trainer.data_collator.llm, which, chosen):
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="sum")
        count += len(completion)
    loss: Any = total / count
    loss.backward()
    return {"loss": loss.detach(), **gradients(model)}


@pytest.mark.usefixtures("unfused")
def test_a_run_has_the_losses_of_sdpa(tmp_path: Path) -> None:
    losses = []
    for attention in ("sdpa", "flex_attention"):
        llm = tiny.llm(attention=attention)
        training = trainer.build_trainer(llm, groups()[:2], recipe(groups_per_step=1), tmp_path / attention)
        training.train()
        losses.append([row["loss"] for row in training.state.log_history if "loss" in row])
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def some_prompts() -> list[Any]:
    """Neighbours that share candidates, and more than ten candidates, whose indices share digits."""
    shared = [tiny.prompt(text, 3, number=i) for i, text in enumerate(("left dog", "left cat on a chair"))]
    return [*shared, tiny.prompt("the 12th", 13)]


@pytest.mark.parametrize(("architecture", "style"), [("llama", "chatml"), ("mixtral", "llama3")])
@pytest.mark.usefixtures("unfused")
def test_scores_are_those_of_unshared_prompts(architecture: str, style: str) -> None:
    assert_scores_are_unshared(architecture, style)


def assert_scores_are_unshared(architecture: str, style: str) -> None:
    ours = dict(score_prompts(tiny.llm(architecture, style, attention="flex_attention"), some_prompts()))
    theirs = dict(score_prompts(tiny.llm(architecture, style, attention="sdpa"), some_prompts(), share=False))
    for place, answer in theirs.items():
        assert ours[place].probabilities == pytest.approx(answer.probabilities, abs=1e-5)
        assert ours[place].mass == pytest.approx(answer.mass, rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when its compiler is imported
def test_the_compiled_kernel_of_the_cpu_scores_the_same() -> None:
    assert_scores_are_unshared("llama", "chatml")


# --- where it is chosen ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "attention", "expected"),
    [
        pytest.param("llama", "flex_attention", True, id="flex"),
        pytest.param("llama", "sdpa", False, id="sdpa"),
        pytest.param("gemma2", "flex_attention", False, id="local layers"),
    ],
)
def test_blocks_go_where_flex_attention_may_share(architecture: str, attention: str, expected: bool) -> None:
    model = tiny.model(architecture, attention=attention)
    assert packing.takes_blocks(model) is expected
    assert packing.can_share_prefixes(model, 1) is (attention == "sdpa" or architecture == "llama")


@pytest.mark.parametrize(
    ("asked", "where", "expected"),
    [("flex_attention", "cuda", "flex_attention"), ("auto", "cuda", None), ("auto", "cpu", "eager")],
)
def test_flex_attention_has_to_be_asked_for(asked: Any, where: str, expected: str | None) -> None:
    assert load._attention(LLMSection(attention=asked), torch.device(where)) == expected


def test_flex_attention_is_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(load, "choose_device", lambda: torch.device("cpu"))
    tiny.llm().model.save_pretrained(tmp_path)
    tiny.tokenizer("chatml").save_pretrained(tmp_path)
    section = LLMSection(model=str(tmp_path), quantization="none", attention="flex_attention")
    for refused in (load.load_model, memory_estimate.build_weightless_model):
        with pytest.raises(ModelError, match=r"llm\.attention=flex_attention needs a CUDA device.*auto"):
            refused(section)


@pytest.mark.parametrize(("attention", "expected"), [("sdpa", True), ("eager", True), ("flex_attention", False)])
def test_plan_counts_a_mask_where_there_is_one(attention: str, expected: bool) -> None:
    setup = memory_estimate.describe_setup(recipe(), tiny.model("llama", attention=attention))
    assert setup.has_mask is expected


def test_without_a_mask_less_memory_is_planned() -> None:
    without = replace(SETUP, has_mask=False)
    spared = (
        memory_estimate.estimate_memory(SIZES, SETUP, BATCH).peak
        - memory_estimate.estimate_memory(SIZES, without, BATCH).peak
    )
    assert spared == 4 * 256**2 * (1 + 2)
