"""How much a Parquet file unpacks to, by the headers of its pages: what a reader allocates by.

    footer -> column chunks -> [page header | packed page] [page header | packed page] ...

The footer's own numbers may lie: 600 bytes that claim ten values unpack to gigabytes. A page header is Thrift's compact
protocol: fields of (difference of ids, type), integers as zigzag varints, structs that end with a zero byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["unpacked_bytes", "values_of"]

_LEVELS = 8
"""Bytes that a reader takes for each value beside its own: definition and repetition levels, offsets, validity."""
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT96": 12, "INT64": 8, "DOUBLE": 8, "BYTE_ARRAY": 8}
_STRUCT, _BYTES, _BYTE, _DOUBLE, _LISTS = 12, 8, 3, 7, (9, 10)
_ENCODINGS = {5: 2, 7: 2, 8: 4}
"""Fields of a page header that count its values (data page, dictionary page, data page of version 2), and the field of
each that names the encoding."""
_PREFIXES = 7
"""The encoding in which a text says how much of the one before it repeats: each may be as long as the page."""
_MAX_DEPTH = 8
_MAX_FIELDS = 1000


def unpacked_bytes(content: bytes, facts: Any) -> int:
    """Return how many bytes the fixed parts of all columns take when read; strings come on top where they repeat.

    Args:
        content: The whole file.
        facts: Its metadata, as `pyarrow.parquet.read_metadata` gives it.

    Raises:
        ValueError: If a page header cannot be read.
    """
    total = 0
    for column, chunk in _chunks(facts):
        width = facts.schema.column(column).length or _WIDTHS.get(chunk.physical_type, 8)
        for size, num_values, repeats in _pages(content, chunk):
            total += size + num_values * (width + _LEVELS) + (num_values * size if repeats else 0)
    return total


def values_of(content: bytes, facts: Any, column: int) -> tuple[int, int]:
    """Return how many values a column has, and the bytes of its unpacked pages."""
    pages = [page for number, chunk in _chunks(facts) if number == column for page in _pages(content, chunk)]
    return sum(count for _, count, _ in pages), sum(size for size, _, _ in pages)


def _chunks(facts: Any) -> Iterator[tuple[int, Any]]:
    for group in range(facts.num_row_groups):
        for column in range(facts.num_columns):
            yield column, facts.row_group(group).column(column)


def _pages(content: bytes, chunk: Any) -> Iterator[tuple[int, int, bool]]:
    """Yield (unpacked bytes, values, whether values repeat the beginning of others) of each page of a column chunk."""
    if chunk.num_values <= 0:  # nothing of it is read
        return
    place = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < place:
        place = chunk.dictionary_page_offset
    end = place + chunk.total_compressed_size
    while place < end:
        header, place = _struct(content, place, 0)
        inner = {name: header[name] for name in _ENCODINGS if isinstance(header.get(name), dict)}
        count = max((_size(each.get(1)) for each in inner.values()), default=0)
        yield _size(header.get(2)), count, any(inner[name].get(_ENCODINGS[name]) == _PREFIXES for name in inner)
        place += _size(header.get(3))


def _size(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError("a page header lacks its sizes")
    return value


def _struct(content: bytes, place: int, depth: int) -> tuple[dict[int, Any], int]:
    """Return the integers and structs of a Thrift struct by field id, and where it ends."""
    fields: dict[int, Any] = {}
    name = 0
    for _ in range(_MAX_FIELDS):
        head = _byte(content, place)
        place += 1
        if head == 0:
            return fields, place
        if head >> 4:
            name += head >> 4
        else:
            number, place = _varint(content, place)
            name = _zigzag(number)
        fields[name], place = _value(content, place, head & 15, depth)
    raise ValueError("a page header has too many fields")


def _value(content: bytes, place: int, kind: int, depth: int) -> tuple[Any, int]:
    """Return a value, `None` where it is neither an integer nor a struct, and where it ends."""
    if depth > _MAX_DEPTH:
        raise ValueError("a page header is nested too deep")
    if kind in (1, 2):  # the type itself is the value of a boolean
        return None, place
    if kind == _STRUCT:
        return _struct(content, place, depth + 1)
    if kind in (_BYTE, _DOUBLE):
        return None, place + (1 if kind == _BYTE else 8)
    if kind in _LISTS:
        return None, _after_list(content, place, depth)
    number, place = _varint(content, place)
    return (None, place + number) if kind == _BYTES else (_zigzag(number), place)


def _after_list(content: bytes, place: int, depth: int) -> int:
    head = _byte(content, place)
    place += 1
    length, kind = head >> 4, head & 15
    if length == 15:
        length, place = _varint(content, place)
    if length > _MAX_FIELDS:
        raise ValueError("a page header has a list that is too long")
    for _ in range(length):
        place = place + 1 if kind in (1, 2) else _value(content, place, kind, depth + 1)[1]
    return place


def _byte(content: bytes, place: int) -> int:
    if not 0 <= place < len(content):
        raise ValueError("a page lies outside the file")
    return content[place]


def _varint(content: bytes, place: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte = _byte(content, place)
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
    raise ValueError("a page header has an integer that is too long")


def _zigzag(number: int) -> int:
    return (number >> 1) ^ -(number & 1)
