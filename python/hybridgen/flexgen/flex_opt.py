# SPDX-License-Identifier: Apache-2.0
"""FlexGen's main program on the one engine: ``python -m hybridgen.flex_opt``, and its names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ..cli import run_command
from ..config import CpuConfig
from ..errors import CheckpointError, ConfigError
from ..model_folder import local_path
from ..np_weights import made_folder
from ..tokenizer import load_codec
from .compression import CompressionConfig
from .engine_choices import EngineChoices
from .flags import FLEX_OPT, add_parser_arguments, forks_in, make_parser
from .fork_report import fork_block, prompt_from_file, scheme_of
from .opt_config import OptConfig, download_opt_weights, find_config, get_opt_config
from .opt_lm import DUMMY_WEIGHT, OptLM
from .policy import Policy, Task
from .pytorch_backend import (
    DeviceType,
    Env,
    ExecutionEnv,
    TorchDevice,
    TorchDisk,
    TorchLink,
    TorchMixedDevice,
    TorchTensor,
    fix_recursive_import,
    general_copy,
)
from .report import Shape, Sizes, log_name, record, sixth_line
from .timer import timers
from .token_rows import pad_left
from .utils import (
    GB,
    KB,
    MB,
    T,
    ValueHolder,
    append_log,
    array_1d,
    array_2d,
    array_3d,
    project_decode_latency,
    read_benchmark_log,
    run_cmd,
    str2bool,
    write_benchmark_log,
)

__all__ = [
    "DUMMY_WEIGHT",
    "GB",
    "KB",
    "MB",
    "CompressionConfig",
    "DeviceType",
    "Env",
    "ExecutionEnv",
    "OptConfig",
    "OptLM",
    "Policy",
    "T",
    "Task",
    "TorchDevice",
    "TorchDisk",
    "TorchLink",
    "TorchMixedDevice",
    "TorchTensor",
    "ValueHolder",
    "add_parser_arguments",
    "array_1d",
    "array_2d",
    "array_3d",
    "download_opt_weights",
    "fix_recursive_import",
    "general_copy",
    "get_opt_config",
    "main",
    "project_decode_latency",
    "read_benchmark_log",
    "run_cmd",
    "run_flexgen",
    "run_flexllmgen",
    "str2bool",
    "timers",
    "write_benchmark_log",
]

PROMPT = "Paris is the capital city of"
_WARMUP_LEN = 32
_DASHES = "-" * 70


def get_filename(args: argparse.Namespace) -> str:
    """Return the name of a run's log file, without its ending."""
    return log_name(args).removesuffix(".log")


def get_test_inputs(prompt_len: int, num_prompts: int, tokenizer: Any) -> tuple[Any, ...]:
    """Return FlexGen's sentence as padded token ids, once for each row."""
    ids = tokenizer([PROMPT], padding="max_length", max_length=prompt_len).input_ids
    return (ids[0],) * num_prompts


def policy_from(args: argparse.Namespace) -> Policy:
    """Return the policy that a command line says."""
    if len(args.percent) != 6:
        raise ConfigError(
            f"[flex_opt] --percent has {len(args.percent)} numbers; allowed: 6, of weights, cache "
            "and activations what is on the GPU and what is on the CPU"
        )
    said = vars(args)
    weights_gpu, weights_cpu, cache_gpu, cache_cpu, act_gpu, act_cpu = args.percent
    return Policy(
        args.gpu_batch_size,
        args.num_gpu_batches,
        w_gpu_percent=weights_gpu,
        w_cpu_percent=weights_cpu,
        cache_gpu_percent=cache_gpu,
        cache_cpu_percent=cache_cpu,
        act_gpu_percent=act_gpu,
        act_cpu_percent=act_cpu,
        overlap=args.overlap,
        sep_layer=args.sep_layer,
        pin_weight=args.pin_weight,
        cpu_cache_compute=args.cpu_cache_compute,
        attn_sparsity=args.attn_sparsity,
        compress_weight=args.compress_weight,
        comp_weight_config=CompressionConfig(4, group_size=64, group_dim=0, symmetric=False),
        compress_cache=args.compress_cache,
        comp_cache_config=CompressionConfig(4, group_size=64, group_dim=2, symmetric=False),
        hh_ratio=said.get("hh_ratio", 1),
        hh_all=said.get("hh_all", False),
        hh_long_seq=said.get("hh_long_seq", False),
    )


def choices_from(args: argparse.Namespace) -> EngineChoices:
    """Return what our own flags say."""
    cpu = CpuConfig()
    if args.hg_threads is not None:
        cpu = CpuConfig(threads=args.hg_threads, device_threads=args.hg_threads)
    return EngineChoices(
        dtype=args.hg_dtype, seed=args.hg_seed, splits_tokens=args.hg_split == "tokens", cpu=cpu
    )


