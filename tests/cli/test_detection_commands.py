"""The verbs around cached detections: what they print, keep and refuse, mostly without the data set."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llm_wrapper import readers
from llm_wrapper.cli import detections
from llm_wrapper.detections.cache import DetectionCache, read_folder
from llm_wrapper.detections.contents import row_detections
from llm_wrapper.detections.fill import answer_locally
from llm_wrapper.detections.ray_engine import RayEngine
from llm_wrapper.detections.samples import load_prepared_split
from llm_wrapper.detectors import Detector
from llm_wrapper.errors import CacheError, ImageError, LLMWrapperError, RecipeError
from llm_wrapper.recipe import compose
from llm_wrapper.training import examples
from tests.commands import fail, invoke, run

_REAL = os.environ.get("LLM_WRAPPER_REAL_DATA", "")
TOY = Path(__file__).parents[2] / "data" / "toy"

pytestmark = pytest.mark.usefixtures("own_folder")

CACHE = Path("data/detections/import/mine/val")
MINE = ("--vlm", "import", "--data", "mine", "--data-root", "mine.jsonl", "--split", "val")
BOXES = "detector.settings={path: boxes.jsonl, name: import}"
COMMAND = "llm-wrapper cache-detections --vlm import --data mine --split val detector.settings.path=<its file of boxes>"
SIZE = {"width": 100, "height": 50}


def box(place: int) -> list[int]:
    return [20 * place, 0, 20 * place + 10, 10]


def write(path: str, *rows: dict[str, Any]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def mine(own_folder: Path) -> Path:
    """Six expressions of three images, for which a file of boxes has none, the target's alone, and three."""
    places = [0, 0, 0, 0, 1, 2]
    write(
        "mine.jsonl",
        *(
            {"image": f"{image}.png", "image_id": image, "expression": f"mug {place}", "box": box(place), **SIZE}
            for image, place in zip((1, 2, 3, 3, 3, 3), places, strict=True)
        ),
    )
    scored = [{"box": box(place), "label": "[red]mug", "score": score} for place, score in enumerate((0.3, 0.9, 0.5))]
    write("boxes.jsonl", {"image_id": 2, "detections": scored[:1]}, {"image_id": 3, "detections": scored})
    run("cache-detections", *MINE, BOXES)
    return CACHE


@pytest.fixture
def toy(own_folder: Path) -> Path:
    """Three images of the toy split val, where the recipe looks for them."""
    lines = (TOY / "val.jsonl").read_text(encoding="utf-8").splitlines()
    names = list(dict.fromkeys(json.loads(line)["image"] for line in lines))[:3]
    Path("data/toy/images").mkdir(parents=True)
    write("data/toy/val.jsonl", *(row for row in map(json.loads, lines) if row["image"] in names))
    for name in names:
        shutil.copy(TOY / name, Path("data/toy") / name)
    return Path("data/toy/images")


def without_data() -> None:
    """From here on only the cache is there."""
    for name in ("mine.jsonl", "boxes.jsonl"):
        Path(name).unlink()


def break_part(folder: Path) -> None:
    path = folder / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-9])


def identity_of(folder: Path) -> dict[str, Any]:
    identity: dict[str, Any] = readers.read_json(folder / "manifest.json")["identity"]
    return identity


def part_of(folder: Path, out: Path, places: slice) -> Path:
    """Make an unfinished cache of some of the answers of another."""
    (part,) = read_folder(folder).parts
    answers = [(key, row_detections(part.table, row)) for row, key in enumerate(part.keys)]
    with DetectionCache.resume(out, identity_of(folder)) as cache:
        cache.append(answers[places])
    return out


def shown(folder: Path) -> list[Any]:
    """Boxes, labels and scores of a cache, in order."""
    return [
        (key, [(item.box, item.label, item.score) for item in row_detections(part.table, row).items])
        for part in read_folder(folder).parts
        for row, key in enumerate(part.keys)
    ]


# info and verify


def test_info_prints_a_column_for_each_cache(mine: Path) -> None:
    other = part_of(mine, Path("[bold]other"), slice(0, 2))
    without_data()
    lines = [
        [cell.strip() for cell in line.strip("│┃").split("│")]
        for line in run("detections", "info", mine, other).splitlines()
    ]
    table = {cells[0]: cells[1:] for cells in lines if len(cells) == 3}
    assert table["detector"] == ["import", "import"]
    assert table["dataset"] == ["mine", "mine"]
    assert table["levels"] == ["image", "image"]
    assert table["rows"] == ["3", "2"]
    assert table["detections"] == ["4", "1"]
    assert table["unanswered images"] == ["0", "no data"]
    assert table["parts"] == ["1", "1"]
    assert table["state"] == ["complete", "incomplete"]
    assert "[bold]other" in run("detections", "info", other)


