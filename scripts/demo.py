# SPDX-License-Identifier: Apache-2.0
"""Show what the library is for: find a fact far back in a text with a tenth of it on the device.

A small language model reads a text of some 2,500 tokens in which a secret code is hidden, and is
asked for it; the code is hidden at several depths, one at a time. It does so three times: with all
keys and values on the device, with hybridgen and the newest 10 % there, and with those 10 % alone.
Run it through ``scripts/demo.sh``.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hybridgen as hg
from get_smollm2 import SmolLM2Error, ensure_smollm2, gguf_file
from hybridgen._files import unwound_by_sigterm

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "scripts" / "demo_text.txt",)
NAMES = ("Amina", "Bruno", "Clara", "Daniel", "Elena", "Farid")
SINKS = 4
"""Even a plain window keeps the first tokens: models break without them."""


@dataclass(frozen=True)
class Fact:
    """A sentence hidden in the document.

    Parameters
    ----------
    name, code : str
        What is asked for, and the five digits to answer.
    depth : float
        Place in the document, from 0.0 (begin) to 1.0 (end).
    """

    name: str
    code: str
    depth: float

    @property
    def question(self) -> str:
        """The beginning of the sentence; the model continues it."""
        return f"The secret access code of {self.name} is"

    @property
    def sentence(self) -> str:
        """The whole sentence."""
        return f"{self.question} {self.code}."


@dataclass(frozen=True)
class Contender:
    """A way to generate that the demonstration compares.

    Parameters
    ----------
    title, meaning : str
        For people.
    options : dict
        Of ``hybridgen.LLM``.
    """

    title: str
    meaning: str
    options: dict[str, Any]


@dataclass
class Result:
    """What one contender answered, and what its decode steps cost."""

    answers: list[str] = field(default_factory=list)
    device_bytes: int = 0
    host_bytes: int = 0
    decode_tokens: int = 0
    decode_s: float = 0.0
    link_bytes: int = 0
    hidden_s: float = 0.0
    hideable_s: float = 0.0

    def add(self, answer: str, stats: hg.RunStats) -> None:
        """Count the answer to one question."""
        self.answers.append(answer)
        self.decode_tokens += stats.decode_tokens
        self.decode_s += stats.decode_s
        self.link_bytes += stats.h2d_bytes + stats.d2h_bytes
        stage = stats.t_cpu_s + stats.t_link_s
        self.hideable_s += stage
        self.hidden_s += stage * (stats.hidden_share or 0.0)

    def count_right(self, facts: Sequence[Fact]) -> int:
        """Return how many answers are the code that was hidden."""
        return sum(answer == fact.code for answer, fact in zip(self.answers, facts, strict=True))

    @property
    def speed(self) -> str:
        """Decoded tokens per second."""
        return f"{self.decode_tokens / self.decode_s:.1f} tokens/s" if self.decode_s else "-"

    @property
    def link(self) -> str:
        """Bytes that cross between host and device for one token."""
        return in_megabytes(self.link_bytes / max(self.decode_tokens, 1))

    @property
    def hidden(self) -> str:
        """Part of the CPU stage that the device did not wait for."""
        return f"{100 * self.hidden_s / self.hideable_s:.0f} %" if self.hideable_s else "-"


class Screen:
    """Standard output, with colours and text that appears as it is generated on a terminal."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._has_colour = self.is_terminal and "NO_COLOR" not in os.environ

    def paint(self, text: str, code: str) -> str:
        """Wrap text in an ANSI colour, if there are colours."""
        return f"\033[{code}m{text}\033[0m" if self._has_colour else text

    def verdict(self, is_right: bool, width: int = 0) -> str:
        """Say right or wrong, padded before it is coloured."""
        return self.paint(
            ("right" if is_right else "wrong").ljust(width), "32" if is_right else "31"
        )

    def write(self, text: str) -> None:
        """Print without a line end, at once."""
        print(text, end="", flush=True)


def in_megabytes(count: float) -> str:
    """Format bytes for the table."""
    return f"{count / 1e6:.2f} MB"


