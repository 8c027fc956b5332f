# SPDX-License-Identifier: Apache-2.0
"""The command line: ``python -m hybridgen generate|info|methods``.

Exit codes: 0 done, 1 the model or the machine failed, 2 a wrong option. Errors are one line on
stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from .config import CpuConfig, KVConfig, QueryConfig, SchedulerConfig
from .errors import ConfigError, HybridGenError
from .info import info, to_json
from .llm import LLM
from .registry import method_summaries, selectors
from .sampling import SamplingParams


def number_or_word(text: str) -> Any:
    """Return an int or float if the text is one, else the text: 64, 0.1, "auto"."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how an engine is built; read them with `engine_from`."""
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0")
    parser.add_argument("--load-format", default="auto", help="auto, safetensors, bin, dummy")
    parser.add_argument("--max-model-len", type=int, help="prompt and new tokens at most")
    parser.add_argument("--method", default="hybridgen", help="see: python -m hybridgen methods")
    parser.add_argument("--query", default="speculative", help="exact, speculative, rescore")
    parser.add_argument(
        "--spec-first-layer", type=int, default=2, metavar="N", help="first layer that is guessed"
    )
    parser.add_argument("--selector", default="topk", help="of the post strategy")
    parser.add_argument("--pre-selector", default="sinks_recent", help="of the pre strategy")
    parser.add_argument("--strategy", default="post", help="post, pre")
    parser.add_argument(
        "--k", type=number_or_word, help="offloaded tokens attended to: 128, 0.05 (share), all"
    )
    parser.add_argument(
        "--device-tokens",
        type=number_or_word,
        default="auto",
        help="newest tokens kept on the device: 64, 0.1 (share of the prompt), auto",
    )
    parser.add_argument("--dram", default="auto", help="host memory: auto, 64GiB")
    parser.add_argument("--threads", type=number_or_word, default="auto")
    parser.add_argument("--device-threads", type=number_or_word, default="auto")
    parser.add_argument("--numa", type=number_or_word, default="auto")
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--seed", type=int, default=0)


def engine_from(arguments: argparse.Namespace) -> LLM:
    """Build the engine that the options of `add_engine_arguments` describe."""
    dram = number_or_word(arguments.dram)
    return LLM(
        arguments.model,
        dtype=arguments.dtype,
        device=arguments.device,
        load_format=arguments.load_format,
        max_model_len=arguments.max_model_len,
        method=arguments.method,
        query=QueryConfig(mode=arguments.query, first_layer=arguments.spec_first_layer),
        selector=arguments.selector,
        pre_selector=arguments.pre_selector,
        seed=arguments.seed,
        kv=KVConfig(device_tokens=arguments.device_tokens, dram=dram),
        scheduler=SchedulerConfig(k=arguments.k, strategy=arguments.strategy),
        cpu=CpuConfig(
            threads=arguments.threads,
            device_threads=arguments.device_threads,
            numa=arguments.numa,
            isa=arguments.isa,
        ),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hybridgen", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    generate = commands.add_parser("generate", help="continue a prompt")
    add_engine_arguments(generate)
    source = generate.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", help="may be given several times")
    source.add_argument("--prompt-file", help="the whole file is one prompt; - is standard input")
    generate.add_argument("--max-tokens", type=int, default=128)
    generate.add_argument("--temperature", type=float, default=0.0)
    generate.add_argument("--top-p", type=float, default=1.0)
    generate.add_argument("--top-k", type=int, default=0)
    generate.add_argument("--stop", action="append", default=[], help="may be given several times")
    generate.add_argument("--ignore-eos", action="store_true")
    output = generate.add_mutually_exclusive_group()
    output.add_argument("--stream", action="store_true", help="print text as it comes")
    output.add_argument("--json", action="store_true", help="print results and statistics")
    generate.set_defaults(run=_generate)

    about = commands.add_parser("info", help="versions, processor, memory nodes, device, build")
    about.add_argument("--json", action="store_true")
    about.set_defaults(run=_info)

    names = commands.add_parser("methods", help="names of methods and selectors")
    names.add_argument("--json", action="store_true")
    names.set_defaults(run=_methods)
    return parser


def _generate(arguments: argparse.Namespace) -> None:
    prompts = arguments.prompt or [_read_prompt(arguments.prompt_file)]
    if arguments.stream and len(prompts) != 1:
        raise ConfigError(f"[generate] --stream with {len(prompts)} prompts; allowed: 1")
    params = SamplingParams(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        stop=arguments.stop,
        ignore_eos=arguments.ignore_eos,
        seed=arguments.seed,
    )
    with engine_from(arguments) as llm:
        if llm.tokenizer is None:
            raise ConfigError(f"[generate] there is no tokenizer in {arguments.model}")
        if arguments.stream:
            for chunk in llm.stream(prompts[0], params):
                print(chunk.text, end="", flush=True)
            print()
            return
        results = llm.generate(prompts, params)
        if arguments.json:
            content = {
                "outputs": [result.to_dict() for result in results],
                "stats": llm.stats.to_dict(),
            }
            print(json.dumps(content, indent=2, default=str))
            return
        for result in results:
            print(result.text)


def _read_prompt(name: str) -> str:
    if name == "-":
        return sys.stdin.read().removesuffix("\n")
    try:
        with open(name, encoding="utf-8") as file:
            return file.read().removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"[generate] cannot read --prompt-file {name}: {error}") from error


def _info(arguments: argparse.Namespace) -> None:
    found = info()
    print(to_json(found) if arguments.json else found)


def _methods(arguments: argparse.Namespace) -> None:
    names = {
        "methods": method_summaries(),
        "selectors": selectors("post"),
        "pre_selectors": selectors("pre"),
    }
    if arguments.json:
        print(json.dumps(names, indent=2))
        return
    for name, summary in method_summaries().items():
        print(f"{name}: {summary}")
    for kind in ("selectors", "pre_selectors"):
        print(f"{kind}: {', '.join(names[kind])}")


def run_command(run: Any, arguments: argparse.Namespace) -> int:
    """Run a command; turn exceptions into one line on stderr and an exit code."""
    try:
        run(arguments)
    except ConfigError as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    except (HybridGenError, OSError, ImportError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 1
    return 0


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return run_command(arguments.run, arguments)
