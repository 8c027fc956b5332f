# SPDX-License-Identifier: Apache-2.0
"""Holds the order of folders that docs/architecture.md states: includes and imports point down.

    python scripts/check_layers.py [ROOT]

Fails, naming file and line, where a C++ file includes a header of a folder that stands beside or
above its own, where a folder that builds without LibTorch includes it, where the pipeline names a
method, where a header is not included by its folder, and where Python modules import in a circle.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

# From the lowest layer to the highest. Folders of one line do not include each other.
LAYERS = (
    ("core",),
    ("runtime",),
    ("memory",),
    ("kernels",),
    ("kvcache",),
    ("selection", "scheduling"),
    ("emulated",),
    ("device",),
    ("models",),
    ("parts",),
    ("methods",),
    ("pipeline",),
    ("engine",),
    ("bindings",),
)
LEVEL = {folder: level for level, folders in enumerate(LAYERS) for folder in folders}
# Everything up to here builds without LibTorch.
LAST_WITHOUT_TORCH = LEVEL["scheduling"]
# The pipeline's host half, too.
WITHOUT_TORCH = (
    "pipeline/cpu_stage.",
    "pipeline/device_gate.",
    "pipeline/host_job.",
    "pipeline/host_selection.",
    "pipeline/host_task.",
    "pipeline/pipeline_probe.",
    "pipeline/test_probe.",
)

INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]')
TORCH = re.compile(r"^(ATen|c10|torch)/")
CODE_SUFFIXES = (".h", ".cpp", ".cu")


def folder_of(path: Path, root: Path) -> str:
    """The layer that a source file or public header belongs to."""
    parts = path.relative_to(root).parts
    return parts[{"include": 2, "src": 1, "python": 1}[parts[0]]]


def sources(root: Path) -> Iterator[Path]:
    """All C++ files of the product."""
    for top in ("include/hybridgen", "src", "python/bindings"):
        for path in sorted((root / top).rglob("*")):
            if path.suffix in CODE_SUFFIXES:
                yield path


def included_folder(name: str) -> str | None:
    """The layer of an included header; None if it is not written with its folder."""
    parts = name.removeprefix("hybridgen/").split("/")
    return parts[0] if len(parts) == 2 and parts[0] in LEVEL else None


def method_names(root: Path) -> list[str]:
    """The names of the methods: methods/ has one file for each."""
    listed = (root / "src/methods/methods.h").read_text(encoding="utf-8")
    return re.findall(r"\bMethod (\w+)_method\(const EngineOptions", listed)


def wrong_includes(path: Path, root: Path) -> Iterator[str]:
    """What is wrong with the includes of one file."""
    folder = folder_of(path, root)
    where = path.relative_to(root)
    if folder not in LEVEL:
        yield f"{where}: folder '{folder}' has no layer; allowed: {', '.join(LEVEL)}"
        return
    without_torch = LEVEL[folder] <= LAST_WITHOUT_TORCH or any(
        part in path.as_posix() for part in WITHOUT_TORCH
    )
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = INCLUDE.match(line)
        if match is None:
            continue
        quote, name = match.groups()
        if TORCH.match(name) and without_torch:
            yield f"{where}:{number}: {name} in a folder that builds without LibTorch"
        if quote == "<":
            continue
        target = included_folder(name)
        if folder == "bindings" and (path.parent / name).exists():
            continue
        if target is None:
            yield f"{where}:{number}: write {name} with its folder"
        elif target != folder and LEVEL[target] >= LEVEL[folder]:
            way = "up" if LEVEL[target] > LEVEL[folder] else "sideways"
            yield f"{where}:{number}: {folder} includes {way}: {name}"


def methods_in_pipeline(root: Path) -> Iterator[str]:
    """Where the pipeline names a method: in code, not in comments."""
    names = [name for name in method_names(root) if name not in ("full", "hybridgen")]
    pattern = re.compile("|".join(name.replace("_", "_?") for name in names), re.IGNORECASE)
    for path in sources(root):
        if folder_of(path, root) != "pipeline":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found = pattern.search(line.split("//")[0])
            if found:
                yield f"{path.relative_to(root)}:{number}: the pipeline names {found.group()}"


def python_imports(path: Path) -> Iterator[str]:
    """Modules of the package that a module imports, at its top or inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node in typing_only:
            continue
        module = node.module or ""
        if node.level == 0 and module.startswith("hybridgen."):
            yield module.split(".")[1]
        elif node.level == 1 and module:
            yield module.split(".")[0]
        elif node.level == 1 or module == "hybridgen":
            yield from (alias.name for alias in node.names)


def python_circles(root: Path) -> Iterator[str]:
    """Each circle of imports in the package, once."""
    package = root / "python/hybridgen"
    graph = {path.stem: set(python_imports(path)) for path in sorted(package.glob("*.py"))}
    graph.pop("__init__", None)
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> Iterator[str]:
        if module in trail:
            circle = [*trail[trail.index(module) :], module]
            yield f"python/hybridgen: a circle of imports: {' -> '.join(circle)}"
        elif module not in done:
            for other in sorted(graph[module] & graph.keys()):
                yield from visit(other, [*trail, module])
            done.add(module)

    for module in graph:
        yield from visit(module, [])


def problems(root: Path) -> list[str]:
    """Everything that breaks the order of the tree under `root`."""
    found = [problem for path in sources(root) for problem in wrong_includes(path, root)]
    return [*found, *methods_in_pipeline(root), *python_circles(root)]


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    found = problems(root)
    for problem in found:
        print(problem)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
