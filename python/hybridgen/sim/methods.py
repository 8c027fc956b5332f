# SPDX-License-Identifier: Apache-2.0
"""Every method's decode step as tasks. Bytes over the link are those of docs/methods.md.

All tokens but the new one lie in host memory, for each method alike; ``oracle`` alone has them on
the GPU. Budgets are shares of the cached tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .._checks import one_of
from ..errors import ConfigError
from .calibration import KEYFORMERS, OVERLAPS
from .shapes import ELEMENT_BYTES
from .step_builder import DRAM, StepBuilder

POSITION_BYTES = LOGIT_BYTES = 4
SINKS, WINDOW = 4, 1024
"""Of StreamingLLM, as the paper sets it."""
BUDGET = 0.2
"""What methods that choose tokens are given: H2O's and InfiniGen's own; Keyformer's own is 0.6."""
INFINIGEN_FIRST_LAYER = 2
INFINIGEN_COLUMNS = 0.2
GUESS_LAUNCHES = 6
HGCA_WINDOW = 256
SOURCES = {
    "dram": (DRAM, DRAM),
    "semantic": (DRAM, {"cxl": 1.0}),
    "interleaved": ({"dram": 0.5, "cxl": 0.5}, {"dram": 0.5, "cxl": 0.5}),
}
"""Where keys and values of HybridGen lie: bandwidths that a byte of each takes."""


def oracle(step: StepBuilder) -> None:
    """Everything on the GPU, as if its memory were large enough."""
    after: tuple[int, ...] = ()
    for layer in range(step.shape.layers):
        after = (step.attention(layer, after, step.tokens),)
        after = (step.mlp(layer, after),)
    step.head(after)


def _streamed(
    step: StepBuilder, kept: float, overlap: str, *, more: float = 0.0, weights: bool = False
) -> None:
    """Fetch ``kept`` tokens' keys and values for every layer, and attend to them on the GPU."""
    one_of("simulate", "overlap", overlap, OVERLAPS)
    count = step.batch * kept * step.shape.kv_bytes_per_layer
    attentions: list[int] = []
    before: tuple[int, ...] = ()
    for layer in range(step.shape.layers):
        if overlap == "none":
            wait = before
        elif overlap == "sublayer":
            wait = tuple(attentions[-1:])
        else:  # two buffers
            wait = tuple(attentions[-2:-1])
        arrived = step.to_device("keys and values", layer, wait, count)
        attentions.append(step.attention(layer, (*before, arrived), kept, more=more))
        step.store(layer, (attentions[-1],))
        if weights:
            size = step.batch * step.shape.heads * (kept + 1) * LOGIT_BYTES
            step.to_host("weights", layer, (attentions[-1],), size)
        before = (step.mlp(layer, (attentions[-1],)),)
    step.head(before)


def flexgen(step: StepBuilder, *, overlap: str | None = None) -> None:
    """Attention on the GPU over all keys and values, which cross the link in every step."""
    _streamed(step, step.tokens, overlap or step.machine.calibration.overlap)


def h2o(step: StepBuilder, *, budget: float = BUDGET, overlap: str | None = None) -> None:
    """As flexgen with a share of the tokens, and sums of weights that rank them."""
    kept = round(budget * step.tokens)
    chosen = overlap or step.machine.calibration.overlap
    _streamed(step, kept, chosen, more=3, weights=True)


def streaming_llm(
    step: StepBuilder, *, window: int = WINDOW, resident: bool = False, overlap: str | None = None
) -> None:
    """Sinks and a window of newest tokens, in host memory; ``resident``: on the GPU."""
    kept = min(step.tokens, SINKS + window)
    if not resident:
        _streamed(step, kept, overlap or step.machine.calibration.overlap)
        return
    after: tuple[int, ...] = ()
    for layer in range(step.shape.layers):
        after = (step.mlp(layer, (step.attention(layer, after, kept),)),)
    step.head(after)


