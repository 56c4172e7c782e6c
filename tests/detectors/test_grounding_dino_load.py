from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml

from llm_wrapper.candidates import CandidatePolicy
from llm_wrapper.detectors import detect_sample
from llm_wrapper.detectors.grounding_dino import GroundingDinoDetector, GroundingDinoSettings, create_grounding_dino
from llm_wrapper.errors import ModelError, RecipeError
from tests.detectors import tiny_grounding_dino as tiny

_RECIPES = Path(__file__).parents[2] / "recipes" / "vlm"

# So low that the random models' boxes are kept.
_GD: dict[str, Any] = {"model": "tiny/DINO", "box_threshold": 1e-4, "text_threshold": 1e-4}


def test_every_wrong_setting_is_listed() -> None:
    settings = {"mode": "gdrec", "box_treshold": 0.2, "subject_threshold": 1.5, "reduction": "sum", "device": "gpu"}
    with pytest.raises(RecipeError, match="5 problems") as caught:
        create_grounding_dino(settings)
    for message in ("'model' is missing", "box_treshold", "box_threshold", "subject_threshold", "reduction", "device"):
        assert message in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [{"mode": "gdrec", "box_threshold": 0.2}, {"mode": "gd", "reduction": "max"}, {"subject_threshold": 0.2}],
    ids=str,
)
def test_settings_of_the_other_mode_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="makes no use of"):
        create_grounding_dino({"model": "tiny/DINO", **settings})


def test_identity_has_what_decides_the_answers_and_nothing_else() -> None:
    def identity(**settings: Any) -> dict[str, Any]:
        return create_grounding_dino({"model": "tiny/DINO", **settings}).identity()

    plain = identity()
    assert identity(max_prompts=4, device="cpu") == plain
    others: list[dict[str, Any]] = [
        {"model": "other"},
        {"revision": "abc"},
        {"mode": "gdrec"},
        {"box_threshold": 0.15},
        {"text_threshold": 0.1},
        {"dtype": "bfloat16"},
    ]
    assert all(identity(**other) != plain for other in others)
    assert "subject_threshold" not in plain
    assert identity(mode="gdrec")["noun_groups"]
    assert identity(mode="gdrec", reduction="max") != identity(mode="gdrec")


@pytest.mark.parametrize("name", ["gd", "gd-b", "gdrec", "gdrec-b", "llmdet", "mmgd"])
def test_shipped_recipes(name: str) -> None:
    recipe = yaml.safe_load((_RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    detector = create_grounding_dino(recipe["detector"]["settings"])
    CandidatePolicy.model_validate(recipe["candidates"])
    assert detector.name.endswith("-gdrec" if name.startswith("gdrec") else "-gd")
    assert "Apache-2.0" in (_RECIPES / f"{name}.yaml").read_text(encoding="utf-8")


def test_recipes_keep_caches_apart() -> None:
    sections = [
        yaml.safe_load(path.read_text(encoding="utf-8"))["detector"] for path in sorted(_RECIPES.glob("*.yaml"))
    ]
    ours = [create_grounding_dino(each["settings"]).name for each in sections if each["name"] == "grounding-dino"]
    assert len(set(ours)) == len(ours) == 6


@pytest.fixture(params=tiny.ARCHITECTURES)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A checkpoint's folder as `save_pretrained` writes it, and its architecture."""
    model, processor = tiny.pair(request.param)
    folder = tmp_path / "Tiny-DINO"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return request.param, folder


def test_a_checkpoint_loads_as_asked(saved: tuple[str, Path], tmp_path: Path) -> None:
    architecture, folder = saved
    detector = create_grounding_dino({**_GD, "model": str(folder), "device": "cpu"})
    assert detector.name == "tiny-dino-gd"
    sample = tiny.sample(tmp_path, "the man left of the dog with no hat")
    built = GroundingDinoDetector(*tiny.pair(architecture), GroundingDinoSettings(**_GD))
    found = detect_sample(detector, sample)
    assert found.items
    assert found == detect_sample(built, sample)
    model, processor = detector._loaded()
    used = {part._attn_implementation for part in (model.config.text_config, model.config.backbone_config)}
    assert used == {detector.identity()["attention"]} == {"sdpa"}
    assert processor.image_processor.backend == "pil"
    assert not model.training


def test_a_text_encoder_that_ignores_the_mask_is_refused() -> None:
    model = transformers.AutoModelForZeroShotObjectDetection.from_config(
        tiny.config("grounding-dino"), attn_implementation="eager"
    )
    with pytest.raises(ModelError, match="eager"):
        GroundingDinoDetector(model, tiny.processor(), GroundingDinoSettings(**_GD))


def test_nothing_is_loaded_before_an_image_is_read() -> None:
    detector = create_grounding_dino({"model": "no/such-model", "mode": "gdrec"})
    assert detector.identity()["model"] == "no/such-model"


@pytest.mark.parametrize("what", ["absent", "other-model", "no-tokenizer"])
def test_a_model_that_cannot_be_loaded_is_named(what: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if what == "other-model":
        transformers.BertConfig(hidden_size=16).save_pretrained(folder)
    elif what != "absent":
        model, processor = tiny.pair()
        model.save_pretrained(folder)
        processor.image_processor.save_pretrained(folder)
    sample = tiny.sample(tmp_path, "dog")
    message = "tokenizer files" if what == "no-tokenizer" else r"model=.*model .*cannot be used"
    with pytest.raises(ModelError, match=message) as caught:
        create_grounding_dino({"model": str(folder)}).prepare(sample)
    assert ("it is a bert" in str(caught.value)) == (what == "other-model")
