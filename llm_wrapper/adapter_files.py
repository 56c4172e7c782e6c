"""The two files of a PEFT adapter that this project did not train: where they are, and by what they are known again."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_wrapper import readers, storage
from llm_wrapper.errors import ModelError, shell_word

__all__ = ["CONFIG", "WEIGHTS", "Adapter", "identity", "locate"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/[\w.-]*\w)(@(?P<revision>\S+))?")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as the user named it, and the folder its files are in."""

    name: str
    folder: Path

    @property
    def label(self) -> str:
        """A name for a folder of results: two adapters never have the same, whatever their folders are called."""
        stem = self.folder.resolve().name if Path(self.name) == self.folder else self.name
        return "-".join([re.sub(r"[^\w.-]+", "-", stem), storage.digest_value(identity(self.folder))[:8]])

    def facts(self) -> dict[str, Any]:
        """Return what a report says about it: its name, its digests, and the model it says it was trained on."""
        settings = readers.read_json(self.folder / CONFIG, most=readers.MIB)
        base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
        return {"name": self.name, "trained_on": base, "sha256": identity(self.folder)}


def identity(folder: Path) -> dict[str, str]:
    """Return file name -> SHA-256 of what decides an adapter's answers; DataError where a file cannot be read."""
    return {name: storage.digest(folder / name) for name in (CONFIG, WEIGHTS)}


def locate(name: str) -> Adapter:
    """Find an adapter: a folder, else a repository of the hub, `owner/name` or `owner/name@revision`.

    Of a repository the settings and the safetensors weights are fetched, nothing else. Weights as `.bin` are a pickle,
    which can run any code when it is read; they are never opened.

    Raises:
        ModelError: If it is neither, or cannot be fetched, or its weights are not there as safetensors.
    """
    local = Path(name).expanduser()
    found = Adapter(str(local), local) if local.is_dir() else Adapter(name, _fetched(name))
    missing = [each for each in (CONFIG, WEIGHTS) if not (found.folder / each).is_file()]
    if missing:
        raise ModelError(
            f"{name} holds no adapter that can be used: {' and '.join(missing)} missing{pickled(found.folder)}"
        )
    return found


def pickled(folder: Path) -> str:
    """Return what to do about weights that are there as a pickle only; nothing if they are not."""
    if not (folder / "adapter_model.bin").is_file():
        return ""
    return (
        ". adapter_model.bin is a pickle, which can run any code when it is read, and is not opened; ask its authors "
        "for safetensors, or, if you trust them, load it with PEFT and save it again"
    )


def _fetched(name: str) -> Path:
    """Fetch settings and weights from the hub into its cache, and return the folder."""
    found = _HUB_ID.fullmatch(name)
    if not found:
        raise ModelError(f"the adapter {name!r} is no folder, and no repository of the hub (owner/name@revision)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(found["repo"], revision=found["revision"], allow_patterns=[CONFIG, WEIGHTS]))
    # Whatever went wrong (no network, no such repository, a proxy, a full disk), the remedy is the same.
    except Exception as error:
        raise ModelError(
            f"the adapter {name!r} is no folder, and cannot be fetched from the hub: {error}. Fetch it where there is "
            f"a network: hf download {shell_word(found['repo'])} "
            f"--revision {shell_word(found['revision'] or 'main')} --local-dir FOLDER"
        ) from error
