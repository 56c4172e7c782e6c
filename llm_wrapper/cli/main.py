"""The command line: thin verbs over the package. Errors that a user can act on are printed without a traceback."""

from __future__ import annotations

import dataclasses
import errno
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer

from llm_wrapper import runs
from llm_wrapper.adapter_files import find_adapter
from llm_wrapper.box_formats import BoxFormat
from llm_wrapper.cli import (
    commands,
    curve_cli,
    detection_commands,
    methods_cli,
    none_cli,
    plan_commands,
    score_commands,
    transfer_cli,
)
from llm_wrapper.cli.asking_commands import require_one_adapter
from llm_wrapper.cli.detections_cli import app as detections_app
from llm_wrapper.cli.options import (
    Data,
    DataRoot,
    Limit,
    Llm,
    Overrides,
    Split,
    Train,
    Vlm,
    add_common,
    chosen,
    extra_words,
    name_of,
)
from llm_wrapper.cli.predict import add_predict_verbs
from llm_wrapper.cli.prompts_cli import app as prompts_app
from llm_wrapper.errors import LLMWrapperError
from llm_wrapper.terminal import log_to_stderr, open_console, say

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
data_app = typer.Typer(no_args_is_help=True, help="Look at data before it costs hours.")
app.add_typer(data_app, name="data")
app.add_typer(detections_app, name="detections")
app.add_typer(prompts_app, name="prompts")
transfer_cli.add_to(app)
curve_cli.add_to(app)
methods_cli.add_to(app)
none_cli.add_to(app)
add_common(app)

_console = open_console()
_errors = open_console(stderr=True)

Run = Annotated[Path | None, typer.Option(help="Run folder.")]
Wording = Annotated[
    str | None,
    typer.Option("--prompt", help="How the LLM is asked: a file of recipes/prompt, a+b for both, or the path of one."),
]
Foreign = Annotated[
    str | None, typer.Option("--adapter", help="A PEFT adapter of another program: folder, or owner/name of the hub.")
]


def _names(
    vlm: str | None, llm: str | None, data: str | None, train: str | None = None, *, prompt: str | None = None
) -> dict[str, str | None]:
    return {"vlm": vlm, "llm": llm, "data": data, "train": train, "prompt": prompt}


@data_app.command("check")
def data_check(overrides: Overrides = None, *, data: Data = None, data_root: DataRoot = None) -> None:
    """Count each split; list missing images, boxes outside, duplicates and leaks, and what to do."""
    recipe = chosen(_names("toy", "rule", data), overrides, data_root)
    if not commands.check_data(recipe, _console):
        raise typer.Exit(1)


@app.command("cache-detections")
def cache_detections(  # noqa: PLR0913 (each is an option of the verb)
    overrides: Overrides = None,
    *,
    vlm: Vlm = None,
    data: Data = None,
    data_root: DataRoot = None,
    train: Train = None,
    split: Split = None,
    overwrite: Annotated[bool, typer.Option(help="Throw away what is cached and ask again.")] = False,
    skip_unreadable: Annotated[
        bool, typer.Option(help="Finish without missing or broken images; they are named.")
    ] = False,
    images_per_batch: Annotated[int, typer.Option(min=1, help="Images that the detector is given at once.")] = 8,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Ask in this process, or in workers of Ray.")
    ] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Ray: how many workers, if not as many as fit.")] = None,
) -> None:
    """Ask the detector once for all splits that the recipe trains and evaluates on, and keep its answers."""
    recipe = chosen(_names(vlm, "rule", data, train), overrides, data_root)
    splits = [split] if split else [recipe.data.train_split, recipe.data.eval_split]
    how = detection_commands.Filling(overwrite, skip_unreadable, images_per_batch, engine, workers)
    detection_commands.cache(recipe, splits, _console, how=how)


@detections_app.command()
def headroom(
    overrides: Overrides = None,
    *,
    vlm: Vlm = None,
    data: Data = None,
    data_root: DataRoot = None,
    split: Split = None,
    limit: Limit = None,
) -> None:
    """Measure on cached detections what a selector can gain at most, before paying for a training."""
    recipe = chosen(_names(vlm, "rule", data), overrides, data_root)
    split = split or recipe.data.eval_split
    detection_commands.headroom(recipe, name_of({"vlm": vlm, "data": data}), _console, split=split, limit=limit)


