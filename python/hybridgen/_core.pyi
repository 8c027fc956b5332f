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
    "TokenEvent",
    "available_host_bytes",
    "available_parallelism",
    "build_info",
    "checked_options",
    "code_matrix",
    "device_window",
    "gguf_formats",
    "host_tiers",
    "huge_pages",
    "is_engine_thread",
    "machine_profile_fields",
    "measure_gather",
    "measure_hand_off",
    "measure_scan_keys",
    "measure_select",
    "measure_walk_lines",
    "method_table",
    "new_disk_file_name",
    "numa_nodes",
    "offer_emulated_device",
    "option_classes",
    "plan_run",
    "process_memory",
    "read_bandwidth",
    "register_machine_profile",
    "register_selector",
    "release_device_memory",
    "release_free_memory",
    "restore_gguf",
    "restore_packed",
    "scheduler_preset",
    "scheduler_preset_names",
    "selector_names",
    "shadow_scores",
    "split_gguf",
    "split_packed",
    "tensor_shapes",
    "weight_formats",
]

class ModelConfig:
    """
    Shape and conventions of a decoder-only model.
    """
    @staticmethod
    def describe() -> list:
        """
        Name, type, default, what is allowed and meaning of every option.
        """
    def __init__(
        self,
        *,
        architecture: str = "llama",
        num_layers: int = 0,
        hidden_size: int = 0,
        num_heads: int = 0,
        num_kv_heads: int = 0,
        head_dim: int = 0,
        ffn_size: int = 0,
        vocab_size: int = 0,
        max_positions: int = 0,
        embedding_size: int = 0,
        norm: str = "rms",
        norm_eps: float = 1e-05,
        pre_norm: bool = True,
        final_norm: bool = True,
        activation: str = "silu_gate",
        position: str = "rotary",
        position_offset: int = 0,
        rope_theta: float = 10000.0,
        rope_scaling: dict[str, typing.Any] | None = None,
        qk_norm: bool = False,
        qkv_bias: bool = False,
        output_bias: bool = False,
        ffn_bias: bool = False,
        tie_embeddings: bool = False,
    ) -> None: ...
    def to_dict(self) -> typing.Any:
        """
        All options by name.
        """
    def validate(self) -> None:
        """
        Raises ConfigError for an inconsistent field.
        """
    @property
    def activation(self) -> typing.Any: ...
    @property
    def architecture(self) -> typing.Any: ...
    @property
    def embedding_size(self) -> typing.Any: ...
    @property
    def ffn_bias(self) -> typing.Any: ...
    @property
    def ffn_size(self) -> typing.Any: ...
    @property
    def final_norm(self) -> typing.Any: ...
    @property
    def head_dim(self) -> typing.Any: ...
    @property
    def hidden_size(self) -> typing.Any: ...
    @property
    def max_positions(self) -> typing.Any: ...
    @property
    def norm(self) -> typing.Any: ...
    @property
    def norm_eps(self) -> typing.Any: ...
    @property
    def num_heads(self) -> typing.Any: ...
    @property
    def num_kv_heads(self) -> typing.Any: ...
    @property
    def num_layers(self) -> typing.Any: ...
    @property
    def output_bias(self) -> typing.Any: ...
    @property
    def position(self) -> typing.Any: ...
    @property
    def position_offset(self) -> typing.Any: ...
    @property
    def pre_norm(self) -> typing.Any: ...
    @property
    def qk_norm(self) -> typing.Any: ...
    @property
    def qkv_bias(self) -> typing.Any: ...
    @property
    def rope_scaling(self) -> typing.Any: ...
    @property
    def rope_theta(self) -> typing.Any: ...
    @property
    def tie_embeddings(self) -> typing.Any: ...
    @property
    def vocab_size(self) -> typing.Any: ...

