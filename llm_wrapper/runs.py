"""Run folders: their names, what makes one complete, how a later command finds the right one, and where results go.

runs/<vlm>-<llm>-<data>-<utc>-<git>/   recipe.yaml    resolved, written before anything starts
                                       .lock          held while a process trains
                                       train_log.jsonl  checkpoints/  adapter/
                                       adapters/step-<n>/  intermediate, each with the samples that it has seen
                                       manifest.json  written last: its presence means that training is complete
                                       predictions-<split>.parquet  report-<split>.json

Results are filed by their question: all that decides the numbers (detections, candidates, data, split, prompt, LLM and
weights), as plain JSON values. It is kept in the JSON file beside the results. A second answer to the same question
replaces the first; results of any other question are never touched:

    runs/a/report-val.json   is not there, or holds the same question   -> runs/a/report-val.json
    runs/a/report-val.json   holds another                              -> runs/a/report-val-1a2b3c4d.json
"""

from __future__ import annotations

import contextlib
import functools
import glob
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llm_wrapper import readers, storage
from llm_wrapper.adapter_files import CONFIG, WEIGHTS
from llm_wrapper.errors import DataError, RunError, shell_word
from llm_wrapper.recipe import Recipe, load_resolved
from llm_wrapper.storage import locked

_log = logging.getLogger(__name__)

RUNS = Path("runs")
ADAPTER = "adapter"
PROGRESS = "progress.json"
_MANIFEST = "manifest.json"
_RECIPE = "recipe.yaml"
_DIGESTS = "sha256"

COMPARED = "compared"
"""Folder inside a run of other results: with another detector, prompt or LLM, or of another run."""

_MACHINE = {"llm": {"tokens_per_batch"}, "data": {"root", "train_split", "eval_split"}}
"""Keys of a recipe's sections that change no answer, or that the rest of a question says better."""


def new_name(prefix: str) -> str:
    """Return `<prefix>-<utc>-<git>`, a unique name for a new run."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    revision = storage.git_revision()
    return "-".join([prefix, stamp, revision[:7] if revision else "nogit"])


def is_complete(folder: Path) -> bool:
    """Tell whether the training of a run has ended."""
    return (folder / _MANIFEST).is_file()


def recipe_of(folder: Path) -> Recipe:
    """Return the resolved recipe of a run; RunError where it is not the one that its training was finished with."""
    if not (folder / _RECIPE).is_file():
        raise RunError(f"{folder} is no run folder: it has no {_RECIPE}. Runs are listed by: ls {RUNS}")
    if is_complete(folder):
        digests = _digests(folder)
        require_unchanged(folder, digests, names=[name for name in digests or () if name.endswith((_RECIPE, ".j2"))])
    return load_resolved(folder / _RECIPE)


def facts_of(folder: Path) -> dict[str, Any]:
    """Return the manifest of a complete run."""
    facts = readers.read_json(folder / _MANIFEST, most=16 * readers.MIB)
    if not isinstance(facts, dict):
        raise RunError(
            f"{folder / _MANIFEST} is no manifest: it holds no names with values. Train again: "
            f"rm -r {shell_word(folder)}"
        )
    return facts


def _digests(folder: Path) -> dict[str, str] | None:
    """Return the digests in the manifest of a complete run by file; None in one of an earlier version."""
    digests = facts_of(folder).get(_DIGESTS)
    if digests is None or (isinstance(digests, dict) and all(isinstance(each, str) for each in digests.values())):
        return digests
    raise RunError(f"{folder / _MANIFEST}: {_DIGESTS} is no table of digests. Train again: rm -r {shell_word(folder)}")


def digests_of(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of those of some files that a folder has."""
    return {name: storage.digest(folder / name) for name in names if (folder / name).is_file()}


def require_unchanged(folder: Path, digests: dict[str, str] | None, *, names: Sequence[str]) -> None:
    """Refuse files that are not those whose digests were written down; say where none were."""
    if digests is None:
        _say_unchecked(folder)
        return
    now = digests_of(folder, names)
    wrong = [name for name in names if name in digests and now.get(name) != digests[name]]
    if wrong:
        raise RunError(
            f"{folder / wrong[0]} is not as it was written (its digest differs): it was changed or damaged. Bring it "
            f"back from a copy, or train again: rm -r {shell_word(folder)}. To use changed weights, copy their folder "
            "and name it with --adapter"
        )


@functools.cache  # one line a command
def _say_unchecked(folder: Path) -> None:
    _log.info("%s is of a version that kept no digests: whether its files are as written is not checked", folder)


def verify_adapter(folder: Path) -> None:
    """Refuse a run's adapter that is not the one that its training wrote; other adapters are not looked at."""
    run = folder.parent
    if folder.name != ADAPTER or not is_complete(run) or not (run / _RECIPE).is_file():
        return
    if folder.is_symlink():
        raise RunError(f"{folder} is a link: a run's adapter lies in the run. Name where it leads with --adapter")
    require_unchanged(run, _digests(run), names=[f"{ADAPTER}/{name}" for name in (CONFIG, WEIGHTS)])


def resume_command(folder: Path) -> str:
    """Return the command that resumes an interrupted training."""
    return f"llm-wrapper train --run {shell_word(folder)}"


