"""Tokenizers and models small enough to build in a test: five chat styles, four architectures, all of them random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from llm_wrapper.llms.load import LoadedLLM
from llm_wrapper.llms.self_test import require_exact
from llm_wrapper.prompts.render import render_prompt
from llm_wrapper.recipe import LLMSection
from llm_wrapper.records import Box, Candidate, Message, Prompt, Sample

torch.set_num_threads(1)

GPT_NEO_RECIPE = Path(__file__).parents[2] / "recipes" / "llm" / "gpt-neo.yaml"

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\\n'"
    " + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
BARE = yaml.safe_load(GPT_NEO_RECIPE.read_text(encoding="utf-8"))["llm"]["chat_template"]

_SINGLE = r"\d|[^\s\d]+|\s+"
_PAIRS = r"\d{1,2}|[^\s\d]+|\s+"
_GPT2 = r" ?\d+| ?[^\s\d]+|\s+"
"""How text is cut before merging: digits alone, numbers up to 99 whole, or GPT-2's way, with the space before."""


@dataclass(frozen=True)
class Style:
    """What makes a chat style: how text is cut before merging, the special tokens, the template."""

    cut: str
    bos: str | None
    eos: str
    others: tuple[str, ...]
    template: str
    end_of_turn: str


STYLES = {
    "chatml": Style(_SINGLE, None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>"), CHATML, "<|im_end|>"),
    "llama3": Style(
        _SINGLE,
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        LLAMA3,
        "<|eot_id|>",
    ),
    "numbers": Style(_PAIRS, "<s>", "</s>", (), INST, "</s>"),
    "gemma": Style(_SINGLE, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>"), GEMMA, "<end_of_turn>"),
    "bare": Style(_GPT2, None, "<|endoftext|>", (), BARE, "<|endoftext|>"),
}


@cache
def _backend(name: str) -> str:
    """Train a byte-level BPE tokenizer; return it as JSON, so that no test can change another's."""
    style = STYLES[name]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(style.cut), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [token for token in (style.bos, style.eos, *style.others) if token]
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    numbers = [" ".join(map(str, range(100)))] * 20
    tokenizer.train_from_iterator([*numbers, *[prompt("the left dog", 4).messages[0].content] * 10], trainer)
    if style.bos:  # as the real ones do, so that whoever does not ask them to leave it out has two
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{style.bos} $A", special_tokens=[(style.bos, tokenizer.token_to_id(style.bos))]
        )
    return str(tokenizer.to_str())


def tokenizer(name: str, *, with_template: bool = True) -> Any:
    """Return a fresh tokenizer of a style."""
    style = STYLES[name]
    made = transformers.PreTrainedTokenizerFast(
        name_or_path=f"tiny-{name}",
        tokenizer_object=Tokenizer.from_str(_backend(name)),
        bos_token=style.bos,
        eos_token=style.eos,
        pad_token=style.eos,
        additional_special_tokens=list(style.others),
    )
    if with_template:
        made.chat_template = style.template
    return made


_SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    # Large enough that a token's probability hangs on what the token sees: a wrong mask must show.
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def _llama() -> Any:
    return transformers.LlamaConfig(**_SIZES)


def _mixtral() -> Any:
    return transformers.MixtralConfig(**_SIZES, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)


def _gemma2() -> Any:
    return transformers.Gemma2Config(
        **_SIZES, head_dim=8, sliding_window=8, attn_logit_softcapping=5.0, final_logit_softcapping=3.0
    )


def _gpt_neo() -> Any:
    return transformers.GPTNeoConfig(
        vocab_size=512,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        intermediate_size=48,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=1024,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        attention_dropout=0.0,
        embed_dropout=0.0,
        resid_dropout=0.0,
    )


CONFIGS: dict[str, Callable[[], Any]] = {"llama": _llama, "mixtral": _mixtral, "gemma2": _gemma2, "gpt_neo": _gpt_neo}

PAIRS = [("llama", "chatml"), ("llama", "numbers"), ("mixtral", "llama3"), ("gemma2", "gemma"), ("gpt_neo", "bare")]
"""Architectures with their tokenizers; the last two look back 8 places only, in every other layer."""


def model(name: str, *, attention: str = "eager", seed: int = 0, **changes: Any) -> Any:
    """Return a random model in float32, in evaluation mode; further arguments change its settings."""
    torch.manual_seed(seed)
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    return transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=attention
    ).eval()


def llm(architecture: str = "llama", style: str = "chatml", *, attention: str = "eager", **section: Any) -> LoadedLLM:
    """Return a fresh random model with a tokenizer; further arguments go to the recipe's section."""
    options = {"model": f"tiny-{architecture}", "quantization": "none", "attention": attention, **section}
    made = LoadedLLM(model(architecture, attention=attention), tokenizer(style), LLMSection(**options))
    require_exact(made.model, made.section.model or "")  # as loading does, so that no test counts these passes
    return made


def candidates(count: int, *, first: int = 0) -> tuple[Candidate, ...]:
    """Return candidates in a row, of changing labels; `first` moves them all, so that two calls can differ."""
    labels = ("dog", "cat", "chair")
    return tuple(
        Candidate(Box(10 * i + first, 5 + i, 10 * i + 9 + first, 40 + 2 * i), labels[i % 3], 0.5, "tiny", "detect")
        for i in range(count)
    )


def sample(expression: str, *, image: str = "image-0", number: int = 0) -> Sample:
    """Return a sample without a target on an image of 640 x 480 pixels."""
    return Sample(f"{image}/{number}", f"ref-{number}", image, None, (640, 480), expression, None)


def prompt(expression: str, count: int, *, first: int = 0, number: int = 0) -> Prompt:
    """Return a prompt in the compact format."""
    return render_prompt(sample(expression, number=number), candidates(count, first=first), "compact")


def said(*texts: str, roles: Sequence[str] = ("user", "assistant")) -> Prompt:
    """Return a prompt of these texts; the roles take turns."""
    turns = tuple(Message(roles[i % len(roles)], text) for i, text in enumerate(texts))  # type: ignore[arg-type]
    return Prompt("sample-7", turns, candidates(2), "compact")
