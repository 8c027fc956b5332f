# SPDX-License-Identifier: Apache-2.0
"""The simulator: fair shares, closed forms, bytes of the real engine, order and monotonicity."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import hybridgen as hg
from hybridgen import LLM, ConfigError, MachineProfile, sim
from hybridgen.sim import (
    HybridSetting,
    Machine,
    ModelShape,
    SchedulerRules,
    SchedulerState,
    StageTimes,
    Task,
    Tasks,
    fair_rates,
    simulate,
    simulate_run,
    simulate_step,
)
from hybridgen.sim.step_builder import CPU, D2H, GPU, H2D
from trained import CPU as ONE_THREAD
from trained import folder_of, new_tokens, prompts_of

METHODS = [name for name in sim.METHODS if name != "oracle"]
SMALL = replace(sim.SHAPES["llama-3.2-1b"], layers=6)


# ------------------------------------------------------------------------------ tasks and shares


def moving(rate: float, **shares: float) -> Task:
    return Task("copy", "lane", bytes=1.0, rate=rate, shares=shares)


def test_tasks_share_a_bandwidth_equally_up_to_their_own_rates() -> None:
    assert fair_rates([moving(4, dram=1), moving(20, dram=1)], {"dram": 10}) == [4, 6]
    assert fair_rates([moving(20, dram=1), moving(20, dram=1)], {"dram": 10}) == [5, 5]
    assert fair_rates([moving(20, dram=1), moving(20, cxl=1)], {"dram": 10, "cxl": 3}) == [10, 3]
    # Half of each byte comes from either: the slower memory bounds both halves.
    assert fair_rates([moving(20, dram=0.5, cxl=0.5)], {"dram": 10, "cxl": 3}) == [6]
    assert fair_rates([moving(20, dram=2)], {"dram": 10}) == [5]


def test_a_lane_works_in_order_and_waits_for_others() -> None:
    tasks = Tasks()
    first = tasks.add(Task("a", "gpu", seconds=2.0))
    second = tasks.add(Task("b", "cpu", (first,), seconds=1.0))
    tasks.add(Task("c", "gpu", (second,), seconds=1.0))
    tasks.add(Task("d", "gpu", seconds=1.0))  # could begin at 2, but c is before it
    spans = simulate(tasks, {})
    assert [(s.begin_s, s.end_s) for s in spans] == [(0, 2), (2, 3), (3, 4), (4, 5)]


def test_rates_change_when_a_neighbour_ends() -> None:
    tasks = Tasks()
    for lane, size in (("a", 10.0), ("b", 30.0)):
        tasks.add(Task("copy", lane, bytes=size, rate=100.0, shares={"dram": 1.0}))
    ends = [span.end_s for span in simulate(tasks, {"dram": 10.0})]
    assert ends == pytest.approx([2.0, 4.0])  # 5 and 5 each second, then 10 alone


def test_a_task_that_waits_for_its_own_lane_is_an_error() -> None:
    tasks = Tasks()
    with pytest.raises(ValueError, match="waits for a task that is not there yet"):
        tasks.add(Task("a", "gpu", (0,)))


# ---------------------------------------------------------------------------------- closed forms


def random_machine(rng: random.Random, calibration: str) -> Machine:
    base = Machine.load("A", calibration)
    fields = {
        "gpu.hbm_gbs": rng.uniform(500, 4000),
        "link.h2d_gbs": rng.uniform(8, 300),
        "link.d2h_gbs": rng.uniform(8, 300),
        "cpu.kq_gbs": rng.uniform(5, 200),
        "cpu.dram_gbs": 1e6,  # nothing competes
        "overhead.launch_us": rng.uniform(1, 10),
        "overhead.sync_us": rng.uniform(0, 40),
        "link.setup_us": rng.uniform(0, 10),
    }
    profile = base.profile.with_values(fields, source="drawn", confidence="e")
    return Machine(profile, base.calibration)


def random_case(seed: int) -> tuple[Machine, ModelShape, int, int]:
    rng = random.Random(seed)
    machine = random_machine(rng, rng.choice(["paper", "engine"]))
    shape = sim.SHAPES[rng.choice(sim.PAPER_MODELS)]
    return machine, shape, rng.choice([256, 2048, 16384]), rng.choice([1, 3, 8])


def stage(step: sim.StepResult, name: str, layer: int = 2) -> float:
    """Return the seconds of a layer's task."""
    found = [s.seconds for s in step.spans if (s.task.name, s.task.layer) == (name, layer)]
    assert len(found) == 1, name
    return found[0]