def moe_lightning(step: StepBuilder, *, micro_batches: int | None = None) -> None:
    """Attention on the CPU; with micro-batches one's attention hides behind another's products."""
    shape = step.shape
    count = micro_batches or min(2, step.batch)
    sizes = [step.batch // count + (i < step.batch % count) for i in range(count)]
    parts = [StepBuilder(step.machine, shape, size, step.tokens, step.tasks) for size in sizes]
    ended: list[tuple[int, ...]] = [() for _ in parts]
    for layer in range(shape.layers):
        waiting = []
        for part, before in zip(parts, ended, strict=True):
            made = part.projections(layer, before)
            rows = (shape.query_width + 2 * shape.kv_width) * ELEMENT_BYTES
            sent = part.to_host("query, key, value", layer, (made,), part.batch * rows)
            attended = part.scan("attention", layer, (sent,), 2 * step.tokens)
            output = shape.query_width * ELEMENT_BYTES + shape.heads * LOGIT_BYTES
            waiting.append(
                part.to_device("attention's output", layer, (attended,), part.batch * output)
            )
        for i, (part, arrived) in enumerate(zip(parts, waiting, strict=True)):
            made = part.rest_of_attention(layer, (arrived,), 0)
            ended[i] = (part.mlp(layer, (made,)),)
    step.head(tuple(number for numbers in ended for number in numbers))


def keyformer(
    step: StepBuilder,
    *,
    form: str | None = None,
    budget: float = BUDGET,
    overlap: str | None = None,
) -> None:
    """Tokens by accumulated scores, after their logits.

    ``form`` "k_only": keys of all tokens cross, then the values of the chosen ones; "full": both of
    all; "evict": the published method, whose cache is reduced.
    """
    form = form or step.machine.calibration.keyformer
    one_of("simulate", "form", form, KEYFORMERS)
    kept = round(budget * step.tokens)
    if form != "k_only":
        tokens = kept if form == "evict" else step.tokens
        chosen = overlap or step.machine.calibration.overlap
        _streamed(step, tokens, chosen, more=4, weights=form == "evict")
        return
    shape = step.shape
    keys = step.batch * shape.kv_width * ELEMENT_BYTES
    before: tuple[int, ...] = ()
    for layer in range(shape.layers):
        arrived = step.to_device("keys", layer, before, keys * step.tokens)
        made = step.projections(layer, before)
        scored = step.gpu(
            "logits and choice",
            layer,
            (made, arrived),
            attended=step.tokens / 2,  # keys alone
            launches=4,
        )
        indices = step.batch * shape.kv_heads * kept * POSITION_BYTES
        told = step.to_host("positions", layer, (scored,), indices)
        rows = step.gather(layer, (told,), kept)
        values = step.to_device("values", layer, (rows,), keys * kept)
        ended = step.rest_of_attention(layer, (values,), kept / 2)
        step.store(layer, (ended,))
        before = (step.mlp(layer, (ended,)),)
    step.head(before)


def infinigen(step: StepBuilder, *, max_fetch: float = BUDGET, overlap: str | None = None) -> None:
    """Tokens guessed on the GPU in the layer before, read back, gathered by the host, fetched.

    Only the FFN of the layer before hides that; with ``overlap`` "ideal" all of that layer, as its
    input is what the guess is made of. The first two layers fetch everything.
    """
    shape = step.shape
    chosen = overlap or step.machine.calibration.overlap
    one_of("simulate", "overlap", chosen, OVERLAPS)
    kept = round(max_fetch * step.tokens)
    whole = step.batch * step.tokens * shape.kv_bytes_per_layer
    columns = INFINIGEN_COLUMNS * step.batch * step.tokens * shape.kv_width * ELEMENT_BYTES
    params = INFINIGEN_COLUMNS * step.query_params
    before: tuple[int, ...] = ()
    arrived: int | None = None
    attentions: list[int] = []

    def fetch(layer: int, guessed: int) -> int:
        size = step.batch * shape.kv_heads * kept * POSITION_BYTES
        told = step.to_host("positions", layer, (guessed,), size)
        rows = step.gather(layer, (told,), 2 * kept)
        fetched = step.batch * kept * shape.kv_bytes_per_layer
        return step.to_device("keys and values", layer, (rows,), fetched)

    for layer in range(shape.layers):
        if layer < INFINIGEN_FIRST_LAYER:
            wait = before if chosen == "none" else tuple(attentions[-1:])
            if chosen == "ideal":
                wait = ()
            arrived = step.to_device("keys and values", layer, wait, whole)
        assert arrived is not None
        attended = step.tokens if layer < INFINIGEN_FIRST_LAYER else kept
        guesses = INFINIGEN_FIRST_LAYER <= layer + 1 < shape.layers
        following: int | None = None
        if guesses and chosen == "ideal":
            guessed = step.gpu(
                "guess",
                layer + 1,
                before,
                params=params,
                read_bytes=columns,
                launches=GUESS_LAUNCHES,
            )
            following = fetch(layer + 1, guessed)
        if guesses and chosen != "ideal":
            ended = step.attention(
                layer,
                (*before, arrived),
                attended,
                more=GUESS_LAUNCHES,
                read_bytes=columns,
                params=params,
            )
            following = fetch(layer + 1, ended)
        else:
            ended = step.attention(layer, (*before, arrived), attended)
        attentions.append(ended)
        arrived = following
        step.store(layer, (ended,))
        before = (step.mlp(layer, (ended,)),)
    step.head(before)


def hgca(step: StepBuilder, *, window: int = HGCA_WINDOW, budget: float = BUDGET) -> None:
    """A window on the GPU beside salient tokens on the CPU; both merge by their sums."""
    shape = step.shape
    window = min(window, step.tokens)
    salient = round(budget * (step.tokens - window))
    before: tuple[int, ...] = ()
    for layer in range(shape.layers):
        made = step.projections(layer, before)
        query = step.batch * shape.query_width * ELEMENT_BYTES
        sent = step.to_host("query", layer, (made,), query)
        attended = step.scan("attention", layer, (sent,), 2 * salient)
        output = step.batch * (shape.query_width * ELEMENT_BYTES + shape.heads * LOGIT_BYTES)
        arrived = step.to_device("attention's output", layer, (attended,), output)
        own = step.gpu(
            "resident attention", layer, (made,), attended=window, launches=step.late_launches / 2
        )
        size = step.batch * shape.heads * window * LOGIT_BYTES
        step.to_host("weights", layer, (own,), size)
        ended = step.gpu(
            "merge",
            layer,
            (own, arrived),
            params=step.query_params,
            launches=step.late_launches / 2,
            ends_half_layer=True,
        )
        step.store(layer, (ended,))
        before = (step.mlp(layer, (ended,)),)
    step.head(before)


@dataclass(frozen=True, kw_only=True)
class HybridSetting:
    """How HybridGen works on a layer.

    Parameters
    ----------
    k : int
        Offloaded tokens that a head attends to.
    strategy : str
        "post": all logits are computed, then K chosen; "pre": K are chosen first.
    window : int
        Newest tokens that stay on the GPU.
    query : str
        "speculative": guessed logits cross; "rescore": keys do, and the GPU computes the logits.
    union : float
        Value rows per KV head over K: 1 if its query heads choose the same, up to their number.
    gather : str
        "device": the GPU reads chosen rows from pinned memory; "host": the CPU gathers them.
    mapping : str
        Where keys and values lie: "dram", "semantic" (keys in DRAM, values in CXL memory) or
        "interleaved" (pages of both by turns).
    query_on : str
        "gpu", or "cpu": the CPU projects the guess, which reads weights from DRAM.
    """

    k: int
    strategy: str = "post"
    window: int = 0
    query: str = "speculative"
    union: float = 1.0
    gather: str = "device"
    mapping: str = "dram"
    query_on: str = "gpu"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("strategy", ("post", "pre")),
            ("query", ("speculative", "rescore")),
            ("gather", ("device", "host")),
            ("mapping", tuple(SOURCES)),
            ("query_on", ("gpu", "cpu")),
        ):
            one_of("simulate", name, getattr(self, name), allowed)


