"""The two files of a third-party PEFT adapter: where they are, what identifies them, and whether they are safe to read.

`adapter_config.json` is somebody else's: PEFT allocates what its numbers say, imports what `megatron_core` names, and
matches its patterns against every name in the model. A pattern such as `(.*.*)*x` would never end, and Python's `re`
cannot be interrupted.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_wrapper import readers, storage
from llm_wrapper.errors import ModelError, shell_word

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/[\w.-]*\w)(@(?P<revision>\S+))?")
_MOST_NUMBER = 1_000_000
_SECONDS = 5.0
"""The longest that matching all patterns with all names may take; published ones take milliseconds."""
_TARGETS = ("target_modules", "exclude_modules", "feedforward_modules")
_TABLES = ("layers_pattern", "modules_to_save", "rank_pattern", "alpha_pattern", "target_parameters")
"""Settings that PEFT matches as regular expressions: texts, and texts, lists or tables."""
_FORMS = (r"(?:%s)", r"(?:^|.*?\.)(?:%s)\.(?P<idx>\d+)\.", r"(.*\.)?(%s)$", r"(^|.*\.)(?:%s)($|\..*)")
"""How PEFT surrounds patterns: of target modules, layers, ranks and modules that are trained whole."""
_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        continue
    for name in names:
        compiled.fullmatch(name), compiled.match(name)
"""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as the user named it, and the folder its files are in."""

    name: str
    folder: Path

    @property
    def label(self) -> str:
        """A name for a folder of results: two adapters never have the same, whatever their folders are called."""
        stem = self.folder.resolve().name if Path(self.name) == self.folder else self.name
        return "-".join([re.sub(r"[^\w.-]+", "-", stem), storage.digest_value(digest_adapter(self.folder))[:8]])

    def facts(self) -> dict[str, Any]:
        """Return its facts for a report: its name, its digests, and the model it says it was trained on."""
        settings = readers.read_json(self.folder / CONFIG, most=readers.MIB)
        base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
        return {"name": self.name, "trained_on": base, "sha256": digest_adapter(self.folder)}


def digest_adapter(folder: Path) -> dict[str, str]:
    """Return file name -> SHA-256 of what decides an adapter's answers; DataError where a file cannot be read."""
    return {name: storage.digest(folder / name) for name in (CONFIG, WEIGHTS)}


def find_adapter(name: str) -> Adapter:
    """Find an adapter: a folder, else a repository of the hub, `owner/name` or `owner/name@revision`.

    Of a repository the settings and the safetensors weights are fetched, nothing else. Weights as `.bin` are a pickle,
    which can run any code when it is read; they are never opened.
    """
    local = Path(name).expanduser()
    adapter = Adapter(str(local), local) if local.is_dir() else Adapter(name, _fetched(name))
    missing = [each for each in (CONFIG, WEIGHTS) if not (adapter.folder / each).is_file()]
    if missing:
        advice = advise_on_pickle(adapter.folder)
        raise ModelError(f"{name} holds no adapter that can be used: {' and '.join(missing)} missing{advice}")
    return adapter


def advise_on_pickle(folder: Path) -> str:
    """Return the advice on weights that are there as a pickle only; empty if they are not."""
    if not (folder / "adapter_model.bin").is_file():
        return ""
    return (
        ". adapter_model.bin is a pickle, which can run any code when it is read, and is not opened; ask its authors "
        "for safetensors, or, if you trust them, load it with PEFT and save it again"
    )


def _fetched(name: str) -> Path:
    """Fetch settings and weights from the hub into its cache, and return the folder."""
    match = _HUB_ID.fullmatch(name)
    if not match:
        raise ModelError(f"the adapter {name!r} is no folder, and no repository of the hub (owner/name@revision)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(match["repo"], revision=match["revision"], allow_patterns=[CONFIG, WEIGHTS]))
    # Whatever went wrong (no network, no such repository, a proxy, a full disk), the remedy is the same.
    except Exception as error:
        raise ModelError(
            f"the adapter {name!r} is no folder, and cannot be fetched from the hub: {error}. Fetch it where there is "
            f"a network: hf download {shell_word(match['repo'])} "
            f"--revision {shell_word(match['revision'] or 'main')} --local-dir FOLDER"
        ) from error


def read_settings(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read `adapter_config.json`; ValueError where it holds what no adapter of weights of such shapes has.

    No rank is larger than all sizes of the weights.
    """
    values = readers.read_json(folder / CONFIG, most=readers.MIB)
    if not isinstance(values, dict):
        raise ValueError(f"{CONFIG} holds no names with values")
    if values.get("megatron_config") is not None:
        raise ValueError(f"{CONFIG} names a program to import (megatron_core), which is not done")
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    patterns = values.get("rank_pattern")
    ranks = {"r": values.get("r"), **(patterns if isinstance(patterns, dict) else {})}
    for name, rank in ranks.items():
        if isinstance(rank, int) and rank > largest:
            raise ValueError(f"{CONFIG} gives {name} the rank {rank:,}, and no weight in the file is so large")
    for name, number in _numbers(values, ""):
        if abs(number) > _MOST_NUMBER:
            raise ValueError(f"{CONFIG}: {name} is {number:,}, and {_MOST_NUMBER:,} is the most that is taken")
    return values


def _numbers(value: Any, name: str) -> Iterator[tuple[str, int]]:
    """Yield (name, value) of each integer in a JSON value."""
    if isinstance(value, int):
        yield name, value
    rows = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in rows:
        yield from _numbers(each, f"{name}.{key}".lstrip("."))


def require_quick(settings: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise ValueError if patterns take longer than seconds to match with the names of a model's modules and weights.

    They are matched in another process, which can be ended.
    """
    texts = [each for name in _TARGETS if isinstance(each := settings.get(name), str) and each != "all-linear"]
    for name in _TABLES:
        value = settings.get(name)
        rows = [value] if isinstance(value, str) else value if isinstance(value, list | dict | set | tuple) else ()
        texts += [each for each in rows if isinstance(each, str)]
    patterns = sorted({each for each in texts if not re.fullmatch(r"[\w.-]*", each)})
    if not patterns:
        return
    try:
        subprocess.run(
            [sys.executable, "-I", "-c", _MATCH],
            input=json.dumps([[form % each for each in patterns for form in _FORMS], list(names)]),
            text=True,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        shown = ", ".join(each[:80] for each in patterns[:3])
        raise ValueError(f"its patterns take longer than {_SECONDS:g} s to be matched: {shown}") from error
