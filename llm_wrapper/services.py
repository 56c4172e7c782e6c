"""Services that are sent a key and may fail: which key goes to which address, and when a request is repeated.

    recipe: key_variable, base_url --> allowed by this user? --> the key, for that address alone
                                       built in | keys.yaml | LLM_WRAPPER_KEYS | typed in this command

A recipe may come with a run folder of somebody else, so its word is no permission: it could name any variable of the
environment and the address of its author. Nothing here knows a network: a request is any function that raises
`CallError` where it fails.
"""

from __future__ import annotations

import base64
import os
import random
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pydantic import TypeAdapter, ValidationError

from llm_wrapper.errors import DataError, RecipeError, shell_word
from llm_wrapper.readers import MIB, parse_yaml, read_text

PERMISSIONS = "LLM_WRAPPER_KEYS"
"""Environment variable: `VARIABLE=ADDRESS` pairs, separated by spaces."""

_SELF_HOSTED = "VLLM_API_KEY"
"""The key of a self-hosted server, which has no company's address: one that the user types is its address."""

_BUILT_IN: dict[str, tuple[str, ...]] = {
    "OPENAI_API_KEY": ("https://api.openai.com",),
    _SELF_HOSTED: ("http://localhost:8000", "http://127.0.0.1:8000", "http://[::1]:8000"),
}

_typed: dict[str, list[str]] = {}
"""Variable -> addresses that were allowed in this process."""

_SHORTEST_SECRET = 8  # a shorter key is a placeholder (`EMPTY`, `none`); hiding it would change answers

_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0
"""Seconds before the second try; each further one waits twice as long, with a random part against stampedes."""
_LONGEST_PAUSE = 600.0
"""A service that asks for a longer pause than this (seconds) is left alone: the user comes back later."""


def keys_file() -> Path:
    """Return the user's file of permissions: `VARIABLE: [ADDRESS, ..]`, one variable a line."""
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    home = Path(configured) if os.path.isabs(configured) else Path.home() / ".config"
    return home / "llm-wrapper" / "keys.yaml"


def allow_key(variable: str, address: str) -> None:
    """Allow, for this process, that an environment variable's value is sent to a base URL and to what lies below it."""
    _typed.setdefault(variable, []).append(address)


def allow_typed_keys(overrides: Iterable[str]) -> None:
    """Allow what a user typed as overrides of one command: an address together with the variable that goes there.

    Overrides of a file are never given here. An address alone allows only the key of self-hosted servers: a command
    that somebody else wrote may set it, and must not turn a key for a company's service into one for its author.
    """
    values = {name: text.strip().strip("'\"") for name, _, text in (override.partition("=") for override in overrides)}
    for server in ("llm.server", "search.proposer.server"):
        if address := values.get(f"{server}.base_url"):
            allow_key(values.get(f"{server}.key_variable", _SELF_HOSTED), address)


def key_for(variable: str, address: str) -> str | None:
    """Read a key for one address; `None` where the environment has none, RecipeError where it may not go there."""
    key = read_key(variable)
    if key is None or any(_is_below(address, each) for each in _allowed(variable)):
        return key
    entry = shell_word(f"{variable}={address}")
    raise RecipeError(
        f"the recipe sends the value of {variable} to {address}, and you have not allowed that. If it may have this "
        f"key: export {PERMISSIONS}={entry}, or write the line '{variable}: [{address}]' to {keys_file()}. "
        "To send no key: llm.server.key_variable=null"
    )


def read_key(variable: str) -> str | None:
    """Read a key from the environment, `None` where there is none; it is kept nowhere else and shown in no message."""
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise RecipeError(f"{variable} holds spaces or characters that no key has: copy the key again")
    return key or None


