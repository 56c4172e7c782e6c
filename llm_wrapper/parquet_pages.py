"""The size to which a Parquet file unpacks, by the headers of its pages, from which a reader allocates.

    footer -> column chunks -> [page header | packed page] [page header | packed page] ...

The footer's own numbers may lie: 600 bytes that claim ten values unpack to gigabytes. Both are in Thrift's compact
protocol: fields of (difference of ids, type), integers as zigzag varints, structs that end with a zero byte. The footer
is read here too, because pyarrow ends the whole process where the statistics of a column contradict its type.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_LEVELS = 8  # bytes beside a value's own: definition and repetition levels, offsets, validity
_WIDTHS = {0: 1, 1: 4, 2: 8, 3: 12, 4: 4, 5: 8, 6: 8}
"""Physical type -> bytes of a value: boolean, int32, int64, int96, float, double, and the offset of a text."""
_FIXED = 7  # the physical type whose width is its own field
_TRUE, _FALSE, _BYTE, _DOUBLE, _BYTES, _LISTS, _STRUCT = 1, 2, 3, 7, 8, (9, 10), 12
_ENCODINGS = {5: 2, 7: 2, 8: 4}
"""Fields of a page header that count its values (data page, dictionary page, data page of version 2), and the field of
each that names the encoding."""
_PREFIXES = 7
"""The encoding in which a text says how much of the one before it repeats: each may be as long as the page."""
_MAX_DEPTH, _MAX_ITEMS = 12, 2_000_000  # of the fields and items of one footer or header


@dataclass(frozen=True, slots=True)
class _Page:
    """A page of a column: its unpacked bytes and values, each of `width` bytes."""

    column: int
    width: int
    num_bytes: int
    num_values: int
    repeats: bool
    """Whether values repeat the beginning of others."""


def measure_pages(content: bytes) -> tuple[int, dict[int, tuple[int, int]]]:
    """Return the bytes that the fixed parts of all columns take, and each column's (values, bytes of unpacked pages).

    Strings come on top where they repeat. ValueError where the footer or a page header cannot be read.
    """
    total, sizes = 0, defaultdict[int, tuple[int, int]](lambda: (0, 0))
    for page in _pages(content):
        total += page.num_bytes + page.num_values * (page.width + _LEVELS + page.num_bytes * page.repeats)
        values, packed = sizes[page.column]
        sizes[page.column] = values + page.num_values, packed + page.num_bytes
    return total, sizes


def _pages(content: bytes) -> Iterator[_Page]:
    footer = _Thrift(content, len(content) - 8 - int.from_bytes(content[-8:-4], "little")).struct()
    leaves = [each for each in _list(footer, 2) if not each.get(5)]
    for group in _list(footer, 4):
        for column, chunk in enumerate(_list(group, 1)):
            facts = chunk.get(3)
            if not isinstance(facts, dict) or column >= len(leaves):
                raise ValueError("the footer does not say where the pages of a column are")
            if _size(facts, 5) == 0:  # nothing of it is read
                continue
            kind, start = _size(facts, 1), _size(facts, 9)
            width = _size(leaves[column], 2) if kind == _FIXED else _WIDTHS.get(kind, 8)
            dictionary = facts.get(11)
            if isinstance(dictionary, int) and 0 < dictionary < start:
                start = dictionary
            place, end = start, start + _size(facts, 7)
            while place < end:
                reader = _Thrift(content, place)
                header = reader.struct()
                inner = {name: header[name] for name in _ENCODINGS if isinstance(header.get(name), dict)}
                num_values = max((_size(each, 1) for each in inner.values()), default=0)
                repeats = any(inner[name].get(_ENCODINGS[name]) == _PREFIXES for name in inner)
                yield _Page(column, width, _size(header, 2), num_values, repeats)
                place = reader.place + _size(header, 3)


def _size(fields: dict[int, Any], name: int) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or value < 0:
        raise ValueError("a header lacks one of its sizes")
    return value


def _list(fields: dict[int, Any], name: int) -> list[dict[int, Any]]:
    value = fields.get(name)
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ValueError("the footer lacks its columns")
    return value


class _Thrift:
    """Reads integers, structs and lists from a place in a file; of other values only where they end."""

    def __init__(self, content: bytes, place: int) -> None:
        self.place = place
        self._content = content
        self._num_items = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Return the values of a struct by field id."""
        fields: dict[int, Any] = {}
        name = 0
        while head := self._byte():
            name = name + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            # A boolean is in the type of its field; no byte follows.
            fields[name] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        self._num_items += 1
        if depth > _MAX_DEPTH or self._num_items > _MAX_ITEMS:
            raise ValueError("a header is nested too deep, or too long")
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in _LISTS:
            head = self._byte()
            length, item_kind = head >> 4, head & 15
            if length == 15:
                length = self._varint()
            if length > len(self._content) - self.place:
                raise ValueError("a header has a list that is longer than the file")
            return [self._value(item_kind, depth + 1) for _ in range(length)]
        if kind in (_TRUE, _FALSE, _BYTE, _DOUBLE):
            self.place += 8 if kind == _DOUBLE else 1
            return None
        if kind == _BYTES:
            length = self._varint()  # which moves the place, too
            self.place += length
            return None
        return self._integer()

    def _byte(self) -> int:
        if not 0 <= self.place < len(self._content):
            raise ValueError("a header lies outside the file")
        self.place += 1
        return self._content[self.place - 1]

    def _varint(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise ValueError("a header has an integer that is too long")

    def _integer(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)
