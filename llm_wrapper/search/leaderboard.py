"""Rank all prompts of a search by their last measurements; a pure function of the history's rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llm_wrapper.search.history import EvaluatedPrompt, HistoryRow

__all__ = ["Leaderboard"]


class Leaderboard:
    """The last measurement of each prompt, ranked.

    All prompts see the same expressions in the same order, but surely worse ones only the first of them. So prompts are
    ranked by their gain over the seed prompt on the expressions that they saw, ties in order of time. Among complete
    prompts this is the ranking by fitness.

    Args:
        rows: Of a history.
        before: Ignore this round and later ones.
    """

    def __init__(self, rows: Iterable[HistoryRow], before: int | None = None) -> None:
        last: dict[str, EvaluatedPrompt] = {}
        completed: dict[str, EvaluatedPrompt] = {}
        for row in rows:
            if isinstance(row, EvaluatedPrompt) and (before is None or row.iteration < before):
                last[row.prompt] = row  # the place of the first row of a prompt is kept
                if row.verdict == "complete":
                    completed[row.prompt] = row
        self._last = last
        self._completed = list(completed.values())

    @property
    def seed(self) -> EvaluatedPrompt | None:
        """The seed prompt, if it has been measured on everything."""
        return next((row for row in self._completed if row.iteration == 0), None)

    def get(self, prompt: str) -> EvaluatedPrompt | None:
        """Return the last measurement of a prompt, if there is any."""
        return self._last.get(prompt)

    def gain(self, row: EvaluatedPrompt) -> float:
        """Return the gain of a prompt over the seed prompt on the expressions that it saw."""
        seed = self.seed
        known = row.right.count("1") if seed is None else row.right.count("1") - seed.right[: row.n].count("1")
        return known / row.n

    def expected(self, row: EvaluatedPrompt) -> float:
        """Return the fitness of a complete prompt; of others the seed prompt's plus the gain over it."""
        seed = self.seed
        if seed is None or row.verdict == "complete":
            return row.fitness
        return min(1.0, max(0.0, seed.fitness + self.gain(row)))

    def ranked(self) -> list[EvaluatedPrompt]:
        """Return all prompts, the best first."""
        return sorted(self._last.values(), key=self.gain, reverse=True)  # sorting keeps the order of equals

    def complete(self) -> list[EvaluatedPrompt]:
        """Return the prompts measured on everything, the best first."""
        return [row for row in self.ranked() if row.verdict == "complete"]

    def best(self) -> EvaluatedPrompt | None:
        """Return the best prompt measured on everything."""
        return next(iter(self.complete()), None)

    def leaders(self) -> list[EvaluatedPrompt]:
        """Return each prompt that was the best one when it was complete, in order of time."""
        found: list[EvaluatedPrompt] = []
        for row in self._completed:
            if not found or self.gain(row) > self.gain(found[-1]):
                found.append(row)
        return found

    def guides(self) -> tuple[str, str] | None:
        """Return the best prompt and the one that was best before it, to steer from; `None` if there is only one."""
        leaders = self.leaders()
        return (leaders[-1].prompt, leaders[-2].prompt) if len(leaders) > 1 else None

    def extremes(self, most: int) -> tuple[Sequence[EvaluatedPrompt], Sequence[EvaluatedPrompt]]:
        """Return the worst and the best prompts, both from worse to better, at most half of the history each."""
        rising = self.ranked()[::-1]
        half = len(rising) // 2
        num_best, num_worst = min(most, max(1, half)), min(most, half)
        return rising[:num_worst], rising[len(rising) - num_best :] if rising else []
