"""Where results go: a readable place, and where those of another question are already there, one with a digest.

A question is all that decides the numbers: detections, candidates, data, split, prompt, LLM and weights, as plain JSON
values. It is kept in the JSON file beside the results. A second answer to the same question replaces the first; results
of any other question are never touched.

    runs/a/report-val.json         holds the same question, or is not there     -> runs/a/report-val.json
    runs/a/report-val.json         holds another                                -> runs/a/report-val-1a2b3c4d.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    sections = ("detector", "candidates", "ensemble", "data", "prompt", "llm")
    parts = {name: _deciding(name, recipe.get(name)) for name in sections if name in recipe}
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
    deciding = {key: value for key, value in section.items() if key not in _MACHINE.get(name, ())}
    server = deciding.pop("server", None) if name == "llm" else None
    if isinstance(server, Mapping) and deciding.get("backend") == "openai":
        deciding["server"] = {key: server.get(key) for key in ("base_url", "tokenizer")}
    return deciding


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
    # Results of earlier versions lack these keys.
    skipped = {key for key in ("weights", "model_files") if not (key in stored and key in question)}
    one, other = ({key: value for key, value in each.items() if key not in skipped} for each in (stored, question))
    return storage.canonical(one) == storage.canonical(other)


def free_name(folder: Path, name: str, question: Mapping[str, Any]) -> str:
    """Return `name` for `report-<name>.json` and `predictions-<name>.parquet`, with a digest where it is another's."""
    files = [folder / f"report-{name}.json", folder / f"predictions-{name}.parquet"]
    return name + _digest_if_taken(files, question)


def free_file(path: Path, question: Mapping[str, Any]) -> Path:
    """Return the JSON file that results go to: `path`, and with the question's digest where it holds another one."""
    return path.with_name(f"{path.stem}{_digest_if_taken([path], question)}{path.suffix}")


def free_folder(folder: Path, files: tuple[str, ...], question: Mapping[str, Any]) -> Path:
    """Return the folder that results go to, with a digest where its `files` are another's; the first is the JSON."""
    return folder.with_name(f"{folder.name}{_digest_if_taken([folder / file for file in files], question)}")


def _digest_if_taken(files: Sequence[Path], question: Mapping[str, Any]) -> str:
    """Return `-<digest of the question>` where one of the files is there, and the first holds another question."""
    if not any(file.exists() for file in files) or is_same(stored_question(files[0]), question):
        return ""
    return f"-{storage.digest_value(dict(question))[:8]}"
