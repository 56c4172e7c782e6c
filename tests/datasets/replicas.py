"""Small copies of published data sets, with the true columns and types, to read back.

The columns and types of the Parquet files are those of the data set cards; `test_hub` compares them with the cards'
own words where the cards have them.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

__all__ = [
    "HC_REFLOCO",
    "INSTANCES",
    "OBJECTS",
    "REFS",
    "REF_L4",
    "hc_refloco_row",
    "object_row",
    "ref_l4_row",
    "ref_row",
    "refs",
    "write_objects",
    "write_parquet",
    "write_refer",
    "write_refs",
]

Row = dict[str, Any]
Edit = Callable[[list[Row]], object]

INSTANCES: dict[str, Any] = {
    "images": [
        {"id": 380440, "file_name": "COCO_train2014_000000380440.jpg", "width": 640, "height": 480},
        {"id": 22, "file_name": "COCO_train2014_000000000022.jpg", "width": 500, "height": 375},
        {"id": 33, "file_name": "COCO_train2014_000000000033.jpg", "width": 640, "height": 480},
        {"id": 44, "file_name": "COCO_train2014_000000000044.jpg", "width": 640, "height": 480},
    ],
    "annotations": [
        {"id": 10, "image_id": 380440, "category_id": 24, "bbox": [400.25, 300.5, 116.49, 100.25], "iscrowd": 0},
        {"id": 11, "image_id": 380440, "category_id": 24, "bbox": [12.0, 88.0, 288.0, 322.0], "iscrowd": 0},
        {"id": 20, "image_id": 22, "category_id": 1, "bbox": [300.1, 200.2, 150.3, 160.4], "iscrowd": 0},
        {"id": 30, "image_id": 33, "category_id": 1, "bbox": [350, 50, 200, 300], "iscrowd": 0},
        {"id": 40, "image_id": 44, "category_id": 24, "bbox": [333.33, 240, 300, 200], "iscrowd": 0},
        {"id": 41, "image_id": 44, "category_id": 24, "bbox": [420, 10, 60, 50], "iscrowd": 0},
    ],
    "categories": [{"id": 24, "name": "zebra"}, {"id": 1, "name": "person"}],
}
"""Boxes that fit their images as xywh only, all but one: read as xyxy they would be reversed."""

_ANNOTATIONS = {annotation["id"]: annotation for annotation in INSTANCES["annotations"]}
_IMAGES = {image["id"]: image for image in INSTANCES["images"]}


def _ref(ref_id: int, ann_id: int, split: str, *sentences: str) -> Row:
    image_id = _ANNOTATIONS[ann_id]["image_id"]
    first = ref_id * 10
    return {
        "sent_ids": [first + number for number in range(len(sentences))],
        "file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg",
        "ann_id": ann_id,
        "ref_id": ref_id,
        "image_id": image_id,
        "split": split,
        "sentences": [
            {"tokens": text.lower().split(), "raw": text, "sent_id": first + number, "sent": text.lower().strip(" .")}
            for number, text in enumerate(sentences)
        ],
        "category_id": _ANNOTATIONS[ann_id]["category_id"],
    }


def refs(*, test_splits: Sequence[str] = ("testA", "testB")) -> list[Row]:
    """The refs of a REFER pickle: two of training, one of val, one of each test split (RefCOCOg has `test` alone)."""
    tests = [
        _ref(number, ann_id, split, "the zebra. ", "Skiier in red pants.")
        for number, (ann_id, split) in enumerate(zip((40, 41), test_splits, strict=False), start=5)
    ]
    return [
        _ref(1, 10, "train", "Right zebra", "zebra with head down"),
        _ref(2, 20, "train", "Woman\non right"),
        _ref(3, 30, "val", "the man in yellow coat", "Skiier in red pants.", "man"),
        *tests,
    ]


def write_refer(root: Path, content: Sequence[Row], *, name: str = "refcoco", split_by: str = "unc") -> Path:
    """Write a REFER tree."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"refs({split_by}).p").write_bytes(pickle.dumps(list(content), protocol=2))
    (folder / "instances.json").write_text(json.dumps(INSTANCES))
    return root


_TYPES = {
    **{"text": pa.string(), "int": pa.int64(), "tiny": pa.int8(), "bool": pa.bool_()},
    **{"real": pa.float64(), "single": pa.float32()},
    "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    "sentence": pa.struct(
        [("raw", pa.string()), ("sent", pa.string()), ("sent_id", pa.int64()), ("tokens", pa.list_(pa.string()))]
    ),
    "label": pa.struct([("category", pa.string()), ("label", pa.int64()), ("location", pa.list_(pa.int64()))]),
}


def _schema(columns: str) -> pa.Schema:
    """Return the schema of columns `name:type`, or `name:[type]` for lists."""
    pairs = [column.split(":") for column in columns.split()]
    types = {name: pa.list_(_TYPES[kind[1:-1]]) if kind[0] == "[" else _TYPES[kind] for name, kind in pairs}
    return pa.schema(types.items())


REFS = _schema(
    "sent_ids:[int] file_name:text ann_id:int ref_id:int image_id:int split:text sentences:[sentence] category_id:int "
    "raw_anns:text raw_image_info:text raw_sentences:text image_path:text bbox:[real] captions:[text] "
    "global_image_id:text anns_id:text"
)
"""Of jxu124/refcoco, refcocoplus and refcocog."""


