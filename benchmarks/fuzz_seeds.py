"""Good files to damage, hostile ones to begin with, and how each reader of the package reads them."""

from __future__ import annotations

import io
import pickle
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_samples import (
    ADAPTER,
    CHAT,
    FACTS,
    INSTANCES,
    LINES,
    OWN,
    PICKLES,
    RECIPE,
    REFS,
    RESULTS,
    SCORED,
    SHARED,
    SINK,
    TEMPLATE,
    TEMPLATES,
    lines,
    text,
)
from PIL import Image

from llm_wrapper import images, readers
from llm_wrapper.datasets import coco_instances, restricted_pickle
from llm_wrapper.datasets.base import Dataset
from llm_wrapper.detections import maintain
from llm_wrapper.detections.cache import DetectionCache
from llm_wrapper.detections.contents import PART_SCHEMA, read_part, row_detections
from llm_wrapper.errors import LLMWrapperError
from llm_wrapper.evaluation import external
from llm_wrapper.evaluation.predictions import load_predictions, save_predictions
from llm_wrapper.recipe import LLMSection, files
from llm_wrapper.records import Box, Candidate, Detection, Detections, Message, Prediction, Prompt, Sample

__all__ = ["READERS", "Reader"]

Use = Callable[[bytes], object]


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        name: For the table.
        prepare: Takes an empty folder, and returns what reads one example.
        seeds: Makes good files.
        bombs: Makes hostile ones; not in the process whose memory is measured.
    """

    name: str
    prepare: Callable[[Path], Use]
    seeds: Callable[[], list[bytes]]
    bombs: Callable[[], list[bytes]]


def of_path(name: str, use: Callable[[Path], object]) -> Callable[[Path], Use]:
    """Return a function that writes an example to a file and reads it."""

    def prepare(folder: Path) -> Use:
        path = folder / name

        def read(content: bytes) -> object:
            path.write_bytes(content)
            return use(path)

        return read

    return prepare


SAMPLES = [
    Sample(f"s{n}", "r", f"image{n}", f"image{n}.jpg", (640, 480), f"zebra {n}", Box(1, 2, 30, 40)) for n in range(4)
]
DATASET = Dataset(
    "mine", "val", SAMPLES, "digest", file_names={each.image_id: f"{each.image_id}.jpg" for each in SAMPLES}
)
IDENTITY = {"detector": "toy", "settings": {"revision": 1}, "dataset": "mine", "split": "val", "annotations": "aa"}
ANSWER = Detections(
    (Detection(Box(1.0, 2.0, 30.5, 40.0), "zebra", 0.5, "od"), Detection(Box(0, 0, 9, 9), "", None, "rec"))
)

DEEP = [
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"[" * 60 + b"1" * 5000 + b"]" * 60,
    b'{"a": 1, "a": 2}',
    b"\xff\xfe[\x001\x00]\x00",
]
"""Hostile to whatever reads JSON."""


def cache_file(name: str) -> bytes:
    """Write a complete cache and return one of its files."""
    with tempfile.TemporaryDirectory() as folder:
        return (complete_cache(Path(folder)) / name).read_bytes()


def part() -> bytes:
    """Write one part of a cache."""
    return cache_file("part-00000.parquet")


def complete_cache(folder: Path) -> Path:
    """Write a complete cache of four answers."""
    shutil.rmtree(folder, ignore_errors=True)
    with DetectionCache.resume(folder, IDENTITY) as cache:
        cache.append([((each.image_id, each.sample_id), ANSWER) for each in SAMPLES], ({"dtype": "float32"},))
        cache.finish(["expression"], {"image9": "it cannot be read"})
    return folder


def parquet_bombs(count: int = 60_000_000) -> list[bytes]:
    """Return files of few bytes that unpack to gigabytes."""

    def packed(table: pa.Table, **options: Any) -> bytes:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", dictionary_pagesize_limit=1 << 24, **options)
        return bytes(sink.getvalue().to_pybytes())

    item = {"box": {"x0": 0.0, "y0": 0.0, "x1": 1.0, "y1": 1.0}, "label": "x" * 1_000_000, "score": 0.5, "source": "od"}
    rows = [{"image_id": f"i{n}", "sample_id": None, "items": [item], "num_dropped": 0} for n in range(600)]
    nulls = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), pa.nulls(count))
    return [packed(pa.Table.from_pylist(rows, schema=PART_SCHEMA)), packed(pa.table({"a": nulls}))]


def use_part(path: Path) -> None:
    """Read a part and every answer in it."""
    table = read_part(path).table
    for row in range(min(table.num_rows, 100)):
        row_detections(table, row)


def prepare_cache(name: str) -> Callable[[Path], Use]:
    """Return a function that replaces one file of a cache by an example, verifies the cache, reads it and fills it."""

    def prepare(folder: Path) -> Use:
        whole = complete_cache(folder / "whole")

        def use(content: bytes) -> None:
            cache = folder / "cache"
            shutil.rmtree(cache, ignore_errors=True)
            shutil.copytree(whole, cache)
            (cache / name).write_bytes(content)
            maintain.verify_cache(cache)
            maintain.summarize_cache(cache)
            try:
                opened = DetectionCache.open_complete(cache, IDENTITY)
            except LLMWrapperError:
                with DetectionCache.resume(cache, IDENTITY) as filled:
                    filled.finish(["expression"], {})
                raise
            for each in SAMPLES:
                opened.lookup(each)

        return use

    return prepare


def own_predictions() -> bytes:
    """Write predictions of two systems."""
    candidates = tuple(Candidate(Box(1, 2, 30, 40), "zebra", score, "toy", "od") for score in (0.5, None))
    first = Prediction(
        system="llm", sample_id="s0", image_id="image0", expression="zebra", kind=None, target=Box(1, 2, 30, 40),
        box=candidates[0].box, decided_by="llm", probability=0.75, probabilities=(0.75, 0.25), failure=None,
        candidates=candidates, origins=(0, 1), image_wh=(640, 480), mass=0.5,
    )  # fmt: skip
    rows = [replace(first, sample_id=f"s{n}", system=system) for n in range(4) for system in ("llm", "rule")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.parquet"
        save_predictions(path, rows)
        return path.read_bytes()


def pictures() -> list[bytes]:
    """Write small pictures in the usual formats, one with a rotation in its EXIF."""
    picture = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x8298] = 6, "a text", "another"
    found = []
    for form, options in (
        ("PNG", {"exif": exif.tobytes()}), ("JPEG", {"exif": exif.tobytes()}), ("WEBP", {}), ("GIF", {}), ("BMP", {}),
        ("TIFF", {}), ("JPEG", {"progressive": True}), ("PNG", {"compress_level": 0}),
    ):  # fmt: skip
        buffer = io.BytesIO()
        picture.save(buffer, form, **options)
        found.append(buffer.getvalue())
    return found


def picture_bombs() -> list[bytes]:
    """Write pictures that are large only once they are unpacked, and a program that calls itself one."""
    found = [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
    for mode, size in (("1", (30_000, 30_000)), ("L", (13_300, 13_300)), ("RGB", (9_000, 9_000))):
        buffer = io.BytesIO()
        Image.new(mode, size).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def use_picture(path: Path) -> None:
    """Measure a picture and decode it."""
    images.read_size(path)
    images.read_image(path)


def imported(ending: str) -> Callable[[Path], Use]:
    """Return a function that reads boxes of another program."""

    def use(path: Path) -> None:
        from llm_wrapper.detectors import detect_sample
        from llm_wrapper.detectors import imported as module

        detector = module.create_imported({"path": str(path)}).bind(DATASET)
        for sample in DATASET.samples:
            detect_sample(detector, sample)

    return of_path(f"boxes{ending}", use)


def use_template(folder: Path) -> Use:
    """Return a function that renders a chat template."""
    from llm_wrapper.llms.chat import ChatTemplate

    rows = [{"role": "user", "content": "left zebra"}]

    def use(content: bytes) -> object:
        template = ChatTemplate(content.decode("utf-8", "replace"), {"bos_token": "<s>"}, day="2024-07-26", name="x")
        return template.render(rows, add_generation_prompt=True)

    return use


def use_adapter(path: Path) -> None:
    """Read the settings of an adapter as loading does: what it calls a ValueError becomes an error of the package."""
    import torch

    from llm_wrapper.llms import adapters

    try:
        adapters._config(path.parent, {"base_model.model.lm_head.lora_A.weight": torch.empty(8, 64, device="meta")})
    except ValueError as error:  # `adapters.put_on` says it as a ModelError
        raise LLMWrapperError(str(error)) from error


def use_reply(decode: str) -> Callable[[Path], Use]:
    """Return a function that reads the body of a server's reply."""

    def prepare(folder: Path) -> Use:
        from llm_wrapper.llms.server import Reply, Server
        from llm_wrapper.services import CallError

        section = LLMSection.model_validate({"backend": "openai", "model": "m", "decode": decode})
        server = Server(section)
        candidates = tuple(Candidate(Box(n, 2, 30, 40), "zebra", 0.5, "toy", "od") for n in range(3))
        prompt = Prompt("s0", (Message("user", "left zebra"),), candidates, "plain")

        def use(content: bytes) -> object:
            try:
                return server.format.answer(prompt, server._judged(Reply(200, {}, content)))
            except CallError as error:  # `ask` says it as a ModelError
                raise LLMWrapperError(str(error)) from error

        return use

    return prepare


