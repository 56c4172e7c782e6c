"""Files of other people: bounded, and refused with one typed error."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_wrapper import readers
from llm_wrapper.errors import DataError


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param('{"a": 1} x', "not valid JSON", id="trailing"),
        pytest.param("[" * 100_000, "nested", id="depth-beyond-the-stack"),
        pytest.param("[" * 65 + "]" * 65, "nested", id="depth-65"),
        pytest.param('{"a": 1, "a": 2}', "'a' is given twice", id="repeated-key"),
        pytest.param("9" * 5000, "integer of 5000 digits", id="digits"),
        pytest.param('{"alpha": 1e999}', "1e999 is too large", id="infinite"),
        pytest.param("NaN", "no JSON number", id="nan"),
        pytest.param("[0.5, 1e999]", "1e999 is too large for a number", id="too-large"),
        pytest.param('{"a": [-1E+400]}', "is too large for a number", id="too-small"),
        pytest.param("9" * 400 + ".5", "is too large for a number", id="many-digits"),
        pytest.param('{"a": ', "not valid JSON", id="cut-off"),
        pytest.param("", "not valid JSON", id="empty"),
        pytest.param('"\udcff"', "0xff is not UTF-8", id="no-utf-8"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=reason) as caught:
        readers.read_json(path)
    assert "a.json" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        pytest.param(b'\xef\xbb\xbf{"a": "\xc3\xa9"}', {"a": "é"}, id="byte-order-mark"),
        pytest.param(b"[" * 60 + b"]" * 60, None, id="depth-60"),
        pytest.param(b'[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}], id="one-key-in-two-objects"),
        pytest.param(b"12345678901234567890", 12345678901234567890, id="long-id"),
    ],
)
def test_json_that_is_read(content: bytes, value: Any) -> None:
    found = readers.parse_json(content, "here")
    assert value is None or found == value


def test_nan_passes_where_it_may() -> None:
    assert readers.parse_json('{"score": NaN}', "here", nan=True)["score"] != 0
    assert readers.parse_json("[1e999]", "here", nan=True) == [float("inf")]
    assert readers.parse_json("[1e308, -1e308, 0.1]", "here") == [1e308, -1e308, 0.1]


@pytest.mark.parametrize(
    ("read", "encoding", "reason"),
    [
        (readers.read_text, "utf-16", r"a\.jsonl is UTF-16: save it as UTF-8"),
        (readers.read_json_lines, "utf-16", r"a\.jsonl is UTF-16: save it as UTF-8"),
        (readers.read_text, "utf-32", "UTF-32"),
        (readers.read_text, "latin-1", "line 1: byte 0xe9 is not UTF-8"),
    ],
)
def test_other_encodings_are_one_clear_sentence(tmp_path: Path, read: Any, encoding: str, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"a": "café"}\n{"a": 2}\n'.encode(encoding))
    with pytest.raises(DataError, match=reason):
        read(path)


def test_lines_have_numbers_and_problems(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": \n{"b": 1, "b": 2}\n{"c": 3}\n')
    values, problems = readers.read_json_lines(path)
    assert values == [(1, {"a": 1}), (5, {"c": 3})]
    assert [problem.split(" is ")[0] for problem in problems] == ["line 3", "line 4"]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "missing", "link to a device"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=str(path)):
        readers.read_bytes(path)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(DataError, match="more than the 1024"):
        readers.read_bytes(path, most=1024)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("a: &x [1, 2]\nb: *x\n", "alias", id="alias"),
        pytest.param("a: 1\nb: 2\na: 3\n", "'a' is given twice", id="repeated-key"),
        pytest.param("[" * 100 + "]" * 100, "nested", id="depth-100"),
        pytest.param("[" * 100_000, "nested|cannot be read", id="depth-beyond-the-stack"),
        pytest.param("a: " + "9" * 5000, "digits", id="digits"),
        pytest.param("a: 0x" + "f" * 5000, "digits", id="digits-of-16"),
        pytest.param("a: 9" + "_9" * 5000, "digits", id="digits-apart"),
        pytest.param("a: 1" + ":59" * 3000, "digits", id="digits-of-60"),
        pytest.param("9" * 500 + ": a", "digits", id="digits-of-a-key"),
        pytest.param("a: !!python/object/apply:os.getcwd []", "could not determine a constructor", id="python-tag"),
        pytest.param("a: !!bool x", "cannot be read as YAML", id="no-bool"),
        pytest.param("a: !!timestamp x", "cannot be read as YAML", id="no-time"),
        pytest.param("a: !!int ''", "cannot be read as YAML", id="no-integer"),
        pytest.param("a: !!float ''", "cannot be read as YAML", id="no-float"),
        pytest.param("a: [", "cannot be read as YAML", id="cut-off"),
    ],
)
def test_yaml_that_is_refused(text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        readers.parse_yaml(text, "a.yaml")
    assert str(caught.value).startswith("a.yaml")


def test_yaml_keeps_its_lines() -> None:
    node, value = readers.compose_yaml("a: 1\nb:\n  c: [x, y]\n", "a.yaml")
    assert value == {"a": 1, "b": {"c": ["x", "y"]}}
    assert node is not None
    assert node.value[1][0].start_mark.line == 1


def test_parquet_is_bounded_by_what_it_unpacks_to(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": ["x" * 1000] * 100_000}), path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match="bytes in memory, more than"):
        readers.read_parquet_table(path, most=1 << 20)
    assert readers.read_parquet_table(path).num_rows == 100_000


def test_damaged_parquet_is_named() -> None:
    with pytest.raises(DataError, match="here is damaged"):
        readers.parse_parquet_table(b"PAR1" + b"\0" * 100 + b"PAR1", "here")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
def test_lines_end_in_any_way(end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(end.join([b'{"a": 1}', b"", b'{"a": 2}', b"{"]) + end)
    values, problems = readers.read_json_lines(path)
    assert values == [(1, {"a": 1}), (3, {"a": 2})]
    assert [problem[:6] for problem in problems] == ["line 4"]


def packed(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True, **options)
    return bytes(sink.getvalue().to_pybytes())


def endless_list(count: int) -> bytes:
    """One row of millions of nulls, which takes a few hundred bytes on disk."""
    lists = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), pa.nulls(count, pa.float64()))
    return packed(pa.table({"a": lists}))


def varint(number: int, length: int = 0) -> bytes:
    """Thrift's integer, padded to a length: readers take the longer form, too."""
    rest, out = number << 1, bytearray()
    while rest or len(out) < max(length, 1):
        out.append(rest & 127 | 128)
        rest >>= 7
    out[-1] &= 127
    return bytes(out)