def _payload_bytes(step: StepBuilder, k: int, setting: HybridSetting, guessed: bool) -> float:
    """Return what the host sends for a layer, as docs/methods.md counts it."""
    shape = step.shape
    post, rescore = setting.strategy == "post", setting.query == "rescore" and guessed
    rows = shape.kv_width * k * (setting.union if post else 1.0) * ELEMENT_BYTES
    logits = 0 if rescore else shape.heads * k * LOGIT_BYTES
    indices = shape.heads * k * POSITION_BYTES if post else 0
    return step.batch * (logits + indices + (2 if rescore else 1) * rows)


def _host_stage(step: StepBuilder, layer: int, made: int, setting: HybridSetting) -> int:
    """Add what the host does for a layer: query down, logits and choice, payload up."""
    shape = step.shape
    offloaded = max(0, step.tokens - setting.window)
    k = min(setting.k, offloaded)
    keys, values = SOURCES[setting.mapping]
    query = step.batch * shape.query_width * ELEMENT_BYTES
    sent = step.to_host("query", layer, (made,), query)
    if setting.query_on == "cpu" and layer > 0:
        rows = step.query_params / shape.kv_width / step.batch
        sent = step.scan("query", layer, (sent,), rows)
    scanned = offloaded if setting.strategy == "post" else k
    selects = offloaded if setting.strategy == "post" else 0
    ready = step.scan("logits", layer, (sent,), scanned, selects=selects, source=keys)
    guessed = layer > 0
    if setting.gather == "host":
        sides = 2 if setting.query == "rescore" and guessed else 1
        union = setting.union if setting.strategy == "post" else 1.0
        rows = sides * k * union
        ready = step.gather(layer, (ready,), rows, hands_off=False, source=values)
    return step.to_device(
        "logits and values",
        layer,
        (ready,),
        _payload_bytes(step, k, setting, guessed),
        scattered=setting.gather == "device",
        source=values if setting.gather == "device" else DRAM,
    )


