"""Golden prompts: compared byte for byte; UPDATE_GOLDEN=1 writes them, to be read before they are committed."""

from __future__ import annotations

import os
from pathlib import Path

from llm_wrapper.records import Prompt

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str, content: str) -> None:
    """Compare with a golden file."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_bytes(content.encode())
    assert content.encode() == path.read_bytes()


def conversation(prompt: Prompt) -> str:
    """All turns of a prompt, each under its role."""
    return "".join(f"--- {message.role}\n{message.content}\n" for message in prompt.messages)
