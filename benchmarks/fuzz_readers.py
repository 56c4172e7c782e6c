"""Feed every reader of other people's files with damaged and hostile ones, each in a separate process.

A good file is changed (bytes, pieces, values of its JSON) and read again and again. Fine is: it is read, or refused by
an error of this package. Anything else is not: another exception, a crash, more than 1 GB of memory, an example that
takes longer than 10 seconds. Failures are kept in runs/fuzz/, and may be read again:

    make fuzz
    make fuzz ARGS="--seconds 600 image pickle"
    python benchmarks/fuzz_readers.py --again runs/fuzz/image-0123abcd
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fuzz_seeds import READERS, Reader
from rich.console import Console
from rich.table import Column, Table

from llm_wrapper.errors import LLMWrapperError

KEPT = Path("runs/fuzz")
MIB = 1 << 20
MAX_PEAK, MAX_SECONDS = 1024, 10.0
"""Most MiB of a process, and most seconds of one example."""
_ROOM = 8 << 30
"""Bytes of addresses that a reader may take beside those of its libraries, so that no bomb stops the machine."""
_MAX_EXAMPLE = 4 * MIB

_PIECES = [
    *(b"", b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b'"', b"\\u0000", b"\\ud800", b"\x1b]52;c;eA==\x07"),
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0.0", b"9" * 400, b"9" * 5000, b"null", b"true", b"[]", b"{}"),
    *(b"[" * 2000, b"]" * 2000, b'{"a":' * 500, b"../" * 20, b"/dev/zero", b"x" * 5000, b"%s{0}$(id)`id`"),
    *(
        b"&a [*a]",
        b"!!python/object/apply:os.system",
        b"<<: *a",
        b"%YAML 9\n---\n",
        b"{{ 10**9 }}",
        b"\xf0\x9f\x98\x80",
    ),
]
_VALUES: list[Any] = [
    *(None, True, 0, -1, 1, 2**31, -(2**63), 10**30, 1e308, -1e308, 5e-324, float("nan"), float("inf"), "", "x" * 5000),
    *("NaN", "0", "\0", "\ud800", "../../x", "/etc/passwd", "a\nb", "\x1b[31m", [], {}, [[]], [None] * 3, {"": {}}),
    *([0, 0, 0, 0], [1, 2, 3], ["a"] * 4, [5, 5, 1, 1], [float("nan")] * 4, {"x": 1}, [[1, 2, 3, 4]] * 2),
]


@dataclass
class Outcome:
    """Counts of one process; `others` describe its failures."""

    reader: str
    examples: int
    read: int
    typed: int
    others: list[str]
    peak: int
    slowest: float


class TooSlowError(Exception):
    """An example took longer than it may."""


def changed(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Return one of the good files with one to eight changes."""
    content = rng.choice(seeds)
    if rng.random() < 0.5 and (value := _json(content)) is not None:
        for _ in range(rng.randint(1, 4)):
            value = _changed_value(rng, value)
        with contextlib.suppress(ValueError, RecursionError):
            content = json.dumps(value).encode("utf-8", "surrogatepass")
        if rng.random() < 0.7:
            return content[:_MAX_EXAMPLE]
    out = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        _change_bytes(rng, out, seeds)
    return bytes(out[:_MAX_EXAMPLE])


