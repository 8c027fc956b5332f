# SPDX-License-Identifier: Apache-2.0
"""Stages of a decode step as tasks: what a method is composed of. The batch is folded in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .machine import Machine
from .shapes import ELEMENT_BYTES, ModelShape
from .tasks import Task, Tasks

GPU, CPU, H2D, D2H = "gpu", "cpu", "h2d", "d2h"
LANES = (GPU, CPU, H2D, D2H)
DRAM = {"dram": 1.0}

_BEFORE_ATTENTION = 6 / 16
"""Of attention's launches, those of norm and projections; the others follow the logits."""
_HEAD_LAUNCHES = 2
STORE = "store the new token"
"""The name of copies that move a token to the host, which counters keep apart."""


@dataclass
class StepBuilder:
    """Adds stages of one decode step.

    Parameters
    ----------
    machine : Machine
        Its times.
    shape : ModelShape
        The model.
    batch : int
        Texts.
    tokens : int
        Cached of each before the step.
    """

    machine: Machine
    shape: ModelShape
    batch: int
    tokens: int
    tasks: Tasks = field(default_factory=Tasks)

    # ---------------------------------------------------------------------------------------- GPU

    def gpu(
        self,
        name: str,
        layer: int,
        after: tuple[int, ...],
        *,
        params: float = 0.0,
        attended: float = 0.0,
        read_bytes: float = 0.0,
        launches: float = 0.0,
        ends_half_layer: bool = False,
    ) -> int:
        """Add the GPU's products with ``params`` weights and attention to ``attended`` tokens.

        ``read_bytes`` are others of the device's memory. Weights are read once for the batch.
        """
        shape, machine = self.shape, self.machine
        flops = 2 * self.batch * (params + 2 * attended * shape.query_width)
        cache = self.batch * attended * shape.kv_bytes_per_layer
        seconds = machine.gpu_seconds(flops, params * ELEMENT_BYTES + cache + read_bytes, launches)
        if ends_half_layer:
            seconds += machine.sublayer_seconds
        return self.tasks.add(Task(name, GPU, after, seconds, layer=layer))

    @property
    def attention_launches(self) -> float:
        """Of a whole attention half."""
        return self.machine.profile.overhead.launches_attn or 0.0

    @property
    def early_launches(self) -> float:
        """Norm and projections."""
        return _BEFORE_ATTENTION * self.attention_launches

    @property
    def late_launches(self) -> float:
        """Logits, softmax, values and output projection."""
        return self.attention_launches - self.early_launches

    @property
    def query_params(self) -> int:
        """Weights of the query projection; the output's are as many."""
        return self.shape.hidden_size * self.shape.query_width

    def attention(
        self,
        layer: int,
        after: tuple[int, ...],
        attended: float,
        *,
        more: float = 0.0,
        read_bytes: float = 0.0,
        params: float = 0.0,
    ) -> int:
        """Add a whole attention half: norm, q, k, v, attention, output projection."""
        return self.gpu(
            "attention",
            layer,
            after,
            params=self.shape.projection_params + params,
            attended=attended,
            read_bytes=read_bytes,
            launches=self.attention_launches + more,
            ends_half_layer=True,
        )

    def projections(self, layer: int, after: tuple[int, ...], *, guesses: bool = False) -> int:
        """Add norm and q, k, v; ``guesses``: the next layer's query as well."""
        params = self.shape.projection_params - self.query_params
        if guesses:
            params += self.query_params
        launches = self.early_launches + (2 if guesses else 0)
        return self.gpu("projections", layer, after, params=params, launches=launches)

    def rest_of_attention(
        self, layer: int, after: tuple[int, ...], attended: float, *, read_bytes: float = 0.0
    ) -> int:
        """Add softmax, values and output projection over what came and what was there."""
        return self.gpu(
            "attention",
            layer,
            after,
            params=self.query_params,
            attended=attended,
            read_bytes=read_bytes,
            launches=self.late_launches,
            ends_half_layer=True,
        )

    def mlp(self, layer: int, after: tuple[int, ...]) -> int:
        """Add the FFN."""
        return self.gpu(
            "FFN",
            layer,
            after,
            params=self.shape.ffn_params,
            launches=self.machine.profile.overhead.launches_mlp or 0.0,
            ends_half_layer=True,
        )

    def head(self, after: tuple[int, ...], sent: float = 0.0) -> int:
        """Add the output head, whose token the host waits for, and bytes that cross with it."""
        number = self.gpu(
            "output head", -1, after, params=self.shape.head_params, launches=_HEAD_LAUNCHES
        )
        return self.gpu_wait(number, sent)

    def gpu_wait(self, after: int, num_bytes: float = 0.0) -> int:
        """Add the host's wait for the step's token; what crosses with it is half of the wait."""
        seconds = self.machine.sync_seconds
        if num_bytes == 0 or seconds == 0:
            return self.tasks.add(
                Task("token to the host", D2H, (after,), seconds, num_bytes, self.machine.d2h)
            )
        rate = num_bytes / (seconds / 2)
        return self.tasks.add(
            Task("token to the host", D2H, (after,), seconds / 2, num_bytes, rate)
        )

    # --------------------------------------------------------------------------------------- link

    def to_device(
        self,
        name: str,
        layer: int,
        after: tuple[int, ...],
        num_bytes: float,
        *,
        scattered: bool = False,
        source: Mapping[str, float] = DRAM,
    ) -> int:
        """Add a copy to the device; ``scattered``: rows that the GPU gathers itself."""
        machine = self.machine
        rate = machine.zero_copy if scattered else machine.h2d
        return self.tasks.add(
            Task(name, H2D, after, machine.setup_seconds, num_bytes, rate, source, layer)
        )

    def to_host(self, name: str, layer: int, after: tuple[int, ...], num_bytes: float) -> int:
        """Add a copy to the host."""
        machine = self.machine
        return self.tasks.add(
            Task(name, D2H, after, machine.setup_seconds, num_bytes, machine.d2h, DRAM, layer)
        )

    def store(self, layer: int, after: tuple[int, ...]) -> int:
        """Add the new token's keys and values on their way to the host; nobody waits for them."""
        return self.to_host(STORE, layer, after, self.batch * self.shape.kv_bytes_per_layer)

    # ---------------------------------------------------------------------------------------- CPU

    def scan(
        self,
        name: str,
        layer: int,
        after: tuple[int, ...],
        rows: float,
        *,
        selects: float = 0.0,
        source: Mapping[str, float] = DRAM,
    ) -> int:
        """Add the CPU's work on ``rows`` keys or values of each text.

        ``selects``: logits per head among which it chooses.
        """
        shape, machine = self.shape, self.machine
        return self.tasks.add(
            Task(
                name,
                CPU,
                after,
                machine.hand_off_seconds
                + machine.select_seconds(self.batch * shape.heads * selects),
                self.batch * rows * shape.kv_width * ELEMENT_BYTES,
                machine.scan_rate(shape.heads / shape.kv_heads),
                source,
                layer,
            )
        )

    def gather(
        self,
        layer: int,
        after: tuple[int, ...],
        rows: float,
        *,
        hands_off: bool = True,
        source: Mapping[str, float] = DRAM,
    ) -> int:
        """Add the gathering of ``rows`` keys or values of each text into one piece in DRAM."""
        machine = self.machine
        return self.tasks.add(
            Task(
                "gather rows",
                CPU,
                after,
                machine.hand_off_seconds if hands_off else 0.0,
                self.batch * rows * self.shape.kv_width * ELEMENT_BYTES,
                machine.gather_rate,
                dict(source) | {"dram": 1.0 + source.get("dram", 0.0)},  # read and written
                layer,
            )
        )
