"""The verbs that use an adapter without measuring it: `predict` on images, and `export` for other programs.

predict photo.jpg "the left dog"                  ranked boxes, and a picture in runs/predict
predict photos/ "the left dog" --json             one JSON line an image
predict photos/ --expressions expressions.jsonl   many expressions; the LLM is loaded once
"""

from __future__ import annotations

import glob
import json
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from llm_wrapper import adapter_files, images, readers, runs, storage
from llm_wrapper.cli import options
from llm_wrapper.cli.detections import export_detections
from llm_wrapper.detections.samples import Preparer, require_expressions
from llm_wrapper.errors import DataError, RecipeError, RunError, listed
from llm_wrapper.evaluation.jobs import Evaluation, require_one_adapter
from llm_wrapper.records import Prediction
from llm_wrapper.report import pictures
from llm_wrapper.terminal import open_console, say
from llm_wrapper.wrapper import Result, Wrapper

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
"""Of the files in a folder that are taken for images."""

_OVERRIDE = re.compile(r"[a-z_]+(?:\.[\w-]+)+=")

_MAX_COLORS = 2000
"""Drawn shapes have some hundred colors, photographs tens of thousands."""

_errors = open_console(stderr=True)

Asked = list[tuple[Path, list[str]]]
"""Images, each with the expressions that are asked about it."""


def predict_verb(  # noqa: PLR0913 (each is an option of the verb)
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE.. EXPRESSION [section.key=value]..",
            help="Images, folders or patterns such as 'photos/*.jpg'; then what to find in each.",
        ),
    ] = None,
    *,
    expressions: Annotated[
        Path | None,
        typer.Option(
            help="Expressions by file, in place of EXPRESSION: JSONL with image and expression, or text lines."
        ),
    ] = None,
    vlm: Annotated[
        str | None, typer.Option(help="Detector, if not the run's: a file of recipes/vlm; a+b for both.")
    ] = None,
    llm: options.Llm = None,
    run: options.Run = None,
    adapter: options.AdapterName = None,
    prompt: options.PromptName = None,
    data: Annotated[str | None, typer.Option(help="Whose training split examples come from, if not the run's.")] = None,
    data_root: options.DataRoot = None,
    boxes: Annotated[Path | None, typer.Option(help="Boxes of these images from any detector (JSONL).")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the drawn picture goes, or the folder of several, if not to new files in runs/predict."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON line an answer; draw only with --out.")
    ] = False,
    save_crop: Annotated[
        bool, typer.Option("--save-crop", help="Also write the chosen part of the image, as PICTURE-crop.png.")
    ] = False,
) -> None:
    """Find the box that an expression describes in images, and draw the ranked candidates."""
    require_one_adapter(run, adapter)
    asked, overrides = _read_words(words or [], expressions)
    if boxes and vlm:
        raise RecipeError(f"--boxes {boxes} takes the place of a detector; leave out --vlm {vlm}")
    if not (run or boxes or vlm or options.starts_with("vlm")):
        raise RecipeError(
            "predict needs boxes of this picture: name a detector that sees photographs (--vlm flo2), a file of boxes "
            "of any detector (--boxes boxes.jsonl), or a run, whose detector is taken (--run runs/..). --vlm toy is "
            "for the drawn shapes of data/toy only"
        )
    if boxes:
        overrides = [options.assigned("detector.settings.path", boxes), *overrides]
    names = {"vlm": "import" if boxes else vlm, "llm": llm, "data": data or (None if run else "mine"), "prompt": prompt}
    recipe = options.choose_recipe(names, overrides, data_root, run=run)
    third_party = adapter_files.find_adapter(adapter) if adapter else None
    predictor = _Predictor(Evaluation(recipe, run, adapter=third_party, prompt=prompt), out, as_json, save_crop)
    if not predictor.predict(asked):
        raise typer.Exit(1)


