"""Packed training is ordinary fine-tuning of each prompt alone: same loss, same gradients, and it survives a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import peft
import pytest
import safetensors.torch
import torch
import transformers

from llm_wrapper.errors import DataError, ModelError
from llm_wrapper.llms.adapters import add_adapter
from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.packing import collate, pack_tree
from llm_wrapper.recipe import DataSection, DetectorSection, LoraSection, PromptSection, Recipe, TrainSection
from llm_wrapper.training import trainer
from llm_wrapper.training.callbacks import StepLog
from llm_wrapper.training.collator import Collator
from llm_wrapper.training.examples import Group, make_examples
from tests.llms import tiny

IGNORED = -100


def recipe(**train: Any) -> Recipe:
    """A recipe in the compact format; arguments go to the train section."""
    fixed = {"learning_rate": 0.01, "warmup_steps": 0, "groups_per_step": 2, "scheduler": "constant"}
    options: dict[str, Any] = {"lora": LoraSection(rank=4, alpha=8), **fixed, **train}
    return Recipe(
        detector=DetectorSection(name="tiny"),
        data=DataSection(name="tiny", reader="tiny", root=Path()),
        prompt=PromptSection(format="compact"),
        llm=tiny.llm().section,
        train=TrainSection(**options),
    )


def group(number: int, *expressions: str, count: int = 3) -> Group:
    samples = tuple(tiny.sample(text, image=f"image-{number}", number=i) for i, text in enumerate(expressions))
    targets = tuple((number + i) % count for i in range(len(expressions)))
    return Group(samples, targets, tiny.candidates(count, first=number))


def groups() -> list[Group]:
    """Several expressions, a single one, equal ones with equal and different answers, and answers of two digits."""
    return [
        group(0, "left dog", "the cat", "a chair on the right"),
        group(1, "dog"),
        group(2, "same words", "same words", "same words", count=2),
        group(11, "the 12th", "the first", "cat", count=12),
    ]


def train_groups(num: int = 12) -> list[Group]:
    """Groups whose answer can be learned: the index is the word."""
    return [
        Group((tiny.sample(f"number {i % 3}", image=f"image-{i}"),), (i % 3,), tiny.candidates(3, first=i % 5))
        for i in range(num)
    ]


def examples(llm: LoadedLLM, which: Sequence[Group], chosen: Recipe) -> Iterator[tuple[list[int], list[int]]]:
    """Each example of all groups as (prompt ids, completion ids)."""
    for one in which:
        for example in make_examples(one, chosen.prompt.format, chosen.train, epoch=0):
            yield llm.encoder.encode(example.prompt), list(llm.encoder.completion(example.index))


def trainer_for(llm: LoadedLLM, which: Sequence[Group], chosen: Recipe, folder: Path) -> trainer.PackedTrainer:
    """A trainer whose adapter is random (PEFT starts with zeros, behind which half of the gradients vanish)."""
    lora = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    return trainer.PackedTrainer(
        model=peft.get_peft_model(llm.model, lora),
        args=trainer.training_arguments(llm, chosen, folder),
        train_dataset=datasets.Dataset.from_dict({"epoch": [0], "group": [0]}),
        data_collator=Collator(llm, which, chosen),
        processing_class=llm.tokenizer,
    )


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


pairs = pytest.mark.parametrize(
    ("architecture", "style"),
    [("llama", "chatml"), ("llama", "numbers"), ("gemma2", "gemma"), ("gpt_neo", "bare")],
    ids=["llama", "llama-numbers", "gemma2", "gpt_neo"],
)


@pairs
@pytest.mark.parametrize("num_items", [None, 40], ids=["own mean", "mean of the step"])
def test_packed_loss_and_gradients_equal_those_of_separate_prompts(
    architecture: str, style: str, num_items: int | None, tmp_path: Path
) -> None:
    llm, chosen = tiny.llm(architecture, style), recipe()
    built = trainer_for(llm, groups(), chosen, tmp_path)
    model = built.model.eval()
    batch = built.data_collator([{"epoch": 0, "group": place} for place in range(4)])["parts"][0]
    packed = built.compute_loss(model, dict(batch), num_items_in_batch=num_items)
    packed.backward()
    ours = gradients(model)

    total, count = torch.zeros(()), 0
    for prompt, completion in examples(llm, groups(), chosen):
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="sum")
        count += len(completion)
    expected = total / (num_items or count)
    expected.backward()
    theirs = gradients(model)

    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-5)
    assert ours.keys() == theirs.keys()
    assert len(ours) >= 2 * 2 * 4
    largest = max(float(value.abs().max()) for value in theirs.values())
    assert largest > 1e-3
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5 * max(1.0, largest), rtol=1e-4, msg=name)


@pytest.mark.parametrize(("architecture", "num_rows"), [("llama", 4), ("gpt_neo", 10)], ids=["shared", "alone"])
def test_labels_mark_exactly_the_completions(architecture: str, num_rows: int) -> None:
    llm, chosen = tiny.llm(architecture, "bare"), recipe()
    batch = Collator(llm, groups(), chosen)([{"epoch": 0, "group": place} for place in range(4)])["parts"][0]
    ids, labels = batch["input_ids"], batch["labels"]
    assert len(ids) == num_rows
    marked = labels != IGNORED
    assert torch.equal(labels[marked], ids[marked])
    completions = [completion for _, completion in examples(llm, groups(), chosen)]
    assert int(marked.sum()) == sum(map(len, completions))
    runs = [run for row in labels.tolist() for run in runs_of(row)]
    assert sorted(runs) == sorted(completions)


def runs_of(labels: Sequence[int]) -> list[list[int]]:
    """The unbroken stretches of labels of one row."""
    runs: list[list[int]] = [[]]
    for label in labels:
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(label)
    return [run for run in runs if run]


@pytest.mark.parametrize("place", range(4), ids=["several", "one", "equal prompts", "two digits"])
def test_every_label_stands_right_behind_its_parent(place: int) -> None:
    llm, chosen = tiny.llm(), recipe()
    batch = Collator(llm, groups(), chosen)([{"epoch": 0, "group": place}])["parts"][0]
    marked = [place for place, label in enumerate(batch["labels"][0].tolist()) if label != IGNORED]
    assert marked
    if batch["attention_mask"].ndim == 2:  # a row of one path, whose tokens see all before them
        assert marked == list(range(marked[0], marked[-1] + 1))
        return
    visible = batch["attention_mask"][0, 0] == 0
    for token in marked:
        # A token sees itself and what its parent sees.
        assert visible[token, : token + 1].tolist() == [*visible[token - 1, :token].tolist(), True]


def test_a_batch_is_its_collated_packs() -> None:
    llm, chosen = tiny.llm(), recipe()
    rows = list(examples(llm, groups()[:1], chosen))
    pack = pack_tree([[*prompt, *completion] for prompt, completion in rows], merge=False)
    expected = collate([pack], 0, multiple=16)
    batch = Collator(llm, groups(), chosen)([{"epoch": 0, "group": 0}])["parts"][0]
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["position_ids"], expected["position_ids"])
    assert torch.equal(batch["attention_mask"] == 0, expected["attention_mask"])


def test_collated_examples_are_those_of_their_epoch() -> None:
    llm, chosen = tiny.llm(), recipe(shuffle_candidates=True, generated_per_group=4)
    collator = Collator(llm, groups(), chosen)
    first, again, second = ([{"epoch": epoch, "group": 3}] for epoch in (0, 0, 1))
    ids = [collator(rows)["parts"][0]["input_ids"].tolist() for rows in (first, again, second)]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("budget", [64, 100, 200, 100_000], ids=str)
def test_a_part_holds_as_many_tokens_as_allowed_and_nothing_is_lost(budget: int) -> None:
    llm, which = tiny.llm(), [*groups(), *train_groups(6)]
    rows = [{"epoch": 0, "group": place} for place in range(len(which))]
    chosen = recipe(groups_per_step=len(which), tokens_per_batch=budget)
    step = Collator(llm, which, chosen)(rows)
    expected = sorted(token for _, completion in examples(llm, which, chosen) for token in completion)
    labelled = [part["labels"][part["labels"] != IGNORED].tolist() for part in step["parts"]]
    assert sorted(token for part in labelled for token in part) == expected
    assert sorted(step["labels"][step["labels"] != IGNORED].tolist()) == expected
    assert int(step["labels"][0]) == IGNORED  # the first is not counted
    for part in step["parts"]:
        num_rows, length = part["input_ids"].shape
        assert num_rows == 1 or num_rows * (length - 15) <= budget
    assert {place for part in step["parts"] for _, place in part["rows"].tolist()} == set(range(len(which)))
    assert (len(step["parts"]) == 1) == (budget == 100_000)


def test_a_group_that_is_too_long_is_cut_into_prompts_that_share_less() -> None:
    llm = tiny.llm()
    which = [group(0, *(f"dog number {number}" for number in range(8)))]
    whole = Collator(llm, which, recipe())([{"epoch": 0, "group": 0}])["parts"][0]["input_ids"]
    budget = whole.shape[1] * 2 // 3
    parts = Collator(llm, which, recipe(tokens_per_batch=budget))([{"epoch": 0, "group": 0}])["parts"]
    assert len(parts) > 1
    assert all(part["input_ids"].shape[1] - 15 <= budget for part in parts)


def test_processes_with_a_part_of_the_model_each_go_through_it_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    rows = [{"epoch": 0, "group": place} for place in range(4)]
    assert len(Collator(tiny.llm(), groups(), recipe(tokens_per_batch=64))(rows)["parts"]) == 1


# --- what is left out ------------------------------------------------------------------------------------------------


def test_too_long_samples_are_counted_without_generated_ones_and_never_cut() -> None:
    llm = tiny.llm()
    long, short = "very " * 100 + "old dog", "dog"
    which = [group(0, long, short, long), group(1, long), group(2, short, "cat")]
    kept, num_too_long = trainer.fit_to_length(llm, which, recipe(max_tokens=200))
    assert num_too_long == 3
    assert [[sample.expression for sample in one.samples] for one in kept] == [[short], [short, "cat"]]
    assert [one.targets for one in kept] == [(which[0].targets[1],), which[2].targets]
    assert [one.candidates for one in kept] == [which[0].candidates, which[2].candidates]
    which = [group(0, "dog")]  # the limit includes the completion
    ((prompt, completion),) = examples(llm, which, recipe())
    length = len(prompt) + len(completion)
    assert trainer.fit_to_length(llm, which, recipe(max_tokens=length)) == (which, 0)
    assert trainer.fit_to_length(llm, which, recipe(max_tokens=length - 1)) == ([], 1)
    chosen = recipe(max_tokens=40, generated_per_group=4, shuffle_candidates=True)
    assert trainer.fit_to_length(llm, [group(0, "dog")], chosen) == ([], 1)


def test_no_group_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training sample is left"):
        trainer.train_adapter(tiny.llm(), [], recipe(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_on_the_head_is_refused_where_it_is_the_embeddings(tmp_path: Path) -> None:
    lora, llm = LoraSection(rank=4, target_modules=["q_proj", "lm_head"]), tiny.llm()
    llm.model.config.tie_word_embeddings = True
    with pytest.raises(ModelError, match=r"train\.lora\.target_modules names lm_head"):
        trainer.train_adapter(llm, train_groups(2), recipe(lora=lora), tmp_path)


@pytest.mark.slow
def test_an_adapter_on_the_head_is_trained_and_stored_without_the_head(tmp_path: Path, losses: list[float]) -> None:
    lora = LoraSection(rank=4, alpha=8, target_modules=["lm_head"])
    chosen = recipe(lora=lora, epochs=5, save_steps=10)
    trainer.train_adapter(tiny.llm(), train_groups(), chosen, tmp_path)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    stored = [tmp_path / "adapter", *tmp_path.glob("checkpoints/checkpoint-*")]
    assert len(stored) > 1
    for folder in stored:
        names = safetensors.torch.load_file(folder / "adapter_model.safetensors")
        assert names
        assert all("lm_head.lora_" in name for name in names)
    adapted, ids = add_adapter(tiny.llm(), tmp_path / "adapter"), torch.tensor([[40, 41, 42, 43]])
    with torch.inference_mode():
        assert not torch.allclose(adapted.model(ids).logits, tiny.llm().model(ids).logits, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_adapters_are_float32_whatever_the_model_is(architecture: str, tmp_path: Path) -> None:
    llm = tiny.llm(architecture)
    llm.model.to(torch.bfloat16)
    trainer.train_adapter(llm, train_groups(2), recipe(lora=LoraSection(rank=4, target_modules=["q_proj"])), tmp_path)
    assert {value.dtype for value in weights_of(tmp_path).values()} == {torch.float32}


# --- training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The loss of every step of every training, as it is computed."""
    seen: list[float] = []
    original = trainer.PackedTrainer.compute_loss

    def noted(self: Any, model: Any, inputs: Any, **options: Any) -> Any:
        loss = original(self, model, inputs, **options)
        seen.append(loss.item())
        return loss

    monkeypatch.setattr(trainer.PackedTrainer, "compute_loss", noted)
    return seen


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = safetensors.torch.load_file(folder / "adapter" / "adapter_model.safetensors")
    return loaded


