# SPDX-License-Identifier: Apache-2.0
"""Weights that are streamed from disk: how much of the disk's own rate decoding reaches.

A model whose layers all lie on disk makes tokens one by one, so that each step reads every layer
once. Two states of the disk, in turns with what they are compared with:

* cached: the page cache has the files, before and during all steps;
* cold: before every step the cache is told to forget them (MADV_PAGEOUT where this process has them
  mapped, posix_fadvise), and mincore says that it has. What came while the step ran is then what
  the system says that the disk has moved for this process.

The disk's own rate is that of as many threads as the engine reads with, reading the same bytes in
the same state into memory that is used again, while nothing is computed. ``accelerate`` is its disk
offload of the same folder, with the same threads, its own step by step. Rates are medians of turns
in one run.

    python benchmarks/weights.py [--layers 8] [--steps 6] [--json FILE]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import mmap
import os
import queue
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import hybridgen as hg
from report import Report

READERS = 4
"""Threads that the engine reads weights with (src/memory/weight_files.h)."""
PIECE = 1 << 20
MAPPED_SHARE = 0.05
"""Of a cold file what may be cached: the token table, which transformers keeps mapped (3 %)."""
MADV_PAGEOUT = 21


def write_model(folder: Path, layers: int) -> None:
    """Save a Llama-3.2-1B shape of so many layers with random weights, in bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=8192,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def cached_share(file: Path) -> float:
    """Return the part of a file's pages that the page cache has (mincore)."""
    size = file.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    with file.open("rb") as stream:
        place = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, stream.fileno(), 0)
    found = (ctypes.c_ubyte * pages)()
    if libc.mincore(ctypes.c_void_p(place), ctypes.c_size_t(size), found) != 0:
        raise OSError(ctypes.get_errno(), "mincore")
    libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(size))
    return sum(page & 1 for page in found) / pages