class Prompts:
    """The rows of a run: FlexGen's sentence, a file's lines, or where nothing can be read, ids.

    Parameters
    ----------
    args : Namespace
        The command line.
    model : OptLM
        Whose tokens they are.
    codec : Codec or None
        What reads text; None draws no text, of dummy weights.
    """

    def __init__(self, args: argparse.Namespace, model: OptLM, codec: Any) -> None:
        self._pad = model.config.pad_token_id
        if codec is None and args.hg_prompt_file is not None:
            raise ConfigError(
                f"[flex_opt] --hg-prompt-file is {args.hg_prompt_file} and there is no tokenizer; "
                "pass --hg-tokenizer"
            )
        self._fills = args.hg_fill_prompts or (model.is_dummy and args.hg_prompt_file is None)
        if codec is None:
            # Any ids will do, as long as rows differ: weights are drawn, too.
            vocabulary = model.config.vocab_size
            self._texts = [
                [3 + (row * 7919 + i * 104729) % (vocabulary - 3) for i in range(16)]
                for row in range(len(model.placement.rows))
            ]
        elif args.hg_prompt_file is not None:
            lines = _lines_of(args.hg_prompt_file)
            self._texts = [codec.closed(line) for line in lines]
        else:
            self._texts = [codec.closed(PROMPT)]

    def rows(self, count: int, length: int) -> list[list[int]]:
        """Return so many rows of so many tokens; a longer text is not cut."""
        found = []
        for row in range(count):
            ids = self._texts[row % len(self._texts)]
            if self._fills:
                ids = (ids * (length // len(ids) + 1))[:length]
            found.append(ids)
        return pad_left(found, length, self._pad)


def _lines_of(name: str) -> list[str]:
    try:
        with open(name, encoding="utf-8") as file:
            lines = [line.rstrip("\n") for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"[flex_opt] cannot read --hg-prompt-file {name}: {error}") from error
    if not lines:
        raise ConfigError(f"[flex_opt] --hg-prompt-file {name} has no line; allowed: one at least")
    return lines


def codec_of(args: argparse.Namespace, model: OptLM) -> Any:
    """Return what reads and writes text: the model's own tokenizer, or the hub's.

    Drawn weights need none. CheckpointError without one.
    """
    if args.hg_tokenizer is not None:
        found = load_codec(args.hg_tokenizer)
    else:
        found = model.codec
        if found is None and not model.is_dummy:
            found = load_codec(f"facebook/{model.config.name}")
    if found is None and not model.is_dummy:
        raise CheckpointError(
            f"[flex_opt] there is no tokenizer beside the weights of {args.model}; put the model's "
            "tokenizer.json there, or pass --hg-tokenizer"
        )
    return found


def run_flexgen(args: argparse.Namespace) -> None:
    """Run a benchmark as a command line says it, and report it as FlexGen does."""
    own = {flag: getattr(args, flag, default) for flag, default in _OWN_DEFAULTS.items()}
    args = argparse.Namespace(**(vars(args) | own))  # scripts parse FlexGen's flags alone
    policy = policy_from(args)
    if args.cut_gen_len is not None and args.cut_gen_len < 0:
        raise ConfigError(f"[flex_opt] --cut-gen-len is {args.cut_gen_len}; allowed: an int >= 0")
    if args.cut_gen_len == 1 and args.gen_len > 1:
        raise ConfigError(
            "[flex_opt] --cut-gen-len is 1; allowed: 2 at least, as the other tokens are projected "
            "from decode steps"
        )
    for name in ("prompt_len", "gen_len"):
        if getattr(args, name) < 1:
            raise ConfigError(
                f"[flex_opt] --{name.replace('_', '-')} is {getattr(args, name)}; allowed: an int "
                ">= 1"
            )
    if policy.hh_long_seq:
        raise ConfigError(
            "[flex_opt] --hh-long-seq is True, which leaves positions out and so makes no text; "
            "allowed: False; hybridgen.methods.StreamingLLM(positions='clamp') streams on without "
            "end"
        )
    if policy.hh_ratio < 1 and int(args.prompt_len * policy.hh_ratio) < 1:
        raise ConfigError(
            f"[flex_opt] --hh-ratio {policy.hh_ratio} of {args.prompt_len} tokens is none; "
            "allowed: a token at least"
        )
    with made_folder(local_path(args.offload_dir)):
        env = ExecutionEnv.create(args.offload_dir, args.hg_device)
        _run(args, policy, env)


run_flexllmgen = run_flexgen
"""The same under the package's later name."""


def _run(args: argparse.Namespace, policy: Policy, env: ExecutionEnv) -> None:
    is_fork = args.test_input_path is not None or args.warmup_input_path is not None
    config = find_config(args.model, args.path)
    rows = policy.gpu_batch_size * policy.num_gpu_batches
    shape = Shape(rows, args.prompt_len, args.gen_len)
    sizes = Sizes(
        config.model_bytes(),
        config.cache_bytes(rows, args.prompt_len + args.gen_len),
        config.hidden_bytes(rows, args.prompt_len + args.gen_len),
    )
    if not is_fork:
        print(f"<run_hybridgen>: args.model: {args.model}")
        print(
            f"model size: {sizes.model / GB:.3f} GB, cache size: {sizes.cache / GB:.3f} GB, hidden "
            f"size (prefill): {sizes.hidden / GB:.3f} GB"
        )
        print("init weight...", flush=True)
    fork = (
        (args.partial_weight_ratio, args.alpha, args.max_num_kv) if args.alpha is not None else ()
    )
    model = OptLM(config, env, args.path, policy, *fork, engine=choices_from(args))
    try:
        codec = codec_of(args, model)
        if is_fork:
            _run_fork(args, model, codec, shape)
            return
        for line in model.realised():
            print(line)
        _measure(args, model, codec, shape, sizes)
    finally:
        model.delete_all_weights()
        env.close_copy_threads()


def _measure(
    args: argparse.Namespace, model: OptLM, codec: Any, shape: Shape, sizes: Sizes
) -> None:
    prompts = Prompts(args, model, codec)
    print("warmup - generate", flush=True)
    model.generate(prompts.rows(shape.rows, _WARMUP_LEN), max_new_tokens=1)
    print("benchmark - generate", flush=True)
    timers("generate").reset()
    inputs = prompts.rows(shape.rows, shape.prompt_len)
    pad = model.config.pad_token_id
    real = min(sum(token != pad for token in row) for row in inputs)
    if real == 0:
        raise ConfigError(
            f"[flex_opt] the tokenizer of {args.model} knows no word of a prompt; allowed: one "
            "token at least; pass --hg-prompt-file"
        )
    output_ids = model.generate(
        inputs,
        max_new_tokens=shape.gen_len,
        debug_mode=args.debug_mode,
        cut_gen_len=args.cut_gen_len,
    )
    stats = model.llm.stats
    if args.verbose >= 2 and not model.is_dummy and model.llm.model.machine_profile is None:
        print("Outputs:\n" + _DASHES)
        for row in sorted({0, shape.rows - 1}):
            ids = [int(i) for i in output_ids[row] if i != model.config.pad_token_id]
            print(f"{row}: {codec.decode(ids, skip_special_tokens=True)}\n{_DASHES}")
        print()
    model.env.gpu.print_stats()
    if model.env.gpu.name != "cpu":
        model.env.cpu.print_stats()
    is_cut = bool(args.cut_gen_len) and args.debug_mode is None
    peak = model.device_peak_bytes
    if model.env.gpu.name != "cpu":
        peak = model.env.gpu.mem_stats()[1]
    text = record(
        timers("generate").costs,
        sizes,
        shape,
        peak_bytes=peak,
        is_cut=is_cut,
        is_projected=bool(args.debug_mode or args.cut_gen_len),
    )
    text += "\n" + sixth_line(stats, real, emulated=model.llm.model.emulated)
    if not args.no_log:
        append_log(log_name(args) if args.log_file == "auto" else args.log_file, text)
    if args.verbose >= 1:
        print(text)


def _run_fork(args: argparse.Namespace, model: OptLM, codec: Any, shape: Shape) -> None:
    """Run what InfiniGen's scripts run: one text for all rows, times, no log."""
    warmup = prompt_from_file(args.warmup_input_path, "--warmup-input-path", codec)
    prompt = prompt_from_file(args.test_input_path, "--test-input-path", codec)
    pad = model.config.pad_token_id
    longest = min(2048, model.config.max_seq_len) - 1
    model.generate(pad_left([warmup[:longest]] * shape.rows, 1, pad), max_new_tokens=1, warmup=True)
    timers("generate").reset()
    rows = pad_left([prompt[: shape.prompt_len]] * shape.rows, shape.prompt_len, pad)
    model.generate(rows, max_new_tokens=shape.gen_len, cut_gen_len=args.cut_gen_len)
    costs = timers("generate").costs
    scheme = scheme_of(model.policy, is_infinigen=args.alpha is not None)
    print(fork_block(scheme, shape, costs[0], sum(costs[1:])))


_OWN_DEFAULTS: dict[str, Any] = {
    "hg_device": "auto",
    "hg_dtype": "auto",
    "hg_tokenizer": None,
    "hg_prompt_file": None,
    "hg_fill_prompts": False,
    "hg_split": "rows",
    "hg_threads": None,
    "hg_seed": 0,
    "warmup_input_path": None,
    "test_input_path": None,
    "alpha": None,
    "partial_weight_ratio": None,
    "max_num_kv": None,
}


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Return a command line's flags; InfiniGen's are None unless its method is meant."""
    args = make_parser("hybridgen.flex_opt", FLEX_OPT, __doc__, argv).parse_args(argv)
    if "infinigen" not in forks_in(argv) or "h2o" in forks_in(argv):
        args.alpha = None
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    return run_command(run_flexgen, args)
