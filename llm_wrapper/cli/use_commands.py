"""What the verbs do that use an adapter without measuring it: one picture, one merged model for a server."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console

from llm_wrapper import adapter_files, results, runs, storage
from llm_wrapper.adapter_files import find_adapter
from llm_wrapper.cli import options
from llm_wrapper.cli.evaluate import Evaluation, notes, with_training
from llm_wrapper.cli.options import (
    AdapterName,
    DataRoot,
    Llm,
    Overrides,
    PromptName,
    Run,
    Vlm,
    assigned,
    chosen,
    require_one_adapter,
)
from llm_wrapper.errors import RecipeError, RunError
from llm_wrapper.recipe import LLMSection, Recipe
from llm_wrapper.terminal import say
from llm_wrapper.wrapper import Preparer, Result, Wrapper

__all__ = ["export_verb", "predict_verb"]

_NO_DETECTOR = (
    "predict needs boxes of this picture: name a detector that sees photographs (--vlm flo2), a file of boxes of any "
    "detector (--boxes boxes.jsonl), or a run, whose detector is taken (--run runs/..). --vlm toy is for the drawn "
    "shapes of data/toy only"
)


def predict_verb(  # noqa: PLR0913 (each is an option of the verb)
    image: Annotated[Path, typer.Argument(help="A picture.")],
    expression: Annotated[str, typer.Argument(help="What to find.")],
    overrides: Overrides = None,
    *,
    vlm: Vlm = None,
    llm: Llm = None,
    run: Run = None,
    adapter: AdapterName = None,
    prompt: PromptName = None,
    data: Annotated[str | None, typer.Option(help="Whose training split examples come from, if not the run's.")] = None,
    data_root: DataRoot = None,
    boxes: Annotated[Path | None, typer.Option(help="Boxes of this picture from any detector (JSONL).")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the drawn picture goes, if not to a new file in runs/predict.")
    ] = None,
) -> None:
    """Find the box that an expression describes, and draw the ranked candidates."""
    require_one_adapter(run, adapter)
    if boxes and vlm:
        raise RecipeError(f"--boxes {boxes} takes the place of a detector; leave out --vlm {vlm}")
    if not (run or boxes or vlm):
        raise RecipeError(_NO_DETECTOR)
    more = [assigned("detector.settings.path", boxes)] if boxes else []
    names = options.names_by_kind("import" if boxes else vlm, llm, data or (None if run else "mine"), prompt=prompt)
    recipe = chosen(names, [*more, *(overrides or [])], data_root, run=run)
    job = Evaluation(recipe, run, adapter=find_adapter(adapter) if adapter else None, prompt=prompt)
    predict_and_draw(job, (image, expression), out, options.CONSOLE)


def export_verb(
    run: Annotated[str, typer.Argument(help="A finished run, or, with --llm, an adapter of another program.")],
    out: Annotated[Path, typer.Argument(help="The new folder of the merged model.")],
    overrides: Overrides = None,
    *,
    llm: Annotated[str | None, typer.Option(help="LLM of that adapter: a file of recipes/llm.")] = None,
) -> None:
    """Merge an adapter into its base model: one folder that any server loads."""
    if llm is None and overrides:
        raise RecipeError(f"a run is exported as it was trained; {', '.join(overrides)} needs --llm")
    if llm is None:
        export(Path(run), out, options.CONSOLE)
    else:
        section = chosen(options.names_by_kind("toy", llm, "toy"), overrides).llm
        export_adapter(section, run, out, options.CONSOLE)


def predict_and_draw(job: Evaluation, question: tuple[Path, str], out: Path | None, console: Console) -> None:
    """Answer one question about one picture, print the ranked candidates and draw them.

    Args:
        job: Recipe, and run or adapter.
        question: The picture's path, and the expression.
        out: Where the drawn picture goes; by default a file of this question in runs/predict.
        console: Where the candidates are printed.

    Raises:
        RecipeError: If `out` is the picture itself, or has no suffix of a picture.
        LLMWrapperError: If the picture cannot be written; else as `Preparer` and `Wrapper`.
    """
    image, expression = question
    if out is not None:
        _require_new_picture(out, image)
    recipe, adapter = with_training(job)
    # Before the LLM is loaded, so that a wrong file of boxes stops early.
    prepared = Preparer(recipe).prepare(image, [expression])
    (result,) = Wrapper.from_recipe(recipe, adapter, progress=True).answer(prepared, image)
    prediction = result.prediction
    _say_ranking(result, console)
    out = out or _default_out(recipe, adapter, question)
    result.draw(out)
    none = "none of these is meant; " if prediction.says_none else ""
    say(console, f"{none}decided by: {prediction.decided_by}; picture: {out}")
    if recipe.llm.backend == "transformers" and adapter is None:
        say(
            console,
            f"{recipe.llm.model} was not trained to choose boxes: train it (llm-wrapper train), name a run with --run, "
            "or take the rules with --llm rule",
        )
    for line in notes(job, [prediction]):
        say(console, line)


def _say_ranking(result: Result, console: Console) -> None:
    """Print a line a candidate, with the index that the picture shows."""
    for each in result.ranked:
        coordinates = ", ".join(f"{value:.1f}" for value in each.box.xyxy)
        mark = "*" if each.index == result.index else " "
        percent = "" if each.probability is None else f"{each.probability:6.3f}"
        say(console, f"{mark} {each.index:2d} {percent}  {each.label}  ({coordinates})")


def _require_new_picture(out: Path, image: Path) -> None:
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    if out.suffix.lower() not in known:
        raise RecipeError(f"--out {out}: {out.suffix or 'no suffix'} is no kind of picture; name it .png or .jpg")
    if out.exists() and image.exists() and out.samefile(image):
        raise RecipeError(f"--out {out} is the picture itself, which would be lost; name another file")


def _default_out(recipe: Recipe, adapter: Path | None, question: tuple[Path, str]) -> Path:
    """Return a file for the drawn picture that no other question has."""
    image, expression = question
    decides = results.evaluation_question({"recipe": recipe.model_dump(mode="json")})
    weights = adapter_files.digest_adapter(adapter) if adapter else None
    parts = {"image": storage.digest(image), "expression": expression, "asked": decides, "weights": weights}
    return runs.ROOT / "predict" / f"{results.plain_name(image.stem)[:60]}-{storage.digest_value(parts)[:8]}.png"


def export(run: Path, out: Path, console: Console) -> None:
    """Merge a run's adapter into its base model, for a server."""
    if not runs.is_complete(run):
        raise RunError(
            f"{run} holds no finished training; resume it with: {runs.resume_command(run)}. An adapter of another "
            f"program is exported with its LLM: llm-wrapper export {shlex.quote(str(run))} {shlex.quote(str(out))} "
            "--llm llama3"
        )
    from llm_wrapper.llms.adapters import export_model as merge

    merge(runs.recipe_of(run).llm, run / "adapter", out)
    say(console, f"{out} is written; serve it, then: llm-wrapper eval --llm vllm --run {shlex.quote(str(run))}")


def export_adapter(section: LLMSection, name: str, out: Path, console: Console) -> None:
    """Merge an adapter that this project did not train into its base model, for a server."""
    from llm_wrapper.llms.adapters import export_model as merge

    merge(section, find_adapter(name).folder, out)
    say(console, f"{out} is written; serve it, then: llm-wrapper eval --llm vllm --vlm .. --data ..")
