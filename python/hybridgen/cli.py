# SPDX-License-Identifier: Apache-2.0
"""The command line: ``python -m hybridgen COMMAND``; ``--help`` lists the commands.

Exit codes: 0 done, 1 the model or the machine failed, 2 a wrong option. Errors are one line on
stderr. Characters that standard output has no code for are printed as escapes.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import methods, selectors
from ._files import check_writable, unwound_by_sigterm
from .batch.command import add_batch_arguments, run_batch_command
from .cli_options import (
    add_engine_arguments,
    add_model_arguments,
    add_options,
    add_sampling_arguments,
    engine_from,
    given_of,
    method_options,
    model_from,
    model_options,
    name_and_value,
    number_or_word,
    rows_of,
    sampling_options,
)
from .coded_checkpoint import OF_FORMAT
from .config import WeightConfig
from .errors import ConfigError, GenerationError, HybridGenError, OutOfMemoryError
from .info import info, to_json
from .k_min import DEFAULT_TOKENS, calibrate, read_dataset
from .k_min_profile import profile_file
from .llm import LLM
from .machine_measurement import measure_machine
from .machine_profile import MachineProfile
from .machine_rates import field_table
from .outputs import RequestOutput
from .plan import plan
from .quantize import quantize
from .sampling import SamplingParams
from .serve.command import add_serve_arguments, options_of, serve


class _StrictParser(argparse.ArgumentParser):
    """Takes no abbreviations: --k of one command would be --k-values of another."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hybridgen", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_StrictParser)

    generate = commands.add_parser("generate", help="continue a prompt")
    add_engine_arguments(generate)
    source = generate.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", help="may be given several times")
    source.add_argument("--prompt-file", help="the whole file is one prompt; - is standard input")
    add_sampling_arguments(generate)
    output = generate.add_mutually_exclusive_group()
    output.add_argument("--stream", action="store_true", help="print text as it comes")
    output.add_argument("--json", action="store_true", help="print results and statistics")
    generate.set_defaults(run=_generate)

    batch = commands.add_parser("batch", help="answer a file of prompts into a folder")
    add_engine_arguments(batch)
    add_sampling_arguments(batch, max_tokens=None)
    add_batch_arguments(batch)
    batch.set_defaults(run=_batch)

    served = commands.add_parser("serve", help="answer HTTP requests as OpenAI's API does")
    add_engine_arguments(served)
    add_serve_arguments(served)
    served.set_defaults(run=_serve)

    evaluated = commands.add_parser(
        "eval", help="score tasks through decode with lm-evaluation-harness; see docs/evaluation.md"
    )
    add_engine_arguments(evaluated)
    evaluated.add_argument(
        "--tasks",
        nargs="+",
        required=True,
        metavar="TASK",
        help="ours, such as hybridgen_text, or the harness's: names or YAML files",
    )
    evaluated.add_argument("--num-fewshot", type=int, help="examples before each question")
    evaluated.add_argument("--limit", type=int, help="questions of each task at most")
    evaluated.add_argument(
        "--task-config",
        type=name_and_value,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of generated tasks: count, seed, tokens, words; may be given several times",
    )
    evaluated.add_argument("--include-path", help="folder with more tasks")
    evaluated.add_argument("--json", action="store_true")
    evaluated.set_defaults(run=_eval)

    planned = commands.add_parser("plan", help="what a batch takes of memory; loads nothing")
    add_engine_arguments(planned, comes_first=True)
    planned.add_argument("--batch-size", type=int, default=1)
    planned.add_argument("--prompt-tokens", type=int, required=True)
    planned.add_argument("--new-tokens", type=int, default=16)
    planned.add_argument("--json", action="store_true")
    planned.set_defaults(run=_plan)

    quantized = commands.add_parser("quantize", help="save a checkpoint with weights as codes")
    quantized.add_argument("model", help="folder or hub id")
    quantized.add_argument("out", help="folder to make")
    add_options(quantized, [row for row in rows_of("WeightConfig") if row["name"] in OF_FORMAT])
    quantized.add_argument("--revision", help="branch, tag or commit of a hub id")
    quantized.add_argument("--load-format", default="auto", help="auto, safetensors, bin")
    quantized.set_defaults(run=_quantize)

    about = commands.add_parser("info", help="versions, processor, memory nodes, device, build")
    about.add_argument("--json", action="store_true")
    about.set_defaults(run=_info)

    profile = commands.add_parser("calibrate", help="find K_min of a model and write k_min.json")
    add_model_arguments(profile)
    profile.add_argument("--data", required=True, help="jsonl of prompts, maybe with answers")
    profile.add_argument("--out", help="default: k_min.json in the model's folder")
    profile.add_argument("--metric", default="auto", help="auto, agreement, exact_match")
    profile.add_argument("--k-values", type=int, nargs="+", default=list(DEFAULT_TOKENS))
    profile.add_argument("--tolerance", type=float, default=0.02, help="accepted share of loss")
    profile.add_argument("--max-tokens", type=int, default=16)
    profile.add_argument(
        "--device-tokens",
        type=number_or_word,
        default=0.1,
        help="newest tokens kept on the device, which K does not count: 64, 0.1 (256 at least)",
    )
    profile.add_argument("--plot", help="png file for the curve; needs matplotlib")
    profile.add_argument("--json", action="store_true")
    profile.set_defaults(run=_calibrate)

    machine = commands.add_parser("profile", help="measure this machine; see docs/profiles.md")
    machine.add_argument("--out", help="file to write; without one the profile is printed")
    machine.add_argument(
        "--base",
        help="profile that has what cannot be measured here, such as another GPU and its link: "
        f"{', '.join(MachineProfile.names())}, or a .json file",
    )
    machine.add_argument("--name", help="of the profile; default: the GPU's and the CPU's")
    machine.add_argument("--threads", type=int, help="CPUs that work; default: all")
    machine.add_argument("--quick", action="store_true", help="seconds, and rougher")
    machine.set_defaults(run=_profile)

    names = commands.add_parser("methods", help="all methods, their options, all selectors")
    names.add_argument("--json", action="store_true")
    names.set_defaults(run=_methods)
    return parser


