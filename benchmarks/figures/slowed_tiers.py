# SPDX-License-Identifier: Apache-2.0
"""HybridGen's steps with keys and values in DRAM and CXL memory, on a slowed machine C.

The CXL memory is a channel of the slowed rate that the engine's host jobs share; GPU and link are
the timed device's. The engine's host gathers values for the device, so the simulated step does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import hybridgen as hg
from emulated_cxl import emulated_cxl
from engine_runs import decode, options_of, step_figures
from hybridgen import sim
from output import Row
from slowed_machine import STEPS, Case, loaded, setting_of, simulated_step

PLACEMENTS = {"interleaved": "interleave", "semantic": "semantic"}
"""The simulator's names and the engine's."""
SPARE_BYTES = 1 << 20


def label_of(placement: str, strategy: str) -> str:
    """Name a setting as rows do."""
    return f"{placement}, {strategy}"


def simulated_tiers(case: Case, placement: str, strategy: str) -> Row:
    """Return a simulated step."""
    setting = setting_of(case, case.options["method"].k, strategy)
    step = simulated_step(case, replace(setting, mapping=placement))
    row = case.row | {"method": label_of(placement, strategy)}
    return {"mode": "simulated", **row, "step_ms": 1e3 * step.seconds}


def options_with_tiers(
    model: hg.Model, case: Case, placement: str, strategy: str
) -> dict[str, Any]:
    """Return LLM's options: keys of all tokens fit into DRAM, values do not."""
    shape = sim.shape_of(case.model)
    chosen = {"strategy": strategy}
    if strategy == "pre":
        chosen["pre_selector"] = "block_digests"
    options = options_of(case.method, case.tokens, **chosen)
    plan = hg.plan(model, prompt_tokens=case.tokens, **options)
    staging = plan.to_dict()["tiers"]["dram"]["staging"]
    keys = case.tokens * shape.kv_bytes_per_token // 2
    options["kv"] = hg.KVConfig(
        device_tokens=options["kv"].device_tokens,
        dram=staging + keys + keys // 4 + SPARE_BYTES,
        cxl=8 * keys,
        placement=PLACEMENTS[placement],
    )
    return options


def tier_rows(cases: Sequence[Case], *, quick: bool) -> list[Row]:
    """Return simulated and, but in the quick form, emulated steps of each placement."""
    settings = [(p, s) for s in ("post", "pre") for p in PLACEMENTS]
    rows = [simulated_tiers(case, *setting) for case in cases for setting in settings]
    for case in () if quick else cases:
        profile = case.machine.profile
        rate = 1e9 * profile.values()["cxl.gbs"]
        with loaded(case.model, profile) as model, emulated_cxl(rate):
            for setting in settings:
                options = options_with_tiers(model, case, *setting)
                stats, times = decode(model, case.tokens, STEPS, **options)
                row = case.row | {"method": label_of(*setting)}
                rows.append({"mode": "emulated", **row, **step_figures(stats, times)})
    return rows
