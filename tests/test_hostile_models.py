"""Models, adapters and chat templates of others cannot hurt who uses them: one row for each kind of attack.

Details are in the tests of `llms`.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper.recipe import LLMSection
from llm_wrapper.records import Message, Prompt
from tests.attacks import Attack, bounded, check, row

pytestmark = pytest.mark.slow  # torch alone takes seconds to import

MODELS = "tests.llms.test_load"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "models"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def model(name: str, **values: Any) -> Attack:
    """Load a small model with code beside it, one of whose files somebody has changed; "y" is what a user may type."""

    def attack() -> None:
        from llm_wrapper.llms.load import load_model
        from tests.llms.test_load import saved

        section = saved(Path("model"))
        change(Path("model", name), **values)
        Path("model/evil.py").write_text("open('code-ran', 'w').close()", encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("builtins.input", lambda *_: "y")
            try:
                load_model(section)
            finally:
                assert not Path("code-ran").exists()

    return bounded(attack, imports=MODELS)


def code_of_a_run() -> None:
    from llm_wrapper.llms.load import load_model

    for name in ("runs/__init__.py", "runs/stranger/__init__.py", "runs/stranger/weights/__init__.py"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("open('code-ran', 'w').close()\n", encoding="utf-8")
    sys.path.insert(0, "")
    try:
        load_model(LLMSection(model="gguf:runs.stranger.weights"))
    finally:
        sys.path.remove("")
        assert not Path("code-ran").exists()


def weights_that_lie() -> None:
    from llm_wrapper.llms.load import load_model

    folder = Path("site-packages/lying_llm")
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "lying.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend("site-packages")
        load_model(LLMSection(model="gguf:lying_llm"))


def adapter(spoil: Callable[[Path], object]) -> Attack:
    """Load a small model with an adapter that somebody has spoiled."""

    def attack() -> None:
        from llm_wrapper.llms.load import load_model
        from tests.llms.test_adapters import lora, third_party
        from tests.llms.test_load import saved

        folder = third_party(Path("adapter"), lora(target_modules="all-linear"), base=None)
        spoil(folder)
        load_model(saved(Path("model")), folder)

    return bounded(attack, imports=MODELS)


def adapter_settings(**values: Any) -> Attack:
    return adapter(lambda folder: change(folder / "adapter_config.json", **values))


def without_numbers(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(path).items()}, path)


def chat_template(source: str) -> Attack:
    def attack() -> None:
        from llm_wrapper.llms.chat import ChatEncoder
        from tests.llms import tiny

        ChatEncoder(tiny.tokenizer("chatml"), LLMSection(chat_template=source)).encode(
            Prompt("s", (Message("user", "dog"),), (), "coords")
        )

    return bounded(attack, imports=MODELS)


CODE = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.T", "evil.T"]}

ATTACKS = [
    row("code-of-a-run", bounded(code_of_a_run, imports=MODELS), "is not the name of a package"),
    row("code-of-a-model", model("config.json", model_type="own", auto_map=CODE), "its own code"),
    row("code-of-a-tokenizer", model("tokenizer_config.json", tokenizer_class="T", auto_map=CODE), "its own code"),
    row("many-layers", model("config.json", num_hidden_layers=10**6), "num_hidden_layers"),
    row("no-heads", model("config.json", num_attention_heads=0), "num_attention_heads|modulo"),
    row("weights-that-lie", bounded(weights_that_lie, imports=MODELS), "cannot be read"),
    row("adapter-without-numbers", adapter(without_numbers), "finite"),
    row("adapter-of-huge-rank", adapter_settings(r=10**9), "rank|r is|r="),
    row("adapter-with-endless-pattern", adapter_settings(target_modules="(([a-z_.0-9]+)+)+!"), "longer than 5 s"),
    row("chat-template-attributes", chat_template("{{ dict.__call__.__globals__ }}"), "SecurityError"),
    row("chat-template-raises", chat_template("{{ raise_exception('no') }}"), "chat template.*fails"),
    row("chat-template-output", chat_template("{{ 'a' * 200000000 }}"), "MemoryError|characters"),
    row("chat-template-without-question", chat_template("{{ 'hello' }}"), "leaves out"),
]


@pytest.mark.parametrize(("attack", "message"), ATTACKS)
def test_an_attack_does_no_harm(attack: Attack, message: str | None) -> None:
    check(attack, message)
