# SPDX-License-Identifier: Apache-2.0
"""What a FlexGen policy means to the engine: one function from values to values.

The engine has one decode loop, and this chooses its method, where each row's cache lies and in how
many bits. What the engine cannot do is refused here; what it does in another place than asked is
said in `Placement.notes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from ..methods import H2O, Composition, FlexGen, InfiniGen, LayerRule, MoELightning
from .policy import Policy

DEVICE, DRAM, DISK = "device", "dram", "disk"

CPU_ATTENTION_NAME = "flexgen_cpu_attention"
CPU_ATTENTION = Composition(
    residency="window", rule=LayerRule(query="exact", payload="partial_attention")
)
"""Rows on the device are attended to there, all others on the CPU."""


@dataclass(frozen=True)
class InfiniGenFork:
    """What InfiniGen's fork adds to a policy."""

    alpha: float = 4
    partial_weight_ratio: float = 0.2
    max_num_kv: int = 400


@dataclass(frozen=True)
class Placement:
    """A policy as the engine is asked for it.

    Parameters
    ----------
    method : object
        A method's name, its options, or a composition.
    rows : tuple of str
        Where each row's keys and values lie: "device", "dram" or "disk".
    precision : str
        Of keys and values on the host: "full" or "int4".
    device_tokens : float or None
        Newest tokens of every row on the device, as a share of its prompt, where a cache is divided
        by tokens; None: rows are whole.
    weights : dict
        Options of a `hybridgen.WeightConfig`.
    micro_batch : int
        Rows that pass through a layer together.
    notes : tuple of str
        What is done otherwise than FlexGen does it.
    """

    method: Any
    rows: tuple[str, ...]
    precision: str = "full"
    device_tokens: float | None = None
    weights: dict[str, Any] = field(default_factory=dict)
    micro_batch: int = 1
    notes: tuple[str, ...] = ()

    def count(self, home: str) -> int:
        """Return how many rows lie in a place."""
        return self.rows.count(home)

    def sentence(self) -> str:
        """Return where keys and values lie, as it is printed."""
        found = [f"{self.count(h)} {n}" for h, n in _NAMES.items() if self.count(h)]
        how = "" if self.precision == "full" else f", in {self.precision}"
        if self.device_tokens is not None:
            share = f"{100 * self.device_tokens:g} %"
            return f"cache: the newest {share} of each row's tokens on the device{how}"
        return f"cache: of {len(self.rows)} rows {', '.join(found)}{how}"


_NAMES = {DEVICE: "on the device", DRAM: "in DRAM", DISK: "on disk"}


def check_policy(policy: Policy) -> None:
    """Refuse a policy that says nothing sensible, before anything is loaded.

    Raises
    ------
    ConfigError
        With the field, what is allowed and the way out.
    """
    for name in ("gpu_batch_size", "num_gpu_batches"):
        value = getattr(policy, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"[policy] {name} is {value!r}; allowed: an int >= 1")
    for what, pair in {
        "weights": (policy.w_gpu_percent, policy.w_cpu_percent),
        "cache": (policy.cache_gpu_percent, policy.cache_cpu_percent),
        "activations": (policy.act_gpu_percent, policy.act_cpu_percent),
    }.items():
        if not all(0 <= p <= 100 for p in pair) or sum(pair) > 100:
            raise ConfigError(
                f"[policy] the percentages of {what} are {pair[0]:g} on the GPU and {pair[1]:g} on "
                "the CPU; allowed: 0 to 100 each and 100 together at most, the rest is on the disk"
            )
    shares = (policy.act_gpu_percent, policy.act_cpu_percent, policy.act_disk_percent)
    if 100 not in shares:
        raise ConfigError(
            f"[policy] activations are {shares[0]:g} % on the GPU, {shares[1]:g} % on the CPU and "
            f"{shares[2]:g} % on the disk; allowed: 100 % in one of them"
        )
    if not 0 < policy.attn_sparsity <= 1:
        raise ConfigError(
            f"[policy] attn_sparsity is {policy.attn_sparsity:g}; allowed: a share of the tokens "
            "in (0, 1]"
        )
    if policy.compress_cache and policy.attn_sparsity < 1:
        raise ConfigError(
            "[policy] compress_cache is True with attn_sparsity below 1; allowed: one of them; "
            "leave out --compress-cache or --attn-sparsity"
        )
    _check_compression(policy)


