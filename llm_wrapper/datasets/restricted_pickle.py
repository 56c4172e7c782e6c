"""Pickles of plain data, read without running anything that they contain, and bounded in memory and time.

A few bytes of a pickle can ask for gigabytes (a place in the memo, the length of a text), build texts of texts without
end (shared references), or nest deeper than the stack. So its instructions are walked over before any is followed, and
what they made is measured before anybody uses it.
"""

from __future__ import annotations

import codecs
import gc
import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

from llm_wrapper.errors import DataError
from llm_wrapper.readers import MIB, read_bytes

_MAX_BYTES = 256 * MIB
"""RefCOCOg's references have 60 MB."""
_MAX_INSTRUCTIONS = 32_000_000
_MAX_TUPLES = 1000
"""Annotations have none. Nested ones overflow the stack when they become keys, which nothing in Python guards."""
_MAX_DEPTH = 64
_MAX_INTEGER = 10**100
_MAX_REPEATS = 16
"""How often, on average, a value of the file may occur in the data: equal words are written once."""

_KINDS = frozenset((dict, list, tuple))
_TEXTS = frozenset((str, bytes))


def _as_latin1(error: UnicodeError) -> tuple[str, int]:
    """Decode the bytes that are not UTF-8 as Latin-1: Python 2 byte strings carry no encoding."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("llm_wrapper_latin1", _as_latin1)


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that knows no class and no function, so that dicts, lists, tuples and scalars are all it makes."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise DataError(
            f"it refers to {module_name:.100}.{global_name:.100}, which is no plain data; it was NOT executed. "
            "An annotation file holds only dicts, lists, texts and numbers: do not trust this file, fetch it again."
        )


def read_pickle(path: Path) -> Any:
    """Return the plain data of a pickle, written by Python 2 or 3; anything else is refused, and never executed.

    Byte strings of Python 2 become text: UTF-8, and Latin-1 for bytes that are not UTF-8.
    """
    content = read_bytes(path, most=_MAX_BYTES)
    collects = gc.isenabled()
    gc.disable()  # millions of values are made and none is dropped: looking for dropped ones takes half of the time
    try:
        num_instructions = _require_bounded(content)
        value = _PlainUnpickler(io.BytesIO(content), encoding="utf-8", errors="llm_wrapper_latin1").load()
        _require_plain(value, num_instructions, len(content))
    except DataError as error:
        raise DataError(f"{path} is refused: {error}") from error
    except Exception as error:  # damaged bytes can raise nearly anything inside the unpickler
        reason = str(error)[:200] or type(error).__name__
        raise DataError(f"{path} is no complete pickle ({reason}): fetch it again.") from error
    finally:
        if collects:
            gc.enable()
    return value


_PREFIXES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_LINE = -1
_LONG_BINPUT, _PUT, _STOP = pickle.LONG_BINPUT[0], pickle.PUT[0], pickle.STOP[0]
_CLASSES = frozenset((pickle.GLOBAL[0], pickle.INST[0]))
_TUPLES = frozenset(code[0] for code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3))
_REFUSED = frozenset(
    code[0]
    for code in (
        *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.PERSID, pickle.BINPERSID),
        *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.EXT1, pickle.EXT2, pickle.EXT4),
    )
)


def _steps() -> tuple[list[int], dict[int, int]]:
    """Return, by opcode, its number of bytes (`_LINE` up to a line break, 0 otherwise), and those of its length."""
    steps, sizes = [0] * 256, {}
    for opcode in pickletools.opcodes:
        code, argument = ord(opcode.code), opcode.arg.n if opcode.arg else 0
        if argument in _PREFIXES and code not in _REFUSED:
            sizes[code] = _PREFIXES[argument]
        elif code not in _TUPLES | _REFUSED | _CLASSES | {_LONG_BINPUT, _STOP}:
            steps[code] = _LINE if argument == pickletools.UP_TO_NEWLINE else 1 + argument
    return steps, sizes


_STEPS, _SIZES = _steps()


def _require_bounded(content: bytes) -> int:
    """Walk over the instructions, refuse those that ask for more than the file holds, and return how many there are."""
    place, end, number, num_tuples = 0, len(content), 0, 0
    while place < end:
        code = content[place]
        number += 1
        step = _STEPS[code]
        if step > 0:
            place += step
        elif step == _LINE:
            stop = content.find(b"\n", place)
            if stop < 0:
                raise EOFError("it ends within an instruction")
            if code == _PUT:
                _require_place(int(content[place + 1 : min(stop, place + 30)]), end)
            place = stop + 1
        elif code == _LONG_BINPUT:
            _require_place(int.from_bytes(content[place + 1 : place + 5], "little"), end)
            place += 5
        elif code in _SIZES:
            start = place + 1 + _SIZES[code]
            place = start + int.from_bytes(content[place + 1 : start], "little")
            if place > end:
                raise EOFError(f"it asks for a text or number of {place - start} bytes and has {end}")
        elif code in _TUPLES:
            num_tuples += 1
            place += 1
        elif code in _REFUSED:
            raise DataError("it holds sets, buffers or references to elsewhere, which are no plain data.")
        else:  # the end, a class, which `find_class` refuses by its name, or what is no instruction
            break
        if number > _MAX_INSTRUCTIONS or num_tuples > _MAX_TUPLES:
            most = f"{_MAX_INSTRUCTIONS} instructions or {_MAX_TUPLES} tuples"
            raise DataError(f"it has more than {most}: write lists, and split it.")
    return number


def _require_place(index: int, end: int) -> None:
    # The unpickler makes room for as many values as the index says.
    if index > end:
        raise DataError(f"it keeps a value at place {index} and has {end} bytes: fetch it again.")


def _require_plain(value: Any, num_instructions: int, num_bytes: int) -> None:
    """Refuse data that is nested too deep, or larger than its file by far because parts of it are shared."""
    most_values, most_text = _MAX_REPEATS * num_instructions, _MAX_REPEATS * num_bytes + MIB
    level, num_values, num_text = [[value]], 0, 0
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            children = [*item.keys(), *item.values()] if isinstance(item, dict) else item
            kinds = set(map(type, children))
            num_values += len(children)
            if str in kinds or bytes in kinds:
                num_text += sum([len(child) for child in children if type(child) in _TEXTS])
            if int in kinds and any(type(child) is int and abs(child) >= _MAX_INTEGER for child in children):
                raise DataError("it holds an integer of more than 100 digits: fetch it again.")
            if num_values > most_values or num_text > most_text:
                raise DataError(
                    "it is far larger in memory than on disk, because its parts are shared: fetch it again."
                )
            if not kinds.isdisjoint(_KINDS):
                inner += [child for child in children if type(child) in _KINDS]
        if not inner:
            return
        level = inner
    raise DataError(f"it is nested more than {_MAX_DEPTH} levels deep.")
