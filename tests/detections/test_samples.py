"""Samples meet their cached detections, or are told which command is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper import datasets, detectors, storage
from llm_wrapper.candidates import CandidatePolicy
from llm_wrapper.detections import samples
from llm_wrapper.detections.fill import fill_cache
from llm_wrapper.detections.samples import PreparedSplit, cache_folder, load_prepared_split
from llm_wrapper.detectors import Level, Question
from llm_wrapper.errors import CacheError, DataError, RecipeError
from llm_wrapper.recipe import DataSection, DetectorSection, LLMSection, OtherData, Recipe, TrainSection
from llm_wrapper.records import Box, Detection, Detections, Sample

NUM_SAMPLES = 5


class Scripted:
    """Two boxes for each image: one inside, one outside; the setting `shift` moves them."""

    levels: tuple[Level, ...] = ("image",)
    name = "scripted"
    reads_images = False

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift

    def identity(self) -> dict[str, Any]:
        return {"shift": self.shift}

    def prepare(self, sample: Sample) -> None:
        pass

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        boxes = [(10, 10, 20, 20), (50, 10, 60, 20), (200, 0, 210, 10)]
        items = tuple(
            Detection(Box(x0 + self.shift, y0, x1 + self.shift, y1), "cat", score, "od")
            for (x0, y0, x1, y1), score in zip(boxes, (0.9, 0.8, 0.7), strict=True)
        )
        return [Detections(items, num_dropped=1) for _ in questions]


class Local(Scripted):
    """The same, of a local model's files, which it records."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self._model = model

    def recorded(self) -> dict[str, Any]:
        return {"files": storage.digest_model(self._model)}


