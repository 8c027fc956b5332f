# SPDX-License-Identifier: Apache-2.0
"""The paper's Algorithm 1 with the rules of docs/methods.md: what the engine's scheduler does.

H is the host's time and its copies, G the device's without its wait, both summed over ``interval``
steps. H <= G: K rises. H > G: K falls, and at K_min selection goes from after the logits (Post-QKT)
to before them (Pre-QKT). By default nothing returns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction

from .._checks import one_of

PRESETS = {
    "fixed_pre": (False, False, "pre"),
    "fixed_post": (False, False, "post"),
    "fixed_adaptive": (False, True, "post"),
    "adaptive_pre": (True, False, "pre"),
    "adaptive_post": (True, False, "post"),
    "full": (True, True, "post"),
}
"""Of the paper's ablation: whether K follows stage times, whether the strategy does, the first."""


@dataclass(frozen=True, kw_only=True)
class SchedulerRules:
    """What a decision may do; the defaults are the engine's.

    Parameters
    ----------
    k_min : int
        First and smallest K.
    k_max : int, optional
        Largest K; None: all offloaded tokens.
    adapt_k, adapt_strategy : bool
        What stage times decide.
    strategy : str
        "post" or "pre", to begin with.
    grow, shrink : Fraction
        Factors of one rise and one fall of K.
    interval, warmup : int
        Steps per decision; steps without measuring at the start and after a change of strategy.
    """

    k_min: int = 128
    k_max: int | None = None
    adapt_k: bool = True
    adapt_strategy: bool = True
    strategy: str = "post"
    grow: Fraction = Fraction(6, 5)
    shrink: Fraction = Fraction(4, 5)
    interval: int = 4
    warmup: int = 1

    @classmethod
    def preset(cls, name: str, k_min: int = 128) -> SchedulerRules:
        """Return a configuration of the paper's ablation."""
        one_of("simulate", "preset", name, tuple(PRESETS))
        adapt_k, adapt_strategy, strategy = PRESETS[name]
        return cls(k_min=k_min, adapt_k=adapt_k, adapt_strategy=adapt_strategy, strategy=strategy)


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """Seconds of one step, summed over layers that overlap: host, link and device."""

    host_s: float
    link_s: float
    device_s: float


@dataclass(frozen=True, kw_only=True)
class SchedulerState:
    """What a request's scheduler knows; `after_step` gives the next one."""

    rules: SchedulerRules
    k: int
    strategy: str
    warmup_left: int
    host_s: float = 0.0
    device_s: float = 0.0
    steps: int = 0
    decision: str = field(default="hold", compare=False)

    @classmethod
    def start(cls, rules: SchedulerRules) -> SchedulerState:
        """Return the state after the prompt."""
        return cls(rules=rules, k=rules.k_min, strategy=rules.strategy, warmup_left=rules.warmup)

    def k_for(self, offloaded: int) -> int:
        """Tokens that can really be chosen."""
        return min(self.k, offloaded)

    def after_step(self, times: StageTimes, offloaded: int) -> SchedulerState:
        """Return the state after a step with ``offloaded`` tokens in host memory."""
        if offloaded == 0:
            return self
        rules = self.rules
        limit = max(rules.k_min, offloaded)
        if rules.k_max is not None:
            limit = min(limit, rules.k_max)
        state = replace(self, k=min(self.k, limit), decision="hold")
        if state.warmup_left > 0:
            return replace(state, warmup_left=state.warmup_left - 1)
        state = replace(
            state,
            host_s=state.host_s + times.host_s + times.link_s,
            device_s=state.device_s + times.device_s,
            steps=state.steps + 1,
        )
        return state._decided(limit) if state.steps == rules.interval else state

    def _decided(self, limit: int) -> SchedulerState:
        """Apply Algorithm 1, lines 8 to 16, to the sums."""
        rules = self.rules
        fresh = replace(self, host_s=0.0, device_s=0.0, steps=0)
        if self.host_s <= self.device_s:
            if not rules.adapt_k or self.k >= limit:
                return fresh
            k = min(limit, max(self.k + 1, math.ceil(rules.grow * self.k)))
            return replace(fresh, k=k, decision="grow")
        if rules.adapt_k and self.k > rules.k_min:
            k = max(rules.k_min, math.floor(rules.shrink * self.k))
            return replace(fresh, k=k, decision="shrink")
        if not rules.adapt_strategy or self.strategy == "pre":
            return fresh
        return replace(fresh, strategy="pre", warmup_left=rules.warmup, decision="to_pre")
