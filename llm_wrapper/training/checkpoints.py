"""Find, verify and remove the checkpoints that a killed training resumes from.

checkpoints/checkpoint-<step>/   adapter_model.safetensors  optimizer.pt  scheduler.pt  rng_state.pth
                                 trainer_state.json  written last by the trainer
                                 sha256.json         digests of all these, written after that
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import safetensors

from llm_wrapper import readers, runs, storage
from llm_wrapper.errors import DataError, LLMWrapperError, RunError, shell_word
from llm_wrapper.runs import step_of

_log = logging.getLogger(__name__)
_STATE = "trainer_state.json"
"""Written last by the trainer, so that an incomplete checkpoint has none, or one that is no JSON."""
_DIGESTS = "sha256.json"
_NAME = re.compile(r"checkpoint-[0-9]{1,12}")


def find_checkpoints(folder: Path) -> list[Path]:
    """Return the folders that the trainer named as checkpoints."""
    return [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]


def find_last_complete(folder: Path) -> Path | None:
    """Return the complete checkpoint of the highest step, if there is one."""
    for checkpoint in sorted(find_checkpoints(folder), key=step_of, reverse=True):
        with suppress(DataError):
            state = readers.read_json(checkpoint / _STATE, most=readers.GIB, nan=True)
            if isinstance(state, dict) and state.get("global_step") == step_of(checkpoint):
                return checkpoint
    return None


def remove_after(folder: Path, step: int) -> None:
    """Remove checkpoints after a step: nothing resumes from them, and they may have filled the disk."""
    for path in find_checkpoints(folder):
        if step_of(path) > step:
            shutil.rmtree(path, ignore_errors=True)


def write_digests(checkpoint: Path) -> None:
    """Write the digests of all files of a complete checkpoint."""
    names = sorted(path.name for path in checkpoint.iterdir() if path.is_file() and path.name != _DIGESTS)
    storage.write_json(checkpoint / _DIGESTS, runs.digests_of(checkpoint, names))


def verify_checkpoint(checkpoint: Path) -> None:
    """Refuse a changed or damaged checkpoint, with the command that removes it (RunError)."""
    from transformers import TrainerState

    with explain_resume_errors(checkpoint):
        TrainerState.load_from_json(str(checkpoint / _STATE))
        if not (checkpoint / _DIGESTS).is_file():
            _log.info("%s has no digests: whether its files are as written is not checked", checkpoint)
            return
        digests = readers.read_json(checkpoint / _DIGESTS, most=readers.MIB)
        now = runs.digests_of(checkpoint, sorted(digests))
        wrong = [name for name in sorted(digests) if now.get(name) != digests[name]]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: changed, damaged or removed since it was written")


@contextmanager
def explain_resume_errors(checkpoint: Path) -> Iterator[None]:
    """Replace the many errors of torch, safetensors and pickle about a damaged file by one RunError."""
    try:
        yield
    except Exception as error:
        is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if is_memory or (isinstance(error, LLMWrapperError) and not isinstance(error, DataError)):
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise RunError(
            f"{checkpoint} cannot be resumed from ({type(error).__name__}: {reason}). Remove it, and resume from the "
            f"checkpoint before it: rm -r {shell_word(checkpoint)} && {runs.resume_command(_run_of(checkpoint))}"
        ) from error


@contextmanager
def explain_save_errors(folder: Path) -> Iterator[None]:
    """Replace the many errors of a full disk by one RunError, and refuse to write a checkpoint through a link."""
    if folder.is_symlink():
        raise RunError(
            f"{folder} is a link and would be written through: remove it, then: {runs.resume_command(_run_of(folder))}"
        )
    try:
        with explain_disk_full(folder):
            yield
    except (OSError, safetensors.SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{folder} cannot be written ({reason}). Is its disk full? {_remedy(folder)}") from error


def explain_disk_full(folder: Path) -> AbstractContextManager[None]:
    """Replace the error of a full disk, raised by any library, by one that names the run's command."""
    return storage.explaining_full_disk(folder, _remedy(folder))


def _remedy(folder: Path) -> str:
    return f"Free space, then resume from the last checkpoint: {runs.resume_command(_run_of(folder))}"


def _run_of(folder: Path) -> Path:
    if folder.parent.name in ("checkpoints", "adapters"):
        return folder.parents[1]
    return folder.parent if folder.name == runs.ADAPTER else folder
