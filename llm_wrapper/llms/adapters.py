"""Put a PEFT adapter on a model, whole or not at all, and export the two as one model.

    folder -> check_adapter (on a model without weights) -> add_adapter -> LoadedLLM | export_model -> folder

PEFT leaves weights alone that only one side has, and writes over the base model what the adapter's file holds of it. So
half an adapter would pass as a whole one, and one of another model as one of this.
"""

from __future__ import annotations

import copy
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors import safe_open

from llm_wrapper import readers, runs, storage
from llm_wrapper.adapter_files import CONFIG, WEIGHTS, advise_on_pickle, read_settings, require_quick
from llm_wrapper.errors import DataError, ModelError, RunError, listed, shell_word
from llm_wrapper.llms import soft_prompts
from llm_wrapper.llms.load import LoadedLLM, load_config, load_tokenizer, loading_failure, resolve_model
from llm_wrapper.recipe import LLMSection

_log = logging.getLogger(__name__)
_PREFIX = "base_model.model."
_ROUNDING = 2.0**-7
"""Relative difference of two copies of a weight, of which one was rounded to bfloat16."""
_NAME = ".default"
"""The name that PEFT gives a loaded adapter, inside the names of its weights."""
_VOCABULARY = (
    "its vocabulary is of another size: that of another model, or one that tokens were added to (then merge it where "
    "it was trained, and set llm.model to the merged folder)"
)


def require_fit(section: LLMSection, adapter: Path) -> None:
    """Refuse an adapter that does not fit a recipe's model, before any weight of the model is loaded."""
    config = load_config(section)
    try:
        with torch.device("meta"):
            skeleton = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # files of strangers: what their readers may raise is open
        raise loading_failure(section, error) from error
    check_adapter(skeleton, adapter, str(section.model))


def add_adapter(llm: LoadedLLM, adapter: Path) -> LoadedLLM:
    """Put a PEFT adapter on a loaded base model.

    Adapters of other programs often hold copies of the embeddings and the output layer (PEFT stores them beside an
    adapter on these). They are compared with the model's own: the only sign in the file of what it was trained on.
    """
    name, differing = str(llm.section.model), []
    with torch.device("meta"):
        skeleton = type(llm.model)(copy.deepcopy(llm.model.config))
    copies = check_adapter(skeleton, adapter, name)
    base = _trained_on(adapter)
    # Names may differ without harm: one model has many copies, folders and mirrors.
    if base and Path(base).name.lower() != Path(name).name.lower():
        _log.warning(
            "the adapter %s says that it was trained on %s, and is put on %s: its sizes fit, its answers may not",
            *(adapter, base, name),
        )
    try:
        with safe_open(str(adapter / WEIGHTS), framework="pt") as file:
            for key in copies:
                parameter = key.removeprefix(_PREFIX).replace(".base_layer.", ".")
                own, brought = llm.model.get_parameter(parameter).detach().cpu().float(), file.get_tensor(key).float()
                if own.shape != brought.shape or not torch.allclose(own, brought, rtol=_ROUNDING, atol=1e-6):
                    differing.append(f"{parameter} {tuple(brought.shape)}")
        adapted = None if differing else peft.PeftModel.from_pretrained(llm.model, str(adapter))
    except Exception as error:  # what loading may raise is open: file, settings, memory
        raise ModelError(f"{_headline(adapter, name)}: {type(error).__name__}: {error}") from error
    if adapted is None:
        said = f"{_headline(adapter, name)}: it brings weights of its base model that are not this model's own"
        raise ModelError(listed(said, differing))
    return LoadedLLM(adapted.eval(), llm.tokenizer, llm.section)


