# SPDX-License-Identifier: Apache-2.0
"""Runs of the feedback scheduler on a slowed machine, step by step, in both modes."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import hybridgen as hg
from engine_runs import ONE_THREAD, options_of
from hybridgen import SchedulerConfig, sim
from hybridgen.sim import PRESETS, SchedulerRules
from hybridgen.sim.runs import ScheduledStep, schedule
from output import Check, Row
from simulations import NEAR
from slowed_machine import QUICK, Case, loaded, setting_of, simulated_step

ONE_DECISION = 1.25
"""K after one fall of a fifth is this factor smaller, after a rise that factor larger at most."""
WHY_APART = (
    "the engine's threads get their cores late on a busy machine, once in every layer: a layer "
    "takes longer than the simulator's and has room for a larger K"
)
QUICK_RUNS = {16: 6}
STAGES = ("t_cpu_s", "t_link_s", "t_device_s")


def simulated_steps(case: Case, rules: SchedulerRules, steps: int) -> list[Row]:
    """Return every step of a simulated run with the scheduler in the loop."""

    def one(tokens: int, k: int, strategy: str) -> sim.StepResult:
        return simulated_step(replace(case, tokens=tokens), setting_of(case, k, strategy))

    window = case.options["kv"].device_tokens
    found = schedule(one, rules, case.tokens, steps, window)
    return [
        {
            "mode": "simulated",
            **case.row,
            "step": number,
            **columns_of(step),
        }
        for number, step in enumerate(found)
    ]


def columns_of(step: ScheduledStep) -> Row:
    """Return what a scheduled step of the simulator was: its choice, milliseconds, decision."""
    return {
        "k": step.k,
        "strategy": step.strategy,
        "step_ms": 1e3 * step.seconds,
        "host_ms": 1e3 * step.stages.host_s,
        "link_ms": 1e3 * step.stages.link_s,
        "device_ms": 1e3 * step.stages.device_s,
        "decision": step.decision,
    }


def config_of_rules(rules: SchedulerRules) -> SchedulerConfig:
    """Return the engine's options that say the same as the simulator's rules."""
    return SchedulerConfig(
        k=None,
        k_min=rules.k_min,
        k_max=rules.k_max,
        adapt_k=rules.adapt_k,
        adapt_strategy=rules.adapt_strategy,
        strategy=rules.strategy,
        grow=float(rules.grow),
        shrink=float(rules.shrink),
        interval=rules.interval,
        warmup=rules.warmup,
    )


def emulated_steps(model: hg.Model, case: Case, rules: SchedulerRules, steps: int) -> list[Row]:
    """Return every decode step of the engine with its scheduler in the loop."""
    chosen = {"k": None, "strategy": rules.strategy, "scheduler": config_of_rules(rules)}
    if rules.strategy == "pre" or rules.adapt_strategy:
        chosen["pre_selector"] = "block_digests"  # what the device chooses is waited for
    options = options_of(case.method, case.tokens, **chosen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the timed device withholds text
        llm = hg.LLM(model, max_num_seqs=case.batch, cpu=ONE_THREAD, **options)
    rows: list[Row] = []
    with llm:
        params = hg.SamplingParams(max_tokens=steps + 1, ignore_eos=True)
        for number in range(case.batch):
            ids = [(i * 7919 + 11 + number) % 2000 + 3 for i in range(case.tokens)]
            llm.add_request(number, ids, params)
        before = dict(llm.stats)
        while llm.has_unfinished_requests():
            begin = time.perf_counter()
            outputs = llm.step()
            seconds = time.perf_counter() - begin
            after = dict(llm.stats)
            if after["decode_steps"] > before["decode_steps"]:
                rows.append(_row_of(case, len(rows), seconds, outputs, before, after))
            before = after
    return rows


def _row_of(
    case: Case,
    number: int,
    seconds: float,
    outputs: Sequence[hg.RequestOutput],
    before: dict[str, Any],
    after: dict[str, Any],
) -> Row:
    """Return one step as a row."""
    metrics = outputs[0].metrics
    host, link, device = (1e3 * (after[name] - before[name]) for name in STAGES)
    return {
        "mode": "emulated",
        **case.row,
        "step": number,
        "k": metrics.k,
        "strategy": metrics.strategy,
        "step_ms": 1e3 * seconds,
        "host_ms": host,
        "link_ms": link,
        "device_ms": device,
        "decision": metrics.last_decision,
    }


def paired_runs(case: Case, runs: Mapping[int, int], *, quick: bool) -> list[Row]:
    """Return the steps of runs in both modes; ``runs``: how many steps by K_min.

    In the quick form the emulated run is a small one.
    """
    rows = _steps_of(lambda rules, steps: simulated_steps(case, rules, steps), runs)
    if quick:
        case, runs = QUICK[-1], QUICK_RUNS
    with loaded(case.model, case.machine.profile) as model:
        return rows + _steps_of(
            lambda rules, steps: emulated_steps(model, case, rules, steps), runs
        )


def _steps_of(
    run: Callable[[SchedulerRules, int], list[Row]], runs: Mapping[int, int]
) -> list[Row]:
    """Return the steps of each run, with its K_min."""
    return [
        row | {"k_min": k_min}
        for k_min, steps in runs.items()
        for row in run(SchedulerRules(k_min=k_min), steps)
    ]


def run_checks(rows: Sequence[Row]) -> list[Check]:
    """Compare runs of both modes: where K and the strategy end, and how long steps take."""
    ends, parts, ratios = [], [], []
    for k_min in dict.fromkeys(row["k_min"] for row in rows):
        simulated, emulated = (
            [r for r in rows if (r["mode"], r["k_min"]) == (mode, k_min)]
            for mode in ("simulated", "emulated")
        )
        if not simulated or not emulated:
            continue
        one, other = (_end_of(steps) for steps in (simulated, emulated))
        same = one[1] == other[1]
        ends.append(same and 1 / ONE_DECISION <= other[0] / one[0] <= ONE_DECISION)
        parts.append(
            f"K_min {k_min}: K {one[0]:.0f} {one[1]} simulated, {other[0]:.0f} {other[1]} emulated"
        )
        ratios.append(
            statistics.median(r["step_ms"] for r in emulated)
            / statistics.median(r["step_ms"] for r in simulated)
        )
    if not ratios:
        return []
    listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return [
        Check(
            "(ours) K and strategy of the engine end where those of the simulator do, within one "
            "decision",
            all(ends),
            "; ".join(parts),
            WHY_APART,
            "emulated K ends elsewhere",
        ),
        Check(
            "(ours) an emulated step of these runs takes as long as a simulated one, within 15 %",
            all(1 / NEAR <= ratio <= NEAR for ratio in ratios),
            f"emulated over simulated median step {listed}",
            WHY_APART,
            f"emulated steps take {listed} of simulated ones",
        ),
    ]


def _end_of(steps: Sequence[Row]) -> tuple[float, str]:
    """Return the mean K of a run's last two decisions, and its strategy."""
    return statistics.mean(row["k"] for row in steps[-8:]), steps[-1]["strategy"]


def preset_rows(case: Case, k_min: int, steps: int, *, quick: bool) -> list[Row]:
    """Return the settled step of each of the scheduler's configurations, in both modes."""
    rules = {name: SchedulerRules.preset(name, k_min=k_min) for name in PRESETS}
    rows = [_settled(simulated_steps(case, rules[name], steps), name) for name in rules]
    if quick:
        return rows
    with loaded(case.model, case.machine.profile) as model:
        for name in rules:
            rows.append(_settled(emulated_steps(model, case, rules[name], steps), name))
    return rows


def _settled(steps: Sequence[Row], name: str) -> Row:
    """Return the median of a run's second half as one row."""
    late = steps[len(steps) // 2 :]
    shared = ("mode", "machine", "model", "tokens", "batch")
    times = ("step_ms", "host_ms", "link_ms", "device_ms")
    return {
        **{field: steps[0][field] for field in shared},
        "method": name,
        "steps": len(late),
        **{field: statistics.median(row[field] for row in late) for field in times},
        "k_at_end": steps[-1]["k"],
        "strategy_at_end": steps[-1]["strategy"],
    }
