"""A cache is read by what was asked: neither weights nor the machine that filled it are needed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_wrapper import datasets, detectors
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detections import maintain
from llm_wrapper.detections.cache import DetectionCache, read_folder
from llm_wrapper.detections.contents import adopt_revision, describe_recorded, distinct, identity_of, split_recorded
from llm_wrapper.detections.fill import fill_cache
from llm_wrapper.detections.samples import cache_folder, load_prepared_split
from llm_wrapper.detectors import Level, Question
from llm_wrapper.errors import CacheError
from llm_wrapper.recipe import DataSection, DetectorSection, LLMSection, Recipe
from llm_wrapper.records import Box, Detection, Detections, Sample

COMMIT, OTHER = "4271c66b88cdbc05735372ec13b2360108de5317", "0" * 40
SETTINGS = {
    "florence2": {"model": "no/such-florence", "revision": COMMIT, "tasks": ["rec", "od"]},
    "kosmos2": {"model": "no/such-kosmos", "revision": COMMIT},
    "grounding-dino": {"model": "no/such-dino", "revision": COMMIT},
}
GPU = {"dtype": "float16", "device": "cuda", "attention": "sdpa", "image_processor": "Fast", "commit": COMMIT}
CPU = {"dtype": "float32", "device": "cpu", "attention": "sdpa", "image_processor": "Pil", "commit": COMMIT}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSection:
    monkeypatch.chdir(tmp_path)
    row = {"image": "a.png", "expression": "cat", "width": 100, "height": 50, "split": "val"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    return DataSection(name="mine", reader="jsonl", root=Path("mine.jsonl"))


def recipe_of(data: DataSection, name: str, **settings: Any) -> Recipe:
    section = DetectorSection(name=name, settings={**SETTINGS[name], **settings})
    return Recipe(detector=section, data=data, llm=LLMSection(backend="rule"))


def write_cache(
    recipe: Recipe, recorded: Sequence[Mapping[str, Any]], identity: Mapping[str, Any] | None = None
) -> Path:
    """Write a complete cache of a recipe's detector as if it had answered; return its folder."""
    dataset = datasets.load_dataset(recipe.data, "val")
    detector = detectors.create_detector(recipe.detector, dataset)
    folder = cache_folder(detector.name, recipe.data, "val")
    answer = Detections((Detection(Box(1.0, 2.0, 3.0, 4.0), "cat", None, "rec"),))
    with DetectionCache.resume(folder, identity or identity_of(detector, dataset)) as cache:
        for sample in dataset.samples:
            keys = [(sample.image_id, sample.sample_id if level == "expression" else None) for level in detector.levels]
            cache.append([(key, answer) for key in keys], tuple(recorded))
        cache.finish(detector.levels, {})
    return folder


