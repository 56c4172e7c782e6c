"""Talk2Car: commands to a self-driving car, each about one object in nuScenes' front camera image.

`<root>/commands/<split>_commands.json`, as `data/` of github.com/talk2car/Talk2Car has it, holds {"scene_tokens",
"commands"}; boxes are xywh pixels. The images, `<root>/images/img_<split>_<number>.jpg`, are one copy per command, so
commands about one frame have images of different names: the frame (`sample_token`) is the image here, and its first
command's file the picture of all. Read there: talk2car.py, baseline/dataset.py, data/README.md, and the files of val
and test. The test commands have boxes today; where they have none, the target is unknown. Not verified: the training
file.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field

from llm_wrapper import readers
from llm_wrapper.datasets import rows
from llm_wrapper.datasets.base import Dataset, digest_files, image_file, image_folder
from llm_wrapper.datasets.rows import Collector
from llm_wrapper.errors import DataError, listed
from llm_wrapper.records import Sample
from llm_wrapper.storage import folder_name

__all__ = ["load_talk2car"]

_IMAGE_WH = (1600, 900)
"""Of every nuScenes camera; the toolbox cuts its boxes to it."""

_ENDING = "_commands.json"


class _Command(BaseModel):
    command: str
    command_token: rows.Id
    sample_token: rows.Id
    t2c_img: str
    obj_name: str | None = None
    box_token: rows.Id | None = None
    box_xywh: rows.FourNumbers | None = Field(None, alias="2d_box")


def load_talk2car(root: Path, split: str, *, images: str | Path | None = None) -> Dataset:
    """Read one split of Talk2Car: one sample per command; `kind` is the object's nuScenes class.

    Args:
        root: The folder `data` of the Talk2Car repository, or a copy of it.
        split: `train`, `val` or `test`.
        images: The folder of the image files; `<root>/images` by default, if there is one.

    Raises:
        DataError: If the split does not exist (those that do are named), if the file is damaged, if the boxes are not
            xywh, or if most commands cannot be used.
    """
    path = _path(root, split)
    folder = image_folder(root, images)
    collector = Collector(str(path), "xywh")
    first_files: dict[str, str] = {}
    for number, raw in enumerate(_commands(path)):
        where = f"command {number}"
        command = collector.skipped.validate_row(_Command, raw, where)
        if command is None:
            continue
        file_name = first_files.setdefault(command.sample_token, command.t2c_img)
        target = None if command.box_xywh is None else collector.box(where, command.box_xywh, _IMAGE_WH)
        if target is None and command.box_xywh is not None:
            continue
        sample = Sample(
            sample_id=command.command_token,
            ref_id=command.box_token or command.command_token,
            image_id=command.sample_token,
            image_path=str(image_file(folder, file_name)) if folder else None,
            image_wh=_IMAGE_WH,
            expression=command.command,
            target=target,
            kind=command.obj_name,
        )
        collector.file_names[sample.image_id] = file_name
        collector.add(where, sample)
    return collector.dataset("talk2car", split, digest_files([path]))


def _path(root: Path, split: str) -> Path:
    folder_name(split, "the split")
    path = root / "commands" / f"{split}{_ENDING}"
    if not path.is_file():
        existing = sorted(found.name.removesuffix(_ENDING) for found in path.parent.glob(f"*{_ENDING}"))
        raise DataError(
            f"{path} does not exist. The splits there are: {', '.join(existing) or 'none'}. Ask for one of them, or "
            "clone https://github.com/talk2car/Talk2Car and set data.root to its folder data."
        )
    return path


def _commands(path: Path) -> list[object]:
    content = readers.read_json(path, nan=True)
    commands = content.get("commands") if isinstance(content, dict) else None
    if not isinstance(commands, list) or not commands:
        problem = "it must be an object whose 'commands' is a list of at least one command"
        raise DataError(listed(f"{path} is no file of Talk2Car commands", [problem]))
    return commands