def page_out(file: Path) -> None:
    """Let this process's mappings of a file have none of its pages."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    inode = str(file.stat().st_ino)
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, found, *_ = line.split()
        begin, end = (int(text, 16) for text in span.split("-"))
        if found == inode and libc.madvise(begin, end - begin, MADV_PAGEOUT) != 0:
            raise OSError(ctypes.get_errno(), "madvise")


class Files:
    """The weight files, and the state of the page cache that a turn asks for."""

    def __init__(self, paths: list[Path], is_cold: bool) -> None:
        self.paths = paths
        self.is_cold = is_cold

    def prepare(self) -> None:
        """Fill or empty the cache; RuntimeError if the system does not do as it is told."""
        for path in self.paths:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                if self.is_cold:
                    os.fsync(descriptor)
                    page_out(path)
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                elif cached_share(path) < 1.0:
                    while os.read(descriptor, PIECE):
                        pass
            finally:
                os.close(descriptor)
            share = cached_share(path)
            if (share > MAPPED_SHARE) if self.is_cold else (share < 0.98):
                raise RuntimeError(f"{share:.0%} of {path} are in the page cache")


def own_rate(files: Files, turns: int) -> list[float]:
    """Return bytes per second of reading all files once, with nothing else to do."""
    rates = []
    for _ in range(turns):
        files.prepare()
        descriptors = [os.open(path, os.O_RDONLY) for path in files.paths]
        pieces = [
            (descriptor, offset)
            for descriptor in descriptors
            for offset in range(0, os.fstat(descriptor).st_size, PIECE)
        ]
        begin = time.perf_counter()
        moved = read_pieces(pieces)
        rates.append(moved / (time.perf_counter() - begin))
        for descriptor in descriptors:
            os.close(descriptor)
    return rates


def read_pieces(pieces: list[tuple[int, int]]) -> int:
    """Read all pieces by as many threads as the engine has; returns the bytes."""
    todo = queue.SimpleQueue[tuple[int, int]]()
    for piece in pieces:
        todo.put(piece)

    def read() -> int:
        memory, moved = bytearray(PIECE), 0
        while True:
            try:
                descriptor, offset = todo.get_nowait()
            except queue.Empty:
                return moved
            moved += os.preadv(descriptor, [memory], offset)

    with ThreadPoolExecutor(READERS) as pool:
        return sum(future.result() for future in [pool.submit(read) for _ in range(READERS)])


def came(llm: hg.LLM, files: Files) -> int:
    """Return bytes of weights that came so far: in a cold state, from the disk itself."""
    if not files.is_cold:
        return llm.stats.weight_bytes_read
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


def steps_of_ours(
    llm: hg.LLM, files: Files, steps: int, rows: int = 1
) -> tuple[list[float], list[float]]:
    """Return bytes per second that came from the disk, and seconds, of single decode steps."""
    rates, seconds = [], []
    params = hg.SamplingParams(max_tokens=steps + 2, ignore_eos=True)
    for row in range(rows):
        llm.add_request(str(row), [1] * 16, params)
    llm.step()  # the prompts
    llm.step()
    for _ in range(steps):
        if files.is_cold:
            time.sleep(0.3)  # until what is read ahead is there
        files.prepare()
        before = came(llm, files)
        begin = time.perf_counter()
        llm.step()
        seconds.append(time.perf_counter() - begin)
        rates.append((came(llm, files) - before) / seconds[-1])
    return rates, seconds


def llama_places(layers: int) -> dict[str, Any]:
    """Return a device map with a Llama's layers on the disk."""
    places: dict[str, Any] = {f"model.layers.{i}": "disk" for i in range(layers)}
    places |= {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    return places | {"lm_head": "cpu"}


def steps_of_accelerate(
    folder: Path, files: Files, steps: int, places: dict[str, Any]
) -> list[float]:
    """Return seconds of single decode steps of transformers with layers on accelerate's disk."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as offload, torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, device_map=places, offload_folder=offload
        )
        done = model(torch.ones(1, 16, dtype=torch.long), use_cache=True)
        seconds = []
        for _ in range(steps):
            files.prepare()
            begin = time.perf_counter()
            token = done.logits[:, -1:].argmax(-1)
            done = model(token, past_key_values=done.past_key_values, use_cache=True)
            seconds.append(time.perf_counter() - begin)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--folder", type=Path, help="where the model is written; a temporary one")
    parser.add_argument("--json", help="file for the figures, - for standard output")
    arguments = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write_model(folder, arguments.layers)
        for state in ("cached", "cold"):
            files = Files(sorted(folder.glob("*.safetensors")), state == "cold")
            measure(report, folder, files, state, arguments)
    report.write(arguments.json)


def measure(
    report: Report, folder: Path, files: Files, state: str, arguments: argparse.Namespace
) -> None:
    """Take one state's turns: the disk alone, ours, accelerate, and the disk again."""
    steps = arguments.steps
    disk = own_rate(files, steps)
    with hg.LLM(folder, method="full", weights=hg.WeightConfig(device=0.0, host=0.0)) as llm:
        rates, ours = steps_of_ours(llm, files, steps)
    theirs = steps_of_accelerate(folder, files, steps, llama_places(arguments.layers))
    gc.collect()  # its mappings
    disk += own_rate(files, steps)
    own, rate = statistics.median(disk), statistics.median(rates)
    report.add(f"disk, {state}", own / 1e9, "GB/s")
    report.add(f"layers streamed, {state}", rate / 1e9, "GB/s")
    report.add(f"layers streamed, {state}: share of the disk's", rate / own, "share", 0.8)
    report.add(f"step, {state}", statistics.median(ours), "s")
    report.add(f"step of accelerate, {state}", statistics.median(theirs), "s")
    ratio = statistics.median(theirs) / statistics.median(ours)
    report.add(f"against accelerate, {state}", ratio, "x", 1.3)


if __name__ == "__main__":
    main()
