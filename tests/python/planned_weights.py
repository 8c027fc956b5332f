# SPDX-License-Identifier: Apache-2.0
"""Weights as a plan counts them, and as an engine then holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hybridgen as hg
from hybridgen import LLM, WeightConfig
from trained import CPU


def assert_planned_as_held(model: Path, **options: Any) -> None:
    """Compare bytes of every place, all in memory and half of the layers on disk."""
    for weights in (WeightConfig(), WeightConfig(host=0.5)):
        plan = hg.plan(model, prompt_tokens=8, cpu=CPU, weights=weights, **options)
        planned = {name: tier["weights"] for name, tier in plan.tiers.items() if tier["weights"]}
        with LLM(model, cpu=CPU, weights=weights, **options) as llm:
            held = {"device": llm.stats.weight_device_bytes, "disk": llm.stats.weight_disk_bytes}
            assert sum(held.values()) == llm.model.weights.weight_bytes
            loaded = hg.plan(llm, prompt_tokens=8).tiers
        assert planned == {name: size for name, size in held.items() if size}
        assert loaded["device"]["weights"] == planned["device"]
        assert (weights == WeightConfig()) == ("disk" not in planned)
