"""`--vlm a+b`: two files of recipes/vlm in one recipe."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from llm_wrapper.errors import RecipeError
from llm_wrapper.recipe import compose, load_resolved

SHIPPED = Path(__file__).parents[1] / "recipes"
NAMES = {"vlm": "gdrec+flo2+toy", "llm": "rule", "data": "toy", "train": "default"}


def test_each_detector_keeps_its_settings_and_its_candidates(tmp_path: Path) -> None:
    recipe = compose(NAMES)
    assert [each.detector.label for each in recipe.detectors()] == ["gdrec", "flo2", "toy"]
    assert recipe.vlm == "gdrec+flo2+toy"
    for name, each in zip(("gdrec", "flo2", "toy"), recipe.detectors(), strict=True):
        alone = compose({**NAMES, "vlm": name})
        assert (each.detector, each.candidates) == (alone.detector, alone.candidates)
        assert (alone.vlm, alone.ensemble.also) == (name, {})
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_resolved(path) == recipe


def test_overrides_reach_every_detector() -> None:
    overrides = ["candidates.cap=7", "ensemble.nms_iou=null", "ensemble.also.flo2.detector.settings.num_beams=1",
                 "ensemble.also.toy.candidates.cap=5"]  # fmt: skip
    recipe = compose(NAMES, overrides)
    first, second, third = recipe.detectors()
    assert (first.candidates.cap, second.candidates.cap, third.candidates.cap) == (7, 20, 5)
    assert (recipe.ensemble.nms_iou, second.detector.settings["num_beams"]) == (None, 1)
    assert {each.candidates.cap for each in recipe.without_cap().detectors()} == {sys.maxsize}


def test_parts_of_an_ensemble_are_the_recipes_of_their_names() -> None:
    recipe = compose(NAMES)
    _, second, third = recipe.detectors()
    assert recipe.with_detectors([second, third]) == compose({**NAMES, "vlm": "flo2+toy"})
    assert recipe.with_detectors([third]) == compose({**NAMES, "vlm": "toy"})


@pytest.mark.parametrize(
    ("vlm", "told"),
    [
        pytest.param("toy+tooy", "no vlm recipe is named 'tooy'; did you mean 'toy'", id="unknown"),
        pytest.param("toy+", "no vlm recipe is named ''", id="empty"),
        pytest.param("toy+coco+toy", "'toy+coco+toy' names the detector 'toy' twice", id="twice"),
    ],
)
def test_what_is_no_ensemble_is_told(vlm: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        compose({**NAMES, "vlm": vlm})
    assert told in str(caught.value)


def test_problems_of_a_further_file_have_its_place(tmp_path: Path) -> None:
    root = Path(shutil.copytree(SHIPPED, tmp_path / "recipes"))
    (root / "vlm" / "new.yaml").write_text("detector:\n  name: toy\ncandidates:\n  cap: 1\nmore: 1\n")
    with pytest.raises(RecipeError) as caught:
        compose({**NAMES, "vlm": "toy+new"}, ["ensemble.nms_iou=2"], folders=[root])
    told = str(caught.value)
    assert "vlm/new.yaml:5: a vlm recipe has no section 'more'" in told
    assert "vlm/new.yaml:4: ensemble.also.new.candidates.cap: Input should be greater than or equal to 2" in told
    assert "override 'ensemble.nms_iou=2': ensemble.nms_iou" in told


def test_a_file_whose_name_has_a_plus_is_itself(tmp_path: Path) -> None:
    root = Path(shutil.copytree(SHIPPED, tmp_path / "recipes"))
    shutil.copy(root / "vlm" / "toy.yaml", root / "vlm" / "toy+coco.yaml")
    recipe = compose({**NAMES, "vlm": "toy+coco"}, folders=[root])
    assert (recipe.vlm, recipe.ensemble.also) == ("toy+coco", {})


def test_other_kinds_may_have_a_plus() -> None:
    assert compose({**NAMES, "vlm": "coco", "data": "refcoco+"}).data.name == "refcoco+"
