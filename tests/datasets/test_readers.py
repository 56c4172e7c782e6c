"""All readers together: recipes that name them, and leaks between their data sets."""

from __future__ import annotations

import inspect
import io
from pathlib import Path

import pytest
from rich.console import Console

from llm_wrapper import datasets
from llm_wrapper.cli import detections
from llm_wrapper.datasets import check, hub, refer
from llm_wrapper.errors import RecipeError
from llm_wrapper.recipe import DataSection, available, compose
from llm_wrapper.records import Box
from tests.datasets import replicas

SHIPPED = Path(__file__).parents[2] / "recipes"
REPO = "jxu124/refcoco@abc"


@pytest.mark.parametrize("name", available("data"))
def test_the_settings_of_each_recipe_fit_its_reader(name: str) -> None:
    section = compose({"vlm": "toy", "llm": "rule", "data": name, "train": "default"}).data
    inspect.signature(datasets.find_reader(section.reader)).bind(section.root, section.eval_split, **section.settings)


def test_a_recipe_reads_its_folder(tmp_path: Path) -> None:
    replicas.write_refs(tmp_path, replicas.refs())
    names = {"vlm": "toy", "llm": "rule", "data": "refcoco-hub", "train": "default"}
    section = compose(names, [f"data.root={tmp_path}"]).data
    assert datasets.load_dataset(section, "val").samples[0].target == Box(350, 50, 550, 350)
    wrong = compose(names, [f"data.root={tmp_path}", "data.settings.name=refcoco"]).data
    with pytest.raises(RecipeError, match="do not fit reader 'hub_refs'"):
        datasets.load_dataset(wrong, "val")


@pytest.mark.parametrize(
    ("reader", "settings", "message"),
    [
        pytest.param(
            "jsonl", {"box_formt": "xyxy"}, r"has no 'box_formt'; did you mean 'box_format'\? \(its", id="typo"
        ),
        pytest.param(
            "jsonl", {"x": 1}, r"has no 'x' \(its settings: images, box_format, val_share, split_seed\)", id="jsonl"
        ),
        pytest.param(
            "refer", {"name": "refcoco"}, r"'split_by' is missing \(its settings: name, split_by, text\)", id="refer"
        ),
        pytest.param("toy", {"images": "x"}, r"has no 'images' \(its settings: none\)", id="toy"),
        pytest.param("hub_refs", {"repo": 5}, r"data\.settings\.repo=5: give <owner>/<name>@<revision>", id="repo"),
    ],
)
def test_settings_are_named_with_those_that_exist(
    tmp_path: Path, reader: str, settings: dict[str, object], message: str
) -> None:
    section = DataSection(name="mine", reader=reader, root=tmp_path, settings=settings)
    with pytest.raises(RecipeError, match=message) as caught:
        datasets.load_dataset(section, "val")
    assert "argument" not in str(caught.value)


def test_the_data_check_reads_every_split_of_a_copy(tmp_path: Path) -> None:
    replicas.write_refs(tmp_path, replicas.refs())
    names = {"vlm": "toy", "llm": "rule", "data": "refcoco-hub", "train": "default"}
    console = Console(file=io.StringIO(), width=200)
    assert detections.check_data(compose(names, [f"data.root={tmp_path}"]), console)
    printed = [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert [line[1:5] for line in printed[1:6]] == [
        ["train", "3", "2", "2"],
        ["val", "3", "1", "1"],
        ["test", "4", "2", "1"],
        ["testA", "2", "1", "1"],
        ["testB", "2", "1", "1"],
    ]


def test_leaks_to_and_from_a_refer_tree_are_seen(tmp_path: Path) -> None:
    content = replicas.refs()
    content.append({**content[0], "ref_id": 9, "split": "val", "sentences": [{"sent_id": 99, "sent": "a", "raw": "a"}]})
    replicas.write_refs(tmp_path / "refs", content)
    replicas.write_objects(tmp_path / "objects", [replicas.object_row(ref) for ref in content])
    replicas.write_refer(tmp_path, replicas.refs())
    trained = refer.load_refer(tmp_path, "train", name="refcoco", split_by="unc")
    held_out = [
        hub.load_hub_refs(tmp_path / "refs", "val", repo=REPO),
        hub.load_hub_refs(tmp_path / "refs", "testA", repo=REPO),
        hub.load_hub_objects(tmp_path / "objects", "val", repo="lmms-lab/RefCOCO"),
    ]
    report = check.check_datasets([trained, hub.load_hub_refs(tmp_path / "refs", "train", repo=REPO), *held_out])
    shared = {finding.where: finding.examples for finding in report.findings if finding.what == "images shared"}
    assert shared == {
        "refcoco train and refcoco val": ("image 380440",),
        "refcoco train and RefCOCO val": ("image 380440", "image 22"),
    }
