# SPDX-License-Identifier: Apache-2.0
"""FlexGen's policies on shapes of OPT: weights on the disk, in 4 bits, blocks of batches, peaks.

    python benchmarks/flexgen.py [--quick] [--models opt-125m opt-1.3b] [--json FILE]

The CPU device and random weights in bfloat16, which transformers' CPU kernels like best. With
``--percent 0 0 100 0 100 0`` all matrices of the layers come from the disk in every step, in the
two states of benchmarks/weights.py: their pages cached, and cold. In each state:

* the rate at which they come, against the disk's own rate;
* a step of one row against accelerate's disk offload of the same files, in this process;
* a step with ``--compress-weight`` against one without;
* new tokens a second of a block of four batches of one row against a block of one.

A step's time is the layers' bytes over the rate at which they came while it ran: what was read
before it began, or after it ended, does not count. Peaks are of whole runs (prompts of 512 tokens,
32 new ones, four rows): memory of their process, without pages of files, against `hg.plan`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks")]

import torch  # noqa: E402

from hybridgen.flexgen.flex_opt import (  # noqa: E402
    CompressionConfig,
    ExecutionEnv,
    OptLM,
    Policy,
)
from hybridgen.opt_shapes import SHAPES, OptShape, hf_config  # noqa: E402
from report import Report  # noqa: E402
from weights import Files, own_rate, steps_of_accelerate, steps_of_ours  # noqa: E402

LAYERS, TABLES = "layers.safetensors", "tables.safetensors"
ROWS = 4
PROMPT_LEN, GEN_LEN = 512, 32
ON_DISK = (0, 0, 100, 0, 100, 0)
PEAKS = {"all on the CPU": (0, 100, 0, 100, 0, 100), "weights on disk": (0, 0, 0, 100, 0, 100)}
SHARE_BAR, ACCELERATE_BAR, CODED_BAR, BLOCK_BAR, PEAK_BAR = 0.8, 1.3, 2.0, 3.0, 0.05


def write_model(folder: Path, shape: OptShape) -> None:
    """Save a shape with random weights, what is read in every step in a file of its own."""
    from safetensors.torch import save_file
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(**hf_config(shape), dtype="bfloat16")
    state = OPTForCausalLM(config).to(torch.bfloat16).state_dict()
    state.pop("lm_head.weight")  # the token table once more
    files = {name: LAYERS if ".layers." in name else TABLES for name in state}
    for file in (LAYERS, TABLES):
        tensors = {name: state[name].contiguous() for name in state if files[name] == file}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(folder)


def opt_places(layers: int) -> dict[str, Any]:
    """Return a device map with an OPT's layers on the disk."""
    places: dict[str, Any] = {f"model.decoder.layers.{i}": "disk" for i in range(layers)}
    for name in ("embed_tokens", "embed_positions", "final_layer_norm"):
        places[f"model.decoder.{name}"] = "cpu"
    return places | {"lm_head": "cpu"}


@contextmanager
def opt_lm(
    folder: Path,
    offload: Path,
    percent: tuple[int, ...],
    *,
    rows: int = ROWS,
    batches: int = 1,
    compress: bool = False,
) -> Iterator[OptLM]:
    """Yield FlexGen's model object of a policy."""
    four_bits = CompressionConfig(num_bits=4, group_size=64, group_dim=0, symmetric=False)
    policy = Policy(
        rows,
        batches,
        *percent,
        overlap=True,
        sep_layer=True,
        pin_weight=True,
        cpu_cache_compute=False,
        attn_sparsity=1.0,
        compress_weight=compress,
        comp_weight_config=four_bits,
        compress_cache=False,
        comp_cache_config=four_bits,
    )
    model = OptLM(str(folder), ExecutionEnv.create(str(offload), "cpu"), "", policy)
    try:
        yield model
    finally:
        model.delete_all_weights()
        gc.collect()


def unnamed_files(folder: Path) -> list[Path]:
    """Return this process's open files without a name that lie in a folder."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(link).startswith(f"{folder.resolve()}{os.sep}"):
                found.append(link)
        except FileNotFoundError:  # of the listing itself
            continue
    return found


class Streams:
    """Steps of one model whose layers come from the disk, in one state of the page cache.

    Parameters
    ----------
    folder : Path
        What `write_model` wrote.
    offload : Path
        Where a file without a name goes, of weights in another form than the folder's.
    is_cold : bool
        The state.
    steps : int
        Of each kind.
    """

    def __init__(self, folder: Path, offload: Path, *, is_cold: bool, steps: int) -> None:
        self._folder, self._offload = folder, offload
        self._is_cold, self._steps = is_cold, steps
        self.files = Files([folder / LAYERS], is_cold)

    def disk(self) -> list[float]:
        """Return bytes per second of the disk alone."""
        return own_rate(self.files, self._steps)

    def ours(self, *, batches: int = 1, compress: bool = False) -> tuple[float, float]:
        """Return the rate at which layers come while steps run, and the seconds of a step."""
        options: dict[str, Any] = {"rows": 1, "batches": batches, "compress": compress}
        with opt_lm(self._folder, self._offload, ON_DISK, **options) as model:
            files = self.files
            if compress:
                files = Files(unnamed_files(self._offload), self._is_cold)
            rate = statistics.median(steps_of_ours(model.llm, files, self._steps, batches)[0])
            return rate, model.llm.stats.weight_disk_bytes / rate

    def accelerates(self, layers: int) -> float:
        """Return the seconds of a step of accelerate's."""
        seconds = steps_of_accelerate(self._folder, self.files, self._steps, opt_places(layers))
        gc.collect()  # its mappings
        return statistics.median(seconds)


