"""Run small inputs that people really have through the command line, and say of each whether the right thing happens.

The folder of inputs is `cases`, beside the folder that LLM_WRAPPER_REAL_DATA names. One row a check: what is right,
what happened, right or wrong. Exits with 1 if anything is wrong.

    make cases
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from llm_wrapper.cli import main as command_line
from llm_wrapper.cli import options
from llm_wrapper.errors import LLMWrapperError

VARIABLE = "LLM_WRAPPER_REAL_DATA"
DOG, CAT = "left dog", "the cat"


@dataclass(frozen=True)
class Check:
    """One command on one folder of inputs.

    Attributes:
        case: The folder.
        right: What should happen, in words.
        command: The command line; `{case}` is the folder.
        accepted: Whether it should be taken, else refused by an error that a user can act on; `None` where the inputs
            lack what the command wants (image files, a split) and only its words count.
        says: Patterns that must all be in what it prints.
        never: A pattern that must not be.
        before: Commands that come first, each of which must be taken.
    """

    case: str
    right: str
    command: str
    accepted: bool | None = True
    says: tuple[str, ...] = ()
    never: str | None = None
    before: tuple[str, ...] = ()


def cache(file: str, *settings: str, data: str = "mine.jsonl", name: str = "mine", split: str = "val") -> str:
    """Return the command that caches a file of boxes."""
    more = " ".join(f"detector.settings.{setting}" for setting in settings)
    return (
        f"cache-detections --vlm import --data {name} --data-root {{case}}/{data} --split {split} "
        f"detector.settings.path={{case}}/{file} {more}"
    )


def headroom(file: str, *settings: str) -> str:
    """Return the command that compares the boxes of a file with the targets."""
    return cache(file, *settings).replace("cache-detections", "detections headroom")


def score(file: str, *options: str, data: str = "mine.jsonl", name: str = "mine", split: str = "val") -> str:
    """Return the command that scores a file of predictions."""
    return f"score {{case}}/{file} --data {name} --data-root {{case}}/{data} --split {split} {' '.join(options)}"


def check(data: str, *overrides: str, name: str = "mine") -> str:
    """Return the command that checks a data set."""
    return f"check-data --data {name} --data-root {{case}}/{data} {' '.join(overrides)}"


def predict(image: str, boxes: str, expression: str = DOG) -> str:
    """Return the command that finds a box in a picture among those of a file."""
    return f"predict {{case}}/{image} '{expression}' --llm rule --boxes {{case}}/{boxes}"


ALL_RIGHT = r"100\.0"
DIGITS = r"\d+(?:\.\d+)?"


def splits_and_formats() -> Iterator[Check]:
    """Yield the checks of boxes: splits, formats, labels, images upright."""
    case = "01_two_splits"
    for file in ("boxes.jsonl", "boxes_id.jsonl", "more.jsonl"):
        yield Check(case, f"{file}: images of other splits counted", cache(file), says=("1 of its 2 images",))
    yield Check(case, "one file serves train too", cache("boxes.jsonl", split="train"), says=("1 of its 2 images",))
    yield Check(case, "boxes of another split alone are refused", cache("train.jsonl"), accepted=False, says=("b.jpg",))
    case, grefs = "02_grefcoco_empty_ref", {"data": "root", "name": "grefcoco"}
    cached = cache("", **grefs).replace("import", "coco").partition(" detector.")[0]
    yield Check(case, "a ref without sentences is skipped", cached, says=("2 expressions",))
    yield Check(case, "and counted", check("root", name="grefcoco"), accepted=None, says=("1 skipped",))
    case = "03_grefcoco_crowd"
    yield Check(case, "check-data names crowd targets", check("root", name="grefcoco"), None, says=("(?i)crowd",))
    for verb in ("detections headroom", "eval --llm rule"):
        again = cached.replace("cache-detections", verb)
        yield Check(case, f"{verb.split()[-1]} names crowd targets", again, says=("(?i)crowd",), before=(cached,))
    case = "04_normalised_detections"
    for file, fitting in (("norm_xyxy.jsonl", "xyxy_norm"), ("xywh_as_xyxy.jsonl", "xywh")):
        setting = f"box_format={fitting}"
        yield Check(
            case, f"{file}: {setting} named", cache(file), accepted=False, says=(rf"settings\.{setting}(?!\w)",)
        )
        declared = headroom(file, setting)
        yield Check(case, f"{file}: {setting} right", declared, says=(ALL_RIGHT,), before=(cache(file, setting),))
    yield from own_targets()
    yield from labels()
    case = "07_exif"
    for file in ("nosize.jsonl", "size.jsonl", "small.jsonl"):
        yield Check(
            case, f"{file}: upright, nothing outside", check(file), None, never=r"(?i)[1-9]\d* (boxes|box).*outside"
        )
    cached = cache("boxes.jsonl", data="nosize.jsonl")
    gain = cached.replace("cache-detections", "detections headroom")
    yield Check(case, "boxes upright: 2 of 3 found", gain, says=(r"66\.7",), before=(cached,))
    yield Check(
        case, "predict upright", predict("phone.jpg", "boxes.jsonl", "blue square"), says=("300.*400.*460.*620",)
    )


def own_targets() -> Iterator[Check]:
    """Yield the checks of targets in other units."""
    case = "05_normalised_targets"
    for file, fitting in (("norm.jsonl", "xyxy_norm"), ("labelstudio_percent.jsonl", "xywh_percent")):
        setting = f"data.settings.box_format={fitting}"
        yield Check(case, f"{file}: {setting} named", check(file), accepted=False, says=(re.escape(setting),))
        cached = f"{cache('det.jsonl', data=file)} {setting}"
        gain = cached.replace("cache-detections", "detections headroom")
        yield Check(case, f"{file}: {setting} right", gain, says=(ALL_RIGHT,), before=(cached,))


def labels() -> Iterator[Check]:
    """Yield the checks of labels and scores."""
    case, folder = "06_gd_labels", "data/detections/import-empty_label/mine/val"
    empty = cache("empty_label.jsonl")
    yield Check(case, "an empty label is counted", empty, says=("1 box has no label",))
    yield Check(case, "and exported", f"export {folder} out.jsonl", before=(empty,))
    yield Check(case, "odd labels are taken", cache("hash_label.jsonl"), says=("1 box has no label",))
    yield Check(case, "integers ask for categories", cache("int_label.jsonl"), accepted=False, says=("categories",))
    yield Check(
        case, "an empty category too", cache("empty_cat.json", "categories={case}/cats.json"), says=("no label",)
    )
    case = "08_ultralytics"
    for file, names in (
        ("predictions.json", "cats.json"),
        ("predictions.json", "cats_yaml.json"),
        ("predictions_fn.json", "cats.json"),
        ("predictions_off.json", "cats.json"),
        ("predictions_off.json", "cats_yaml.json"),
        ("nocat.json", "cats.json"),
        ("nocat.json", "cats_list.json"),
    ):
        yield Check(case, f"{file} with {names}", cache(file, f"categories={{case}}/{names}"))
    case = "09_coco_results_odd"
    for file, accepted, word in (
        ("nullscore", True, ""),
        ("nanscore", True, "score that is not finite"),
        ("floatid", True, ""),
        ("superset", True, "1 of its 2 images"),
        ("zero", True, ""),
        ("empty", True, "2 of 2 images"),
        ("noscore", False, "score"),
        ("percent", False, r"93\.4"),
        ("strscore", False, "score"),
        ("dict", False, "COCO results"),
    ):
        command = cache(f"{file}.json", "categories={case}/cats.json")
        yield Check(case, f"{file}.json {'taken' if accepted else 'refused'}", command, accepted, (word,))


def predictions() -> Iterator[Check]:
    """Yield the checks of scores and of own data."""
    case = "10_score_model_text"
    for file, right in (("bbox2d", "100"), ("fenced", "100"), ("n1", "100"), ("n1000", "100")):
        options = {"n1": ["--box-format xyxy_norm"], "n1000": ["--box-format xyxy_1000"]}.get(file, [])
        yield Check(case, f"{file}.jsonl: read", score(f"{file}.jsonl", *options), says=(rf"{right}\.0",))
    for file in ("emptybox", "huge", "null", "short", "zero"):
        yield Check(case, f"{file}.jsonl: counted as wrong", score(f"{file}.jsonl"), says=(r"50\.0", "wrong: 2"))
    yield Check(case, "several: the rule is said", score("nested.jsonl"), says=("the first one is taken: line 2",))
    for file in ("n1", "n1000"):
        yield Check(case, f"{file}.jsonl: format wanted", score(f"{file}.jsonl"), False, ("--box-format xyxy_",))
    yield Check(case, "n1000box.jsonl: refused", score("n1000box.jsonl"), False, ("--box-format xyxy_1000",))
    case = "11_own_data_shapes"
    yield Check(case, "a JSON list works", check("list.json"), None, ("1 image files missing",))
    for file in ("vlmr1.json", "shikra.jsonl"):
        yield Check(
            case, f"{file}: works, or shows a right line", check(file), None, ('"image": |image files missing',)
        )
    for file in ("emptybox.jsonl", "zerobox.jsonl"):
        yield Check(case, f"{file}: says null", check(file), accepted=False, says=("null",))
    for file in ("multi.jsonl", "extra.jsonl", "dupid.jsonl", "edge.jsonl"):
        yield Check(case, f"{file}: no class name", check(file), None, never=r"instance of|nearest known one")
    case = "12_encodings"
    yield Check(case, "a mark is read", check("bom.jsonl"), None, ("2 image files missing",))
    yield Check(case, "and in boxes", cache("boxes_bom.jsonl", data="bom.jsonl"))
    named = cache("res_bom.json", "categories={case}/cats.json", data="bom.jsonl")
    yield Check(case, "and in COCO results", named)
    yield Check(case, "and in predictions", score("pred_bom.jsonl", data="bom.jsonl"))
    for file in ("utf16.jsonl", "latin1.jsonl"):
        yield Check(case, f"{file}: one sentence", check(file), accepted=False, says=("UTF-16|not UTF-8",))
    yield Check(case, "UTF-16 predictions", score("pred_utf16.jsonl", data="bom.jsonl"), False, ("is UTF-16",))
    yield from names()


def names() -> Iterator[Check]:
    """Yield the checks of names of images and samples."""
    case, refer = "13_coco_file_names", {"data": "root", "name": "refcocog", "split": "val"}
    for file in ("fn_full", "fn_path", "fn_plain", "fn_short", "fn_suffix", "id_int", "id_str"):
        yield Check(case, f"{file}.jsonl", cache(f"{file}.jsonl", **refer), never="not named")
    for file in ("full", "path", "plain", "png", "short", "sent_raw", "txt_case", "txt_raw", "txt_space"):
        yield Check(case, f"pred_{file}.jsonl", score(f"pred_{file}.jsonl", **refer), says=("detector 1",))
    minigpt = score("pred_minigpt.jsonl", "--box-format xywh", **refer)
    yield Check(case, "pred_minigpt.jsonl", minigpt, says=("detector 1",))
    case = "14_supervision"
    for file in ("ok.csv", "ok.json", "fn.csv", "fn.json", "emptyfirst.csv", "emptyfirst.json", "nan.csv", "nan.json"):
        yield Check(case, f"{file} taken", cache(file))
    for file in ("noid.csv", "noid.json", "noname.csv", "noname.json"):
        yield Check(case, f"{file} refused", cache(file), accepted=False)
    for number in (1, 3, 4, 5, 6, 8):
        yield Check(case, f"w{number}.jsonl taken", cache(f"w{number}.jsonl"))
    case = "15_score_other_forms"
    t2c = score("t2c_pred.json", "--box-format xywh", data="t2c", name="talk2car")
    yield Check(case, "Talk2Car's object", t2c, says=(ALL_RIGHT,))
    for file in ("hc_pred.json", "hc_pred.jsonl", "hc_pred_int.json"):
        command = score(file).replace("{case}/mine.jsonl", "hc.jsonl")
        yield Check(case, f"{file} by id", command, says=(r"detector [12]",))
    wrapped = score("hc_pred_wrapped.json").replace("{case}/mine.jsonl", "hc.jsonl")
    yield Check(case, "a wrapped list is refused", wrapped, accepted=False)


def rest() -> Iterator[Check]:
    """Yield the checks of everything else."""
    case = "16_labels_hostile"
    uni = cache("uni.jsonl")
    yield Check(case, "any label is taken", uni.replace("cache-detections", "eval --llm rule"), before=(uni,))
    case = "17_partial_file"
    part, part_info = cache("boxes.jsonl"), "detections info data/detections/import-boxes/mine/val"
    yield Check(case, "said at caching", part, says=("15 of 20 images",))
    yield Check(case, "and by info", part_info, says=("15 of 20",), before=(part,))
    yield Check(case, "an empty JSON file is refused", cache("res.json"), accepted=False)
    case = "18_subfolders"
    for file in ("base1", "dot1", "id1", "rel1"):
        yield Check(case, f"{file}.jsonl", cache(f"{file}.jsonl", data="one.jsonl"), never="not named")
    yield Check(case, "the same name in two folders", cache("rel.jsonl"), never="not named")
    yield Check(case, "and in predictions", score("pred.jsonl"), says=(ALL_RIGHT,))
    case, refer = "19_refer_native_detections", {"data": "root", "name": "refcocog", "split": "val"}
    for file in ("mattnet_dets.json", "reclip_dict.json", "refer_dets.json", "roboflow.json", "hf_pipeline.jsonl"):
        yield Check(case, f"{file} read", cache(file, **refer), never="not named")
    case = "20_predict_boxes"
    yield Check(case, "boxes of more pictures", predict("photo.jpg", "rel.jsonl"), says=("10.0, 10.0, 100.0, 100.0",))
    yield Check(case, "of another picture only", predict("photo.jpg", "otheronly.jsonl"), accepted=False)
    yield Check(case, "shares", predict("photo.jpg", "norm.jsonl"), accepted=False, says=("box_format=xyxy_norm",))
    yield Check(case, "COCO results ask for names", predict("photo.jpg", "res.json"), False, ("categories",))
    case, yolo, owl = "22_two_detectors_one_run", cache("yolo.jsonl"), cache("owl.jsonl")
    first, second = (each.replace("cache-detections", "eval --llm rule") for each in (yolo, owl))
    yield Check(case, "two files, two results", second, before=(yolo, owl, first), never="OVERWRITTEN")
    case = "24_duplicates"
    yield Check(case, "one answer for the same words", score("by_words.jsonl"), says=("answers several samples",))
    yield Check(case, "different ones are refused", score("by_words_sampled.jsonl"), False, ("which is meant",))
    case = "25_y_first"
    both = ("yxyx_1000", r"(?<!\w)xyxy_1000")
    yield Check(case, "both are named", score("gemini.jsonl"), False, both, never="only one fits")
    declared = score("gemini.jsonl", "--box-format yxyx_1000")
    yield Check(case, "yxyx_1000 can be declared", declared, says=(ALL_RIGHT,))


HC = [
    {"image": "a.jpg", "sample_id": "0000000", "expression": "a", "box": [10, 20, 110, 220]},
    {"image": "a.jpg", "sample_id": "0000001", "expression": "b", "box": [300, 20, 400, 220]},
]


def run(command: str, folder: Path) -> tuple[bool, str]:
    """Run one command in this process; return whether it was taken, and all that it said.

    Raises:
        Exception: Whatever is no error that a user can act on.
    """
    words = [word.replace("{case}", str(folder)) for word in re.findall(r"'[^']*'|\S+", command)]
    result = CliRunner().invoke(command_line.app, [word.strip("'") for word in words])
    if isinstance(result.exception, LLMWrapperError):
        return False, f"{result.output}\nerror: {result.exception}"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code == 0, result.output


def results() -> dict[Path, str]:
    """Return the digest of each file of predictions that there is."""
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path().rglob("predictions-*.parquet")}


def outcome(each: Check, folder: Path) -> tuple[str, bool]:
    """Run a check in an empty folder; return what happened, and whether that is right."""
    Path("hc.jsonl").write_text("".join(json.dumps({**row, "width": 640, "height": 480}) + "\n" for row in HC))
    try:
        for command in each.before:
            taken, text = run(command, folder)
            if not taken:
                return f"`{command.split()[0]}` before it: {_last(text)}", False
        before = results()
        taken, text = run(each.command, folder)
        if any(results().get(path) != digest for path, digest in before.items()):
            text += "\nOVERWRITTEN"
    except Exception as error:  # a traceback of any kind is what a check is for
        return f"{type(error).__name__} at {traceback.extract_tb(error.__traceback__)[-1].name}: {error}"[:200], False
    lacking = [pattern for pattern in each.says if not re.search(pattern, text)]
    unwanted = each.never is not None and re.search(each.never, text) is not None
    what = f"{'taken' if taken else 'refused'}: {_last(text)}"
    right = each.accepted in (taken, None)
    return what + "".join(f"; lacks {each!r}" for each in lacking), right and not lacking and not unwanted


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip(" ─━┏┓┡┩└┘│┃")]
    return " / ".join(lines[-2:])[:200] or "nothing printed"


@contextlib.contextmanager
def empty_folder() -> Iterator[None]:
    """Work in a temporary folder."""
    before, folder = Path.cwd(), tempfile.mkdtemp()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        shutil.rmtree(folder)


GROUPS: Sequence[Callable[[], Iterator[Check]]] = (splits_and_formats, predictions, rest)


def main(chosen: Sequence[str]) -> int:
    """Run all checks, or those of the folders whose names begin so; print one row each."""
    console = Console(width=max(160, Console().width), soft_wrap=True)
    root = os.environ.get(VARIABLE)
    folder = Path(root).absolute().parent / "cases" if root else None
    if folder is None or not folder.is_dir():
        console.print(f"{VARIABLE} is not set, or has no folder 'cases' beside it: nothing was checked.")
        return 0
    options.CONSOLE = Console(width=300)  # so that no table is cut
    log = logging.getLogger("llm_wrapper")
    log.addHandler(_ToStderr())
    log.setLevel(logging.INFO)
    log.propagate = False
    table = Table("case", "expected", "result", "")
    wrong = total = 0
    checked: set[str] = set()
    for each in (each for group in GROUPS for each in group()):
        if chosen and not each.case.startswith(tuple(chosen)):
            continue
        with empty_folder():
            what, is_right = outcome(each, folder / each.case)
        total, wrong = total + 1, wrong + (not is_right)
        checked.add(each.case)
        cells = (each.case, each.right, what, "right" if is_right else "WRONG")
        table.add_row(*map(Text, cells), style=None if is_right else "red")
    console.print(table)
    console.print(f"{total - wrong} of {total} right")
    unchecked = sorted({path.name for path in folder.iterdir() if path.is_dir()} - checked)
    if unchecked and not chosen:
        console.print(f"without a check: {', '.join(unchecked)}")
    return int(wrong > 0)


class _ToStderr(logging.Handler):
    """Prints to what standard error is at that moment, which the runner of commands replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