def _change_bytes(rng: random.Random, out: bytearray, seeds: list[bytes]) -> None:
    place = rng.randrange(len(out) + 1)
    length = min(rng.choice([1, 1, 2, 4, 8, 64, 1000]), len(out) - place)
    kind = rng.randrange(6)
    if kind == 0 and length:
        out[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del out[place : place + length]
    elif kind == 2:
        out[place:place] = out[place : place + length] * rng.choice([1, 2, 50])
    elif kind == 3:
        out[place : place + rng.choice([0, length])] = rng.choice(_PIECES)
    elif kind == 4:
        number = rng.choice([0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1])
        size = rng.choice([size for size in (1, 2, 4, 8) if number < 256**size])
        out[place : place + size] = number.to_bytes(size, rng.choice(["little", "big"]))
    else:
        other = rng.choice(seeds)
        start = rng.randrange(len(other) + 1)
        out[place : place + length] = other[start : start + length]


def _json(content: bytes) -> Any:
    """Return the value of JSON or of JSON lines; `None` for what is neither."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(content)
    return None


def _changed_value(rng: random.Random, value: Any) -> Any:
    """Return a JSON value with something in it replaced, removed or repeated."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return rng.choice(_VALUES)
    kind = rng.randrange(8)
    if isinstance(value, list):
        place = rng.randrange(len(value))
        inner = {0: [], 1: [value[place]] * rng.choice([2, 2, 2, 300])}
        middle = inner[kind] if kind in inner else [_changed_value(rng, value[place])]
        return [*value[:place], *middle, *value[place + 1 :]]
    key = rng.choice(list(value))
    if kind == 0:
        return {name: each for name, each in value.items() if name != key}
    name = rng.choice(["x", "", key.upper(), "a" * 5000, "\ud800"]) if kind == 1 else key
    return {**value, name: _changed_value(rng, value[key])}


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Interrupt a block that takes too long; only a parent can end one that never returns to Python."""

    def stop(*_: object) -> None:
        raise TooSlowError(f"took over {seconds:g} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def work(reader: Reader, seconds: float, seed: int, folder: Path) -> Outcome:
    """Feed one reader in this process."""
    import resource

    rng = random.Random(f"{reader.name} {seed}")
    seeds, bombs = ([path.read_bytes() for path in sorted(folder.glob(f"{kind}-*"))] for kind in ("seed", "bomb"))
    work_folder = folder / "work"
    work_folder.mkdir()
    use = reader.prepare(work_folder)
    use_safely(use, seeds[0], seconds=600)  # what is imported at the first use counts for no example
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (addresses + _ROOM,) * 2)
    outcome = Outcome(reader.name, 0, 0, 0, [], 0, 0.0)
    examples = iter([*seeds, *bombs])
    end = time.monotonic() + seconds
    while (content := next(examples, None)) is not None or time.monotonic() < end:
        example = changed(rng, seeds) if content is None else content
        (folder / "example").write_bytes(example)
        begun = time.monotonic()
        problem, is_read = use_safely(use, example)
        outcome.slowest = max(outcome.slowest, time.monotonic() - begun)
        outcome.examples += 1
        outcome.read += is_read
        outcome.typed += not is_read and problem is None
        if problem is not None:
            outcome.others.append(f"{problem} ({keep(reader, example)})")
        if len(outcome.others) >= 20:
            break
    # Not ru_maxrss, which begins with what the parent had.
    facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    outcome.peak = int(facts["VmHWM"].split()[0]) // 1024
    return outcome


def use_safely(
    use: Callable[[bytes], object], example: bytes, *, seconds: float = MAX_SECONDS
) -> tuple[str | None, bool]:
    """Read one example; return what went wrong, and whether it was read."""
    try:
        with within(seconds):
            use(example)
    except LLMWrapperError as error:
        text = str(error)
        return (f"an error of {len(text):,} letters", False) if len(text) > 100_000 else (None, False)
    except (Exception, TooSlowError) as error:
        return f"{type(error).__name__}: {str(error)[:200]}", False
    return None, True


def keep(reader: Reader, example: bytes) -> Path:
    """Keep an example that went wrong, and return its path."""
    path = KEPT / f"{reader.name}-{hashlib.sha256(example).hexdigest()[:8]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(example)
    return path


def watched(reader: Reader, seconds: float, seed: int) -> Outcome:
    """Feed one reader in a separate process, and name its example where that crashes or never ends."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, contents in (("seed", reader.seeds()), ("bomb", reader.bombs())):
            for number, content in enumerate(contents):
                (folder / f"{kind}-{number:03d}").write_bytes(content)
        words = [sys.executable, __file__, "--child", name, "--seed", str(seed)]
        words += ["--seconds", str(seconds), reader.name]
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds + 180, check=False
            )
            status, errors = f"ended with {done.returncode}", done.stderr.decode("utf-8", "replace")[-2000:]
        except subprocess.TimeoutExpired:
            status, errors = "never ended", ""
        try:
            return Outcome(**json.loads((folder / "outcome").read_text()))
        except (OSError, ValueError):
            example = folder / "example"
            kept = keep(reader, example.read_bytes()) if example.is_file() else "no example"
            return Outcome(reader.name, 0, 0, 0, [f"{status} ({kept}) {errors}"], 0, 0.0)


def table_of(outcomes: list[Outcome]) -> Table:
    """Lay out one row a reader."""
    table = Table(Column("reader", no_wrap=True))
    for name in ("examples", "read", "typed errors", "others", "peak MB", "slowest s"):
        table.add_column(name, justify="right")
    for each in outcomes:
        cells = (each.examples, each.read, each.typed, len(each.others), each.peak)
        table.add_row(each.reader, *(f"{cell:,}" for cell in cells), f"{each.slowest:.2f}")
    return table


def main() -> int:
    """Feed the readers that are named, or all; return 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"by default all: {', '.join(READERS)}")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", type=Path, help="read one example that was kept, with the whole traceback")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.readers or list(READERS)
    if unknown := set(names) - READERS.keys():
        parser.error(f"no reader is called {', '.join(sorted(unknown))}; there are {', '.join(READERS)}")
    if options.again:
        return read_again(options.again)
    if options.child:
        warnings.simplefilter("ignore")
        logging.disable()
        os.chdir(options.child)
        outcome = work(READERS[names[0]], options.seconds, options.seed, options.child)
        (options.child / "outcome").write_text(json.dumps(asdict(outcome)))
        return 0
    console = Console()
    outcomes = []
    for name in names:
        outcomes.append(watched(READERS[name], options.seconds, options.seed))
        console.print(f"{name}: {outcomes[-1].examples:,} examples", highlight=False)
    console.print(table_of(outcomes))
    wrong = [f"{each.reader}: {text}" for each in outcomes for text in each.others]
    wrong += [f"{each.reader}: {each.peak} MB" for each in outcomes if each.peak > MAX_PEAK]
    wrong += [f"{each.reader}: {each.slowest:.1f} s" for each in outcomes if each.slowest > MAX_SECONDS]
    for text in wrong:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    return 1 if wrong else 0


def read_again(path: Path) -> int:
    """Read one example that was kept."""
    reader = max((name for name in READERS if path.name.startswith(name)), key=len)
    with tempfile.TemporaryDirectory() as name:
        READERS[reader].prepare(Path(name))(path.read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
