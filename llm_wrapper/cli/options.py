"""Options that several verbs share, and the recipe that they choose.

An option that is not given is `None`: only then can the recipe of a run, or the default, take its place.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_wrapper import __version__, runs
from llm_wrapper.detectors import load_plugin
from llm_wrapper.errors import RecipeError, RunError, nearest
from llm_wrapper.recipe import Recipe, RecipeFile, compose, read_recipe_file
from llm_wrapper.services import allow_typed_keys
from llm_wrapper.storage import folder_name
from llm_wrapper.terminal import open_console

_log = logging.getLogger(__name__)

CONSOLE = open_console()
"""Where all verbs print."""

_WORDS = "LLM_WRAPPER_ARGS"
"""Environment variable with more words of the command line; `make` hands its ARGS over in it."""
_NOT_OF_A_ROW = {("transfer", "llm"), ("export", "llm")}
"""Options that are called as a choice of a row is, and mean something else."""

_TEMPLATE = ("chat_template", "template_date", "enable_thinking")
"""Keys of `llm` that decide how a training words its chats."""

_NO_FILE = RecipeFile()
_start: ContextVar[RecipeFile] = ContextVar("_start", default=_NO_FILE)
"""The file that `--recipe` names before the verb."""

DEFAULTS = {"vlm": "toy", "llm": "smollm2", "data": "toy", "train": "default"}
"""Files of each kind where neither the command line nor a run names one."""


_DEFAULT = "If neither this nor a run says it:"

Vlm = Annotated[
    str | None, typer.Option(help=f"Detector: a file of recipes/vlm; a+b for both. {_DEFAULT} {DEFAULTS['vlm']}.")
]
Llm = Annotated[str | None, typer.Option(help=f"LLM: a file of recipes/llm. {_DEFAULT} {DEFAULTS['llm']}.")]
Data = Annotated[str | None, typer.Option(help=f"Data set: a file of recipes/data. {_DEFAULT} {DEFAULTS['data']}.")]
DataRoot = Annotated[Path | None, typer.Option(help="Where the data set lies, if not where its recipe says.")]
Train = Annotated[str | None, typer.Option(help=f"Training: a file of recipes/train. {_DEFAULT} {DEFAULTS['train']}.")]
Split = Annotated[
    str | None,
    typer.Option(
        help="Split, if not the recipe's.", callback=lambda name: None if name is None else folder_name(name, "--split")
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="First samples only; the report says so.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, the value in YAML.")]
Run = Annotated[Path | None, typer.Option(help="Run folder; its recipe is used, and what is typed beside it wins.")]
PromptName = Annotated[
    str | None, typer.Option("--prompt", help="Prompt: a file of recipes/prompt, a+b for both, or the path of one.")
]
AdapterName = Annotated[
    str | None, typer.Option("--adapter", help="A PEFT adapter of another program: folder, or owner/name of the hub.")
]
Name = Annotated[str | None, typer.Option(help="Name of the folder of results.")]


def starts_with(kind: str) -> bool:
    """Tell whether the file of `--recipe` settles a kind."""
    return _start.get().gives(kind)


def assigned(key: str, path: Path) -> str:
    """Return an override that sets a path, quoted: a `#` or `: ` in it would mean something in YAML."""
    return f"{key}={json.dumps(str(path), ensure_ascii=False)}"


def root(data_root: Path | None) -> list[str]:
    """Return the override that says where data lies, if it is said."""
    return [assigned("data.root", data_root)] if data_root else []


def fill_defaults(names: Mapping[str, str | None]) -> dict[str, str]:
    """Return the files that are named by kind, and for kinds that are not the defaults, where there is one."""
    found = {kind: DEFAULTS.get(kind) if name is None else name for kind, name in names.items()}
    return {kind: name for kind, name in found.items() if name is not None}


def name_of(names: Mapping[str, str | None]) -> str:
    """Return the names of detector, LLM and data, those that there are, as one name for a folder of results."""
    start = _start.get()
    found = fill_defaults({kind: name or start.label(kind) for kind, name in names.items()})
    return "-".join(found[kind] for kind in ("vlm", "llm", "data") if kind in found)


def choose_recipe(
    names: Mapping[str, str | None],
    overrides: Sequence[str] | None,
    data_root: Path | None = None,
    *,
    run: Path | None = None,
) -> Recipe:
    """Compose the recipe that a command means: what the command line says, else what the run says, else the default.

    The file of `--recipe` comes first. Its overrides are the word of a file: only what was typed allows a key.

    Args:
        names: Kind -> name of the file that the command line names, or None where it names none.
        overrides: `section.key=value`; they win over everything.
        data_root: Where the data lies.
        run: Gives all that is not named.

    Raises:
        RecipeError: If a file is missing, or the recipe is wrong; every problem is listed.
        RunError: If the run is no run folder.
    """
    if overrides:
        allow_typed_keys(overrides)
    start = _start.get()
    changes = [*root(data_root), *(overrides or [])]
    given = {kind: name for kind, name in names.items() if name is not None}
    if run is None:
        missing = {kind: name for kind, name in DEFAULTS.items() if not start.gives(kind)}
        return compose({**missing, **given}, changes, start=start)
    require_run(run)
    if "prompt" in start.names:
        given.setdefault("prompt", start.names["prompt"])
    trained = runs.recipe_of(run)
    recipe = compose(given, [*start.overrides, *changes], start=trained)
    if "llm" not in given or recipe.llm.backend != "openai":
        return recipe
    # A server that has the run's weights is asked in the chat template of the training.
    if recipe.llm.decode != "score" and trained.llm.model_dump(include=set(_TEMPLATE), exclude_defaults=True):
        _log.warning(
            "%s was trained with its own chat template, and llm.decode=%s uses the server's: start the server "
            "with that of the run (vllm serve --chat-template FILE), or set llm.decode=score",
            run,
            recipe.llm.decode,
        )
    carried = {key: getattr(trained.llm, key) for key in _TEMPLATE if key not in recipe.llm.model_fields_set}
    return recipe.model_copy(update={"llm": recipe.llm.model_copy(update=carried)})


def require_run(folder: Path) -> None:
    """Refuse a folder that is no run, and say which runs there are."""
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder} is no run folder{list_runs(folder)}")


def list_runs(folder: Path) -> str:
    """Say which runs there are and which is nearest to a folder, as the end of a message."""
    there = [str(path.parent) for path in sorted(runs.RUNS.glob("*/recipe.yaml"))]
    listed = f"there are: {', '.join(there)}" if there else "there is no run yet; make one with: llm-wrapper train"
    return f"{nearest(str(folder), there)} ({listed})"


def extra_words() -> list[str]:
    """Return the words of `LLM_WRAPPER_ARGS`, split as a shell splits them; nothing in them is run or replaced.

    Raises:
        RecipeError: If a quotation mark is not closed.
    """
    # Processes that this one starts have their own command line.
    text = os.environ.pop(_WORDS, "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise RecipeError(f"ARGS={text!r} cannot be split into words: {error}") from error


def recipe_first(words: Sequence[str]) -> list[str]:
    """Move `--recipe FILE` to the front: the verb's other options take their defaults from the file."""
    end = words.index("--") if "--" in words else len(words)
    first: list[str] = []
    others: list[str] = []
    typed = iter(words[:end])
    for word in typed:
        if word == "--recipe":
            first += [word, *itertools.islice(typed, 1)]
        else:
            (first if word.startswith("--recipe=") else others).append(word)
    return [*first, *others, *words[end:]]


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"llm-wrapper {__version__}")
        raise typer.Exit


