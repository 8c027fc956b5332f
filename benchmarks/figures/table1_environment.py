# SPDX-License-Identifier: Apache-2.0
"""Table 1: hardware and software of the paper's machines, and of this one.

python benchmarks/figures/table1_environment.py [--quick] [--out DIR]
"""

from __future__ import annotations

import platform
import sys
from typing import Any

import torch

import hybridgen as hg
from output import Result, Row, Script, main

COLUMNS = ("machine", "cpu", "gpu", "system", "dram", "cxl", "driver", "cuda")
PAPER = (
    ("A", "Xeon Gold 5320", "A100 (80 GB)", "Linux 5.14", "128 GB", "", "570.86.10", "12.1"),
    ("B", "Xeon Gold 6530", "H100 NVL (94 GB)", "Linux 6.8", "512 GB", "", "580.95.05", "12.5"),
    (
        "C",
        "Xeon 6960P",
        "RTX 5090 (32 GB)",
        "Linux 6.2.6",
        "128 GB",
        "128 GB (DDR4-3200, PCIe 5.0)",
        "570.86.10",
        "12.8",
    ),
)
PROFILES = {"A": "a100", "B": "h100-nvl", "C": "rtx5090"}


def present() -> tuple[str, ...]:
    """Return this machine's row."""
    found = hg.info()
    with open("/proc/meminfo", encoding="utf-8") as file:
        total = int(file.readline().split()[1]) * 1024
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cpu = " ".join(str(found.cpu["model"]).split())
    return (
        "this",
        f"{cpu}, {found.cpu['usable']} usable, {found.cpu['isa']}",
        ", ".join(gpus) or "none",
        f"{platform.system()} {platform.release().split('-')[0]}",
        f"{total / 1e9:.0f} GB",
        "none found",
        "",
        str(torch.version.cuda or ""),
    )


def make(quick: bool) -> Result:
    """Return the table: the paper's rows as it prints them, this machine's as found."""
    rows: list[Row] = [
        {"mode": "analytic", "from": "paper, Table 1"} | dict(zip(COLUMNS, row, strict=True))
        for row in PAPER
    ]
    rows.append(
        {"mode": "measured", "from": "detected"} | dict(zip(COLUMNS, present(), strict=True))
    )
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- " * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(str(row[name]) for name in COLUMNS) + " |" for row in rows]
    return Result(
        rows,
        notes=["the paper's rows are quoted; its sockets, DIMMs and CXL lanes are not given"],
        profiles=[hg.MachineProfile.load(name) for name in PROFILES.values()],
        files={"table1_environment.md": "\n".join(lines) + "\n"},
    )


def draw(figure: Any, result: Result) -> None:
    """The table as a picture."""
    axes = figure.subplots()
    axes.axis("off")
    text = [[_broken(str(row[name])) for name in COLUMNS] for row in result.rows]
    widths = [0.07, 0.2, 0.15, 0.12, 0.09, 0.17, 0.11, 0.07]
    table = axes.table(text, colLabels=COLUMNS, loc="center", cellLoc="left", colWidths=widths)
    table.auto_set_font_size(False)
    table.set_fontsize(6.5)
    table.scale(1.0, 2.4)


def _broken(text: str, width: int = 20) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


SCRIPT = Script(
    "table1_environment",
    "Table 1",
    "the paper's machines (quoted) and this one",
    make,
    draw,
    (7.5, 2.8),
)

if __name__ == "__main__":
    sys.exit(main(SCRIPT))
