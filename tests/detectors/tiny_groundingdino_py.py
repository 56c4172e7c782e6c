"""One Grounding-DINO in two implementations, the authors' and transformers', with the same random weights.

Text and image are read at full width, as the authors' code demands (256 channels, 8 heads, Swin-T); layers are few.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
import transformers

from llm_wrapper.detectors import Question
from llm_wrapper.detectors.groundingdino_py import (
    GroundingDinoPyDetector,
    GroundingDinoPySettings,
    build_groundingdino,
    load_configuration,
)
from llm_wrapper.records import Detections, Sample
from tests.detectors import tiny_grounding_dino as tiny

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("groundingdino") is None,
    reason="rf-groundingdino is not installed: make test-groundingdino has an environment for it",
)

AS_IT_WARNS = [
    pytest.mark.filterwarnings("ignore:Importing from timm.models.layers:FutureWarning"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.cuda.amp.autocast:FutureWarning"),
]
"""What the package was written with: names that timm and torch have replaced."""

SETTINGS: dict[str, Any] = {"model": "here", "file": "Tiny.pth", "config": "SwinT_OGC"}

EDGES = (96, 144)
"""Pixels of the shorter edge of an image, and the most of its longer one."""

NUM_QUERIES = 16
"""Few, because of two proposals that the model likes alike, rounding decides which one the next query refines."""

_SEED = 5
"""With it no two proposals are alike; where that happens, two boxes differ wholly and all others by 1e-6."""

_LAYERS, _INNER = 2, 128

_TEXT = {"vocab_size": 1030, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}

_SWIN = "model.backbone.conv_encoder.model.swin."

# The authors' name -> transformers', in this order, each as often as it fits.
_NAMES = (
    (r"^bert\.", "model.text_backbone."),
    (r"^feat_map\.", "model.text_projection."),
    (r"^input_proj\.", "model.input_proj_vision."),
    (r"^backbone\.0\.patch_embed\.proj\.", f"{_SWIN}embeddings.patch_embeddings.projection."),
    (r"^backbone\.0\.patch_embed\.norm\.", f"{_SWIN}embeddings.norm."),
    (r"^backbone\.0\.layers\.", f"{_SWIN}encoder.layers."),
    (r"^backbone\.0\.norm1\.", "model.backbone.conv_encoder.model.hidden_states_norms.stage2."),
    (r"^backbone\.0\.norm2\.", "model.backbone.conv_encoder.model.hidden_states_norms.stage3."),
    (r"^backbone\.0\.norm3\.", "model.backbone.conv_encoder.model.hidden_states_norms.stage4."),
    (r"(\.blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(\.blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"(\.blocks\.\d+)\.attn\.proj\.", r"\1.attention.o_proj."),
    (r"(\.blocks\.\d+)\.attn\.relative_", r"\1.attention.relative_position_bias.relative_"),
    (r"^transformer\.encoder\.text_layers\.(\d+)\.", r"model.encoder.layers.\1.text_enhancer_layer."),
    (r"(text_enhancer_layer)\.norm1\.", r"\1.layer_norm_before."),
    (r"(text_enhancer_layer)\.norm2\.", r"\1.layer_norm_after."),
    (r"^transformer\.encoder\.fusion_layers\.(\d+)\.", r"model.encoder.layers.\1.fusion_layer."),
    (r"\.gamma_v$", ".vision_param"),
    (r"\.gamma_l$", ".text_param"),
    (r"\.layer_norm_v\.", ".layer_norm_vision."),
    (r"\.layer_norm_l\.", ".layer_norm_text."),
    (r"(fusion_layer\.attn\.(?:values_|out_)?)v_proj\.", r"\1vision_proj."),
    (r"(fusion_layer\.attn\.(?:values_|out_)?)l_proj\.", r"\1text_proj."),
    (r"^transformer\.encoder\.layers\.(\d+)\.", r"model.encoder.layers.\1.deformable_layer."),
    (r"(deformable_layer)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"(deformable_layer)\.norm2\.", r"\1.final_layer_norm."),
    (r"^transformer\.decoder\.norm\.", "model.decoder.layer_norm."),
    (r"^transformer\.decoder\.ref_point_head\.", "model.decoder.reference_points_head."),
    (r"(decoder\.layers\.\d+)\.cross_attn\.", r"\1.encoder_attn."),
    (r"(decoder\.layers\.\d+)\.norm1\.", r"\1.encoder_attn_layer_norm."),
    (r"(decoder\.layers\.\d+)\.ca_text\.", r"\1.encoder_attn_text."),
    (r"(decoder\.layers\.\d+)\.catext_norm\.", r"\1.encoder_attn_text_layer_norm."),
    (r"(decoder\.layers\.\d+)\.norm2\.", r"\1.self_attn_layer_norm."),
    (r"(decoder\.layers\.\d+)\.norm3\.", r"\1.final_layer_norm."),
    (r"^transformer\.tgt_embed\.", "model.query_position_embeddings."),
    (r"^transformer\.enc_out_bbox_embed\.", "model.encoder_output_bbox_embed."),
    (r"^transformer\.", "model."),
    (r"\.linear([12])\.", r".fc\1."),
)

# Three matrices that the authors' code keeps as one: the end of its name -> the ends of theirs.
_THREES = {
    r"\.in_proj_(weight|bias)$": (r".query.\1", r".key.\1", r".value.\1"),
    r"\.attn\.qkv\.(weight|bias)$": (r".attention.q_proj.\1", r".attention.k_proj.\1", r".attention.v_proj.\1"),
}

_NOT_IN_TRANSFORMERS = re.compile(r"^bert\.pooler\.|\.relative_position_index$")


def translated(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name and split the authors' weights as transformers does."""
    found = {}
    for name, weight in weights.items():
        if not _NOT_IN_TRANSFORMERS.search(name):
            found.update(_parts(name, weight))
    return found


