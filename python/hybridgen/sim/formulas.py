# SPDX-License-Identifier: Apache-2.0
"""Closed formulas behind the paper's estimates: memory, traffic, operations, ball-park latencies.

Of one layer and one decode step, batch ``b`` = 1 unless said otherwise; everything but the device's
memory scales with the batch. Three ways to attend to ``tokens`` cached tokens:

``aog``
    Attention on the GPU: all keys and values cross the link.
``aoc``
    Attention on the CPU: the query goes down, the output comes back.
``hybrid``
    The CPU computes the logits of the share ``phi`` of the tokens; logits and values cross.
"""

from __future__ import annotations

from dataclasses import dataclass

from .shapes import ELEMENT_BYTES, ModelShape

STRATEGIES = ("aog", "aoc", "hybrid")


# ---------------------------------------------------------------------------------------- traffic


def aog_bytes(shape: ModelShape, tokens: float) -> float:
    """Keys and values of all tokens."""
    return tokens * shape.kv_bytes_per_layer


def aoc_bytes(shape: ModelShape, *, with_inputs: bool = False) -> float:
    """The attention output; ``with_inputs``: also query, key and value on their way down."""
    output = shape.query_width
    inputs = shape.query_width + 2 * shape.kv_width if with_inputs else 0
    return float((output + inputs) * ELEMENT_BYTES)


def hybrid_bytes(shape: ModelShape, tokens: float) -> float:
    """One logit per head, and the values, of ``tokens`` that the CPU scored."""
    return tokens * (shape.heads + shape.kv_width) * ELEMENT_BYTES


def merge_bytes(shape: ModelShape) -> float:
    """Query down; partial output, maximum and sum up: what a merge by log-sum-exp moves."""
    return float(2 * (shape.query_width + shape.heads) * ELEMENT_BYTES)


# -------------------------------------------------------------------------------------- operations


def linear_macs(shape: ModelShape) -> int:
    """Multiply-adds of a layer's matrix products, attention apart."""
    return shape.projection_params + shape.ffn_params


def layer_macs(
    shape: ModelShape, strategy: str, tokens: float, phi: float = 0.5
) -> tuple[float, float]:
    """Return the multiply-adds of a layer on the CPU and on the GPU."""
    half = tokens * shape.query_width
    linear = linear_macs(shape)
    return {
        "aog": (0.0, linear + 2 * half),
        "aoc": (2 * half, float(linear)),
        "hybrid": (phi * half, linear + 2 * half - phi * half),
    }[strategy]


def aoc_ratio(shape: ModelShape, tokens: float, *, reading: str = "consistent") -> float:
    """CPU operations over GPU operations of attention on the CPU.

    Parameters
    ----------
    shape : ModelShape
        The model.
    tokens : float
        Cached.
    reading : str
        "consistent"; "with head": the output head, spread over the layers, counts as the GPU's;
        "mixed": the CPU counts FLOPs and the GPU multiply-adds, as the paper's footnote on its
        rates does; "ffn only": the GPU's projections do not count.
    """
    cpu, gpu = layer_macs(shape, "aoc", tokens)
    if reading == "with head":
        gpu += shape.head_params / shape.layers
    elif reading == "mixed":
        cpu *= 2
    elif reading == "ffn only":
        gpu = float(shape.ffn_params)
    return cpu / gpu


# ---------------------------------------------------------------------------------------- latency


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Peak rates as the paper's estimate takes them.

    Parameters
    ----------
    gpu, cpu : float
        Operations per second.
    link : float
        Bytes per second from host memory to the device.
    gpu_per_mac : float
        Operations that the GPU's rate counts in a multiply-add: 2, or 1 as the paper's footnote
        says. The CPU's counts 2.
    """

    gpu: float
    cpu: float
    link: float
    gpu_per_mac: float = 2.0


A100_RATES = Rates(gpu=1.3e12, cpu=46e9, link=24.8e9)
"""The paper's two rates for machine A; the link's is not given there: nvbandwidth on PCIe 4.0."""
GH100_RATES = Rates(gpu=16896 * 1.59e9 / 4, cpu=72 * 3.1e9 / 5, link=375e9)
"""By the same recipe: 16,896 cores at 1.59 GHz, 72 cores at 3.1 GHz; the measured C2C rate."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Seconds of one layer without overlap of copies: link, CPU, GPU, and their total."""

    link_s: float
    cpu_s: float
    gpu_s: float
    total_s: float

    @property
    def compute_s(self) -> float:
        """The total without the link."""
        return self.total_s - self.link_s