def use_report(folder: Path) -> Use:
    """Return a function that writes the page of a run whose facts are an example."""
    from llm_wrapper.report.evaluations import load_evaluations

    run = folder / "run"
    run.mkdir()
    (run / "predictions-val.parquet").write_bytes(own_predictions())

    def use(content: bytes) -> object:
        (run / "report-val.json").write_bytes(content)
        return load_evaluations(run)

    return use


def use_recipe(path: Path) -> None:
    """Read a recipe file."""
    files.read_sections(path)


def use_own_data(path: Path) -> None:
    """Read annotations of a user."""
    from llm_wrapper import datasets
    from llm_wrapper.recipe import DataSection

    datasets.load_dataset(DataSection(name="mine", reader="jsonl", root=path), "val")


def pickles() -> list[bytes]:
    """Write the same references in every protocol."""
    return [pickle.dumps(REFS, protocol) for protocol in range(6)]


def pickle_bombs() -> list[bytes]:
    """Write pickles of few bytes that ask for gigabytes, or for ever."""
    return [*PICKLES, pickle.dumps(SHARED), pickle.dumps([["x" * 10_000] * 20_000])]


def deep() -> list[bytes]:
    """Return values that are hostile to readers of JSON."""
    return DEEP


def these(*contents: bytes) -> Callable[[], list[bytes]]:
    """Return contents when they are wanted."""
    return lambda: list(contents)


