# SPDX-License-Identifier: Apache-2.0
"""The check of the order of folders holds, and finds each kind of violation when it is planted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import check_layers

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for folder in ("include", "src", "python/bindings", "python/hybridgen"):
        shutil.copytree(
            ROOT / folder,
            tmp_path / folder,
            ignore=shutil.ignore_patterns("*.so", "__pycache__"),
        )
    return tmp_path


def plant(file: Path, line: str) -> None:
    file.write_text(line + "\n" + file.read_text(encoding="utf-8"), encoding="utf-8")


def test_the_tree_keeps_the_order() -> None:
    assert check_layers.problems(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        (
            "src/kernels/gather.cpp",
            '#include "kvcache/host_kv_store.h"',
            "src/kernels/gather.cpp:1: kernels includes up: kvcache/host_kv_store.h",
        ),
        (
            "src/scheduling/feedback_scheduler.cpp",
            '#include "hybridgen/selection/token_selector.h"',
            "scheduling includes sideways: hybridgen/selection/token_selector.h",
        ),
        (
            "include/hybridgen/core/types.h",
            '#  include "runtime/cpus.h"',
            "include/hybridgen/core/types.h:1: core includes up: runtime/cpus.h",
        ),
        (
            "src/kvcache/token_mapper.cpp",
            "#include <ATen/ATen.h>",
            "ATen/ATen.h in a folder that builds without LibTorch",
        ),
        (
            "src/pipeline/cpu_stage.cpp",
            "#include <c10/util/Half.h>",
            "c10/util/Half.h in a folder that builds without LibTorch",
        ),
        ("src/engine/engine.cpp", '#include "admission.h"', "write admission.h with its folder"),
        (
            "src/pipeline/prefill.cpp",
            "const bool is_moe_lightning = false;",
            "src/pipeline/prefill.cpp:1: the pipeline names moe_lightning",
        ),
        (
            "src/pipeline/decode_pipeline.h",
            "class InfiniGenPool;",
            "src/pipeline/decode_pipeline.h:1: the pipeline names InfiniGen",
        ),
    ],
)
def test_a_planted_violation_is_found(tree: Path, file: str, line: str, said: str) -> None:
    plant(tree / file, line)
    (problem,) = check_layers.problems(tree)
    assert said in problem


def test_a_folder_without_a_layer_is_found(tree: Path) -> None:
    (tree / "src" / "misc").mkdir()
    (tree / "src" / "misc" / "misc.cpp").write_text("", encoding="utf-8")
    (problem,) = check_layers.problems(tree)
    assert "folder 'misc' has no layer" in problem


def test_a_method_may_be_named_in_a_comment(tree: Path) -> None:
    plant(tree / "src/pipeline/prefill.cpp", "// As in Keyformer.")
    assert check_layers.problems(tree) == []


def test_a_circle_of_python_modules_is_found(tree: Path) -> None:
    errors = tree / "python/hybridgen/errors.py"
    source = errors.read_text(encoding="utf-8") + "\n\ndef late():\n    from .llm import LLM\n"
    errors.write_text(source, encoding="utf-8")
    (first, *_) = check_layers.problems(tree)
    assert "a circle of imports" in first
    assert "errors" in first


def test_an_import_for_types_alone_makes_no_circle(tree: Path) -> None:
    errors = tree / "python/hybridgen/errors.py"
    lines = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from .llm import LLM\n"
    errors.write_text(errors.read_text(encoding="utf-8") + lines, encoding="utf-8")
    assert check_layers.problems(tree) == []


def test_it_fails_as_a_command(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(tree / "src/core/names.cpp", '#include "engine/admission.h"')
    monkeypatch.setattr("sys.argv", ["check_layers.py", str(tree)])
    assert check_layers.main() == 1
    assert "core includes up: engine/admission.h" in capsys.readouterr().out
