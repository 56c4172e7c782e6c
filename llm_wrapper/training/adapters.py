"""Put an adapter on a frozen model with PEFT: LoRA, DoRA, (IA)3, or a soft prompt; choose the layers that it changes.

Layers are found by the names of a recipe, in the text model alone, never a router: PEFT searches the whole model, also
a tower for images that no text passes through; it accepts a name that matches nothing as long as another name matches;
and its `all-linear` wraps routers, which return several tensors.
"""

from __future__ import annotations

import copy
import itertools
import logging
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any

import peft
import torch
import transformers
from peft.utils import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from llm_wrapper.errors import ModelError, listed
from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.packing import takes_blocks
from llm_wrapper.llms.soft_prompts import SoftPromptModel
from llm_wrapper.recipe import LoraSection, Recipe, TrainSection
from llm_wrapper.training import processes

_log = logging.getLogger(__name__)

SOFT_PROMPT_TEXT = (
    "Each object has a number, a kind, a place and a size. Find the one object that the words describe, by its kind, "
    "its place, its size and what is next to it. Answer with its number."
)
"""Initial text of a soft prompt, repeated to its length; from random embeddings a small model hardly learns."""


def adapter_config(section: TrainSection, model: Any) -> peft.PeftConfig:
    """Convert the training section of a recipe to PEFT's configuration; refuse layers that cannot be adapted."""
    if section.method in ("lora", "dora"):
        return lora_config(section.lora, model, use_dora=section.method == "dora")
    if section.method == "ia3":
        return choose_ia3_targets(peft.IA3Config(task_type="CAUSAL_LM"), model)
    kind = peft.PromptTuningConfig if section.method == "prompt-tuning" else peft.PrefixTuningConfig
    return kind(num_virtual_tokens=section.virtual_tokens, task_type="CAUSAL_LM")


def lora_config(section: LoraSection, model: Any, *, use_dora: bool = False) -> peft.LoraConfig:
    """Convert the LoRA section to PEFT's configuration; refuse layers that cannot be adapted (ModelError)."""
    config = peft.LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=section.target_modules,
        use_dora=use_dora,
        task_type="CAUSAL_LM",
    )
    return choose_lora_targets(config, model, section.target_modules)


def create_adapter(llm: LoadedLLM, recipe: Recipe) -> Any:
    """Put a fresh adapter on the model, drawn by the seed; ModelError if the method does not go with it as loaded."""
    transformers.set_seed(recipe.train.seed)
    config = adapter_config(recipe.train, llm.model)
    if config.is_prompt_learning:
        if takes_blocks(llm.model):
            raise ModelError("soft prompts do not go with llm.attention=flex_attention; set llm.attention=auto")
        if processes.is_sharded():
            raise ModelError(
                "soft prompts are too small to be split by FSDP, and PEFT cannot save the parts; use "
                "recipes/accelerate/ddp.yaml"
            )
        model = SoftPromptModel(llm.model, config)
        _initialize(model, llm.tokenizer(SOFT_PROMPT_TEXT, add_special_tokens=False)["input_ids"])
    else:
        model = adapt_layers(llm.model, config)
        if processes.is_main_process():
            _log.info("adapters: %s", describe_targets(model))
    # Intermediate adapters too name the model as the recipe does, not by its folder on this machine.
    model.peft_config["default"].base_model_name_or_path = recipe.llm.model
    if recipe.train.gradient_checkpointing:
        model.enable_input_require_grads()
    # Or the whole output layer would be stored with every checkpoint where it is adapted.
    model.save_pretrained = partial(model.save_pretrained, save_embedding_layers=False)
    return model


@torch.no_grad()
def _initialize(model: SoftPromptModel, token_ids: list[int]) -> None:
    """Set soft prompts to the embeddings of a text's tokens, or to their keys and values."""
    base, config = model.get_base_model(), model.active_peft_config
    chosen = itertools.islice(itertools.cycle(token_ids), config.num_virtual_tokens)
    ids = torch.tensor([list(chosen)], device=base.device)
    if config.peft_type == peft.PeftType.PROMPT_TUNING:
        values = base.get_input_embeddings()(ids)[0]
    else:
        # Not the model's own cache: that of local attention forgets tokens beyond its window.
        layers = base(input_ids=ids, past_key_values=transformers.DynamicCache(), use_cache=True).past_key_values.layers
        both = torch.cat([states for layer in layers for states in (layer.keys, layer.values)])  # (2 layers, h, v, d)
        values = both.permute(2, 0, 1, 3).flatten(1)
    model.prompt_encoder["default"].embedding.weight.copy_(values)


_ALL = "all-linear"
_KEY = "train.lora.target_modules"
_ADAPTABLE = (nn.Linear, Conv1D, nn.Embedding)


def is_router(name: str) -> bool:
    """Tell by a module's name whether it routes tokens to experts."""
    return "router" in name.lower().split(".") or name.rpartition(".")[2] == "gate"