def _check_compression(policy: Policy) -> None:
    for name, is_on, config in (
        ("comp_weight_config", policy.compress_weight, policy.comp_weight_config),
        ("comp_cache_config", policy.compress_cache, policy.comp_cache_config),
    ):
        if is_on and (config is None or config.num_bits != 4 or config.symmetric):
            raise ConfigError(f"[policy] {name} is {config}; allowed: 4 bits, not symmetric")
    if policy.compress_weight and policy.comp_weight_config.group_size not in (32, 64, 128):
        raise ConfigError(
            f"[policy] group_size of comp_weight_config is {policy.comp_weight_config.group_size}; "
            "allowed: 32, 64, 128"
        )
    if policy.compress_cache and policy.comp_cache_config.group_size != 64:
        raise ConfigError(
            f"[policy] group_size of comp_cache_config is {policy.comp_cache_config.group_size}; "
            "allowed: 64"
        )


def rows_of(policy: Policy) -> tuple[str, ...]:
    """Return where each row of the block lies: whole sequences, of each batch the first on the GPU.

    Shares are rounded down to whole sequences; what is left is on the CPU, or on the disk where the
    policy has a share there.
    """
    each = policy.gpu_batch_size
    on_gpu = math.floor(each * policy.cache_gpu_percent / 100)
    if policy.cache_disk_percent > 0:
        on_cpu = math.floor(each * policy.cache_cpu_percent / 100)
    else:
        on_cpu = each - on_gpu
    batch = (DEVICE,) * on_gpu + (DRAM,) * on_cpu + (DISK,) * (each - on_gpu - on_cpu)
    return batch * policy.num_gpu_batches


def place(
    policy: Policy,
    *,
    device_is_host: bool,
    fork: InfiniGenFork | None = None,
    splits_tokens: bool = False,
) -> Placement:
    """Return how the engine is asked for a policy.

    Parameters
    ----------
    policy : Policy
        Checked by `check_policy`.
    device_is_host : bool
        Whether the device is the CPU: its memory is the host's.
    fork : InfiniGenFork, optional
        What InfiniGen's fork adds.
    splits_tokens : bool
        Divide each row's cache by tokens instead of the block by rows.

    Raises
    ------
    ConfigError
        For what the engine has no counterpart of.
    """
    check_policy(policy)
    rows = rows_of(policy)
    notes: list[str] = []
    device_tokens = None
    if splits_tokens and policy.cache_gpu_percent < 100:
        device_tokens = policy.cache_gpu_percent / 100
        rows = (DRAM if policy.cache_disk_percent == 0 else DISK,) * len(rows)
    on_host_only = {
        "in 4 bits": policy.compress_cache,
        "of which some values are read": policy.attn_sparsity < 1,
    }
    for what, is_asked in on_host_only.items():
        if is_asked and DEVICE in rows:
            rows = tuple(DRAM if row == DEVICE else row for row in rows)
            notes.append(
                f"a cache {what} lies in DRAM, not on the GPU; the newest token stays there"
            )
    if DISK in rows:
        notes.append(
            "of a row on the disk the newest tokens are in DRAM until they fill a block of 256, or "
            "more where rows are narrow"
        )
    if policy.act_disk_percent == 100 or (policy.act_cpu_percent == 100 and not device_is_host):
        notes.append("activations stay on the device, whatever home they are given")
    method = _method(policy, rows, fork, device_tokens, notes)
    return Placement(
        method=method,
        rows=rows,
        precision="int4" if policy.compress_cache else "full",
        device_tokens=device_tokens,
        weights=weight_options(policy),
        micro_batch=_micro_batch(policy, method, device_is_host=device_is_host),
        notes=tuple(notes),
    )


def _micro_batch(policy: Policy, method: Any, *, device_is_host: bool) -> int:
    """Return the rows that pass through a layer together: on a CPU device those of all batches.

    The batches of a block are for devices whose memory holds one at a time, and for hosts that
    work meanwhile. A CPU that is the device reads a layer's weights once for all of them.
    """
    host_works_meanwhile = isinstance(method, MoELightning) or method is CPU_ATTENTION
    if device_is_host and not host_works_meanwhile:
        return policy.gpu_batch_size * policy.num_gpu_batches
    return policy.gpu_batch_size