class Model:
    """
    Weights of one model on one device.
    """
    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: str,
        device: str,
        weights: dict = {},
        formats: dict = {},
    ) -> None:
        """
        `weights`: options of a WeightConfig. `formats`: of each matrix that the checkpoint has codes of, by its name here, bits, group (inputs), scales ("float16" or "float32") and minima (whether there are any); it comes before `weights`.
        """
    def expected_tensors(self) -> list:
        """
        Names and shapes of all tensors to load.
        """
    def finish(self) -> None:
        """
        Raises CheckpointError naming the tensors that were not loaded.
        """
    def is_read_in_place(self, name: str) -> bool:
        """
        Whether load_from_file() takes this tensor, if a file has it in the model's dtype.
        """
    def load_coded(
        self,
        name: str,
        *,
        codes: torch.Tensor,
        scales: torch.Tensor,
        minima: torch.Tensor | None = None,
        bits: typing.SupportsInt | typing.SupportsIndex,
        group: typing.SupportsInt | typing.SupportsIndex,
    ) -> None:
        """
        Copies one matrix that is coded already (src/kernels/coded_rows.h says how codes lie) into the model; CheckpointError for another format than the model was made for.
        """
    def load_dummy(self, seed: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
        """
        Random weights, seeded.
        """
    def load_from_file(
        self, name: str, *, path: str, offset: typing.SupportsInt | typing.SupportsIndex
    ) -> None:
        """
        Lets one tensor lie where it is in a file, to be read whenever its layer is used.
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
    def host_weight_bytes(self) -> int:
        """
        Of those in host memory, an emulated device's included.
        """
    @property
    def weight_bytes(self) -> int:
        """
        Of all weights, wherever they lie.
        """

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
    @staticmethod
    def describe() -> list:
        """
        Name, type, default, what is allowed and meaning of every option.
        """
    def __init__(
        self,
        *,
        method: str = "hybridgen",
        method_config: collections.abc.Mapping[str, typing.Any] = {},
        device_tokens: str | int | float = "auto",
        keys: str = "full",
        values: str = "full",
        dram: int | str = "auto",
        device_bytes: int | str = "auto",
        threads: str | int = "auto",
        device_threads: str | int = "auto",
        numa: str | int = "auto",
        isa: str = "auto",
        math: str = "auto",
        max_model_len: int | None = None,
        max_num_batched_tokens: int = 1024,
        micro_batch: int = 16,
        max_num_seqs: int = 64,
        synchronous: bool = False,
        random_delay_us: int = 0,
        oracle_proxy: bool = False,
        invented_nodes: int = 0,
        invented_cxl_node: int | None = None,
        cxl_bytes_per_second: int = 0,
        cxl: int | str = "auto",
        cxl_node: int | None = None,
        disk: typing.Any | None = None,
        placement: str = "semantic",
        shrink_windows: bool = False,
        k: int | float | str | None = "auto",
        mass: float | None = None,
        k_max: int | float | str = "all",
        strategy: str = "post",
        query: str | typing.Any = "rescore",
        selector: str = "topk",
        pre_selector: str = "partial_keys",
        scoring: str = "full",
        candidates_per_k: float | None = None,
        scheduler: typing.Any | None = None,
        column_share: float = 0.2,
        composition: Composition | None = None,
    ) -> None: ...
    def to_dict(self) -> typing.Any:
        """
        All options by name.
        """
    @property
    def candidates_per_k(self) -> typing.Any: ...
    @property
    def column_share(self) -> typing.Any: ...
    @property
    def cxl(self) -> typing.Any: ...
    @property
    def cxl_bytes_per_second(self) -> typing.Any: ...
    @property
    def cxl_node(self) -> typing.Any: ...
    @property
    def device_bytes(self) -> typing.Any: ...
    @property
    def device_threads(self) -> typing.Any: ...
    @property
    def device_tokens(self) -> typing.Any: ...
    @property
    def disk(self) -> typing.Any: ...
    @property
    def dram(self) -> typing.Any: ...
    @property
    def invented_cxl_node(self) -> typing.Any: ...
    @property
    def invented_nodes(self) -> typing.Any: ...
    @property
    def isa(self) -> typing.Any: ...
    @property
    def k(self) -> typing.Any: ...
    @property
    def k_max(self) -> typing.Any: ...
    @property
    def keys(self) -> typing.Any: ...
    @property
    def mass(self) -> typing.Any: ...
    @property
    def math(self) -> typing.Any: ...
    @property
    def max_model_len(self) -> typing.Any: ...
    @property
    def max_num_batched_tokens(self) -> typing.Any: ...
    @property
    def max_num_seqs(self) -> typing.Any: ...
    @property
    def method(self) -> typing.Any: ...
    @property
    def method_config(self) -> typing.Any: ...
    @property
    def micro_batch(self) -> typing.Any: ...
    @property
    def numa(self) -> typing.Any: ...
    @property
    def oracle_proxy(self) -> typing.Any: ...
    @property
    def placement(self) -> typing.Any: ...
    @property
    def pre_selector(self) -> typing.Any: ...
    @property
    def query(self) -> typing.Any: ...
    @property
    def random_delay_us(self) -> typing.Any: ...
    @property
    def scheduler(self) -> typing.Any: ...
    @property
    def scoring(self) -> typing.Any: ...
    @property
    def selector(self) -> typing.Any: ...
    @property
    def shrink_windows(self) -> typing.Any: ...
    @property
    def strategy(self) -> typing.Any: ...
    @property
    def synchronous(self) -> typing.Any: ...
    @property
    def threads(self) -> typing.Any: ...
    @property
    def values(self) -> typing.Any: ...

class SamplingOptions:
    """
    How tokens are drawn; temperature 0 is greedy.
    """
    @staticmethod
    def describe() -> list:
        """
        Name, type, default, what is allowed and meaning of every option.
        """
    def __init__(
        self,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: tuple[tuple[int, float], ...] = (),
        seed: int = 0,
        max_tokens: int = 16,
        min_tokens: int = 0,
        stop_token_ids: tuple[int, ...] = (),
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        valid_vocab: int = 0,
    ) -> None: ...
    def to_dict(self) -> typing.Any:
        """
        All options by name.
        """
    @property
    def frequency_penalty(self) -> typing.Any: ...
    @property
    def logit_bias(self) -> typing.Any: ...
    @property
    def logprobs(self) -> typing.Any: ...
    @property
    def max_tokens(self) -> typing.Any: ...
    @property
    def min_p(self) -> typing.Any: ...
    @property
    def min_tokens(self) -> typing.Any: ...
    @property
    def presence_penalty(self) -> typing.Any: ...
    @property
    def prompt_logprobs(self) -> typing.Any: ...
    @property
    def repetition_penalty(self) -> typing.Any: ...
    @property
    def seed(self) -> typing.Any: ...
    @property
    def stop_token_ids(self) -> typing.Any: ...
    @property
    def temperature(self) -> typing.Any: ...
    @property
    def top_k(self) -> typing.Any: ...
    @property
    def top_p(self) -> typing.Any: ...
    @property
    def valid_vocab(self) -> typing.Any: ...

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
        device_tokens: typing.SupportsInt | typing.SupportsIndex | None = None,
        on_disk: bool = False,
    ) -> int:
        """
        Queues a request and returns its id; the last two say where its keys and values lie.
        """
    def finish(self, request_id: typing.SupportsInt | typing.SupportsIndex, reason: str) -> None:
        """
        Ends a request now, for the reason stop, length, abort or error.
        """
    def has_work(self) -> bool:
        """
        Whether step() has anything to do.
        """
    def memory(self, pages: bool = False) -> dict:
        """
        Capacity and use of each tier in bytes; with pages=True also where the system says that they lie.
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

def checked_options(name: str, options: dict) -> typing.Any:
    """
    The options of a class as they are kept; ConfigError unless they are allowed.
    """

def code_matrix(tensor: torch.Tensor, format: dict) -> dict:
    """
    A matrix [outputs, inputs] of any floating dtype as codes, scales and, where the format has them, minima: those that loading makes.
    """

def device_window(
    device_tokens: typing.Any, prompt_tokens: typing.SupportsInt | typing.SupportsIndex
) -> int | None:
    """
    Tokens of a prompt that may stay on the device; None if as many as fit.
    """

def gguf_formats() -> list:
    """
    Types of GGUF tensors that are read: values and bytes of a block, bits of a code (0: plain numbers), values of a scale, and whether there are minima.
    """

def host_tiers() -> list:
    """
    Every memory node: its tier and why it is that one, bytes, distances to nodes by their numbers, and what firmware says of its memory. May measure, once and for less than some seconds.
    """

def huge_pages() -> dict:
    """
    The system's setting of huge pages, bytes that asked for them, and bytes of this process that have them.
    """

def is_engine_thread() -> bool:
    """
    Whether the calling thread belongs to an engine: it runs work that somebody waits for.
    """

def machine_profile_fields() -> list:
    """
    What times of an emulated device are made from: the name, and fields of a profile.
    """

def measure_gather(
    threads: typing.SupportsInt | typing.SupportsIndex,
    mebibytes: typing.SupportsInt | typing.SupportsIndex,
    row_bytes: typing.SupportsInt | typing.SupportsIndex,
    passes: typing.SupportsInt | typing.SupportsIndex,
) -> tuple[int, list[float]]:
    """
    Bytes of a pass that gathers a twentieth of all rows, and the seconds of each pass.
    """

def measure_hand_off(
    threads: typing.SupportsInt | typing.SupportsIndex,
    workers_sleep: bool,
    passes: typing.SupportsInt | typing.SupportsIndex,
) -> list[float]:
    """
    Seconds of each hand-over of an empty task to every worker.
    """

def measure_scan_keys(
    threads: typing.SupportsInt | typing.SupportsIndex,
    mebibytes: typing.SupportsInt | typing.SupportsIndex,
    queries: typing.SupportsInt | typing.SupportsIndex,
    isa: str,
    passes: typing.SupportsInt | typing.SupportsIndex,
) -> list[float]:
    """
    Seconds of each pass of the logits kernel over bfloat16 keys of head_dim 128.
    """

def measure_select(
    count: typing.SupportsInt | typing.SupportsIndex,
    k: typing.SupportsInt | typing.SupportsIndex,
    passes: typing.SupportsInt | typing.SupportsIndex,
) -> list[float]:
    """
    Seconds of each choice of the k largest of `count` scores, on one thread.
    """

def measure_walk_lines(
    mebibytes: typing.SupportsInt | typing.SupportsIndex,
    passes: typing.SupportsInt | typing.SupportsIndex,
) -> list[float]:
    """
    Seconds per line of each walk through lines of memory in random order.
    """

def method_table() -> list:
    """
    What there is to know about every method, in a fixed order.
    """

def new_disk_file_name() -> str:
    """
    A name for a file in a Disk's folder, which the next start there removes once this process is no more.
    """

def numa_nodes() -> list:
    """
    Memory nodes with their CPUs and bytes; a single one where the system tells of none.
    """

def offer_emulated_device() -> None:
    """
    Let LibTorch know the device "emulated"; DeviceError in a child forked after that.
    """

def option_classes() -> list:
    """
    What Python's classes of options are made from: their options, in order.
    """

def plan_run(
    config: ModelConfig,
    options: EngineOptions,
    composition: Composition | None = None,
    *,
    dtype: str,
    device: str,
    are_loaded: bool,
    batch_size: typing.SupportsInt | typing.SupportsIndex,
    prompt_tokens: typing.SupportsInt | typing.SupportsIndex,
    new_tokens: typing.SupportsInt | typing.SupportsIndex,
    weights: dict = {},
    formats: dict = {},
) -> dict:
    """
    What a batch of equal requests takes of every tier, in bytes. `weights` and `formats` as Model takes them.
    """

def process_memory() -> dict:
    """
    Host memory that all engines and models of this process have promised, and what could be promised beside it, in bytes; "device" is what is resident on CPU devices.
    """

def read_bandwidth(
    threads: typing.SupportsInt | typing.SupportsIndex,
    bytes: typing.SupportsInt | typing.SupportsIndex = 536870912,
) -> float:
    """
    Bytes per second that `threads` threads read from memory, measured now (median of 5).
    """

def register_machine_profile(fields: dict) -> int:
    """
    Index N of the device "emulated:N" that has the times of these fields, by full name.
    """

def register_selector(name: str, strategy: str, make: typing.Any) -> None:
    """
    Adds a selector; `make(**shape)` is called once per request.
    """

def release_device_memory(device: str) -> None:
    """
    Give back to the system what LibTorch keeps of a device's memory without a use.
    """

def release_free_memory() -> None:
    """
    Gives what the allocator holds and nobody uses back to the operating system.
    """

def restore_gguf(
    format: typing.SupportsInt | typing.SupportsIndex, rows: torch.Tensor, dtype: str
) -> torch.Tensor:
    """
    Numbers [outputs, inputs] of a GGUF tensor's rows, uint8 [outputs, bytes of a row].
    """

def restore_packed(
    layout: str,
    *,
    bits: typing.SupportsInt | typing.SupportsIndex,
    zero_offset: typing.SupportsInt | typing.SupportsIndex,
    codes: torch.Tensor,
    zeros: torch.Tensor,
    scales: torch.Tensor,
    group_of_input: torch.Tensor,
    dtype: str,
) -> torch.Tensor:
    """
    Numbers [outputs, inputs] of a matrix that is packed as 'gptq' or 'awq' do.
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

def split_gguf(format: typing.SupportsInt | typing.SupportsIndex, rows: torch.Tensor) -> dict:
    """
    The same as codes, scales, minima (None: symmetric), bits and group.
    """

def split_packed(
    layout: str,
    *,
    bits: typing.SupportsInt | typing.SupportsIndex,
    zero_offset: typing.SupportsInt | typing.SupportsIndex,
    codes: torch.Tensor,
    zeros: torch.Tensor,
    scales: torch.Tensor,
    group_of_input: torch.Tensor,
    group: typing.SupportsInt | typing.SupportsIndex,
) -> dict:
    """
    The same as codes, scales, minima, bits and group.
    """

def tensor_shapes(config: ModelConfig) -> list[tuple[str, list[int]]]:
    """
    Names and shapes of all tensors that such a model loads.
    """

def weight_formats(config: ModelConfig, weights: dict) -> dict:
    """
    Of each matrix that such options of a WeightConfig code in such a model: bits, group, minima and scales, as Model takes them.
    """