def test_training_learns_and_leaves_an_adapter_and_a_log(tmp_path: Path, losses: list[float]) -> None:
    llm = tiny.llm()
    outcome = trainer.train_adapter(llm, train_groups(), recipe(epochs=5), tmp_path)
    assert outcome["steps"] == len(losses) == 30
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    weights = weights_of(tmp_path)
    assert outcome["trainable_parameters"] == sum(value.numel() for value in weights.values())
    assert any("q_proj" in name for name in weights)
    assert not [name for name in weights if "lm_head" in name or "embed" in name]
    assert outcome["parameters"] > outcome["trainable_parameters"]
    assert outcome["seconds"] > 0

    logged = [row for row in log_of(tmp_path) if "loss" in row]
    assert [row["step"] for row in logged] == list(range(1, 31))
    assert [row["loss"] for row in logged] == pytest.approx(losses, abs=1e-6)
    assert outcome["loss"] == pytest.approx(sum(losses[-10:]) / 10, abs=1e-6)
    assert {"learning_rate", "grad_norm", "token_accuracy"} <= logged[0].keys()

    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4
    adapted = add_adapter(tiny.llm(), tmp_path / "adapter")
    ids = torch.tensor([[40, 41, 42, 43]])
    with torch.inference_mode():
        assert not torch.allclose(adapted.model(ids).logits, tiny.llm().model(ids).logits, atol=1e-2)


