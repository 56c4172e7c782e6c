"""Send packs through a model, and test by experiment whether packed sequences see what they would see alone.

    packs -> batch (ids, positions, who sees whom) -> the model's own forward pass -> logits at the wanted columns

    self-test   [prefix one] and [prefix other] alone    these are right, unless the prefix sees what is behind it
                the same, padded to a batch              differs: the model is refused
                [prefix one other] in a pack             differs: packs are not shared

Windows of attention are read from the model's settings, since they are longer than a trial.
"""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import torch

from llm_wrapper.errors import ModelError
from llm_wrapper.llms.packing import Pack, block_mask, collate, pack_tree

__all__ = [
    "additive_mask",
    "attention_mask",
    "base_of",
    "can_share_prefixes",
    "is_trial",
    "logits_at",
    "model_batch",
    "model_failure",
    "probe_sequences",
    "relative_difference",
    "require_exact",
    "rounding_of",
    "takes_blocks",
    "trial",
]

_log = logging.getLogger(__name__)

_FLEX = "flex_attention"
_TAKE_MASKS = {"eager", "sdpa", _FLEX}
_GLOBAL = {"full_attention", "global"}
_LOCAL = {"sliding_attention", "chunked_attention", "local"}
_WINDOW = re.compile(r"(?:^|_)(?:window|window_size|attention_chunk_size|local_attention)$")

_PREFIX, _BRANCH = 6, 7
"""Tokens of the self-test's prefix and of each of its two branches; in a pack the second follows the first."""
_PADDED = 8
_ROUNDING = {torch.float32: 1e-4}
_COARSE = 0.05
"""Largest relative difference of logits that rounding explains, of float32 and of shorter types. One row of weights
rounded to bfloat16 is 0.002 off, 32 layers of them 0.01 to 0.03; a branch that sees another is off by half and more."""
_REFUSED = 4
"""A model whose difference is this many times larger, even without sharing, is refused."""


def base_of(model: Any) -> Any:
    """Return the model itself without PEFT's wrapping; adapters of its layers stay in it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


# --- what goes in and comes out --------------------------------------------------------------------------------------


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Turn a boolean mask (True: may look) into what eager and SDPA attention add to their logits."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)


def attention_mask(model: Any, packs: Sequence[Pack], visible: torch.Tensor) -> torch.Tensor:
    """Return the mask that a model takes for collated packs: (b, 1, t, t) and additive, or (b, t) of zeros and ones.

    Plain sequences, padded on the right, need two dimensions alone: then the model puts its own window on them, which
    it would not put on four, and SDPA may take its fast kernels.

    Args:
        model: It gives the type of an additive mask.
        packs: Those of the batch.
        visible: Of `collate`, (b, 1, t, t).
    """
    if any(not pack.is_plain for pack in packs):
        return additive_mask(visible, model.dtype)
    return _lengths_mask(packs, visible.shape[-1], visible.device)


def _lengths_mask(packs: Sequence[Pack], width: int, device: torch.device) -> torch.Tensor:
    lengths = torch.tensor([len(pack) for pack in packs], device=device)
    return (torch.arange(width, device=device) < lengths[:, None]).long()


def model_batch(model: Any, packs: Sequence[Pack], pad_token_id: int) -> dict[str, Any]:
    """Return a model's arguments for packs, on its device.

    plain packs      attention_mask (b, t) of zeros and ones: the model adds its own window, SDPA its fast kernels
    other packs      attention_mask (b, 1, t, t), added to the logits: 0 where q sees k, else the lowest number
    flex attention   a block mask
    """
    takes, is_plain = takes_blocks(model), all(pack.is_plain for pack in packs)
    collated = collate(packs, pad_token_id, dense=not takes and not is_plain)
    batch: dict[str, Any] = {key: value.to(model.device) for key, value in collated.items()}
    ends = batch.pop("ends", None)
    if takes:
        return {**batch, "attention_mask": block_mask(ends)}
    if is_plain:
        return {**batch, "attention_mask": _lengths_mask(packs, batch["input_ids"].shape[1], model.device)}
    return {**batch, "attention_mask": additive_mask(batch["attention_mask"], model.dtype)}


def logits_at(model: Any, batch: dict[str, Any], rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return the logits (n, vocabulary) of n (row, column) pairs, by the model's own forward pass.

        hidden (b, t, d) --hook on the output layer--> hidden[rows, columns] (1, n, d) -> logits (1, n, vocabulary)

    Only these go through the output layer: `logits_to_keep` takes the same columns of all rows, which would be several
    times as many, and some models lack it. Everything the model does around that layer (scales, caps) stays as it is.

    Args:
        model: Without PEFT's wrapping.
        batch: Its arguments.
        rows: Of shape (n,), on the model's device.
        columns: Of shape (n,), counted in the outputs: learned tokens in the row come first.
    """
    picked = []

    def pick(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or args[0].ndim != 3:
            return None
        picked.append(True)
        return (args[0][rows, columns][None], *args[1:])

    head = model.get_output_embeddings()
    handle = None if head is None else head.register_forward_pre_hook(pick)
    try:
        logits: torch.Tensor = model(**batch, use_cache=False).logits
    finally:
        if handle:
            handle.remove()
    return logits[0] if picked else logits[rows, columns]


# --- what may be shared ----------------------------------------------------------------------------------------------


def can_share_prefixes(model: Any, longest: int) -> bool:
    """Tell whether packed sequences see what they would see alone.

    They do not with flash attention, which takes no mask; where attention is local and a pack is longer than the window
    (which counts columns, or is not applied to a mask of packs at all); and where the self-test found another reason:
    positions that are not read from `position_ids`, or a state that runs along the row.

    Args:
        model: With or without an adapter. One without weights (on the meta device) is believed.
        longest: Tokens of the longest pack, 1 if it is not known yet: then windows are thought wide enough.
    """
    base = base_of(model)
    config = base.config.get_text_config()
    window = _window(config)
    if config._attn_implementation not in _TAKE_MASKS:
        return False
    if window is not None and (longest >= window or config._attn_implementation == _FLEX):
        return False
    return base.device.type == "meta" or _verdict(base).shares


def takes_blocks(model: Any) -> bool:
    """Tell whether packs go into the model with the mask of `packing.block_mask`, and none of (b, 1, t, t)."""
    return base_of(model).config.get_text_config()._attn_implementation == _FLEX and can_share_prefixes(model, 1)


def _window(config: Any) -> int | None:
    """Return how far back the most local layer of a text model looks; None if all layers see all, 0 if unknown."""
    kinds = {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "attention_layers", None) or ())}
    if kinds and kinds <= _GLOBAL:
        return None
    sizes = [
        value
        for name, value in vars(config).items()
        if _WINDOW.search(name) and isinstance(value, int) and not isinstance(value, bool) and value > 0
    ]
    if kinds - _GLOBAL - _LOCAL or (kinds and not sizes):
        return 0
    return min(sizes, default=None)


