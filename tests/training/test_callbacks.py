"""Adapters of the way: which stay, what they are, and how many samples they have seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft.utils import load_peft_weights

from llm_wrapper import runs
from llm_wrapper.errors import LLMWrapperError, RunError
from llm_wrapper.llms.adapters import add_adapter
from llm_wrapper.training import trainer
from llm_wrapper.training.callbacks import IntermediateAdapters, count_samples_seen
from tests.llms import tiny
from tests.training.test_trainer import group, recipe, train_groups

pytestmark = pytest.mark.slow


def steps_of(run: Path) -> list[int]:
    """The steps of all kept adapters, each of which is whole."""
    folders = sorted((run / "adapters").glob("step-*"), key=runs.step_of)
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names == [["adapter_config.json", "adapter_model.safetensors", "progress.json"]] * len(folders)
    return [runs.step_of(folder) for folder in folders]


@pytest.mark.parametrize(("keep", "expected"), [("last", []), ("doubling", [1, 2, 4]), ("all", [1, 2, 3, 4, 5])])
def test_a_run_keeps_the_adapters_that_its_recipe_names(keep: str, expected: list[int], tmp_path: Path) -> None:
    outcome = trainer.train_adapter(tiny.llm(), train_groups(12), recipe(keep_adapters=keep, save_steps=1), tmp_path)
    assert steps_of(tmp_path) == expected
    assert (outcome["steps"], outcome["samples_seen"]) == (6, 12)
    assert {path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")} == {"checkpoint-5", "checkpoint-6"}

    runs.finish(tmp_path, {"training": outcome})
    found = runs.intermediate_adapters(tmp_path)
    assert [(each.num_steps, each.num_samples) for each in found] == [(s, 2 * s) for s in [*expected, 6]]
    assert found[-1].folder == tmp_path / "adapter"


def test_an_adapter_of_the_way_is_that_of_its_step(tmp_path: Path) -> None:
    chosen = recipe(keep_adapters="all", save_steps=1, max_steps=3)
    chosen = chosen.model_copy(update={"llm": chosen.llm.model_copy(update={"model": "gguf:mine"})})
    trainer.train_adapter(tiny.llm(), train_groups(), chosen, tmp_path)
    kept = [
        load_peft_weights(str(folder), device="cpu") for folder in (tmp_path / "adapters/step-1", tmp_path / "adapter")
    ]
    whole = load_peft_weights(str(tmp_path / "checkpoints" / "checkpoint-2"), device="cpu")
    between = load_peft_weights(str(tmp_path / "adapters" / "step-2"), device="cpu")
    assert all(torch.equal(whole[name], between[name]) for name in whole)
    assert not all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    settings = json.loads((tmp_path / "adapters" / "step-1" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "gguf:mine"
    add_adapter(tiny.llm(), tmp_path / "adapters" / "step-1")  # raises where a weight is missing


def test_steps_between_those_that_are_saved_do_not_count(tmp_path: Path) -> None:
    trainer.train_adapter(tiny.llm(), train_groups(12), recipe(keep_adapters="all", save_steps=4), tmp_path)
    assert steps_of(tmp_path) == [4]  # the trainer saves at its end, too, after step 6


def test_a_copy_that_was_cut_off_is_made_again_and_a_whole_one_is_left(tmp_path: Path) -> None:
    chosen = recipe(keep_adapters="all", save_steps=1, max_steps=3)
    trainer.train_adapter(tiny.llm(), train_groups(), chosen, tmp_path)
    folder = runs.intermediate_folder(tmp_path, 2)
    (folder / "progress.json").unlink()
    (folder / "adapter_model.safetensors").write_bytes(b"half")
    first = runs.intermediate_folder(tmp_path, 1) / "adapter_model.safetensors"
    before = first.stat().st_mtime_ns
    arguments = trainer.training_arguments(tiny.llm(), chosen, tmp_path)
    state = type("State", (), {"max_steps": 3})
    IntermediateAdapters([0, 1, 2, 3, 4, 5, 6], chosen.train).on_save(arguments, state, None)
    assert steps_of(tmp_path) == [1, 2]
    assert load_peft_weights(str(folder), device="cpu")
    assert first.stat().st_mtime_ns == before


def test_samples_are_counted_as_the_schedule_goes() -> None:
    groups = [group(0, "a", "b", "c"), group(1, "d"), replace(group(2, "e"), targets=())]
    assert count_samples_seen(groups, [(0, 2), (0, 1), (0, 0), (1, 0)]) == [0, 0, 1, 4, 7]


# what is wrong


def test_a_run_that_is_unfinished_or_did_not_count_its_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no finished training; resume it with: llm-wrapper train --run"):
        runs.intermediate_adapters(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"training": {"steps": 3}}))
    with pytest.raises(RunError, match="did not count the samples of its steps; train it again"):
        runs.intermediate_adapters(tmp_path)


def test_a_changed_adapter_of_the_way_is_refused(tmp_path: Path) -> None:
    trainer.train_adapter(tiny.llm(), train_groups(6), recipe(save_steps=1, epochs=1), tmp_path)
    runs.finish(tmp_path, {"training": {"steps": 3, "samples_seen": 6}})
    path = runs.intermediate_folder(tmp_path, 1) / "adapter_model.safetensors"
    assert [each.num_steps for each in runs.intermediate_adapters(tmp_path)] == [1, 2, 3]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"step-1/adapter_model\.safetensors is not as it was written"):
        runs.intermediate_adapters(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        *(
            ("step-2", content, "does not say how many samples")
            for content in ("{}", '{"samples_seen": "6"}', '{"samples_seen": -1}', "[1]")
        ),
        pytest.param("step-2", '{"a": ' * 100_000, r"progress\.json", id="deep"),
        pytest.param("step-²", '{"samples_seen": 1}', None, id="odd-name"),
        pytest.param("step-best", '{"samples_seen": 1}', None, id="other-name"),
    ],
)
def test_what_is_no_adapter_of_the_way(tmp_path: Path, name: str, content: str, reason: str | None) -> None:
    folder = tmp_path / "adapters" / name
    folder.mkdir(parents=True)
    (folder / "progress.json").write_text(content)
    runs.finish(tmp_path, {"training": {"steps": 3, "samples_seen": 6}})
    if reason is None:
        assert [each.num_steps for each in runs.intermediate_adapters(tmp_path)] == [3]
        return
    with pytest.raises(LLMWrapperError, match=reason):
        runs.intermediate_adapters(tmp_path)