@pytest.mark.slow
def test_a_step_is_the_mean_over_all_labels_of_its_parts(tmp_path: Path, losses: list[float]) -> None:
    trainer.train_adapter(tiny.llm(), groups(), recipe(groups_per_step=4, max_steps=1), tmp_path / "at once")
    trainer.train_adapter(
        tiny.llm(), groups(), recipe(groups_per_step=4, tokens_per_batch=64, max_steps=1), tmp_path / "in parts"
    )
    assert len(losses) > 4  # groups that are too long are cut as well
    assert sum(losses[1:]) == pytest.approx(losses[0], abs=1e-5)
    at_once, in_parts = weights_of(tmp_path / "at once"), weights_of(tmp_path / "in parts")
    for name, value in at_once.items():
        torch.testing.assert_close(in_parts[name], value, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
def test_the_seed_decides_everything(tmp_path: Path, losses: list[float]) -> None:
    dropout = LoraSection(rank=4, alpha=8, dropout=0.3)
    for number, seed in enumerate((1, 1, 2)):
        torch.manual_seed(1000 + number)  # what ran before must not matter
        llm = tiny.llm()
        torch.manual_seed(2000 + number)
        trainer.train_adapter(llm, train_groups(), recipe(seed=seed, lora=dropout, max_steps=3), tmp_path / str(number))
    first, second, other = losses[:3], losses[3:6], losses[6:]
    assert first == second
    assert first != other


class Killed(BaseException):
    """Ends a training as a signal would."""


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes the next trainings die behind a number of computed losses; None lets them live."""
    steps: dict[str, Any] = {"left": None}
    original = trainer.PackedTrainer.compute_loss

    def dying(self: Any, *args: Any, **options: Any) -> Any:
        if steps["left"] is not None:
            if steps["left"] == 0:
                raise Killed
            steps["left"] -= 1
        return original(self, *args, **options)

    monkeypatch.setattr(trainer.PackedTrainer, "compute_loss", dying)
    return lambda count: steps.update(left=count)


CHOSEN: dict[str, Any] = {
    **{"save_steps": 2, "epochs": 2, "scheduler": "linear", "warmup_steps": 2, "shuffle_candidates": True},
    **{"generated_per_group": 2, "lora": LoraSection(rank=4, alpha=8, dropout=0.2)},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed_at", "resumed_at", "is_cut_off"),
    [(1, 0, False), (5, 4, False), (5, 2, True)],
    ids=["before-the-first-checkpoint", "behind-a-checkpoint", "checkpoint-cut-off"],
)
def test_an_interrupted_training_resumes_as_if_nothing_had_been(
    tmp_path: Path, kill_after: Any, losses: list[float], killed_at: int, resumed_at: int, is_cut_off: bool
) -> None:
    whole = trainer.train_adapter(tiny.llm(), train_groups(6), recipe(**CHOSEN), tmp_path / "whole")
    expected = losses[:]
    losses.clear()
    kill_after(killed_at)
    with pytest.raises(Killed):
        trainer.train_adapter(tiny.llm(), train_groups(6), recipe(**CHOSEN), tmp_path / "killed")
    kill_after(None)
    assert losses == expected[:killed_at]
    losses.clear()
    if is_cut_off:
        (tmp_path / "killed" / "checkpoints" / "checkpoint-4" / "trainer_state.json").unlink()

    resumed = trainer.train_adapter(tiny.llm(), train_groups(6), recipe(**CHOSEN), tmp_path / "killed")
    assert losses == pytest.approx(expected[resumed_at:], abs=1e-6)
    assert resumed["steps"] == whole["steps"] == 6
    for name, value in weights_of(tmp_path / "whole").items():
        torch.testing.assert_close(weights_of(tmp_path / "killed")[name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_a_finished_training_is_not_run_again(tmp_path: Path, losses: list[float]) -> None:
    first = trainer.train_adapter(tiny.llm(), train_groups(6), recipe(**CHOSEN), tmp_path)
    weights = weights_of(tmp_path)
    losses.clear()
    again = trainer.train_adapter(tiny.llm(), train_groups(6), recipe(**CHOSEN), tmp_path)
    assert losses == []
    assert (again["steps"], again["loss"]) == (first["steps"], first["loss"])
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(tmp_path).items())


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_loss(tmp_path: Path, losses: list[float]) -> None:
    for number, gradient_checkpointing in enumerate((False, True)):
        chosen = recipe(gradient_checkpointing=gradient_checkpointing, max_steps=2)
        trainer.train_adapter(tiny.llm(), train_groups(), chosen, tmp_path / str(number))
    assert losses[2:] == pytest.approx(losses[:2], abs=1e-5)


def test_the_log_of_a_run_is_made_of_whole_rows(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "train_log.jsonl")
    state: Any = transformers.TrainerState(global_step=7, is_world_process_zero=True)
    log.on_log(None, state, None, logs={"loss": 1.5})
    log.on_log(None, state, None, logs={"train_runtime": 3.5})  # of the whole training, and different each time
    state.is_world_process_zero = False
    log.on_log(None, state, None, logs={"loss": 2.5})
    assert log_of(tmp_path) == [{"step": 7, "loss": 1.5}]


# --- a worker beside the training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "expected"), [("cpu", 0), ("cuda", 1)])
def test_a_gpu_gets_its_prompts_from_a_worker(device: str, expected: int, tmp_path: Path) -> None:
    model = SimpleNamespace(dtype=torch.float32, device=torch.device(device), config=tiny.CONFIGS["llama"]())
    llm: Any = SimpleNamespace(model=model)
    kind: Any = lambda **options: SimpleNamespace(n_gpu=0, **options)  # noqa: E731
    assert trainer.training_arguments(llm, recipe(), tmp_path, kind=kind).dataloader_num_workers == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_worker_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.train_adapter(tiny.llm(), train_groups(6), recipe(**CHOSEN), tmp_path / "alone")
    monkeypatch.setattr(trainer, "_num_workers", lambda _: 1)
    trainer.train_adapter(tiny.llm(), train_groups(6), recipe(**CHOSEN), tmp_path / "beside")
    assert log_of(tmp_path / "beside") == log_of(tmp_path / "alone")


@pytest.mark.parametrize("method", ["lora", "prompt-tuning"])
def test_a_model_that_keeps_all_its_logits_has_the_same_loss(method: str, tmp_path: Path) -> None:
    chosen, found = recipe(method=method, virtual_tokens=3), []
    for keeps_all in (False, True):
        llm = tiny.llm()
        if keeps_all:
            llm.model.forward = partial(ignoring, llm.model.forward)
        built = trainer.build_trainer(llm, groups(), chosen, tmp_path)
        batch = built.data_collator([{"epoch": 0, "group": place} for place in range(4)])["parts"][0]
        found.append(built.compute_loss(built.model.eval(), batch).item())
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def ignoring(forward: Any, *args: Any, logits_to_keep: Any = None, **options: Any) -> Any:
    return forward(*args, **options)
