"""Measure the best prompts on held-out expressions: the winner of many is partly a lucky one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm_wrapper.evaluation import ensemble
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.metrics import codes
from llm_wrapper.recipe.schema import SearchSection
from llm_wrapper.records import Prediction
from llm_wrapper.search.fitness import Fitness, mark_right
from llm_wrapper.search.history import EvaluatedPrompt
from llm_wrapper.search.leaderboard import Leaderboard
from llm_wrapper.statistics import Estimate, difference, estimate, mcnemar
from llm_wrapper.storage import digest_value

__all__ = ["ConfirmedPrompt", "confirm_prompts"]

_NUM_MEMBERS = 3
"""GLOV's result is the ensemble of the best three."""


@dataclass(frozen=True, slots=True)
class ConfirmedPrompt:
    """A prompt, or an ensemble of some, on the second slice.

    Attributes:
        name: `seed`, `best 1`, .., or how an ensemble decides.
        row: Its measurement on the first slice; `None` for an ensemble.
        fitness: Share right on the second slice, with its interval.
        gain: Over the seed prompt there, paired.
        p_value: McNemar's, of the same pairs.
    """

    name: str
    row: EvaluatedPrompt | None
    fitness: Estimate
    gain: Estimate
    p_value: float | None

    @property
    def drop(self) -> float | None:
        """Fitness on the first slice minus that on the second; `None` for an ensemble."""
        if self.row is None or self.fitness.value is None:
            return None
        return self.row.fitness - self.fitness.value

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON values; shares in 0..1."""
        row = self.row
        return {
            "name": self.name,
            "prompt": row.prompt if row else None,
            "iteration": row.iteration if row else None,
            "search": {"fitness": row.fitness, "interval": row.interval, "n": row.n} if row else None,
            "confirm": _plain(self.fitness),
            "drop": self.drop,
            "gain_over_seed": {**_plain(self.gain), "p_value": self.p_value},
        }


def confirm_prompts(
    section: SearchSection, fitness: Fitness, places: Sequence[int], leaderboard: Leaderboard, folder: Path
) -> list[ConfirmedPrompt]:
    """Measure the seed prompt, the best three, and their ensemble, on the second slice.

    Predictions are kept in `folder` as `confirmed-<digest>.parquet`, and read from there the next time.

    Args:
        section: Says what is right and how the ensemble decides; without probabilities it votes.
        fitness: Measures the prompts.
        places: The second slice.
        leaderboard: Of the whole search.
        folder: Of the search.
    """
    seed = leaderboard.seed
    best = leaderboard.complete()[:_NUM_MEMBERS]
    assert seed is not None  # a search begins with it
    made = {row.prompt: _predict_once(fitness, row.prompt, places, folder) for row in [seed, *best]}
    rows: list[tuple[str, EvaluatedPrompt | None, Sequence[Prediction]]] = [("seed", seed, made[seed.prompt])]
    rows += [(f"best {rank}", row, made[row.prompt]) for rank, row in enumerate(best, start=1)]
    if section.target == "instruction" and len(best) > 1:
        name, combine = _way(section.ensemble, made[best[0].prompt])
        parts = [made[row.prompt] for row in best]
        rows.append((f"{name} of the best {len(best)}", None, combine(parts, name)))
    return [_judged(name, row, (found, made[seed.prompt]), section.fitness) for name, row, found in rows]


def _way(
    wanted: Literal["mean", "vote"], found: Sequence[Prediction]
) -> tuple[str, Callable[[Sequence[Sequence[Prediction]], str], list[Prediction]]]:
    if wanted == "mean" and any(each.probabilities is not None for each in found):
        return "mean", ensemble.average
    return "vote", ensemble.vote


def _predict_once(fitness: Fitness, prompt: str, places: Sequence[int], folder: Path) -> list[Prediction]:
    path = folder / f"confirmed-{digest_value(prompt)[:12]}.parquet"
    if not path.exists():
        files.save_predictions(path, fitness.predictions(prompt, places))
    return files.load_predictions(path)


def _judged(
    name: str,
    row: EvaluatedPrompt | None,
    found: tuple[Sequence[Prediction], Sequence[Prediction]],
    kind: Literal["p_at_1", "oracle"],
) -> ConfirmedPrompt:
    own, seed = (mark_right(each, kind) for each in found)
    images = codes(each.image_id for each in found[0])
    return ConfirmedPrompt(
        name=name,
        row=row,
        fitness=estimate(own, images),
        gain=difference(own, seed, images),
        p_value=mcnemar(own, seed).p_value,
    )


def _plain(found: Estimate) -> dict[str, Any]:
    return {"value": found.value, "interval": None if found.ci is None else list(found.ci), "n": found.n}
