"""The one way to read a file that somebody else may have written: bounded in kind, bytes, depth, digits and rows.

    path -> regular file? -> size -> bytes -> text -> JSON | YAML | Parquet table
            (a pipe or a device is refused before it can block)

Whatever is wrong ends in one DataError that names the file, the value and the remedy. Bounds are far above what the
formats need: the largest annotation file in use (COCO's train instances) has 0.5 GB, a recipe has a few kilobytes.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import stat
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from yaml import YAMLError
from yaml.constructor import ConstructorError

from llm_wrapper import parquet_pages
from llm_wrapper.errors import DataError

MIB = 1 << 20
GIB = 1 << 30

_MAX_DEPTH = 64
"""Nesting of JSON and YAML. Polygons in annotations need six levels, configurations of models about ten."""
_MAX_DIGITS = 100
"""Digits of an integer: ids have up to twenty, and no float holds more than 309."""
_MAX_LINE = 64 * MIB
_MAX_UNPACKED = GIB // 2
_MAX_TEXT = 64 * MIB
"""Bytes of a column's texts that are not counted before they are read."""
_DAMAGED = "The file may be cut short: fetch or write it again."

_OTHER_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file to read; links are followed, but a pipe, a device or a folder is refused at once."""
    try:
        # Without O_NONBLOCK, opening a pipe without a writer would wait forever.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {_reason(error)}.") from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise DataError(f"{path} is not a regular file (a folder, a pipe or a device): give the file itself.")
    return os.fdopen(number, "rb")


def read_bytes(path: str | Path, *, most: int = 4 * GIB) -> bytes:
    """Read a whole regular file of at most `most` bytes."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise DataError(f"{path} has {size} bytes, more than the {most} that such a file may have.")
        try:
            content = stream.read(size + 1)  # room for `most` would be taken, however small the file is
        except (OSError, MemoryError) as error:
            raise DataError(f"{path} cannot be read: {_reason(error)}.") from error
    if len(content) > size:
        raise DataError(f"{path} grew while it was read: wait until it is written.")
    return content


def decode_text(content: bytes, where: str) -> str:
    """Decode UTF-8 with or without a byte order mark; DataError names another encoding where a mark tells."""
    _refuse_other_encoding(content, where)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{where}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8: save the file as UTF-8."
        ) from error


def _refuse_other_encoding(content: bytes, where: str | Path) -> None:
    for mark, name in _OTHER_ENCODINGS:
        if content.startswith(mark):
            raise DataError(f"{where} is {name}: save it as UTF-8.")


def read_text(path: str | Path, *, most: int = 16 * MIB) -> str:
    """Read a whole text file, see `read_bytes` and `decode_text`."""
    return decode_text(read_bytes(path, most=most), str(path))


def parse_json(content: bytes | str, where: str, *, nan: bool = False) -> Any:
    """Parse JSON, as text or UTF-8 bytes, in which no object repeats a key.

    Args:
        content: The text, or its UTF-8 bytes.
        where: The file, or the line of it, as messages name it.
        nan: Whether NaN and infinite numbers pass, as boxes of other programs may hold them.
    """
    text = decode_text(content, where) if isinstance(content, bytes) else content
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_bounded_int,
            parse_float=float if nan else _finite_float,
            parse_constant=float if nan else _refuse_constant,
        )
    except RecursionError as error:
        raise DataError(f"{where} is not used: it is nested more than {_MAX_DEPTH} levels deep.") from error
    except ValueError as error:
        raise DataError(f"{where} is not valid JSON: {error}. {_DAMAGED}") from error
    _require_shallow(value, where)
    return value


def read_json(path: str | Path, *, most: int = 4 * GIB, nan: bool = False) -> Any:
    """Read a JSON file, see `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, most=most), str(path), nan=nan)


def read_json_lines(path: str | Path, *, nan: bool = False) -> tuple[list[tuple[int, Any]], list[str]]:
    """Return (line number, value) of each line that is not blank, and the problems of lines that are not JSON."""
    values: list[tuple[int, Any]] = []
    problems: list[str] = []
    with open_regular(path) as stream:
        for number, line in _lines(stream, path):
            try:
                values.append((number, parse_json(line, f"line {number}", nan=nan)))
            except DataError as error:
                problems.append(str(error).removesuffix(f" {_DAMAGED}"))
    return values, problems


def _lines(stream: BinaryIO, path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) of the lines that are not blank; a mark of another encoding is refused at the first."""
    number = 0
    while line := stream.readline(_MAX_LINE + 1):
        if number == 0:
            _refuse_other_encoding(line, path)
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > _MAX_LINE:
            raise DataError(f"{path}, line {number + 1} has more than {_MAX_LINE} bytes: write one value a line.")
        # Some programs end lines by CR alone; inside a JSON value there can be none.
        for piece in line.rstrip(b"\r\n").split(b"\r"):
            number += 1
            if piece.strip():
                yield number, piece


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {repeated[:80]!r} is given twice in one object")
    return value