def earlier_identity(recipe: Recipe, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity that the version before wrote: all in one, the commit in the place of the revision."""
    dataset = datasets.load_dataset(recipe.data, "val")
    identity = identity_of(detectors.create_detector(recipe.detector, dataset), dataset)
    kept = {name: value for name, value in recorded.items() if name not in ("commit", "device")}
    return {**identity, "settings": {**identity["settings"], **kept, "revision": recorded["commit"]}}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_complete_cache_is_read_without_weights_on_any_machine(
    name: str, data: DataSection, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_of(data, name)
    write_cache(recipe, [GPU])
    with caplog.at_level(logging.INFO):
        found = load_prepared_split(recipe, data, "val")
    assert [len(prepared.built.candidates) for prepared in found.samples] == [1]
    assert "dtype=float16" in caplog.text
    assert found.caches[0].recorded == (GPU,)


@pytest.mark.parametrize("changed", [{"dtype": "bfloat16"}, {"device": "cpu"}, {"max_prompts": 3}], ids=str)
def test_how_it_is_computed_is_not_compared(data: DataSection, changed: dict[str, Any]) -> None:
    write_cache(recipe_of(data, "florence2"), [GPU])
    assert load_prepared_split(recipe_of(data, "florence2", **changed), data, "val").samples


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"num_beams": 1}, "settings.num_beams: 3 in the cache, 1 now"),
        ({"revision": OTHER}, f'settings.revision: "{COMMIT}" in the cache, "{OTHER}" now'),
    ],
    ids=["beams", "commit"],
)
@pytest.mark.parametrize("is_earlier", [False, True], ids=["now", "earlier"])
def test_what_is_asked_is_compared(data: DataSection, is_earlier: bool, changed: dict[str, Any], field: str) -> None:
    recipe = recipe_of(data, "florence2")
    write_cache(recipe, [] if is_earlier else [GPU], earlier_identity(recipe, GPU) if is_earlier else None)
    with pytest.raises(CacheError) as caught:
        load_prepared_split(recipe_of(data, "florence2", **changed), data, "val")
    assert field in str(caught.value)
    assert str(caught.value).count("dtype") == 0


@pytest.mark.parametrize("revision", [COMMIT, None, "main"], ids=str)
@pytest.mark.parametrize("name", ["florence2", "kosmos2"])
def test_a_cache_of_the_version_before_is_read(name: str, revision: str | None, data: DataSection) -> None:
    recipe = recipe_of(data, name)
    folder = write_cache(recipe, [], earlier_identity(recipe, GPU))
    found = load_prepared_split(recipe_of(data, name, revision=revision), data, "val")
    assert found.samples[0].built.candidates
    assert [each["commit"] for each in found.caches[0].recorded] == [COMMIT]
    assert maintain.verify_cache(folder) == []
    assert maintain.summarize_cache(folder).recorded[0]["dtype"] == "float16"


def test_an_unpinned_cache_is_read_when_its_commit_is_pinned_later(data: DataSection) -> None:
    write_cache(recipe_of(data, "florence2", revision=None), [GPU])
    assert load_prepared_split(recipe_of(data, "florence2"), data, "val").samples
    with pytest.raises(CacheError, match=r"settings\.revision"):
        load_prepared_split(recipe_of(data, "florence2", revision=OTHER), data, "val")


def key(number: int) -> tuple[str, str]:
    return (f"image{number}", f"s{number}")


def test_answers_of_another_commit_are_not_mixed_in(tmp_path: Path) -> None:
    identity = {"detector": "d", "settings": {"revision": None}, "dataset": "x", "split": "val", "annotations": "a"}
    with DetectionCache.resume(tmp_path, identity) as cache:
        cache.append([(key(0), Detections(()))], (GPU,))
    with DetectionCache.resume(tmp_path, identity) as cache:
        with pytest.raises(CacheError, match=f"revision={COMMIT}.*--overwrite"):
            cache.append([(key(1), Detections(()))], ({**GPU, "commit": OTHER},))
        cache.append([(key(1), Detections(()))], (CPU,))
        assert cache.finish(["expression"], {}).recorded == distinct([CPU, GPU])


def test_the_record_does_not_depend_on_what_was_recorded_first(tmp_path: Path) -> None:
    recorded = []
    for order in ((0, 1), (1, 0)):
        folder = tmp_path / str(order)
        with DetectionCache.resume(folder, {"settings": {}}) as cache:
            for number in order:
                cache.append([(key(number), Detections(()))], ((GPU, CPU)[number],))
            cache.finish(["expression"], {}, order=[key(0), key(1)])
        recorded.append(read_folder(folder).parts[0].recorded)
    assert len(recorded[0]) == 2
    assert recorded[0] == recorded[1]


class Half:
    """Computes in a number format that depends on the machine."""

    levels: tuple[Level, ...] = ("image",)
    name = "half"
    reads_images = False

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def identity(self) -> dict[str, Any]:
        return {"revision": 1}

    def recorded(self) -> dict[str, Any]:
        return {"dtype": self.dtype}

    def prepare(self, sample: Sample) -> None:
        pass

    def detect(self, questions: Sequence[Question], prepared: Mapping[str, Any]) -> list[Detections]:
        if self.dtype == "float16" and any(question.sample.image_id == "i1" for question in questions):
            raise RuntimeError("out of memory")
        return [Detections(()) for _ in questions]


def test_a_filling_that_is_resumed_otherwise_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = [Sample(f"s{n}", "r", f"i{n}", None, (9, 9), "cat", None) for n in range(2)]
    dataset = Dataset("mine", "val", samples, "digest")
    with pytest.raises(RuntimeError):
        fill_cache(Half("float16"), dataset, tmp_path, images_per_batch=1, progress=False)
    cache = fill_cache(Half("float32"), dataset, tmp_path, images_per_batch=1, progress=False)
    assert cache.manifest is not None
    assert cache.manifest.recorded == ({"dtype": "float16"}, {"dtype": "float32"})
    assert "computed in several ways: dtype=float16; also dtype=float32" in caplog.text


@pytest.mark.parametrize(
    ("identity", "recorded", "wanted", "adopted"),
    [
        pytest.param("main", COMMIT, COMMIT, COMMIT, id="pinned-later"),
        pytest.param(COMMIT, None, None, None, id="no-longer-pinned"),
        pytest.param("main", OTHER, COMMIT, "main", id="of-another-commit"),
        pytest.param("main", None, COMMIT, "main", id="nothing-known"),
        pytest.param("v1", None, "v2", "v1", id="two-tags"),
    ],
)
def test_revisions_of_the_same_weights(identity: Any, recorded: Any, wanted: Any, adopted: Any) -> None:
    found = adopt_revision(
        {"settings": {"revision": identity}},
        ({"commit": recorded},) if recorded else (),
        {"settings": {"revision": wanted}},
    )
    assert found == {"settings": {"revision": adopted}}


@pytest.mark.parametrize("identity", [{}, {"settings": None}, {"settings": "text"}, {"settings": {"a": 1}}], ids=str)
def test_an_identity_without_anything_recorded_stays(identity: dict[str, Any]) -> None:
    assert split_recorded(identity) == (identity, ())


def test_the_same_way_is_said_once() -> None:
    assert describe_recorded(distinct([GPU, {}, GPU])) == ", ".join(f"{name}={GPU[name]}" for name in sorted(GPU))


@pytest.mark.parametrize(
    ("recorded", "text"),
    [
        ({"remarks": "2 boxes have no label"}, "2 boxes have no label"),
        ({"b": 1, "remarks": ["x"], "a": 2}, "a=2, b=1; ['x']"),
    ],
    ids=["alone", "behind-values"],
)
def test_remarks_are_sentences(recorded: dict[str, Any], text: str) -> None:
    assert describe_recorded((recorded,)) == text


_WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
from pathlib import Path
from llm_wrapper.detections.samples import load_prepared_split
from llm_wrapper.recipe import DataSection, DetectorSection, LLMSection, Recipe
data = DataSection(name="mine", reader="jsonl", root=Path("mine.jsonl"))
detector = DetectorSection(name="import", settings={"path": "boxes.jsonl"})
recipe = Recipe(detector=detector, data=data, llm=LLMSection(backend="rule"))
print(len(load_prepared_split(recipe, data, "val").samples[0].built.candidates))
"""


def test_a_cache_is_read_without_torch(data: DataSection) -> None:
    Path("boxes.jsonl").write_text('{"file_name": "a.png", "detections": [{"box": [1, 2, 30, 40], "label": "cat"}]}\n')
    section = DetectorSection(name="import", settings={"path": "boxes.jsonl"})
    recipe = Recipe(detector=section, data=data, llm=LLMSection(backend="rule"))
    dataset = datasets.load_dataset(data, "val")
    detector = detectors.create_detector(section, dataset)
    fill_cache(detector, dataset, cache_folder(detector.name, data, "val"), progress=False)
    assert load_prepared_split(recipe, data, "val").samples
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", _WITHOUT_TORCH]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr
