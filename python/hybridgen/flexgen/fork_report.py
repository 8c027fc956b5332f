# SPDX-License-Identifier: Apache-2.0
"""What InfiniGen's fork of FlexGen reads and prints."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from .policy import Policy
from .report import Shape


def scheme_of(policy: Policy, *, is_infinigen: bool) -> str:
    """Return what the fork calls a run's method."""
    if is_infinigen:
        return "InfiniGen (Ours)"
    if policy.hh_ratio < 1:
        return "FlexGen + H2O"
    return "FlexGen + INT4" if policy.compress_cache else "FlexGen"


def fork_block(scheme: str, shape: Shape, prefill_s: float, decode_s: float) -> str:
    """Return the block that the fork's scripts look for; seconds with all their digits."""
    return "\n".join(
        [
            "+" * 74,
            scheme,
            f"input: {shape.prompt_len} output: {shape.gen_len} bsz: {shape.rows}",
            "+" * 74,
            f"Total: {prefill_s + decode_s} Prefill: {prefill_s} Decode: {decode_s}",
            "=" * 74,
        ]
    )


def prompt_from_file(name: str | None, flag: str, codec: Any) -> list[int]:
    """Return a text file's token ids.

    Raises
    ------
    ConfigError
        Without a file, or if it cannot be read or has no text.
    """
    if name is None:
        raise ConfigError(
            f"[flex_opt] {flag} is missing; allowed: a text file, as InfiniGen has it"
        )
    if codec is None:
        raise ConfigError(
            f"[flex_opt] {flag} is {name} and there is no tokenizer; pass --hg-tokenizer"
        )
    try:
        with open(name, encoding="utf-8") as file:
            ids = codec.closed(file.read())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"[flex_opt] cannot read {flag} {name}: {error}") from error
    if not ids:
        raise ConfigError(f"[flex_opt] {flag} {name} has no text; allowed: one token at least")
    return list(ids)
