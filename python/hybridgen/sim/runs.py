# SPDX-License-Identifier: Apache-2.0
"""Simulated decode steps and whole runs: times, bytes, and what the scheduler made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .._checks import as_int
from .._files import write_whole
from .machine import Machine
from .methods import HybridSetting, build_step
from .scheduler import SchedulerRules, SchedulerState, StageTimes
from .shapes import ModelShape, shape_of
from .step_builder import CPU, D2H, GPU, H2D, LANES, STORE, StepBuilder
from .tasks import Span, busy_seconds, simulate

PREFILL_OVERHEAD_S = 0.02
"""Of every prompt: an estimate, the same for all methods."""
STEPS_ALIKE = 16
"""Steps of a run that are simulated once, at their middle, while K and strategy stay the same."""


@dataclass(frozen=True)
class StepResult:
    """A simulated decode step.

    Parameters
    ----------
    spans : list of Span
        When each task ran.
    layers : int
        Of the model.
    """

    spans: list[Span]
    layers: int

    @cached_property
    def seconds(self) -> float:
        """How long the step takes; copies that nobody waits for do not count."""
        return max(span.end_s for span in self.spans if span.task.name != STORE)

    @cached_property
    def busy(self) -> dict[str, float]:
        """Seconds that each lane was busy."""
        return dict.fromkeys(LANES, 0.0) | busy_seconds(self.spans)

    @cached_property
    def exposed(self) -> dict[str, float]:
        """Seconds in which a lane other than the GPU worked and the GPU did not."""
        gpu = [(s.begin_s, s.end_s) for s in self.spans if s.task.lane == GPU]
        return {
            lane: sum(
                span.seconds - sum(_overlap(span, begin, end) for begin, end in gpu)
                for span in self.spans
                if span.task.lane == lane and span.task.name != STORE
            )
            for lane in LANES
            if lane != GPU
        }

    def bytes(self, lane: str, *, stored: bool = False) -> float:
        """Bytes over a lane: with ``stored`` only those of new tokens, else without them."""
        return sum(
            span.task.bytes
            for span in self.spans
            if span.task.lane == lane and (span.task.name == STORE) == stored
        )

    @cached_property
    def stages(self) -> StageTimes:
        """Stage times as the scheduler takes them: over the layers whose host stage overlaps."""
        host = link = device = 0.0
        for span in self.spans:
            task = span.task
            if task.name == STORE or task.layer < 0:
                continue
            if task.lane == GPU and task.layer < self.layers - 1:
                device += span.seconds
            elif task.lane == CPU and task.layer > 0:
                host += span.seconds
            elif task.lane in (H2D, D2H) and task.layer > 0:
                link += span.seconds
        return StageTimes(host_s=host, link_s=link, device_s=device)

    def chrome_trace(self, title: str) -> dict[str, Any]:
        """Return the step in the Chrome trace format, for ui.perfetto.dev."""
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": f"simulated: {title}"}}
        ]
        for i, lane in enumerate(LANES):
            events.append(
                {"ph": "M", "pid": 1, "tid": i, "name": "thread_name", "args": {"name": lane}}
            )
        for span in self.spans:
            task = span.task
            rate = task.bytes / span.seconds / 1e9 if span.seconds > 0 else 0.0
            events.append(
                {
                    "ph": "X",
                    "name": task.name,
                    "pid": 1,
                    "tid": LANES.index(task.lane),
                    "ts": span.begin_s * 1e6,
                    "dur": span.seconds * 1e6,
                    "args": {"layer": task.layer, "bytes": task.bytes, "GB/s": round(rate, 3)},
                }
            )
        return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"mode": "simulated"}}

    def write_trace(self, path: str | Path, title: str) -> None:
        """Write `chrome_trace` as a file."""
        write_whole(path, json.dumps(self.chrome_trace(title)), "simulate")


def _overlap(span: Span, begin: float, end: float) -> float:
    return max(0.0, min(span.end_s, end) - max(span.begin_s, begin))


def simulate_step(
    machine: Machine,
    model: str | ModelShape,
    method: str,
    *,
    tokens: int,
    batch: int = 1,
    **options: Any,
) -> StepResult:
    """Simulate one decode step.

    Parameters
    ----------
    machine : Machine
        Where.
    model : str or ModelShape
        Of what.
    method : str
        A key of ``METHODS``.
    tokens : int
        Cached of each text before the step.
    batch : int
        Texts.
    **options
        Of the method; hybridgen takes ``setting=HybridSetting(...)``, by default with K_min of the
        machine's calibration.

    Raises
    ------
    ConfigError
        For an unknown name or a value that is not allowed.
    """
    shape = shape_of(model) if isinstance(model, str) else model
    as_int("simulate", "tokens", tokens, 1)
    as_int("simulate", "batch", batch, 1)
    if method == "hybridgen":
        options.setdefault("setting", HybridSetting(k=machine.calibration.k_min))
    step = StepBuilder(machine, shape, batch, tokens)
    build_step(step, method, options)
    return StepResult(simulate(step.tasks, machine.bandwidths()), shape.layers)


@dataclass(frozen=True, kw_only=True)
class ScheduledStep:
    """One step of a scheduled run."""

    tokens: int
    k: int
    strategy: str
    seconds: float
    stages: StageTimes
    decision: str


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A simulated prompt with its new tokens.

    Parameters
    ----------
    prefill_s, decode_s : float
        Seconds of the prompt and of all decode steps.
    new_tokens : int
        Decode steps.
    steps : list of ScheduledStep
        Of hybridgen with a scheduler; else empty.
    """

    prefill_s: float
    decode_s: float
    new_tokens: int
    steps: list[ScheduledStep]

    @property
    def seconds(self) -> float:
        """End to end."""
        return self.prefill_s + self.decode_s


