"""Where results go: a readable place, and where those of another question are already there, one with a digest.

A question is all that decides the numbers: detections, candidates, data, split, prompt, LLM and weights, as plain JSON
values. It is kept in the JSON file beside the results. A second answer to the same question replaces the first; results
of any other question are never touched.

    runs/a/report-val.json         holds the same question, or is not there     -> runs/a/report-val.json
    runs/a/report-val.json         holds another                                -> runs/a/report-val-1a2b3c4d.json
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_wrapper import storage
from llm_wrapper.errors import DataError

__all__ = [
    "COMPARED",
    "column_question",
    "evaluation_question",
    "free_file",
    "free_folder",
    "free_name",
    "is_same",
    "stored_question",
]

COMPARED = "compared"
"""Folder inside a run of other results: with another detector, prompt or LLM, or of another run."""

_ANSWERS = ("detector", "candidates", "ensemble", "data", "prompt", "llm")
_MACHINE = {"llm": {"tokens_per_batch"}, "data": {"root", "train_split", "eval_split"}}
"""Keys of a recipe's sections that change no answer, or that the rest of a question says better."""

_UNNAMED_BEFORE = ("weights", "model_files")
"""Keys of a question that results of earlier versions lack."""

_SERVER = ("base_url", "tokenizer")
"""Keys of `llm.server` that decide an answer."""


def evaluation_question(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the question of an evaluation from the facts in its report: `recipe`, `split`, `limit`, `data` and so on.

    Facts of an earlier version do not say which weights were asked; their question is then without.
    """
    recipe = facts.get("recipe") or {}
    parts = {name: _deciding(name, recipe.get(name)) for name in _ANSWERS if name in recipe}
    if (recipe.get("llm") or {}).get("backend") == "rule":  # it reads no prompt
        parts = {**parts, "llm": {"backend": "rule"}, "prompt": None}
    data = [{key: value for key, value in each.items() if key != "dropped"} for each in facts.get("data") or ()]
    question = {
        **parts,
        "seed": (recipe.get("train") or {}).get("seed"),
        "split": facts.get("split"),
        "limit": facts.get("limit"),
        "annotations": data,
        "examples": facts.get("prompt"),
    }
    adapter = facts.get("adapter") or {}
    if "weights" in facts or adapter:
        question["weights"] = facts.get("weights", adapter.get("sha256"))
    if facts.get("model_files"):
        question["model_files"] = facts["model_files"]
    return question


def column_question(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the question of a column from its facts: all of them but the place of the data."""
    return {**facts, "data": _deciding("data", facts.get("data"))}


def _deciding(name: str, section: Any) -> Any:
    if not isinstance(section, Mapping):
        return section
    found = {key: value for key, value in section.items() if key not in _MACHINE.get(name, ())}
    if name == "llm" and isinstance(server := found.pop("server", None), Mapping) and found.get("backend") == "openai":
        found["server"] = {key: server.get(key) for key in _SERVER}
    return found


def stored_question(path: Path) -> dict[str, Any] | None:
    """Return the question of a JSON file of results; None where it is not known, as without a file that can be read."""
    try:
        facts = storage.read_json(path)
    except DataError:
        return None
    if not isinstance(facts, dict):
        return None
    if isinstance(facts.get("question"), dict):
        return dict(facts["question"])
    return evaluation_question(facts) if "recipe" in facts and "rows" in facts else None


def is_same(stored: Mapping[str, Any] | None, question: Mapping[str, Any]) -> bool:
    """Tell whether a stored question is this one; weights that one of them does not name are not compared."""
    if stored is None:
        return False
    both = [{**stored}, {**question}]
    for key in _UNNAMED_BEFORE:
        if not all(key in each for each in both):
            for each in both:
                each.pop(key, None)
    a, b = map(storage.canonical, both)
    return a == b


def free_name(folder: Path, name: str, question: Mapping[str, Any]) -> str:
    """Return the name under which an evaluation goes into a folder: `report-<name>.json`, `predictions-<name>.parquet`.

    It is `name`, and with the question's digest where another question has that name there.
    """
    taken = any((folder / file).exists() for file in (f"report-{name}.json", f"predictions-{name}.parquet"))
    if not taken or is_same(stored_question(folder / f"report-{name}.json"), question):
        return name
    return f"{name}-{_digest(question)}"


def free_file(path: Path, question: Mapping[str, Any]) -> Path:
    """Return the JSON file that results go to: `path`, and with the question's digest where it holds another one."""
    if not path.exists() or is_same(stored_question(path), question):
        return path
    return path.with_name(f"{path.stem}-{_digest(question)}{path.suffix}")


def free_folder(folder: Path, files: tuple[str, ...], question: Mapping[str, Any]) -> Path:
    """Return the folder that results go to: `folder`, and with the question's digest where it holds another question.

    Args:
        folder: The readable place.
        files: What is written there; the first is the JSON file that keeps the question.
        question: Its digest makes the other name.
    """
    taken = any((folder / file).exists() for file in files)
    if not taken or is_same(stored_question(folder / files[0]), question):
        return folder
    return folder.with_name(f"{folder.name}-{_digest(question)}")


def _digest(question: Mapping[str, Any]) -> str:
    return storage.digest_value(dict(question))[:8]
