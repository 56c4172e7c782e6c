"""Data sets with one long expression a row: HC-RefLoCo, Ref-L4 and Talk2Car.

*HC-RefLoCo*, `Jinjing713/HC-RefLoCo`, 13,360 + 31,378 long expressions about people: the card's example row, and
hc_refloco/{dataloader,evaluation}.py of ZhaoJingjing713/HC-RefLoCo. Not verified: the types of the columns in the
Parquet files, and the values of `source_dataset` other than coco2017.

*Ref-L4*, `JierunChen/Ref-L4`, 13,420 + 31,921 long expressions: the card's example row and table of columns, and
ref_l4/{dataloader,evaluation}.py of JierunChen/Ref-L4. Its published average over classes first maps the COCO
categories to those of Objects365 (`mapping_dict` there); `kind` here is the category before that.

Both have boxes as xywh pixels, no training split, and images in `images.tar.gz`, whose members are named as `file_name`
says: unpack it into `<root>/images`. The split `all` is val and test together.

*Talk2Car*: commands to a self-driving car, each about one object in nuScenes' front camera image.
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
from llm_wrapper.datasets.base import (
    Collector,
    Dataset,
    FourNumbers,
    Id,
    Side,
    digest_files,
    image_file,
    image_folder,
    require_file,
)
from llm_wrapper.datasets.hub import HubRow, collect_hub_dataset, find_split_files, read_hub_rows
from llm_wrapper.errors import DataError, listed
from llm_wrapper.records import Sample
from llm_wrapper.storage import folder_name

_IMAGE_WH = (1600, 900)
"""Of every nuScenes camera; the toolbox cuts its boxes to it."""

_ENDING = "_commands.json"


class _LongRow(HubRow):
    id: Id
    caption: str
    bbox: FourNumbers
    width: Side
    height: Side
    file_name: str


class _Label(BaseModel):
    category: str


class _HCRefLoCoRow(_LongRow):
    labels: list[_Label] | None = None
    source_dataset: str | None = None

    @property
    def ref_key(self) -> str:
        """The image and box of the object, which has no id."""
        return f"{self.file_name} {' '.join(f'{value:g}' for value in self.bbox)}"

    @property
    def image_key(self) -> str:
        """COCO's number of its images, so that leaks between data sets are found."""
        stem = Path(self.file_name).stem
        is_coco = "coco" in (self.source_dataset or "").lower() and stem.isdecimal()
        return str(int(stem)) if is_coco else self.file_name

    @property
    def tag(self) -> str | None:
        return " + ".join(sorted({label.category for label in self.labels or ()})) or None


class _RefL4Row(_LongRow):
    image_id: Id
    bbox_id: Id
    ori_category_id: str | None = None

    @property
    def ref_key(self) -> str:
        return self.bbox_id

    @property
    def image_key(self) -> str:
        return self.image_id.removeprefix("coco_")

    @property
    def tag(self) -> str | None:
        return self.ori_category_id


class _Command(BaseModel):
    command: str
    command_token: Id
    sample_token: Id
    t2c_img: str
    obj_name: str | None = None
    box_token: Id | None = None
    box_xywh: FourNumbers | None = Field(None, alias="2d_box")


def load_talk2car(root: Path, split: str, *, images: str | Path | None = None) -> Dataset:
    """Read one split of Talk2Car: one sample per command; `kind` is the object's nuScenes class.

    `root` is the folder `data` of the Talk2Car repository, or a copy of it; `images` are in `<root>/images` by default.
    """
    folder_name(split, "the split")
    path = root / "commands" / f"{split}{_ENDING}"
    existing = sorted(found.name.removesuffix(_ENDING) for found in path.parent.glob(f"*{_ENDING}"))
    remedy = (
        f"The splits there are: {', '.join(existing) or 'none'}. Ask for one of them, or clone "
        "https://github.com/talk2car/Talk2Car and set data.root to its folder data."
    )
    content = readers.read_json(require_file(path, remedy), nan=True)
    commands = content.get("commands") if isinstance(content, dict) else None
    if not isinstance(commands, list) or not commands:
        problem = "it must be an object whose 'commands' is a list of at least one command"
        raise DataError(listed(f"{path} is no file of Talk2Car commands", [problem]))
    folder = image_folder(root, images)
    collector = Collector(str(path), "xywh")
    first_files: dict[str, str] = {}
    for number, raw in enumerate(commands):
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


def load_hc_refloco(root: Path, split: str, *, repo: str, images: str | Path | None = None) -> Dataset:
    """Read one split of HC-RefLoCo; `kind` joins the subjects of the expression: `Action + Appearance`.

    Arguments and errors are those of `load_hub_refs`; the splits are `val`, `test` and `all`.
    """
    return _load_long(root, split, repo=repo, images=images, form=_HCRefLoCoRow)


def load_ref_l4(root: Path, split: str, *, repo: str, images: str | Path | None = None) -> Dataset:
    """Read one split of Ref-L4; `kind` is the object's category, `o365_64` or `refcoco_1`.

    Arguments and errors are those of `load_hub_refs`; the splits are `val`, `test` and `all`.
    """
    return _load_long(root, split, repo=repo, images=images, form=_RefL4Row)


def _load_long(
    root: Path, split: str, *, repo: str, images: str | Path | None, form: type[_HCRefLoCoRow | _RefL4Row]
) -> Dataset:
    files = find_split_files(root, split, repo)
    folder = image_folder(root, images)
    collector = Collector(f"split {split} of {root}", "xywh")
    for where, row in read_hub_rows(files, form, collector.skipped):
        target = collector.box(where, row.bbox, (row.width, row.height))
        if target is None:
            continue
        sample = Sample(
            sample_id=row.id,
            ref_id=row.ref_key,
            image_id=row.image_key,
            image_path=str(image_file(folder, row.file_name)) if folder else None,
            image_wh=(row.width, row.height),
            expression=row.caption,
            target=target,
            kind=row.tag,
        )
        collector.file_names.setdefault(sample.image_id, row.file_name)
        collector.add(where, sample)
    return collect_hub_dataset(collector, split, repo, files)
