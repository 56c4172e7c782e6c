"""Try a loaded model out with about 20 tokens: does it continue text, and may packs be shared?

[prefix one] and [prefix other] alone    these are right, unless the prefix sees what is behind it
the same, padded to a batch              differs: the model is refused
[prefix one other] in a pack             differs: packs are not shared
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any

import torch

from llm_wrapper.errors import ModelError
from llm_wrapper.llms.packing import (
    FLEX,
    TAKE_MASKS,
    Pack,
    base_of,
    logits_at,
    model_batch,
    pack_tree,
    reason_not_to_share,
)

_log = logging.getLogger(__name__)

_PREFIX, _BRANCH = 6, 7
"""Tokens of the prefix and of each of its two branches; in a pack the second follows the first."""
_ROUNDING = {torch.float32: 1e-4}
_COARSE = 0.05
"""Largest relative difference of logits that rounding explains, of float32 and of shorter types. One row of weights
rounded to bfloat16 is 0.002 off, 32 layers of them 0.01 to 0.03; a branch that sees another is off by half and more."""
_REFUSED = 4
"""A model whose difference is this many times larger, even without sharing, is refused."""

IN_TRIAL: ContextVar[bool] = ContextVar("IN_TRIAL", default=False)
"""Whether a model is being tried out, which no method is charged for."""


@contextmanager
def trial() -> Iterator[None]:
    """Mark the passes of this block as a test of the model."""
    token = IN_TRIAL.set(True)
    try:
        yield
    finally:
        IN_TRIAL.reset(token)


def require_exact(model: Any, name: str) -> None:
    """Try a loaded model out, once, and log where packs are not shared."""
    if reason := reason_not_to_share(base_of(model)):
        _log.info(
            "llm.model=%s: packed questions do not get the scores that they get alone (%s), so every answer goes with "
            "a copy of its prompt: slower, and exact",
            *(name, reason),
        )


def try_out(base: Any) -> str:
    """Return why packs are not exact, empty if they are. The model is left as it was, and no random number is drawn."""
    training = [module for module in base.modules() if module.training]
    own = base.config.get_text_config()._attn_implementation
    base.eval()
    if own == FLEX:  # it needs a compiler
        base.set_attn_implementation("sdpa" if base._supports_sdpa else "eager")
    try:
        with trial(), torch.no_grad():
            return _compare_passes(base)
    finally:
        if own == FLEX:
            base.set_attn_implementation(own)
        for module in training:
            module.training = True


def _compare_passes(base: Any) -> str:
    """Return why a pack does not give the logits that its sequences get alone; ModelError if a batch does not."""
    rows, tolerance = probe_sequences(base.config), rounding_of(base)

    def alone(row: list[int]) -> torch.Tensor:
        ids = torch.tensor([row], device=base.device)
        return base(input_ids=ids, use_cache=False).logits[0].float()  # type: ignore[no-any-return]

    def packed(packs: Sequence[Pack]) -> list[torch.Tensor]:
        """Return the logits of each sequence, computed as scoring computes them."""
        paths = [(row, path) for row, pack in enumerate(packs) for path in pack.paths]
        rows = torch.tensor([row for row, path in paths for _ in path], device=base.device)
        columns = torch.tensor(list(chain.from_iterable(path for _, path in paths)), device=base.device)
        logits = logits_at(base, model_batch(base, packs, 0, multiple=8), rows, columns).float()
        return list(torch.split(logits, [len(path) for _, path in paths]))

    def attempt(forward: Callable[[], list[torch.Tensor]], what: str) -> list[torch.Tensor]:
        try:
            return forward()
        except Exception as error:  # the model's own code: what it may raise is open
            raise model_failure(f"the model fails at {what}", error) from error

    truth = attempt(lambda: [alone(row) for row in rows], "a plain text")

    def largest_error(logits: Sequence[torch.Tensor]) -> float:
        """Return the difference of the sequence that differs most, over its own branch."""
        pairs = zip(logits, truth, strict=True)
        return max(relative_difference(one[_PREFIX:], other[_PREFIX:]) for one, other in pairs)

    if not all(torch.isfinite(logits).all() for logits in truth):
        raise ModelError("the model gives numbers that are not finite for ordinary text; try llm.dtype=float32")
    if (error := relative_difference(truth[0][:_PREFIX], truth[1][:_PREFIX])) > tolerance:
        raise ModelError(
            f"the model's tokens see those behind them (its logits differ by {error:.2g} where the text before is the "
            "same): it fills gaps and does not continue text, so it has no probability of an answer"
        )
    chains = [pack_tree([row], merge=False) for row in rows]
    if (error := largest_error(attempt(lambda: packed(chains), "a padded batch"))) > _REFUSED * tolerance:
        raise ModelError(
            f"the model gives other logits to a padded batch than to its rows alone (relative difference {error:.2g}): "
            "scores would depend on the other questions"
        )
    if base.config.get_text_config()._attn_implementation not in TAKE_MASKS:
        return "flash attention takes no mask of packs"
    tolerance = max(tolerance, 2 * error)
    try:
        error = largest_error(packed([pack_tree(rows, merge=False)]))
    except Exception as failure:  # what a model says to a mask or to positions that it does not take is open
        return f"{type(failure).__name__} from the model"
    return f"relative difference {error:.2g}" if error > tolerance else ""


def model_failure(headline: str, error: Exception) -> ModelError:
    """Return the error to raise where a model's own code fails, with the remedy if memory is short."""
    said = (str(error).splitlines() or [""])[0][:300]
    remedy = "; lower llm.tokens_per_batch" if isinstance(error, torch.OutOfMemoryError) else ""
    return ModelError(f"{headline}: {type(error).__name__}: {said}{remedy}")


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


def relative_difference(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the median over n columns of the relative difference of logits (n, v).

    Not the worst: in a mixture of experts rounding sends single tokens to other experts.
    """
    size = (truth - truth.mean(-1, keepdim=True)).norm(dim=-1).clamp(min=1e-12)
    error = logits - truth
    return float(((error - error.mean(-1, keepdim=True)).norm(dim=-1) / size).nan_to_num(torch.inf).median())
