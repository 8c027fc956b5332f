# SPDX-License-Identifier: Apache-2.0
"""`benchmarks/gpu.py` on a tiny shape: rows and their modes, what is left out and why, the bars.

Without a GPU nothing here is a figure of one: rows run on the timed device, bars are held against
rows that are made up.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hybridgen as hg
from hybridgen.sim import ModelShape

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
import gpu_bars  # noqa: E402
import gpu_recall  # noqa: E402
from gpu_cases import BAR_SHAPE, BAR_TOKENS, METHODS, POST, PRE, RESIDENT, SHAPES, Point, why_not  # noqa: E402
from gpu_peers import OFFLOADED, run_transformers, transformers_model, why_no_peer  # noqa: E402
from gpu_rows import RowFile, dummy_model, key_row, mass_of, run_row  # noqa: E402
from report import Report  # noqa: E402

TINY = ModelShape(
    name="tiny",
    family="llama",
    layers=4,
    hidden_size=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ffn_size=128,
    vocab_size=256,
    positions=512,
    tied=False,
)
TOKENS = 96
STEPS = 2


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A profile's file; the benchmark knows the tiny shape and measures little of this machine."""
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    monkeypatch.setattr(gpu_bars, "BAR_SHAPE", "tiny")
    monkeypatch.setattr(gpu_bars, "BAR_TOKENS", TOKENS)
    monkeypatch.setattr(gpu_recall, "COUNT", 1)
    base = hg.MachineProfile.load("h100-nvl")
    monkeypatch.setattr(gpu_bars, "measure_machine", lambda quick: base)
    file = tmp_path / "small.json"
    base.with_values(
        {"gpu.mem_gb": 0.02, "overhead.launch_us": 1.0}, source="made up", confidence="e"
    ).save(file)
    return str(file)


def is_whole(line: str) -> bool:
    """Say whether a row was written to its end."""
    return line.endswith("}")