def latency(
    rates: Rates,
    shape: ModelShape,
    strategy: str,
    tokens: float,
    *,
    phi: float = 0.5,
    used: float = 1.0,
    batch: int = 1,
) -> Latency:
    """Estimate a layer as the paper does: bytes and operations over rates.

    Parameters
    ----------
    rates : Rates
        Of the machine.
    shape : ModelShape
        The model.
    strategy : str
        One of ``STRATEGIES``.
    tokens : float
        Cached.
    phi, used : float
        Share of the used tokens that the CPU scores (hybrid), and share of all that is used.
    batch : int
        Texts: every term scales with it, weights included, as the estimate has it.
    """
    n = used * tokens
    crossing = {
        "aog": aog_bytes(shape, n),
        "aoc": aoc_bytes(shape),
        "hybrid": hybrid_bytes(shape, phi * n),
    }[strategy]
    cpu_macs, gpu_macs = layer_macs(shape, strategy, n, phi)
    link_s = batch * crossing / rates.link
    cpu_s = batch * 2 * cpu_macs / rates.cpu
    gpu_s = batch * rates.gpu_per_mac * gpu_macs / rates.gpu
    compute_s = max(cpu_s, gpu_s) if strategy == "hybrid" else cpu_s + gpu_s
    return Latency(link_s=link_s, cpu_s=cpu_s, gpu_s=gpu_s, total_s=link_s + compute_s)


def compute_threshold(rates: Rates, shape: ModelShape, ratio: float = 4.0) -> float:
    """Tokens from which on computing with attention on the CPU takes ``ratio`` times as long."""
    linear, width = linear_macs(shape), shape.query_width
    per_token = 4 * width / rates.cpu - ratio * rates.gpu_per_mac * 2 * width / rates.gpu
    return (ratio - 1) * rates.gpu_per_mac * linear / rates.gpu / per_token


def crossover(
    rates: Rates, shape: ModelShape, *, phi: float = 0.5, used: float = 1.0, limit: int = 1 << 20
) -> float | None:
    """Tokens from which on ``aog`` is faster than ``hybrid``; None if it never is up to a limit."""

    def gap(tokens: float) -> float:
        hybrid, aog = (
            latency(rates, shape, strategy, tokens, phi=phi, used=used).total_s
            for strategy in ("hybrid", "aog")
        )
        return hybrid - aog

    low, high = 0.0, 1.0
    while gap(high) <= 0:
        low, high = high, 2 * high
        if high > limit:
            return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gap(middle) <= 0 else (low, middle)
    return high


# ----------------------------------------------------------------------------------------- memory


def capacity(
    shape: ModelShape, memory_bytes: float, batch: int, *, separate_head: bool = False
) -> int:
    """Tokens per text with which weights and the whole cache still fit a GPU."""
    weights = shape.weight_bytes
    if separate_head and shape.tied:
        weights += shape.head_params * ELEMENT_BYTES
    return int((memory_bytes - weights) // (batch * shape.kv_bytes_per_token))


# ---------------------------------------------------------------------------------------- selection


@dataclass(frozen=True, kw_only=True)
class SelectionCost:
    """What the CPU reads and computes to choose K tokens, and what is sent; per layer."""

    read_bytes: int
    macs: int
    sent_bytes: int


def selection_cost(shape: ModelShape, tokens: int, k: int, strategy: str) -> SelectionCost:
    """Cost of choosing after all logits are computed ("post") or before ("pre")."""
    scored = tokens if strategy == "post" else k
    return SelectionCost(
        read_bytes=scored * shape.kv_width * ELEMENT_BYTES,
        macs=scored * shape.query_width,
        sent_bytes=k * (shape.kv_width + shape.heads) * ELEMENT_BYTES,
    )


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """Lengths up to which work hides behind one layer's weights on the GPU (``layer_s``)."""

    layer_s: float
    aog_tokens: float
    post_tokens: float


def break_even(shape: ModelShape, hbm: float, link: float, scan: float) -> BreakEven:
    """Return up to how many tokens a prefetch, or a scan of all keys, costs nothing.

    ``hbm``, ``link`` and ``scan`` are bytes per second: of device memory, of the link, and of keys
    that the CPU scans.
    """
    layer_s = shape.layer_bytes / hbm
    keys = shape.kv_width * ELEMENT_BYTES
    return BreakEven(
        layer_s=layer_s,
        aog_tokens=layer_s * link / (2 * keys),
        post_tokens=layer_s * scan / keys,
    )