def head_seconds(step: sim.StepResult) -> float:
    return stage(step, "output head", -1) + stage(step, "token to the host", -1)


@pytest.mark.parametrize("seed", range(8))
def test_flexgen_takes_what_its_closed_forms_say(seed: int) -> None:
    machine, shape, tokens, batch = random_case(seed)
    for overlap in ("none", "sublayer"):
        step = simulate_step(machine, shape, "flexgen", tokens=tokens, batch=batch, overlap=overlap)
        kv, at, ml = (stage(step, name) for name in ("keys and values", "attention", "FFN"))
        size = batch * tokens * shape.kv_bytes_per_layer
        assert kv == pytest.approx(machine.setup_seconds + size / machine.h2d)
        layers = shape.layers
        expected = {
            "none": layers * (kv + at + ml),
            "sublayer": kv + layers * at + (layers - 1) * max(ml, kv) + ml,
        }[overlap]
        assert step.seconds == pytest.approx(expected + head_seconds(step), rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_attention_on_the_cpu_takes_the_sum_of_its_stages(seed: int) -> None:
    machine, shape, tokens, batch = random_case(seed)
    options: dict[str, Any] = {"tokens": tokens, "batch": batch, "micro_batches": 1}
    step = simulate_step(machine, shape, "moe_lightning", **options)
    cpu = next(s.seconds for s in step.spans if s.task.lane == CPU and s.task.layer == 2)
    gpu = next(s.seconds for s in step.spans if s.task.name == "attention" and s.task.lane == GPU)
    names = ("projections", "query, key, value", "attention's output", "FFN")
    layer = cpu + gpu + sum(stage(step, name) for name in names)
    expected = shape.layers * layer + head_seconds(step)
    assert step.seconds == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_hybridgen_takes_what_its_closed_form_says(seed: int) -> None:
    machine, shape, tokens, batch = random_case(seed)
    rng = random.Random(seed)
    setting = HybridSetting(k=rng.choice([64, 512]), strategy=rng.choice(["post", "pre"]))
    step = simulate_step(machine, shape, "hybridgen", tokens=tokens, batch=batch, setting=setting)
    names = ("projections", "resident logits", "merge", "FFN")
    pre, own, merge, ffn = (stage(step, name) for name in names)
    query, cpu, link = (stage(step, n) for n in ("query", "logits", "logits and values"))
    chain = query + cpu + link
    device = pre + own + merge + ffn
    # Two host stages may be under way: the resident logits are not between one and the next.
    period = max(device, (device - own + chain) / 2, cpu, link)
    expected = pre + max(own, chain) + merge + ffn + (shape.layers - 1) * period
    assert step.seconds == pytest.approx(expected + head_seconds(step), rel=0.05)


@pytest.mark.parametrize("seed", range(6))
def test_hybridgens_layers_follow_each_other_as_the_recurrence_says(seed: int) -> None:
    machine, shape, tokens, batch = random_case(seed)
    step = simulate_step(machine, shape, "hybridgen", tokens=tokens, batch=batch)

    def of(name: str, layer: int) -> float:
        return stage(step, name, layer)

    projected = of("projections", 0)
    sent, scored, arrived = 0.0, 0.0, 0.0
    starts = {0: projected}
    for layer in range(shape.layers):
        # The host's stage of a layer begins with the projections of the layer before.
        for ahead in (0, 1) if layer == 0 else (layer + 1,):
            if ahead == shape.layers:
                continue
            sent = max(sent, projected) + of("query", ahead)
            scored = max(scored, sent) + of("logits", ahead)
            starts[ahead] = arrived = max(arrived, scored) + of("logits and values", ahead)
        merged = max(projected + of("resident logits", layer), starts[layer])
        ended = merged + of("merge", layer)
        sent = max(sent, ended) + of("store the new token", layer)
        ended += of("FFN", layer)
        if layer + 1 < shape.layers:
            projected = ended + of("projections", layer + 1)
    assert step.seconds == pytest.approx(ended + head_seconds(step), rel=1e-6)


def test_flexgens_step_on_machine_a_is_that_of_the_prototype() -> None:
    machine = Machine.load("A", "paper")
    ms = {
        overlap: 1e3
        * simulate_step(machine, "opt-13b", "flexgen", tokens=2048, overlap=overlap).seconds
        for overlap in ("none", "sublayer")
    }
    assert ms == pytest.approx({"none": 88.86, "sublayer": 76.73}, rel=1e-3)


# -------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("method", METHODS)
def test_a_faster_link_memory_or_cpu_never_makes_a_step_slower(method: str) -> None:
    # Where DRAM is short a faster copy may take from a scan that others wait for, as on a machine;
    # so DRAM is plenty here, except where it is itself what grows.
    plenty = {"cpu.dram_gbs": 1e6}
    fields = ("gpu.hbm_gbs", "link.h2d_gbs", "link.d2h_gbs", "cpu.kq_gbs", "cpu.gather_gbs")
    for calibration in sim.CALIBRATIONS:
        base = Machine.load("A", calibration)
        for field in (*fields, "cpu.dram_gbs"):
            times = []
            for factor in (0.25, 0.5, 1, 2, 4, 16):
                value = factor * base.profile.require([field], "test")[field]
                fields_now = plenty | {field: value}
                profile = base.profile.with_values(fields_now, source="", confidence="e")
                machine = Machine(profile, base.calibration)
                times.append(simulate_step(machine, SMALL, method, tokens=8192, batch=2).seconds)
            assert all(a >= b * (1 - 1e-9) for a, b in pairwise(times)), field


@pytest.mark.parametrize("method", METHODS)
def test_no_lane_is_busy_longer_than_the_step_and_every_byte_is_moved(method: str) -> None:
    step = simulate_step(Machine.load("B"), SMALL, method, tokens=4000, batch=3)
    last = max(span.end_s for span in step.spans)
    for lane, busy in step.busy.items():
        assert busy <= last * (1 + 1e-9), lane
    assert step.exposed[H2D] <= step.busy[H2D] * (1 + 1e-9)
    assert all(span.end_s >= span.begin_s for span in step.spans)


@pytest.mark.parametrize("method", ["flexgen", "h2o", "streaming_llm"])
def test_with_links_that_cost_nothing_a_step_is_its_computation(method: str) -> None:
    base = Machine.load("A", "engine")
    free = {"link.h2d_gbs": 1e9, "link.d2h_gbs": 1e9, "link.setup_us": 0.0, "cpu.dram_gbs": 1e9}
    profile = base.profile.with_values(free, source="", confidence="e")
    step = simulate_step(Machine(profile, base.calibration), SMALL, method, tokens=4096)
    wait = base.sync_seconds
    assert step.seconds == pytest.approx(step.busy[GPU] + wait, rel=1e-4)


def test_a_run_gives_the_same_numbers_every_time() -> None:
    machine = Machine.load("A", "engine")
    first, second = (
        simulate_run(machine, SMALL, "hybridgen", length=512, new_tokens=64) for _ in range(2)
    )
    assert first == second


def test_a_machine_without_the_fields_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"\[simulate\] the profile 'h200\+engine' lacks cpu"):
        Machine.load("h200")