# FlexGen counts biases, which shifts all mid-points a little down: 25 % are still those of 24 %.
_JUST_BELOW = 1e-6


def weight_options(policy: Policy) -> dict[str, Any]:
    """Return how weights are held and where, as a `hybridgen.WeightConfig` has it.

    Empty: as they are, and all on the device.
    """
    options: dict[str, Any] = {}
    if policy.w_gpu_percent < 100:
        options["device"] = max(0.0, policy.w_gpu_percent / 100 - _JUST_BELOW)
        options["host"] = max(0.0, policy.w_cpu_percent / 100 - _JUST_BELOW)
    if policy.compress_weight:
        options |= dict.fromkeys(("format", "head", "embeddings"), "int4")
        options |= {"group": policy.comp_weight_config.group_size, "min_max": True}
    return options


def _method(
    policy: Policy,
    rows: tuple[str, ...],
    fork: InfiniGenFork | None,
    device_tokens: float | None,
    notes: list[str],
) -> Any:
    """Return the engine's method of a policy; what it does otherwise is added to the notes."""
    if fork is not None:
        return _infinigen(policy, rows, fork)
    if policy.hh_ratio < 1:
        return _h2o(policy, rows, notes)
    has_host = device_tokens is not None or set(rows) != {DEVICE}
    if policy.attn_sparsity < 1:
        if policy.cpu_cache_compute:
            notes.append("attention over chosen values runs on the device, not on the CPU")
        return FlexGen(attn_sparsity=policy.attn_sparsity)
    if not has_host:
        if policy.cpu_cache_compute:
            notes.append("all of the cache is on the GPU, which attends to it itself")
        return "full"
    if not policy.cpu_cache_compute:
        return FlexGen()
    if device_tokens is None and DEVICE not in rows:
        return MoELightning(micro_batches=policy.num_gpu_batches)
    return CPU_ATTENTION


def _infinigen(policy: Policy, rows: tuple[str, ...], fork: InfiniGenFork) -> Any:
    if set(rows) != {DRAM}:
        raise ConfigError(
            f"[policy] the cache is {policy.cache_gpu_percent:g} % on the GPU and "
            f"{policy.cache_cpu_percent:g} % on the CPU with InfiniGen's flags; allowed: 0 and "
            "100, as it fetches from the CPU's memory; write --percent 100 0 0 100 100 0"
        )
    refused = {
        "--cpu-cache-compute": policy.cpu_cache_compute,
        "--compress-cache": policy.compress_cache,
        "--attn-sparsity": policy.attn_sparsity < 1,
        "--hh-ratio": policy.hh_ratio < 1,
    }
    for flag, is_on in refused.items():
        if is_on:
            raise ConfigError(f"[policy] {flag} with InfiniGen's flags; allowed: one of them")
    return InfiniGen(
        alpha=float(fork.alpha),
        column_share=fork.partial_weight_ratio,
        max_fetch=fork.max_num_kv,
    )


def _h2o(policy: Policy, rows: tuple[str, ...], notes: list[str]) -> Any:
    if policy.hh_ratio <= 0 or policy.attn_sparsity < 1:
        raise ConfigError(
            f"[policy] hh_ratio is {policy.hh_ratio:g} with attn_sparsity "
            f"{policy.attn_sparsity:g}; allowed: a share of the prompt in (0, 1], and "
            "attn_sparsity 1"
        )
    if DISK in rows or len(set(rows)) > 1:
        raise ConfigError(
            "[policy] the cache is divided, or on the disk, with --hh-ratio below 1; allowed: all "
            "of it on the GPU or on the CPU, as tokens take each other's places"
        )
    if not policy.hh_all:
        notes.append("new tokens take part in the eviction, as with --hh-all True")
    home = "device" if rows[0] == DEVICE else "host"
    if home == "device" and policy.cpu_cache_compute:
        notes.append("all of the cache is on the GPU, which attends to it itself")
    # Twice the share: half of the kept tokens are heavy, the others recent.
    share = min(float(policy.hh_ratio), 0.5)
    return H2O(heavy=share, recent=share, home=home)
