# SPDX-License-Identifier: Apache-2.0
"""Decode steps of the real engine on small shapes with dummy weights: measured and emulated points.

``device="cpu"`` measures this machine. ``device="emulated:h100-nvl"`` runs the same engine, whose
scheduler, host stage and bytes are real, with the modelled times of a GPU and a link.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hybridgen as hg
from hybridgen import sim
from hybridgen.sim import ModelShape
from output import HATCHES, Result, Row

MEASURED, EMULATED = "cpu", "emulated:h100-nvl"
TITLES = {"measured": "measured: CPU device", "emulated": "emulated: h100-nvl"}
WARMUP = 2
"""Steps that are not counted."""
K_SHARE = 0.05
ONE_THREAD = hg.CpuConfig(threads=1, device_threads=1)
"""A side: so that neighbours on a shared machine disturb least."""

SMALL = ModelShape(
    name="small llama",
    family="llama",
    layers=4,
    hidden_size=512,
    heads=8,
    kv_heads=4,
    head_dim=64,
    ffn_size=1408,
    vocab_size=2048,
    positions=65536,
    tied=False,
)
NOTE = (
    "measured and emulated points: a small Llama shape (4 layers, width 512, 4 KV heads of 64) "
    "with dummy weights in bfloat16, one thread a side; emulated steps contain this machine's own "
    "work per layer, so that link time and bytes say more than the step"
)


def config_of(shape: ModelShape) -> dict[str, Any]:
    """Return a config of that shape."""
    if shape.family == "opt":
        return {
            "model_type": "opt",
            "architectures": ["OPTForCausalLM"],
            "num_hidden_layers": shape.layers,
            "hidden_size": shape.hidden_size,
            "word_embed_proj_dim": shape.hidden_size,
            "num_attention_heads": shape.heads,
            "ffn_dim": shape.ffn_size,
            "vocab_size": shape.vocab_size,
            "max_position_embeddings": shape.positions,
            "do_layer_norm_before": True,
            "activation_function": "relu",
        }
    return {
        "model_type": shape.family,
        "architectures": [f"{shape.family.capitalize()}ForCausalLM"],
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden_size,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn_size,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "hidden_act": "silu",
        "tie_word_embeddings": shape.tied,
    }


def options_of(method: str, tokens: int, **hybrid: Any) -> dict[str, Any]:
    """Return LLM's options: all tokens in host memory, budgets as the simulator's."""
    fifth = max(8, tokens // 5)
    k = max(8, round(K_SHARE * tokens))
    of_hybrid: dict[str, Any] = {"k": k, "query": "speculative"} | hybrid
    methods: dict[str, Any] = {
        "full": hg.methods.Full(),
        "flexgen": hg.methods.FlexGen(),
        "moe_lightning": hg.methods.MoELightning(),
        "h2o": hg.methods.H2O(heavy=fifth // 2, recent=fifth - fifth // 2, home="host"),
        "keyformer": hg.methods.Keyformer(kv_cache=fifth, home="host"),
        "streaming_llm": hg.methods.StreamingLLM(sinks=4, window=fifth - 4, home="host"),
        "infinigen": hg.methods.InfiniGen(),
        "hgca": hg.methods.HGCA(block=32, blocks=2),
        "hybridgen": hg.methods.HybridGen(**of_hybrid),
    }
    options: dict[str, Any] = {"method": methods[method]}
    if method == "hybridgen":
        options["kv"] = hg.KVConfig(device_tokens=32)
    return options


def mode_of(device: str) -> str:
    """Return the mode of a device's points."""
    return "measured" if device == MEASURED else "emulated"


@contextmanager
def base_of(device: str, shape: ModelShape = SMALL) -> Iterator[hg.Model]:
    """Load dummy weights once for several engines."""
    with hg.Model(config_of(shape), load_format="dummy", dtype="bfloat16", device=device) as model:
        yield model


def decode(
    model: hg.Model, tokens: int, steps: int, *, batch: int = 1, **options: Any
) -> tuple[hg.RunStats, list[float]]:
    """Run prompts of ``tokens``; return the engine's sums and the seconds of each decode step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the timed device withholds text
        llm = hg.LLM(model, max_num_seqs=batch, cpu=ONE_THREAD, **options)
    with llm:
        params = hg.SamplingParams(max_tokens=steps + 1 + WARMUP, ignore_eos=True)
        for number in range(batch):
            ids = [(i * 7919 + 11 + number) % 2000 + 3 for i in range(tokens)]
            llm.add_request(number, ids, params)
        times = []
        while llm.has_unfinished_requests():
            before = llm.stats.decode_tokens
            begin = time.perf_counter()
            llm.step()
            seconds = time.perf_counter() - begin
            if llm.stats.decode_tokens - before == batch:
                times.append(seconds)
        stats = llm.stats
    return stats, times[WARMUP:]


def row_of(
    model: hg.Model,
    device: str,
    method: str,
    tokens: int,
    steps: int,
    *,
    batch: int = 1,
    label: str = "",
    **hybrid: Any,
) -> Row:
    """Return a method's decode step as a row: seconds, and what the engine counted per step."""
    options = options_of(method, tokens, **hybrid)
    stats, times = decode(model, tokens, steps, batch=batch, **options)
    return {
        "mode": mode_of(device),
        "machine": device,
        "model": SMALL.name,
        "method": label or method,
        "tokens": tokens,
        "batch": batch,
        **step_figures(stats, times),
    }


