# SPDX-License-Identifier: Apache-2.0
"""Scripts that import FlexGen, under either of its names, run unchanged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexgen_runs import converted
from hybridgen.flexgen import as_flexgen
from trained import ROOT

# As chat programs called it: the ids of a result are the next call's input, eight tokens at a time.
STREAMED = """
import sys
import numpy as np
import torch
from flexgen.flex_opt import CompressionConfig, ExecutionEnv, OptLM, Policy

env = ExecutionEnv.create(sys.argv[2])
policy = Policy(1, 1,
                100, 0,
                0, 100,
                100, 0,
                overlap=True, sep_layer=True, pin_weight=True,
                cpu_cache_compute=False, attn_sparsity=1.0,
                compress_weight=False,
                comp_weight_config=CompressionConfig(
                    num_bits=4, group_size=64, group_dim=0, symmetric=False),
                compress_cache=False,
                comp_cache_config=CompressionConfig(
                    num_bits=4, group_size=64, group_dim=2, symmetric=False))
model = OptLM("facebook/tiny-opt", env, sys.argv[1], policy)
ids = torch.tensor([[40, 300, 7, 200, 9]])
for _ in range(2):
    ids = model.generate(ids, do_sample=False, temperature=0.7, stop=2, max_new_tokens=8)[0][None]
print("RESULT", type(ids).__name__, ids.dtype, ids.shape)
env.close_copy_threads()
"""

# As policy searches and benchmarks use it, by the later name.
MEASURED = """
import argparse
import dataclasses
from flexllmgen.compression import CompressionConfig
from flexllmgen.flex_opt import (Env, Policy, Task, TorchDevice, TorchDisk, TorchMixedDevice,
    add_parser_arguments, get_opt_config, get_test_inputs, run_flexllmgen, str2bool)
from flexllmgen.opt_config import OptConfig
from flexllmgen.timer import timers
from flexllmgen.utils import GB, T, ValueHolder, array_2d, project_decode_latency, run_cmd
import flexgen.utils, flexllmgen.utils, flexllmgen

assert flexgen.utils is flexllmgen.utils
config = get_opt_config("opt-175b", num_hidden_layers=24)
print("RESULT", round(config.model_bytes() / GB, 3), T == 1e12, str2bool("y"))
parser = argparse.ArgumentParser()
add_parser_arguments(parser)
args = parser.parse_args()
assert len(args.percent) == 6
run_flexllmgen(args)
print("COSTS", len(timers("generate").costs))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(tmp_path_factory.mktemp("opt_weights"))


@pytest.fixture
def unaliased() -> Iterator[None]:
    """Forget FlexGen's names and the arguments of the script again."""
    argv, path = sys.argv, list(sys.path)
    yield
    sys.argv, sys.path[:] = argv, path
    for name in [n for n in sys.modules if n.split(".")[0] in as_flexgen.NAMES]:
        del sys.modules[name]


def test_a_script_that_imports_flexgen_runs_in_a_process_of_its_own(
    weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "bot.py").write_text(STREAMED)
    done = subprocess.run(
        [sys.executable, "-m", "hybridgen.as_flexgen", "bot.py", str(weights), "offload"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "python"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "RESULT ndarray int32 (1, 21)\n"
    assert "Exception" not in done.stderr  # the model goes with the interpreter


@pytest.mark.usefixtures("unaliased")
def test_a_script_that_imports_flexllmgen_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench.py").write_text(MEASURED)
    words = "--model facebook/opt-125m --path _DUMMY_ --prompt-len 8 --gen-len 3 --gpu-batch-size 1"
    assert as_flexgen.main(["bench.py", *words.split(), "--offload-dir", "o"]) == 0
    out = capsys.readouterr().out
    assert "RESULT 82.157 True True\n" in out
    assert "COSTS 3\n" in out
    assert list(tmp_path.glob("fo-125m-gbs1-*.log"))


@pytest.mark.usefixtures("unaliased")
def test_programs_run_by_flexgens_module_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert as_flexgen.main(["-m", "flexgen.flex_opt", "--model", "opt-9b"]) == 2
    assert "allowed: opt-125m" in capsys.readouterr().err
    assert as_flexgen.main(["-m", "flexllmgen.profile_matmul"]) == 2
    assert "there is no module flexllmgen.profile_matmul" in capsys.readouterr().err


def test_a_call_without_a_script_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert as_flexgen.main([]) == 2
    assert as_flexgen.main(["--help"]) == 0
    assert "as_flexgen SCRIPT" in capsys.readouterr().out
    assert as_flexgen.main(["nowhere.py"]) == 2
    assert "there is no script nowhere.py" in capsys.readouterr().err