class _Predictor:
    """Answers all questions with one detector and one LLM, and prints and draws the answers."""

    def __init__(self, job: Evaluation, out: Path | None, as_json: bool, save_crop: bool) -> None:
        self._job, self._out, self._as_json, self._save_crop = job, out, as_json, save_crop

    def predict(self, asked: Asked) -> bool:
        """Return whether every image could be read; of several the others are answered all the same.

        Raises:
            LLMWrapperError: If no image could be read, or anything else fails.
        """
        recipe, is_one = self._job.recipe, len(asked) == len(asked[0][1]) == 1
        if self._out is not None and is_one:
            _require_new_picture(self._out, asked[0][0])
        adapter = self._job.find_adapter_folder()
        # All that decides an answer but image and expression: no two questions share a picture.
        decides = {
            "asked": runs.evaluation_question({"recipe": recipe.model_dump(mode="json")}),
            "weights": adapter_files.digest_adapter(adapter) if adapter else None,
        }
        preparer, wrapper = Preparer(recipe, progress=is_one), None
        skipped: list[str] = []
        predictions: list[Prediction] = []
        for image, expressions in asked:
            # Before the LLM is loaded, so that a wrong file of boxes stops early.
            try:
                prepared = preparer.prepare(image, expressions)
            except DataError as error:
                if len(asked) == 1 or (len(skipped) == len(asked) - 1 and wrapper is None):
                    raise
                skipped.append(f"{image}: {error}")
                continue
            if wrapper is None:
                self._warn_of_photograph(image)
                wrapper = Wrapper.from_recipe(recipe, adapter, progress=is_one)
            for result in wrapper.answer(prepared, image):
                out = self._out
                if out is None or not is_one:
                    parts = {"image": storage.digest(image), "expression": result.expression, **decides}
                    name = f"{storage.plain_name(image.stem)[:60]}-{storage.digest_value(parts)[:8]}.png"
                    out = (out or runs.RUNS / "predict") / name
                self._report(result, image, out, None if is_one else f"{image}: {result.expression}")
                predictions.append(result.prediction)
        for line in self._job.notes(predictions):
            say(_errors if self._as_json else options.CONSOLE, line)
        if skipped:
            say(_errors, listed(f"{len(skipped)} of {len(asked)} images were skipped", skipped), style="red")
        return not skipped

    def _report(self, result: Result, image: Path, out: Path, title: str | None) -> None:
        """Draw and print an answer, with a title where there are several."""
        files = {}
        if self._out is not None or not self._as_json:
            result.draw(out)
            files["picture"] = str(out)
        if self._save_crop and result.box is not None:
            crop = out.with_name(f"{out.stem}-crop.png")
            x0, y0, x1, y1 = result.box.xyxy
            corners = (math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1))
            pictures.save_picture(images.read_image(image).crop(corners), crop)
            files["crop"] = str(crop)
        if self._as_json:
            say(options.CONSOLE, json.dumps({"image": str(image), **_as_json(result), **files}))
            return
        if title:
            say(options.CONSOLE, title)
        for each in result.ranked:
            coordinates = ", ".join(f"{value:.1f}" for value in each.box.xyxy)
            mark = "*" if each.index == result.index else " "
            percent = "" if each.probability is None else f"{each.probability:6.3f}"
            say(options.CONSOLE, f"{mark} {each.index:2d} {percent}  {each.label}  ({coordinates})")
        none = "none of these is meant; " if result.prediction.says_none else ""
        places = "; ".join(f"{kind}: {path}" for kind, path in files.items())
        say(options.CONSOLE, f"{none}decided by: {result.prediction.decided_by}; {places}")

    def _warn_of_photograph(self, image: Path) -> None:
        """Say that a detector of drawn shapes sees nothing in a photograph."""
        names = [each.detector.name for each in self._job.recipe.detectors()]
        toys = [name for name in names if name in ("toy", "toy-gray")]
        if toys and images.read_image(image).getcolors(_MAX_COLORS) is None:
            say(
                _errors,
                f"WARNING: {image} looks like a photograph, and the detector {toys[0]} knows drawn shapes alone: its "
                "boxes mean nothing there. Name a detector that sees photographs, such as --vlm flo2",
                style="yellow",
            )


def _as_json(result: Result) -> dict[str, Any]:
    chosen = result.ranked[0] if result.box is not None else None
    return {
        "expression": result.expression,
        "box": None if chosen is None else list(chosen.box.xyxy),
        "label": None if chosen is None else chosen.label,
        "probability": result.probability,
        "index": result.index,
        "decided_by": result.prediction.decided_by,
        "none": result.prediction.says_none,
        "ranked": [
            {
                "index": each.index,
                "box": list(each.box.xyxy),
                "label": each.label,
                "score": each.score,
                "probability": each.probability,
            }
            for each in result.ranked
        ],
    }


def _read_words(words: Sequence[str], expressions: Path | None) -> tuple[Asked, list[str]]:
    """Divide the words of a command into questions and overrides."""
    overrides = [word for word in words if _OVERRIDE.match(word) and not Path(word).exists()]
    rest = [word for word in words if word not in overrides]
    if expressions is not None:
        folder = Path(rest[0]) if len(rest) == 1 and Path(rest[0]).is_dir() else None
        asked = _read_expressions(expressions, folder or expressions.parent)
        if folder is None:
            wanted = {path.resolve() for word in rest for path in _images_of(word)}
            asked = [(image, texts) for image, texts in asked if not wanted or image.resolve() in wanted]
            if not asked:
                raise DataError(f"{expressions} names none of {', '.join(rest)}")
    else:
        if len(rest) < 2:
            raise RecipeError(
                "predict needs an image and an expression: llm-wrapper predict photo.jpg 'the man on the left'"
            )
        require_expressions(rest[-1:])
        plain = [word for word in rest[:-1] if not any(char in word for char in "*?[")]
        if len(rest) > 2 and (missing := [word for word in plain if not Path(word).exists()]):
            raise RecipeError(
                f"there is no image {missing[0]!r}. An expression of several words is written in quotes: "
                f"llm-wrapper predict {shlex.quote(rest[0])} {shlex.quote(' '.join(rest[1:]))}"
            )
        asked = [(image, rest[-1:]) for word in rest[:-1] for image in _images_of(word)]
    return asked, overrides


