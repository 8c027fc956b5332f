# SPDX-License-Identifier: Apache-2.0
"""What the one engine is asked for where a FlexGen policy is to hold."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

from .. import methods
from ..config import CpuConfig, KVConfig, WeightConfig
from ..disk import Disk
from ..model import Model
from .placement import CPU_ATTENTION_NAME, DISK, Placement
from .policy import Policy
from .pytorch_backend import ExecutionEnv

_PIECE, _LONGEST_PIECE = 1024, 4096
"""Prompt tokens of a row that pass through the model together, and at most."""


@dataclasses.dataclass(frozen=True)
class EngineChoices:
    """What a run may say that FlexGen has no word for.

    Parameters
    ----------
    dtype : str
        "auto" is the weights' own, float16 for drawn ones.
    seed : int
        Of drawn weights.
    splits_tokens : bool
        Divide each row's cache by tokens, not the block by rows.
    cpu : CpuConfig
        Threads.
    """

    dtype: str = "auto"
    seed: int = 0
    splits_tokens: bool = False
    cpu: CpuConfig = dataclasses.field(default_factory=CpuConfig)


def weight_options(placement: Placement, policy: Policy, env: ExecutionEnv) -> WeightConfig:
    """Return how weights are held and where; what no file has as it is goes to the disk's."""
    options = dict(placement.weights)
    if policy.w_disk_percent > 0:
        options["folder"] = env.disk.path
    return WeightConfig(**options)


def engine_options(
    placement: Placement, env: ExecutionEnv, choices: EngineChoices, model: Model
) -> dict[str, Any]:
    """Return the options of `LLM`, on weights that are there."""
    return {
        "method": _registered(placement.method),
        "kv": _kv_options(placement, env, model),
        "max_num_seqs": len(placement.rows),
        "max_num_batched_tokens": _prompt_tokens_at_once(placement, model),
        "micro_batch": placement.micro_batch,
        "cpu": choices.cpu,
    }


def has_window(placement: Placement) -> bool:
    """Return whether the method keeps a number of tokens on the device that can be said."""
    method = _registered(placement.method)
    return "device_tokens" in methods.reads(getattr(method, "method", method))


def _kv_options(placement: Placement, env: ExecutionEnv, model: Model) -> KVConfig:
    options: dict[str, Any] = {"keys": placement.precision, "values": placement.precision}
    if has_window(placement):
        share = placement.device_tokens
        options["device_tokens"] = 0 if share is None else share
    if placement.count(DISK):
        options["disk"] = Disk(env.disk.path, _disk_bytes(placement, env, model))
    return KVConfig(**options)


def _prompt_tokens_at_once(placement: Placement, model: Model) -> int:
    """Return whole prompts where weights come again for each piece of one."""
    streams = placement.weights.get("device", 1.0) < 1.0
    positions = int(model.config["max_positions"])
    return max(_PIECE, min(positions, _LONGEST_PIECE)) if streams else _PIECE


def _disk_bytes(placement: Placement, env: ExecutionEnv, model: Model) -> int:
    """Return what the rows on the disk can ever take, as far as there is room."""
    config = model.config
    # Beside the rows: a block that is not full, of keys and of values, and whole pages.
    row = config["num_layers"] * config["num_kv_heads"] * config["head_dim"]
    each = 2 * row * (4 if model.dtype == "float32" else 2) * (config["max_positions"] + 512)
    wanted = placement.count(DISK) * each + (64 << 20)
    return min(wanted, shutil.disk_usage(env.disk.path).free * 9 // 10)


def _registered(method: Any) -> Any:
    """Return what `LLM` takes for a method; a composition is known by its name."""
    if not isinstance(method, methods.Composition):
        return method
    methods.register(CPU_ATTENTION_NAME, method)
    return CPU_ATTENTION_NAME