def test_info_gives_the_identity_in_full(mine: Path) -> None:
    assert identity_of(mine)["annotations"] not in run("detections", "info", mine)
    assert identity_of(mine)["annotations"] in run("detections", "info", mine, "--identity")
    (told,) = json.loads(run("detections", "info", mine, "--json"))
    assert told["identity"] == identity_of(mine)
    assert (told["folder"], told["state"], told["num_rows"], told["num_detections"]) == (str(mine), "complete", 3, 4)


def test_verify_ends_with_1_and_tells_what_mends(mine: Path) -> None:
    assert run("detections", "info", "--verify", mine) == f"{mine}: complete and undamaged\n"
    other = part_of(mine, Path("other"), slice(0, 2))
    break_part(mine)
    result = invoke("detections", "info", "--verify", mine, other)
    assert result.exit_code == 1
    damage, remedy, unfinished, _ = result.stdout.splitlines()
    assert f"{mine / 'part-00000.parquet'} is damaged" in damage
    assert remedy == f"  Run `{COMMAND}`: it computes again only what is lost."
    assert unfinished == "other is incomplete: it has no manifest.json"


@pytest.mark.usefixtures("toy")
def test_what_verify_tells_mends() -> None:
    run("cache-detections", "--split", "val")
    folder = Path("data/detections/toy/toy/val")
    break_part(folder)
    told = invoke("detections", "info", "--verify", folder).stdout
    run(*shlex.split(told.split("`")[1])[1:])
    assert run("detections", "info", "--verify", folder) == f"{folder}: complete and undamaged\n"


@pytest.mark.parametrize("words", [["info"], ["info", "--verify"]], ids=" ".join)
def test_a_folder_without_detections_is_refused(words: list[str], mine: Path) -> None:
    assert "data holds no detections. Name a folder like" in fail(CacheError, "detections", *words, mine, "data")


# merge and export


def test_merged_parts_are_finished_by_asking_nothing(mine: Path) -> None:
    whole = shown(mine)
    sources = [part_of(mine, Path("a"), slice(0, 2)), part_of(mine, Path("b"), slice(1, 3))]
    shutil.rmtree(mine)
    printed = run("detections", "merge", mine, *sources)
    assert printed.splitlines() == [
        f"{mine}: 3 answers added, 1 given more than once",
        f"To ask what may still be missing, and to finish it: {COMMAND}",
    ]
    assert shown(mine) == whole
    before = (mine / "part-00000.parquet").stat().st_mtime_ns
    run("cache-detections", *MINE, BOXES)
    assert (mine / "part-00000.parquet").stat().st_mtime_ns == before
    assert run("detections", "info", "--verify", mine) == f"{mine}: complete and undamaged\n"
    assert run("detections", "merge", "copy", mine) == "copy: 3 answers added, 0 given more than once\n"
    assert run("detections", "info", "--verify", "copy") == "copy: complete and undamaged\n"


@pytest.mark.parametrize("name", ["my # of: boxes.json", "my # of: boxes.jsonl"])
def test_the_printed_command_reads_an_export_back(name: str, mine: Path) -> None:
    printed = run("export", mine, name)
    program, *words = shlex.split(printed.partition("read back by: ")[2])
    assert program == "llm-wrapper"
    assert words[:7] == ["cache-detections", "--vlm", "import", "--data", "mine", "--split", "val"]
    run(*words, "--data-root", "mine.jsonl")
    assert shown(Path("data/detections/import-my-of-boxes/mine/val")) == shown(mine)


def test_an_export_names_the_recipe_whatever_the_annotations_are_called(mine: Path) -> None:
    Path("mine.jsonl").rename("theirs.jsonl")
    run("cache-detections", *MINE[:4], "--data-root", "theirs.jsonl", "--split", "val", BOXES, "--overwrite")
    assert identity_of(mine)["dataset"] == "theirs"
    assert "--data mine --split val 'detector.settings.path=" in run("export", mine, "out.jsonl")
    run("detections", "merge", "copy", mine)
    assert "--data '<recipe of theirs>' --split val 'detector.settings.path=" in run("export", "copy", "more.jsonl")


@pytest.mark.usefixtures("mine")
def test_imported_files_are_cached_beside_each_other() -> None:
    write("left # one.jsonl", {"image_id": 1, "detections": []})
    write("right.jsonl", {"image_id": 2, "detections": []})
    for name, folder in (("left # one", "import-left-one"), ("right", "import-right")):
        printed = run("cache-detections", *MINE, f'detector.settings.path="{name}.jsonl"')
        assert f"data/detections/{folder}/mine/val: 3 answers" in printed
    run("cache-detections", *MINE, "detector.settings.path=right.jsonl", "detector.label=mine")
    found = sorted(path.name for path in Path("data/detections").iterdir())
    assert found == ["import", "import-left-one", "import-right", "mine"]