def with_a_lying_footer(content: bytes, count: int) -> bytes:
    """Let the footer, which no checksum covers, claim ten values."""
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    true = varint(count)
    assert true in content[start:]
    return content[:start] + content[start:].replace(true, varint(10, len(true)))


BOMBS = {
    "endless-list": endless_list(8_000_000),
    "lying-footer": with_a_lying_footer(endless_list(8_000_000), 8_000_000),
    "one-text-often": packed(pa.table({"a": ["x" * 1_000_000] * 300}), dictionary_pagesize_limit=1 << 24),
    "one-text-often-in-lists": packed(
        pa.table({"a": [[{"b": "x" * 1_000_000, "c": 1}] * 3] * 100}), dictionary_pagesize_limit=1 << 24
    ),
    "one-beginning-often": packed(
        pa.table({"a": ["x" * 1_000_000 + str(number) for number in range(200)]}),
        use_dictionary=False,
        column_encoding={"a": "DELTA_BYTE_ARRAY"},
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_parquet_bomb_is_refused_before_it_is_unpacked(name: str) -> None:
    assert len(BOMBS[name]) < 20_000
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match="bytes in memory"):
        readers.parse_parquet_table(BOMBS[name], "here", most=64 * readers.MIB)
    assert pa.total_allocated_bytes() - before < 16 * readers.MIB


@pytest.mark.parametrize(
    "table",
    [
        pytest.param({"a": pa.array([], pa.string())}, id="no-row"),
        pytest.param({"a": [None, "x", ""]}, id="texts"),
        pytest.param({"a": [["x" * 100_000] * 3] * 400}, id="repeated-texts-in-bounds"),
        pytest.param({"a": [[], None, [1.5]], "b": [True, None, False]}, id="lists"),
        pytest.param({"a": [{"b": [{"c": "x"}]}]}, id="nested"),
        pytest.param({"a": pa.array([1, 2], pa.decimal128(20, 3)), "b": [b"x", b""]}, id="decimals-and-bytes"),
        pytest.param({"a": pa.array(["x", "x"]).dictionary_encode()}, id="dictionary"),
    ],
)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_what_pyarrow_writes_is_read(table: dict[str, Any], version: str) -> None:
    written = pa.table(table)
    assert readers.parse_parquet_table(packed(written, data_page_version=version), "here").equals(written)


def test_other_columns_are_not_even_unpacked() -> None:
    with pytest.raises(DataError, match="its columns are not b"):
        readers.parse_parquet_table(BOMBS["endless-list"], "here", schema=pa.schema([("b", pa.int64())]))


def test_statistics_that_contradict_a_type_end_no_process() -> None:
    content = packed(pa.table({"a": ["x", "y"]}))
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    text, number = b"\x15\x0c", b"\x15\x08"  # the type of a column in the footer
    assert text in content[start:]
    with pytest.raises(DataError, match="here is damaged"):
        readers.parse_parquet_table(content[:start] + content[start:].replace(text, number), "here")


def test_text_that_is_not_utf8_is_damage() -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": ["ab"]}), sink, compression="none", use_dictionary=False, write_statistics=False)
    content = sink.getvalue().to_pybytes().replace(b"\x02\0\0\0ab", b"\x02\0\0\0\xff\xfe")
    with pytest.raises(DataError, match="UTF"):
        readers.parse_parquet_table(content, "here")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(value=JSON)
def test_any_json_comes_back(value: Any) -> None:
    assert readers.parse_json(json.dumps(value), "here") == value
    assert readers.parse_json(json.dumps(value, ensure_ascii=False).encode(), "here") == value


@given(content=st.binary(max_size=200) | st.text('[]{}",:0189.-eENaInfty tru\\u\ud800', max_size=60))
def test_bytes_that_are_no_json_are_one_typed_error(content: bytes | str) -> None:
    with contextlib.suppress(DataError):
        readers.parse_json(content, "here")
    with contextlib.suppress(DataError):
        readers.parse_json(content, "here", nan=True)


@given(text=st.text("&*!<>|%@`-?:,[]{}'\" \n\tab01.#\ud800~", max_size=60))
def test_text_that_is_no_yaml_is_one_typed_error(text: str) -> None:
    with contextlib.suppress(DataError):
        readers.parse_yaml(text, "a.yaml")


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_damaged_parquet_is_one_typed_error(data: st.DataObject) -> None:
    content = bytearray(_PARQUET)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(min_size=1, max_size=4))
    with contextlib.suppress(DataError):
        readers.parse_parquet_table(bytes(content), "here", most=readers.MIB)


_PARQUET = packed(pa.table({"a": [["x", None], [], None], "b": [1.5, None, 2.5]}))
