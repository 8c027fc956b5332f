# SPDX-License-Identifier: Apache-2.0
"""FlexGen's flags as a table: names, types and defaults; abbreviations are part of the surface.

New flags begin with ``--hg-``, so that no published abbreviation becomes ambiguous. Flags of forks
exist only where the arguments hold one of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

from .utils import str2bool

SWITCH: dict[str, Any] = {"action": "store_true"}


class Flag(NamedTuple):
    """One flag: what argparse is told."""

    name: str
    options: dict[str, Any]


def _value(name: str, kind: Any, default: Any, text: str, **more: Any) -> Flag:
    return Flag(name, {"type": kind, "default": default, "help": text} | more)


def _bool(name: str, default: bool, text: str) -> Flag:
    return _value(name, str2bool, default, text, nargs="?", const=True)


def _switch(name: str, text: str) -> Flag:
    return Flag(name, SWITCH | {"help": text})


_PERCENT = _value(
    "--percent",
    int,
    [100, 0, 100, 0, 100, 0],
    "weights, cache, activations: of each what is on the GPU and on the CPU; the rest is on disk",
    nargs="+",
)
_PLACES = (
    _value("--model", str, "facebook/opt-6.7b", "a published name, or a local folder"),
    _value("--path", str, "~/opt_weights", "where <name>-np lies; _DUMMY_ in it draws weights"),
    _value("--offload-dir", str, "~/flexgen_offload_dir", "the disk's folder"),
)
_PIN = _bool("--pin-weight", True, "pin weights that are on the CPU")
_CPU = _switch("--cpu-cache-compute", "the CPU attends to what is not on the GPU")
_COMPRESS = (
    _switch("--compress-weight", "weights in 4 bits, groups of 64"),
    _switch("--compress-cache", "keys and values in 4 bits, groups of 64"),
)

FLEX_OPT: tuple[Flag, ...] = (
    *_PLACES,
    _value("--prompt-len", int, 512, "tokens of a prompt, with its pads"),
    _value("--gen-len", int, 32, "new tokens"),
    _value("--cut-gen-len", int, None, "run so many tokens and project the others"),
    _value(
        "--debug-mode",
        str,
        None,
        "a few decode steps stand for all",
        choices=["fewer_batch", "breakdown"],
    ),
    _value("--gpu-batch-size", int, 4, "rows of a batch"),
    _value("--num-gpu-batches", int, 1, "batches of a block (not GPUs)"),
    _PERCENT,
    _bool("--sep-layer", True, "count attention and FFN as two layers"),
    _PIN,
    _CPU,
    _value("--attn-sparsity", float, 1.0, "share of the tokens whose values are read"),
    *_COMPRESS,
    _value("--log-file", str, "auto", "file that the record is appended to"),
    _switch("--no-log", "write no log file"),
    _value("--verbose", int, 2, "0: no report; 1: no text; 2: both"),
    _bool("--overlap", True, "kept: copies always run beside computation"),
)
"""FlexGen's 20."""

COMPLETION: tuple[Flag, ...] = (*_PLACES, _PERCENT, _PIN, _CPU, *_COMPRESS)

OWN: tuple[Flag, ...] = (
    _value("--hg-device", str, "auto", "auto, cpu, cuda:0, emulated, emulated:PROFILE"),
    _value("--hg-dtype", str, "auto", "auto, float32, bfloat16, float16"),
    _value("--hg-tokenizer", str, None, "folder or hub id; default: the model's own"),
    _value("--hg-prompt-file", str, None, "one prompt in each line, by turns for all rows"),
    _switch("--hg-fill-prompts", "no pads: the sentence again until prompt-len, as with _DUMMY_"),
    _value("--hg-split", str, "rows", "how a cache is divided", choices=["rows", "tokens"]),
    _value("--hg-threads", int, None, "threads of the host and, without a GPU, of the device"),
    _value("--hg-seed", int, 0, "of drawn weights"),
)
"""Ours."""

INPUT_PATHS: tuple[Flag, ...] = (
    _value("--warmup-input-path", str, None, "text file of the warm-up's prompt"),
    _value("--test-input-path", str, None, "text file of the measured prompt"),
)
INFINIGEN: tuple[Flag, ...] = (
    _value("--alpha", int, 4, "tokens within alpha of the best guess count"),
    _value("--partial-weight-ratio", float, 0.2, "share of a key's columns that the guess sees"),
    _value("--max-num-kv", int, 400, "tokens fetched per layer at most"),
)
H2O: tuple[Flag, ...] = (
    _value("--hh-ratio", float, 1, "heavy hitters, as a share of the prompt"),
    _bool("--hh-all", False, "new tokens are evicted, too"),
    _bool("--hh-long-seq", False, "texts beyond the model's positions: not offered"),
)
_FORKS = {"paths": INPUT_PATHS, "infinigen": INFINIGEN, "h2o": H2O}


def forks_in(argv: Sequence[str]) -> set[str]:
    """Return which groups of forks' flags the arguments name, in full."""
    said = {word.split("=")[0] for word in argv}
    return {fork for fork, flags in _FORKS.items() if said & {flag.name for flag in flags}}


def add_flags(parser: argparse.ArgumentParser, flags: Sequence[Flag]) -> None:
    """Add flags of a table to a parser."""
    for flag in flags:
        parser.add_argument(flag.name, **flag.options)


def make_parser(
    prog: str, flags: Sequence[Flag], description: str | None = None, argv: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """Return a parser of these flags, of ours, and of the forks that `argv` names."""
    parser = argparse.ArgumentParser(prog=prog, description=description, add_help=False)
    # In full, as --hg-... would make an abbreviation of --help ambiguous.
    parser.add_argument("-h", "--h", "--help", action="help", help="show this text")
    add_flags(parser, flags)
    add_flags(parser, OWN)
    said = forks_in(argv)
    if said:
        for fork in ("paths", "infinigen" if "h2o" not in said else "h2o"):
            add_flags(parser, _FORKS[fork])
        if "h2o" in said:
            add_flags(parser, INFINIGEN[-1:])
    return parser


def add_parser_arguments(parser: argparse.ArgumentParser) -> None:
    """Add FlexGen's flags to a parser: what its scripts call."""
    add_flags(parser, FLEX_OPT)
