"""Names and English: no phrase of a private dialect, no public name that two modules share, short functions."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "llm_wrapper").rglob("*.py"))
TEXTS = sorted(
    path
    for place in ("llm_wrapper", "benchmarks", "tools", "recipes", "docs", "README.md", "data/README.md")
    for path in ([ROOT / place] if (ROOT / place).is_file() else (ROOT / place).rglob("*"))
    if path.suffix in {".py", ".md", ".yaml", ".j2"}
)

PHRASES = {
    "a sentence begins with What": r"(?-i:^What\b(?!.*\?$)|^Return what\b)",
    "nobody": r"\bnobody\b",
    "without a word": r"\bwithout a word\b|\bin silence\b",
    "hopeless, honest": r"\bhopeless\b|\bhonest(ly)?\b",
    "told": r"\btold\b",
    "resume, continue": r"\bgo(es|ing)? on\b",
    "depends on": r"\bhangs? on\b",
    "fix": r"\bmend(s|ed)?\b",
    "costly": r"\bdear(er)?\b",
    "again": r"\banew\b",
    "is": r"\bstands?\b(?! for)",
    "intermediate": r"\bof the way\b",
    "own": r"\bof (one's|its|his|their|your) own\b",
    "so many": r"\bso many\b",
    "it takes": r"\bit takes\b",
    "non-finite": r"\bis no number\b",
    "by itself": r"\bby itself\b",
    "for the while": r"\bfor the while\b",
    "prompt builder": r"\bword(er|ings?|ed)\b",
    "baseline": r"\brivals?\b|\bheld against\b",
    "third-party, external": r"\bforeign\b|\bguests?\b",
    "duplicates": r"\btwins?\b",
    "retry": r"\btried again\b",
    "skipped": r"\bleft out\b",
}
"""What to say, or what is wrong -> the phrase to avoid."""

EXEMPT = {
    "llm_wrapper/evaluation/slices.py",  # words that expressions are searched for
    "llm_wrapper/search/tasks.py",  # text that the proposing LLM reads
    "recipes/prompt/instruction.yaml",  # text that the LLM reads
}
"""Files that hold data in words."""

PARTICIPLES = {"asked", "told", "shown", "planned", "worded", "kept", "found", "made"}
LONGEST_FUNCTION, LONGEST_FILE = 60, 400


def chunks(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, prose) of a file: docstrings, messages and comments of Python, every line of others."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            yield number, line.split("#", 1)[1].strip()


def findings(path: Path) -> list[str]:
    """Return each banned phrase of a file with its line and what to say."""
    rows = []
    for number, text in chunks(path):
        for sentence in re.split(r"(?<=[.!?])\s+|\n\n", text.strip()):
            flat = " ".join(sentence.split())
            rows += [
                f"{number}: {flat[:100]!r} ({say})" for say, phrase in PHRASES.items() if re.search(phrase, flat, re.I)
            ]
    return rows


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_texts_are_in_this_fields_english(path: Path) -> None:
    assert path.relative_to(ROOT).as_posix() in EXEMPT or not findings(path)


@pytest.mark.parametrize(
    "text",
    [
        '"""Return what is there."""',
        "# nobody reads it",
        'x = "the adapter was told so"',
        '"""Say it. What it holds."""',
    ],
)
def test_the_search_for_phrases_finds_them(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.py").write_text(text)
    assert findings(tmp_path / "a.py")


def definitions(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Yield the public names that a module defines at its top, with their nodes."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
        if isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        yield from ((name, node) for name in names if not name.startswith("_"))


def test_a_public_name_exists_once() -> None:
    modules: dict[str, list[str]] = defaultdict(list)
    for path in PACKAGE:
        for name, _ in definitions(path):
            modules[name].append(path.relative_to(ROOT).as_posix())
    assert not {name: found for name, found in modules.items() if len(found) > 1}


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_functions_are_short_verbs_with_docstrings(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    problems = [
        f"{name} has no docstring"
        for name, node in definitions(path)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not ast.get_docstring(node)
    ]
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef):
            continue
        is_value = any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
        if node.name.lstrip("_").split("_")[0] in PARTICIPLES and not is_value:
            problems.append(f"{node.name}: a function is a verb")
        if (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION:
            problems.append(f"{node.name} has more than {LONGEST_FUNCTION} lines")
    if text.count("\n") > LONGEST_FILE:
        problems.append(f"{text.count(chr(10))} lines")
    assert not problems
