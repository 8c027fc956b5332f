# SPDX-License-Identifier: Apache-2.0
"""Weights made at load in 8 and 4 bits against the same model in bfloat16, by turns.

    python benchmarks/coded_weights.py [--quick] [--no-1b] [--peers] [--json FILE]

Decode steps at 1,000 tokens of SmolLM2 with the head in the same format and with it kept, of a 1B
shape with random weights, and prefill. A ratio is bfloat16's time over that of codes, the median of
turns. With --peers also against llama.cpp (scripts/requirements-bench.txt): both read one GGUF file
of Q8_0 or Q4_0, with as many threads. The products themselves against the read ceiling:
benchmarks/cpu.py, ``linear/int8|int4``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "scripts")]

import hybridgen as hg  # noqa: E402
from decode import LLAMA_1B, smollm2  # noqa: E402
from peers import llama_of, write_gguf  # noqa: E402
from report import Report  # noqa: E402

TOKENS = 1000
HEAD_BARS = {"int8": 1.5, "int4": 1.9}
KEPT_BAR = 0.85
BAR_1B = 2.5
PREFILL_BAR = 0.9
PEER_BAR = 1.2
PEER_TOKENS = (1000, 6000)


def config_of(name: str, *, head: bool) -> hg.WeightConfig | None:
    """Return options of a format; None for the checkpoint's own."""
    if name == "bfloat16":
        return None
    also = {"head": name, "embeddings": name} if head else {}
    return hg.WeightConfig(format=name, **also)


def prompt(tokens: int, vocabulary: int) -> list[int]:
    """Return token ids that repeat late."""
    return [(7919 * i) % (vocabulary - 3) + 3 for i in range(tokens)]


class Turns:
    """One engine whose steps and prefills are timed by turns with others'."""

    def __init__(
        self,
        model: Any,
        weights: hg.WeightConfig | None,
        *,
        tokens: int = TOKENS,
        **options: Any,
    ) -> None:
        self.llm = hg.LLM(
            model, dtype="bfloat16", method="full", weights=weights, max_num_seqs=1, **options
        )
        self.ids = prompt(tokens, self.llm.model.config["vocab_size"])
        self.bytes = self.llm.model.weights.weight_bytes
        self._open()

    def _open(self) -> None:
        params = hg.SamplingParams(max_tokens=2000, ignore_eos=True)
        self._stream = self.llm.stream(self.ids, params, decode_prompt_tokens=1)
        next(self._stream)

    def step(self, steps: int) -> float:
        """Return the seconds of a decode step."""
        begin = time.perf_counter()
        for _ in range(steps):
            next(self._stream)
        return (time.perf_counter() - begin) / steps

    def prefill(self) -> float:
        """Return the seconds of a prompt and one token."""
        self._stream.close()  # its steps would run beside the prompt, and be there when asked for
        begin = time.perf_counter()
        self.llm.generate_ids([self.ids], hg.SamplingParams(max_tokens=1, ignore_eos=True))
        seconds = time.perf_counter() - begin
        self._open()
        return seconds


class LlamaCppTurns:
    """llama.cpp's decode steps on a file, behind a prompt of so many tokens."""

    def __init__(self, path: Path, ids: list[int]) -> None:
        self._llama = llama_of(path, len(ids) + 1024)
        self._llama.eval(ids)

    def step(self, steps: int) -> float:
        """Return the seconds of a decode step."""
        begin = time.perf_counter()
        for i in range(steps):
            self._llama.eval([i + 3])
        return (time.perf_counter() - begin) / steps

    def close(self) -> None:
        """Give back its memory."""
        self._llama.close()


def compare_with_llama_cpp(report: Report, turns: int, steps: int) -> None:
    """Report decode steps of both on the same files."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("Q8_0", "Q4_0"):
            path = Path(folder) / f"{kind}.gguf"
            write_gguf(path, None, kind)
            for tokens in PEER_TOKENS:
                ours = Turns(path, None, tokens=tokens)
                theirs = LlamaCppTurns(path, ours.ids)
                times = [(theirs.step(steps), ours.step(steps)) for _ in range(turns)]
                theirs.close()
                ours.llm.close()
                label = f"SmolLM2, {kind}, {tokens} tokens"
                median = 1e3 * statistics.median(t[0] for t in times)
                report.add(f"decode, {label}: llama.cpp's step", median, "ms")
                ratio = median_ratio([t[0] for t in times], [t[1] for t in times])
                report.add(f"decode, {label}: speed over llama.cpp", ratio, "x", PEER_BAR)


def median_ratio(own: list[float], coded: list[float]) -> float:
    """Return the median over turns of own time over that of codes."""
    return statistics.median(a / b for a, b in zip(own, coded, strict=True))


def compare(
    report: Report, label: str, own: Turns, coded: Turns, bar: float, turns: int, steps: int
) -> None:
    """Report decode steps of one pair."""
    times: dict[str, list[float]] = {"own": [], "coded": []}
    for _ in range(turns):
        times["own"].append(own.step(steps))
        times["coded"].append(coded.step(steps))
    ratio = median_ratio(times["own"], times["coded"])
    report.add(f"decode, {label}: weights' bytes", coded.bytes / own.bytes, "x own")
    report.add(f"decode, {label}: own bf16's step", 1e3 * statistics.median(times["own"]), "ms")
    report.add(f"decode, {label}: speed over own bf16", ratio, "x", bar)


def prefills(report: Report, label: str, own: Turns, coded: Turns, turns: int) -> None:
    """Report prefill of one pair."""
    times = [(own.prefill(), coded.prefill()) for _ in range(turns)]
    ratio = median_ratio([t[0] for t in times], [t[1] for t in times])
    report.add(f"prefill, {label}: speed over own bf16", ratio, "x", PREFILL_BAR)


def main() -> None:
    """Measure everything and say whether the bars are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    parser.add_argument("--no-1b", action="store_true", help="without the 1B shape")
    parser.add_argument("--peers", action="store_true", help="against llama.cpp, too")
    parser.add_argument("--json", help="file to write")
    arguments = parser.parse_args()
    turns, steps = (7, 8) if arguments.quick else (21, 16)
    report = Report()
    folder = smollm2()
    own = Turns(folder, None)
    for name in ("int8", "int4"):
        with_head = Turns(folder, config_of(name, head=True))
        compare(report, f"SmolLM2, {name} with head", own, with_head, HEAD_BARS[name], turns, steps)
        prefills(report, f"SmolLM2, {name} with head", own, with_head, max(3, turns // 5))
        with_head.llm.close()
        kept = Turns(folder, config_of(name, head=False))
        compare(
            report,
            f"SmolLM2, {name}, head kept",
            own,
            kept,
            KEPT_BAR * own.bytes / kept.bytes,
            turns,
            steps,
        )
        kept.llm.close()
    own.llm.close()
    if not arguments.no_1b:
        shape = {"load_format": "dummy", "max_model_len": 4096}
        own = Turns(LLAMA_1B, None, **shape)
        coded = Turns(LLAMA_1B, config_of("int4", head=True), **shape)
        compare(report, "1B shape, int4 with head", own, coded, BAR_1B, turns, max(2, steps // 4))
        prefills(report, "1B shape, int4 with head", own, coded, 3)
    if arguments.peers:
        compare_with_llama_cpp(report, turns, steps)
    report.write(arguments.json)
    sys.exit(any(result.met is False for result in report.results))


if __name__ == "__main__":
    main()