def draw_facts(count: int, seed: int) -> list[Fact]:
    """Return facts spread over the part of the text that a 10 % window never reaches."""
    rng = random.Random(seed)
    codes = rng.sample(range(10000, 100000), count)
    names = NAMES[:count]
    return [
        Fact(name, str(code), 0.05 + 0.7 * i / max(count - 1, 1))
        for i, (name, code) in enumerate(zip(names, codes, strict=True))
    ]


def read_paragraphs(files: Sequence[Path], tokenizer: Any, tokens: int) -> list[str]:
    """Return the first paragraphs of the files, up to about ``tokens`` tokens of them."""
    text = "\n\n".join(file.read_text(encoding="utf-8").strip() for file in files)
    kept: list[str] = []
    room = tokens
    for paragraph in re.split(r"\n\s*\n", text):
        room -= len(tokenizer.encode(paragraph + "\n\n"))
        if room < 0:
            break
        kept.append(paragraph)
    return kept


def hide(fact: Fact, paragraphs: Sequence[str]) -> str:
    """Put a fact between two paragraphs, at its depth counted in characters."""
    target = fact.depth * sum(len(paragraph) for paragraph in paragraphs)
    passed = 0
    for i, paragraph in enumerate(paragraphs):
        if passed >= target:
            return "\n\n".join([*paragraphs[:i], fact.sentence, *paragraphs[i:]])
        passed += len(paragraph)
    return "\n\n".join([*paragraphs, fact.sentence])


def contenders(k: int | float, share: float, tokens: int) -> list[Contender]:
    """Return the three ways to generate from ``tokens``, first the reference."""
    kv = hg.KVConfig(device_tokens=max(1, round(share * tokens)))
    tenth = f"{100 * share:.0f} %"
    return [
        Contender(
            "full attention",
            "all keys and values on the device: right, but the whole cache must fit",
            {"method": "full"},
        ),
        Contender(
            "hybridgen",
            f"newest {tenth} on the device, the rest in host memory; per head and layer the CPU\n"
            f"  finds the {k if k >= 1 else f'{100 * k:g} %'} old tokens that matter and sends only"
            " those",
            {"method": "hybridgen", "kv": kv, "scheduler": hg.SchedulerConfig(k=k)},
        ),
        Contender(
            "window only",
            f"newest {tenth} and the first {SINKS} tokens; the rest is never looked at again",
            {
                "method": "hybridgen",
                "kv": kv,
                "query": "exact",
                "pre_selector": "sinks_recent",
                "scheduler": hg.SchedulerConfig(k=SINKS, strategy="pre"),
            },
        ),
    ]


def ask(llm: hg.LLM, fact: Fact, paragraphs: Sequence[str], screen: Screen, result: Result) -> None:
    """Ask for a fact; the question itself goes through decode steps, like the answer."""
    text = llm.tokenizer.encode(hide(fact, paragraphs))
    question = llm.tokenizer.encode(f"\n\n{fact.question}", add_special_tokens=False)
    screen.write(f"  {fact.question}")
    answer = ""
    params = hg.SamplingParams(max_tokens=8, stop=[".", "\n"])
    for chunk in llm.stream(text + question, params, decode_prompt_tokens=len(question)):
        answer += chunk.text
        screen.write(screen.paint(chunk.text, "1"))
        result.device_bytes = max(result.device_bytes, chunk.peak_memory)
        result.host_bytes = max(result.host_bytes, llm.memory["dram"]["used"])
    answer = answer.strip()
    print(f"  {screen.verdict(answer == fact.code)}")
    result.add(answer, llm.stats)


def introduce(
    model: Path, llm: hg.LLM, facts: Sequence[Fact], paragraphs: Sequence[str], screen: Screen
) -> None:
    """Say what is going to happen."""
    text = hide(facts[0], paragraphs)
    begin = f"{text.index(facts[0].sentence) / len(text):.0%}"
    repeated = f" {len(facts)} times, each deeper in the text." if len(facts) > 1 else ""
    print(
        f"\n{model.name} reads {len(llm.tokenizer.encode(text))} tokens of plain text, in which a "
        f"sentence such as\n  {screen.paint(facts[0].sentence, '1')}\n"
        f"is hidden ({begin} from its beginning), and then completes that sentence.{repeated}"
    )