def _parts(name: str, weight: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    for end, ends in _THREES.items():
        if re.search(end, name):
            for part, values in zip(ends, weight.chunk(3), strict=True):
                yield _renamed(re.sub(end, part, name)), values
            return
    yield _renamed(name), weight


def _renamed(name: str) -> str:
    for pattern, ours in _NAMES:
        name = re.sub(pattern, ours, name)
    return name


def _randomize(model: Any) -> None:
    """Give every weight a part in the answer; layers that start as zero would hide every mistake."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=1 / math.sqrt(weight[0].numel()))
            else:
                weight.add_(torch.randn_like(weight) * 0.2)
        # Else the scores are all near 0 or 1, where they hide what is wrong.
        for weight in model.transformer.decoder.norm.parameters():
            weight.mul_(0.1)


def sizes() -> Any:
    """The package's Swin-T configuration, with few layers."""
    found = load_configuration("SwinT_OGC")
    found.enc_layers = found.dec_layers = _LAYERS
    found.dim_feedforward, found.num_queries = _INNER, NUM_QUERIES
    return found


def text_config() -> Any:
    return transformers.BertConfig(**_TEXT, intermediate_size=64)


@cache
def original() -> Any:
    """The authors' model, always the same one."""
    torch.manual_seed(_SEED)
    model = build_groundingdino(sizes(), tiny.processor().tokenizer, transformers.BertModel(text_config()))
    _randomize(model)
    return model


@cache
def transformers_model(attention: str = "sdpa") -> Any:
    """Transformers' model with the weights of `original`."""
    swin = transformers.SwinConfig(
        embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, out_indices=[2, 3, 4]
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=swin,
        text_config=text_config(),
        num_queries=NUM_QUERIES,
        encoder_layers=_LAYERS,
        decoder_layers=_LAYERS,
        encoder_ffn_dim=_INNER,
        decoder_ffn_dim=_INNER,
    )
    kinds = {"text_config": attention, "backbone_config": "sdpa"}
    model = transformers.AutoModelForZeroShotObjectDetection.from_config(config, attn_implementation=kinds).eval()
    left = model.load_state_dict(translated(original().state_dict()), strict=False)
    # A norm behind the last stage, which a backbone does not use.
    assert set(left.missing_keys) == {f"{_SWIN}layernorm.weight", f"{_SWIN}layernorm.bias"}
    assert left.unexpected_keys == []
    return model


def processor(edges: tuple[int, int] = EDGES) -> Any:
    """Transformers' processor."""
    tokenizer = tiny.processor().tokenizer
    shorter, longer = edges
    pixels = transformers.GroundingDinoImageProcessorPil(size={"shortest_edge": shorter, "longest_edge": longer})
    return transformers.GroundingDinoProcessor(pixels, tokenizer)


def authors_detector(**settings: Any) -> GroundingDinoPyDetector:
    return GroundingDinoPyDetector(original(), GroundingDinoPySettings(**{**SETTINGS, **settings}), edges=EDGES)


def detect(detector: Any, samples: Sequence[Sample]) -> list[Detections]:
    images = {sample.image_id: detector.prepare(sample) for sample in samples}
    found: list[Detections] = detector.detect([Question(sample, "expression") for sample in samples], images)
    return found
