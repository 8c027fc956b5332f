# SPDX-License-Identifier: Apache-2.0
"""Runs a script that imports ``flexgen`` or ``flexllmgen`` on this library instead, unchanged."""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

_HERE = __name__.rpartition(".")[0]
MODULES = (
    "",
    ".compression",
    ".opt_config",
    ".policy",
    ".pytorch_backend",
    ".timer",
    ".utils",
    ".flex_opt",
    ".apps",
    ".apps.completion",
)
"""FlexGen's modules that there are."""
NAMES = ("flexgen", "flexllmgen")


def install() -> None:
    """Let ``import flexgen`` and ``import flexllmgen`` find this library's modules."""
    for module in MODULES:
        found = importlib.import_module(_HERE + module)
        for name in NAMES:
            sys.modules[name + module] = found


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m hybridgen.as_flexgen SCRIPT ARGS``; returns the exit code of a wrong call."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(f"python -m hybridgen.as_flexgen SCRIPT [ARGS]: {__doc__}")
        return 0 if words else 2
    install()
    if words[0] == "-m" and len(words) > 1:
        sys.argv = words[1:]
        return _run_module(words[1])
    script = Path(words[0])
    if not script.is_file():
        print(
            f"error: [as_flexgen] there is no script {words[0]}; pass one, or -m MODULE",
            file=sys.stderr,
        )
        return 2
    sys.argv = words
    sys.path.insert(0, os.fspath(script.resolve().parent))
    runpy.run_path(os.fspath(script), run_name="__main__")
    return 0


def _run_module(name: str) -> int:
    """Run a module of FlexGen's by its name there, or another script as a module."""
    package, _, rest = name.partition(".")
    if package not in NAMES:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        return 0
    try:
        entry = importlib.import_module(f"{_HERE.rpartition('.')[0]}.{rest}")
    except ImportError:
        print(f"error: [as_flexgen] there is no module {name}", file=sys.stderr)
        return 2
    return int(entry.main(sys.argv[1:]))
