from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from llm_wrapper.candidates import CandidatePolicy
from llm_wrapper.detectors import Question, groundingdino_py
from llm_wrapper.detectors.groundingdino_py import GroundingDinoPyDetector, build_groundingdino, create_groundingdino_py
from llm_wrapper.errors import ImageError, ModelError, RecipeError
from llm_wrapper.records import Detections
from tests.detectors import tiny_grounding_dino as tiny
from tests.detectors import tiny_groundingdino_py as tiny_py

_ROOT = Path(__file__).parents[2]

pytestmark = tiny_py.AS_IT_WARNS

# One model


@tiny_py.needs_package
def test_an_error_leaves_no_image_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_py.original()
    samples = [tiny.sample(tmp_path, "the dog left", image=number, number=number) for number in (0, 1)]
    expected = tiny_py.detect(tiny_py.authors_detector(box_threshold=1e-4), samples[1:])
    with monkeypatch.context() as broken:
        broken.setattr(model.transformer, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiny_py.detect(tiny_py.authors_detector(), samples[:1])
    assert tiny_py.detect(tiny_py.authors_detector(box_threshold=1e-4), samples[1:]) == expected


@tiny_py.needs_package
@pytest.mark.parametrize("expression", ["", "  \n", ".", "?..", "\x00\u200b"], ids=repr)
def test_an_expression_without_a_word_finds_nothing(expression: str, tmp_path: Path) -> None:
    detector = tiny_py.authors_detector(box_threshold=1e-4)
    assert tiny_py.detect(detector, [tiny.sample(tmp_path, expression)]) == [Detections(())]


@tiny_py.needs_package
def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"0\.png"):
        tiny_py.authors_detector().prepare(tiny.sample(tmp_path, "dog"))


@tiny_py.needs_package
def test_a_tokenizer_without_periods_is_refused() -> None:
    words = transformers.BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "dog": 4})
    with pytest.raises(ModelError, match=r"'\.'"):
        build_groundingdino(tiny_py.sizes(), words, transformers.BertModel(tiny_py.text_config()))


# A checkpoint


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint as the authors publish them, and its text encoder's files, which hold no weights."""
    weights = {f"module.{name}": weight for name, weight in tiny_py.original().state_dict().items()}
    unused = {"module.label_enc.weight": torch.zeros(3, 4), "module.bert.embeddings.position_ids": torch.arange(9)}
    torch.save({"model": weights | unused}, tmp_path / "Tiny.pth")
    tiny_py.text_config().save_pretrained(tmp_path)
    tiny.processor().tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(groundingdino_py, "load_configuration", lambda _: tiny_py.sizes())
    return tmp_path


def _from(folder: Path, **settings: Any) -> GroundingDinoPyDetector:
    found = {**tiny_py.SETTINGS, "model": str(folder), "text_encoder": str(folder), "device": "cpu", **settings}
    return create_groundingdino_py({**found, "box_threshold": 1e-4})


@tiny_py.needs_package
def test_a_checkpoint_loads(folder: Path) -> None:
    detector = _from(folder)
    sample = tiny.sample(folder, "the man left of the dog")
    image = tiny_py.authors_detector().prepare(sample)
    detector.prepare(sample)
    question = Question(sample, "expression")
    (found,) = detector.detect([question], {sample.image_id: image})
    assert found.items
    assert [found] == tiny_py.authors_detector(box_threshold=1e-4).detect([question], {sample.image_id: image})


@tiny_py.needs_package
@pytest.mark.parametrize("what", ["absent", "damaged", "program", "no-weights", "too-few", "too-many", "no-encoder"])
def test_a_checkpoint_that_cannot_be_loaded_is_named(what: str, folder: Path) -> None:
    path = folder / "Tiny.pth"
    weights = torch.load(path, weights_only=True)["model"]
    if what == "absent":
        path.unlink()
    elif what == "damaged":
        path.write_bytes(path.read_bytes()[:100_000])
    elif what == "program":
        torch.save({"model": weights, "hook": Path}, path)
    elif what == "no-weights":
        torch.save({"optimizer": {}}, path)
    elif what == "too-few":
        torch.save({"model": dict(list(weights.items())[:-3])}, path)
    elif what == "too-many":
        torch.save({"model": {**weights, "adapter.weight": torch.zeros(2)}}, path)
    encoder = str(folder / "absent") if what == "no-encoder" else str(folder)
    with pytest.raises(ModelError, match=r"file=Tiny\.pth, .*cannot be loaded"):
        _from(folder, text_encoder=encoder).prepare(tiny.sample(folder, "dog"))


@tiny_py.needs_package
@pytest.mark.parametrize("config", ["SwinT_OGC", "SwinB_cfg"])
def test_the_package_has_both_configurations(config: str) -> None:
    found = groundingdino_py.load_configuration(config)
    assert (found.num_queries, found.max_text_len, found.use_checkpoint) == (900, 256, False)


# Settings


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "groundingdino"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "groundingdino", None)
    with pytest.raises(ModelError, match=r"pip install 'llm-wrapper-rec\[groundingdino\]'"):
        create_groundingdino_py(tiny_py.SETTINGS).prepare(tiny.sample(tmp_path, "dog"))


def test_every_wrong_setting_is_listed() -> None:
    settings = {"model": "a/b", "config": "SwinL", "box_treshold": 0.2, "text_threshold": 2, "device": "gpu"}
    with pytest.raises(RecipeError, match="5 problems") as caught:
        create_groundingdino_py(settings)
    for message in ("'file' is missing", "box_treshold", "box_threshold", "text_threshold", "config", "device"):
        assert message in str(caught.value)


def test_identity_has_what_decides_the_answers_and_nothing_else() -> None:
    def identity(**settings: Any) -> dict[str, Any]:
        return create_groundingdino_py({**tiny_py.SETTINGS, **settings}).identity()

    plain = identity()
    assert identity(device="cpu") == plain
    changes: list[dict[str, Any]] = [
        *({name: "other"} for name in ("model", "revision", "file", "text_encoder", "text_encoder_revision")),
        {"config": "SwinB_cfg"},
        {"mode": "gdrec"},
        {"box_threshold": 0.15},
    ]
    assert all(identity(**change) != plain for change in changes)
    assert identity(mode="gdrec")["noun_groups"]


def test_the_shipped_recipe() -> None:
    path = _ROOT / "recipes" / "vlm" / "gd-py.yaml"
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    CandidatePolicy.model_validate(recipe["candidates"])
    assert create_groundingdino_py(recipe["detector"]["settings"]).name == "groundingdino_swint_ogc-gd"
    assert "Apache-2.0" in path.read_text(encoding="utf-8")
