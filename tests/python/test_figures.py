# SPDX-License-Identifier: Apache-2.0
"""Every figure's script in its quick form: files, modes, titles, and values that never change."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import run_all
from agreement import FIELDS, Pair, agreement, pairs_of, reversed_pairs
from hybridgen import MachineProfile
from output import LINES, MODES, Check, Result, Row, csv_text, heading, main, write
from slowed_machine import CPU_FILE, RATES, Case, setting_of
from slowed_runs import run_checks
from trained import ROOT

pytestmark = pytest.mark.slow

COMMITTED = ROOT / "docs" / "results" / "paper"
REPEATABLE = ("analytic", "simulated")
PNG = b"\x89PNG\r\n\x1a\n"


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return a CSV's rows without empty cells."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", run_all.NAMES)
def test_a_figure_is_made_and_its_repeatable_values_are_the_committed_ones(
    name: str, tmp_path: Path
) -> None:
    script = run_all.script_of(name)
    assert script.name == name
    result = write(script, tmp_path, quick=True)
    assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG)
    rows = rows_of(tmp_path / f"{name}.csv")
    assert len(rows) == len(result.rows)
    assert all(row["mode"] in MODES for row in rows)

    meta = json.loads((tmp_path / f"{name}.meta.json").read_text(encoding="utf-8"))
    assert meta["command"] == f"python benchmarks/figures/{name}.py --quick"
    assert meta["modes"] == result.modes()
    assert {"revision", "machine", "seeds", "weights"} <= set(meta)
    hashes = [profile["hash"] for profile in meta["profiles"]]
    assert len(set(hashes)) == len(hashes)

    title = heading(script, result)
    assert all(mode in title for mode in result.modes())
    assert ("Not as the paper says" in title) == any(not c.holds for c in result.checks)
    assert all(check.why for check in result.checks if not check.holds)

    committed = {frozenset(row.items()) for row in rows_of(COMMITTED / f"{name}.csv")}
    for row in rows:
        if row["mode"] in REPEATABLE:
            assert frozenset(row.items()) in committed, row


def test_no_figure_of_the_paper_is_missing() -> None:
    labels = [run_all.script_of(name).label for name in run_all.NAMES]
    assert labels == [*(f"Figure {n}" for n in range(1, 23)), "Table 1", "Algorithm 1"]


def pair(model: str, method: str, simulated: float, emulated: float) -> Pair:
    """Return a step in both modes."""
    row = {"machine": "A / 1", "model": model, "method": method, "tokens": 100, "batch": 1}
    return Pair(row, simulated, emulated)


def test_methods_that_emulated_steps_order_otherwise_are_named() -> None:
    found = [
        pair("m", "a", 100.0, 120.0),
        pair("m", "b", 130.0, 110.0),  # slower by 30 % where simulated, faster where emulated
        pair("m", "c", 105.0, 50.0),  # simulated as fast as a
        pair("n", "b", 1.0, 1.0),
    ]
    assert reversed_pairs(found) == ["a before b (m at 100 tokens on A / 1)"]


def test_an_emulated_step_beyond_15_percent_is_named_with_its_ratio() -> None:
    rows: list[Row] = []
    for each in (pair("m", "a", 100.0, 114.0), pair("m", "b", 100.0, 120.0)):
        rows.append({"mode": "simulated", **each.row, "step_ms": each.simulated})
        rows.append({"mode": "emulated", **each.row, "step_ms": each.emulated})
    near, order = agreement(rows)
    assert not near.holds
    assert "within 15 % for 1 of 2; beyond: b, m at 100 tokens on A / 1: 1.20" in near.found
    assert order.holds


def test_both_modes_of_a_slowed_machine_have_one_profile_with_this_cpu() -> None:
    case = Case(times=10, link_times=40, model="llama-3.2-1b", method="hybridgen")
    profile, base = case.machine.profile, MachineProfile.load("a100")
    values = base.values()
    for name in RATES:
        times = 40 if name.startswith("link.") else 10
        assert profile.values()[name] == pytest.approx(values[name] / times)
    assert profile.cpu == MachineProfile.load(CPU_FILE).cpu
    assert profile.link.duplex_factor is None
    assert case.row["machine"] == "A / 10, link / 40"


@pytest.mark.parametrize(("k", "union"), [(1, 4.0), (1888, 1.0)])
def test_query_heads_that_share_a_kv_head_choose_independently(k: int, union: float) -> None:
    case = Case(times=10, model="llama-3.2-1b", method="hybridgen")
    assert setting_of(case, k, "post").union == pytest.approx(union, rel=1e-3)


def slowed_rows_of(name: str) -> list[Row]:
    """Return a committed figure's rows with numbers as numbers."""
    texts = ("mode", "machine", "model", "method", "strategy")
    return [
        {
            n: v if n in texts else float(v)
            for n, v in row.items()
            if n in (*FIELDS, *NUMBERS, *texts)
        }
        for row in rows_of(COMMITTED / f"{name}.csv")
        if " / " in row.get("machine", "")
    ]


