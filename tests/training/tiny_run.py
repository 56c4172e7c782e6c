"""A training of the tiny LLM by the verb itself, for processes that are killed or that train together."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from llm_wrapper.cli import train as training
from llm_wrapper.llms import load
from llm_wrapper.recipe import LoraSection
from llm_wrapper.training import processes, trainer
from llm_wrapper.training.examples import Group, TrainingPool
from tests.llms import tiny
from tests.training.test_trainer import recipe

DIES_AT = "TINY_RUN_DIES_AT"
"""Environment variable: the step in which the last process kills itself."""


def groups() -> list[Group]:
    """Eleven groups of one to three expressions, the answers of one or two digits."""
    return [
        Group(
            tuple(tiny.sample(f"number {n} of {i}", image=f"image-{i}", number=n) for n in range(1 + i % 3)),
            tuple((i + n) % 3 + 9 * (i % 2) for n in range(1 + i % 3)),
            tiny.candidates(12, first=i % 5),
        )
        for i in range(11)
    ]


def train(folder: Path, options: dict[str, Any]) -> None:
    """Train as the command line does, without its data and weights."""
    training.load_training_pool = lambda _: TrainingPool(groups(), {}, [])
    load.load_model = lambda _: tiny.llm()
    step = os.environ.get(DIES_AT)
    if step and os.environ.get("RANK") == str(processes.process_count() - 1):
        _die_in(int(step))
    lora = LoraSection(**options.pop("lora"))
    training.run_training(recipe(lora=lora, **options), folder, Console(width=200))


def _die_in(step: int) -> None:
    original = trainer.PackedTrainer.compute_loss

    def dying(self: Any, *args: Any, **options: Any) -> Any:
        if self.state.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **options)

    trainer.PackedTrainer.compute_loss = dying


def train_apart(folder: Path, options: dict[str, Any], output: Path) -> None:
    """Train with what is printed in a file: the target of a process that a test starts."""
    with output.open("ab") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    train(folder, options)


if __name__ == "__main__":
    train(Path(sys.argv[1]), json.loads(sys.argv[2]))
