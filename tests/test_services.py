"""Which key may go where: a recipe's word is never enough, and a key that comes back is hidden."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from llm_wrapper import services
from llm_wrapper.errors import RecipeError
from llm_wrapper.services import allow_key, allow_typed_keys, hide_key, key_for, keys_file

SECRET = "sk-0123+456/789abcdef"
STRANGER = "https://stranger.example/v1"
NODE = "http://gpu-node:8000/v1"
TYPED, KEY = f"llm.server.base_url={NODE}", "server.key_variable=OPENAI_API_KEY"
PROPOSER = f"search.proposer.{KEY}"
VARIABLES = ("OPENAI_API_KEY", "VLLM_API_KEY", "AWS_SECRET_ACCESS_KEY")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keys are set, and no address is allowed."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(services.PERMISSIONS, raising=False)
    monkeypatch.setattr(services, "_typed", {})
    for name in VARIABLES:
        monkeypatch.setenv(name, SECRET)
    return tmp_path / "config" / "llm-wrapper"


def is_sent(variable: str, address: str) -> bool:
    """Tell whether the key goes there; where it does not, it is refused."""
    try:
        return key_for(variable, address) == SECRET
    except RecipeError:
        return False


def write(home: Path, text: str) -> None:
    home.mkdir(parents=True)
    (home / "keys.yaml").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("variable", "address"),
    [
        pytest.param("OPENAI_API_KEY", "https://api.openai.com/v1", id="openai"),
        pytest.param("OPENAI_API_KEY", "https://API.OpenAI.com:443/v1/", id="openai-written-otherwise"),
        pytest.param("VLLM_API_KEY", "http://localhost:8000/v1", id="own-server"),
        pytest.param("VLLM_API_KEY", "http://[::1]:8000/v1", id="own-server-by-number"),
    ],
)
def test_a_key_goes_where_it_belongs(variable: str, address: str) -> None:
    assert key_for(variable, address) == SECRET


@pytest.mark.parametrize(
    ("variable", "address"),
    [
        *(pytest.param(name, STRANGER, id=f"{name}-stranger") for name in VARIABLES),
        pytest.param("AWS_SECRET_ACCESS_KEY", "http://localhost:8000/v1", id="any-variable-here"),
        pytest.param("OPENAI_API_KEY", "http://api.openai.com/v1", id="not-encrypted"),
        pytest.param("OPENAI_API_KEY", "https://api.openai.com.stranger.example/v1", id="longer-host"),
        pytest.param("OPENAI_API_KEY", "https://api.openai.com:8443/v1", id="another-port"),
        pytest.param("OPENAI_API_KEY", "https://api.openai.com\\.stranger.example/v1", id="backslash"),
        pytest.param("OPENAI_API_KEY", "https://stranger.example/https://api.openai.com/", id="in-the-path"),
        pytest.param("OPENAI_API_KEY", "https://:1/", id="no-host"),
    ],
)
def test_a_recipe_alone_sends_no_key(variable: str, address: str) -> None:
    with pytest.raises(RecipeError, match=variable) as caught:
        key_for(variable, address)
    text = str(caught.value)
    assert SECRET not in text
    assert f"{variable}: [{address}]" in text
    assert str(keys_file()) in text
    assert "export LLM_WRAPPER_KEYS=" in text


def test_a_variable_that_is_not_set_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    assert key_for("OPENAI_API_KEY", STRANGER) is None


@pytest.mark.parametrize(
    "text", ["VLLM_API_KEY: [http://gpu-node:8000]", "VLLM_API_KEY:\n- http://gpu-node:8000/v1/\n"]
)
def test_the_users_file_allows(home: Path, text: str) -> None:
    write(home, text)
    assert is_sent("VLLM_API_KEY", NODE)
    assert not is_sent("AWS_SECRET_ACCESS_KEY", NODE)
    assert not is_sent("VLLM_API_KEY", STRANGER)


@pytest.mark.parametrize(
    "text", ["VLLM_API_KEY: 8000", "- a", "x", "a: &b [c]\nd: *b", "A: [x]\nA: [y]"],
    ids=["number", "list", "text", "alias", "repeated"],
)  # fmt: skip
def test_a_users_file_of_another_form_is_named(home: Path, text: str) -> None:
    write(home, text)
    with pytest.raises(RecipeError, match=r"keys\.yaml.*VARIABLE: \[ADDRESS, \.\.\]"):
        key_for("VLLM_API_KEY", NODE)


def test_the_environment_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(services.PERMISSIONS, f"VLLM_API_KEY=http://gpu-node:8000 OPENAI_API_KEY={STRANGER}")
    assert key_for("VLLM_API_KEY", NODE) == key_for("OPENAI_API_KEY", STRANGER) == SECRET


@pytest.mark.parametrize("text", ["VLLM_API_KEY", "=http://a", "VLLM_API_KEY="])
def test_a_permission_of_another_form_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(services.PERMISSIONS, text)
    with pytest.raises(RecipeError, match="write VARIABLE=ADDRESS"):
        key_for("VLLM_API_KEY", NODE)


@pytest.mark.parametrize(
    ("allowed", "address", "is_allowed"),
    [
        pytest.param("https://gateway/mine", "https://gateway/mine/v1", True, id="below"),
        pytest.param("https://gateway/mine", "https://gateway/mine", True, id="the-same"),
        pytest.param("https://gateway/mine", "https://gateway/theirs/v1", False, id="beside"),
        pytest.param("https://gateway/mine", "https://gateway/mine2/v1", False, id="longer-name"),
        pytest.param("https://gateway/mine", "https://gateway/mine/../theirs", False, id="dots"),
        pytest.param("https://gateway/mine", "https://gateway/mine/%2e%2e/theirs", False, id="written-dots"),
        pytest.param("gateway", "https://gateway/v1", False, id="no-address"),
    ],
)
def test_a_path_allows_what_lies_below_it(allowed: str, address: str, is_allowed: bool) -> None:
    allow_key("OPENAI_API_KEY", allowed)
    assert is_sent("OPENAI_API_KEY", address) == is_allowed


@pytest.mark.parametrize(
    ("overrides", "variable", "is_allowed"),
    [
        pytest.param([TYPED], "VLLM_API_KEY", True, id="address-of-ones-own-server"),
        pytest.param([f"llm.server.base_url='{NODE}'"], "VLLM_API_KEY", True, id="quoted"),
        pytest.param([TYPED], "OPENAI_API_KEY", False, id="address-alone"),
        pytest.param([TYPED], "AWS_SECRET_ACCESS_KEY", False, id="variable-of-the-recipe"),
        pytest.param([TYPED, f"llm.{KEY}"], "OPENAI_API_KEY", True, id="both"),
        pytest.param([f"search.proposer.{TYPED[4:]}", PROPOSER], "OPENAI_API_KEY", True, id="both-of-the-proposer"),
        pytest.param([f"llm.{KEY}"], "OPENAI_API_KEY", False, id="variable-alone"),
        pytest.param([TYPED, PROPOSER], "OPENAI_API_KEY", False, id="of-two-servers"),
    ],
)
def test_what_is_typed_allows_a_pair(overrides: list[str], variable: str, is_allowed: bool) -> None:
    allow_typed_keys(overrides)
    assert is_sent(variable, NODE) == is_allowed


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(SECRET, id="as-it-is"),
        pytest.param(SECRET.upper(), id="in-capitals"),
        pytest.param(quote(SECRET, safe=""), id="in-a-url"),
        pytest.param(base64.b64encode(f"Bearer {SECRET}".encode()).decode(), id="base64-of-a-header"),
        pytest.param(base64.b64encode(f":{SECRET}".encode()).decode(), id="base64-of-a-password"),
    ],
)
def test_a_key_that_comes_back_is_hidden(text: str) -> None:
    value: Any = {"choices": [{"text": f"you sent {text}!", f"x{text}": 1}], "count": 2}
    assert hide_key(value, SECRET) == {"choices": [{"text": "you sent ***!", "x***": 1}], "count": 2}


@pytest.mark.parametrize("key", [None, "", "1", "EMPTY"])
def test_a_placeholder_is_no_secret_and_changes_no_answer(key: str | None) -> None:
    assert hide_key({"text": "1 EMPTY"}, key) == {"text": "1 EMPTY"}
