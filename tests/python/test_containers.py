# SPDX-License-Identifier: Apache-2.0
"""Container files: what can be checked of them where nothing builds an image."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from trained import ROOT

FILES = sorted((ROOT / "containers").glob("*.Dockerfile"))


def test_there_is_one_for_cpus_and_one_for_gpus() -> None:
    assert [path.name for path in FILES] == ["cpu.Dockerfile", "cuda.Dockerfile"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_container_file_has_what_it_names(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists(), name
    for name in re.findall(r"-[rc] (\S+)", text):
        assert (ROOT / name).is_file(), name
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["10001"]  # no superuser


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_has_the_torch_that_is_tested(path: Path) -> None:
    setup = (ROOT / "scripts" / "setup.sh").read_text(encoding="utf-8")
    found = re.search(r'default_torch="(.+)"', setup)
    assert found is not None
    installed = re.findall(r"torch==([\d.]+)\+", path.read_text(encoding="utf-8"))
    assert installed == [found[1]]


def test_the_image_for_gpus_stands_on_what_compiles_kernels_in_every_change() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    (image,) = re.findall(r"container: (nvidia/cuda:\S+)", workflow)
    text = (ROOT / "containers" / "cuda.Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == [
        image,
        image.replace("-devel-", "-base-"),
    ]


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("bash scripts/setup.sh --lint installs hadolint")
    done = subprocess.run([hadolint, *map(str, FILES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
