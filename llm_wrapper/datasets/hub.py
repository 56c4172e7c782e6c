"""Data sets of the Hugging Face hub: RefCOCO, RefCOCO+ and RefCOCOg in two forms, HC-RefLoCo and Ref-L4.

*refs*, `jxu124/refcoco`, `refcocoplus`, `refcocog`: one row per ref, the fields of the REFER pickle with the image's
entry of `instances.json` as JSON text and the box as xyxy. The same refs, sentence ids and boxes as `datasets.refer`
reads from a REFER tree (divisions unc, unc, umd); images lie elsewhere (COCO train2014). Columns and row counts: the
data set cards; that `bbox` is xyxy: huggingface/cookbook, "Fine tuning a VLM for Object Detection Grounding", and the
box that is printed there. Not verified: that the rows of the file `test` of RefCOCO and RefCOCO+ say testA (their count
is testA's; rows that say `test` are taken too).

*objects*, `lmms-lab/RefCOCO`, `RefCOCOplus`, `RefCOCOg`: one row per object with all its expressions in `answer`, as
typed, and the image itself; `question` is the same captioning instruction in every row. Columns and row counts: the
data set cards; xywh: lmms_eval/tasks/refcoco/utils.py of lmms-eval; a row: the evalscope page on RefCOCO. There is no
training split. By their row counts `val` of RefCOCO (8,811) and of RefCOCOg (7,573) hold the 5,000 refs of Google's
division beside the 3,811 of unc and 2,573 of umd, so they are not the `val` of any paper and share images with the
training splits of the refs form; `test` of RefCOCO is Google's. Not verified: whether rows repeat in them. Rows that do
are taken once.

*HC-RefLoCo*, `Jinjing713/HC-RefLoCo`, 13,360 + 31,378 long expressions about people: the card's example row, and
hc_refloco/{dataloader,evaluation}.py of ZhaoJingjing713/HC-RefLoCo. Not verified: the types of the columns in the
Parquet files, and the values of `source_dataset` other than coco2017.

*Ref-L4*, `JierunChen/Ref-L4`, 13,420 + 31,921 long expressions: the card's example row and table of columns, and
ref_l4/{dataloader,evaluation}.py of JierunChen/Ref-L4. Its published average over classes first maps the COCO
categories to those of Objects365 (`mapping_dict` there); `kind` here is the category before that.

The last two have one row per expression, boxes as xywh pixels, no training split, and images in `images.tar.gz`, whose
members are named as `file_name` says: unpack it into `<root>/images`. The split `all` is val and test together.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path

from pydantic import BaseModel, Field, Json

from llm_wrapper import images, storage
from llm_wrapper.datasets import hub_files, rows
from llm_wrapper.datasets.base import Dataset, digest_files, image_file, image_folder
from llm_wrapper.datasets.rows import Collector
from llm_wrapper.errors import ImageError
from llm_wrapper.records import Sample

__all__ = ["load_hc_refloco", "load_hub_objects", "load_hub_refs", "load_ref_l4"]

_log = logging.getLogger(__name__)
_COCO_NAME = re.compile(r"(COCO_[a-z]+\d{4}_(\d{12}))(?:_\d+)?\.jpg")
"""`COCO_train2014_000000380440_491042.jpg`: image 380440; what follows belongs to the ref."""


class _ImageInfo(BaseModel):
    file_name: str
    width: rows.Side
    height: rows.Side


class _Annotation(BaseModel):
    iscrowd: bool = False


class _Ref(hub_files.HubRow):
    ref_id: rows.Id
    image_id: rows.Id
    sentences: list[rows.Sentence]
    raw_image_info: Json[_ImageInfo]
    raw_anns: Json[_Annotation] | None = None
    bbox: rows.FourNumbers


class _Embedded(BaseModel):
    content: bytes = Field(alias="bytes")


class _Object(hub_files.HubRow):
    question_id: rows.Id
    answer: list[str] = Field(min_length=1)
    bbox: rows.FourNumbers
    file_name: str
    image: _Embedded
    iscrowd: bool = False


def load_hub_refs(
    root: Path, split: str, *, repo: str, images: str | Path | None = None, text: rows.TextKind = "sent"
) -> Dataset:
    """Read one split of the refs form: one sample per sentence, with the ids that REFER gives.

    Args:
        root: A copy of the repository; fetched where it does not exist.
        split: `train`, `val`, `test`, `testA` or `testB`; `test` is testA and testB together, as in the toolbox.
        repo: `jxu124/refcocog@<revision>`, or a copy of it.
        images: The folder with COCO's train2014 images; `<root>/images` by default, if there is one.
        text: `sent` is the cleaned sentence, `raw` the sentence as typed; neither is changed here.

    Raises:
        DataError: If the files cannot be fetched or are damaged, if the split does not exist, if the boxes are not
            xyxy, or if most rows cannot be used.
        RecipeError: If `text` is neither of the two.
    """
    rows.require_text_kind(text)
    files = hub_files.find_split_files(root, split, repo)
    folder = image_folder(root, images)
    collector = Collector(f"split {split} of {root}", "xyxy")
    for where, row in hub_files.read_hub_rows(files, _Ref, collector.skipped):
        image_wh = (row.raw_image_info.width, row.raw_image_info.height)
        target = collector.box(where, row.bbox, image_wh)
        if target is None:
            continue
        collector.file_names[row.image_id] = row.raw_image_info.file_name
        if not row.sentences:
            collector.skipped.add("ref without sentences", where, "it has no sentences")
        for sentence in row.sentences:
            expression = sentence.text(text)
            if expression is None:
                collector.skipped.add("sentence without text", where, sentence.missing_text(text))
                continue
            sample = Sample(
                sample_id=sentence.sent_id,
                ref_id=row.ref_id,
                image_id=row.image_id,
                image_path=str(image_file(folder, row.raw_image_info.file_name)) if folder else None,
                image_wh=image_wh,
                expression=expression,
                target=target,
            )
            is_crowd = row.raw_anns is not None and row.raw_anns.iscrowd
            collector.add(where, sample, is_crowd=is_crowd)
    return collector.dataset(hub_files.repo_name(repo), split, digest_files(list(files)))


def load_hub_objects(root: Path, split: str, *, repo: str) -> Dataset:
    """Read one split of the objects form: one sample per expression; each image is written to a file once.

    Images go to `<root>/images` under their COCO names, so every split that shares an image shares the file. A sample's
    id is the row's question id with the number of the expression among all of that object, `469306-0`.

    Args:
        root: A copy of the repository; fetched where it does not exist (0.5 to 2.3 GB).
        split: `val`, `test`, `testA` or `testB`; the module says what they hold.
        repo: `lmms-lab/RefCOCOplus@<revision>`, or a copy of it.

    Raises:
        DataError: If the files cannot be fetched or are damaged, if the split does not exist, if the boxes are not
            xywh, or if most rows cannot be used.
        LLMWrapperError: If an image cannot be written.
    """
    files = hub_files.find_split_files(root, split, repo)
    collector = Collector(f"split {split} of {root}", "xywh")
    reader = _ObjectReader(root / "images", collector)
    for where, row in hub_files.read_hub_rows(files, _Object, collector.skipped):
        reader.take(where, row)
    if reader.num_repeated:
        _log.info("%s, split %s: %d rows repeat another one and are taken once", root, split, reader.num_repeated)
    return collector.dataset(hub_files.repo_name(repo), split, digest_files(list(files)))


class _ObjectReader:
    """Turns rows of the objects form into samples and image files."""

    def __init__(self, folder: Path, collector: Collector) -> None:
        self.num_repeated = 0
        self._folder = folder
        self._collector = collector
        self._sizes: dict[Path, tuple[int, int]] = {}
        self._known: set[tuple[object, ...]] = set()
        self._num_expressions: Counter[str] = Counter()

    def take(self, where: str, row: _Object) -> None:
        """Add the samples of one row, or count it; one that repeats another row is ignored."""
        content = (row.question_id, row.file_name, *row.bbox, *row.answer)
        if content in self._known:
            self.num_repeated += 1
            return
        self._known.add(content)
        name = _COCO_NAME.fullmatch(row.file_name)
        if name is None:
            detail = f"file_name {row.file_name!r} is not the name of a COCO image"
            self._collector.skipped.add("file name that is no COCO image", where, detail)
            return
        path, image_id = self._folder / f"{name[1]}.jpg", str(int(name[2]))
        try:
            image_wh = self._write(path, row.image.content)
        except ImageError as error:
            self._collector.skipped.add("image that cannot be read", where, str(error))
            return
        target = self._collector.box(where, row.bbox, image_wh)
        if target is None:
            return
        self._collector.file_names[image_id] = path.name
        for expression in row.answer:
            sample = Sample(
                sample_id=f"{row.question_id}-{self._num_expressions[row.question_id]}",
                ref_id=row.question_id,
                image_id=image_id,
                image_path=str(path),
                image_wh=image_wh,
                expression=expression,
                target=target,
            )
            self._num_expressions[row.question_id] += 1
            self._collector.add(where, sample, is_crowd=row.iscrowd)

    def _write(self, path: Path, content: bytes) -> tuple[int, int]:
        """Write an image where it is not there already, whole or not at all; return its (width, height)."""
        if path not in self._sizes:
            size = images.read_size(content)
            if not path.is_file() or path.stat().st_size != len(content):
                storage.write_atomic(path, content)
            self._sizes[path] = size
        return self._sizes[path]


class _LongRow(hub_files.HubRow):
    id: rows.Id
    caption: str
    bbox: rows.FourNumbers
    width: rows.Side
    height: rows.Side
    file_name: str

    @property
    def ref_key(self) -> str:
        """The id of the object: its image and box, where it has no id."""
        return f"{self.file_name} {' '.join(f'{value:g}' for value in self.bbox)}"

    @property
    def image_key(self) -> str:
        """The id of the image: COCO's number of its images, so that leaks between data sets are found."""
        return self.file_name

    @property
    def tag(self) -> str | None:
        """The tag of the expression in the data set."""
        return None


class _Label(BaseModel):
    category: str


class _HCRefLoCoRow(_LongRow):
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


class _RefL4Row(_LongRow):
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

    Arguments and errors are those of `load_hub_refs`; the splits are `val`, `test` and `all`.
    """
    return _load_long(root, split, repo=repo, images=images, form=_HCRefLoCoRow)


def load_ref_l4(root: Path, split: str, *, repo: str, images: str | Path | None = None) -> Dataset:
    """Read one split of Ref-L4; `kind` is the object's category, `o365_64` or `refcoco_1`.

    Arguments and errors are those of `load_hub_refs`; the splits are `val`, `test` and `all`.
    """
    return _load_long(root, split, repo=repo, images=images, form=_RefL4Row)


def _load_long(root: Path, split: str, *, repo: str, images: str | Path | None, form: type[_LongRow]) -> Dataset:
    files = hub_files.find_split_files(root, split, repo)
    folder = image_folder(root, images)
    collector = Collector(f"split {split} of {root}", "xywh")
    for where, row in hub_files.read_hub_rows(files, form, collector.skipped):
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
    return collector.dataset(hub_files.repo_name(repo), split, digest_files(list(files)))
