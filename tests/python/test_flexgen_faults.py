# SPDX-License-Identifier: Apache-2.0
"""FlexGen's own faults are not here: no test's prompts are the same in two rows or batches.

Others stand where their subject does: half-built objects, stops and early endings in
test_opt_lm.py; logs, short cuts and names in test_flex_opt.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexgen_runs import (
    continued_by_transformers,
    converted,
    different_rows,
    opt_lm,
    policy,
    step_after_writes,
)
from hybridgen.flexgen import flex_opt
from trained import ROOT, folder_of

NEW = 4


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(tmp_path_factory.mktemp("opt_weights"))


@pytest.fixture(scope="module")
def reference() -> Callable[[Any], Any]:
    return continued_by_transformers(NEW)


@pytest.mark.parametrize("cache", [(0, 100), (50, 50), (0, 50), (0, 0)], ids=str)
def test_with_attention_on_the_cpu_every_batch_reads_its_own_cache(
    weights: Path, tmp_path: Path, reference: Callable[[Any], Any], cache: tuple[int, int]
) -> None:
    rows = different_rows(6, length=300)
    wanted = policy(100, 0, *cache, 100, 0, num_gpu_batches=3, cpu_cache_compute=True)
    model = opt_lm(weights, tmp_path, wanted)
    assert np.array_equal(model.generate(rows, NEW), reference(rows))
    model.delete_all_weights()


@pytest.mark.parametrize("on_cpu", [False, True])
def test_without_overlap_nothing_is_read_before_its_copy_is_done(
    weights: Path,
    tmp_path: Path,
    reference: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
    on_cpu: bool,
) -> None:
    rows = different_rows(4, length=600)
    wanted = policy(0, 50, 0, 50, 100, 0, overlap=False, cpu_cache_compute=on_cpu)
    model = opt_lm(weights, tmp_path, wanted)
    step_after_writes(model, monkeypatch)
    assert np.array_equal(model.generate(rows, NEW), reference(rows))
    assert model.llm.stats.disk_bytes_read > 0
    assert model.llm.stats.weight_bytes_read > 0
    model.delete_all_weights()


# No file may grow beyond 64 KiB: as a full disk, this fails in the thread that writes.
ON_A_FULL_DISK = """
import resource
import sys

from hybridgen.flexgen.flex_opt import main

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
for percent in ("0 0 100 0 100 0", "100 0 0 0 100 0"):
    print("CODE", main([*sys.argv[1:], "--percent", *percent.split()]))
"""


def test_a_disk_that_is_full_ends_a_run_with_one_sentence(weights: Path, tmp_path: Path) -> None:
    offload = tmp_path / "offload"
    offload.mkdir()
    (offload / "mine").write_text("of before")
    (tmp_path / "lines").write_text("k1 v1 w1\nw2 w3 w4\n")
    line = f"--model tiny-opt --path {weights} --offload-dir {offload} --no-log --prompt-len 600 "
    line += "--gen-len 2 --hg-device cpu --hg-dtype float32 --hg-threads 1 --hg-fill-prompts"
    done = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_DISK, *line.split(), "--hg-prompt-file", "lines"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "python"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    codes = re.findall(r"^CODE (\d+)$", done.stdout, re.MULTILINE)
    errors = [text for text in done.stderr.splitlines() if text.startswith("error: [")]
    assert len(codes) == len(errors) == 2
    assert set(codes) <= {"1", "2"}
    assert "weight" in errors[0]
    assert "disk" in errors[1]
    assert "Traceback" not in done.stderr
    assert [(file.name, file.read_text()) for file in offload.iterdir()] == [("mine", "of before")]


def open_files_in(folder: Path) -> list[str]:
    """Return what this process has open there, named or not."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        if link.is_symlink():
            found.append(os.readlink(link))
    return [name for name in found if name.startswith(str(folder))]


def test_divided_and_compressed_tensors_leave_no_file_behind(weights: Path, tmp_path: Path) -> None:
    offload = tmp_path / "offload"
    for fields in ({}, {"compress_weight": True}, {"compress_cache": True}):
        model = opt_lm(weights, offload, policy(30, 30, 50, 0, 100, 0, **fields))
        model.generate(different_rows(length=600), NEW)
        assert open_files_in(offload)
        assert not list(offload.iterdir())
        model.delete_all_weights()
        assert not open_files_in(offload)


def test_two_runs_may_share_a_folder(weights: Path, tmp_path: Path) -> None:
    rows = different_rows(length=300)
    wanted = policy(0, 0, 0, 0, 100, 0)
    first, second = (opt_lm(weights, tmp_path, wanted) for _ in range(2))
    expected = first.generate(rows, NEW)
    assert np.array_equal(second.generate(rows, NEW), expected)
    first.delete_all_weights()
    assert np.array_equal(second.generate(rows, NEW), expected)
    second.delete_all_weights()


def test_memory_of_the_cpu_is_counted(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = opt_lm(weights, tmp_path, policy(0, 100, 0, 100, 0, 100))
    model.env.cpu.print_stats()
    model.delete_all_weights()
    found = re.search(r"cur_mem: (\S+) GB,  peak_mem: (\S+) GB", capsys.readouterr().out)
    assert found
    assert 0 < float(found[1]) <= float(found[2])


def test_an_activation_that_is_no_relu_is_refused_and_not_run_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "galactica"
    shutil.copytree(folder_of("tiny-opt"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"activation_function": "gelu"}))
    line = f"--model {folder} --offload-dir {tmp_path / 'offload'} --no-log --hg-device cpu"
    assert flex_opt.main(line.split()) != 0
    error = capsys.readouterr().err
    assert "activation_function is 'gelu'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "offload").exists()