def common_options(
    context: typer.Context,
    *,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A file to start from: a run's recipe.yaml, your own, or the name of a row in recipes/paper."
        ),
    ] = None,
    paper: Annotated[
        str | None, typer.Option(help="A row of the paper's tables: a file of recipes/paper.", hidden=True)
    ] = None,
    plugin: Annotated[
        list[str] | None,
        typer.Option(help="A Python module, or a file ending in .py, that registers detectors of yours."),
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Read the options before the verb: load plugins, and keep the recipe that verbs start from."""
    for module in plugin or []:
        load_plugin(module)
    if recipe and paper:
        raise RecipeError(f"--recipe {recipe} and --paper {paper} both give a recipe; leave one out")
    name = recipe or paper
    start = read_recipe_file(name) if name else _NO_FILE
    _start.set(start)
    context.call_on_close(lambda: _start.set(_NO_FILE))
    context.default_map = _option_defaults(context.command, start)


def _option_defaults(command: Any, start: RecipeFile) -> dict[str, Any]:
    """Return the names that a file gives to the options of a verb, or, by name, of each verb of a group."""
    if hasattr(command, "commands"):
        return {name: _option_defaults(inner, start) for name, inner in command.commands.items()}
    return {
        option.name: [value] if option.multiple else value
        for option in command.params
        if option.name != "prompt" and (command.name, option.name) not in _NOT_OF_A_ROW
        if (value := start.names.get(option.name))
    }
