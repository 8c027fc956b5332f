# SPDX-License-Identifier: Apache-2.0
"""Simulate a decode step from the shell: ``python -m hybridgen.sim --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..cli import run_command
from .calibration import CALIBRATIONS, PAPER_MACHINES
from .machine import Machine
from .methods import METHODS, HybridSetting
from .runs import simulate_step
from .shapes import SHAPES
from .step_builder import LANES


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m hybridgen.sim",
        description="Simulate a decode step on a machine that is not at hand.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    letters = ", ".join(f"{letter} ({name})" for letter, name in PAPER_MACHINES.items())
    parser.add_argument("--profile", default="A", help=f"machine: {letters}, a name, or a file")
    parser.add_argument("--calibration", default="engine", choices=list(CALIBRATIONS))
    parser.add_argument("--model", default="opt-13b", choices=list(SHAPES), metavar="NAME")
    parser.add_argument("--method", default="hybridgen", choices=list(METHODS))
    parser.add_argument("--tokens", type=int, default=2048, help="cached of each text")
    parser.add_argument("--batch", type=int, default=1, help="texts")
    parser.add_argument("--k", type=int, help="of hybridgen; by default the calibration's K_min")
    parser.add_argument("--strategy", default="post", choices=["post", "pre"], help="of hybridgen")
    parser.add_argument("--trace", metavar="FILE", help="write a Chrome trace there")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """Simulate, print, write."""
    machine = Machine.load(arguments.profile, arguments.calibration)
    options = {}
    if arguments.method == "hybridgen":
        k = machine.calibration.k_min if arguments.k is None else arguments.k
        options["setting"] = HybridSetting(k=k, strategy=arguments.strategy)
    step = simulate_step(
        machine,
        arguments.model,
        arguments.method,
        tokens=arguments.tokens,
        batch=arguments.batch,
        **options,
    )
    title = (
        f"{arguments.method}, {arguments.model}, {arguments.tokens} tokens, batch "
        f"{arguments.batch}, on {machine.profile.name}"
    )
    print(f"simulated: {title}")
    print(f"step {1e3 * step.seconds:.3f} ms")
    for lane in LANES:
        waits = "" if lane not in step.exposed else f", {1e3 * step.exposed[lane]:.3f} ms exposed"
        print(
            f"{lane:4} busy {step.busy[lane] / step.seconds:6.1%}, "
            f"{step.bytes(lane) / 1e6:.3f} MB{waits}"
        )
    if arguments.trace:
        step.write_trace(arguments.trace, title)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_command(run, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