def check_adapter(skeleton: Any, folder: Path, model_name: str) -> list[str]:
    """Refuse an adapter that does not fit, and return the names of the base model's weights that its file holds.

    `skeleton` is the model without weights, on the meta device; it is used up.
    """
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} holds no adapter ({CONFIG} is missing); train one with: make train")
    runs.verify_adapter(folder)
    problems: list[str] = []
    copies: list[str] = []
    try:
        weights = _weights(folder)
        config = _config(folder, weights)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the real loading says it again
            if config.is_prompt_learning:
                soft_prompts.require_fitting(skeleton, config, weights)
            else:
                names = [name for name, _ in (*skeleton.named_modules(), *skeleton.named_parameters())]
                require_quick(config.to_dict(), names)
                problems, copies = _compare(_adapted(skeleton, config), weights)
        problems = problems or list(_non_finite(folder))
    except Exception as error:  # settings of another program: what PEFT may raise over them is open
        problems, copies = [str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"], []
    if problems:
        raise ModelError(listed(_headline(folder, model_name), problems, most=6))
    return copies


def _headline(folder: Path, model_name: str) -> str:
    base = _trained_on(folder)
    said = f"; it says that it was trained on {base}" if base else ""
    return f"the adapter {folder} does not fit {model_name}{said}"


def _trained_on(folder: Path) -> str | None:
    """Return the name of the base model in an adapter's settings; None where there is none, or they cannot be read."""
    try:
        settings = readers.read_json(folder / CONFIG, most=readers.MIB)
    except DataError:  # said elsewhere
        return None
    base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    return str(base) if base else None


def _config(folder: Path, weights: dict[str, torch.Tensor]) -> Any:
    """Read an adapter's settings; ValueError where it is of a kind that cannot be used."""
    try:
        read_settings(folder, {name: tuple(each.shape) for name, each in weights.items()})
        config = peft.PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # no JSON, no mapping, a kind that this PEFT does not know
        raise ValueError(f"{CONFIG} cannot be read: {type(error).__name__}: {error}") from error
    if config.peft_type is None:
        raise ValueError(f"{CONFIG} has no peft_type, so it is no adapter's")
    if (config.is_prompt_learning or config.is_adaption_prompt) and config.peft_type not in soft_prompts.TAKEN:
        taken = " and ".join(each.value for each in soft_prompts.TAKEN)
        raise ValueError(
            f"it is {config.peft_type.value}, which learns tokens in another way than {taken}; these are taken, and "
            "changes of weights, such as LORA"
        )
    if config.task_type not in (None, "CAUSAL_LM"):
        raise ValueError(f"it was trained for {config.task_type}, not to continue text (CAUSAL_LM)")
    return config


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the names and shapes in an adapter's file, as tensors without content."""
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{WEIGHTS} is missing{advise_on_pickle(folder)}")
    with safe_open(str(folder / WEIGHTS), framework="pt") as file:
        return {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()}  # noqa: SIM118


def _non_finite(folder: Path) -> Iterator[str]:
    """Say which weights in an adapter's file hold numbers that are NaN or infinite."""
    with safe_open(str(folder / WEIGHTS), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            if wrong := int((~file.get_tensor(key).float().isfinite()).sum()):
                yield f"{key}: {wrong} of its numbers are NaN or infinite"


def _adapted(skeleton: Any, config: Any) -> Any:
    """Put an adapter on a model without weights; ValueError where it may not be put on this one."""
    ends = (skeleton.get_input_embeddings(), skeleton.get_output_embeddings())
    own = {name: module for name, module in skeleton.named_modules() if any(module is end for end in ends)}
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = False  # some ways to begin compute with weights, and here are none
    model = peft.PeftModel(skeleton, config, low_cpu_mem_usage=True)
    base = model.get_base_model()
    adapted = [name for name, module in own.items() if base.get_submodule(name) is not module]
    if adapted and base.config.get_text_config().tie_word_embeddings:
        raise ValueError(
            f"it adapts {' and '.join(adapted)}, but in this model the output layer and the embeddings are the same "
            "weight: a merged adapter would change what the model reads too"
        )
    return model


def _compare(model: Any, weights: dict[str, torch.Tensor]) -> tuple[list[str], list[str]]:
    """Return the misfits, and the names in the file of the base model's weights that it holds."""
    own = model.state_dict()
    copies = sorted(weights.keys() & own.keys())
    try:
        result = peft.set_peft_model_state_dict(model, weights, low_cpu_mem_usage=True)
    except RuntimeError as error:  # one line for each size that differs
        lines = [line.strip() for line in str(error).splitlines() if "mismatch" in line]
        sizes = [re.sub("^size mismatch for |copying a param with ", "", line) for line in lines] or [str(error)]
        is_longer = any(weights[key].shape[:1] != own[key].shape[:1] for key in copies)
        problems = [*([_VOCABULARY] if is_longer else []), *sizes]
    except KeyError as error:
        problems = [f"{error.args[0]}: not in the adapter's file"]
    else:
        alone = [f"{key}: the model has no such place" for key in result.unexpected_keys]
        problems = [*alone, *(f"{key}: not in the adapter's file" for key in result.missing_keys if _NAME in key)]
    return [problem.replace(_NAME, "") for problem in problems], copies


def export_model(section: LLMSection, adapter: Path, out: Path) -> None:
    """Write base model, adapter and tokenizer as one model in safetensors; `out` appears when it is whole.

    The base is loaded unquantized, since merging into 4-bit weights would round the adapter away, and into the memory
    of the host, which is larger than a GPU's: Mixtral takes 93 GB. It is written in the type of its checkpoint, or
    in `llm.dtype`. The chat template that the recipe brings is written with the tokenizer, so that a server asks in
    the same words.
    """
    if out.exists():
        raise RunError(f"{out} exists. Name another folder, or remove it: rm -r {shell_word(out)}")
    try:
        is_soft = bool(peft.PeftConfig.from_pretrained(str(adapter)).is_prompt_learning)
    except Exception:  # what is wrong with it is said where it is loaded
        is_soft = False
    if is_soft:
        raise ModelError(
            f"{adapter} is a soft prompt: tokens that are read before every prompt. No weight is changed, so nothing "
            "can be merged; train one of the methods lora, dora, ia3, or serve base model and adapter by PEFT"
        )
    require_fit(section, adapter)
    tokenizer = load_tokenizer(section)
    if section.chat_template:
        tokenizer.chat_template = section.chat_template
    options = {"revision": section.revision, "device_map": {"": "cpu"}}
    dtype = "auto" if section.dtype == "auto" else getattr(torch, section.dtype)
    try:
        base = transformers.AutoModelForCausalLM.from_pretrained(
            resolve_model(section), dtype=dtype, trust_remote_code=False, **options
        )
    except Exception as error:  # files of strangers: what their readers may raise is open
        raise loading_failure(section, error) from error
    adapted = add_adapter(LoadedLLM(base.eval(), tokenizer, section), adapter)
    with storage.explaining_full_disk(out, f"Free space, or name another folder; nothing is left under {out}"):
        merged = adapted.model.merge_and_unload()
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
        try:
            merged.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
            unfinished.chmod(0o755)
            unfinished.rename(out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