@app.command()
def train(
    overrides: Overrides = None,
    *,
    vlm: Vlm = None,
    llm: Llm = None,
    data: Data = None,
    data_root: DataRoot = None,
    train: Train = None,
    prompt: Wording = None,
    run: Run = None,
) -> None:
    """Fine-tune the LLM to name the best box; with --run resume an interrupted run by its own recipe."""
    names = _names(vlm, llm, data, train, prompt=prompt)
    begun = run if run and (run / "recipe.yaml").is_file() else None
    recipe = chosen(names, overrides, data_root, run=begun)
    commands.train(recipe, run or runs.RUNS / runs.new_name(name_of(names)), _console, is_new=run is None)


@app.command()
def plan(
    overrides: Overrides = None,
    *,
    vlm: Vlm = None,
    llm: Llm = None,
    data: Data = None,
    data_root: DataRoot = None,
    train: Train = None,
) -> None:
    """Say what a training takes and whether it fits the device at hand, without loading the model."""
    if not plan_commands.plan(chosen(_names(vlm, llm, data, train), overrides, data_root), _console):
        raise typer.Exit(1)


@app.command("eval")
def evaluate(  # noqa: PLR0913 (each is an option of the verb)
    overrides: Overrides = None,
    *,
    vlm: Vlm = None,
    llm: Llm = None,
    data: Data = None,
    data_root: DataRoot = None,
    split: Split = None,
    run: Run = None,
    limit: Limit = None,
    adapter: Foreign = None,
    prompt: Wording = None,
    untrained: Annotated[bool, typer.Option(help="Also score the LLM before training.")] = True,
) -> None:
    """Compare detector, rule, LLM before and after training, and oracle on one split.

    With --run all that is not named is that of the run.
    """
    require_one_adapter(run, adapter)
    names = _names(vlm, llm, data, prompt=prompt)
    if run is None and adapter is None and (run := runs.latest(name_of(names))) is not None:
        say(_console, f"the newest finished run of these names is evaluated: {run}")
        names = _names(None, None, None, prompt=prompt)  # they said which run; its own recipe is what they meant then
    recipe = chosen(names, overrides, data_root, run=run)
    job = commands.Evaluation(recipe, run, split, limit, untrained=untrained, prompt=prompt)
    if adapter:
        job = dataclasses.replace(job, adapter=find_adapter(adapter))
    commands.evaluate(job, _console)


add_predict_verbs(app)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder, or a predictions file.")],
    *,
    compare: Annotated[
        list[Path] | None, typer.Option("--with", help="Another run, or a folder of `score`, to stand beside it; kept.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Where pictures may be shown from, if not from the folder data.")
    ] = None,
) -> None:
    """Compute the table again from the predictions alone; needs neither torch nor data."""
    commands.recompute(run, _console, beside=compare or [], data_root=data_root)


@app.command()
def score(
    file: Annotated[Path, typer.Argument(help="Boxes of any system: JSON lines, a JSON list, or our own Parquet.")],
    overrides: Overrides = None,
    *,
    data: Data = None,
    data_root: DataRoot = None,
    split: Split = None,
    name: Annotated[str | None, typer.Option(help="Of the system, if not by the file.")] = None,
    box_format: Annotated[
        BoxFormat | None, typer.Option(help="Of the boxes, if the file does not say; shares are norm, or 1000.")
    ] = None,
) -> None:
    """Score boxes that another system gave for the expressions of a split: the same table as eval."""
    recipe = chosen(_names("toy", "rule", data), overrides, data_root)
    job = score_commands.Job(file, recipe.data, split or recipe.data.eval_split, name, box_format)
    score_commands.score(job, _console)


@app.command()
def demo(
    *,
    fast: Annotated[bool, typer.Option(help="A few steps and few samples, to see that the road is whole.")] = False,
) -> None:
    """The whole road on the toy split: detect, cache, train, evaluate. Leaves runs/demo."""
    commands.demo(chosen(_names("toy", "smollm2", "toy", "demo"), None), _console, fast=fast)


def main() -> None:
    """Run the command line; exit with 2 on an error that the user can correct."""
    log_to_stderr()
    for noisy in ("httpx", "httpx2", "transformers", "datasets", "torch", "peft", "trl", "accelerate", "bitsandbytes"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # They speak of renamed options inside transformers and TRL, which nobody here can change.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl)\.")
    try:
        app(args=[*sys.argv[1:], *extra_words()])
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        say(_errors, f"error: no file can have so long a name: {str(error.filename)[:100]}..", style="red")
        sys.exit(2)
    except LLMWrapperError as error:
        say(_errors, f"error: {error}", style="red")
        sys.exit(2)
