"""Files that somebody else made cannot hurt who uses them: one row for each kind of attack.

Words, recipes and answers are in `test_hostile`, models in `test_hostile_models`; details are in each module's tests.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from llm_wrapper import candidates, images, readers, runs, storage
from llm_wrapper.candidates import CandidatePolicy
from llm_wrapper.datasets import jsonl, restricted_pickle
from llm_wrapper.detections.cache import DetectionCache
from llm_wrapper.detections.contents import write_rows
from llm_wrapper.evaluation.grid import Cell
from llm_wrapper.recipe import LLMSection, compose
from llm_wrapper.records import Box, Detection, Detections
from llm_wrapper.report.card import card
from llm_wrapper.report.grid_values import matrix_values
from tests.attacks import PICTURE, Attack, bounded, check, command, row

IDENTITY = {"detector": "toy", "settings": {}, "dataset": "zebras", "split": "val", "annotations": "aa11"}
PART = "part-00000.parquet"
CACHE = Path("cache")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- caches of detections --------------------------------------------------------------------------------------------


def fill() -> None:
    answer = Detections((Detection(Box(0, 0, 5, 5), "cat", 0.5, "od"),))
    with DetectionCache.resume(CACHE, IDENTITY) as cache:
        cache.append([((f"image{number}", f"s{number}"), answer) for number in range(3)])
        cache.finish(["expression"], {})


def stage(replaced: list[str]) -> Path:
    """Make a cache that looks as if it was killed while its parts were moved into their place."""
    fill()
    staged = CACHE / ".final"
    staged.mkdir()
    for name in (PART, "manifest.json"):
        (CACHE / name).rename(staged / name)
    (staged / "replaced.json").write_text(json.dumps(replaced), encoding="utf-8")
    return staged


def removal_outside() -> None:
    Path("precious").write_text("keep", encoding="utf-8")
    stage(["../precious"])
    try:
        fill()
    finally:
        assert Path("precious").read_text(encoding="utf-8") == "keep"


def parts_of_another() -> None:
    staged = stage([]).rename("others")
    (CACHE / ".final").symlink_to(staged.resolve())
    try:
        fill()
    finally:
        assert (staged / PART).is_file()


def lock_as_link() -> None:
    fill()
    Path("precious").write_text("keep", encoding="utf-8")
    (CACHE / ".lock").unlink()
    (CACHE / ".lock").symlink_to(Path("precious").resolve())
    try:
        fill()
    finally:
        assert Path("precious").read_text(encoding="utf-8") == "keep"


def lock_with_odd_bytes() -> None:
    fill()
    with (CACHE / ".lock").open("wb") as holder:
        holder.write(b"\xff\xfe")
        holder.flush()
        fcntl.flock(holder, fcntl.LOCK_EX)
        fill()


def changed_manifest(change: Callable[[str], str]) -> Attack:
    def attack() -> None:
        fill()
        path = CACHE / "manifest.json"
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
        DetectionCache.open_complete(CACHE, IDENTITY)

    return attack


def box_that_is_none() -> None:
    fill()
    item = {"box": {"x0": math.nan, "y0": 0.0, "x1": -5.0, "y1": 5.0}, "label": "cat", "score": 0.5, "source": "od"}
    write_rows(CACHE / PART, [{"image_id": "i", "sample_id": "s", "items": [item], "num_dropped": 0}], IDENTITY)
    manifest = readers.read_json(CACHE / "manifest.json")
    digest = hashlib.sha256((CACHE / PART).read_bytes()).hexdigest()
    counts = {"num_rows": 1, "num_images": 1, "num_detections": 1, "num_dropped": 0}
    parts = [{"name": PART, "sha256": digest, "num_rows": 1}]
    storage.write_json(CACHE / "manifest.json", {**manifest, **counts, "parts": parts})
    DetectionCache.open_complete(CACHE, IDENTITY)


def pipe_as_part() -> None:
    fill()
    (CACHE / PART).unlink()
    os.mkfifo(CACHE / PART)
    DetectionCache.open_complete(CACHE, IDENTITY)


def without_levels(text: str) -> str:
    return json.dumps({**json.loads(text), "levels": []})


def repeated_key(text: str) -> str:
    return text.replace("{", '{"levels": ["image"], ', 1)


# --- data sets and images --------------------------------------------------------------------------------------------


def unpickle(content: bytes) -> Attack:
    def attack() -> None:
        Path("refs.p").write_bytes(content)
        str(restricted_pickle.read_pickle(Path("refs.p")))

    return bounded(attack, gigabytes=1)


def lists_of_lists(depth: int) -> list[Any]:
    """Make a list in which each list is twice in the next: 2^depth texts, in a few bytes a list."""
    value: list[Any] = ["x"]
    for _ in range(depth):
        value = [value, value]
    return value


def expressions(line: str) -> Attack:
    def attack() -> None:
        Path("data").mkdir()
        Image.new("RGB", (64, 48)).save("private.png")
        Image.new("RGB", (64, 48)).save("data/a.png")
        Path("data/mine.jsonl").write_text(line + "\n", encoding="utf-8")
        jsonl.load_jsonl(Path("data/mine.jsonl"), "val")

    return attack


def program_of_an_image() -> None:
    program = Path("bin/gs")
    program.parent.mkdir()
    program.write_text("#!/bin/sh\ntouch program-ran\n", encoding="utf-8")
    program.chmod(0o755)
    os.environ["PATH"] = f"{program.parent.resolve()}:{os.environ['PATH']}"
    Image.new("RGB", (40, 20)).save("a.jpg", "EPS")
    try:
        images.read_image("a.jpg")
    finally:
        assert not Path("program-ran").exists()


def many_pixels() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.new("1", (13_300, 13_300)).save("a.png")
        images.read_image("a.png")


def many_detections() -> None:
    numbers = random.Random(0)
    corners = [(numbers.uniform(0, 500), numbers.uniform(0, 400)) for _ in range(20_000)]
    items = tuple(Detection(Box(x, y, x + 90, y + 70), "cat", 0.5, "od") for x, y in corners)
    built = candidates.build_candidates(Detections(items), (640, 480), CandidatePolicy(nms_iou=0.9), detector="toy")
    assert len(built.candidates) <= CandidatePolicy().cap


# --- runs and reports ------------------------------------------------------------------------------------------------


def train(prepare: Callable[[Path], object]) -> None:
    """Train into a run folder that others have prepared, which ends before any data is read."""
    from rich.console import Console

    from llm_wrapper.cli.train import run_training

    recipe = compose({"vlm": "toy", "llm": "smollm2", "data": "toy", "train": "default"})
    folder = runs.open_run(Path("runs/mine"), recipe)
    prepare(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm_wrapper.cli.train.load_training_pool", lambda *_: pytest.fail("it trains"))
        run_training(recipe, folder, Console(quiet=True))


def two_trainings() -> None:
    with contextlib.ExitStack() as held:

        def hold(folder: Path) -> None:
            fcntl.flock(held.enter_context((folder / ".lock").open("wb")), fcntl.LOCK_EX)

        train(hold)


def adapter_as_link() -> None:
    Path("elsewhere").mkdir()
    train(lambda folder: (folder / "adapter").symlink_to(Path("elsewhere").resolve()))


def name_of_a_checkpoint() -> None:
    from llm_wrapper.training.checkpoints import find_last_complete

    Path("checkpoint-\u00b2").mkdir()
    Path("checkpoint-\u00b2/trainer_state.json").write_text('{"global_step": 2}', encoding="utf-8")
    assert find_last_complete(Path()) is None


def report(spoil: Callable[[Path], object], **values: str) -> Attack:
    """Write the report of a small run that somebody has spoiled."""

    def attack() -> None:
        from llm_wrapper.report import page
        from tests.report.test_html import four_cases, make_run

        folder = make_run(Path("runs/stranger"), four_cases(**values))
        spoil(folder)
        html, markdown = page.write_report(folder)
        assert "http://" not in markdown.read_text(encoding="utf-8").replace("http\\://", "")
        assert "image/jpeg" not in html.read_text(encoding="utf-8")

    return attack


def link_to_a_secret(folder: Path) -> None:
    Path("secret").write_text("of the user", encoding="utf-8")
    (folder / "recipe.yaml").symlink_to(Path("secret").resolve())


def picture_of_a_user(folder: Path) -> None:
    Path("home").mkdir()
    Image.new("RGB", (100, 80), "red").save("home/secret.png")
    line = {"image": "secret.png", "expression": "a", "width": 100, "height": 80}
    lines = [json.dumps({**line, "sample_id": f"s{n}", "image_id": f"i{n}"}) + "\n" for n in range(4)]
    Path("home/mine.jsonl").write_text("".join(lines), encoding="utf-8")
    facts = readers.read_json(folder / "report-val.json")
    facts["recipe"]["data"] = {"name": "mine", "reader": "jsonl", "root": str(Path("home/mine.jsonl").resolve())}
    storage.write_json(folder / "report-val.json", facts)


def odd_facts(folder: Path) -> None:
    storage.write_json(folder / "report-val.json", {"recipe": {"detector": "x"}})


def matrix(rows: int, columns: int, name: str) -> Attack:
    def attack() -> None:
        from llm_wrapper.report.grid import write_study

        systems, places = ([f"{name}{number}" for number in range(count)] for count in (rows, columns))
        cells = [Cell(s, c, problem="-") for s in systems for c in places]
        write_study("transfer", Path("matrix"), matrix_values(cells), Console(quiet=True))

    return bounded(attack, gigabytes=2)


def forged_card() -> None:
    names = {"vlm": "toy", "llm": "smollm2", "data": "toy", "train": "default"}
    recipe = compose(names)
    model = "a/b\nlicense: mit\n---\n# evil <script>alert(1)</script>"
    text = card(recipe.model_copy(update={"llm": LLMSection(model=model)}), {}, {})
    assert "\nlicense:" not in text
    assert "<script>" not in text


def picture_out(name: str) -> Attack:
    def attack() -> None:
        printed = command("predict", PICTURE, "red", "--vlm", "toy", "--llm", "rule", "--out", name)
        assert "error: " in printed
        assert not Path(name).exists()

    return attack


ABSENT = '{"image": "../private.png", "expression": "a"}'
TWICE = '{"image": "a.png", "expression": "a", "expression": "b"}'

ATTACKS = [
    row("cache-removes-outside", removal_outside, "by an earlier version"),
    row("cache-takes-parts-of-another", parts_of_another, "by an earlier version"),
    row("lock-as-link", lock_as_link, r"\.lock is a link"),
    row("lock-with-odd-bytes", lock_with_odd_bytes, "in use by process unknown"),
    row("manifest-without-levels", changed_manifest(without_levels), "levels"),
    row("manifest-nested", changed_manifest(lambda _: "[" * 100_000), r"manifest\.json"),
    row("manifest-repeated-key", changed_manifest(repeated_key), "is given twice"),
    row("box-that-is-none", box_that_is_none, f"{PART} is damaged: row 0: box"),
    row("pipe-as-part", bounded(pipe_as_part), "not a regular file"),
    row("pickle-memo", unpickle(b"Nr\xff\xff\xff\x0f."), "at place 268435455"),
    row("pickle-shared", unpickle(pickle.dumps(lists_of_lists(60), 2)), "shared"),
    row("image-outside", expressions(ABSENT), "lies outside"),
    row("expression-twice", expressions(TWICE), "is given twice"),
    row("image-that-starts-a-program", bounded(program_of_an_image), "none of JPEG"),
    row("image-of-many-pixels", bounded(many_pixels), "89,000,000 pixels"),
    row("detections-without-number", bounded(many_detections)),
    row("two-trainings", two_trainings, "in use by process", slow=True),
    row("adapter-as-link", adapter_as_link, "adapter is a link", slow=True),
    row("checkpoint-of-no-number", name_of_a_checkpoint, slow=True),
    row("report-with-a-link", report(link_to_a_secret), "lies outside", slow=True),
    row("report-with-a-picture", report(picture_of_a_user), slow=True),
    row("report-with-an-address", report(lambda folder: None, text="see http://evil.example/x"), slow=True),
    row("report-of-odd-facts", report(odd_facts), "report-val", slow=True),
    row("matrix-of-many-cells", matrix(100, 60, "x"), slow=True),
    row("matrix-with-mathematics", matrix(1, 1, r"$\frac$"), slow=True),
    row("card-forged", forged_card),
    row("picture-of-no-kind", picture_out("out.nothing")),
    row("picture-on-a-full-disk", bounded(picture_out("out.png"), file_bytes=100)),
]


@pytest.mark.parametrize(("attack", "message"), ATTACKS)
def test_an_attack_does_no_harm(attack: Attack, message: str | None) -> None:
    check(attack, message)
