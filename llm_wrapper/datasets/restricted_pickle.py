"""Pickles of plain data, read without running anything that they contain."""

from __future__ import annotations

import codecs
import pickle
from pathlib import Path
from typing import Any, NoReturn

from llm_wrapper.errors import DataError

__all__ = ["load"]


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
            f"it refers to {module_name}.{global_name}, which is no plain data; it was NOT executed. "
            "An annotation file holds only dicts, lists, texts and numbers: do not trust this file, fetch it anew."
        )


def load(path: Path) -> Any:
    """Return the plain data of a pickle, written by Python 2 or 3.

    Byte strings of Python 2 become text: UTF-8, and Latin-1 for bytes that are not UTF-8.

    Raises:
        DataError: If the pickle refers to any class or function (which is not executed), or is damaged.
    """
    with path.open("rb") as stream:
        try:
            return _PlainUnpickler(stream, encoding="utf-8", errors="llm_wrapper_latin1").load()
        except DataError as error:
            raise DataError(f"{path} is refused: {error}") from error
        except Exception as error:  # damaged bytes can raise nearly anything inside the unpickler
            raise DataError(
                f"{path} is no complete pickle ({error or type(error).__name__}): fetch it anew."
            ) from error