def choose_lora_targets(config: peft.LoraConfig, model: Any, wanted: Sequence[str] | str) -> peft.LoraConfig:
    """Set in `config` the layers of the text model that LoRA adapts, and the fused experts that PEFT can adapt.

    `wanted` are the last parts of layers' names, or `all-linear`. ModelError has every reason at once: a name matches
    nothing that can be adapted, the output layer is to be adapted and is the embeddings too, or PEFT cannot adapt
    experts in this way.
    """
    names = [] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
    layers, converted = _text_layers(model), copy.deepcopy(config)
    try:  # PEFT replaces the names of single experts by those of the fused parameters
        convert_peft_config_for_transformers(converted, model=model, conversions=None)
    except ValueError as error:
        raise ModelError(f"{_KEY}: {error}") from error
    experts = {name for name in converted.target_parameters or () if not is_router(name.removesuffix(".weight"))}
    left = None if converted.target_modules == _ALL else set(converted.target_modules)
    matched = [
        name for name, module in layers.items() if (_is_any(name, names) if names else not _is_end(module, model))
    ]
    problems = _find_unmatched(names, left or (), layers, model)
    if model.config.get_text_config().tie_word_embeddings:
        ends, modules = (model.get_input_embeddings(), model.get_output_embeddings()), dict(model.named_modules())
        problems += [
            f"{_KEY} names {name.split('.')[-1]}, but in this model the output layer and the embeddings are the same "
            "weight: a merged adapter would change what the model reads; leave it out"
            for name in matched
            if any(modules[name] is end for end in ends)
        ]
    if experts and config.lora_dropout:
        problems.append(f"fused experts take no dropout: set train.lora.dropout=0 (value: {config.lora_dropout:g})")
    if experts and config.use_dora:
        problems.append("fused experts take no DoRA: set train.method=lora")
    if problems:
        raise ModelError(listed(f"LoRA cannot be put on {type(model).__name__}", problems))
    chosen = [name for name in matched if left is None or _is_any(name, left)]
    config.target_modules, config.target_parameters = _shortened(chosen, model), sorted(experts) or None
    config.rank_pattern, config.alpha_pattern = converted.rank_pattern, converted.alpha_pattern
    return config


def choose_ia3_targets(config: peft.IA3Config, model: Any) -> peft.IA3Config:
    """Set the layers of the text model that (IA)3 scales, as PEFT names them for the architecture.

    For Llama keys, values and the inner states of the feed-forward layer (arXiv 2205.05638).
    """
    kinds = (model.config.model_type, model.config.get_text_config().model_type)
    kind = next((kind for kind in kinds if kind in TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING), None)
    if kind is None:
        raise ModelError(f"train.method=ia3: PEFT knows no layers of {kinds[0]} for it; set train.method=lora")
    layers = _text_layers(model)
    for field, names in (
        ("target_modules", TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING[kind]),
        ("feedforward_modules", TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind]),
    ):
        setattr(config, field, _shortened([name for name in layers if _is_any(name, names)], model))
    return config


def adapt_layers(model: Any, config: peft.PeftConfig, **options: Any) -> Any:
    """Put an adapter that changes weights on a model, which is changed; ModelError where the method does not fit it."""
    with warnings.catch_warnings():
        # Ranks of fused experts are matched, though PEFT compares them with the names of layers alone and warns.
        warnings.filterwarnings("ignore", r"The following \w+_pattern keys did not match")
        try:
            return peft.get_peft_model(model, config, **options)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"adapters cannot be put on {type(model).__name__}: {error}") from error


def describe_targets(adapted: Any) -> str:
    """Say which layers of a model of PEFT carry an adapter and which do not, by name and count."""
    base, tuner = adapted.get_base_model(), adapted.base_model
    names, experts = list(tuner.targeted_module_names), list(getattr(tuner, "targeted_parameter_names", ()))
    said = [f"{_plural(len(names), 'layer')} ({_counts(names)})"] if names else []
    if experts:
        said.append(f"the fused experts of {_plural(len({name.rpartition('.')[0] for name in experts}), 'layer')}")
    everything = [name for name, module in base.named_modules() if isinstance(module, _ADAPTABLE) and _is_own(name)]
    own = [name for name, module in _text_layers(base).items() if not _is_end(module, base) and _is_own(name)]
    ends = {name for name, module in base.named_modules() if _is_end(module, base)}
    rest = [name for name in own if name not in names]
    routers = {name for name, _ in base.named_modules() if is_router(name)}
    outside = [name for name in everything if name not in {*own, *ends, *routers, *names}]
    alone = [_counts(rest)] if rest else []
    if num_experts(base.config) and not experts and not any(".experts." in name for name in names):
        alone.append("the experts")
    alone += [_plural(len(routers), "router")] if routers else []
    alone += [f"{_plural(len(outside), 'layer')} outside the text model"] if outside else []
    return " and ".join(said) + (f"; not adapted: {', '.join(alone)}" if alone else "")


