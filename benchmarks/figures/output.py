# SPDX-License-Identifier: Apache-2.0
"""What every figure shares: rows with a mode, checks of the paper's claims, CSV, PNG, meta file.

A row's mode says where its numbers come from: ``analytic`` (a closed formula), ``simulated``
(`hybridgen.sim` over a machine profile), ``emulated`` (the real engine, a GPU's times modelled) or
``measured`` (this machine). Each mode has its own line, marker and hatch in every picture.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import hybridgen as hg
from hybridgen._files import replacing, unwound_by_sigterm, write_whole
from hybridgen.cli import run_command

ROOT = Path(__file__).resolve().parents[2]
MODES = ("analytic", "simulated", "emulated", "measured")
Row = dict[str, Any]

LINES: dict[str, dict[str, Any]] = {
    "analytic": {"linestyle": "-", "marker": ""},
    "simulated": {"linestyle": "--", "marker": "o", "markerfacecolor": "white"},
    "emulated": {"linestyle": ":", "marker": "D"},
    "measured": {"linestyle": "-.", "marker": "s"},
}
HATCHES = {"analytic": "", "simulated": "//", "emulated": "xx", "measured": ".."}


@dataclass(frozen=True)
class Check:
    """A claim of the paper, and whether it came out.

    Parameters
    ----------
    claim : str
        In our words.
    holds : bool
        Whether it came out.
    found : str
        What did, with numbers and their mode.
    why : str
        Why it differs, where it does.
    short : str
        What came out instead, for a picture's title.
    """

    claim: str
    holds: bool
    found: str
    why: str = ""
    short: str = ""


@dataclass
class Result:
    """What a figure's script found.

    Parameters
    ----------
    rows : list of dict
        One per point, each with ``mode``.
    checks : list of Check
        Of the paper's claims.
    notes : list of str
        What a reader of the picture must know.
    profiles : list of MachineProfile
        That were used, calibrated.
    seeds : dict
        Of what was drawn.
    weights : str
        "none" where no model ran, "dummy", or the checkpoints' names.
    files : dict of str
        More files by name, such as a trace.
    """

    rows: list[Row]
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    profiles: list[hg.MachineProfile] = field(default_factory=list)
    seeds: dict[str, int] = field(default_factory=dict)
    weights: str = "none"
    files: dict[str, str] = field(default_factory=dict)

    def modes(self) -> list[str]:
        """Return the modes of the rows."""
        return [mode for mode in MODES if any(row["mode"] == mode for row in self.rows)]


@dataclass(frozen=True)
class Script:
    """One figure: how it is made and drawn.

    Parameters
    ----------
    name : str
        Of its files, such as "fig01_kv_memory".
    label : str
        As the paper calls it, such as "Figure 1".
    title : str
        What it shows.
    make : callable
        ``make(quick)`` returns a Result.
    draw : callable
        ``draw(figure, result)`` fills a matplotlib figure.
    size : tuple of float
        Width and height in inches.
    """

    name: str
    label: str
    title: str
    make: Callable[[bool], Result]
    draw: Callable[[Any, Result], None]
    size: tuple[float, float] = (7.0, 3.8)


def of_mode(result: Result, mode: str) -> list[Row]:
    """Return the rows of a mode."""
    return [row for row in result.rows if row["mode"] == mode]


# ---------------------------------------------------------------------------------------- files


def cell(value: Any) -> str:
    """Return a value as the CSV says it; 9 digits, so that platforms agree. None is nothing."""
    if value is None:
        return ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def csv_text(rows: Sequence[Row]) -> str:
    """Return rows as CSV, the mode first."""
    names = list(dict.fromkeys(["mode", *(name for row in rows for name in row)]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        if row["mode"] not in MODES:
            raise ValueError(f"a row's mode is {row['mode']!r}; allowed: {', '.join(MODES)}")
        writer.writerow([cell(row[name]) if name in row else "" for name in names])
    return text.getvalue()


def revision() -> str:
    """Return the commit, "-dirty" where something was changed since; empty without git."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def describe_machine() -> dict[str, Any]:
    """Return what measured rows depend on."""
    found = hg.info()
    return {
        "cpu": found.cpu["model"],
        "cores": found.cpu["usable"],
        "isa": found.cpu["isa"],
        "gpu": (found.gpu.get("devices") or "none"),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: found.versions[name] for name in ("hybridgen", "torch")},
    }


def heading(script: Script, result: Result) -> str:
    """Return the picture's title: modes, and which claim did not come out."""
    text = f"{script.label} ({', '.join(result.modes())}): {script.title}"
    missed = [check for check in result.checks if not check.holds]
    if missed:
        text += "\nNot as the paper says: " + "; ".join(
            check.short or check.found for check in missed
        )
    return text


def meta_text(script: Script, result: Result, quick: bool, seconds: float) -> str:
    """Return everything that repeats a run, as JSON."""
    content = {
        "figure": script.label,
        "title": script.title,
        "command": f"python benchmarks/figures/{script.name}.py" + (" --quick" if quick else ""),
        "revision": revision(),
        "modes": result.modes(),
        "checks": [asdict(check) for check in result.checks],
        "notes": result.notes,
        "machine": describe_machine(),
        "weights": result.weights,
        "seeds": result.seeds,
        "profiles": [
            {"name": p.name, "hash": p.fingerprint, "values": p.values()} for p in result.profiles
        ],
        "seconds": round(seconds, 1),
    }
    return json.dumps(content, indent=1) + "\n"


def wrapped(text: str, width: int = 100) -> str:
    """Break lines of a title where they would leave the page."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            if line and len(line) + 1 + len(word) > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}".strip()
        lines.append(line)
    return "\n".join(lines)


def draw(script: Script, result: Result, path: Path) -> bool:
    """Draw the picture; False, with a line of words, where matplotlib is missing."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        print(f"{script.name}: no picture, matplotlib is not installed", file=sys.stderr)
        return False
    with matplotlib.rc_context({"font.size": 8, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=script.size, layout="constrained")
        script.draw(figure, result)
        figure.suptitle(wrapped(heading(script, result), int(14.5 * script.size[0])), fontsize=8.5)
        with replacing(path, "figures") as temporary:
            figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
    return True


def write(script: Script, folder: Path, quick: bool) -> Result:
    """Make a figure and write its files."""
    begin = time.perf_counter()
    result = script.make(quick)
    seconds = time.perf_counter() - begin
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{script.name}.csv", csv_text(result.rows), "figures")
    draw(script, result, folder / f"{script.name}.png")
    meta = meta_text(script, result, quick, seconds)
    write_whole(folder / f"{script.name}.meta.json", meta, "figures")
    for name, text in result.files.items():
        write_whole(folder / name, text, "figures")
    print(f"{script.name}: {len(result.rows)} rows, {', '.join(result.modes())}, {seconds:.1f} s")
    for check in result.checks:
        print(f"  {'holds' if check.holds else 'DIFFERS'}: {check.claim}: {check.found}")
    return result


def main(script: Script, argv: Sequence[str] | None = None) -> int:
    """Run a figure's command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=f"{script.label}: {script.title}")
    parser.add_argument("--quick", action="store_true", help="fewer points, the same values")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results/figures", metavar="DIR", help="of the files"
    )
    with unwound_by_sigterm():
        return run_command(lambda a: write(script, a.out, a.quick), parser.parse_args(argv))