def hybridgen(step: StepBuilder, *, setting: HybridSetting) -> None:
    """The host works on layer i+1, by a guessed query, while the GPU runs layer i."""
    shape = step.shape
    k = min(setting.k, max(0, step.tokens - setting.window))
    window = min(setting.window, step.tokens)
    before: tuple[int, ...] = ()
    payload: int | None = None
    for layer in range(shape.layers):
        guesses = layer + 1 < shape.layers and setting.query_on == "gpu"
        made = step.projections(layer, before, guesses=guesses)
        if payload is None:  # layer 0 has nothing to guess from
            payload = _host_stage(step, layer, made, setting)
        following = (
            _host_stage(step, layer + 1, made, setting) if layer + 1 < shape.layers else None
        )
        own = step.gpu(
            "resident logits",
            layer,
            (made,),
            attended=window / 2,
            launches=step.late_launches / 2,
        )
        rescored = k / 2 if setting.query == "rescore" and layer > 0 else 0.0
        ended = step.gpu(
            "merge",
            layer,
            (own, payload),
            params=step.query_params,
            attended=(window + k) / 2 + rescored,
            launches=step.late_launches / 2,
            ends_half_layer=True,
        )
        step.store(layer, (ended,))
        before = (step.mlp(layer, (ended,)),)
        payload = following
    leaves_some = setting.strategy == "post" and k < step.tokens - setting.window
    sums = step.batch * shape.layers * shape.heads * LOGIT_BYTES  # for the mass that was lost
    step.head(before, sums if leaves_some else 0)


METHODS: dict[str, Callable[..., None]] = {
    "oracle": oracle,
    "flexgen": flexgen,
    "moe_lightning": moe_lightning,
    "keyformer": keyformer,
    "h2o": h2o,
    "streaming_llm": streaming_llm,
    "infinigen": infinigen,
    "hgca": hgca,
    "hybridgen": hybridgen,
}


def build_step(step: StepBuilder, method: str, options: Mapping[str, Any]) -> None:
    """Add a method's tasks; ConfigError for an unknown method or option."""
    one_of("simulate", "method", method, tuple(METHODS))
    build = METHODS[method]
    known = [name for name in inspect.signature(build).parameters if name != "step"]
    for name in options:
        if name not in known:
            raise ConfigError(
                f"[simulate] {method} has no option {name!r}; allowed: {', '.join(known) or 'none'}"
            )
    build(step, **options)
