"""The command line: its verbs in the order of use, and errors that a user can correct, printed without a traceback."""

from __future__ import annotations

import errno
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from llm_wrapper.cli import detections, evaluate, grids, methods, options, predict, search, train
from llm_wrapper.errors import LLMWrapperError
from llm_wrapper.terminal import log_to_stderr, open_console, say

_HELP = """Adapt a detector that cannot be trained to referring expressions: an LLM chooses among its boxes.

All steps on toy data: llm-wrapper demo --fast

One photograph: llm-wrapper predict photo.jpg "the man on the left" --vlm flo2 --llm llama3

A training: llm-wrapper cache-detections, train and eval, each with --vlm flo2 --llm llama3 --data refcocog
"""

_RENAMED = {
    "bench": "make bench-score (and bench-train, -detect, -memory, -metrics, -growth) in a checkout",
    "data": "llm-wrapper check-data",
    "detections export": "llm-wrapper export CACHE FILE",
    "detections verify": "llm-wrapper detections info --verify",
    "none-below": "llm-wrapper report PREDICTIONS --none-below SYSTEM",
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
        for words in (" ".join(args[:1]), " ".join(args[:2])):
            if words in _RENAMED:
                ctx.fail(f"There is no verb {words!r} any more; use: {_RENAMED[words]}")
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=_Verbs, no_args_is_help=True, pretty_exceptions_enable=False, help=_HELP)

_VERBS: dict[str, dict[str, Callable[..., None]]] = {
    "First steps": {
        "train": train.train_verb,
        "eval": evaluate.evaluate_verb,
        "predict": predict.predict_verb,
        "demo": train.demo_verb,
        "report": evaluate.report_verb,
        "export": predict.export_verb,
    },
    "Data and detections": {
        "check-data": detections.check_data_verb,
        "cache-detections": detections.cache_detections_verb,
        "score": evaluate.score_verb,
    },
    "Studies": {
        "transfer": grids.transfer_verb,
        "ensemble": grids.ensemble_verb,
        "curve": grids.curve_verb,
        "compare-methods": methods.compare_methods_verb,
        "search-prompts": search.search_prompts_verb,
    },
}
for _panel, _verbs in _VERBS.items():
    for _name, _verb in _verbs.items():
        app.command(_name, rich_help_panel=_panel)(_verb)
app.add_typer(detections.detections_app, name="detections", rich_help_panel="Data and detections")
app.callback()(options.common_options)

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
