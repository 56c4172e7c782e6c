"""Find the box that an expression describes in one picture.

from llm_wrapper.predict import Wrapper
wrapper = Wrapper.from_recipe(recipe, Path("runs/demo/adapter"))
result = wrapper.predict("photo.jpg", "the man on the left")
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_wrapper import detectors, images, runs
from llm_wrapper.adapter_files import locate
from llm_wrapper.candidates import BuiltCandidates
from llm_wrapper.datasets import Dataset
from llm_wrapper.detections import scenes
from llm_wrapper.detections.scenes import Scene
from llm_wrapper.evaluation import systems
from llm_wrapper.evaluation.systems import Ask
from llm_wrapper.prompts.words import Worder, plain
from llm_wrapper.recipe import Recipe
from llm_wrapper.records import Box, Candidate, Prediction, Sample
from llm_wrapper.training.wording import wording_of

__all__ = ["Result", "Wrapper"]


@dataclass(frozen=True, slots=True)
class Result:
    """The answer for one picture and expression.

    `ranked` holds every candidate with its probability (None where the system gives none), the chosen one first.
    """

    prediction: Prediction
    ranked: tuple[tuple[Candidate, float | None], ...]

    @property
    def box(self) -> Box | None:
        """The chosen box; None where the detector found nothing, or the LLM says that none is meant."""
        return self.prediction.box

    @property
    def probability(self) -> float | None:
        """Probability of the answer among the candidates, and "none of these" where it could be answered."""
        return self.prediction.probability


@dataclass(frozen=True)
class Wrapper:
    """A detector and the LLM that chooses among its boxes.

    `ask` is None for the rule. `word` words the questions; None: by the recipe's format and instruction alone.
    """

    recipe: Recipe
    ask: Ask | None
    word: Worder | None = None

    @classmethod
    def from_run(cls, folder: str | Path) -> Wrapper:
        """Load the detector, LLM and adapter of a finished training run.

        Raises:
            RunError: If the folder is no run.
            ModelError: If it has no adapter yet.
        """
        return cls.from_recipe(runs.recipe_of(Path(folder)), Path(folder) / "adapter")

    @classmethod
    def from_recipe(cls, recipe: Recipe, adapter: Path | str | None = None) -> Wrapper:
        """Load the LLM of a recipe, with an adapter where one is given.

        Args:
            recipe: Its `prompt` must be what the adapter was trained with, unless another wording is tried. Examples
                come from its training split.
            adapter: A folder; as text also a repository of the hub, see `adapter_files.locate`.

        Raises:
            ModelError: If the adapter cannot be found, or does not fit the LLM.
            CacheError: If there are to be examples, and the training split's detections are not cached.
        """
        if recipe.llm.backend == "rule":
            return cls(recipe, None)
        from llm_wrapper.llms.ask import asker

        word = wording_of(recipe).word
        folder = locate(adapter).folder if isinstance(adapter, str) else adapter
        return cls(recipe, asker(recipe.llm, folder, reasoning_tokens=recipe.prompt.reasoning_tokens), word)

    def predict(self, image: str | Path, expression: str) -> Result:
        """Detect, build candidates, ask, decide.

        Args:
            image: Path of a picture in any mode that PIL reads.
            expression: What to find.

        Raises:
            ImageError: If the picture cannot be read.
        """
        sample = _sample(Path(image), expression)
        dataset = Dataset("predict", "predict", [sample], digest="")
        created = detectors.create_all(self.recipe, dataset)
        answers = [detectors.detect_sample(detector, sample) for detector in created]
        built = scenes.build(self.recipe, sample, answers, [detector.name for detector in created])
        return _result(self._decide(Scene(sample, built)), built)

    def _decide(self, scene: Scene) -> Prediction:
        if self.ask is None:
            return systems.by_rule([scene])[0]
        word = self.word or plain(self.recipe.prompt)
        return systems.by_llm([scene], "llm", word, self.ask, prompt=self.recipe.prompt)[0]


def _sample(path: Path, expression: str) -> Sample:
    return Sample(path.stem, path.stem, path.stem, str(path), images.read(path).size, expression, None)


def _result(prediction: Prediction, built: BuiltCandidates) -> Result:
    shares: tuple[float | None, ...] = prediction.probabilities or (None,) * len(built.candidates)
    pairs = zip(built.candidates, shares, strict=True)
    return Result(prediction, tuple(sorted(pairs, key=lambda pair: (pair[0].box != prediction.box, -(pair[1] or 0.0)))))
