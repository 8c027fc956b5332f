# SPDX-License-Identifier: Apache-2.0
"""Every code block of the documents does what it shows: Python runs, commands exist as written.

A block says what it is: ``python`` runs, in a process of its own; ``bash`` is read command by
command (``CHECKS`` below); ``text`` is a drawing or something printed. ``path/or/hub-id`` and
``path/to/model`` stand for a model, and here for ``tests/models/tiny-llama``, and
``path/to/prompts.jsonl`` for ``tests/support/prompts.jsonl``. Notebooks run in
``test_notebook.py``; here their words are read as documents are.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from trained import ROOT, run_python

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
MODEL = str(ROOT / "tests" / "models" / "tiny-llama")
STAND_INS = {
    "path/or/hub-id": MODEL,
    "path/to/model": MODEL,
    "path/to/prompts.jsonl": str(ROOT / "tests" / "support" / "prompts.jsonl"),
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: str
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.document}:{self.line}"


def blocks_of(text: str, document: str = "a.md") -> Iterator[Block]:
    """Yield the fenced blocks; code that is only indented is refused: nothing says what it is."""
    block: list[str] | None = None
    language, start = "", 0
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        if line.lstrip().startswith("```"):
            if block is None:
                language, block, start = line.strip().removeprefix("```"), [], number
            else:
                yield Block(document, start, language, "\n".join(block) + "\n")
                block = None
        elif block is not None:
            block.append(line)
        elif line.startswith("    ") and not lines[number - 2].strip():
            raise ValueError(f"{document}:{number}: indented code; put it between ``` lines")
    if block is not None:
        raise ValueError(f"{document}:{start}: the block has no end")


def all_blocks(language: str) -> list[Block]:
    return [
        block
        for path in DOCUMENTS
        for block in blocks_of(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
        if block.language == language
    ]


def with_a_model(text: str) -> str:
    for name, place in STAND_INS.items():
        text = text.replace(name, place)
    return text


# ------------------------------------------------------------------------------------------ Python


@pytest.mark.parametrize("block", all_blocks("python"), ids=lambda block: block.name)
def test_python_blocks_run(block: Block) -> None:
    finished = run_python(with_a_model(block.text))
    assert finished.returncode == 0, finished.stderr


# ---------------------------------------------------------------------------------------- commands


class Wrong(AssertionError):
    """A command that would not do what the document says."""


def require(condition: object, complaint: str) -> None:
    if not condition:
        raise Wrong(complaint)


def require_flags(words: list[str], source: str, where: str) -> None:
    for word in words:
        flag = word.split("=")[0]
        if flag.startswith("-"):
            require(re.search(rf"(?<![\w-]){flag}(?![\w-])", source), f"{where} knows no {flag}")


def check_script(words: list[str]) -> None:
    """``bash scripts/NAME.sh --flags``: there, and its text knows the flags."""
    script = ROOT / words[1]
    require(script.is_file(), f"there is no {words[1]}")
    require_flags(words[2:], script.read_text(), words[1])


def require_help(command: list[str], words: list[str]) -> None:
    """The help of ``python -m COMMAND`` knows the flags."""
    asked = [sys.executable, "-m", *command, "--help"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=False)
    require(done.returncode == 0, done.stderr)
    require_flags(words, done.stdout, " ".join(command))


def check_python(words: list[str]) -> None:
    """``python -m hybridgen`` and ``hybridgen.sim`` run; of others only their flags are read."""
    if words[1:4] == ["-m", "hybridgen", "serve"]:  # which would not end
        require_help(words[2:4], words[4:])
        return
    if words[1] == "-m" and words[2] in ("hybridgen", "hybridgen.sim"):
        command = [sys.executable, *words[1:]]
        with tempfile.TemporaryDirectory() as folder:  # for what a command writes
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=120, check=False, cwd=folder
            )
        require(done.returncode == 0, done.stderr)
        return
    if words[1] == "-m":
        require_help(words[2:3], words[3:])
        return
    check_script(words)


def presets(kind: str) -> dict[str, dict[str, object]]:
    document = json.loads((ROOT / "CMakePresets.json").read_text())
    return {preset["name"]: preset for preset in document[kind]}


def check_cmake(words: list[str]) -> None:
    """Check how cmake is called.

    ``--preset NAME``, ``-S SOURCE -B FOLDER [-D NAME=VALUE]``, ``--build FOLDER [--target NAMES]``
    or ``--install FOLDER --prefix PLACE --component NAME``.
    """
    built = {Path(str(p["binaryDir"])).name for p in presets("configurePresets").values()}
    if words[1] == "--preset":
        require(words[2] in presets("configurePresets"), f"there is no preset {words[2]}")
    elif words[1] == "-S":
        require((ROOT / words[2] / "CMakeLists.txt").exists(), f"{words[2]} has no CMakeLists.txt")
        require(words[3] == "-B" and words[5] == "-D" and len(words) == 7, f"cmake {words[3:]}")
    elif words[1] == "--install":
        require(words[2] in built, f"no preset builds into {words[2]}")
        require(words[3::2] == ["--prefix", "--component"], f"cmake --install {words[3:]}")
        rules = (ROOT / "cmake/InstallLibrary.cmake").read_text()
        require(f"COMPONENT {words[6]}" in rules, f"there is no component {words[6]}")
    else:
        require(words[1] == "--build", f"cmake {words[1]}")
        configured = {
            found
            for doc in DOCUMENTS
            for found in re.findall(r"cmake -S \S+ -B (\S+)", doc.read_text())
        }
        require(words[2] in built | configured, f"nothing is configured into {words[2]}")
        require(words[3:4] in ([], ["--target"]), f"cmake --build {words[3:]}")
        listed = "\n".join(file.read_text() for file in ROOT.glob("*/cpp/CMakeLists.txt"))
        for target in words[4:]:
            require(re.search(rf"\(\s*{target}\b", listed), f"there is no target {target}")


def check_ctest(words: list[str]) -> None:
    """``ctest --preset NAME [-L FOLDER] [-j N]``."""
    require(words[1] == "--preset" and words[2] in presets("testPresets"), f"no preset {words[2]}")
    for flag, value in zip(words[3::2], words[4::2], strict=True):
        require(flag in ("-L", "-j"), f"ctest {flag}")
        labelled = [ROOT / "tests/cpp" / value, ROOT / "tests" / value / "CMakeLists.txt"]
        require(flag != "-L" or any(path.exists() for path in labelled), f"no folder {value}")


def check_pytest(words: list[str]) -> None:
    """``pytest [-m MARKERS] [-n N] [FILES]``: markers are declared and files are there."""
    pytest_options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    known = {line.split(":")[0] for line in pytest_options["ini_options"]["markers"]}
    rest = iter(words[1:])
    for word in rest:
        if word == "-m":
            markers = set(re.findall(r"\w+", next(rest))) - {"not", "and", "or"}
            require(markers <= known, f"markers {markers - known} are not declared")
        elif word == "-n":
            next(rest)
        else:
            require((ROOT / word.split("::")[0]).exists(), f"there is no {word}")


def check_binary(words: list[str]) -> None:
    """Our own test or benchmark executable: the filter finds something."""
    folder, name = ROOT / "build", Path(words[0]).name
    filters = dict(word.removeprefix("--").split("=", 1) for word in words[1:])
    if name.endswith("_tests"):
        require(set(filters) <= {"gtest_filter"}, f"{name} {words[1:]}")
        listing, executable = "--gtest_list_tests", folder / "tests/cpp" / name
        require((ROOT / "tests/cpp" / name.removesuffix("_tests")).is_dir(), f"no {name}")
    else:
        require(set(filters) <= {"benchmark_filter"}, f"{name} {words[1:]}")
        listing, executable = "--benchmark_list_tests", folder / "benchmarks/cpp" / name
        lists = (ROOT / "benchmarks/cpp/CMakeLists.txt").read_text()
        require(name in lists, f"there is no {name}")
    require(str(executable) == str(ROOT / words[0]), f"{name} is built as {executable}")
    if executable.exists():  # benchmarks are optional
        command = [str(executable), *words[1:], listing]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        chosen = [line for line in found.stdout.splitlines() if not line.startswith("Running")]
        require(chosen, f"{words[1:]} chooses nothing")


def check_pip(words: list[str]) -> None:
    """``pip install . --no-build-isolation``; what the wheel is made of is test.sh's to try."""
    package = re.fullmatch(r"\.(?:\[(\w+)\])?", words[2])
    require(words[1] == "install" and package, shlex.join(words))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert package is not None
    require(package[1] in {None, *extras}, f"there is no extra {package[1]}")
    require(set(words[3:]) <= {"--no-build-isolation"}, shlex.join(words))


