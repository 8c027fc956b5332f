# SPDX-License-Identifier: Apache-2.0
"""This checkout against another one, by turns: what a change costs or brings.

Each checkout runs in a process of its own, with its own build of the module; the two take turns of
a second or less, so that both see the same machine. Figures are medians over rounds, ratios are the
median of the rounds' ratios: above 1 means that this checkout is faster.

    git worktree add ../before REVISION         # and build it there: bash scripts/setup.sh
    python benchmarks/versions.py ../before [--quick] [--json results/versions.json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

SETTINGS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "default": {},
    "10 % on the device, K = 5 %, rescored": {"share": 0.1, "k": 0.05, "query": "rescore"},
}
TOKENS_PER_TURN = 24
TINY_PROMPTS = 8000
ENDING_TOKENS = 8000

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


class Worker:
    """Measures in this process, with whatever hybridgen its path finds."""

    def __init__(self, model: str) -> None:
        import hybridgen

        self._hg = hybridgen
        self._model = model
        self._base: Any = None
        self._streams: dict[tuple[str, int], tuple[Any, Iterator[Any]]] = {}

    def answer(self, figure: str, setting: str, tokens: int) -> float:
        """Return one turn's value of a figure: tokens or prompts per second, or seconds."""
        if figure == "decode":
            return self._decode(setting, tokens)
        if figure == "prompts":
            return self._prompts()
        if figure == "text":
            return self._text()
        self._streams.pop((setting, tokens), None)
        return 0.0

    def _decode(self, setting: str, tokens: int) -> float:
        stream = self._streams.get((setting, tokens))
        if stream is None:
            stream = self._streams[setting, tokens] = self._start(setting, tokens)
        begin = time.perf_counter()
        for _ in range(TOKENS_PER_TURN):
            next(stream[1])
        return TOKENS_PER_TURN / (time.perf_counter() - begin)

    def _start(self, setting: str, tokens: int) -> tuple[Any, Iterator[Any]]:
        hg = self._hg
        if self._base is None:
            self._base = hg.LLM(self._model, method="full")
        options = dict(SETTINGS[setting])
        if "share" in options:
            # A number of tokens, as a share may mean more than it says.
            options["kv"] = hg.KVConfig(device_tokens=int(options.pop("share") * tokens))
            options["scheduler"] = hg.SchedulerConfig(k=options.pop("k"))
        llm = hg.LLM(self._base, **options)
        prompt = [(7 * i) % 40000 + 100 for i in range(tokens)]
        stream = llm.stream(prompt, hg.SamplingParams(max_tokens=1500, ignore_eos=True))
        next(stream)
        return llm, stream

    def _prompts(self) -> float:
        hg = self._hg
        with hg.LLM(TINY, load_format="dummy", method="full") as llm:
            params = hg.SamplingParams(max_tokens=1)
            llm.generate_ids([[5, 6]] * 200, params)
            begin = time.perf_counter()
            llm.generate_ids([[5, 6]] * TINY_PROMPTS, params)
            return TINY_PROMPTS / (time.perf_counter() - begin)

    def _text(self) -> float:
        try:
            from hybridgen.detokenizer import Detokenizer
        except ImportError:  # where older checkouts have it
            from hybridgen.tokenizer import Detokenizer

        if self._base is None:
            self._base = self._hg.LLM(self._model, method="full")
        tokenizer = self._base.tokenizer
        detokenizer = Detokenizer(tokenizer, [5])
        begin = time.perf_counter()
        for _ in range(ENDING_TOKENS):
            detokenizer.push(tokenizer.eos_token_id)
        detokenizer.flush()
        return ENDING_TOKENS / (time.perf_counter() - begin)


class Checkout:
    """A process that measures one checkout on demand."""

    def __init__(self, root: Path, model: str) -> None:
        paths = [str(root / "python"), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", model],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, figure: str, setting: str = "", tokens: int = 0) -> float:
        """Return one turn's value of a figure."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([figure, setting, tokens]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"versions.py: the process of a checkout ended during {figure}")
        return float(json.loads(line))


def worker(model: str) -> None:
    """Answer questions on standard input until it ends."""
    measures = Worker(model)
    for line in sys.stdin:
        print(json.dumps(measures.answer(*json.loads(line))), flush=True)


def compare(report: Any, name: str, unit: str, rounds: int, ask: Any) -> None:
    """Add both checkouts' medians and the median ratio; the first round of each does not count."""
    values = []
    for number in range(rounds + 1):
        # Who comes first changes, as a process that has just been woken is not at its best.
        order = (0, 1) if number % 2 else (1, 0)
        found = {side: ask(side) for side in order}
        values.append((found[0], found[1]))
    values = values[1:]
    report.add(f"{name}: this checkout", statistics.median(a for a, _ in values), unit)
    report.add(f"{name}: the other", statistics.median(b for _, b in values), unit)
    ratio = statistics.median(a / b for a, b in values)
    report.add(f"{name}: this / other", ratio, "x", 0.97)


def main() -> int:
    """Compare and print; the exit code says only whether it ran."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="the root of another checkout, built")
    parser.add_argument("--quick", action="store_true", help="1,000 tokens only, fewer rounds")
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "scripts")]
    from get_smollm2 import ensure_smollm2
    from report import Report

    model = str(ensure_smollm2())
    sides = [Checkout(ROOT, model), Checkout(arguments.other.resolve(), model)]
    report = Report()
    rounds = 8 if arguments.quick else 16
    for tokens in (1000,) if arguments.quick else (1000, 6000):
        for setting in SETTINGS:
            name = f"SmolLM2 bf16, {tokens} tokens, {setting}"
            compare(
                report,
                name,
                "tokens/s",
                rounds,
                lambda side, s=setting, t=tokens: sides[side].ask("decode", s, t),
            )
            for side in sides:
                side.ask("end", setting, tokens)
    compare(
        report,
        f"{TINY_PROMPTS} tiny prompts",
        "prompts/s",
        3,
        lambda side: sides[side].ask("prompts"),
    )
    compare(
        report,
        f"text of {ENDING_TOKENS} ending tokens",
        "tokens/s",
        1,
        lambda side: sides[side].ask("text"),
    )
    if arguments.json:
        report.write(arguments.json)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2])
    else:
        sys.exit(main())