# --- the self-test ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Whether packs are exact, and why not."""

    shares: bool
    reason: str = ""


_in_trial: ContextVar[bool] = ContextVar("_in_trial", default=False)


@contextmanager
def trial() -> Iterator[None]:
    """Mark the passes of this block as a test of the model, which no method is charged for."""
    token = _in_trial.set(True)
    try:
        yield
    finally:
        _in_trial.reset(token)


def is_trial() -> bool:
    """Tell whether a model is being tried out, see `trial`."""
    return _in_trial.get()


_VERDICTS: weakref.WeakKeyDictionary[torch.nn.Module, _Verdict] = weakref.WeakKeyDictionary()


def require_exact(model: Any, name: str) -> None:
    """Try a loaded model out with about 20 tokens, once: does it continue text, and may packs be shared?

    Nothing of the model is changed, and no random number is drawn.

    Raises:
        ModelError: If its own forward pass fails, sees later tokens, or gives other scores for a padded batch.
    """
    verdict = _verdict(base_of(model))
    if not verdict.shares:
        _log.info(
            "llm.model=%s: packed questions do not get the scores that they get alone (%s), so every answer goes with "
            "a copy of its prompt: slower, and exact",
            *(name, verdict.reason),
        )


def _verdict(base: Any) -> _Verdict:
    if base not in _VERDICTS:
        with _at_rest(base), trial(), torch.no_grad():
            _VERDICTS[base] = _tried(base)
    return _VERDICTS[base]


@contextmanager
def _at_rest(base: Any) -> Iterator[None]:
    """Put a model into evaluation mode, with an attention that needs no compiler, and restore it afterwards."""
    training = [module for module in base.modules() if module.training]
    own = base.config.get_text_config()._attn_implementation
    base.eval()
    if own == _FLEX:
        base.set_attn_implementation("sdpa" if base._supports_sdpa else "eager")
    try:
        yield
    finally:
        if own == _FLEX:
            base.set_attn_implementation(own)
        for module in training:
            module.training = True


def rounding_of(model: Any) -> float:
    """Return the relative difference of logits that rounding explains."""
    return _ROUNDING.get(model.dtype, _COARSE)