def _generate(arguments: argparse.Namespace) -> None:
    prompts = arguments.prompt or [_read_prompt(arguments.prompt_file)]
    if arguments.stream and len(prompts) != 1:
        raise ConfigError(f"[generate] --stream with {len(prompts)} prompts; allowed: 1")
    if arguments.stream and arguments.device.startswith("emulated:"):
        raise ConfigError(
            f"[generate] --stream on {arguments.device}, where there is no text; allowed: without "
            "it, which prints times"
        )
    params = SamplingParams(**sampling_options(arguments), seed=arguments.seed)
    with engine_from(arguments) as llm:
        if llm.tokenizer is None:
            raise ConfigError(f"[generate] there is no tokenizer in {arguments.model}")
        if arguments.stream:
            for chunk in llm.stream(prompts[0], params):
                print(chunk.text, end="", flush=True)
            print()
            return
        try:
            results = llm.generate(prompts, params)
        except GenerationError as error:  # what the other prompts came to is no less worth
            _print_results(error.outputs, llm, as_json=arguments.json)
            raise
        _print_results(results, llm, as_json=arguments.json)


def _batch(arguments: argparse.Namespace) -> None:
    engine = model_options(arguments) | method_options(arguments)
    run_batch_command(arguments, engine, sampling_options(arguments))


def _print_results(results: list[RequestOutput], llm: LLM, *, as_json: bool) -> None:
    if as_json:
        content = {
            "outputs": [result.to_dict() for result in results],
            "stats": llm.stats.to_dict(),
        }
        print(json.dumps(content, indent=2, default=str))
        return
    if any(result.text is None for result in results):  # it is withheld
        print(llm.stats.summary())
        return
    for result in results:
        print(result.text)


def _read_prompt(name: str) -> str:
    if name == "-":
        return _read_standard_input().removesuffix("\n")
    try:
        with open(name, encoding="utf-8") as file:
            return file.read().removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"[generate] cannot read --prompt-file {name}: {error}") from error


def _read_standard_input() -> str:
    if sys.stdin is None:
        raise ConfigError("[generate] --prompt-file is -, but standard input is closed")
    if isinstance(sys.stdin, io.TextIOWrapper):
        # In some locales Python reads bytes that are no text as surrogates, which no model knows.
        sys.stdin.reconfigure(errors="strict")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"[generate] standard input is no {error.encoding} text: {error.reason} at byte "
            f"{error.start}; convert it, or set PYTHONIOENCODING to its encoding"
        ) from error


def _serve(arguments: argparse.Namespace) -> None:
    serve(options_of(arguments), lambda: engine_from(arguments))


