"""The command line: its verbs in the order of use, and errors that a user can correct, printed without a traceback."""

from __future__ import annotations

import errno
import logging
import sys
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from llm_wrapper.cli import (
    data,
    demo,
    detections,
    evaluate,
    grids,
    methods,
    options,
    predict,
    score,
    search,
    train,
)
from llm_wrapper.errors import LLMWrapperError
from llm_wrapper.terminal import log_to_stderr, open_console, say

__all__ = ["app", "main"]

_HELP = """Adapt a detector that cannot be trained to referring expressions: an LLM chooses among its boxes.

All steps on toy data: llm-wrapper demo --fast

One photograph: llm-wrapper predict photo.jpg "the man on the left" --vlm flo2 --llm llama3

A training: llm-wrapper cache-detections, train and eval, each with --vlm flo2 --llm llama3 --data refcocog
"""

_RENAMED = {
    "bench": "make bench-score (and bench-train, -detect, -memory, -metrics, -growth) in a checkout",
    "data": "llm-wrapper check-data",
    "plan": "llm-wrapper train --plan",
    "prompts": "llm-wrapper search-prompts, and llm-wrapper report FOLDER for its history",
}
"""Verbs of earlier versions -> what does their work."""


class _Verbs(TyperGroup):
    """A group that takes `--recipe` on either side of the verb, and names the successor of a former verb."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options before the verb, of which `--recipe` may be typed behind it too."""
        return super().parse_args(ctx, options.recipe_first(args))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the verb, or refuse one that does not exist."""
        if args and args[0] not in self.commands and args[0] in _RENAMED:
            ctx.fail(f"There is no verb {args[0]!r} any more; use: {_RENAMED[args[0]]}")
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=_Verbs, no_args_is_help=True, pretty_exceptions_enable=False, help=_HELP)

_TRY, _DATA, _STUDIES = "First steps", "Data and detections", "Studies"


def _add(name: str, verb: Any, panel: str) -> None:
    app.command(name, rich_help_panel=panel)(verb)


_add("train", train.train_verb, _TRY)
_add("eval", evaluate.evaluate_verb, _TRY)
_add("predict", predict.predict, _TRY)
_add("demo", demo.demo_verb, _TRY)
_add("report", score.report_verb, _TRY)
_add("export", predict.export_adapter, _TRY)
_add("check-data", data.check_data_verb, _DATA)
_add("cache-detections", detections.cache_detections_verb, _DATA)
_add("score", score.score_verb, _DATA)
app.add_typer(detections.detections_app, name="detections", rich_help_panel=_DATA)
grids.add_grid_verbs(app)
methods.add_methods_verb(app)
_add("none-below", score.none_below_verb, _STUDIES)
_add("search-prompts", search.search_prompts_verb, _STUDIES)
options.add_common(app)

_ERRORS = open_console(stderr=True)


def main() -> None:
    """Run the command line; exit with 2 on an error that the user can correct."""
    log_to_stderr()
    for noisy in ("httpx", "httpx2", "transformers", "datasets", "torch", "peft", "trl", "accelerate", "bitsandbytes"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # About renamed options inside transformers and TRL, which no user of this program can change.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl)\.")
    try:
        app(args=[*sys.argv[1:], *options.extra_words()], prog_name="llm-wrapper")
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        say(_ERRORS, f"error: no file can have so long a name: {str(error.filename)[:100]}..", style="red")
        sys.exit(2)
    except LLMWrapperError as error:
        say(_ERRORS, f"error: {error}", style="red")
        sys.exit(2)
