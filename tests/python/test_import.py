# SPDX-License-Identifier: Apache-2.0
"""Importing the package: a readable sentence when the compiled module does not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hybridgen

PACKAGE = Path(hybridgen.__file__).resolve().parents[1]


def import_error(preparation: str) -> str:
    """Import hybridgen in a fresh process after some preparation; return its last error line."""
    code = (
        f"import sys, types\nsys.path.insert(0, {str(PACKAGE)!r})\n{preparation}\nimport hybridgen"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


def test_a_module_built_for_another_torch_says_which() -> None:
    error = import_error(
        "core = types.ModuleType('hybridgen._core')\n"
        "core.build_info = lambda: {'torch_version': '1.2.3', 'version': '0'}\n"
        "sys.modules['hybridgen._core'] = core"
    )
    assert error.startswith("ImportError: hybridgen._core was built for torch 1.2.3, but torch ")
    assert "rebuild" in error


def test_a_module_that_cannot_be_loaded_says_how_to_rebuild() -> None:
    error = import_error("sys.modules['hybridgen._core'] = None")
    assert error.startswith("ImportError: hybridgen._core cannot be loaded")
    assert "pip install --no-build-isolation ." in error


def test_everything_public_is_there() -> None:
    for name in hybridgen.__all__:
        assert getattr(hybridgen, name) is not None


def test_the_command_line_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hybridgen", "methods"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE,
    )
    assert "hybridgen: " in done.stdout


def test_what_few_need_is_not_imported() -> None:
    code = (
        f"import sys\nsys.path.insert(0, {str(PACKAGE)!r})\nimport hybridgen.cli\n"
        "print({'ray', 'pyarrow', 'fastapi'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
