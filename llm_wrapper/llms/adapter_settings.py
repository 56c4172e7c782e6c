"""The `adapter_config.json` of somebody else, read within bounds: size, numbers, and the time that its patterns take.

PEFT allocates what the numbers say, imports what `megatron_core` names, and matches the patterns against every name in
the model. A pattern such as `(.*.*)*x` takes longer than the universe is old, and Python's `re` cannot be interrupted.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import peft

from llm_wrapper import readers
from llm_wrapper.adapter_files import CONFIG

__all__ = ["read_settings", "require_quick"]

_MOST = readers.MIB
_MOST_NUMBER = 1_000_000
_SECONDS = 5.0
"""What matching all patterns with all names may take; published ones take milliseconds."""
_PLAIN = re.compile(r"[\w.-]*")
_FORMS = (r"(?:%s)", r"(?:^|.*?\.)(?:%s)\.(?P<idx>\d+)\.", r"(.*\.)?(%s)$", r"(^|.*\.)(?:%s)($|\..*)")
"""How PEFT surrounds patterns: of target modules, layers, ranks and modules that are trained whole."""
_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    try:
        found = re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        continue
    for name in names:
        found.fullmatch(name), found.match(name)
"""


def read_settings(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """Read the settings of an adapter.

    Args:
        folder: Of the adapter.
        shapes: Of the weights in its file: no rank is larger than all of their sizes.

    Raises:
        DataError: If the file is no JSON within the bounds.
        ValueError: If it holds what no adapter that can be used has.
    """
    values = readers.read_json(folder / CONFIG, most=_MOST)
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
    return peft.PeftConfig.from_pretrained(str(folder))


def _numbers(value: Any, place: str) -> Iterator[tuple[str, int]]:
    """Yield (place, value) of each integer in a JSON value."""
    if isinstance(value, int):
        yield place, value
    rows = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in rows:
        yield from _numbers(each, f"{place}.{key}".lstrip("."))


def require_quick(config: peft.PeftConfig, skeleton: Any) -> None:
    """Refuse patterns that take longer than seconds to be matched with the names in a model.

    They are matched in a process of their own, which can be ended.

    Raises:
        ValueError: If they take longer.
    """
    patterns = sorted({each for each in _patterns(config) if not _PLAIN.fullmatch(each)})
    if not patterns:
        return
    names = [name for name, _ in (*skeleton.named_modules(), *skeleton.named_parameters())]
    formed = [form % each for each in patterns for form in _FORMS]
    try:
        subprocess.run(
            [sys.executable, "-I", "-c", _MATCH],
            input=json.dumps([formed, names]),
            text=True,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        shown = ", ".join(each[:80] for each in patterns[:3])
        raise ValueError(f"its patterns take longer than {_SECONDS:g} s to be matched: {shown}") from error


def _patterns(config: peft.PeftConfig) -> Iterator[str]:
    """Yield every text in the settings that PEFT matches as a regular expression."""
    for name in ("target_modules", "exclude_modules", "feedforward_modules"):
        value = getattr(config, name, None)
        if isinstance(value, str) and value != "all-linear":
            yield value
    for name in ("layers_pattern", "modules_to_save", "rank_pattern", "alpha_pattern", "target_parameters"):
        value = getattr(config, name, None)
        rows = [value] if isinstance(value, str) else value if isinstance(value, list | dict | set | tuple) else ()
        yield from (each for each in rows if isinstance(each, str))
