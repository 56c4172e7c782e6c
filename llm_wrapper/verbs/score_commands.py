"""What `score` does: somebody else's boxes, in the same table, predictions file and JSON as an evaluation leaves.

runs/score/<data>-<name>/   predictions-<split>.parquet  report-<split>.json  report-<split>.md
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from llm_wrapper import artifacts, datasets, runs
from llm_wrapper.errors import DataError
from llm_wrapper.evaluation import foreign
from llm_wrapper.evaluation import predictions as files
from llm_wrapper.evaluation.foreign_boxes import BoxFormat
from llm_wrapper.metrics import Summary, summarize
from llm_wrapper.recipe import DataSection
from llm_wrapper.report import tables
from llm_wrapper.terminal import say

__all__ = ["Job", "score"]


@dataclass(frozen=True)
class Job:
    """Whose boxes to score, and on what.

    Attributes:
        file: See `evaluation.foreign`.
        data: The data set that was asked.
        split: Of that data set.
        name: Of the system, if not by the file.
        box_format: Of the boxes that do not say it themselves.
    """

    file: Path
    data: DataSection
    split: str
    name: str | None = None
    box_format: BoxFormat | None = None


def score(job: Job, console: Console) -> Summary:
    """Compare a file of boxes with the targets of a split, print the table, keep predictions and report.

    Raises:
        DataError: If the split has no box to compare with, or the file does not hold boxes for it.
    """
    split = job.split
    dataset = datasets.load(job.data, split)
    if not any(sample.target for sample in dataset.samples):
        raise DataError(f"{job.data.name} {split} has no box to compare with")
    found = foreign.read(job.file, dataset, name=job.name, box_format=job.box_format)
    summary = summarize(found.predictions)
    if not any(prediction.candidates for prediction in found.predictions):
        summary = replace(summary, oracle_p_at_1=None)  # of no candidate that is known, not 0.0
    system = re.sub(r"[^\w.-]+", "-", summary.system).strip("-")
    folder = runs.ROOT / "score" / f"{job.data.name}-{system}"
    files.save(folder / f"predictions-{split}.parquet", found.predictions)
    facts = {
        "recipe": {"data": job.data.model_dump(mode="json")},
        "split": split,
        "data": [{"name": dataset.name, "split": split, "annotations": dataset.digest}],
        "file": {"name": job.file.name, "digest": artifacts.digest(job.file), "box_format": job.box_format},
        "notes": found.notes,
        "git": artifacts.git_revision(),
        "versions": artifacts.versions(),
    }
    artifacts.write_json(folder / f"report-{split}.json", {"rows": tables.rows([summary]), **facts})
    artifacts.write_atomic(folder / f"report-{split}.md", tables.markdown([summary]))
    console.print(tables.table([summary]))
    for line in [*found.notes, f"kept in {folder}"]:
        say(console, line)
    return summary