def test_an_export_is_not_written_over(mine: Path) -> None:
    run("export", mine, "out.jsonl")
    assert "out.jsonl exists" in fail(LLMWrapperError, "export", mine, "out.jsonl")
    assert "out.txt ends neither" in fail(RecipeError, "export", mine, "out.txt")
    assert "no/cache does not exist" in fail(LLMWrapperError, "export", "no/cache", "new.jsonl")


# headroom


def headroom(*args: str, name: str = "import-mine-val") -> dict[str, Any]:
    run("detections", "headroom", *MINE, BOXES, *args)
    report: dict[str, Any] = json.loads(Path(f"runs/headroom/{name}.json").read_text())
    return report


def test_headroom_is_printed_and_kept(mine: Path) -> None:
    printed = run("detections", "headroom", *MINE, BOXES)
    report = headroom()
    offer = report["headroom"]["before"]
    assert offer == report["headroom"]["after"]
    # Right by itself: image 2, and of image 3 the expression of the box with the highest score.
    assert offer["own"]["value"] == pytest.approx(2 / 6)
    assert offer["oracle"]["value"] == offer["recall"]["3"]["value"] == pytest.approx(5 / 6)
    assert offer["recall"]["1"] == offer["own"]
    assert (offer["no_candidate"]["value"], offer["one_candidate"]["value"]) == pytest.approx((1 / 6, 1 / 6))
    assert offer["per_sample"] == {"mean": pytest.approx(13 / 6), "median": 3.0, "max": 3}
    assert (offer["own"]["n"], report["headroom"]["num_images"]) == (6, 3)
    assert len(offer["own"]["ci"]) == 2
    assert (report["split"], report["limit"]) == ("val", None)
    assert report["recipe"]["candidates"]["cap"] == 20
    assert report["detections"] == identity_of(mine)
    assert "33.3 (" in next(line for line in printed.splitlines() if "detector's own P@1" in line)
    assert "6 expressions of 3 images" in printed
    assert "the cap of 20 takes 0 candidates from 0 expressions; points of oracle P@1 lost by that: 0.0 (0.0" in printed
    assert "kept in runs/headroom/import-mine-val.json" in printed


def test_headroom_tells_what_the_cap_takes(mine: Path) -> None:
    found = headroom("candidates.cap=2")["headroom"]
    assert found["before"] == headroom()["headroom"]["before"]
    assert (found["num_capped"], found["num_candidates_lost"]) == (4, 4)
    # The lowest score of image 3 is the target of two expressions.
    assert found["lost"]["value"] == pytest.approx(2 / 6)
    assert found["after"]["oracle"]["value"] == pytest.approx(3 / 6)


@pytest.mark.parametrize("order", ["left_to_right", "detector", "score", "shuffled"])
def test_headroom_does_not_depend_on_the_shown_order(order: str, mine: Path) -> None:
    first, second = (headroom("candidates.cap=2", f"candidates.order={each}") for each in (order, "left_to_right"))
    assert first["headroom"] == second["headroom"]


def test_a_limited_headroom_says_so(mine: Path) -> None:
    report = headroom("--limit", "2", name="import-mine-val-first-2")
    assert (report["limit"], report["headroom"]["num_samples"]) == (2, 2)
    assert report["headroom"]["before"]["oracle"]["value"] == 1 / 2


def test_headroom_without_detections_names_the_command(mine: Path) -> None:
    shutil.rmtree(mine)
    told = fail(CacheError, "detections", "headroom", *MINE, BOXES)
    command = told.partition("Run `llm-wrapper ")[2].partition("`")[0]
    assert not Path("runs").exists()
    run(*shlex.split(command))  # it names the data and the file of boxes
    run("detections", "headroom", *MINE, BOXES)


def test_without_targets_no_share_is_claimed(mine: Path) -> None:
    rows = [json.loads(line) for line in Path("mine.jsonl").read_text().splitlines()]
    write("mine.jsonl", *({key: value for key, value in row.items() if key != "box"} for row in rows))
    run("cache-detections", *MINE, BOXES, "--overwrite")
    printed = run("detections", "headroom", *MINE, BOXES)
    assert "no data" in next(line for line in printed.splitlines() if "oracle P@1" in line)
    assert "6 without a target are not scored" in printed
    assert headroom()["headroom"]["before"]["own"] == {"value": None, "ci": None, "n": 0}