def prefill_seconds(machine: Machine, shape: ModelShape, tokens: int, batch: int) -> float:
    """Seconds of a prompt: products and causal attention, or storing the cache, and overhead."""
    products = 2 * (shape.projection_params + shape.ffn_params) * shape.layers * tokens
    attention = 2 * shape.layers * shape.query_width * tokens**2
    flops = batch * (products + attention)
    tflops = machine.profile.gpu.tflops or 0.0
    return max(flops / (tflops * 1e12), shape.kv_bytes(batch, tokens) / machine.d2h) + (
        PREFILL_OVERHEAD_S
    )


def simulate_run(
    machine: Machine,
    model: str | ModelShape,
    method: str,
    *,
    length: int,
    new_tokens: int = 128,
    batch: int = 1,
    rules: SchedulerRules | None = None,
    setting: HybridSetting | None = None,
    **options: Any,
) -> RunResult:
    """Simulate a prompt of ``length - new_tokens`` tokens and its new ones.

    Parameters
    ----------
    machine, model, method, batch, options
        As `simulate_step`.
    length : int
        Prompt and new tokens together.
    new_tokens : int
        Decode steps.
    rules : SchedulerRules, optional
        Of hybridgen: what steers it; by default the full scheduler at the calibration's K_min.
    setting : HybridSetting, optional
        Of hybridgen: everything but K and strategy.
    """
    shape = shape_of(model) if isinstance(model, str) else model
    as_int("simulate", "new_tokens", new_tokens, 1)
    as_int("simulate", "length", length, new_tokens + 1)
    prompt = length - new_tokens
    prefill_s = prefill_seconds(machine, shape, prompt, batch)
    if method != "hybridgen":
        middle = length - new_tokens // 2
        step = simulate_step(machine, shape, method, tokens=middle, batch=batch, **options)
        decode_s = new_tokens * step.seconds
        return RunResult(prefill_s=prefill_s, decode_s=decode_s, new_tokens=new_tokens, steps=[])
    base = setting or HybridSetting(k=machine.calibration.k_min)

    def one(tokens: int, k: int, strategy: str) -> StepResult:
        changed = HybridSetting(**{**vars(base), "k": k, "strategy": strategy})
        return simulate_step(
            machine, shape, method, tokens=tokens, batch=batch, setting=changed, **options
        )

    rules = rules or SchedulerRules(k_min=machine.calibration.k_min)
    steps = schedule(one, rules, prompt, new_tokens, base.window)
    return RunResult(
        prefill_s=prefill_s,
        decode_s=sum(step.seconds for step in steps),
        new_tokens=new_tokens,
        steps=steps,
    )


def schedule(
    one: Callable[[int, int, str], StepResult],
    rules: SchedulerRules,
    prompt: int,
    new_tokens: int,
    window: int = 0,
) -> list[ScheduledStep]:
    """Run steps with the scheduler in the loop.

    ``one(tokens, k, strategy)`` gives a step. Steps that differ only by a few tokens are simulated
    once.
    """
    state = SchedulerState.start(rules)
    known: dict[tuple[int, int, str], StepResult] = {}
    found = []
    for i in range(new_tokens):
        tokens = prompt + i
        offloaded = max(0, tokens - window)
        alike = prompt + min(new_tokens - 1, i // STEPS_ALIKE * STEPS_ALIKE + STEPS_ALIKE // 2)
        key = (alike, state.k_for(offloaded), state.strategy)
        if key not in known:
            known[key] = one(*key)
        step = known[key]
        after = state.after_step(step.stages, offloaded)
        found.append(
            ScheduledStep(
                tokens=tokens,
                k=key[1],
                strategy=state.strategy,
                seconds=step.seconds,
                stages=step.stages,
                decision=after.decision,
            )
        )
        state = after
    return found