def test_unknown_names_are_refused_with_what_there_is() -> None:
    machine = Machine.load("A")
    with pytest.raises(ConfigError, match=r"method is 'hgcb'; allowed: oracle, flexgen"):
        simulate_step(machine, SMALL, "hgcb", tokens=10)
    with pytest.raises(ConfigError, match=r"flexgen has no option 'window'; allowed: overlap"):
        simulate_step(machine, SMALL, "flexgen", tokens=10, window=3)
    with pytest.raises(ConfigError, match=r"calibration is 'fast'; allowed: paper, engine"):
        Machine.load("A", "fast")
    with pytest.raises(ConfigError, match=r"mapping is 'disk'; allowed: dram, semantic"):
        HybridSetting(k=1, mapping="disk")


@pytest.mark.parametrize("calibration", list(sim.CALIBRATIONS))
@pytest.mark.parametrize("letter", list(sim.PAPER_MACHINES))
def test_every_constant_of_a_calibrated_machine_says_where_it_comes_from(
    letter: str, calibration: str
) -> None:
    profile = Machine.load(letter, calibration).profile
    shipped = MachineProfile.load(sim.PAPER_MACHINES[letter])
    assert set(profile.source) == set(profile.values())
    for name, value in profile.values().items():
        changed = value != shipped.values().get(name)
        assert changed == profile.source[name].startswith(f"calibration {calibration!r}"), name