def _eval(arguments: argparse.Namespace) -> None:
    from .evaluation.harness import evaluate, load_tasks  # need lm_eval, which is optional

    tasks = load_tasks(
        arguments.tasks,
        num_fewshot=arguments.num_fewshot,
        task_options=dict(arguments.task_config),
        include_path=arguments.include_path,
    )
    with engine_from(arguments) as llm:
        found = evaluate(llm, tasks, limit=arguments.limit)
    print(found.to_json() if arguments.json else found)


def _quantize(arguments: argparse.Namespace) -> None:
    made = quantize(
        arguments.model,
        arguments.out,
        weights=WeightConfig(**given_of(arguments, "WeightConfig")),
        revision=arguments.revision,
        load_format=arguments.load_format,
        progress=sys.stderr.isatty(),
    )
    print(made)


def _plan(arguments: argparse.Namespace) -> None:
    found = plan(
        arguments.model,
        batch_size=arguments.batch_size,
        prompt_tokens=arguments.prompt_tokens,
        new_tokens=arguments.new_tokens,
        **model_options(arguments),
        **method_options(arguments),
    )
    print(found.to_json() if arguments.json else found)
    if not found.fits:
        raise OutOfMemoryError("[plan] a request of this batch does not fit; see its problem")


def _info(arguments: argparse.Namespace) -> None:
    found = info()
    print(to_json(found) if arguments.json else found)


def _methods(arguments: argparse.Namespace) -> None:
    content: dict[str, list[Any]] = {
        "methods": methods.table(),
        "selectors": selectors.names("post"),
        "pre_selectors": selectors.names("pre"),
    }
    if arguments.json:
        # Standard JSON has no infinity.
        print(json.dumps(content, indent=2, allow_nan=False))
        return
    for row in content["methods"]:
        print(f"{row['name']}: {row['summary']}")
        print(f"  attention: {row['attention']}; tokens chosen: {row['timing']}")
        print(f"  exact when: {row['exact_when']}; lost for good: {row['drops']}")
        print(f"  crosses the link: {row['link']}")
        for option in row["tunables"]:
            print(
                f"  {option['name']} = {option['default']!r}: {option['meaning']} "
                f"({option['allowed']})"
            )
    for kind in ("selectors", "pre_selectors"):
        print(f"{kind}: {', '.join(content[kind])}")


def _calibrate(arguments: argparse.Namespace) -> None:
    dataset = read_dataset(arguments.data)
    with model_from(arguments, method="full") as llm:
        profile = calibrate(
            llm,
            dataset,
            metric=arguments.metric,
            k_values=arguments.k_values,
            tolerance=arguments.tolerance,
            max_tokens=arguments.max_tokens,
            device_tokens=arguments.device_tokens,
            progress=not arguments.json,
        )
        out = Path(arguments.out) if arguments.out else profile_file(llm.path or Path())
    profile.save(out)
    if arguments.plot:
        profile.plot(arguments.plot)
    if arguments.json:
        print(out.read_text(encoding="utf-8"), end="")
        return
    for k, accuracy in profile.curve:
        print(f"K = {k:6d}  {profile.metric} {accuracy:.3f}")
    print(f"all tokens  {profile.metric} {profile.all_tokens:.3f}")
    print(f"K_min = {profile.k_min}, written to {out}")


def _profile(arguments: argparse.Namespace) -> None:
    if arguments.out is not None:
        check_writable(arguments.out, "profile")
    profile = measure_machine(
        base=None if arguments.base is None else MachineProfile.load(arguments.base),
        name=arguments.name,
        threads=arguments.threads,
        quick=arguments.quick,
        progress=True,
    )
    if arguments.out is None:
        print(json.dumps(profile.to_dict(), indent=1))
        return
    profile.save(arguments.out)
    units = {row["name"]: row["unit"] for row in field_table()}
    for name, value in profile.values().items():
        print(f"{name:28} {value!s:>12} {units[name]} ({profile.confidence.get(name, 'unsaid')})")
    print(f"{profile.name}: {profile.description}, written to {arguments.out}")


def run_command(run: Any, arguments: argparse.Namespace) -> int:
    """Run a command; turn exceptions into one line on stderr and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with unwound_by_sigterm():
            return _exit_code(run, arguments)
    finally:
        _settle_output()


def _settle_output() -> None:
    """Write what is buffered, or drop it, so that nothing fails after the exit code is known."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_code(run: Any, arguments: argparse.Namespace) -> int:
    try:
        run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        return 1  # the reader, such as `head`, has what it wants
    except ConfigError as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 1 if isinstance(error, GenerationError) else 2
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