def ref_row(ref: Row) -> Row:
    """A ref as jxu124 has it."""
    annotation, image = _ANNOTATIONS[ref["ann_id"]], _IMAGES[ref["image_id"]]
    left, top, width, height = annotation["bbox"]
    return {
        **ref,
        "raw_anns": json.dumps({**annotation, "segmentation": [], "area": width * height}),
        "raw_image_info": json.dumps({**image, "license": 3, "flickr_url": "http://example.com/a.jpg"}),
        "raw_sentences": json.dumps(ref["sentences"]),
        "image_path": f"coco/train2014/{image['file_name']}",
        "bbox": [left, top, left + width, top + height],
        "captions": [sentence["sent"] for sentence in ref["sentences"]],
        "global_image_id": f"coco.{ref['image_id']}",
        "anns_id": f"coco.{ref['ann_id']}",
    }


def write_refs(root: Path, content: Sequence[Row], edit: Edit | None = None, *, drop: str | None = None) -> Path:
    """Write a copy of `jxu124/refcoco`; `edit` may change the rows of val first, `drop` names a column to leave out."""
    testa = "test" if any(ref["split"] == "testB" for ref in content) else "testA"
    files = {"train": "train", "val": "validation", "testA": testa, "testB": "testB", "test": "test"}
    for split, file_name in files.items():
        found = [ref_row(ref) for ref in content if ref["split"] == split]
        if found:
            if edit is not None and split == "val":
                edit(found)
            path = root / "data" / f"{file_name}-00000-of-00001-{len(file_name):016x}.parquet"
            write_parquet(path, found, REFS, drop=drop)
    return root


def write_parquet(path: Path, content: Sequence[Row], schema: pa.Schema, *, drop: str | None = None) -> Path:
    """Write rows as one Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(content), schema=schema)
    pq.write_table(table.drop_columns([drop]) if drop else table, path)
    return path


OBJECTS = _schema(
    "question_id:text image:image question:text answer:[text] segmentation:[single] bbox:[single] iscrowd:tiny "
    "file_name:text"
)
"""Of lmms-lab/RefCOCO, RefCOCOplus and RefCOCOg."""


def object_row(ref: Row) -> Row:
    """A ref as lmms-lab has it, with a plain image."""
    image = _IMAGES[ref["image_id"]]
    stream = io.BytesIO()
    Image.new("RGB", (image["width"], image["height"]), (ref["image_id"] % 256, 9, 9)).save(stream, "JPEG")
    return {
        "question_id": str(ref["ann_id"]),
        "image": {"bytes": stream.getvalue(), "path": image["file_name"]},
        "question": "Please carefully observe the area circled in the image and come up with a caption for the area.",
        "answer": [sentence["raw"] for sentence in ref["sentences"]],
        "segmentation": [1.0, 2.0, 3.0, 4.0],
        "bbox": _ANNOTATIONS[ref["ann_id"]]["bbox"],
        "iscrowd": 0,
        "file_name": ref["file_name"],
    }


def write_objects(root: Path, content: Sequence[Row], split: str = "val") -> Path:
    """Write rows of one split as a copy of `lmms-lab/RefCOCO` has it."""
    write_parquet(root / "data" / f"{split}-00000-of-00001.parquet", content, OBJECTS)
    return root


HC_REFLOCO = _schema(
    "id:text source_dataset:text source_dataset_split:text file_name:text width:int height:int bbox:[real] "
    "bbox_area:real caption:text labels:[label] is_rewrite:bool split:text"
)


def hc_refloco_row(number: int, split: str, **changes: Any) -> Row:
    """A row like the one that HC-RefLoCo's card shows."""
    labels = [("Position", 5, [257, 310]), ("Appearance", 0, [0, 256]), ("Appearance", 0, [311, 320])]
    row = {
        "id": f"{number:07d}",
        "source_dataset": "coco2017",
        "source_dataset_split": "val",
        "file_name": "000000002685.jpg",
        "width": 640,
        "height": 555,
        "bbox": [315.54, 56.12, 323.02, 384.14],
        "bbox_area": 124084.9,
        "caption": "The individual in question appears to be a woman dressed in a black long-sleeve top...",
        "labels": [dict(zip(("category", "label", "location"), label, strict=True)) for label in labels],
        "is_rewrite": False,
        "split": split,
    }
    return {**row, **changes}


REF_L4 = _schema(
    "id:int caption:text bbox:[real] bbox_area:real bbox_id:text ori_category_id:text image_id:text height:int "
    "width:int file_name:text is_rewrite:bool split:text"
)


def ref_l4_row(number: int, split: str, **changes: Any) -> Row:
    """A row like the one that Ref-L4's card shows."""
    row = {
        "id": number,
        "caption": "Within the central picture frame of the three, an antique camera is present.",
        "bbox": [580.6163330048, 179.4965209869, 93.59924316159993, 112.1013793848],
        "bbox_area": 10492.60426778866,
        "bbox_id": "o365_527361",
        "ori_category_id": "o365_64",
        "image_id": "o365_922765",
        "height": 741,
        "width": 1024,
        "file_name": "objects365_v2_00922765.jpg",
        "is_rewrite": True,
        "split": split,
    }
    return {**row, **changes}
