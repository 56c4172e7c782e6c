"""The built wheel, installed outside the checkout, works in an empty folder: the demo, predict, README's Python lines.

The wheel is built from the source distribution, so both are complete. The clean environment borrows the wheel's
dependencies from the one that runs the tests, and is made in seconds; LLM_WRAPPER_WHEEL_PYTHON names the Python of an
environment into which the wheel was installed with all that it asks for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest
from PIL import Image

from llm_wrapper import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DEMO = {"detector": 16.7, "rule": 56.7, "untrained": 10.0, "tuned": 20.0, "oracle": 96.7}


def run(*words: str | Path, cwd: Path) -> str:
    """Run a command without a trace of the checkout in its environment."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "LLM_WRAPPER", "MAKE"))}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a distribution with the installed setuptools; return its file."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(out)!r}))"
    return out / run(sys.executable, "-c", code, cwd=source).splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from an unpacked source distribution of the files that git keeps."""
    folder = tmp_path_factory.mktemp("build")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listing.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    sdist = build("sdist", folder / "source", folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that holds the wheel."""
    if given := os.environ.get("LLM_WRAPPER_WHEEL_PYTHON"):
        return Path(given)
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # Of a folder that a .pth names, no .pth is read: an editable llm_wrapper there stays unseen.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=folder,
    )
    return python


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory, python: Path) -> Path:
    """An empty folder, in which the demo has been run."""
    folder = tmp_path_factory.mktemp("empty")
    run(command(python), "demo", "--fast", cwd=folder)
    (folder / "runs" / "demo").symlink_to("demo-fast")  # the run of README's examples
    Image.new("RGB", (120, 90), "white").save(folder / "photo.jpg")
    return folder


def command(python: Path) -> Path:
    return python.with_name("llm-wrapper")


def test_the_package_is_that_of_the_wheel(python: Path, tmp_path: Path) -> None:
    where = run(python, "-c", "import llm_wrapper; print(llm_wrapper.__file__)", cwd=tmp_path)
    assert "site-packages" in Path(where.strip()).parts  # `.venv-wheel` lies in the checkout, so its path says nothing
    assert run(command(python), "--version", cwd=tmp_path) == f"llm-wrapper {__version__}\n"


def test_the_demo_gives_its_table(empty: Path) -> None:
    summary = json.loads((empty / "runs" / "demo-fast" / "summary.json").read_text(encoding="utf-8"))
    assert {row["name"]: round(100 * row["p_at_1"], 1) for row in summary["rows"]} == DEMO
    assert len(list((empty / "runs" / "demo-fast" / "pictures").iterdir())) == 6
    assert not (empty / "data" / "toy").exists()


def test_verbs_find_recipes_and_toy_data(python: Path, empty: Path) -> None:
    program = command(python)
    assert "540" in run(program, "check-data", cwd=empty)
    boxes = {"detections": [{"box": box, "label": "cup"} for box in ([5, 5, 40, 40], [60, 10, 110, 80])]}
    (empty / "boxes.jsonl").write_text(json.dumps({"image": "photo.jpg", **boxes}), encoding="utf-8")
    words = ("--run", "runs/demo-fast", "--boxes", "boxes.jsonl")
    assert "cup" in run(program, "predict", "photo.jpg", "the left cup", *words, cwd=empty)
    assert "report.html" in run(program, "report", "runs/demo-fast", cwd=empty)


def test_the_python_lines_of_the_readme_run(python: Path, empty: Path) -> None:
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    run(python, "-c", "\n".join(blocks), cwd=empty)
