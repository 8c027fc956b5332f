# SPDX-License-Identifier: Apache-2.0
"""How nodes are divided among engines: decisions alone, of numbers that Ray tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError, OutOfMemoryError

_SHARE_OF_EACH = 0.45
"""Of what weights leave, for the device's part and for offloaded tokens each."""


@dataclass(frozen=True)
class NodeOffer:
    """What a node has for actors: whole CPUs and GPUs."""

    cpus: int
    gpus: int = 0


@dataclass(frozen=True)
class ActorShare:
    """What each actor asks Ray for."""

    cpus: int
    gpus: int = 0


@dataclass(frozen=True)
class Budgets:
    """Bytes that an engine may take beside its weights; None leaves it to the engine."""

    dram: int
    device: int | None


def share_of_nodes(nodes: Sequence[NodeOffer], actors: int, *, device: str) -> ActorShare:
    """Return the largest equal share of which the nodes hold that many.

    Parameters
    ----------
    nodes : sequence of NodeOffer
        What is there.
    actors : int
        Engines that are wanted.
    device : str
        As for `LLM`: with "auto" actors have a GPU each if there are as many, with "cuda:0" always.

    Raises
    ------
    ConfigError
        If the nodes do not hold so many.
    """
    gpus = int(_holds(nodes, actors, ActorShare(1, 1)) and device in ("auto", "cuda:0"))
    if device.startswith("cuda"):
        gpus = 1
    most = max((node.cpus for node in nodes), default=0)
    for cpus in range(most, 0, -1):
        if _holds(nodes, actors, ActorShare(cpus, gpus)):
            return ActorShare(cpus, gpus)
    has = ", ".join(f"{node.cpus} CPUs and {node.gpus} GPUs" for node in nodes) or "none"
    raise ConfigError(
        f"[batch] --actors is {actors}; allowed: as many as there are CPUs"
        f"{' and GPUs' if gpus else ''} for, one each at least (nodes: {has}); ask for fewer, or "
        "start more nodes"
    )


def _holds(nodes: Sequence[NodeOffer], actors: int, share: ActorShare) -> bool:
    each = (
        min(node.cpus // share.cpus, node.gpus // share.gpus if share.gpus else node.cpus)
        for node in nodes
    )
    return sum(each) >= actors


def memory_share(node_bytes: float, node_cpus: float, actor_cpus: float) -> int:
    """Return an actor's part of its node's memory: as large as its part of the CPUs."""
    return int(node_bytes * min(1.0, actor_cpus / max(node_cpus, 1.0)))


def budgets_within(share: int, weights: int, *, device_is_host: bool) -> Budgets:
    """Return what an engine may take of its share.

    Parameters
    ----------
    share : int
        Bytes of host memory that are the actor's.
    weights : int
        Bytes of them that the weights take.
    device_is_host : bool
        Whether the device's part lies there too.

    Raises
    ------
    OutOfMemoryError
        If the weights leave nothing.
    """
    rest = share - weights
    if rest <= 0:
        raise OutOfMemoryError(
            f"[batch] the weights take {weights} bytes, and this actor's part of its node's memory "
            f"is {share}; allowed: less than that; ask for fewer actors (each has weights of its "
            "own, unless it shares them), take weights in fewer bits or with --weight-host below "
            "1.0, or give the node more memory (ray start --memory)"
        )
    part = max(1, int(rest * _SHARE_OF_EACH))
    return Budgets(part, part) if device_is_host else Budgets(2 * part, None)
