"""Measure the memory of a 4-bit load: a random Mixtral on disk, loaded in a fresh process (make bench-memory)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from measurements import run_script, save_measurement
from rich.table import Table
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from llm_wrapper.errors import LLMWrapperError
from llm_wrapper.llms.load import load_model
from llm_wrapper.llms.nf4 import footprint
from llm_wrapper.recipe import LLMSection
from llm_wrapper.terminal import open_console

_NUM_LAYERS = 15
_GB = 1e9


def _config(num_layers: int, width: int) -> Any:
    """Return Mixtral's settings, each dimension a fraction of the real one's, eight experts of which two answer."""
    return transformers.MixtralConfig(
        vocab_size=8 * width,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 256,
        max_position_embeddings=4096,
        architectures=["MixtralForCausalLM"],
        dtype="bfloat16",
    )


def _shapes(config: Any) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """Yield (shard, shapes of its tensors by their names in Mixtral's checkpoints), a layer a shard."""
    hidden, inner = config.hidden_size, config.intermediate_size
    narrow = hidden // config.num_attention_heads * config.num_key_value_heads
    heads = {
        "q_proj": (hidden, hidden),
        "k_proj": (narrow, hidden),
        "v_proj": (narrow, hidden),
        "o_proj": (hidden, hidden),
    }
    parts = {"w1": (inner, hidden), "w2": (hidden, inner), "w3": (inner, hidden)}
    for layer in range(config.num_hidden_layers):
        start = f"model.layers.{layer}"
        shapes: dict[str, tuple[int, ...]] = {f"{start}.self_attn.{key}.weight": shape for key, shape in heads.items()}
        shapes |= {f"{start}.{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
        shapes[f"{start}.block_sparse_moe.gate.weight"] = (config.num_local_experts, hidden)
        for expert in range(config.num_local_experts):
            shapes |= {f"{start}.block_sparse_moe.experts.{expert}.{key}.weight": parts[key] for key in parts}
        yield f"layer-{layer}.safetensors", shapes
    outer = {"model.embed_tokens.weight": (config.vocab_size, hidden), "lm_head.weight": (config.vocab_size, hidden)}
    yield "outer.safetensors", {**outer, "model.norm.weight": (hidden,)}


def _tokenizer() -> Any:
    """Return a tokenizer of two special tokens and the numbers that answers are made of, with a template."""
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, **{str(i): i + 2 for i in range(100)}}, unk_token="<s>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    made.chat_template = "{% for m in messages %}{{ m.content + (' ' if m.role == 'user' else eos_token) }}{% endfor %}"
    return made


def write_random_mixtral(folder: Path, *, num_layers: int = _NUM_LAYERS, width: int = 2048) -> int:
    """Write a random Mixtral in bfloat16, one layer at a time, with a tokenizer; return its size in bytes.

    The default has 3.2 billion parameters: one layer (0.4 GB) is held at a time, and 6.5 GB of disk are taken.
    """
    config = _config(num_layers, width)
    where: dict[str, str] = {}
    num_bytes = 0
    random = torch.Generator().manual_seed(0)
    for shard, shapes in _shapes(config):
        tensors = {
            key: torch.ones(shape, dtype=torch.bfloat16)
            if "norm" in key
            else torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=random)
            for key, shape in shapes.items()
        }
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, shard)
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": num_bytes}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return num_bytes


def _peak() -> int:
    """Return the largest resident size of this process so far, in bytes.

    Linux hands `ru_maxrss` of the process that started this one down to it; the kernel's own mark starts afresh.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        mark = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(mark.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


def measure(folder: Path) -> dict[str, Any]:
    """Load a model in 4 bit on the CPU or GPU at hand, run one forward pass; return sizes in bytes and seconds.

    For a fresh process: peaks of what ran before would count.
    """
    baseline = _peak()
    start = time.perf_counter()
    llm = load_model(LLMSection(model=str(folder), quantization="nf4", dtype="bfloat16"))
    seconds = time.perf_counter() - start
    peak = _peak()
    with torch.inference_mode():
        llm.model(torch.arange(32, device=llm.model.device)[None] % llm.model.config.vocab_size)
    found = footprint(llm.model)
    facts = {key: value for key, value in asdict(found).items() if key != "others"}
    facts |= {"quantized_share": found.quantized_share, "quantized_share_of_all": found.quantized_share_of_all}
    facts |= {"baseline_bytes": baseline, "peak_bytes": peak, "peak_bytes_with_forward": _peak(), "seconds": seconds}
    if torch.cuda.is_available():
        facts["peak_bytes_gpu"] = torch.cuda.max_memory_allocated()
    return facts


def compare(folder: Path, *, num_layers: int = _NUM_LAYERS, width: int = 2048) -> dict[str, Any]:
    """Write a random Mixtral below a folder, load it in 4 bit in a fresh process, delete it; return what was measured.

    Returns:
        The facts of `measure`, `bf16_bytes`, and `ratio`: the peak resident size of the whole process, libraries
        included, during the load / the size of the model in bfloat16.

    Raises:
        LLMWrapperError: If the disk is too small or the load fails.
    """
    needed = 2 * sum(
        torch.Size(shape).numel() for _, shapes in _shapes(_config(num_layers, width)) for shape in shapes.values()
    )
    if (free := shutil.disk_usage(folder).free) < 1.05 * needed:
        raise LLMWrapperError(
            f"{folder} has {free / _GB:.1f} GB free, the model of the benchmark takes {needed / _GB:.1f} GB; "
            "set TMPDIR to a folder on a larger disk"
        )
    home = folder / "random-mixtral"
    home.mkdir(parents=True)
    try:
        num_bytes = write_random_mixtral(home, num_layers=num_layers, width=width)
        done = subprocess.run(
            [sys.executable, __file__, "--folder", str(home)], capture_output=True, text=True, check=False
        )
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if done.returncode:
        raise LLMWrapperError(f"the 4-bit load failed: {done.stderr.strip()[-2000:]}")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    facts |= {"bf16_bytes": num_bytes, "ratio": facts["peak_bytes"] / num_bytes}
    return {
        **facts,
        "ratio_with_forward": facts["peak_bytes_with_forward"] / num_bytes,
    }


def main(
    folder: Annotated[Path | None, typer.Option(hidden=True, help="Load this model and print JSON.")] = None,
) -> None:
    """Write a random Mixtral of 3 B parameters, load it in 4 bit, compare its peak with its 16-bit size."""
    if folder is not None:  # the fresh process that `compare` starts
        print(json.dumps(measure(folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        facts = compare(Path(temporary))
    table = Table("", "", title="4-bit load of a random Mixtral")
    for name, value in facts.items():
        table.add_row(name, value if isinstance(value, str) else f"{value:,.3f}".removesuffix(".000"))
    console = open_console()
    console.print(table)
    save_measurement("memory", {"bf16_bytes": facts["bf16_bytes"]}, facts, console)


if __name__ == "__main__":
    run_script(main)