@pytest.mark.slow
@pytest.mark.skipif(not _REAL, reason="LLM_WRAPPER_REAL_DATA is not set: no real annotations here")
def test_the_annotated_objects_of_refcocog_hold_every_target() -> None:
    words = ("--vlm", "coco", "--data", "refcocog", "--data-root", Path(_REAL) / "refer", "--split", "val")
    run("cache-detections", *words)
    run("detections", "headroom", *words)
    found = json.loads(Path("runs/headroom/coco-refcocog-val.json").read_text())["headroom"]
    assert found["before"]["oracle"] == {"value": 1.0, "ci": [1.0, 1.0], "n": 4896}
    assert found["before"]["per_sample"]["mean"] == pytest.approx(8.5, abs=0.1)
    assert (found["num_capped"], found["num_candidates_lost"]) == (269, 2039)
    assert (found["lost"]["value"], found["after"]["oracle"]["value"]) == (0.0, 1.0)


# filling


def test_options_of_caching_reach_the_work(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    fill = detections.fill_cache

    def watched(*args: Any, **options: Any) -> DetectionCache:
        given.append(options)
        return fill(*args, **options)

    monkeypatch.setattr(detections, "fill_cache", watched)
    run("cache-detections", *MINE, BOXES)
    assert given[0].pop("engine") is answer_locally
    run("cache-detections", *MINE, BOXES, "--overwrite", "--skip-unreadable", "--images-per-batch", "3")
    assert given[1].pop("engine") is answer_locally
    assert given == [
        {"overwrite": False, "skip_unreadable": False, "images_per_batch": 8},
        {"overwrite": True, "skip_unreadable": True, "images_per_batch": 3},
    ]
    assert invoke("cache-detections", *MINE, BOXES, "--images-per-batch", "0").exit_code == 2


def test_the_ray_engine_builds_the_detector_of_the_recipe(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[RayEngine] = []

    def called(self: RayEngine, detector: Detector, batches: Any) -> Any:
        asked.append(self)
        return answer_locally(self.build(), batches)

    monkeypatch.setattr(RayEngine, "__call__", called)
    before = shown(mine)
    run("cache-detections", *MINE, BOXES, "--overwrite", "--engine", "ray")
    run("cache-detections", *MINE, BOXES, "--overwrite", "--engine", "ray", "--workers", "3")
    assert [engine.workers for engine in asked] == [None, 3]
    assert shown(mine) == before


@pytest.mark.usefixtures("mine")
def test_workers_without_ray_are_refused() -> None:
    assert "--workers 3 is for --engine ray" in fail(RecipeError, "cache-detections", *MINE, BOXES, "--workers", "3")
    assert invoke("cache-detections", *MINE, BOXES, "--engine", "spark").exit_code == 2
    assert invoke("cache-detections", *MINE, BOXES, "--engine", "ray", "--workers", "0").exit_code == 2


def test_unreadable_images_are_left_out_by_choice_alone(toy: Path) -> None:
    (toy / "toy-val-0000.png").write_bytes(b"no picture")
    words = ("cache-detections", "--split", "val")
    assert "--skip-unreadable" in fail(ImageError, *words)
    printed = run(*words, "--skip-unreadable")
    manifest = Path("data/detections/toy/toy/val/manifest.json")
    assert f"; images skipped: 1, see {manifest}" in printed
    assert list(json.loads(manifest.read_text())["unanswered"]) == ["toy-val-0000"]


def test_images_of_any_evaluation_split_are_not_trained_on() -> None:
    rows = [("train", 1), ("train", 2), ("more", 3), ("more", 4), ("more", 2), ("val", 3), ("testB", 1), ("other", 2)]
    lines = [
        {"image": f"{image}.png", "image_id": image, "expression": f"{split} {image}", "split": split, **SIZE}
        for split, image in rows
    ]
    write("mine.jsonl", *lines)
    Path("boxes.jsonl").write_text("")
    names = {"vlm": "import", "llm": "smollm2", "data": "mine", "train": "default"}
    also = "train.also=[{name: more, train_split: more}]"
    recipe = compose(names, ["data.root=mine.jsonl", "detector.settings.path=boxes.jsonl", also])
    detections.cache(recipe, [recipe.data.train_split], Console(quiet=True))
    sets = [load_prepared_split(recipe, data, data.train_split) for data in recipe.training_data()]
    found = examples.exclude_evaluated(recipe, sets)
    assert [prepared.sample.expression for prepared in found] == ["train 2", "more 4", "more 2"]


@pytest.mark.slow
def test_nothing_of_this_needs_torch(mine: Path) -> None:
    lines = [
        ["detections", "info", str(mine)],
        ["detections", "info", "--verify", str(mine)],
        ["detections", "merge", "merged", str(mine)],
        ["export", str(mine), "out.jsonl"],
        ["detections", "headroom", *MINE, BOXES],
    ]
    code = (
        "import sys\nfrom llm_wrapper.cli.main import main\n"
        f"for line in {lines!r}:\n"
        "    sys.argv = ['llm-wrapper', *line]\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code, (line, end.code)\n"
        "print('heavy:', {'torch', 'transformers', 'peft', 'trl', 'ray'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("heavy: set()")