NUMBERS = ("step_ms", "step", "k", "k_min")
SLOWED_FIGURES = [
    name for name in run_all.NAMES if any(row["mode"] == "emulated" for row in slowed_rows_of(name))
]


@pytest.mark.parametrize("name", SLOWED_FIGURES)
def test_a_committed_figure_says_how_near_its_emulated_steps_are(name: str) -> None:
    rows = slowed_rows_of(name)
    checks = run_checks(rows) if name == "alg1_scheduler" else agreement(rows)
    assert name == "alg1_scheduler" or pairs_of(rows)
    meta = json.loads((COMMITTED / f"{name}.meta.json").read_text(encoding="utf-8"))
    said = {check["claim"]: check["holds"] for check in meta["checks"]}
    for check in checks:
        assert said[check.claim] == check.holds


def test_the_page_has_every_figure_with_its_picture() -> None:
    page = (ROOT / "docs" / "results" / "paper.md").read_text(encoding="utf-8")
    for name in run_all.NAMES:
        assert f"](paper/{name}.png)" in page
        assert f"## {run_all.script_of(name).label}\n" in page


def test_no_mode_looks_like_another() -> None:
    looks = [(LINES[mode]["linestyle"], LINES[mode]["marker"]) for mode in MODES]
    assert len(set(looks)) == len(MODES)


def test_a_row_without_a_known_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="a row's mode is 'guessed'; allowed: analytic"):
        csv_text([{"mode": "guessed", "value": 1.0}])


def test_without_matplotlib_there_is_no_picture_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    script = run_all.script_of("fig01_kv_memory")
    assert main(script, ["--quick", "--out", str(tmp_path)]) == 0
    assert "no picture, matplotlib is not installed" in capsys.readouterr().err
    assert (tmp_path / "fig01_kv_memory.csv").exists()
    assert not (tmp_path / "fig01_kv_memory.png").exists()


def test_the_page_says_which_claims_did_not_come_out_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [Check("it is fast", False, "it is slow", "the link is"), Check("it is", True, "yes")]

    def make(quick: bool) -> Result:
        return Result([{"mode": "simulated", "value": 1.0}], checks)

    def draw(figure: Any, result: Result) -> None:
        figure.subplots()

    script = replace(run_all.script_of("fig01_kv_memory"), make=make, draw=draw)
    monkeypatch.setattr(run_all, "script_of", lambda name: script)
    monkeypatch.setattr(run_all, "NAMES", ("fig01_kv_memory",))
    assert run_all.main(["--quick", "--out", str(tmp_path / "figures")]) == 0
    page = (tmp_path / "figures.md").read_text(encoding="utf-8")
    assert "| it is fast | **no** | it is slow | the link is |" in page
    assert "| 1 of 2 |" in page
    assert "](figures/fig01_kv_memory.png)" in page