_READERS = [
    Reader("json", of_path("a.json", readers.read_json), these(text(INSTANCES), text(REFS)), deep),
    Reader("json-lines", of_path("a.jsonl", readers.read_json_lines), these(LINES, SCORED), deep),
    Reader("recipe", of_path("a.yaml", use_recipe), these(RECIPE), these(b"a: &a [x]\n" + b"b: [*a, *a]\n" * 9, *DEEP)),
    Reader(
        "parquet",
        of_path("a.parquet", readers.read_parquet_table),
        lambda: [part(), own_predictions()],
        lambda: parquet_bombs(400_000_000),
    ),
    Reader("part", of_path("part-00000.parquet", use_part), lambda: [part()], parquet_bombs),
    Reader("cache-part", prepare_cache("part-00000.parquet"), lambda: [part()], parquet_bombs),
    Reader("cache-manifest", prepare_cache("manifest.json"), lambda: [cache_file("manifest.json")], deep),
    Reader("predictions", of_path("p.parquet", load_predictions), lambda: [own_predictions()], parquet_bombs),
    Reader("pickle", of_path("refs(unc).p", restricted_pickle.read_pickle), pickles, pickle_bombs),
    Reader("image", of_path("a.jpg", use_picture), pictures, picture_bombs),
    Reader("imported-json", imported(".json"), these(text(RESULTS)), deep),
    Reader("imported-jsonl", imported(".jsonl"), these(LINES), deep),
    Reader("imported-csv", imported(".csv"), these(SINK), these(SINK + b"9" * 5000 + b"," * 5000)),
    Reader(
        "scored",
        of_path("p.jsonl", lambda path: external.read_external_predictions(path, DATASET)),
        these(SCORED),
        deep,
    ),
    Reader("own-data", of_path("mine.jsonl", use_own_data), these(lines(*OWN)), deep),
    Reader("instances", of_path("instances.json", coco_instances.load_instances), these(text(INSTANCES)), deep),
    Reader("chat-template", use_template, these(TEMPLATE), these(*TEMPLATES)),
    Reader("adapter-config", of_path("adapter_config.json", use_adapter), these(text(ADAPTER)), deep),
    Reader("server-first-token", use_reply("first_token"), these(text(CHAT)), deep),
    Reader("server-choice", use_reply("choice"), these(text(CHAT)), deep),
    Reader("report", use_report, these(text(FACTS)), deep),
]
READERS = {reader.name: reader for reader in _READERS}
