# SPDX-License-Identifier: Apache-2.0
"""Run this library's tests of memory tiers on an emulated machine with two kinds of memory.

    python tests/numa/run.py               build/ must be up to date
    python tests/numa/run.py --required    fail where the machine cannot be emulated, instead of 77

Says what was asserted: the programs print the name of every test there. Fails if one does not
report, lacks a test, fails or skips one, or if a generation there gives other tokens than here.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from numa_generation import generation_complaints, generation_log
from numa_machine import BANDWIDTH_GBS, LATENCY_NS, NODE_MIB, RESULTS, CannotRun, NumaMachine
from numa_report import complaints, listed_tests, read_report

CLONE = Path(__file__).resolve().parents[2]
SKIPPED = 77
# Four minutes, of CPUs: emulation is computing, and how long that takes by the clock is decided by
# what else the host does. The clock's own limit is only for a machine that hangs.
CPU_SECONDS = 240
WALL_SECONDS = 840


@dataclass(frozen=True)
class Program:
    """A test program, by its path in the build folder, and what of it runs there."""

    path: str
    filter: str = "*"
    may_skip: bool = False

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


# Those of memory_tests that look at this machine's own nodes.
PROGRAMS = (
    Program("tests/numa/numa_machine_tests"),
    Program("tests/cpp/memory_tests", "Numa*:Host*:Node*:Prefer*:PlacedMemory*", may_skip=True),
)
# The same on the host, whose CPU may have more.
ENVIRONMENT = {
    "HYBRIDGEN_ISA": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "AVX2",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONPATH": str(CLONE / "python"),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "2",
}
FIGURES = {
    "HYBRIDGEN_NUMA_DRAM_NS": str(LATENCY_NS[0]),
    "HYBRIDGEN_NUMA_SLOW_NS": str(LATENCY_NS[1]),
    "HYBRIDGEN_NUMA_DRAM_GBS": str(BANDWIDTH_GBS[0]),
    "HYBRIDGEN_NUMA_SLOW_GBS": str(BANDWIDTH_GBS[1]),
}


def generation_command(results: str, *, on_host: bool) -> list[str]:
    """Return the command that generates and writes what came of it."""
    script = str(CLONE / "tests/numa/generation.py")
    name = "host.json" if on_host else "guest.json"
    command = [sys.executable, script, f"{results}/{name}"]
    return [*command, "--on-host"] if on_host else command


def guest_script(build: Path) -> str:
    """Return what the emulated machine's shell runs."""
    exports = ENVIRONMENT | FIGURES | {"HOME": "/tmp", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]
    lines += [f"cd {shlex.quote(str(CLONE))}"]
    commands = [
        [
            str(build / program.path),
            f"--gtest_filter={program.filter}",
            f"--gtest_output=json:{RESULTS}/{program.name}.json",
            "--gtest_color=no",
        ]
        for program in PROGRAMS
    ]
    for command in [*commands, generation_command(RESULTS, on_host=False)]:
        lines += [f'echo "guest: $(cut -d" " -f1 /proc/uptime) s: {Path(command[0]).name}"']
        lines += [f'{shlex.join(command)} || echo "guest: it ended with $?"']
    lines += ['echo "guest: $(cut -d" " -f1 /proc/uptime) s: all done"']
    return "\n".join(lines) + "\n"


def wrong_generations(results: Path) -> list[str]:
    """Return what is wrong with the generations in the guest; says what is right."""
    try:
        host, guest = (
            json.loads((results / name).read_text(encoding="utf-8"))
            for name in ("host.json", "guest.json")
        )
        wrong = generation_complaints(host, guest)
    except (OSError, ValueError, KeyError) as error:
        return [f"a generation did not report: {error!r}"]
    if not wrong:
        print("\n".join(generation_log(guest)))
    return wrong


def run(build: Path, folder: Path) -> list[str]:
    """Boot, run everything and return what is wrong."""
    machine = NumaMachine(folder)
    results = folder / "results"
    expected = {}
    for program in PROGRAMS:
        if not (build / program.path).exists():
            raise CannotRun(f"{build / program.path} is not built")
        listing = [str(build / program.path), "--gtest_list_tests"]
        listing += [f"--gtest_filter={program.filter}"]
        listed = subprocess.run(listing, capture_output=True, text=True, check=True)
        expected[program.name] = listed_tests(listed.stdout)
    ran = machine.run(guest_script(build), results, CPU_SECONDS, WALL_SECONDS)
    print(
        f"the machine ran for {ran.wall_s:.0f} s, of CPUs {ran.cpu_s:.0f} s of {CPU_SECONDS} s at "
        f"most, with nodes of {NODE_MIB} MiB"
    )
    subprocess.run(
        generation_command(str(results), on_host=True), env=os.environ | ENVIRONMENT, check=True
    )
    wrong = [f"the machine was switched off: {ran.switched_off}"] if ran.switched_off else []
    for program in PROGRAMS:
        tests = expected[program.name]
        report = read_report(results / f"{program.name}.json")
        wrong += complaints(program.name, tests, report, may_skip=program.may_skip)
        passed = sum(outcome.result == "passed" for outcome in report or [])
        print(f"{program.name}: {passed} of {len(tests)} tests passed there")
    return wrong + wrong_generations(results)


def main() -> int:
    parser = argparse.ArgumentParser(description="Test memory tiers on an emulated machine.")
    parser.add_argument("--build", type=Path, default=CLONE / "build", help="the build folder")
    parser.add_argument("--required", action="store_true", help="fail where this cannot run")
    arguments = parser.parse_args()
    try:
        wrong = run(arguments.build.resolve(), arguments.build.resolve() / "numa-machine")
    except CannotRun as reason:
        print(f"tests/numa/run.py cannot emulate the machine: {reason}", file=sys.stderr)
        return 1 if arguments.required else SKIPPED
    for text in wrong:
        print(f"FAILED {text}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