def run(profile: str, *more: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run the benchmark; return its document and the rows of steps in its file."""
    folder = Path(profile).parent
    gpu.main(
        [
            *("--profiles", profile, "--shapes", "tiny", "--lengths", str(TOKENS)),
            *("--batches", "1", "--steps", str(STEPS), "--methods", "full", "flexgen", POST),
            *("--rows", str(folder / "rows.jsonl"), "--json", str(folder / "out.json"), *more),
        ]
    )
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, filter(is_whole, lines)) if "step_ms" in row]
    return json.loads((folder / "out.json").read_text(encoding="utf-8")), rows


def labels(document: dict[str, Any]) -> dict[str, str]:
    """Return what was left out, by method."""
    return {name.rpartition(", ")[2]: why for name, why in document["machine"]["not_run"].items()}


def test_without_a_gpu_rows_are_emulated_and_no_bar_is_met_or_missed(
    profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    document, rows = run(profile)
    assert [row["method"] for row in rows] == ["full", POST, "flexgen"]
    for row in rows:
        assert row["mode"] == "emulated"
        assert row["device"] == f"emulated:{profile}"
        assert row["steps"] == STEPS
        assert 0 < row["floor_ms"] < row["step_ms"]
    assert [row["offloaded_tokens"] > 0 for row in rows] == [False, True, True]
    results = document["results"]
    assert all(result["name"].startswith(("measured", "emulated, small:")) for result in results)
    barred = [result for result in results if result["bar"] is not None]
    assert len(barred) == 6
    assert all(result["value"] is None and result["met"] is None for result in barred)
    (ratio,) = [r["value"] for r in results if r["name"].endswith(f"flexgen / {POST}")]
    assert ratio == pytest.approx(rows[2]["step_ms"] / rows[1]["step_ms"], rel=1e-3)
    said = capsys.readouterr().out
    assert "the CPU is this machine's" in said
    table = [line.split() for line in said.splitlines() if line.startswith((POST, "full "))]
    assert [line[-3:] for line in table] == [
        ["1.000", "exact", "1.00"],
        ["none,", "timed", "1.00"],
    ]


def test_a_rerun_goes_on_where_one_stopped(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = run(profile, "--methods", "full")
    file = Path(profile).with_name("rows.jsonl")
    with file.open("a", encoding="utf-8") as lines:
        lines.write('{"mode": "emulated", "machi')  # ended while it wrote
    ran: list[str] = []

    def spy(model: hg.Model, point: Point, method: str, steps: int) -> dict[str, Any]:
        ran.append(method)
        return run_row(model, point, method, steps)

    monkeypatch.setattr(gpu, "run_row", spy)
    monkeypatch.setattr(gpu, "recall", lambda *_: 1.0)
    gone_on, _ = run(profile, "--methods", "full", "flexgen")
    again, _ = run(profile, "--methods", "full", "flexgen")
    assert ran == ["flexgen"]
    rows = [json.loads(line) for line in filter(is_whole, file.read_text().splitlines())]
    assert [row for row in rows if row["method"] == "full" and "step_ms" in row] == first
    assert gone_on["machine"]["not_run"] == again["machine"]["not_run"] == {}
    steps = [[r["value"] for r in d["results"] if "step" in r["name"]] for d in (gone_on, again)]
    assert steps[0] == steps[1]
    assert len(steps[0]) == 4  # a step and its floor, of rows that were there too


def test_a_row_of_another_machine_is_not_taken(tmp_path: Path) -> None:
    point = Point(TINY, TOKENS, 1)
    row = key_row("one", "cuda:0", point, "full") | {"step_ms": 1.0}
    RowFile(tmp_path / "rows.jsonl").add(row)
    file = RowFile(tmp_path / "rows.jsonl")
    assert file.find(key_row("one", "cuda:0", point, "full")) == row
    for other in (
        key_row("another", "cuda:0", point, "full"),
        key_row("one", "cuda:0", Point(TINY, TOKENS, 2), "full"),
        key_row("one", "emulated:h100-nvl", point, "full"),
    ):
        assert file.find(other) is None


def test_what_is_not_run_is_listed_with_the_reason(
    profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "recall", lambda *_: 1.0)
    document, rows = run(profile, "--lengths", "510")
    assert labels(document)["full"] == "510 + 6 tokens, the model has 512 positions"
    document, rows = run(profile, "--minutes", "0")
    assert set(labels(document)) == {"full", "flexgen", POST}
    assert "no time left of 0 minutes" in labels(document)["full"]

    def fail(*_: Any) -> dict[str, Any]:
        raise hg.OutOfMemoryError("[device] 3 GiB wanted")

    monkeypatch.setattr(gpu, "run_row", fail)
    document, rows = run(profile)
    assert labels(document)[POST] == "failed: [device] 3 GiB wanted"
    assert rows == []  # so that a rerun tries again


def test_rows_that_memory_does_not_hold_are_not_tried(profile: str) -> None:
    device = f"emulated:{profile}"
    assert why_not(Point(TINY, TOKENS, 1), "full", 6, device) == ""
    assert "of 400 requests fit together" in why_not(Point(TINY, 500, 400), "full", 6, device)
    big = Point(SHAPES["llama-3.1-8b"], 8192, 1)
    assert why_not(big, "full", 6, device) != ""
    assert "GiB are free" in why_no_peer(Point(big.shape, 131000, 1 << 20), OFFLOADED, 6)


def test_weights_that_are_loaded_are_not_counted_twice(tmp_path: Path) -> None:
    file = tmp_path / "small.json"
    base = hg.MachineProfile.load("h100-nvl")
    base.with_values({"gpu.mem_gb": 0.2}, source="made up", confidence="e").save(file)
    wide = replace(TINY, name="wide", layers=64, hidden_size=512, ffn_size=512)
    point, device = Point(wide, TOKENS, 1), f"emulated:{file}"
    assert point.weight_bytes > 0.1e9
    assert why_not(point, "full", 6, device) == ""
    with dummy_model(wide, device) as model:
        assert "the weights take" in why_not(point, "full", 6, device)
        assert why_not(point, "full", 6, device, model) == ""


def made_up(device: str, steps: dict[str, float]) -> list[dict[str, Any]]:
    """Return rows at the bars' point."""
    point = Point(SHAPES[BAR_SHAPE], BAR_TOKENS, 1)
    return [key_row("one", device, point, name) | {"step_ms": ms} for name, ms in steps.items()]


@pytest.mark.parametrize(
    ("steps", "recalled", "speeds", "kept"),
    [
        ({POST: 10.0, PRE: 20.0}, {}, (True, True), (True, True)),
        ({POST: 11.0, PRE: 20.0}, {}, (False, True), (True, True)),
        ({POST: 10.0, PRE: 9.0}, {PRE: 0.5}, (True, True), (True, True)),
        ({PRE: 9.0}, {PRE: 0.5}, (True, True), (False, False)),
        ({POST: 40.0}, {}, (False, False), (True, True)),
    ],
)
def test_measured_rows_are_held_against_the_bars(
    steps: dict[str, float],
    recalled: dict[str, float],
    speeds: Sequence[bool],
    kept: Sequence[bool],
) -> None:
    all_steps = {"flexgen": 50.0, "infinigen": 20.0, "full": 9.6, RESIDENT: 10.0} | steps
    report = Report()
    said = dict.fromkeys(METHODS, 1.0) | recalled
    gpu_bars.compare_rows(report, made_up("cuda:0", all_steps), said, "cuda:0")
    met = {result.name: result.met for result in report.results}
    assert [v for n, v in met.items() if "flexgen /" in n or "infinigen /" in n] == list(speeds)
    assert [v for n, v in met.items() if "recall" in n] == list(kept)
    assert [v for n, v in met.items() if RESIDENT in n] == [True]

    report = Report()
    device = "emulated:h100-nvl"
    gpu_bars.compare_rows(report, made_up(device, all_steps), said, device)
    assert len(report.results) == 3
    assert all(r.bar is None and r.name.startswith("emulated, h100") for r in report.results)


def test_a_bar_without_both_rows_is_left_out() -> None:
    report = Report()
    gpu_bars.compare_rows(report, made_up("cuda:0", {"flexgen": 50.0}), {}, "cuda:0")
    assert len(report.results) == 5
    assert all(r.value is None and r.met is None and r.bar is not None for r in report.results)


@pytest.mark.parametrize(("sync_us", "is_met"), [(7.0, True), (12.0, False)])
def test_the_hand_off_of_a_gpu_is_held_against_its_bar(
    sync_us: float, is_met: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "cpu.fork_us": 2.0,
        "overhead.sync_us": sync_us,
        "link.gather_eff": [[64.0, 0.25], [256.0, 0.75]],
    }
    profile = hg.MachineProfile(name="made up").with_values(
        values, source="made up", confidence="e"
    )
    monkeypatch.setattr(gpu_bars, "measure_machine", lambda quick: profile)
    report = Report()
    gpu_bars.measure_profile(report, has_gpu=True)
    found = {result.name: result for result in report.results}
    assert found["measured: link.gather_eff at 256 bytes"].value == 0.75
    assert found[f"measured: {gpu_bars.HAND_OFF}"].value == 2.0 + sync_us
    assert found[f"measured: {gpu_bars.HAND_OFF}"].met is is_met


def test_a_measured_row_says_what_mass_it_attended_to() -> None:
    point = Point(TINY, TOKENS, 2)
    with dummy_model(TINY, "cpu") as model:
        rows = {
            name: key_row("one", "cpu", point, name) | run_row(model, point, name, STEPS)
            for name in ("full", POST, PRE, "h2o", RESIDENT)
        }
    said = {name: mass_of(row) for name, row in rows.items()}
    assert said["full"] == said[RESIDENT] == "1.000 exact"
    assert said[POST].endswith("estimated")
    assert 0.0 < rows[POST]["mass"] < 1.0
    assert said[PRE] == said["h2o"] == "none"
    assert [rows[name]["strategy"] for name in (POST, PRE)] == ["post", "pre"]
    assert rows["h2o"]["dropped_tokens"] > 0
    assert rows[RESIDENT]["offloaded_tokens"] == 0


def test_on_a_gpu_rows_are_measured_beside_transformers_and_have_bars(
    profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "GPU", "cpu")  # stands in for one
    monkeypatch.setattr(gpu, "gpu_name", lambda: "made up")
    monkeypatch.setattr(gpu, "recall", lambda *_: 1.0)
    folder = Path(profile).parent
    gpu.main(
        [
            *("--shapes", "tiny", "--lengths", str(TOKENS), "--batches", "1"),
            *("--steps", str(STEPS), "--methods", "flexgen", PRE, "transformers static"),
            *("--rows", str(folder / "rows.jsonl"), "--json", str(folder / "out.json")),
        ]
    )
    document = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    assert document["machine"]["not_run"] == {}
    assert document["machine"]["gpu"] == "made up"
    found = {result["name"]: result for result in document["results"]}
    steps = [name for name in found if name.endswith(": step")]
    assert [name.rpartition(", ")[2] for name in steps] == [
        *("flexgen: step", f"{PRE}: step", "transformers static: step"),
    ]
    assert all(name.startswith("measured, cpu: tiny, 1 x 96, ") for name in steps)
    (bar,) = [result for name, result in found.items() if f"flexgen / {PRE}" in name]
    assert bar["bar"] == 5.0
    assert bar["met"] is (bar["value"] >= 5.0)


def test_transformers_static_cache_is_timed() -> None:
    point = Point(TINY, TOKENS, 2)
    with transformers_model(TINY, "cpu") as model:
        row = run_transformers(model, point, "transformers static", STEPS)
    assert row["steps"] == STEPS
    assert row["tokens_per_s"] == pytest.approx(2e3 / row["step_ms"])
    assert row["resident_tokens"] == 2 * TOKENS
