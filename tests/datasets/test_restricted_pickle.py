"""Pickles of strangers: nothing runs, nothing is larger in memory than its file says, nothing hangs."""

from __future__ import annotations

import contextlib
import gc
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_wrapper.datasets import restricted_pickle
from llm_wrapper.errors import DataError

REF = {"ref_id": 7, "split": "val", "sentences": [{"sent": "left zebra", "tokens": ["left", "zebra"], "sent_id": 3}]}


def read(content: bytes, tmp_path: Path) -> Any:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    return restricted_pickle.read_pickle(path)


def lists_of_lists(depth: int) -> list[Any]:
    """Each list holds the one before twice: 2^depth texts, in a few bytes a list."""
    value: list[Any] = ["x"]
    for _ in range(depth):
        value = [value, value]
    return value


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def in_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def keys_of_tuples(depth: int) -> bytes:
    """A dict with one key: tuples in tuples, whose hash overflows the stack."""
    return b"\x80\x02})" + b"\x85" * depth + b"Ns."


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"Nr\xff\xff\xff\x0f.", "keeps a value at place 268435455", id="memo-2-gigabytes"),
        pytest.param(b"Np268435455\n.", "keeps a value at place 268435455", id="memo-as-text"),
        pytest.param(b"Np" + b"9" * 400 + b"\n.", "keeps a value at place", id="memo-of-400-digits"),
        pytest.param(
            b"X" + struct.pack("<I", 2**31) + b"x.", "no complete pickle .it asks for a text", id="text-of-2-gigabytes"
        ),
        pytest.param(
            b"\x8d" + struct.pack("<Q", 2**62) + b"x.", "no complete pickle .it asks for a text", id="text-of-exabytes"
        ),
        pytest.param(
            b"\x8e" + struct.pack("<Q", 2**40) + b"x.",
            "no complete pickle .it asks for a text",
            id="bytes-of-a-terabyte",
        ),
        pytest.param(b"\x96" + struct.pack("<Q", 2**33) + b"x.", "no plain data", id="bytearray-of-8-gigabytes"),
        pytest.param(
            b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
            "no complete pickle .it asks for a text or number",
            id="long-4",
        ),
        pytest.param(
            b"T" + struct.pack("<i", -1) + b".", "no complete pickle .it asks for a text", id="negative-length"
        ),
        pytest.param(b"I" + b"9" * 200 + b"\n.", "integer of more than 100 digits", id="digits"),
        pytest.param(b"L" + b"9" * 5000 + b"L\n.", "no complete pickle", id="digits-beyond-python"),
        pytest.param(pickle.dumps([{"id": 10**100}], 2), "integer of more than 100", id="digits-within"),
        pytest.param(pickle.dumps([{"id": -(10**100)}], 2), "integer of more than 100", id="digits-negative"),
        pytest.param(pickle.dumps({10**100: 1}, 2), "integer of more than 100", id="digits-in-a-key"),
        pytest.param(pickle.dumps(lists_of_lists(60), 2), "shared", id="shared-lists"),
        pytest.param(pickle.dumps([["x" * 10_000] * 20_000], 2), "shared", id="shared-texts"),
        pytest.param(pickle.dumps(in_itself(), 2), "nested|shared", id="a-list-in-itself"),
        pytest.param(b"]" * 20_000 + b"a" * 19_999 + b".", "nested", id="deep"),
        pytest.param(pickle.dumps(nested(70), 2), "nested", id="depth-70"),
        pytest.param(keys_of_tuples(100_000), "tuples", id="hash-of-nested-tuples"),
        pytest.param(pickle.dumps({1, 2}, 4), "no plain data", id="set"),
        pytest.param(b"Pid\n.", "no plain data", id="persistent-id"),
        pytest.param(b"\x82\x01.", "no plain data", id="extension"),
        pytest.param(pickle.dumps(Path("x"), 2), "it was NOT executed", id="class"),
        pytest.param(b"cos\nsystem\n(S'true'\ntR.", r"os\.system", id="function"),
        pytest.param(b"(ios\nsystem\n.", r"os\.system", id="instance"),
        pytest.param(b"c" + b"x" * 5000 + b"\nf\n.", "NOT executed", id="class-of-5000-letters"),
        pytest.param(pickle.dumps(REF, 2)[:-3], "no complete pickle", id="cut-off"),
        pytest.param(b"Np1", "ends within an instruction", id="cut-off-in-a-line"),
        pytest.param(b"", "no complete pickle", id="empty"),
        pytest.param(b"\xff\xfe\x00", "no complete pickle", id="other-bytes"),
    ],
)
def test_what_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    tracemalloc.start()
    with pytest.raises(DataError, match=reason) as caught:
        read(content, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "refs(unc).p" in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert peak < 100_000_000
    assert gc.isenabled()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [
        pytest.param([REF] * 3, id="one-object-three-times"),
        pytest.param([{**REF, "ref_id": number, "sent_ids": [number] * 3} for number in range(200)], id="references"),
        pytest.param({"a": (1, 2.5, None, True, "é\n'\"\\")}, id="scalars"),
        pytest.param([10**99, -(10**99), 2**31, 255, 256, 65536], id="integers"),
        pytest.param(nested(60), id="depth-60"),
        pytest.param(["word"] * 5_000, id="one-word-often"),
    ],
)
def test_plain_data_is_read(value: Any, protocol: int, tmp_path: Path) -> None:
    assert read(pickle.dumps(value, protocol), tmp_path) == value


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=30,
)


@settings(deadline=None, max_examples=30)
@given(value=PLAIN, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_any_plain_data_comes_back(value: Any, protocol: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert read(pickle.dumps(value, protocol), tmp_path_factory.getbasetemp()) == value


@settings(deadline=None, max_examples=100)
@given(data=st.data(), protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_damage_is_one_typed_error(
    data: st.DataObject, protocol: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(pickle.dumps([REF, {"a": [1, 2**40, None, 2.5]}], protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=4))
        if not content:
            break
    with contextlib.suppress(DataError):
        read(bytes(content), tmp_path_factory.getbasetemp())