def streams(report: Report, label: str, run: Streams, layers: int) -> None:
    """Report one state: the disk, ours, accelerate, the disk again, 4 bits, and blocks."""
    disk = run.disk()
    rate, ours = run.ours()
    theirs = run.accelerates(layers)
    own = statistics.median(disk + run.disk())
    report.add(f"{label}: disk alone", own / 1e9, "GB/s")
    report.add(f"{label}: weights streamed", rate / 1e9, "GB/s")
    report.add(f"{label}: share of the disk's rate", rate / own, "share", SHARE_BAR)
    report.add(f"{label}: step of one row", ours, "s")
    report.add(f"{label}: step of accelerate", theirs, "s")
    report.add(f"{label}: against accelerate", theirs / ours, "x", ACCELERATE_BAR)
    report.add(f"{label}: --compress-weight", ours / run.ours(compress=True)[1], "x", CODED_BAR)
    block = 4 / run.ours(batches=4)[1]
    report.add(f"{label}: block of 1 batch", 1 / ours, "token/s")
    report.add(f"{label}: block of 4 batches", block, "token/s")
    report.add(f"{label}: block of 4 over 1", block * ours, "x", BLOCK_BAR)


class PeakMemory:
    """The most memory of its own that this process has while it is open, beyond what it had."""

    _EVERY_S = 0.002

    def __enter__(self) -> PeakMemory:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self.bytes = 0
        self._before = self._now()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ends.wait(self._EVERY_S):
            self.bytes = max(self.bytes, self._now() - self._before)

    @staticmethod
    def _now() -> int:
        """Return bytes that are not a file's: the system may not take them back."""
        lines = Path("/proc/self/status").read_text().splitlines()
        found = [line.split() for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
        return sum(int(fields[1]) for fields in found) * 1024


def peak_of(folder: Path, offload: Path, percent: tuple[int, ...]) -> tuple[int, int]:
    """Return the planned bytes of a whole run, and its peak."""
    prompts = [
        [3 + (97 * row + 7919 * i) % 50000 for i in range(PROMPT_LEN)] for row in range(ROWS)
    ]
    with PeakMemory() as peak, opt_lm(folder, offload, percent) as model:
        model.generate(prompts, max_new_tokens=GEN_LEN)
        tiers = model.plan(PROMPT_LEN, GEN_LEN).tiers
    return tiers["device"]["total"] + tiers["dram"]["total"], peak.bytes


def peaks(report: Report, name: str, folder: Path, offload: Path) -> None:
    """Report the peaks of whole runs against their plans.

    Each in a process of its own: what libraries keep of earlier runs would not be counted.
    """
    for what, percent in PEAKS.items():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            planned, peak = pool.submit(peak_of, folder, offload, percent).result()
        label = f"{name}, {what}"
        report.add(f"{label}: planned", planned / 1e9, "GB")
        report.add(f"{label}: peak", peak / 1e9, "GB")
        off = abs(peak / planned - 1)
        report.add(f"{label}: off the plan", off, "share", PEAK_BAR, at_most=True)


def main() -> None:
    """Measure everything and say whether the bars are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="opt-125m alone, nine steps of a kind")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=["opt-125m", "opt-1.3b"])
    parser.add_argument("--folder", type=Path, help="where models are written; a temporary one")
    parser.add_argument("--json", help="file for the figures, - for standard output")
    arguments = parser.parse_args()
    steps = 9 if arguments.quick else 15
    report = Report()
    for name in arguments.models[:1] if arguments.quick else arguments.models:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as top:
            folder, offload = Path(top) / name, Path(top) / "offload"
            folder.mkdir()
            write_model(folder, SHAPES[name])
            for state in ("cached", "cold"):
                run = Streams(folder, offload, is_cold=state == "cold", steps=steps)
                streams(report, f"{name}, {state}", run, SHAPES[name].layers)
            peaks(report, name, folder, offload)
    report.write(arguments.json)
    sys.exit(any(result.met is False for result in report.results))


if __name__ == "__main__":
    main()