def create(settings: Mapping[str, Any]) -> Scripted:
    return Local(**settings) if "model" in settings else Scripted(**settings)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe of a data set in an empty folder, for a detector that needs no pixels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(detectors.REGISTRY, "scripted", f"{__name__}:create")
    rows = [
        {"image": f"{number // 2}.png", "expression": f"cat {number}", "width": 100, "height": 50, "split": split}
        for split in ("train", "val")
        for number in range(NUM_SAMPLES)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Recipe(
        detector=DetectorSection(name="scripted"),
        data=DataSection(name="mine", reader="jsonl", root=Path("mine.jsonl")),
        llm=LLMSection(backend="rule"),
    )


def cached(recipe: Recipe, split: str = "val") -> PreparedSplit:
    dataset = datasets.load_dataset(recipe.data, split)
    detector = detectors.create_detector(recipe.detector, dataset)
    fill_cache(detector, dataset, cache_folder(detector.name, recipe.data, split), progress=False)
    return load_prepared_split(recipe, recipe.data, split)


def test_it_is_said_where_a_local_model_has_changed_since_it_detected(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"abc")
    settings = {"model": str(tmp_path)}
    local = recipe.model_copy(update={"detector": DetectorSection(name="scripted", settings=settings)})
    cached(local)
    assert "have changed" not in caplog.text
    weights.write_bytes(b"other")
    assert load_prepared_split(local, local.data, "val").samples
    assert f"the files of {tmp_path} have changed since it detected" in caplog.text


def test_each_sample_meets_the_candidates_of_its_image(recipe: Recipe) -> None:
    found = cached(recipe)
    assert [prepared.sample.expression for prepared in found.samples] == [
        f"cat {number}" for number in range(NUM_SAMPLES)
    ]
    for prepared in found.samples:
        assert [candidate.box.x0 for candidate in prepared.built.candidates] == [10, 50]
        assert {candidate.detector for candidate in prepared.built.candidates} == {"scripted"}
    assert (found.dataset.name, found.dataset.split) == ("mine", "val")
    assert found.identity["detector"] == "scripted"


def test_what_became_no_candidate_is_counted_over_all_samples(recipe: Recipe) -> None:
    dropped = {reason: count for reason, count in cached(recipe).dropped.items() if count}
    assert dropped == {"not_a_box": NUM_SAMPLES, "outside_image": NUM_SAMPLES}


@pytest.mark.parametrize("limit", [1, 3, NUM_SAMPLES, 100])
def test_a_limit_takes_the_first_samples(recipe: Recipe, limit: int) -> None:
    everything = cached(recipe)
    found = load_prepared_split(recipe, recipe.data, "val", limit=limit)
    assert list(found.samples) == list(everything.samples[:limit])
    assert found.dropped["not_a_box"] == min(limit, NUM_SAMPLES)
    assert found.dataset.digest == everything.dataset.digest


def test_the_policy_of_the_recipe_decides(recipe: Recipe) -> None:
    cached(recipe)
    strict = recipe.model_copy(update={"candidates": CandidatePolicy(min_score=0.85)})
    assert {len(prepared.built.candidates) for prepared in load_prepared_split(strict, recipe.data, "val").samples} == {
        1
    }


def test_shuffled_candidates_depend_on_the_seed_and_the_sample_alone(recipe: Recipe) -> None:
    cached(recipe)

    def orders(seed: int) -> list[tuple[int, ...]]:
        update = {"candidates": CandidatePolicy(order="shuffled"), "train": TrainSection(seed=seed)}
        found = load_prepared_split(recipe.model_copy(update=update), recipe.data, "val")
        return [prepared.built.origins for prepared in found.samples]

    assert orders(0) == orders(0)
    assert len({tuple(orders(seed)) for seed in range(5)}) > 1
    assert len(set(orders(0) + orders(1))) > 1


def test_splits_and_data_sets_have_folders_of_their_own(recipe: Recipe) -> None:
    other = recipe.model_copy(update={"train": TrainSection(also=[OtherData(name="theirs")])})
    folders = {
        cache_folder("flo2", data, split) for data in other.training_data() for split in ("train", data.eval_split)
    }
    assert folders == {
        samples.CACHE_ROOT / "flo2" / name / split for name in ("mine", "theirs") for split in ("train", "val")
    }


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_cache_names_the_command(recipe: Recipe, split: str) -> None:
    with pytest.raises(CacheError, match=f"llm-wrapper cache-detections --vlm scripted --data mine --split {split}"):
        load_prepared_split(recipe, recipe.data, split)


def test_an_unfinished_cache_names_the_command(recipe: Recipe) -> None:
    (cached(recipe).caches[0].folder / "manifest.json").unlink()
    with pytest.raises(CacheError, match=r"incomplete: .* `llm-wrapper cache-detections --vlm scripted"):
        load_prepared_split(recipe, recipe.data, "val")


@pytest.mark.parametrize("what", ["settings", "annotations"])
def test_a_cache_of_other_settings_or_annotations_is_refused(recipe: Recipe, what: str) -> None:
    cached(recipe)
    if what == "settings":
        changed = DetectorSection(name="scripted", settings={"shift": 1.0})
        recipe = recipe.model_copy(update={"detector": changed})
    else:
        with Path("mine.jsonl").open("a") as stream:
            stream.write("\n")
    with pytest.raises(CacheError, match=r"of another detector, setting or data set(.|\n)*--overwrite"):
        load_prepared_split(recipe, recipe.data, "val")


def test_unknown_names_are_told_before_anything_is_read(recipe: Recipe) -> None:
    wrong = recipe.model_copy(update={"detector": DetectorSection(name="scriptd")})
    with pytest.raises(RecipeError, match="no detector is named 'scriptd'; did you mean 'scripted'"):
        load_prepared_split(wrong, recipe.data, "val")
    with pytest.raises(RecipeError, match="no data reader is named 'json'; did you mean 'jsonl'"):
        load_prepared_split(recipe, recipe.data.model_copy(update={"reader": "json"}), "val")
    with pytest.raises(DataError, match="has no split 'tset'"):
        load_prepared_split(recipe, recipe.data, "tset")
