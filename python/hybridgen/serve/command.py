# SPDX-License-Identifier: Apache-2.0
"""``python -m hybridgen serve``: what may be said, and what is checked before a model is loaded."""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .._checks import as_float, as_int
from ..errors import ConfigError, DeviceError
from ..llm import LLM
from ..model_folder import model_name

KEY_VARIABLE = "HYBRIDGEN_API_KEY"
_MIB = 1 << 20
_OWN_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_BACKLOG = 2048


@dataclass(frozen=True)
class ServeOptions:
    """What the command line says beside the model and its engine.

    Parameters
    ----------
    host, port : str, int
        Where it listens; port 0 is any that is free.
    keys : tuple of str
        API keys; empty for none.
    needs_no_key : bool
        Whether anybody who reaches another address than this machine's own may use it.
    name : str
        What clients call the model.
    max_queue : int
        Texts that wait at most, besides those that the engine runs.
    max_body_bytes : int
        Of a request.
    stop_seconds : float
        How long what runs may take after SIGTERM.
    """

    host: str
    port: int
    keys: tuple[str, ...]
    needs_no_key: bool
    name: str
    max_queue: int
    max_body_bytes: int
    stop_seconds: float


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the server itself; read them with `options_of`."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--model-name", help="default: the model's folder or hub id")
    parser.add_argument(
        "--api-key-file",
        help=f"a key in each line, one of which clients have to send; or set {KEY_VARIABLE}",
    )
    parser.add_argument(
        "--no-auth",
        action="store_true",
        help="let anybody use another address than 127.0.0.1 without a key",
    )
    parser.add_argument(
        "--max-queue", type=int, default=256, help="texts that wait; more are told to come later"
    )
    parser.add_argument("--max-body", type=int, default=4, metavar="MIB", help="of a request")
    parser.add_argument(
        "--stop-seconds", type=float, default=30.0, help="for what runs, after SIGTERM or Ctrl-C"
    )


def options_of(arguments: argparse.Namespace) -> ServeOptions:
    """Return what a command line says; ConfigError for what is not allowed.

    The key is taken out of the environment, which other processes inherit.
    """
    as_int("serve", "port", arguments.port, 0, 65535)
    as_int("serve", "max_queue", arguments.max_queue, 0, 1 << 20)
    as_int("serve", "max_body", arguments.max_body, 1, 1 << 10)
    as_float("serve", "stop_seconds", arguments.stop_seconds, 0, 86400)
    if arguments.device.startswith("emulated:"):
        raise ConfigError(
            f"[serve] device is {arguments.device!r}, where nothing is computed; allowed: cpu, "
            "cuda:0, or 'emulated' without a profile"
        )
    keys = read_keys(arguments.api_key_file, os.environ.pop(KEY_VARIABLE, None))
    if not keys and not arguments.no_auth and not is_own_address(arguments.host):
        raise ConfigError(
            f"[serve] host is {arguments.host!r} and there is no API key; allowed: 127.0.0.1, "
            f"another address with --api-key-file or {KEY_VARIABLE}, or with --no-auth, which lets "
            "anybody who reaches it use the model"
        )
    name = arguments.model_name
    if name is None:
        name = model_name(arguments.model)
    if not name or not name.isprintable():
        raise ConfigError(f"[serve] model_name is {name!r}; allowed: printable characters")
    return ServeOptions(
        host=arguments.host,
        port=arguments.port,
        keys=keys,
        needs_no_key=arguments.no_auth,
        name=name,
        max_queue=arguments.max_queue,
        max_body_bytes=arguments.max_body * _MIB,
        stop_seconds=arguments.stop_seconds,
    )


def read_keys(file: str | None, variable: str | None) -> tuple[str, ...]:
    """Return the API keys of a file and of the environment; ConfigError for what is no key."""
    lines: list[str] = []
    if file is not None:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or "no text in UTF-8"
            raise ConfigError(
                f"[serve] api_key_file is {file!r}; allowed: a text file with a key in each line "
                f"({reason})"
            ) from error
    found = [line.strip() for line in lines if line.strip()]
    if file is not None and not found:
        raise ConfigError(
            f"[serve] api_key_file is {file!r}, which holds no key; write one into it"
        )
    if variable is not None:
        found.append(variable.strip())
    for key in found:
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(  # which does not show it
                "[serve] an API key has characters that no header can carry, or none; allowed: "
                "letters, digits and marks of ASCII without spaces"
            )
    return tuple(found)


def is_own_address(host: str) -> bool:
    """Say whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def hosts_of(options: ServeOptions) -> frozenset[str] | None:
    """Return what the header Host may name; None for anything."""
    if options.keys or options.needs_no_key:
        return None
    return _OWN_NAMES | {options.host.lower()}


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens; DeviceError if there can be none.

    It listens already while the model is loaded, so that nobody else takes the port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise DeviceError(
            f"[serve] cannot listen on {host} port {port}: {reason}; allowed: an address of this "
            "machine and a free port; choose another --port, or 0 for any that is free"
        ) from error
    return listener


def serve(options: ServeOptions, load: Callable[[], LLM]) -> None:
    """Answer requests until SIGTERM or Ctrl-C.

    Parameters
    ----------
    options : ServeOptions
        What the command line says.
    load : callable
        Makes the engine.

    Raises
    ------
    ConfigError
        If the model has no tokenizer.
    DeviceError
        If the port is taken, or texts had to be ended because they took too long to stop.
    ImportError
        Without what ``pip install hybridgen[serve]`` installs.
    """
    try:
        from .server import run
    except ImportError as error:
        raise ImportError(
            f"[serve] a package is missing ({error}): pip install 'hybridgen[serve]'"
        ) from error
    with bind(options.host, options.port) as listener, load() as llm:
        run(llm, options, listener)
