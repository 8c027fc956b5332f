# SPDX-License-Identifier: Apache-2.0
"""FlexGen's completion example: two prompts with examples in them, sampled to the end of a line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ...cli import run_command
from ...errors import CheckpointError
from ...model_folder import local_path
from ...np_weights import made_folder
from ..flags import COMPLETION, make_parser
from ..flex_opt import (
    CompressionConfig,
    ExecutionEnv,
    OptLM,
    Policy,
    choices_from,
    codec_of,
    policy_from,
    str2bool,
)
from ..opt_config import find_config
from ..token_rows import pad_left

__all__ = ["CompressionConfig", "ExecutionEnv", "OptLM", "Policy", "main", "run", "str2bool"]

PROMPTS = (
    "Question: Where were the Summer Olympics of 2004 held?\nAnswer: Athens, Greece\n\n"
    "Question: Which mountain on the earth is the longest from its foot to its top?\nAnswer:",
    "Say which airports the cities in a text have.\n\nText: Take me from Los Angeles to Miami.\n"
    "Airport codes: LAX, MIA\n\nText: We go from Nairobi to Tokyo in May.\nAirport codes:",
)
_PADDED = 128
_NEW_TOKENS = 32
_TEMPERATURE = 0.7
_DASHES = "-" * 70


def run(args: argparse.Namespace) -> None:
    """Complete the prompts and print them."""
    settings: dict[str, Any] = {
        "gpu_batch_size": len(PROMPTS),
        "num_gpu_batches": 1,
        "overlap": True,
        "sep_layer": True,
        "attn_sparsity": 1.0,
    }
    policy = policy_from(argparse.Namespace(**(vars(args) | settings)))
    with made_folder(local_path(args.offload_dir)):
        env = ExecutionEnv.create(args.offload_dir, args.hg_device)
        print("Initialize...", flush=True)
        config = find_config(args.model, args.path)
        model = OptLM(config, env, args.path, policy, engine=choices_from(args))
    try:
        codec = codec_of(args, model)
        if codec is None:
            raise CheckpointError(
                "[completion] --path draws weights, which have no tokenizer; allowed: a model's "
                "own weights, or --hg-tokenizer"
            )
        print("Generate...", flush=True)
        newline = codec.encode("\n", special=False)
        rows = [codec.opened(prompt) for prompt in PROMPTS]
        output_ids = model.generate(
            pad_left(rows, _PADDED, model.config.pad_token_id),
            do_sample=True,
            temperature=_TEMPERATURE,
            max_new_tokens=_NEW_TOKENS,
            stop=newline[0] if newline else None,
        )
        print("Outputs:\n" + _DASHES)
        for row, ids in enumerate(output_ids):
            shown = [int(token) for token in ids if token != model.config.pad_token_id]
            print(f"{row}: {codec.decode(shown, skip_special_tokens=True)}\n{_DASHES}")
    finally:
        print("Shutdown...", flush=True)
        model.delete_all_weights()
        env.close_copy_threads()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    parser = make_parser("hybridgen.apps.completion", COMPLETION, __doc__)
    return run_command(run, parser.parse_args(words))
