# SPDX-License-Identifier: Apache-2.0
"""
Compiled core of hybridgen.
"""

from __future__ import annotations

import collections.abc
import typing

import numpy
import numpy.typing
import torch

__all__: list[str] = [
    "Composition",
    "Engine",
    "EngineOptions",
    "Model",
    "ModelConfig",
    "SamplingOptions",
    "SchedulerOptions",
    "TokenEvent",
    "available_host_bytes",
    "available_parallelism",
    "build_info",
    "device_window",
    "is_engine_thread",
    "method_table",
    "numa_nodes",
    "read_bandwidth",
    "register_selector",
    "release_free_memory",
    "scheduler_preset",
    "scheduler_preset_names",
    "selector_names",
    "shadow_scores",
]

class ModelConfig:
    """
    Shape and conventions of a decoder-only model.
    """
    def __init__(
        self,
        *,
        architecture: str,
        num_layers: typing.SupportsInt | typing.SupportsIndex,
        hidden_size: typing.SupportsInt | typing.SupportsIndex,
        num_heads: typing.SupportsInt | typing.SupportsIndex,
        num_kv_heads: typing.SupportsInt | typing.SupportsIndex,
        head_dim: typing.SupportsInt | typing.SupportsIndex,
        ffn_size: typing.SupportsInt | typing.SupportsIndex,
        vocab_size: typing.SupportsInt | typing.SupportsIndex,
        max_positions: typing.SupportsInt | typing.SupportsIndex,
        embedding_size: typing.SupportsInt | typing.SupportsIndex = 0,
        norm: str = "rms",
        norm_eps: typing.SupportsFloat | typing.SupportsIndex = 1e-05,
        pre_norm: bool = True,
        final_norm: bool = True,
        activation: str = "silu_gate",
        position: str = "rotary",
        position_offset: typing.SupportsInt | typing.SupportsIndex = 0,
        rope_theta: typing.SupportsFloat | typing.SupportsIndex = 10000.0,
        rope_scaling: typing.Any = None,
        qkv_bias: bool = False,
        output_bias: bool = False,
        ffn_bias: bool = False,
        tie_embeddings: bool = False,
    ) -> None: ...
    def validate(self) -> None:
        """
        Raises ConfigError for an inconsistent field.
        """
    @property
    def activation(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def embedding_size(self) -> int: ...
    @property
    def ffn_bias(self) -> bool: ...
    @property
    def ffn_size(self) -> int: ...
    @property
    def final_norm(self) -> bool: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def norm(self) -> str: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def output_bias(self) -> bool: ...
    @property
    def position(self) -> str: ...
    @property
    def position_offset(self) -> int: ...
    @property
    def pre_norm(self) -> bool: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def rope_scaling(self) -> typing.Any: ...
    @property
    def rope_theta(self) -> float: ...
    @property
    def tie_embeddings(self) -> bool: ...
    @property
    def vocab_size(self) -> int: ...

class Model:
    """
    Weights of one model on one device.
    """
    def __init__(self, config: ModelConfig, *, dtype: str, device: str) -> None: ...
    def expected_tensors(self) -> list:
        """
        Names and shapes of all tensors to load.
        """
    def finish(self) -> None:
        """
        Raises CheckpointError naming the tensors that were not loaded.
        """
    def load_dummy(self, seed: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
        """
        Random weights, seeded.
        """
    def load_tensor(self, name: str, tensor: torch.Tensor) -> None:
        """
        Copies one tensor into the model; CheckpointError for a wrong name, shape or value.
        """
    @property
    def config(self) -> ModelConfig: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def weight_bytes(self) -> int: ...

class SchedulerOptions:
    """
    How K and the strategy are steered.
    """
    def __init__(
        self,
        *,
        k_min: typing.SupportsInt | typing.SupportsIndex = 128,
        grow: tuple[
            typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex
        ] = (6, 5),
        shrink: tuple[
            typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex
        ] = (4, 5),
        k_max_ratio: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        k_max: typing.SupportsInt | typing.SupportsIndex | None = None,
        interval: typing.SupportsInt | typing.SupportsIndex = 4,
        warmup: typing.SupportsInt | typing.SupportsIndex = 1,
        deadband: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        adapt_k: bool = True,
        adapt_strategy: bool = True,
        strategy: str = "post",
        return_to_post: str = "never",
        return_margin: typing.SupportsFloat | typing.SupportsIndex = 0.1,
        return_hold: typing.SupportsInt | typing.SupportsIndex = 3,
    ) -> None: ...

class Composition:
    """
    A method of the user's own, made of the parts of ours.
    """
    def __init__(
        self,
        *,
        name: str,
        residency: str,
        rule: tuple[str, str, str],
        early_rule: tuple[str, str, str] | None = None,
        first_layer: typing.SupportsInt | typing.SupportsIndex = 0,
        strategy: str = "post",
        selector: str = "",
        pre_selector: str = "",
        window: typing.SupportsInt | typing.SupportsIndex | None = None,
    ) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def reads(self) -> list[str]: ...

class EngineOptions:
    """
    What is decided when an engine is built.
    """
    def __init__(
        self,
        *,
        method: str = "hybridgen",
        method_config: collections.abc.Mapping[
            str,
            bool
            | typing.SupportsInt
            | typing.SupportsIndex
            | typing.SupportsFloat
            | typing.SupportsIndex
            | str,
        ] = {},
        scheduler: SchedulerOptions | None = None,
        guess_norm: str = "next",
        guess_source: str = "next_weights",
        query: str = "rescore",
        selector: str = "topk",
        pre_selector: str = "partial_keys",
        strategy: str = "post",
        k: typing.Any = (256, 0.125),
        scoring: str = "full",
        candidates_per_k: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        device_tokens: typing.Any = None,
        spec_first_layer: typing.SupportsInt | typing.SupportsIndex = 2,
        dram_bytes: typing.SupportsInt | typing.SupportsIndex = 0,
        device_bytes: typing.SupportsInt | typing.SupportsIndex = 0,
        threads: typing.SupportsInt | typing.SupportsIndex = 0,
        device_threads: typing.SupportsInt | typing.SupportsIndex = 0,
        numa_node: typing.SupportsInt | typing.SupportsIndex = -1,
        divides_heads: bool = True,
        isa: str = "auto",
        math: str = "auto",
        max_model_len: typing.SupportsInt | typing.SupportsIndex = 0,
        prefill_chunk: typing.SupportsInt | typing.SupportsIndex = 1024,
        micro_batch: typing.SupportsInt | typing.SupportsIndex = 16,
        max_batch: typing.SupportsInt | typing.SupportsIndex = 64,
        synchronous: bool = False,
        random_delay_us: typing.SupportsInt | typing.SupportsIndex = 0,
        oracle_proxy: bool = False,
        invented_nodes: typing.SupportsInt | typing.SupportsIndex = 0,
        composition: Composition | None = None,
    ) -> None: ...
    @property
    def candidates_per_k(self) -> float: ...
    @property
    def device_bytes(self) -> int: ...
    @property
    def device_threads(self) -> int: ...
    @property
    def device_tokens(self) -> typing.Any: ...
    @property
    def divides_heads(self) -> bool: ...
    @property
    def dram_bytes(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def k(self) -> typing.Any: ...
    @property
    def math(self) -> str: ...
    @property
    def max_batch(self) -> int: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def method(self) -> str: ...
    @property
    def micro_batch(self) -> int: ...
    @property
    def numa_node(self) -> int: ...
    @property
    def pre_selector(self) -> str: ...
    @property
    def prefill_chunk(self) -> int: ...
    @property
    def query(self) -> str: ...
    @property
    def scoring(self) -> str: ...
    @property
    def selector(self) -> str: ...
    @property
    def spec_first_layer(self) -> int: ...
    @property
    def strategy(self) -> str: ...
    @property
    def threads(self) -> int: ...

class SamplingOptions:
    """
    How tokens are drawn; temperature 0 is greedy.
    """
    def __init__(
        self,
        *,
        temperature: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        top_k: typing.SupportsInt | typing.SupportsIndex = 0,
        top_p: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        min_p: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        repetition_penalty: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        presence_penalty: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        frequency_penalty: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        logit_bias: collections.abc.Mapping[
            typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex
        ] = {},
        seed: typing.SupportsInt | typing.SupportsIndex = 0,
        max_tokens: typing.SupportsInt | typing.SupportsIndex = 16,
        min_tokens: typing.SupportsInt | typing.SupportsIndex = 0,
        stop_token_ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        num_logprobs: typing.SupportsInt | typing.SupportsIndex = -1,
        num_prompt_logprobs: typing.SupportsInt | typing.SupportsIndex = -1,
        valid_vocab: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None: ...

class TokenEvent:
    """
    A new token of a request, or its failure.
    """
    @property
    def error(self) -> typing.Any:
        """
        The exception that ended the request; None unless finish_reason is "error".
        """
    @property
    def finish_reason(self) -> str:
        """
        "", "stop", "length" or "error".
        """
    @property
    def is_greedy(self) -> bool: ...
    @property
    def logprob(self) -> float: ...
    @property
    def prompt_logprobs(self) -> list[list[tuple[int, float]]]:
        """
        With the first token: (token, logprob) of each prompt token but the first, and of the most likely in its place.
        """
    @property
    def request_id(self) -> int: ...
    @property
    def token_id(self) -> int: ...
    @property
    def top_logprobs(self) -> list[tuple[int, float]]: ...

class Engine:
    """
    Requests in, tokens out. One caller at a time.
    """
    @typing.overload
    def __init__(self, model: Model, options: EngineOptions) -> None: ...
    @typing.overload
    def __init__(self, model: Model, options: EngineOptions, composition: Composition) -> None: ...
    def add(
        self,
        prompt: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        sampling: SamplingOptions,
        *,
        forced: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        decode_prompt_tokens: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> int:
        """
        Queues a request and returns its id.
        """
    def finish(self, request_id: typing.SupportsInt | typing.SupportsIndex, reason: str) -> None:
        """
        Ends a request now, for the reason stop, length, abort or error.
        """
    def has_work(self) -> bool:
        """
        Whether step() has anything to do.
        """
    def memory(self) -> dict:
        """
        Capacity and use of each tier in bytes.
        """
    def numa_parts(self) -> list:
        """
        Memory nodes that KV heads are divided over, with their workers' CPUs.
        """
    def release(self, request_id: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Forgets a request and its statistics.
        """
    def request_stats(self, request_id: typing.SupportsInt | typing.SupportsIndex) -> dict:
        """
        Statistics of one request.
        """
    def reset_stats(self) -> None:
        """
        Sets all sums to zero.
        """
    def run_stats(self) -> dict:
        """
        Sums since the last reset.
        """
    def start_trace(self, capacity: typing.SupportsInt | typing.SupportsIndex = 1048576) -> None:
        """
        Starts recording spans.
        """
    def step(self, events: list | None = None) -> list:
        """
        One prefill chunk, or one decode step of all running requests; the GIL is released. Appends to `events`, or to a new list, and returns it.
        """
    def stop_trace(self) -> list:
        """
        Stops recording and returns the spans.
        """
    @property
    def options(self) -> EngineOptions: ...

def available_host_bytes() -> int:
    """
    Host memory that could still be taken.
    """

def available_parallelism() -> int:
    """
    CPUs' worth of time this process may use (affinity and cgroup quota).
    """

def build_info() -> dict:
    """
    Facts about this build and what this CPU supports.
    """

def device_window(
    device_tokens: typing.Any, prompt_tokens: typing.SupportsInt | typing.SupportsIndex
) -> int | None:
    """
    Tokens of a prompt that may stay on the device; None if as many as fit.
    """

def is_engine_thread() -> bool:
    """
    Whether the calling thread belongs to an engine: it runs work that somebody waits for.
    """

def method_table() -> list:
    """
    What there is to know about every method, in a fixed order.
    """

def numa_nodes() -> list:
    """
    Memory nodes with their CPUs and bytes; a single one where the system tells of none.
    """

def read_bandwidth(
    threads: typing.SupportsInt | typing.SupportsIndex,
    bytes: typing.SupportsInt | typing.SupportsIndex = 536870912,
) -> float:
    """
    Bytes per second that `threads` threads read from memory, measured now (median of 5).
    """

def register_selector(name: str, strategy: str, make: typing.Any) -> None:
    """
    Adds a selector; `make(**shape)` is called once per request.
    """

def release_free_memory() -> None:
    """
    Gives what the allocator holds and nobody uses back to the operating system.
    """

def scheduler_preset(name: str) -> dict:
    """
    What a preset sets.
    """

def scheduler_preset_names() -> list[str]:
    """
    Names of the six schedules of the paper's ablation (§5.4).
    """

def selector_names(strategy: str) -> list[str]:
    """
    Token selectors of a strategy, 'post' or 'pre'.
    """

def shadow_scores(
    keys: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
    queries: typing.Annotated[numpy.typing.ArrayLike, numpy.float32],
    precision: str,
) -> numpy.typing.NDArray[numpy.float32]:
    """
    Scores [R, n] of float32 queries [R, D] over an 8-bit or 4-bit copy of keys [n, D]: the logits less one constant per query.
    """