def hide_key(value: Any, key: str | None) -> Any:
    """Return a text, or plain data with texts in it, with `***` where the key was, also as a URL or Base64 writes it.

    A server may send the key back, in an error or in an answer; neither may reach a file or a screen.
    """
    if not key or len(key) < _SHORTEST_SECRET:
        return value
    encoded = [base64.b64encode(text.encode()).decode().rstrip("=") for text in (key, f"Bearer {key}", f":{key}")]
    spellings = sorted({key, quote(key, safe=""), *encoded}, key=len, reverse=True)
    return _hidden(value, re.compile(f"(?:{'|'.join(map(re.escape, spellings))})=*", re.IGNORECASE))


def _hidden(value: Any, pattern: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return pattern.sub("***", value)
    if isinstance(value, Mapping):
        return {_hidden(name, pattern): _hidden(item, pattern) for name, item in value.items()}
    return [_hidden(item, pattern) for item in value] if isinstance(value, list) else value


def _allowed(variable: str) -> list[str]:
    """Return the addresses that this user allows for a variable."""
    pairs = [pair.partition("=") for pair in os.environ.get(PERMISSIONS, "").split()]
    if wrong := [name for name, sign, address in pairs if not (name and sign and address)]:
        raise RecipeError(f"{PERMISSIONS} holds {wrong[0]!r}: write VARIABLE=ADDRESS, several separated by spaces")
    named = [address for name, _, address in pairs if name == variable]
    path = keys_file()
    try:
        rows = (parse_yaml(read_text(path, most=MIB), str(path)) or {}) if path.exists() else {}
        in_file = TypeAdapter(dict[str, list[str]]).validate_python(rows)
    except (DataError, ValidationError) as error:
        raise RecipeError(
            f"{path} cannot be read: write one variable a line, VARIABLE: [ADDRESS, ..] ({error})"
        ) from error
    return [*_BUILT_IN.get(variable, ()), *_typed.get(variable, ()), *named, *in_file.get(variable, ())]


def _is_below(address: str, allowed: str) -> bool:
    """Tell whether an address is on the allowed server, and below its path."""
    import httpx2

    try:
        # The client's own parser: two parsers may read one address as two servers.
        given, base = httpx2.URL(address), httpx2.URL(allowed)
    except (httpx2.InvalidURL, ValueError, TypeError):
        return False
    ports = {"http": 80, "https": 443}
    here, there = ((url.scheme, url.host, url.port or ports.get(url.scheme)) for url in (given, base))
    path, above = unquote(given.path).rstrip("/"), unquote(base.path).rstrip("/")
    is_under = not above or ((path + "/").startswith(above + "/") and ".." not in path.split("/"))
    return bool(base.host) and here == there and is_under


class CallError(Exception):
    """Why one request failed; a user sees the `ModelError` that is made of it.

    `again` is whether the same request may do better in a while, `charged` whether the service may have charged for it
    all the same, and `wait` the seconds that the service asked to be left alone, if it did.
    """

    def __init__(self, reason: str, *, again: bool = False, charged: bool = False, wait: float | None = None) -> None:
        super().__init__(reason)
        self.again = again
        self.charged = charged
        self.wait = wait


def delay_after(
    error: CallError, num_tries: int, *, max_tries: int, chance: Callable[[], float] = random.random
) -> float:
    """Return the seconds to wait before the next try; CallError if there is none. `chance` gives a number in 0..1."""
    pause = error.wait or 0.0
    if not error.again:
        raise error
    if num_tries >= max_tries:
        raise CallError(f"{error}. Given up after {num_tries} tries") from error
    if pause > _LONGEST_PAUSE:
        raise CallError(f"{error}. It asks for a pause of {pause:.0f} seconds") from error
    full = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(num_tries - 1, 16))
    return max(pause, full * (1 + chance()) / 2)


def seconds_to_wait(header: str | None, now: datetime | None = None) -> float | None:
    """Read a `Retry-After` header: seconds, or a date that is compared with `now`; `None` where it says nothing."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=timezone.utc)
    return max(0.0, (until - (now or datetime.now(timezone.utc))).total_seconds())
