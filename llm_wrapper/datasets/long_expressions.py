"""HC-RefLoCo and Ref-L4, benchmarks of long expressions: one row per expression, no training split.

Both are Parquet files of the Hugging Face hub with the boxes as xywh pixels and the images in `images.tar.gz`, whose
members are named as `file_name` says: unpack it into `<root>/images`. The split `all` is val and test together.

*HC-RefLoCo*, `Jinjing713/HC-RefLoCo`, 13,360 + 31,378 expressions about people: the card's example row, and
hc_refloco/{dataloader,evaluation}.py of ZhaoJingjing713/HC-RefLoCo. Not verified: the types of the columns in the
Parquet files, and the values of `source_dataset` other than coco2017.

*Ref-L4*, `JierunChen/Ref-L4`, 13,420 + 31,921 expressions: the card's example row and table of columns, and
ref_l4/{dataloader,evaluation}.py of JierunChen/Ref-L4. Its published average over classes first maps the COCO
categories to those of Objects365 (`mapping_dict` there); `kind` here is the category before that.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from llm_wrapper.datasets import rows, snapshot
from llm_wrapper.datasets.base import Dataset, digest_files, image_file
from llm_wrapper.datasets.collector import Collector, image_folder
from llm_wrapper.records import Sample

__all__ = ["load_hc_refloco", "load_ref_l4"]


class _Row(snapshot.HubRow):
    id: rows.Id
    caption: str
    bbox: rows.FourNumbers
    width: rows.Side
    height: rows.Side
    file_name: str

    @property
    def ref_key(self) -> str:
        """What names the object; without an id of its own, its image and box."""
        return f"{self.file_name} {' '.join(f'{value:g}' for value in self.bbox)}"

    @property
    def image_key(self) -> str:
        """What names the image: for COCO's its number there, so that leaks between data sets are seen."""
        return self.file_name

    @property
    def tag(self) -> str | None:
        """The data set's own tag of the expression."""
        return None


class _Label(BaseModel):
    category: str


class _HCRefLoCoRow(_Row):
    labels: list[_Label] | None = None
    source_dataset: str | None = None

    @property
    def image_key(self) -> str:
        stem = Path(self.file_name).stem
        is_coco = "coco" in (self.source_dataset or "").lower() and stem.isdecimal()
        return str(int(stem)) if is_coco else self.file_name

    @property
    def tag(self) -> str | None:
        return " + ".join(sorted({label.category for label in self.labels or ()})) or None


class _RefL4Row(_Row):
    image_id: rows.Id
    bbox_id: rows.Id
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


def load_hc_refloco(root: Path, split: str, *, repo: str, images: str | Path | None = None) -> Dataset:
    """Read one split of HC-RefLoCo; `kind` joins the subjects of the expression: `Action + Appearance`.

    Args:
        root: A copy of the repository; fetched where it does not exist, without the images.
        split: `val`, `test` or `all`.
        repo: `Jinjing713/HC-RefLoCo@<revision>`, or a copy of it.
        images: The folder of the image files; `<root>/images` by default, if there is one.

    Raises:
        DataError: If the files cannot be had or are damaged, if the split does not exist, if the boxes are not xywh, or
            if most rows cannot be used.
    """
    return _load(root, split, repo=repo, images=images, form=_HCRefLoCoRow)


def load_ref_l4(root: Path, split: str, *, repo: str, images: str | Path | None = None) -> Dataset:
    """Read one split of Ref-L4; `kind` is the object's category, `o365_64` or `refcoco_1`.

    Args:
        root: A copy of the repository; fetched where it does not exist, without the images.
        split: `val`, `test` or `all`.
        repo: `JierunChen/Ref-L4@<revision>`, or a copy of it.
        images: The folder of the image files; `<root>/images` by default, if there is one.

    Raises:
        DataError: If the files cannot be had or are damaged, if the split does not exist, if the boxes are not xywh, or
            if most rows cannot be used.
    """
    return _load(root, split, repo=repo, images=images, form=_RefL4Row)


def _load(root: Path, split: str, *, repo: str, images: str | Path | None, form: type[_Row]) -> Dataset:
    files = snapshot.files_of(root, split, repo)
    folder = image_folder(root, images)
    collector = Collector(f"split {split} of {root}", "xywh")
    for where, row in snapshot.rows_of(files, form, collector.skipped):
        image_wh = (row.width, row.height)
        target = collector.box(where, row.bbox, image_wh)
        if target is None:
            continue
        sample = Sample(
            sample_id=row.id,
            ref_id=row.ref_key,
            image_id=row.image_key,
            image_path=str(image_file(folder, row.file_name)) if folder else None,
            image_wh=image_wh,
            expression=row.caption,
            target=target,
            kind=row.tag,
        )
        collector.file_names.setdefault(sample.image_id, row.file_name)
        collector.add(where, sample)
    return collector.dataset(snapshot.name_of(repo), split, digest_files(list(files)))