# --------------------------------------------------------------------------- bytes of the engine

PROMPT, STEPS = 150, 3
SHAPE = ModelShape(
    name="tiny-llama",
    family="llama",
    layers=4,
    hidden_size=0,
    heads=0,
    kv_heads=0,
    head_dim=0,
    ffn_size=0,
    vocab_size=0,
    positions=2048,
    tied=True,
)


@pytest.fixture(scope="module")
def tiny() -> Any:
    with LLM(folder_of("tiny-llama"), dtype="bfloat16", method="full", cpu=ONE_THREAD) as llm:
        config = llm.model_config
        names = ("head_dim", "hidden_size", "ffn_size", "vocab_size")
        sizes = {name: config[name] for name in names}
        sizes |= {"heads": config["num_heads"], "kv_heads": config["num_kv_heads"]}
        yield llm, replace(SHAPE, layers=config["num_layers"], **sizes)


M = hg.methods
EXACT_K = 40
SPECULATIVE = hg.QueryConfig(mode="speculative", first_layer=1)
RESCORE = hg.QueryConfig(mode="rescore", first_layer=1)
BYTES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "flexgen": (M.FlexGen(), "flexgen", {}),
    "moe_lightning": (M.MoELightning(), "moe_lightning", {}),
    "h2o": (M.H2O(heavy=15, recent=15, home="host"), "h2o", {"budget": 30}),
    "keyformer": (
        M.Keyformer(kv_cache=30, home="host"),
        "keyformer",
        {"budget": 30, "form": "evict"},
    ),
    "streaming_llm": (
        M.StreamingLLM(sinks=4, window=26, home="host"),
        "streaming_llm",
        {"window": 26},
    ),
    "hybridgen post, all": (
        M.HybridGen(k="all", query=SPECULATIVE),
        "hybridgen",
        {"setting": HybridSetting(k=10**6)},
    ),
    "hybridgen post, all, rescore": (
        M.HybridGen(k="all", query=RESCORE),
        "hybridgen",
        {"setting": HybridSetting(k=10**6, query="rescore")},
    ),
    "hybridgen pre": (
        M.HybridGen(k=EXACT_K, query=SPECULATIVE, strategy="pre", pre_selector="sinks_recent"),
        "hybridgen",
        {"setting": HybridSetting(k=EXACT_K, strategy="pre")},
    ),
    "hybridgen pre, rescore": (
        M.HybridGen(k=EXACT_K, query=RESCORE, strategy="pre", pre_selector="sinks_recent"),
        "hybridgen",
        {"setting": HybridSetting(k=EXACT_K, strategy="pre", query="rescore")},
    ),
}


