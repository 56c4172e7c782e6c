"""Data sets of the Hugging Face hub: RefCOCO, RefCOCO+ and RefCOCOg in two forms, and the Parquet files of any.

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
training splits of the refs form; `test` of RefCOCO is Google's. Not verified: whether rows repeat in them.

A folder is a copy of the repository, fetched where it has no Parquet file. `datasets.load_dataset` is not used: its
cache knows a local file by its time and not by its content, so that rows could be of another file than the digest.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, Json

from llm_wrapper import images, readers, storage
from llm_wrapper.datasets.base import (
    Collector,
    Dataset,
    FourNumbers,
    Id,
    Sentence,
    Side,
    Skipped,
    TextKind,
    digest_files,
    image_file,
    image_folder,
    require_text_kind,
)
from llm_wrapper.errors import DataError, ImageError, RecipeError, listed, shell_word
from llm_wrapper.records import Sample

_log = logging.getLogger(__name__)
_COCO_NAME = re.compile(r"(COCO_[a-z]+\d{4}_(\d{12}))(?:_\d+)?\.jpg")
"""`COCO_train2014_000000380440_491042.jpg`: image 380440; the last number belongs to the ref."""

_FILE = re.compile(
    r"(?:^|[-_/])(train|validation|val|testA|testB|test)(?:-(\d{5})-of-(\d{5})(?:-[0-9a-f]{16})?)?\.parquet$"
)
"""A split's name at the end of a file's name, then its number and that of all files of the split."""

_USUAL_NAMES = {"validation": "val"}
_TOGETHER = {"test": ("testA", "testB"), "all": ("val", "test")}
"""Names for several splits at once: `test` as in the REFER toolbox, `all` as in HC-RefLoCo and Ref-L4."""

_ROWS_AT_ONCE = 128
"""Rows with embedded images hold some 200 kB each."""

_MAX_GROUP = 4 * readers.GIB
"""Bytes of a row group once it is unpacked; the largest published repository has 2.3 GB in all."""


class HubRow(BaseModel):
    """One row of a Parquet file; fields with a default are columns that a file may lack."""

    split: str | None = None


_Row = TypeVar("_Row", bound=HubRow)


class _ImageInfo(BaseModel):
    file_name: str
    width: Side
    height: Side


class _Annotation(BaseModel):
    iscrowd: bool = False


class _Ref(HubRow):
    ref_id: Id
    image_id: Id
    sentences: list[Sentence]
    raw_image_info: Json[_ImageInfo]
    raw_anns: Json[_Annotation] | None = None
    bbox: FourNumbers


class _Embedded(BaseModel):
    content: bytes = Field(alias="bytes")


class _Object(HubRow):
    question_id: Id
    answer: list[str] = Field(min_length=1)
    bbox: FourNumbers
    file_name: str
    image: _Embedded
    iscrowd: bool = False


def load_hub_refs(
    root: Path, split: str, *, repo: str, images: str | Path | None = None, text: TextKind = "sent"
) -> Dataset:
    """Read one split of the refs form: one sample per sentence, with the ids that REFER gives.

    Args:
        root: A copy of the repository; fetched where it does not exist.
        split: `train`, `val`, `test`, `testA` or `testB`; `test` is testA and testB together, as in the toolbox.
        repo: `jxu124/refcocog@<revision>`, or a copy of it.
        images: The folder with COCO's train2014 images; `<root>/images` by default, if there is one.
        text: `sent` is the cleaned sentence, `raw` the sentence as typed; neither is changed here.
    """
    require_text_kind(text)
    files = find_split_files(root, split, repo)
    folder = image_folder(root, images)
    collector = Collector(f"split {split} of {root}", "xyxy")
    for where, row in read_hub_rows(files, _Ref, collector.skipped):
        info = row.raw_image_info
        target = collector.box(where, row.bbox, (info.width, info.height))
        if target is None:
            continue
        collector.file_names[row.image_id] = info.file_name
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
                image_path=str(image_file(folder, info.file_name)) if folder else None,
                image_wh=(info.width, info.height),
                expression=expression,
                target=target,
            )
            collector.add(where, sample, is_crowd=row.raw_anns is not None and row.raw_anns.iscrowd)
    return collect_hub_dataset(collector, split, repo, files)


def load_hub_objects(root: Path, split: str, *, repo: str) -> Dataset:
    """Read one split of the objects form: one sample per expression; each image is written to a file once.

    Images go to `<root>/images` under their COCO names, so every split that shares an image shares the file. A sample's
    id is the row's question id with the number of the expression among all of that object, `469306-0`. Rows that repeat
    another one are taken once.

    Args:
        root: A copy of the repository; fetched where it does not exist (0.5 to 2.3 GB).
        split: `val`, `test`, `testA` or `testB`; the module says what they hold.
        repo: `lmms-lab/RefCOCOplus@<revision>`, or a copy of it.
    """
    files = find_split_files(root, split, repo)
    collector = Collector(f"split {split} of {root}", "xywh")
    num_repeated, num_expressions = 0, Counter[str]()
    known: set[tuple[object, ...]] = set()
    sizes: dict[Path, tuple[int, int]] = {}
    for where, row in read_hub_rows(files, _Object, collector.skipped):
        content = (row.question_id, row.file_name, *row.bbox, *row.answer)
        if content in known:
            num_repeated += 1
            continue
        known.add(content)
        name = _COCO_NAME.fullmatch(row.file_name)
        if name is None:
            detail = f"file_name {row.file_name!r} is not the name of a COCO image"
            collector.skipped.add("file name that is no COCO image", where, detail)
            continue
        path, image_id = root / "images" / f"{name[1]}.jpg", str(int(name[2]))
        try:
            if path not in sizes:
                sizes[path] = _write_image(path, row.image.content)
        except ImageError as error:
            collector.skipped.add("image that cannot be read", where, str(error))
            continue
        target = collector.box(where, row.bbox, sizes[path])
        if target is None:
            continue
        collector.file_names[image_id] = path.name
        for expression in row.answer:
            sample_id = f"{row.question_id}-{num_expressions[row.question_id]}"
            num_expressions[row.question_id] += 1
            sample = Sample(sample_id, row.question_id, image_id, str(path), sizes[path], expression, target)
            collector.add(where, sample, is_crowd=row.iscrowd)
    if num_repeated:
        _log.info("%s, split %s: %d rows repeat another one and are taken once", root, split, num_repeated)
    return collect_hub_dataset(collector, split, repo, files)


def _write_image(path: Path, content: bytes) -> tuple[int, int]:
    """Write an image where it is not there already, whole or not at all; return its (width, height)."""
    size = images.read_size(content)
    if not path.is_file() or path.stat().st_size != len(content):
        storage.write_atomic(path, content)
    return size


def collect_hub_dataset(collector: Collector, split: str, repo: str, files: Mapping[Path, str]) -> Dataset:
    """Return the split, named as its repository `<owner>/<name>@<revision>`."""
    name = repo.partition("@")[0].rpartition("/")[2]
    return collector.dataset(name, split, digest_files(list(files)))


def find_split_files(root: Path, split: str, repo: str) -> dict[Path, str]:
    """Return the Parquet files of a split in their order, each with the split's own name.

    `validation` is called `val`. Beside a `testB` and no `testA`, the files called `test` are testA (`jxu124/refcoco`).

    Args:
        root: The folder; fetched from the hub if it has no Parquet file of any split.
        split: A split's name, or `test` for testA and testB together, or `all` for val and test together.
        repo: `<owner>/<name>@<revision>`; without a revision the newest.
    """
    if not isinstance(repo, str):
        raise RecipeError(f"data.settings.repo={repo!r}: give <owner>/<name>@<revision>.")
    found = _find_by_split(root)
    if not found:
        _fetch(root, repo)
        found = _find_by_split(root)
    members = (split,) if split in found else _TOGETHER.get(split, ())
    if not members or not set(members) <= found.keys():
        raise DataError(
            f"{root} has no split '{split}'. Its splits are: {', '.join(found) or 'none'}. "
            f"Ask for one of them, or fetch what is missing: {_command(root, repo)}"
        )
    problems = [problem for member in members for problem in _file_problems(found[member])]
    if problems:
        raise DataError(listed(f"{root} is no whole copy of {repo}; fetch it: {_command(root, repo)}", problems))
    return {path: member for member in members for path in found[member]}


def is_fetched(root: Path) -> bool:
    """Tell whether a folder holds a Parquet file of any split, so that `find_split_files` fetches nothing."""
    return bool(_find_by_split(root))


def _find_by_split(root: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.parquet")):
        name = path.relative_to(root).as_posix()
        match = _FILE.search(name)
        if match is not None and not name.startswith(".") and path.is_file():
            found.setdefault(_USUAL_NAMES.get(match[1], match[1]), []).append(path)
    if {"test", "testB"} <= found.keys() and "testA" not in found:
        found["testA"] = found.pop("test")
    return found


def _file_problems(paths: Sequence[Path]) -> Iterator[str]:
    """Yield what keeps the files from being one whole split, each part there once."""
    matches = [match for path in paths if (match := _FILE.search(path.name)) is not None]
    parts = Counter((int(match[2] or 0), int(match[3] or 1)) for match in matches)
    names = ", ".join(map(str, paths))
    if len({total for _, total in parts}) > 1 or max(parts.values()) > 1:
        # Some revisions of jxu124/refcoco have a split's old file beside the new one.
        yield f"a split is there more than once, remove what is old: {names}"
        return
    total = next(iter(parts))[1]
    missing = [str(number) for number in range(total) if (number, total) not in parts]
    if missing:
        yield f"of the {total} files of a split, number {', '.join(missing)} is missing (counted from 0) beside {names}"


def read_hub_rows(files: Mapping[Path, str], kind: type[_Row], skipped: Skipped) -> Iterator[tuple[str, _Row]]:
    """Yield (place, row) for each usable row, and count the others; a row of another split than its file is none."""
    for path, split in files.items():
        for number, raw in enumerate(_read_columns(path, kind)):
            where = f"{path.name} row {number}"
            row = skipped.validate_row(kind, raw, where)
            if row is None:
                continue
            # A file that is called testA here may say `test`.
            named = split if row.split is None else _USUAL_NAMES.get(row.split, row.split)
            if named != split and (named, split) != ("test", "testA"):
                detail = f"the row is of split '{row.split}', the file of '{split}'"
                skipped.add("row of another split than its file", where, detail)
                continue
            yield where, row


def _read_columns(path: Path, kind: type[HubRow]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file, with the columns that `kind` has."""
    try:
        with readers.open_regular(path) as stream, pq.ParquetFile(stream) as parquet:
            groups = (parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups))
            largest = max((group.total_byte_size for group in groups), default=0)
            if largest > _MAX_GROUP:
                raise DataError(f"{path} has a row group of {largest} bytes, more than the {_MAX_GROUP} that are read.")
            existing = parquet.schema_arrow.names
            fields = kind.model_fields
            missing = [name for name, field in fields.items() if field.is_required() and name not in existing]
            if missing:
                raise DataError(
                    f"{path} has no column {', '.join(missing)}; its columns are {', '.join(existing)}. "
                    "Check that data.reader and data.settings.repo belong together."
                )
            columns = [name for name in fields if name in existing]
            for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is no Parquet file, damaged or cut off: {error}. Fetch it again; a git clone without git-lfs "
            "leaves short text files in place of the data."
        ) from error


def _command(root: Path, repo: str) -> str:
    repo_id, _, revision = repo.partition("@")
    options = ("--repo-type", "dataset", "--revision", revision or "main", "--local-dir", root)
    return f"hf download {' '.join(map(shell_word, (repo_id, *options)))}"


def _fetch(root: Path, repo: str) -> None:
    """Copy the Parquet files of a repository to a folder, with a progress bar."""
    from huggingface_hub import snapshot_download

    repo_id, _, revision = repo.partition("@")
    try:
        snapshot_download(
            repo_id, repo_type="dataset", revision=revision or None, local_dir=root, allow_patterns=["*.parquet"]
        )
    # Whatever went wrong (no network, no such repository, a proxy, a full disk), the remedy is the same.
    except Exception as error:
        raise DataError(
            f"{root} has no Parquet files, and {repo} cannot be fetched: {error}. "
            f"Fetch it where there is a network: {_command(root, repo)}"
        ) from error
