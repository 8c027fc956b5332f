# SPDX-License-Identifier: Apache-2.0
"""The way to a Ray cluster, or to one of this machine alone."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .._checks import as_int, brief, one_line
from ..batch.engine_spec import EngineSpec
from ..errors import ConfigError, DeviceError
from .actor_pool import ActorPool
from .node_share import NodeOffer, share_of_nodes

_CONNECT_SECONDS = 5.0
_SEATS = 64
"""Requests that run at the same time in an engine, where nobody says how many."""
_BATCH_PER_SEAT = 2


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield Ray, connected; what this starts ends with the block.

    Parameters
    ----------
    address : str
        "local" for processes of this machine, which nobody reaches without a token that is theirs;
        "auto" or HOST:PORT for a cluster that runs.

    Raises
    ------
    ConfigError
        If Ray is not installed, or there is no such cluster.
    DeviceError
        If Ray cannot be started.
    """
    if address == "local":
        _require_token()
    elif address != "auto":
        _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = _imported()
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if address == "local" else None,
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        kind = DeviceError if address == "local" else ConfigError
        raise kind(
            f"[batch] --ray is {brief(address)}: {one_line(str(error), 300)}; allowed: local, "
            "auto, or HOST:PORT of a cluster that runs, whose versions of Ray and Python are these"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_token() -> None:
    """Have Ray's ports take no call without a token of this process's."""
    ray = sys.modules.get("ray")
    if ray is None:  # which reads it when it is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    elif not ray.is_initialized() and os.environ.get("RAY_AUTH_MODE") != "token":
        raise ConfigError(
            "[batch] --ray is 'local', and this process imported Ray without a token; allowed: a "
            "process that has not imported it, or RAY_AUTH_MODE=token from its start"
        )


@contextmanager
def engines_of(
    spec: EngineSpec, address: str, num_actors: int | None, *, quiet: bool
) -> Iterator[ActorPool]:
    """Yield engines of a cluster, of which the first is ready.

    Parameters
    ----------
    spec : EngineSpec
        What they are made of.
    address : str
        See `connected`.
    num_actors : int, optional
        How many; by default one on each node.
    quiet : bool
        Whether to tell nothing of them on standard error.

    Raises
    ------
    ConfigError
        Also if the cluster has no room for so many.
    HybridGenError
        What keeps an engine from being made.
    """
    if num_actors is not None:
        as_int("batch", "--actors", num_actors, 1)
    with connected(address) as ray:
        nodes = offers(ray)
        count = num_actors or len(nodes)
        device = str(spec.engine.get("device", "auto"))
        seats = int(spec.engine.get("max_num_seqs", _SEATS))
        with ActorPool(
            ray,
            spec,
            share_of_nodes(nodes, count, device=device),
            count,
            lines_per_batch=_BATCH_PER_SEAT * seats,
            tell=(lambda _: None) if quiet else _tell,
        ) as pool:
            yield pool


def _tell(sentence: str) -> None:
    print(f"batch: {sentence}", file=sys.stderr, flush=True)


def offers(ray: Any) -> list[NodeOffer]:
    """Return what the living nodes have."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [NodeOffer(int(has.get("CPU", 0)), int(has.get("GPU", 0))) for has in found]


def _imported() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "[batch] --ray needs Ray, which is not installed; pip install 'hybridgen[ray]'"
        ) from error
    return ray


def _check_reachable(address: str) -> None:
    """Raise ConfigError at once for an address where nobody listens; Ray tries for minutes."""
    host, _, port = address.rpartition(":")
    try:
        if not host or not port.isdigit():
            raise ValueError("it is no HOST:PORT")
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"[batch] --ray is {brief(address)}: {error}; allowed: local, auto, or HOST:PORT of a "
            "cluster that runs"
        ) from error