def probe_sequences(config: Any) -> list[list[int]]:
    """Return two sequences of ordinary tokens, of one length, that share their beginning."""
    text = config.get_text_config()
    named = [value for each in (config, text) for key, value in vars(each).items() if key.endswith("token_id")]
    special = {token for value in named for token in (value if isinstance(value, list) else [value])}
    count, size = _PREFIX + 2 * _BRANCH, int(text.vocab_size)
    usable = (token for token in (5 + 11 * number for number in range(size)) if token not in special)
    ids = [next(usable) % size for _ in range(count)]
    return [ids[:-_BRANCH], [*ids[:_PREFIX], *ids[-_BRANCH:]]]


def _tried(base: Any) -> _Verdict:
    rows = probe_sequences(base.config)
    tolerance = rounding_of(base)

    def alone(row: list[int]) -> torch.Tensor:
        ids = torch.tensor([row], device=base.device)
        return base(input_ids=ids, use_cache=False).logits[0].float()  # type: ignore[no-any-return]

    truth = _attempt(lambda: [alone(row) for row in rows], "a plain text")
    if not all(torch.isfinite(logits).all() for logits in truth):
        raise ModelError("the model gives numbers that are not finite for ordinary text; try llm.dtype=float32")
    if (error := relative_difference(truth[0][:_PREFIX], truth[1][:_PREFIX])) > tolerance:
        raise ModelError(
            f"the model's tokens see those behind them (its logits differ by {error:.2g} where the text before is the "
            "same): it fills gaps and does not continue text, so it has no probability of an answer"
        )
    chains = [pack_tree([row], merge=False) for row in rows]
    padded = _attempt(lambda: _outputs(base, chains), "a padded batch")
    if (error := _largest(padded, truth)) > _REFUSED * tolerance:
        raise ModelError(
            f"the model gives other logits to a padded batch than to its rows alone (relative difference {error:.2g}): "
            "scores would depend on the other questions"
        )
    fault = _pack_fault(base, rows, truth, max(tolerance, 2 * error))
    return _Verdict(not fault, fault)


def _pack_fault(base: Any, rows: Sequence[list[int]], truth: Sequence[torch.Tensor], tolerance: float) -> str:
    """Return why a pack does not give the logits that its sequences get alone; nothing if it does."""
    if base.config.get_text_config()._attn_implementation not in _TAKE_MASKS:
        return "flash attention takes no mask of packs"
    try:
        error = _largest(_outputs(base, [pack_tree(rows, merge=False)]), truth)
    except Exception as failure:  # what a model says to a mask or to positions that it does not take is open
        return f"{type(failure).__name__} from the model"
    return f"relative difference {error:.2g}" if error > tolerance else ""


def _attempt(forward: Callable[[], list[torch.Tensor]], what: str) -> list[torch.Tensor]:
    try:
        return forward()
    except Exception as error:  # the model's own code: what it may raise is open
        raise model_failure(f"the model fails at {what}", error) from error


def model_failure(headline: str, error: Exception) -> ModelError:
    """Return the error to raise where a model's own code fails, with the remedy if memory is short."""
    said = (str(error).splitlines() or [""])[0][:300]
    remedy = "; lower llm.tokens_per_batch" if isinstance(error, torch.OutOfMemoryError) else ""
    return ModelError(f"{headline}: {type(error).__name__}: {said}{remedy}")


def _outputs(base: Any, packs: Sequence[Pack]) -> list[torch.Tensor]:
    """Return the logits of each packed sequence, through the road of scoring."""
    collated = collate(packs, 0, multiple=_PADDED)
    batch: dict[str, Any] = {key: value.to(base.device) for key, value in collated.items()}
    batch["attention_mask"] = attention_mask(base, packs, batch["attention_mask"])
    where = [[(row, column) for column in path] for row, pack in enumerate(packs) for path in pack.paths]
    rows, columns = (torch.tensor(each, device=base.device) for each in zip(*chain.from_iterable(where), strict=True))
    logits = logits_at(base, batch, rows, columns).float()
    ends = list(accumulate(map(len, where)))
    return [logits[end - len(path) : end] for end, path in zip(ends, where, strict=True)]


def _largest(logits: Sequence[torch.Tensor], truth: Sequence[torch.Tensor]) -> float:
    """Return the difference of the sequence that differs most, over its own branch."""
    return max(relative_difference(one[_PREFIX:], other[_PREFIX:]) for one, other in zip(logits, truth, strict=True))


def relative_difference(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the median over n columns of the relative difference of logits (n, v).

    Not the worst: in a mixture of experts rounding sends single tokens to other experts.
    """
    size = (truth - truth.mean(-1, keepdim=True)).norm(dim=-1).clamp(min=1e-12)
    error = logits - truth
    return float(((error - error.mean(-1, keepdim=True)).norm(dim=-1) / size).nan_to_num(torch.inf).median())