def print_table(
    titles: Sequence[str], results: Sequence[Result], facts: Sequence[Fact], screen: Screen
) -> None:
    """Print the answers and costs of all contenders side by side."""
    first, width = 26, 20
    rule = "-" * (first + width * len(titles))

    def row(name: str, cells: Sequence[str]) -> None:
        print(name.ljust(first) + "".join(cells))

    print()
    row("", [screen.paint(title.ljust(width), "1") for title in titles])
    print(rule)
    for i, fact in enumerate(facts):
        cells = []
        for result in results:
            answer = result.answers[i][:12] or "(nothing)"
            cells.append(f"{answer:<13}" + screen.verdict(answer == fact.code, width - 13))
        row(f"{fact.name} ({fact.code})", cells)
    print(rule)
    right = [f"{result.count_right(facts)} of {len(facts)}" for result in results]
    row("right answers", [count.ljust(width) for count in right])
    row("KV cache on the device", [in_megabytes(r.device_bytes).ljust(width) for r in results])
    row("KV cache in host memory", [in_megabytes(r.host_bytes).ljust(width) for r in results])
    row("decode speed", [r.speed.ljust(width) for r in results])
    row("over the link per token", [r.link.ljust(width) for r in results])
    row("CPU stage hidden", [r.hidden.ljust(width) for r in results])


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Find a fact far back in a text with a tenth of it on the device."
    )
    parser.add_argument("--model", type=Path, help="folder or GGUF file instead of SmolLM2's")
    parser.add_argument(
        "--document",
        type=Path,
        action="append",
        help="text to hide the facts in; repeatable (default: scripts/demo_text.txt)",
    )
    parser.add_argument("--tokens", type=int, default=3000, help="length of the text, at most")
    parser.add_argument("--facts", type=int, default=4, choices=range(1, len(NAMES) + 1))
    parser.add_argument("--seed", type=int, default=0, help="draws the codes")
    parser.add_argument("--k", type=float, default=64, help="old tokens, or a share below 1")
    parser.add_argument("--device-tokens", type=float, default=0.1, help="share on the device")
    parser.add_argument("--device", default="auto", help="cpu, cuda:0 or auto")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; 0 if hybridgen answered at least as well as full attention."""
    options = parse_arguments(arguments)
    screen = Screen()
    try:
        model = options.model or gguf_file(ensure_smollm2())
    except SmolLM2Error as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 1

    facts = draw_facts(options.facts, options.seed)
    k = int(options.k) if options.k >= 1 else options.k
    ways = contenders(k, options.device_tokens, options.tokens)
    results: list[Result] = []
    paragraphs: list[str] = []
    for way in ways:
        with hg.LLM(model, device=options.device, **way.options) as llm:
            if not paragraphs:
                files = options.document or DOCUMENT
                paragraphs = read_paragraphs(files, llm.tokenizer, options.tokens)
                introduce(model, llm, facts, paragraphs, screen)
            print(f"\n{screen.paint(way.title, '1')}: {way.meaning}")
            results.append(Result())
            for fact in facts:
                ask(llm, fact, paragraphs, screen, results[-1])

    print_table([way.title for way in ways], results, facts, screen)
    reference, hybrid, window = (result.count_right(facts) for result in results)
    print(
        f"\nFetching the old keys and values for every token would move "
        f"{in_megabytes(results[1].host_bytes)}; hybridgen moved {results[1].link}.\n"
        f"With the same device memory the window alone finds {window} of {len(facts)}, "
        f"hybridgen {hybrid}."
    )
    return 0 if hybrid >= reference else 1


if __name__ == "__main__":
    with unwound_by_sigterm():
        sys.exit(main())
