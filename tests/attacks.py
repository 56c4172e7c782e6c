"""How an attack of the tables is run: what it may end in, and a process of its own for one that may hang or eat memory.

Each attack is a function that does what a user does with something hostile, and ends in an error of the package that
says what is wrong, or in harmless output. Modules of the package that only some attacks need are imported inside them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import multiprocessing
import re
import resource
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from llm_wrapper.errors import LLMWrapperError
from llm_wrapper.recipe import compose
from llm_wrapper.records import Box, Candidate, Message, Prompt, Sample

ROOT = Path(__file__).parents[1]
PICTURE = str(ROOT / "data" / "toy" / "images" / "toy-test-0000.png")
SECRET = "sk-very-secret-0123456789"
CANDIDATES = tuple(Candidate(Box(x, 0.0, x + 9.0, 9.0), "dog", 0.5, "d", "od") for x in (0.0, 20.0))
SAMPLE = Sample("s", "r", "i", None, (40, 40), "left dog", None)
PROMPT = Prompt("s", (Message("user", "Which?"),), CANDIDATES, "coords")
CLIPBOARD = "\x1b]52;c;eA==\x07"
"""Writes to the clipboard of a terminal that prints it."""

Attack = Callable[[], None]

_GIB = 1 << 30


def row(name: str, attack: Attack, message: str | None = None, *, slow: bool = False) -> Any:
    """Make a row of a table: a kind of attack, and what the error says; none where nothing happens."""
    return pytest.param(attack, message, id=name, marks=[pytest.mark.slow] if slow else [])


def check(attack: Attack, message: str | None) -> None:
    """Run an attack, which does no harm or is refused with a message that shows no secret."""
    if message is None:
        attack()
        return
    with pytest.raises(LLMWrapperError) as caught:
        attack()
    assert re.search(message, str(caught.value)), str(caught.value)[:2000]
    assert SECRET not in str(caught.value)


def bounded(
    attack: Attack,
    *,
    seconds: float = 40.0,
    gigabytes: float = 3.0,
    file_bytes: int | None = None,
    imports: str | None = None,
) -> Attack:
    """Let an attack run in a process of its own, which it can hang or fill without harm to the others.

    Args:
        attack: Its error is raised here too.
        seconds: How long it may take.
        gigabytes: How much it may allocate.
        file_bytes: How long a file may become, as if the disk were full.
        imports: A module that takes long to import, so that each attack would do it again.
    """

    def run() -> None:
        if imports:
            importlib.import_module(imports)
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_run_bounded, args=(attack, sender, gigabytes, file_bytes), daemon=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the child waits for no thread of a library
            process.start()
        sender.close()
        try:
            assert receiver.poll(seconds), f"no end within {seconds} seconds"
            error = receiver.recv()
        except EOFError:
            error = (False, "the process died")
        finally:
            process.kill()
            process.join()
            receiver.close()
        if error is not None:
            is_typed, text = error
            raise LLMWrapperError(text) if is_typed else AssertionError(text)

    return run


def _run_bounded(attack: Attack, sender: Connection, gigabytes: float, file_bytes: int | None) -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    most = pages * resource.getpagesize() + int(gigabytes * _GIB)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    try:
        attack()
    except BaseException as error:  # whatever it is, the parent is to hear of it
        sender.send((isinstance(error, LLMWrapperError), f"{type(error).__name__}: {error}"[:5000]))
        return
    sender.send(None)


def stranger(change: dict[str, dict[str, Any]]) -> Path:
    """Make a run folder with a recipe that its author has changed."""
    names = {"vlm": "toy", "llm": "rule", "data": "toy", "train": "default"}
    recipe = compose(names).model_dump(mode="json")
    for section, values in change.items():
        recipe[section] |= values
    folder = Path("runs/stranger")
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(json.dumps(recipe, default=str), encoding="utf-8")
    return folder


def command(*words: str) -> str:
    """Run a command line and return all that it prints; an error of the package is printed and no exception."""
    from llm_wrapper.cli import main

    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["llm-wrapper", *words]),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        contextlib.suppress(SystemExit),
        warnings.catch_warnings(),
    ):
        main.main()
    return printed.getvalue()