def check_pre_commit(words: list[str]) -> None:
    require(words[1:] == ["install"], shlex.join(words))
    require((ROOT / ".pre-commit-config.yaml").exists(), "pre-commit is not configured")


def check_source(words: list[str]) -> None:
    require(words[1] == ".venv/bin/activate", f"source {words[1]}")


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "bash": check_script,
    "python": check_python,
    "hybridgen": lambda words: check_python(["python", "-m", *words]),
    "cmake": check_cmake,
    "ctest": check_ctest,
    "pytest": check_pytest,
    "pip": check_pip,
    ".venv/bin/pre-commit": check_pre_commit,
    "source": check_source,
}


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the commands of a block as words, without comments and leading assignments."""
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
                continue
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield words
            words = []


def check_command(words: list[str]) -> None:
    check = check_binary if words[0].startswith("build/") else CHECKS.get(words[0])
    require(check, f"no check knows the command {words[0]}")
    assert check is not None
    check([with_a_model(word) for word in words])


@pytest.mark.parametrize("block", all_blocks("bash"), ids=lambda block: block.name)
def test_commands_exist_as_written(block: Block) -> None:
    commands = list(commands_of(block.text))
    assert commands
    for words in commands:
        check_command(words)


@pytest.mark.parametrize(
    "line",
    [
        "bash scripts/no_such.sh",
        "bash scripts/test.sh --everything",
        "python -m hybridgen generate --no-such-flag",
        "python benchmarks/methods.py --no-such-flag",
        "cmake --preset no_such",
        "cmake --build build-no-such",
        "cmake --build build --target no_such",
        "cmake -S no/such -B build-x -D CMAKE_PREFIX_PATH=x",
        "cmake --install build-no-such --prefix x --component cpp",
        "cmake --install build --prefix x --component no_such",
        "ctest --preset default -L no_such",
        "pytest -m no_such",
        "pytest tests/python/test_no_such.py",
        "build/tests/cpp/kvcache_tests --gtest_filter=NoSuch",
        "build/tests/cpp/no_such_tests",
        "make",
    ],
)
def test_a_command_that_would_not_work_is_found(line: str) -> None:
    binary = ROOT / line.split()[0]
    if line.startswith("build/tests/cpp/kvcache") and not binary.exists():
        pytest.skip("a built tree would run it")
    (words,) = commands_of(line)
    with pytest.raises(Wrong):
        check_command(words)


# ------------------------------------------------------------------------------------- everything


def test_every_block_says_what_it_is() -> None:
    for path in DOCUMENTS:
        for block in blocks_of(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))):
            assert block.language in {"python", "bash", "text"}, block.name


def test_indented_code_and_blocks_without_an_end_are_found() -> None:
    with pytest.raises(ValueError, match=r"a\.md:3: indented code"):
        list(blocks_of("Run\n\n    make\n"))
    with pytest.raises(ValueError, match=r"a\.md:1: the block has no end"):
        list(blocks_of("```bash\nmake\n"))


def words_of(path: Path) -> str:
    """Return a document's text; of a notebook that of its cells of words."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_committed_without_outputs_and_run_by_a_test(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert content["metadata"]["kernelspec"]["name"] == "python3"  # not that of one machine
    assert path.name in (ROOT / "tests/python/test_notebook.py").read_text(encoding="utf-8")


PLACES = r"(?:benchmarks|cmake|docs|include|python|scripts|src|tests)"


def named_paths(text: str) -> set[str]:
    """Return the files of this project that a text names between back-ticks."""
    return set(re.findall(rf"`(?:bash |python )?({PLACES}/[\w./-]+\.\w+)[^`]*`", text))


@pytest.mark.parametrize(
    "path", DOCUMENTS + NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT))
)
def test_files_that_documents_name_exist(path: Path) -> None:
    # F stands for a folder.
    names = {name for name in named_paths(words_of(path)) if "/F/" not in name}
    assert not [name for name in names if not (ROOT / name).exists()]


@pytest.mark.parametrize(
    "path", DOCUMENTS + NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT))
)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)[^)]*\)", words_of(path)):
        assert (path.parent / target).exists(), target