def _images_of(word: str) -> Iterator[Path]:
    """Yield the images of a folder or a pattern, by name; any other word is the path of one."""
    path = Path(word)
    if path.is_dir():
        found = sorted(each for each in path.iterdir() if each.suffix.lower() in _SUFFIXES)
        if not found:
            raise DataError(f"{word} holds no images ({', '.join(sorted(_SUFFIXES))})")
        yield from found
    elif not path.exists() and any(char in word for char in "*?["):
        matches = sorted(Path(each) for each in glob.glob(word, recursive=True))
        if not matches:
            raise DataError(f"no file matches the pattern {word!r}")
        yield from matches
    else:
        yield path


def _read_expressions(path: Path, folder: Path) -> Asked:
    """Read questions from a file.

    Args:
        path: JSON lines, if it ends in `.jsonl`, with `image` (or `file_name`) and `expression`; other keys are those
            of a data set, and not needed here. Else text: an image and an expression a line, with a tab between them,
            or with a space where the image's name has none.
        folder: Where the images are.

    Raises:
        DataError: If the file cannot be read, or with every line that is no question.
    """
    problems: list[str] = []
    rows: list[tuple[int, Any, Any]] = []
    if path.suffix == ".jsonl":
        values, problems = readers.read_json_lines(path)
        for number, value in values:
            row = value if isinstance(value, dict) else {}
            rows.append((number, row.get("image", row.get("file_name")), row.get("expression")))
    else:
        for number, line in enumerate(readers.read_text(path).splitlines(), 1):
            if line.strip():
                name, _, text = line.strip().partition("\t" if "\t" in line.strip() else " ")
                rows.append((number, name, text.strip()))
    asked: dict[Path, list[str]] = {}
    for number, name, text in rows:
        if not isinstance(name, str) or not name:
            problems.append(f"line {number} names no image")
            continue
        try:
            require_expressions([text])
            asked.setdefault(folder / name, []).append(text)
        except DataError as error:
            problems.append(f"line {number}: {error}")
    if problems or not asked:
        example = '{"image": "a.jpg", "expression": "the left mug"}'
        raise DataError(listed(f"{path} cannot be used. A right line: {example}", problems or ["it has no line"]))
    return list(asked.items())


def _require_new_picture(out: Path, image: Path) -> None:
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    if out.suffix.lower() not in known:
        raise RecipeError(f"--out {out}: {out.suffix or 'no suffix'} is no kind of picture; name it .png or .jpg")
    if out.exists() and image.exists() and out.samefile(image):
        raise RecipeError(f"--out {out} is the picture itself, which would be lost; name another file")


def export_verb(
    source: Annotated[str, typer.Argument(help="A finished run; a cache of detections; with --llm any PEFT adapter.")],
    out: Annotated[
        Path, typer.Argument(help="A new folder for the model; for detections a .json (COCO results) or .jsonl file.")
    ],
    overrides: options.Overrides = None,
    *,
    llm: Annotated[
        str | None, typer.Option(help="LLM of an adapter of another program: a file of recipes/llm.")
    ] = None,
) -> None:
    """Write for other programs: a run's adapter merged into its LLM, or cached detections as one file.

    For any server: llm-wrapper export runs/flo2-llama3-refcocog-.. merged/

    For any program, VLM=import reads it back: llm-wrapper export data/detections/flo2/refcocog/val boxes.json
    """
    folder, use = Path(source), f"--run {shlex.quote(source)}"
    if llm is not None:
        section = options.choose_recipe({"vlm": "toy", "llm": llm, "data": "toy"}, overrides).llm
        adapter, use = adapter_files.find_adapter(source).folder, "--vlm .. --data .."
    elif overrides:
        raise RecipeError(f"runs and caches are exported as they are; {', '.join(overrides)} needs --llm")
    elif not folder.exists():
        raise RunError(f"{source} does not exist{options.list_runs(folder)}")
    elif any(folder.glob("part-*.parquet")) or (out.suffix in (".json", ".jsonl") and not runs.is_complete(folder)):
        export_detections(folder, out, options.CONSOLE)
        return
    elif not runs.is_complete(folder):
        raise RunError(
            f"{source} holds no finished training; resume it with: {runs.resume_command(folder)}. An adapter of "
            f"another program is exported with its LLM: llm-wrapper export {shlex.quote(source)} "
            f"{shlex.quote(str(out))} --llm llama3"
        )
    else:
        section, adapter = runs.recipe_of(folder).llm, folder / runs.ADAPTER
    from llm_wrapper.llms.adapters import export_model

    export_model(section, adapter, out)
    say(options.CONSOLE, f"{out} is written; serve it, then: llm-wrapper eval --llm vllm {use}")