@pytest.mark.parametrize("case", list(BYTES))
def test_simulated_bytes_are_those_that_the_engine_counts(tiny: Any, case: str) -> None:
    base, shape = tiny
    options, method, simulated = BYTES[case]
    kv = hg.KVConfig(device_tokens=1) if method == "hybridgen" else None
    with LLM(base, method=options, kv=kv, cpu=ONE_THREAD) as llm:
        llm.generate(prompts_of(PROMPT), new_tokens(STEPS + 1))
        stats = llm.stats
    assert stats.decode_steps == STEPS
    machine = Machine.load("A")
    for lane, counted in ((H2D, stats.h2d_bytes), (D2H, stats.d2h_bytes)):
        total = 0.0
        for tokens in range(PROMPT, PROMPT + STEPS):
            changed = dict(simulated)
            if "budget" in changed:  # a share of the tokens; the engine was given a number
                changed["budget"] = changed["budget"] / tokens
            total += simulate_step(machine, shape, method, tokens=tokens, **changed).bytes(lane)
        assert total == pytest.approx(counted, rel=1e-9), lane


# -------------------------------------------------------------------------------------- scheduler


def after(state: SchedulerState, host: float, device: float, offloaded: int) -> SchedulerState:
    times = StageTimes(host_s=host / 2, link_s=host / 2, device_s=device)
    for _ in range(state.warmup_left + state.rules.interval):
        state = state.after_step(times, offloaded)
    return state


def test_k_rises_while_the_host_is_hidden_and_falls_back_to_k_min() -> None:
    state = SchedulerState.start(SchedulerRules(k_min=100))
    ks = []
    for _ in range(3):
        state = after(state, 1.0, 1.0, 10_000)  # equality included
        ks.append(state.k)
    assert ks == [120, 144, 173]
    state = after(state, 1.1, 1.0, 10_000)
    assert (state.k, state.strategy) == (138, "post")
    state = after(after(state, 1.1, 1.0, 10_000), 1.1, 1.0, 10_000)
    assert (state.k, state.strategy, state.decision) == (100, "post", "shrink")
    state = after(state, 1.1, 1.0, 10_000)
    assert (state.k, state.strategy, state.decision) == (100, "pre", "to_pre")
    state = after(state, 0.1, 1.0, 10_000)
    assert (state.k, state.strategy) == (120, "pre")  # nothing returns to post


def test_k_never_exceeds_what_is_offloaded_or_k_max() -> None:
    state = SchedulerState.start(SchedulerRules(k_min=100))
    assert after(state, 0.0, 1.0, 110).k == 110
    limited = SchedulerState.start(SchedulerRules(k_min=100, k_max=105))
    assert after(limited, 0.0, 1.0, 10_000).k == 105
    assert state.after_step(StageTimes(host_s=9, link_s=0, device_s=0), 0) is state


@pytest.mark.parametrize(
    ("preset", "end"),
    [
        ("fixed_pre", (128, "pre")),
        ("fixed_post", (128, "post")),
        ("fixed_adaptive", (128, "pre")),
        ("adaptive_post", (128, "post")),
        ("full", (128, "pre")),
    ],
)
def test_presets_adapt_what_their_names_say(preset: str, end: tuple[int, str]) -> None:
    state = SchedulerState.start(SchedulerRules.preset(preset))
    state = after(after(state, 2.0, 1.0, 5000), 2.0, 1.0, 5000)
    assert (state.k, state.strategy) == end


def test_the_rules_are_the_engines() -> None:
    rules, engine = SchedulerRules(), hg.SchedulerConfig(k=None)
    for name in ("adapt_k", "adapt_strategy", "strategy", "interval", "warmup"):
        assert getattr(rules, name) == getattr(engine, name), name
    assert float(rules.grow) == pytest.approx(engine.grow)
    assert float(rules.shrink) == pytest.approx(engine.shrink)
    for name in sim.PRESETS:
        preset = hg.SchedulerConfig.preset(name, k_min=7)
        ours = SchedulerRules.preset(name, k_min=7)
        for field in ("adapt_k", "adapt_strategy", "strategy", "k_min"):
            assert getattr(ours, field) == getattr(preset, field), name