def step_figures(stats: hg.RunStats, times: Sequence[float]) -> Row:
    """Return what the engine counted of a decode step; `times` are those of steps, in seconds."""
    count = stats.decode_steps
    return {
        "steps": len(times),
        "step_ms": 1e3 * statistics.median(times),
        "host_ms": 1e3 * stats.t_cpu_s / count,
        "link_ms": 1e3 * stats.t_link_s / count,
        "device_ms": 1e3 * stats.t_device_s / count,
        "to_device_bytes": stats.h2d_bytes / count,
        "to_host_bytes": stats.d2h_bytes / count,
    }


def small_rows(
    cases: Sequence[dict[str, Any]], steps: int, devices: Sequence[str] = (MEASURED, EMULATED)
) -> list[Row]:
    """Return a row for each case (arguments of `row_of`) on each device."""
    rows = []
    for device in devices:
        with base_of(device) as model:
            rows += [row_of(model, device, steps=steps, **case) for case in cases]
    return rows


def is_small(row: Row) -> bool:
    """Say whether a row is a step of the real engine."""
    return row["mode"] in ("measured", "emulated") and "step_ms" in row


def split(figure: Any, result: Result, share: float = 0.3) -> tuple[Any, Any]:
    """Return a place for everything else, and axes below it for measured and emulated points."""
    if not any(is_small(row) for row in result.rows):
        return figure, None
    above, below = figure.subfigures(2, 1, height_ratios=(1 - share, share))
    return above, below.subplots()


def draw_small(axes: Any, rows: Sequence[Row], label: Callable[[Row], str]) -> None:
    """Draw step times of the real engine: a group per case, a bar per mode."""
    if axes is None:
        return
    found = [row for row in rows if is_small(row)]
    names = list(dict.fromkeys(label(row) for row in found))
    modes = [mode for mode in ("measured", "emulated") if any(r["mode"] == mode for r in found)]
    for i, mode in enumerate(modes):
        values = {label(r): r["step_ms"] for r in found if r["mode"] == mode}
        places = [j + 0.4 * (i - (len(modes) - 1) / 2) for j, n in enumerate(names) if n in values]
        axes.bar(
            places,
            [values[name] for name in names if name in values],
            0.38,
            label=TITLES[mode],
            color={"measured": "tab:green", "emulated": "silver"}[mode],
            hatch=HATCHES[mode],
            edgecolor="black",
            linewidth=0.3,
        )
    axes.set_xticks(range(len(names)), names, fontsize=6.5)
    axes.grid(visible=False, axis="x")
    axes.set(yscale="log", ylabel="ms per step")
    axes.set_title("small Llama shape, dummy weights", fontsize=8)
    axes.legend(fontsize=6.5)


def bytes_note(rows: Sequence[Row]) -> str:
    """Compare the engine's bytes to the device with the simulator's, for the same steps."""
    where = sim.Machine.load("h100-nvl")
    options: dict[str, dict[str, Any]] = {"keyformer": {"form": "evict"}}
    parts = []
    for row in rows:
        method, tokens = row["method"], row["tokens"]
        if row["mode"] != "emulated" or method in ("infinigen", "hybridgen"):
            continue  # what these two send depends on scores
        more = dict(options.get(method, {}))
        if method == "streaming_llm":
            more["window"] = max(8, tokens // 5) - sim.methods.SINKS
        counted = row["steps"] + WARMUP
        simulated = [
            sim.simulate_step(where, SMALL, method, tokens=tokens + i, **more).bytes("h2d")
            for i in range(counted)
        ]
        ratio = row["to_device_bytes"] * counted / sum(simulated)
        parts.append(f"{method} {ratio:.3f}")
    steps = [row["step_ms"] for row in rows if row["mode"] == "emulated"]
    return (
        f"bytes to the device, emulated over simulated: {', '.join(parts)}. Emulated steps take "
        f"{min(steps):.0f} to {max(steps):.0f} ms, which is mostly this machine's own work per "
        "layer; the simulator has less than a millisecond for this shape. So step times "
        "of these two modes were not brought together, bytes were"
    )
