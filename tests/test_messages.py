"""Every command that a message, a docstring or a document prints is one that the command line knows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from llm_wrapper.cli import main

ROOT = Path(__file__).parents[1]
COMMAND = re.compile(r"llm-wrapper ([a-z][^\n`|#]*)")
SOURCES = sorted((ROOT / "llm_wrapper").rglob("*.py"))
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "data" / "README.md",
    *sorted((ROOT / "recipes").rglob("*.yaml")),
]


def texts(source: str) -> Iterator[str]:
    """Yield the strings of a module; formatted values become X."""
    tree = ast.parse(source)
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.value


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command in a text, up to the end of its sentence."""
    for found in COMMAND.finditer(text):
        words = []
        for word in found[1].split():
            plain = word.rstrip(".,;:)'\"") if not word.endswith("..") else word
            words.append(plain)
            if plain != word and not word.startswith(("'", '"')):
                break
        yield words


COMMAND_LINE: Any = typer.main.get_command(main.app)


def wrong(words: list[str]) -> str | None:
    """Name the verb or the options of a command that do not exist."""
    command = COMMAND_LINE
    rest = [word for word in words if word]
    while hasattr(command, "commands"):
        name = rest.pop(0) if rest else ""
        found = command.commands.get(name)
        if found is None:
            return f"no verb {name!r}"
        command = found
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--recipe"}
    unknown = [word for word in rest if word.startswith("--") and word not in known]
    return f"no option {', '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("path", [*SOURCES, *DOCUMENTS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_in_any_text_is_known(path: Path) -> None:
    content = path.read_text(encoding="utf-8")
    found = [words for text in (texts(content) if path.suffix == ".py" else [content]) for words in commands(text)]
    assert [(problem, words) for words in found if (problem := wrong(words))] == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("make it with: llm-wrapper eval --run X.", None, id="option"),
        pytest.param("use `llm-wrapper evaluate`", "no verb 'evaluate'", id="verb"),
        pytest.param("llm-wrapper detections headroom --vlm X, or without --limits", None, id="end-of-sentence"),
        pytest.param("llm-wrapper detections heads", "no verb 'heads'", id="inner-verb"),
        pytest.param("llm-wrapper train --runs runs/a", "no option --runs", id="wrong-option"),
    ],
)
def test_the_search_itself(text: str, problem: str | None) -> None:
    assert [wrong(words) for words in commands(text)] == [problem]
