# SPDX-License-Identifier: Apache-2.0
"""What `python -m hybridgen profile` makes of a machine: of this CPU, and of GPUs that are made up.

No GPU is at hand in most places: `MadeUpGpu` has known rates, which must come out; `CudaGpu` runs
with a stand-in for ``torch.cuda`` that executes on the CPU, which shows that its calls fit together
and nothing about any figure.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hybridgen import ConfigError, MachineProfile, _core
from hybridgen.cli import main
from hybridgen.gpu_measurement import COPY_MEGABYTES, ROW_BYTES, CudaGpu, gpu_steps, rising_shares
from hybridgen.machine_measurement import measure_machine
from hybridgen.machine_rates import field_table

CPU_FIELDS = {row["name"] for row in field_table() if row["name"].startswith("cpu.")}


class MadeUpGpu:
    """A GPU of round rates: 1000 GB/s and 1 us for a copy, 100 and 10 TFLOP/s, a link of 50 and 40
    GB/s of which 0.6 are left in both directions, 4 us for each copy over it, launches of 3 us and
    7 us until the host wakes.
    """

    name = "made up"
    memory_bytes = 80_000_000_000

    def copies(self, nbytes: int, times: int) -> float:
        return times * max(1e-6, 2 * nbytes / 1000e9)

    def products(self, size: int, dtype: torch.dtype, times: int) -> float:
        return times * 2 * size**3 / (100e12 if dtype == torch.bfloat16 else 10e12)

    def link(self, down: int, up: int, times: int) -> float:
        factor = 0.6 if down and up else 1.0
        return times * max(4e-6, down / (50e9 * factor), up / (40e9 * factor))

    def gather(self, row_bytes: int, rows: int) -> float | None:
        return row_bytes * rows / (50e9 * min(0.75, (row_bytes / 4096) ** 0.5))

    def largest(self, rows: int, count: int, k: int) -> float:
        return rows * count / 20e9

    def launches(self, times: int) -> float:
        return times * 3e-6

    def round_trip(self) -> float:
        return 3e-6 + 1e-6 + 7e-6


def fields_of(gpu: Any, *, quick: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _, run in gpu_steps(gpu, quick=quick):
        found |= run()
    return found


# ------------------------------------------------------------------------------------------ a GPU


@pytest.mark.parametrize("quick", [True, False])
def test_the_rates_of_a_gpu_come_out_in_the_files_units(quick: bool) -> None:
    found = fields_of(MadeUpGpu(), quick=quick)
    pairs = {name: found.pop(name) for name in ("gpu.hbm_eff", "link.gather_eff")}
    assert found == pytest.approx(
        {
            "gpu.mem_gb": 80.0,
            "gpu.hbm_gbs": 1000.0,
            "gpu.tflops": 100.0,
            "gpu.tflops_fp32": 10.0,
            "gpu.topk_gelem_s": 20.0,
            "link.h2d_gbs": 50.0,
            "link.d2h_gbs": 40.0,
            "link.duplex_factor": 0.6,
            "link.setup_us": 4.0,
            "link.zero_copy_eff": 0.25,
            "overhead.launch_us": 3.0,
            "overhead.graph_us": 1.0,
            "overhead.sync_us": 7.0,
        }
    )
    # 0.1 MB takes the microsecond that any copy does, of which moving it is a tenth.
    assert pairs["gpu.hbm_eff"][0] == pytest.approx((0.1, 0.1))
    assert pairs["gpu.hbm_eff"][-1] == (1000.0 if not quick else 100.0, 1.0)
    assert dict(pairs["link.gather_eff"])[1024] == pytest.approx(0.5)
    assert [size for size, _ in pairs["link.gather_eff"]] == list(ROW_BYTES)


def test_a_small_device_is_measured_with_what_it_holds() -> None:
    gpu = MadeUpGpu()
    gpu.memory_bytes = 1_000_000_000
    sizes = [size for size, _ in fields_of(gpu, quick=False)["gpu.hbm_eff"]]
    assert sizes == [mb for mb in COPY_MEGABYTES if mb <= 125]


def test_a_gpu_that_cannot_read_host_memory_leaves_these_fields_out() -> None:
    gpu = MadeUpGpu()
    gpu.gather = lambda row_bytes, rows: None  # type: ignore[method-assign]
    names = fields_of(gpu).keys()
    assert "link.h2d_gbs" in names
    assert not {"link.zero_copy_eff", "link.gather_eff"} & names


def test_shares_of_noisy_rates_make_a_profile_that_is_allowed() -> None:
    sizes = [0.1, 1.0, 10.0, 100.0]
    for rates in ([1.0, 9.0, 100.0, 99.0], [5.0, 5.0, 5.0, 5.0], [1.0, 10.0, 100.0, 1000.0]):
        shares = rising_shares(sizes, rates)
        profile = MachineProfile.from_dict(
            {"format": 1, "name": "noisy", "gpu": {"hbm_eff": [list(pair) for pair in shares]}}
        )
        assert profile.gpu.hbm_eff == tuple(shares)


@pytest.fixture
def cuda_on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let ``torch.cuda`` execute on the CPU; returns what was captured and replayed."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            self.time = 0.0

        def record(self, stream: object = None) -> None:
            self.time = time.perf_counter()

        def synchronize(self) -> None:
            assert self.time

        def elapsed_time(self, other: Event) -> float:
            return max(1e-3, 1e3 * (other.time - self.time))

    class Stream:
        def __init__(self, device: torch.device) -> None:
            assert device.type == "cpu"

        def wait_event(self, event: Event) -> None:
            assert event.time

    class Graph:
        def replay(self) -> None:
            log.append("replayed")

    def captured(graph: Graph) -> Any:
        log.append("captured")
        return nullcontext()

    zeros = torch.zeros
    fakes = {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": captured,
        "stream": lambda stream: nullcontext(),
        "synchronize": lambda device: None,
        "get_device_properties": lambda device: SimpleNamespace(
            name="stand-in", total_memory=8_000_000_000
        ),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch, "zeros", lambda *a, pin_memory=False, **k: zeros(*a, **k))
    monkeypatch.setattr("hybridgen.gpu_measurement.MEBI", 1 << 12)
    return log


def test_the_calls_of_a_cuda_device_fit_together(cuda_on_cpu: list[str]) -> None:
    gpu = CudaGpu(torch.device("cpu"))
    assert gpu.copies(1000, 3) > 0.0
    assert gpu.copies(1000, 3) > 0.0  # captured once
    assert cuda_on_cpu == ["captured", "replayed", "replayed"]
    assert gpu.products(8, torch.bfloat16, 2) > 0.0
    for down, up in ((4096, 0), (0, 4096), (4096, 4096), (4, 0)):
        assert gpu.link(down, up, 2) > 0.0
    # Here the device's memory and the host's are one; a CPU torch may still refuse the view.
    assert (gpu.gather(64, 10) or 1.0) > 0.0
    assert gpu.largest(2, 100, 5) > 0.0
    assert gpu.launches(5) > 0.0
    assert gpu.round_trip() > 0.0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_gpu_is_measured_whole() -> None:
    profile = measure_machine(quick=True)
    measured = {name for name, how in profile.confidence.items() if how == "measured"}
    for name in ("gpu.hbm_gbs", "gpu.tflops", "link.h2d_gbs", "link.d2h_gbs", "overhead.sync_us"):
        assert name in measured


# ---------------------------------------------------------------------------------- whole profiles


@pytest.fixture(scope="module")
def mixed() -> MachineProfile:
    """This CPU under a shipped GPU."""
    return measure_machine(base=MachineProfile.load("h100"), quick=True, gpu=None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures the GPU instead of the base's")
def test_a_mixed_profile_has_the_bases_gpu_and_link_and_this_cpu(mixed: MachineProfile) -> None:
    base = MachineProfile.load("h100")
    assert (mixed.gpu, mixed.link, mixed.overhead) == (base.gpu, base.link, base.overhead)
    by_how: dict[str, set[str]] = {}
    for name, how in mixed.confidence.items():
        by_how.setdefault("measured" if how == "measured" else "base", set()).add(name)
    assert by_how["measured"] == CPU_FIELDS
    assert all(not name.startswith(("cpu.", "cxl.")) for name in by_how["base"])
    assert mixed.name.startswith("h100-nvl with ")
    isa = _core.build_info()["isa"]
    assert isa in mixed.source["cpu.kq_gbs"]
    assert isa in mixed.description
    assert mixed.source["gpu.tflops"] == base.source["gpu.tflops"]


def test_what_is_measured_of_the_cpu_is_possible(mixed: MachineProfile) -> None:
    cpu = mixed.cpu
    # Loose: what no machine does shows a wrong unit.
    assert 0.1 < (cpu.dram_gbs or 0) < 10_000
    assert 0.1 < (cpu.kq_gbs or 0) < 10_000
    assert (cpu.kq_gflops or 0) > 0.5 * (cpu.kq_gbs or 0)
    assert 0.01 < (cpu.gather_gbs or 0) < 10_000
    assert 0.001 < (cpu.topk_gelem_s or 0) < 1_000
    assert 0.01 < (cpu.fork_us or 0) < 1e5
    assert 0.01 < (cpu.wake_us or 0) < 1e5
    assert 1 < (cpu.latency_ns or 0) < 1e5


def test_a_gpu_that_is_here_takes_the_bases_place_field_by_field() -> None:
    base = MachineProfile.load("a100")
    found = measure_machine(base=base, name="both", quick=True, gpu=MadeUpGpu())
    assert (found.name, found.gpu.tflops, found.link.h2d_gbs) == ("both", 100.0, 50.0)
    assert found.confidence["link.h2d_gbs"] == "measured"
    assert found.source["gpu.tflops"].startswith("measured: ")
    assert "made up" in found.source["gpu.tflops"]
    assert found.overhead.launches_attn == base.overhead.launches_attn  # cannot be measured
    assert found.confidence["overhead.launches_attn"] == "e"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"threads": 10**6}, "threads is 1000000"),
        ({"quick": 1}, "quick is 1"),
        ({"base": "h100"}, "base is 'h100'"),
    ],
)
def test_arguments_that_are_not_allowed_are_refused_before_anything_is_measured(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=rf"\[profile\] {words}"):
        measure_machine(**options)


# ---------------------------------------------------------------------------------------- command


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures the GPU too, which takes longer")
def test_the_command_writes_a_profile_that_loads_and_shows_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "here.json"
    options = ["--quick", "--base", "h100", "--name", "here", "--out", str(out)]
    assert main(["profile", *options]) == 0
    printed = capsys.readouterr().out
    profile = MachineProfile.load(out)
    assert profile.name == "here"
    assert json.loads(out.read_text(encoding="utf-8")) == profile.to_dict()
    for name in profile.values():
        assert name in printed
    assert "measured" in printed
    assert str(out) in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--base", "h101"], "there is no 'h101'; allowed: a100"),
        (["--out", "/nowhere/here.json"], "path is '/nowhere/here.json'"),
        (["--threads", "0"], "threads is 0"),
        (["--name", ""], "name is ''"),
    ],
)
def test_what_the_command_cannot_do_it_says_before_it_measures(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", *arguments]) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert words in errors
    assert len(errors.splitlines()) == 1


def test_an_interrupt_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    out = tmp_path / "here.json"
    out.write_text("before", encoding="utf-8")
    # Whoever starts the tests may ignore the signal, which a child inherits.
    program = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('hybridgen', run_name='__main__')"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program, "profile", "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stderr is not None
    # The bar is drawn when measuring begins.
    while "reading" not in run.stderr.readline(40):
        assert run.poll() is None
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode == 1
    assert out.read_text(encoding="utf-8") == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["here.json"]