def _text_layers(model: Any) -> dict[str, nn.Module]:
    """Return name -> layer of what could be adapted: in the decoder, or at its ends, and no router."""
    decoder = model.get_decoder()
    if all(module is not model.get_input_embeddings() for module in decoder.modules()):
        decoder = model  # what some architectures call so is their output layer
    inside = {id(module) for module in decoder.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _ADAPTABLE)
        and (id(module) in inside or _is_end(module, model))
        and not any(is_router(part) for part in name.split("."))
    }


def _is_end(module: Any, model: Any) -> bool:
    """Tell whether a module is the output layer, or embeddings."""
    return module is model.get_output_embeddings() or isinstance(module, nn.Embedding)


def _is_own(name: str) -> bool:
    """Tell whether a module is the model's, not a part of an adapter."""
    return not any(part == "base_layer" or part.startswith(("lora_", "ia3_")) for part in name.split("."))


def _is_any(name: str, endings: Iterable[str]) -> bool:
    """Tell as PEFT does whether a module's name is, or ends with, one of some names."""
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _counts(names: Iterable[str]) -> str:
    return ", ".join(f"{leaf} {count}" for leaf, count in Counter(name.split(".")[-1] for name in names).items())


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _shortened(chosen: Collection[str], model: Any) -> list[str]:
    """Return the last parts of names where they mean these layers and no others, as adapters are usually written."""
    leaves = list(dict.fromkeys(name.split(".")[-1] for name in chosen))
    meant = {name for name, _ in model.named_modules() if _is_any(name, leaves)}
    return leaves if meant == set(chosen) else list(chosen)


def _find_unmatched(
    names: Collection[str], left: Collection[str], layers: dict[str, nn.Module], model: Any
) -> list[str]:
    """Say which names match no layer, and what to write instead; those of fused experts are not `left`."""
    routers = [name for name in names if is_router(name)]
    nothing = [name for name in names if name in left and not any(_is_any(layer, [name]) for layer in layers)]
    problems = [f"{_KEY} names {', '.join(routers)}: routers are never adapted"] if routers else []
    wrong = [name for name in nothing if name not in routers]
    if wrong:
        problems.append(f"{_KEY} names {', '.join(wrong)}, which match nothing in its text model")
    if problems:
        inner = dict.fromkeys(name.split(".")[-1] for name, module in layers.items() if not _is_end(module, model))
        ends = [name for name in names if any(_is_any(key, [name]) and _is_end(layers[key], model) for key in layers)]
        problems.append(f"its layers are called so: set {_KEY}=[{','.join([*inner, *ends])}]; or to {_ALL}")
    return problems


# Sizes of an architecture, read from its settings under the names that model families give them.

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = ("num_experts_per_tok", "moe_k", "top_k_experts")


def _layers(config: Any) -> Sequence[Any]:
    """Return the settings of each layer where layers differ, else those of the text model."""
    text = config.get_text_config()
    return list(text.per_layer_config) if getattr(text, "is_heterogeneous", False) else [text]


def _number(layer: Any, *names: str) -> int:
    """Return the first of some settings that is set to a number over zero; else 0."""
    values = (getattr(layer, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), 0)


def num_experts(config: Any) -> int:
    """Return how many experts a layer routes among; 0 for a dense model."""
    return max(_number(layer, *_EXPERTS) for layer in _layers(config))


def experts_per_token(config: Any) -> int:
    """Return how many experts a token is sent to; 1 for a dense model, whose only one is the layer."""
    return max(_number(layer, *_PER_TOKEN) or 1 for layer in _layers(config)) if num_experts(config) else 1


def feedforward_width(config: Any) -> int:
    """Return the inner states of a token in the widest feed-forward layer: of all its experts, shared ones too."""
    widths, per_token = [], experts_per_token(config)
    for layer in _layers(config):
        dense = _number(layer, "intermediate_size_mlp", "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
        dense = dense or 4 * _number(layer, "hidden_size")
        widths.append(dense)
        if _number(layer, *_EXPERTS):
            inner = _number(layer, "moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
            shared = _number(layer, "shared_expert_intermediate_size", "shared_intermediate_size")
            num_shared = _number(layer, "n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
            widths.append((inner or dense) * per_token + (shared or inner * num_shared))
    # Some families give a width of dense layers that they have none of; it is then no more than that of the experts.
    return max(widths)


def attention_heads(config: Any) -> int:
    """Return the heads of the layer that has most; 0 where no layer attends to earlier tokens (Mamba)."""
    return max(_number(layer, "num_attention_heads") for layer in _layers(config))


def attention_width(config: Any) -> int:
    """Return the width of all heads of the widest layer together; ModelError if heads have no width."""
    widths = []
    for layer in _layers(config):
        heads = _number(layer, "num_attention_heads")
        head = _number(layer, "head_dim", "qk_head_dim") or (_number(layer, "hidden_size") // heads if heads else 0)
        if heads and not head:
            raise ModelError(f"its settings give {heads} heads and no width for them (head_dim, hidden_size)")
        widths.append(heads * head)
    return max(widths)
