"""The verbs over folders of cached detections. No recipe is needed: a folder says itself what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_wrapper.cli import detection_commands as commands
from llm_wrapper.terminal import open_console

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Look after cached detections, and see what they are worth.")

_console = open_console()

Folder = Annotated[Path, typer.Argument(help="A cache: data/detections/<detector>/<dataset>/<split>.")]
Folders = Annotated[list[Path], typer.Argument(help="Caches: data/detections/<detector>/<dataset>/<split>.")]


@app.command()
def info(
    folders: Folders,
    *,
    identity: Annotated[bool, typer.Option(help="Print all that decided the answers, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone, with the identity.")] = False,
) -> None:
    """Count what caches hold, and tell whether they are complete."""
    commands.info(folders, _console, identity=identity, as_json=as_json)


@app.command()
def verify(folders: Folders) -> None:
    """Check every digest, column, identity and answer; list what is wrong and what mends it. Changes nothing."""
    if not commands.verify(folders, _console):
        raise typer.Exit(1)


@app.command()
def merge(out: Annotated[Path, typer.Argument(help="The result, new or begun.")], folders: Folders) -> None:
    """Join caches of one detector and split, such as those of several machines; the same call goes on after a kill."""
    commands.merge(out, folders, _console)


@app.command()
def export(
    folder: Folder,
    out: Annotated[Path, typer.Argument(help="COCO results where it ends in .json, else our JSONL in .jsonl.")],
) -> None:
    """Write detections for other programs; VLM=import reads them back."""
    commands.export(folder, out, _console)