# ---------------------------------------------------------------------------------- paper's trends


def test_orders_of_the_schedulers_configurations_are_the_papers() -> None:
    machine = Machine.load("A", "paper")
    seconds = {
        name: simulate_run(
            machine,
            "opt-13b",
            "hybridgen",
            length=2048,
            rules=SchedulerRules.preset(name, k_min=128),
        ).decode_s
        for name in sim.PRESETS
    }
    assert min(seconds, key=seconds.__getitem__) == "fixed_pre"
    assert seconds["fixed_adaptive"] < 1.06 * seconds["fixed_pre"]
    assert seconds["full"] < 1.10 * seconds["fixed_pre"]
    worst = min(seconds["fixed_post"], seconds["adaptive_post"])
    assert all(worst > 1.5 * s for name, s in seconds.items() if not name.endswith("post"))


@pytest.mark.parametrize("model", ["qwen2.5-7b", "llama-3.1-8b"])
def test_gains_over_baselines_grow_with_the_length(model: str) -> None:
    machine = Machine.load("A", "paper")
    lengths = (2048, 8192, 32768)
    ours = [simulate_run(machine, model, "hybridgen", length=n).seconds for n in lengths]
    for method in ("flexgen", "keyformer", "infinigen"):
        theirs = [simulate_run(machine, model, method, length=n).seconds for n in lengths]
        ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
        assert ratios == sorted(ratios), method


def test_infinigen_hides_what_it_fetches_behind_a_whole_layer_where_overlap_is_ideal() -> None:
    machine = Machine.load("A", "engine")
    steps = {
        overlap: simulate_step(machine, "opt-13b", "infinigen", tokens=2048, overlap=overlap)
        for overlap in ("none", "sublayer", "ideal")
    }
    seconds = {overlap: step.seconds for overlap, step in steps.items()}
    assert seconds["none"] >= seconds["sublayer"] > 1.2 * seconds["ideal"]
    sublayer, ideal = steps["sublayer"], steps["ideal"]
    assert ideal.bytes(H2D) == sublayer.bytes(H2D)
    assert ideal.busy["gpu"] == pytest.approx(sublayer.busy["gpu"], rel=0.02)
    # Never shorter than what the busiest lane has to do.
    assert ideal.seconds > max(ideal.busy.values())


def test_a_trace_of_a_step_says_lanes_bytes_and_that_it_is_simulated(tmp_path: Path) -> None:
    step = simulate_step(Machine.load("A"), SMALL, "hybridgen", tokens=1000)
    step.write_trace(tmp_path / "trace.json", "a step")
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert trace["otherData"] == {"mode": "simulated"}
    moved = sum(
        e["args"]["bytes"] for e in trace["traceEvents"] if e["ph"] == "X" and e["tid"] == 2
    )
    assert moved == pytest.approx(step.bytes(H2D))


def test_values_that_the_host_gathers_from_cxl_memory_take_its_rate() -> None:
    machine = Machine.load("C")
    slow = Machine.load(machine.profile.with_values({"cxl.gbs": 1.0}, source="", confidence="e"))

    def gather_seconds(where: Machine, mapping: str) -> float:
        setting = HybridSetting(k=512, gather="host", mapping=mapping)
        step = simulate_step(where, "opt-1.3b", "hybridgen", tokens=2048, setting=setting)
        return next(s.seconds for s in step.spans if s.task.name == "gather rows")

    assert gather_seconds(slow, "dram") == gather_seconds(machine, "dram")
    values = 512 * 2048 * 2
    assert gather_seconds(slow, "semantic") == pytest.approx(values / 1e9, rel=1e-6)
    assert gather_seconds(slow, "interleaved") == pytest.approx(values / 2 / 1e9, rel=1e-6)
