# SPDX-License-Identifier: Apache-2.0
"""Every figure of the paper, one after another, and the page that says what came out.

python benchmarks/figures/run_all.py [--quick] [--out DIR] [--only NAME ...]

A full run writes docs/results/paper and docs/results/paper.md, a quick one results/figures and
results/figures.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridgen._files import unwound_by_sigterm, write_whole
from hybridgen.cli import run_command
from output import ROOT, Script, write

FOLDER = Path(__file__).parent
PATTERNS = ("fig[0-9][0-9]_*.py", "table1_*.py", "alg1_*.py")
NAMES = tuple(path.stem for pattern in PATTERNS for path in sorted(FOLDER.glob(pattern)))


def script_of(name: str) -> Script:
    """Return a figure's script."""
    script: Script = importlib.import_module(name).SCRIPT
    return script


def found_in(folder: Path) -> list[dict[str, Any]]:
    """Return the meta files of all figures that a folder has, in the paper's order."""
    files = [folder / f"{name}.meta.json" for name in NAMES]
    found = [
        {"name": file.name.removesuffix(".meta.json")} | json.loads(file.read_text("utf-8"))
        for file in files
        if file.is_file()
    ]
    return found


def overview(found: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of all figures."""
    lines = ["| | shows | modes | claims that came out | s |", "| --- | --- | --- | --- | --- |"]
    for meta in found:
        held = sum(check["holds"] for check in meta["checks"])
        claims = f"{held} of {len(meta['checks'])}" if meta["checks"] else "none made"
        link = f"[{meta['figure']}](#{meta['figure'].lower().replace(' ', '-')})"
        modes = ", ".join(meta["modes"])
        lines.append(f"| {link} | {meta['title']} | {modes} | {claims} | {meta['seconds']:.0f} |")
    return lines


def section(meta: dict[str, Any], folder: str) -> list[str]:
    """Return what came out of one figure."""
    title, name = meta["title"], meta["name"]
    lines = [f"## {meta['figure']}", "", f"{title[0].upper()}{title[1:]}.", ""]
    lines += [f"![{title}]({folder}/{name}.png)", ""]
    if meta["checks"]:
        lines.append("| the paper's claim | came out | what we found | why it differs |")
        lines.append("| --- | --- | --- | --- |")
        for check in meta["checks"]:
            came_out, why = ("yes", "") if check["holds"] else ("**no**", check["why"])
            lines.append(f"| {check['claim']} | {came_out} | {check['found']} | {why} |")
        lines.append("")
    lines += [f"* {note}" for note in meta["notes"]]
    if {"measured", "emulated"} & set(meta["modes"]):
        machine = meta["machine"]
        lines.append(
            f"* measured on {machine['cpu']}, {machine['cores']} cores, {machine['isa']}, GPU: "
            f"{machine['gpu']}, load {machine['load_at_start']}"
        )
    lines.append(
        f"* `{meta['command']}` at {meta['revision'] or 'no revision'}; "
        f"[values]({folder}/{name}.csv), [how they came about]({folder}/{name}.meta.json)"
    )
    return [*lines, ""]


def document(found: Sequence[dict[str, Any]], folder: str) -> str:
    """Return the page."""
    lines = [
        "# The paper's figures: what came out",
        "",
        "Figures of the HybridGen paper ([arXiv 2604.18529](https://arxiv.org/abs/2604.18529)), "
        "made by `python benchmarks/figures/run_all.py`.",
        "",
        "Every row says its mode. *Analytic*: a closed formula. *Simulated*: a model of a machine "
        "that was not at hand, over estimates in its profile. *Emulated*: the real engine and "
        "host, with a GPU's times modelled. *Measured*: the machine that is named. Nothing here "
        "was run on a GPU. [figures.md](../figures.md) says how each is made.",
        "",
        *overview(found),
        "",
    ]
    for meta in found:
        lines += section(meta, folder)
    return "\n".join(lines).rstrip() + "\n"


def run(arguments: argparse.Namespace) -> None:
    """Make the figures, and the page of all that the folder has."""
    default = ROOT / ("results/figures" if arguments.quick else "docs/results/paper")
    folder = arguments.out or default
    for name in arguments.only or NAMES:
        write(script_of(name), folder, arguments.quick)
    page = folder.with_name(f"{folder.name}.md")
    write_whole(page, document(found_in(folder), folder.name), "figures")
    print(f"written to {page}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer points, the same values")
    parser.add_argument("--out", type=Path, metavar="DIR", help="of the files; the page beside it")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=NAMES,
        metavar="NAME",
        help="some figures; the page has all that lie in the folder",
    )
    with unwound_by_sigterm():
        return run_command(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