def _bounded_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:80]} is too large for a number, and would be infinite")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _require_shallow(value: Any, where: str) -> None:
    """Refuse nesting beyond `_MAX_DEPTH`; walks level by level, so that depth costs no stack."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            raise DataError(f"{where} is not used: it is nested more than {_MAX_DEPTH} levels deep.")
        inner: list[Any] = []
        for item in level:
            children = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
            inner.extend(child for child in children if isinstance(child, dict | list))
        level = inner


class _PlainLoader(yaml.SafeLoader):
    """A safe loader that refuses what makes a small file large, or hides what was written first.

    Aliases multiply (ten lines of nine references are gigabytes), and of two equal keys YAML keeps the last.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self.check_event(yaml.AliasEvent):
            raise ConstructorError(None, None, "it holds an alias (*name): write the value out")
        if self._depth > _MAX_DEPTH:
            raise ConstructorError(None, None, f"it is nested more than {_MAX_DEPTH} levels deep")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                message = f"key {key.value[:80]!r} is given twice in one mapping"
                raise ConstructorError(None, None, message, key.start_mark)
            seen.add(str(key.value))
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Bound an integer in each of YAML's spellings: beyond 4,300 digits Python raises wherever it is printed."""
        if len(node.value) > _MAX_DIGITS:
            message = f"it holds a number of more than {_MAX_DIGITS} digits"
            raise ConstructorError(None, None, message, node.start_mark)
        value: int = super().construct_yaml_int(node)
        return value


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)


def compose_yaml(text: str, where: str) -> tuple[yaml.Node | None, Any]:
    """Return the tree of one YAML document, which knows lines, and its value."""
    try:
        node = yaml.compose(text, Loader=_PlainLoader)
        return node, yaml.load(text, Loader=_PlainLoader)
    # PyYAML trusts a tag: `!!bool x` is a KeyError, `!!timestamp x` an AttributeError, `!!int ''` an IndexError.
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, YAMLError) as error:
        raise DataError(f"{where} cannot be read as YAML: {error}") from error


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of one YAML document, see `compose_yaml`."""
    return compose_yaml(text, where)[1]


def parse_parquet_schema(content: bytes, where: str) -> pa.Schema:
    """Return the columns of a Parquet file, of which nothing is unpacked; raises DataError where it is damaged."""
    try:
        return pq.ParquetFile(pa.BufferReader(content)).schema_arrow
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        raise DataError(f"{where} is damaged or cut off: {error}. Remove it and make it again.") from error


def parse_parquet_table(
    content: bytes, where: str, *, most: int = _MAX_UNPACKED, schema: pa.Schema | None = None
) -> pa.Table:
    """Parse a Parquet file as an Arrow table, verifying the checksums of its pages.

    Raises:
        DataError: If it is damaged, has other columns than the schema's (of which nothing is unpacked), or would take
            more than `most` bytes of memory.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        if schema is not None and not file.schema_arrow.equals(schema):
            raise DataError(f"{where} is damaged: its columns are not {', '.join(schema.names)}.")
        unpacked, sizes = parquet_pages.measure_pages(content)
        unpacked += 0 if unpacked > most else sum(_repeated_text(content, file.metadata, sizes))
        if unpacked > most:
            raise DataError(
                f"{where} takes {unpacked} bytes in memory, more than the {most} that such a file may take."
            )
        table = file.read()
        table.validate(full=True)
        return table
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        raise DataError(f"{where} is damaged or cut off: {error}. Remove it and make it again.") from error


def _repeated_text(content: bytes, facts: pq.FileMetaData, sizes: dict[int, tuple[int, int]]) -> Iterator[int]:
    """Yield the bytes of each column of texts, where a text that is once in the file could be often in memory.

    Such a column is read with its texts once (as a dictionary), so that counting costs no more memory than the file.
    """
    for number in range(facts.num_columns):
        if facts.schema.column(number).physical_type != "BYTE_ARRAY":
            continue
        num_values, packed = sizes.get(number, (0, 0))
        if num_values * packed <= _MAX_TEXT:
            continue
        path = facts.schema.column(number).path
        column = pq.ParquetFile(pa.BufferReader(content), read_dictionary=[path]).read(columns=[path]).column(0)
        yield sum(map(_text_bytes, column.chunks))


def _text_bytes(values: pa.Array) -> int:
    """Return the bytes of all texts in an array, each as often as it occurs."""
    if pa.types.is_struct(values.type):
        return sum(_text_bytes(values.field(number)) for number in range(values.type.num_fields))
    if isinstance(values, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        return _text_bytes(values.flatten())
    if pa.types.is_dictionary(values.type):
        return int(pc.sum(pc.binary_length(values.dictionary).take(values.indices)).as_py() or 0)
    return int(values.nbytes)


def read_parquet_table(path: str | Path, *, most: int = _MAX_UNPACKED, schema: pa.Schema | None = None) -> pa.Table:
    """Read a Parquet file, see `read_bytes` and `parse_parquet_table`."""
    return parse_parquet_table(read_bytes(path, most=most), str(path), most=most, schema=schema)


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
