"""Ask tiny random models of every family the way a real one is asked, and compare the scores with plain passes.

    make families                 all of them, a table on standard output (about 6 minutes on 2 cores)
    make families ARGS="gpt-oss mamba"     some of them

A model that is refused with a ModelError is right, one that answers is right if its scores are those of one plain pass
of the model for each sequence; anything else is wrong or a traceback, and the exit status is 1. A column is a function
of a loaded model, so more of them can be added to COLUMNS.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import transformers
from family_models import FAMILIES, Family, build
from training_cells import training_cell

from llm_wrapper.errors import ModelError
from llm_wrapper.llms.load import LoadedLLM, load_model
from llm_wrapper.llms.local import generate, score_prompts
from llm_wrapper.llms.packing import can_share_prefixes
from llm_wrapper.prompts.render import render_prompt
from llm_wrapper.recipe.schema import LLMSection
from llm_wrapper.records import Box, Candidate, Prompt, Sample

TOLERANCE = 1e-4
"""Of a probability and of the logarithm of the mass, in float32."""


def questions() -> list[Prompt]:
    """Two expressions of one image, which share their prefix, and one of another, with more than ten candidates."""
    rows = [("the left dog", 3, 0), ("the dog at the right", 3, 0), ("a cat", 12, 50)]
    return [_question(text, count, first, number) for number, (text, count, first) in enumerate(rows)]


def _question(text: str, count: int, first: int, number: int) -> Prompt:
    labels = ("dog", "cat", "chair")
    candidates = tuple(
        Candidate(Box(10 * i + first, 5 + i, 10 * i + 9 + first, 40 + 2 * i), labels[i % 3], 0.5, "tiny", "detect")
        for i in range(count)
    )
    sample = Sample(f"image/{number}", f"ref-{number}", "image", None, (640, 480), text, None)
    return render_prompt(sample, candidates, "compact")


@torch.no_grad()
def plain_scores(llm: LoadedLLM, prompt: Prompt) -> torch.Tensor:
    """Return the log-probability of each answer by one plain pass for each: no mask, no positions, nothing shared."""
    head, sums = llm.encoder.encode(prompt), []
    for index in range(prompt.num_answers):
        completion = llm.encoder.completion(index)
        logits = llm.model(torch.tensor([[*head, *completion]])).logits[0].double().log_softmax(dim=-1)
        sums.append(sum(float(logits[len(head) + n - 1, token]) for n, token in enumerate(completion)))
    return torch.tensor(sums, dtype=torch.float64)


def score_error(llm: LoadedLLM) -> float:
    """Return the largest difference of a probability, or of a mass relative to itself."""
    prompts, worst = questions(), 0.0
    for place, answer in score_prompts(llm, prompts):
        assert answer.probabilities is not None
        assert answer.mass is not None
        truth = plain_scores(llm, prompts[place])
        worst = max(worst, float((torch.tensor(answer.probabilities) - truth.softmax(0)).abs().max()))
        worst = max(worst, abs(answer.mass / max(float(truth.exp().sum()), 1e-300) - 1))
    return worst


def error_cell(llm: LoadedLLM) -> tuple[str, bool]:
    """Return the worst error of a score, and whether it is right."""
    error = score_error(llm)
    return f"{error:.0e}" + ("" if error <= TOLERANCE else " WRONG"), error <= TOLERANCE


def shared_cell(llm: LoadedLLM) -> tuple[str, bool]:
    """Return whether packs are shared at the length of a typical one."""
    longest = max(len(llm.encoder.encode(prompt)) for prompt in questions()) + 60
    return ("yes" if can_share_prefixes(llm.model, longest) else "no"), True


def constant_cell(llm: LoadedLLM) -> tuple[str, bool]:
    """Return the completion of 7, which is its number and the end of the turn."""
    text = llm.tokenizer.decode(llm.encoder.completion(7))
    return repr(text), text.strip().startswith("7")


def generate_cell(llm: LoadedLLM) -> tuple[str, bool]:
    """Return whether a batch generates what each prompt gets alone."""
    prompts = questions()
    together = dict(generate(llm, prompts))
    alone = [next(generate(llm, [prompt]))[1] for prompt in prompts]
    same = sum(together[place].text == answer.text for place, answer in enumerate(alone))
    return f"{same} of {len(prompts)}", same == len(prompts)


Column = Callable[[LoadedLLM], tuple[str, bool]]

ASKING: dict[str, Column] = {
    "answer 7": constant_cell,
    "shared": shared_cell,
    "worst error": error_cell,
    "batch = alone": generate_cell,
}
COLUMNS: dict[str, Column] = {
    **ASKING,
    "TRAIN=default": training_cell("default"),
    "TRAIN=paper": training_cell("paper"),
}


def row_of(family: Family, columns: Mapping[str, Column] = COLUMNS) -> tuple[list[str], bool]:
    """Return the cells of a family, and whether all of them are right."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            build(family, Path(folder))
        except Exception as error:  # a configuration that this file has wrong
            return [f"not built: {type(error).__name__}: {str(error).splitlines()[0][:90]}"], False
        try:
            llm = load_model(LLMSection(model=folder, dtype="float32", quantization="none", max_new_tokens=4))
        except ModelError as error:
            said = str(error).splitlines()[0].replace(folder, "..")
            return [f"refused: {said[:110]}"], family.refused
        cells = [column(llm) for column in columns.values()]
    return ["loads", *(text for text, _ in cells)], all(right for _, right in cells) and not family.refused


def main(names: Sequence[str]) -> int:
    """Print a row for each family; return the number of families that are wrong."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    wrong = []
    print("| family | state | " + " | ".join(COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for name, family in FAMILIES.items():
        if names and not any(wanted in name for wanted in names):
            continue
        try:
            cells, right = row_of(family)
        except Exception as error:  # what must not happen: it is counted
            where = traceback.extract_tb(error.__traceback__)[-1]
            cells = [
                f"TRACEBACK {type(error).__name__}: {str(error)[:80]} ({Path(where.filename).name}:{where.lineno})"
            ]
            right = False
        wrong += [] if right else [name]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print(f"\n{len(wrong)} wrong: {', '.join(wrong) or 'none'}")
    return int(bool(wrong))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of names of families")
    sys.exit(main(parser.parse_args().names))
