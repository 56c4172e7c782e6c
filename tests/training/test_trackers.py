"""Trackers: asked for by name, refused where they are missing, and told to write into the run's folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import transformers
from rich.console import Console

from llm_wrapper.cli import train
from llm_wrapper.errors import RecipeError
from llm_wrapper.training import callbacks, trainer
from tests.llms import tiny
from tests.training.test_trainer import recipe, train_groups

pytestmark = pytest.mark.slow

NAMES = ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR", "WANDB_PROJECT")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that installs a package with some source, for this test alone."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))

    def add(name: str, source: str) -> None:
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)

    yield add
    for name in ("tensorboard", "wandb", "trackio"):
        sys.modules.pop(name, None)


def environment() -> dict[str, str]:
    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_trackers_reach_the_trainer_with_a_name_for_the_run(tmp_path: Path) -> None:
    asked = recipe(report_to=["wandb", "tensorboard", "wandb"])
    chosen = trainer.training_arguments(tiny.llm(), asked, tmp_path / "mine")
    assert chosen.report_to == ["wandb", "tensorboard"]
    assert (chosen.run_name, chosen.project) == ("mine", "llm-wrapper")
    assert chosen.trackio_space_id is None  # else trackio would send everything away
    assert trainer.training_arguments(tiny.llm(), recipe(), tmp_path).report_to == []


def test_other_names_are_refused_and_missing_packages_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("comet_ml", "all", "none"):
        with pytest.raises(ValueError, match="Input should be 'tensorboard', 'wandb' or 'trackio'"):
            recipe(report_to=[name])
    monkeypatch.setattr(callbacks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"wandb, trackio, which is not installed: pip install wandb trackio"):
        train.run_training(recipe(report_to=["wandb", "trackio"]), tmp_path / "run", Console())
    assert not (tmp_path / "run").exists()


def test_a_folder_of_the_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # nothing else, as where wandb is not installed
    with pytest.raises(RecipeError, match="pip install wandb"):
        callbacks.require_trackers(["wandb"])


def test_they_write_into_the_run_unless_told_otherwise(
    tmp_path: Path, install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("tensorboard", "")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    run = tmp_path / "run"
    with callbacks.report_to_trackers(["tensorboard"], run):
        assert environment() == {
            "TENSORBOARD_LOGGING_DIR": str(run / "tensorboard"),
            "WANDB_DIR": str(run),
            "WANDB_PROJECT": "mine",
        }
        assert run.is_dir()
    assert environment() == {"WANDB_PROJECT": "mine"}
    with callbacks.report_to_trackers([], tmp_path / "silent"):
        assert environment() == {"WANDB_PROJECT": "mine"}
    assert not (tmp_path / "silent").exists()


@pytest.mark.parametrize("is_open", [False, True], ids=["ours", "the-user's"])
def test_a_run_of_wandb_ends_with_the_training_that_began_it(is_open: bool, tmp_path: Path, install: Any) -> None:
    source = "finished = 0\ndef finish():\n    global finished; finished += 1\n"
    install("wandb", f"run = {'object()' if is_open else None}\n{source}")

    def train() -> None:
        with callbacks.report_to_trackers(["wandb"], tmp_path):
            wandb: Any = sys.modules["wandb"]
            wandb.run = wandb.run or "begun by the trainer"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert sys.modules["wandb"].finished == (not is_open)


def test_each_training_reports_to_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Told(transformers.TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.folder = os.environ["TENSORBOARD_LOGGING_DIR"]  # where transformers' own reads it

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            told.append(f"{Path(self.folder).relative_to(tmp_path)} {'loss' in logs}")

    integrations: ModuleType = transformers.integrations.integration_utils
    monkeypatch.setitem(integrations.INTEGRATION_TO_CALLBACK, "tensorboard", Told)
    monkeypatch.setattr(callbacks, "require_trackers", lambda names: None)
    for name in ("a", "b"):
        trainer.train_adapter(tiny.llm(), train_groups(2), recipe(report_to=["tensorboard"]), tmp_path / name)
    assert told[0] == "a/tensorboard True"
    assert set(told) == {f"{name}/tensorboard {has_loss}" for name in "ab" for has_loss in (True, False)}