def open_run(folder: Path, recipe: Recipe) -> Path:
    """Make a run folder, or open an interrupted one of the same recipe to resume it; any other is not touched."""
    if is_complete(folder):
        raise RunError(
            f"{folder} exists and is complete. Name another with --run, or remove it: rm -r {shell_word(folder)}"
        )
    if (folder / _RECIPE).is_file():
        if recipe_of(folder) != recipe.in_folder(folder):
            raise RunError(
                f"{folder} was begun with another recipe (see {folder / _RECIPE}). Resume that one with: "
                f"{resume_command(folder)}; or name another folder with --run"
            )
    elif folder.exists() and (not folder.is_dir() or any(path.name != ".lock" for path in folder.iterdir())):
        raise RunError(f"{folder} exists and is no run folder. Name another with --run")
    links = sorted(path for path in folder.glob("*") if path.is_symlink())
    if links:
        raise RunError(f"{links[0]} is a link and would be written through: remove it, or name another run with --run")
    write_recipe(folder, recipe)
    return folder


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write a recipe into a folder, with a copy of the user's template if it names one: the original may change."""
    there = recipe.in_folder(folder)
    source, target = Path(recipe.prompt.format), Path(there.prompt.format)
    if source != target:
        text = readers.read_text(source)
        if target.exists() and readers.read_text(target) != text:
            raise RunError(f"{target} is another template than {source}: name another folder with --run")
        storage.write_atomic(target, text)
    storage.write_atomic(folder / _RECIPE, there.to_yaml())


@contextlib.contextmanager
def claim_run(folder: Path, recipe: Recipe, *, is_new: bool = False) -> Iterator[Path]:
    """Open a run and hold it, so that no other process writes into it.

    With `is_new` the folder is one that does not exist yet: where the name is taken, a number is added to it.

    Raises:
        RunError: As `open_run`, or if another process holds the run, or its folder cannot be written.
    """
    name, number = folder.name, 1
    while is_new:
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
            folder = folder.with_name(f"{name}-{number}")
        except OSError as error:
            raise RunError(f"{folder} cannot be made: {error.strerror or error}. Name another with --run") from error
    open_run(folder, recipe)
    with locked(folder, RunError):
        yield open_run(folder, recipe)  # again: another process may have finished it before the lock was free


def finish(folder: Path, facts: dict[str, Any]) -> None:
    """Write the manifest: the facts of the run, digests, the code's revision and the packages' versions."""
    templates = sorted(path.name for path in folder.glob("*.j2"))
    names = [_RECIPE, *templates, f"{ADAPTER}/{CONFIG}", f"{ADAPTER}/{WEIGHTS}"]
    common = {_DIGESTS: digests_of(folder, names), "git": storage.git_revision(), "versions": storage.versions()}
    storage.write_json(folder / _MANIFEST, {**facts, **common})


def latest(prefix: str) -> Path | None:
    """Return the newest complete run that `new_name` named with a prefix, by its time stamp."""
    stamp = f"{'[0-9]' * 8}T{'[0-9]' * 6}Z"
    return max((path for path in RUNS.glob(f"{glob.escape(prefix)}-{stamp}-*") if is_complete(path)), default=None)


@dataclass(frozen=True, slots=True)
class IntermediateAdapter:
    """An adapter, the steps behind it, and the annotated samples that these saw; one seen twice counts twice."""

    folder: Path
    num_steps: int
    num_samples: int


def intermediate_folder(run: Path, step: int) -> Path:
    """Return where the adapter of a step is kept."""
    return run / "adapters" / f"step-{step}"


def step_of(folder: Path) -> int:
    """Return the step that a folder is named after: `step-100`, `checkpoint-100`."""
    return int(folder.name.rpartition("-")[2])


def intermediate_adapters(run: Path) -> list[IntermediateAdapter]:
    """Return the adapters of a finished run by rising step, the finished one last."""
    if not is_complete(run):
        raise RunError(f"{run} holds no finished training; resume it with: {resume_command(run)}")
    outcome = facts_of(run).get("training")
    if not isinstance(outcome, dict) or not _are_counts(outcome.get("samples_seen"), outcome.get("steps")):
        raise RunError(f"{run} was trained by a version that did not count the samples of its steps; train it again")
    adapters = []
    for folder in (run / "adapters").glob("step-*"):
        if not re.fullmatch("step-[0-9]{1,12}", folder.name) or not (folder / PROGRESS).is_file():
            continue
        progress = readers.read_json(folder / PROGRESS, most=readers.MIB)
        seen: Any = progress.get("samples_seen") if isinstance(progress, dict) else None
        digests = progress.get("sha256") if isinstance(progress, dict) else None
        if not _are_counts(seen) or not (digests is None or isinstance(digests, dict)):
            raise RunError(
                f"{folder / PROGRESS} does not say how many samples were seen: remove it: rm -r {shell_word(folder)}"
            )
        require_unchanged(folder, digests, names=(CONFIG, WEIGHTS))
        adapters.append(IntermediateAdapter(folder, step_of(folder), seen))
    adapters.sort(key=lambda each: each.num_steps)
    return [*adapters, IntermediateAdapter(run / ADAPTER, outcome["steps"], outcome["samples_seen"])]


def _are_counts(*values: Any) -> bool:
    return all(isinstance(value, int) and value >= 0 for value in values)


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
        facts = readers.read_json(path)
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
